"""The explorer's page as it is rendered: honest, harmless, and complete without scripts."""

import gzip
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import attrs
import pytest
from page_service import (
    CHUTES,
    FRESH,
    LOADS,
    MODELS,
    Answer,
    Node,
    PageService,
    chute,
    load,
    merged,
    model,
    snapshot,
    uuid,
)
from twisted.internet.defer import Deferred, succeed

from chutes_autopilot.explorer.changes import Change, FieldChange
from chutes_autopilot.explorer.merge import Merged
from chutes_autopilot.explorer.picks import Pick, Totals
from chutes_autopilot.explorer_live.measured import Failover, Measured
from chutes_autopilot.policy.client_address import TrustedProxies, parse_cidrs
from chutes_autopilot.policy.decision import AttemptView, Decision
from chutes_autopilot.policy.reasons import reasons
from chutes_autopilot.web.explorer.pages import MAX_WAITING, ROWS_A_TURN
from chutes_autopilot.web.explorer.states import Freshness

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}&lt;b&gt; javascript:alert(3)"
TABS = ("/", "/live", "/merge", "/changes", f"/?model={uuid(1)}", f"/?compare={uuid(1)},{uuid(2)}")


def names(rows: list[Node]) -> list[str | None]:
    return [row.one("th").one("a", class_="name").attributes["title"] for row in rows]


def rows(page: Node) -> list[Node]:
    return page.one("tbody", id="rows").children


def cell(row: Node, column: str) -> Node:
    return row.one("td", class_=f"c-{column}")


class Turns:
    """Turns of the reactor, which the test lets come."""

    def __init__(self) -> None:
        self.awaited: list[Deferred[None]] = []

    def pause(self) -> Deferred[None]:
        self.awaited.append(Deferred())
        return self.awaited[-1]

    def all(self) -> int:
        """How many there had to be until nobody waits for another one, never two at once."""
        count = 0
        while self.awaited:
            (turn,) = self.awaited
            self.awaited = []
            turn.callback(None)
            count += 1
        return count


def many(count: int) -> Merged:
    return merged([chute(number, f"m{number}") for number in range(1, count + 1)], [], [])


def test_a_long_list_is_drawn_in_many_turns() -> None:
    """A few rows in each, one list after the other, and each once for all who ask for it; other pages do not wait."""
    turns, truth = Turns(), many(4 * ROWS_A_TURN)
    service = PageService(truth=lambda: truth, pause=turns.pause)
    asked = [service.ask(target) for target in ("/?sort=name", "/?sort=name", f"/?limit={ROWS_A_TURN + 1}")]
    assert service.get("/merge").status == 200
    assert [each.value() for each in asked] == [b""] * 3
    assert turns.all() == 3 + 1
    pages = [Answer(each.value()) for each in asked]
    assert pages[0].body == pages[1].body
    assert [len(rows(page.page)) for page in pages] == [4 * ROWS_A_TURN, 4 * ROWS_A_TURN, ROWS_A_TURN + 1]


def test_no_more_lists_wait_than_can_be_drawn_soon() -> None:
    """Not even of visitors who have left; who asks for one of them may still wait, and others are told to come back."""
    turns, truth = Turns(), many(2 * ROWS_A_TURN)
    service = PageService(truth=lambda: truth, pause=turns.pause)
    asked = [service.ask(f"/?q=m&limit={100 + number}") for number in range(MAX_WAITING)]
    asked.append(service.ask("/?q=m&limit=100"))
    busy = service.get("/")
    assert (busy.status, busy.headers["retry-after"], busy.headers["cache-control"]) == (503, "2", "no-store")
    assert busy.page.one("h1").text == "Too many pages at once"
    turns.all()
    assert {Answer(each.value()).status for each in asked} == {200}
    service.pages.pause = lambda: succeed(None)
    assert service.get("/").status == 200


def test_a_list_that_takes_long_is_drawn_once_for_all_who_ask_meanwhile() -> None:
    """However long that is: it takes one place of those that wait, and is sent again as of the moment it was drawn."""
    turns, truth = Turns(), many(2 * ROWS_A_TURN)
    service = PageService(truth=lambda: truth, pause=turns.pause)
    asked = []
    for _ in range(MAX_WAITING + 1):
        asked.append(service.ask("/"))
        service.clock.advance(2)
    asked.append(service.ask("/live"))
    assert turns.all() == 1
    assert {Answer(each.value()).status for each in (*asked, service.ask("/"))} == {200}
    assert turns.awaited == []


def hostile_service() -> PageService:
    everything = {
        "tagline": HOSTILE, "slug": HOSTILE, "version": HOSTILE, "revision": HOSTILE, "standard_template": HOSTILE,
        "user": {"username": HOSTILE}, "supported_gpus": [HOSTILE], "tee": False,
    }  # fmt: skip
    said = {
        "root": HOSTILE, "owned_by": HOSTILE, "quantization": HOSTILE, "input_modalities": [HOSTILE],
        "output_modalities": [HOSTILE], "supported_features": [HOSTILE], "confidential_compute": True,
        "supported_sampling_parameters": [HOSTILE],
    }  # fmt: skip
    chutes = [chute(1, HOSTILE, **everything), chute(2, HOSTILE + "2", **everything), chute(3, HOSTILE + "/x")]
    models = [
        model(1, HOSTILE + "!", **said),
        model(2, HOSTILE + "2", **said),
        {"id": HOSTILE + "no id"},
        model(8, HOSTILE + "/x"),
    ]
    loads = [load(1, HOSTILE, action_taken=HOSTILE), load(9, HOSTILE + "9")]
    change = Change("model.changed", 1.0, HOSTILE, None, HOSTILE, (FieldChange("root", HOSTILE, HOSTILE + "new"),))
    return PageService(
        truth=lambda: merged(chutes, models, loads),
        ranking=lambda: snapshot(models, loads),
        freshness=lambda: (Freshness("chutes", 5.0, "stale", HOSTILE), *FRESH[1:]),
        changes=lambda limit: (change,),
        measured=lambda: {HOSTILE: Measured(1, 1, 1.0)},
        failovers=lambda: (Failover(1.0, HOSTILE, HOSTILE, HOSTILE),),
    )


def every_node(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from every_node(child)


@pytest.mark.parametrize("target", [*TABS, f"/?q={quote(HOSTILE)}", f"/?model={quote('v1:' + HOSTILE + 'no id')}"])
def test_whatever_strangers_write_is_shown_as_text(target: str) -> None:
    """Markup in names, fields, reasons and parameters makes no element, no attribute and no foreign address."""
    page = hostile_service().page(target)
    assert "<script>alert(1)</script>" in page.text
    for node in every_node(page):
        assert node.name not in ("img", "style", "iframe", "object", "embed", "base")
        assert node.name != "script" or (node.attributes["src"] or "").startswith("/static/app.")
        for name, value in node.attributes.items():
            assert not name.startswith("on")
            assert name != "style"
            assert name not in ("href", "src", "action") or (value or "").startswith(("/", "#")) or value == ""


@pytest.mark.parametrize("target", TABS)
def test_a_page_needs_nothing_inline_and_nothing_from_elsewhere(target: str) -> None:
    """The policy forbids inline code and other sites, and the page has neither."""
    answer = PageService().get(target)
    assert answer.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    page = answer.page
    assert len(page.find("h1")) == 1
    assert len({node.attributes.get("id") for node in every_node(page)} - {None}) == sum(
        "id" in node.attributes for node in every_node(page)
    )
    assert not any("style" in node.attributes or node.name == "style" for node in every_node(page))
    assert all(not script.text for script in page.find("script"))


def test_each_price_has_its_own_unit_and_what_is_unknown_is_no_zero() -> None:
    """Tokens, steps and nothing known look different; 0 is free."""
    page = PageService().page("/?sort=name")
    alpha, beta, painter = rows(page)
    assert [cell(alpha, name).text for name in ("input", "cached", "output", "blended")] == [
        "0.50",
        "free",
        "1.50",
        "0.75",
    ]
    assert [cell(beta, name).text for name in ("input", "cached", "output", "blended")] == ["0.25", "–", "–", "–"]  # noqa: RUF001
    price = painter.one("td", class_="c-price")
    assert price.text == "0.002 / step"
    assert price.attributes["colspan"] == "4"
    labels = [cell.attributes["data-label"] for cell in page.find("td")]
    assert {"Price, $", "Input, $/1M", "Output, $/1M", "Context"} <= set(labels)
    assert cell(painter, "utilization").text == "–"  # noqa: RUF001
    assert cell(painter, "modalities").one("span", class_="inferred").text == "text → image"


def test_tee_shows_only_where_nobody_disagrees() -> None:
    """A conflict is a question mark and not protection."""
    disagreeing = [chute(1, "a", tee=True), chute(2, "b", tee=True), chute(3, "c", tee=False)]
    models = [model(1, "a", confidential_compute=False), model(2, "b", confidential_compute=True)]
    page = PageService(truth=lambda: merged(disagreeing, models, [])).page("/?sort=name")
    assert [[mark.text for mark in row.find("span", class_="mark")] for row in rows(page)] == [["TEE?"], ["TEE"], []]


def test_the_head_of_a_column_is_a_button_that_sorts_and_then_turns_round() -> None:
    """Sorting works without scripts, says so in aria-sort, and leaves what is unknown at the end."""
    service = PageService()
    page = service.page("/")
    head = page.one("th", aria_sort="descending")
    assert head.one("button").attributes["id"] == "sort-requests"
    assert names(rows(page)) == ["acme/Beta", "acme/Alpha", "painter"]
    button = page.one("button", id="sort-input")
    assert (button.attributes["name"], button.attributes["value"], button.attributes["form"]) == (
        "sort",
        "price_input",
        page.one("form", role="search").attributes["id"],
    )
    page = service.page("/?sort=price_input")
    assert names(rows(page)) == ["acme/Beta", "acme/Alpha", "painter"]
    assert page.one("th", aria_sort="ascending").one("button").attributes["value"] == "-price_input"
    page = service.page("/?sort=-price_input")
    assert names(rows(page)) == ["acme/Alpha", "acme/Beta", "painter"]


def test_enter_in_the_search_field_keeps_the_order() -> None:
    """The form's first button, which Enter presses, carries the order that is shown."""
    page = PageService().page("/?sort=name")
    first = page.one("form", role="search").find("button", type="submit")[0]
    assert (first.attributes["name"], first.attributes["value"]) == ("sort", "name")


def test_filters_come_from_the_address_and_stay_in_every_further_one() -> None:
    """Chips tell how many they would leave; links of chips and rows keep what is set, and the form sends it again."""
    service = PageService()
    page = service.page("/?kind=chat&quantization=fp8&sort=name")
    assert names(rows(page)) == ["acme/Beta"]
    chips = {chip.attributes["id"]: chip for chip in page.find("a", class_="chip")}
    assert chips["chip-kind-chat"].text == "chat 1"
    assert chips["chip-kind-chat"].attributes["aria-current"] == "true"
    assert chips["chip-kind-chat"].attributes["href"] == "/?quantization=fp8&sort=name"
    assert chips["chip-tee"].attributes["href"] == "/?kind=chat&tee=true&quantization=fp8&sort=name"
    opening = page.one("a", id=f"open-{uuid(2)}").attributes["href"]
    assert opening == f"/?kind=chat&quantization=fp8&sort=name&model={uuid(2)}"
    form = page.one("form", role="search")
    assert [(field.attributes["name"], field.attributes["value"]) for field in form.find("input", type="hidden")] == [
        ("kind", "chat")
    ]
    assert form.one("select", name="quantization").one("option", value="fp8").attributes == {
        "value": "fp8",
        "selected": None,
    }
    closing = service.page(opening or "").one("a", id="close")
    assert closing.attributes["href"] == "/?kind=chat&quantization=fp8&sort=name"


def test_exports_are_of_what_is_filtered() -> None:
    """The links to files carry the filters and the order, and nothing else of the page's state."""
    page = PageService().page(f"/?q=acme&sort=name&model={uuid(1)}&cols=kind")
    assert [link.attributes["href"] for link in page.one("details", id="export").find("a")] == [
        f"/api/catalog?q=acme&sort=name&format={name}" for name in ("csv", "ndjson", "md")
    ]


def test_the_reader_chooses_the_columns() -> None:
    """The chosen ones are shown in their usual order; a form that sends the usual ones changes nothing."""
    service = PageService()
    page = service.page("/?cols=owner&cols=context,nonsense")
    assert [head.find("span")[0].text for head in page.one("thead").find("th")] == ["Model", "Context", "Owner"]
    boxes = service.page("/").one("details", id="columns").find("input", name="cols")
    usual = ",".join(box.attributes["value"] or "" for box in boxes if "checked" in box.attributes)
    assert "cols" not in (service.page(f"/?cols={usual}").one("a", id="chip-all").attributes["href"] or "")


def test_the_panel_tells_every_field_its_source_and_how_to_call_the_model() -> None:
    """Values, sources, conflicts, reason and a snippet whose quoting holds."""
    awkward = 'o\'Neill/"M"'
    service = PageService(
        truth=lambda: merged([chute(1, awkward)], [model(1, awkward)], [load(1, awkward)]),
        ranking=lambda: snapshot([model(1, awkward)], [load(1, awkward)]),
    )
    panel = service.page(f"/?model={uuid(1)}").one("aside")
    curl, python = (code.text for code in panel.find("code"))
    assert curl.startswith("curl http://x/v1/chat/completions ")
    assert """'{"model": "o'\\''Neill/\\"M\\"", """ in curl
    assert 'model="o\'Neill/\\"M\\""' in python
    assert "number 1 of 1" in panel.one("p", class_="why").text
    fields = {line.one("th").text: [each.text for each in line.find("td")] for line in panel.one("tbody").find("tr")}
    assert fields["context_length"] == ["1,000", "/v1/models"]
    assert fields["active_instance_count"] == ["2", "live feed"]
    assert "quantization" not in fields


PROXY = parse_cidrs("192.168.1.0/24")
"""Where connections in memory come from."""


@pytest.mark.parametrize(
    ("host", "headers", "trusted", "origin"),
    [
        ("gateway.example:8443", [], None, "http://gateway.example:8443"),
        ("[2001:db8::1]:80", [], None, "http://[2001:db8::1]:80"),
        ("gateway.example", ["X-Forwarded-Proto: https, http"], PROXY, "https://gateway.example"),
        ("10.0.0.7:8080", ["X-Forwarded-Proto: HTTPS", "X-Forwarded-Host: api.example"], PROXY, "https://api.example"),
        ("gateway.example", ["X-Forwarded-Proto: javascript"], PROXY, "http://gateway.example"),
        ("gateway.example", ["X-Forwarded-Proto: https", "X-Forwarded-Host: evil"], None, "http://gateway.example"),
        ("gateway.example", ["X-Forwarded-Host: evil"], parse_cidrs("10.0.0.0/8"), "http://gateway.example"),
        ("x", ["X-Forwarded-Host: $(reboot)"], PROXY, "http://127.0.0.1:8080"),
        ("x", ['X-Forwarded-Host: a" b'], PROXY, "http://127.0.0.1:8080"),
    ],
)
def test_what_is_copied_calls_this_service_where_it_was_reached(
    host: str, headers: list[str], trusted: TrustedProxies | None, origin: str
) -> None:
    """The host that was asked for; what was forwarded only of a proxy that is believed, and nothing that is no host."""
    service = PageService(trusted=lambda: trusted)
    service.page(f"/?model={uuid(1)}")  # whoever came a moment ago may have come by another name
    panel = service.get(f"/?model={uuid(1)}", *headers, host=host).page.one("aside")
    curl, python = (code.text for code in panel.find("code"))
    assert curl.startswith(f"curl {origin}/v1/chat/completions ")
    assert f'base_url="{origin}/v1"' in python


def test_the_panel_shows_both_sides_of_a_conflict() -> None:
    """The value that counts, and what the other source says."""
    panel = PageService().page(f"/?model={uuid(2)}").one("aside")
    disputed = panel.one("tr", class_="disputed")
    assert disputed.one("th").text == "price.input"
    assert [each.text for each in disputed.find("td")] == ["0.25 /v1/models: 0.2", "listing"]


def test_a_model_that_this_service_does_not_relay_gets_no_snippet() -> None:
    """Images are not to be had through chat completions, and the panel says so."""
    panel = PageService().page(f"/?model={uuid(3)}").one("aside")
    assert not panel.find("code")
    assert "this service relays chat completions" in panel.text.lower()


def test_a_panel_of_a_model_that_is_gone_says_so() -> None:
    """An old address still shows the list."""
    page = PageService().page("/?model=nonsense")
    assert page.one("aside").one("h2").text == "No such model"
    assert len(rows(page)) == 3


def test_the_comparison_counts_what_a_use_would_cost() -> None:
    """Uncached input, cached input and output each at their price; the cheapest is marked, the unknown stays open."""
    target = f"/?compare={uuid(1)},{uuid(2)}&compare={uuid(3)}&requests=1000000&input=10&cached=4&output=2"
    page = PageService().page(target)
    panel = page.one("aside")
    assert panel.one("h2").text == "Compare 3 models"
    day = next(line for line in panel.find("tr") if line.find("th")[0].text == "$ a day")
    assert [each.text for each in day.find("td")] == ["6.00", "–", "–"]  # noqa: RUF001
    assert [box.attributes["value"] for box in page.find("input", name="compare") if "checked" in box.attributes] == [
        uuid(2),
        uuid(1),
        uuid(3),
    ]
    context = next(line for line in panel.find("tr") if line.find("th")[0].text == "Context")
    assert [each.text for each in context.find("td")] == ["1k", "2k best", "–"]  # noqa: RUF001
    assert f"compare={uuid(1)},{uuid(3)}&" in (panel.one("a", id=f"drop-{uuid(2)}").attributes["href"] or "")


@pytest.mark.parametrize("given", ["-1", "1e9", "abc", "9" * 40, "²"])
def test_the_calculator_takes_counts_only(given: str) -> None:
    """Anything else is the usual number, never a fault."""
    panel = PageService().page(f"/?compare={uuid(1)}&requests={quote(given)}").one("aside")
    assert panel.one("input", name="requests").attributes["value"] == "1000"


def state(service: PageService, target: str = "/") -> Node:
    return service.page(target).one("section", class_="state")


def test_every_state_is_told() -> None:
    """Loading, platform down, empty and filtered to nothing are four different answers."""
    nothing: Any = {"truth": lambda: None}
    loading = tuple(Freshness(source, None, "loading") for source in ("chutes", "v1", "utilization"))
    down = tuple(Freshness(source, None, "down", "HTTP 503") for source in ("chutes", "v1", "utilization"))
    assert state(PageService(**nothing, freshness=lambda: loading)).one("h2").text == "Reading the catalogs"
    unreachable = state(PageService(**nothing, freshness=lambda: down))
    assert unreachable.one("h2").text == "The platform cannot be reached"
    assert "Listing: HTTP 503" in unreachable.text
    assert state(PageService(truth=Merged)).one("h2").text == "There are no models"
    filtered = state(PageService(), "/?q=nothing&kind=image")
    assert filtered.one("h2").text == "No model matches"
    assert [link.attributes["href"] for link in filtered.find("a")] == ["/?kind=image", "/?q=nothing", "/"]


def test_what_is_old_is_shown_with_its_age_and_the_reason() -> None:
    """A stale source is told of before its figures, and all others are left in peace."""
    stale = (Freshness("chutes", 840.0, "stale", "HTTP 502"), *FRESH[1:])
    page = PageService(freshness=lambda: stale).page("/")
    assert page.one("p", class_="stale").text == (
        "Stale. The listing of all chutes is 14 min old; what it said then is shown. Last try: HTTP 502."
    )
    assert len(rows(page)) == 3
    assert [item.text for item in page.one("ul", id="freshness").find("li")] == [
        "Listing 14 min (out of date)",
        "Catalog 4 s (up to date)",
        "Live feed 4 s (up to date)",
    ]


def test_tabs_without_anything_to_show_are_pages_too() -> None:
    """Nobody sees an empty frame."""
    service = PageService(truth=lambda: None, ranking=lambda: snapshot([], []))
    assert state(service, "/live").one("h2").text == "No model can be chosen now"
    assert state(service, "/merge").one("h2").text == "Reading the catalogs"
    assert state(service, "/changes").one("h2").text == "Reading the catalogs"


def test_a_parameter_that_means_nothing_is_named() -> None:
    """400 in the page's own shape, kept by nobody; parameters of others are left alone."""
    answer = PageService().get("/?sort=nonsense")
    assert answer.status == 400
    assert answer.headers["cache-control"] == "no-store"
    assert answer.page.one("section", class_="refused").text.startswith(
        "This address cannot be read The parameter sort:"
    )
    assert PageService().get("/?utm_source=x").status == 200


def test_many_models_come_in_pages() -> None:
    """Links lead on and back, and keep the filters."""
    many = [chute(number, f"m{number:03}") for number in range(1, 8)]
    service = PageService(truth=lambda: merged(many, [], []))
    page = service.page("/?limit=3&offset=3&sort=name&q=m")
    assert names(rows(page)) == ["m004", "m005", "m006"]
    assert page.one("nav", class_="pager").text == "Previous 4–6 of 7 Next"  # noqa: RUF001
    assert page.one("a", id="next").attributes["href"] == "/?q=m&sort=name&limit=3&offset=6"
    assert page.one("a", id="previous").attributes["href"] == "/?q=m&sort=name&limit=3"


def test_the_age_on_the_live_tab_is_that_of_the_routers_own_ranking() -> None:
    """The other tabs show what was merged, which may be some seconds older."""
    service = PageService(ranking=lambda: attrs.evolve(snapshot(), feed_fetched_at=97.0))
    service.clock.advance(100)
    live = service.page("/live")
    assert live.one("p", class_="indicator").one("span", class_="dim").text == "2 candidates, snapshot 7, 3 s old"
    assert [page.one("ul", id="freshness").find("li")[2].one("span", class_="age").text
            for page in (live, service.page("/merge"))] == ["3 s", "4 s"]  # fmt: skip


def test_the_live_tab_says_why_each_stands_where_it_does() -> None:
    """Place, sentence, parts, and what this service measured itself; who is no candidate and why."""
    service = PageService(
        measured=lambda: {
            "acme/Alpha": Measured(1200, 3, 0.416, 1.2, 0.0218, 44.7, cooling_until=75.0),
            "acme/Cold": Measured(1, probing=True),
        },
        failovers=lambda: (Failover(0.0, "acme/Beta", "429", None), Failover(0.0, "acme/Beta", "503", "acme/Alpha")),
    )
    page = service.page("/live")
    first, second = page.one("tbody", id="ranks").children
    assert [each.text for each in first.find("td")] == [
        "1",
        "1.00",
        "idle 1.00",
        "50%",
        "0%",
        "2",
        "1,200 3 failed",
        "0.42 s 1.20 s",
        "45/s 22 ms",
    ]
    assert first.one("span", class_="mark").text == "cools down until 00:01:15"
    assert page.one("details", id="unranked").one("tbody").text.startswith("acme/Cold one request finds out")
    assert first.one("span", class_="why").text.startswith(
        "2 active instances at 50% load leave 1.00 idle; none refused;"
    )
    assert [each.text for each in second.find("td")][-3:] == ["–", "–", "–"]  # noqa: RUF001
    assert "refused 1.00" in second.text
    assert [item.text for item in page.one("ol", id="failovers").find("li")] == [
        "00:00:00 acme/Beta 429 no candidate left",
        "00:00:00 acme/Beta 503 → acme/Alpha",
    ]
    assert page.one("div", id="live").attributes["data-stream"] == "/api/events"
    off = PageService(streams=False).page("/live")
    assert "data-stream" not in off.one("div", id="live").attributes
    assert off.one("span", id="stream-state").text == "updates are off"


def test_the_live_tab_says_why_each_request_went_where_it_did() -> None:
    """The sentence, what was tried where more than one was, the candidates with their verdicts."""
    why = reasons(
        asked="chutesai/AutoPilot",
        mode="alias",
        planned=["acme/Alpha", "acme/Beta"],
        ranking=snapshot().ranking,
        considered=(),
        incapable={"acme/Blind": "image"},
        unwanted={},
        cooling=(),
    )
    attempts = (
        AttemptView("acme/Alpha", 0.0, 0.25, 503, "upstream_503", "next", probe=True),
        AttemptView("acme/Beta", 0.25, 0.75, 200, None, "committed"),
    )
    answered = Decision(
        "request-1", 60.0, True, "standard", why, attempts, "acme/Beta", 200, 0.75, 1.5, None, "complete"
    )
    refused = Decision("request-2", 61.0, True, "standard", None, status=400, error="unknown_model", outcome="refused")
    failed = attrs.evolve(refused, status=503, error="no_candidates")
    tried = (
        AttemptView("acme/Beta", 1.5, 2.0, None, "hedge_lost", "outrun"),
        AttemptView("acme/Alpha", 0.0, 0.25, 500, "upstream_server_error", "again", waited=0.5),
        AttemptView("acme/Alpha", 0.75, 2.0, 200, None, "committed"),
    )
    hedged = Decision("request-3", 62.0, True, "resilient", None, tried)
    page = PageService(
        picks=lambda limit: (Pick(9, hedged), Pick(8, refused), Pick(7, answered), Pick(6, failed)),
        totals=lambda: Totals(500, 480, again=4, moved_on=6, hedged=2, failed=1, refused=7),
    ).page("/live")
    assert page.one("h2", id="picks-title").text == (
        "Picks last 500: 480 at once, 6 after a failover, 4 at a further try, 2 by a hedge, 1 failed, 7 refused"
    )
    newest, newer, older, oldest = page.one("ol", id="picks").children
    assert len(newer.find("span", class_="limited")) == 0
    assert oldest.one("span", class_="limited").text == "nobody"
    assert [each.text for each in newest.one("ul", class_="attempts").children] == [
        "acme/Alpha server error 0.25 s then a pause of 0.50 s",
        "acme/Alpha 200",
        "acme/Beta slower 0.50 s",
    ]
    assert newer.text == "00:01:01 nobody – Refused before a model was chosen: unknown_model."  # noqa: RUF001
    assert (older.attributes["id"], older.one("time").text) == ("pick-7", "00:01:00")
    assert [each.text for each in older.find("p")] == [
        "acme/Beta 0.75 s",
        "alias Number 1 of the ranking came first; after one failure this one answered.",
    ]
    assert [each.text for each in older.one("ul", class_="attempts").children] == [
        "acme/Alpha 503 probe 0.25 s",
        "acme/Beta 200",
    ]
    assert [each.text for each in older.one("details").one("ul").children] == [
        "1 Alpha try 1 1.00",
        "2 Beta try 2 -0.80",
        "– Blind no image",  # noqa: RUF001
    ]


def test_the_merge_tab_shows_all_that_did_not_fit() -> None:
    """Conflicts with their difference, records on one side only, records left out."""
    chutes = [*CHUTES, chute(4, "x" * 300), chute(5, "acme/Delta-FP8"), "no record"]
    models = [*MODELS, model(6, "acme/Delta")]
    page = PageService(truth=lambda: merged(chutes, models, LOADS)).page("/merge")
    prices = page.one("section", id="prices")
    assert [each.text for each in prices.find("td")] == ["acme/Beta", "input", "0.2500", "0.2000", "+0.0500", "+25.0"]
    assert [each.text for each in page.one("section", id="suggestions").find("td")][:2] == [
        "acme/Delta",
        "acme/Delta-FP8",
    ]
    assert page.one("details", id="only-chutes").one("summary").text == "Only in the listing of all chutes 2"
    assert [each.text for each in page.one("section", id="invalid").find("td")] == [
        *("the listing of all chutes", "3", "bad_name"),
        *("the listing of all chutes", "5", "bad_name"),
    ]
    assert not page.find("section", id="ambiguous")


def test_the_changes_tab_goes_by_days() -> None:
    """Newest first, prices in their unit with the trend."""
    prices = (
        FieldChange("price.input", 0.5, 0.25, "usd_per_1m_tokens"),
        FieldChange("price.output", 0, 1, "usd_per_1m_tokens"),
    )
    changes = (
        Change("price.changed", 90_000.0, uuid(1), uuid(1), "acme/Alpha", prices),
        Change("model.removed", 60.0, uuid(2), uuid(2), "acme/Beta"),
    )
    page = PageService(changes=lambda limit: changes).page("/changes")
    assert [head.text for head in page.find("h2")] == ["Friday, 2 January 1970", "Thursday, 1 January 1970"]
    assert [line.text for line in page.one("ul", class_="deltas").find("li")] == [
        "input 0.50 → 0.25 $/1M tokens -50%",
        "output 0.00 → 1.00 $/1M tokens was free",
    ]
    assert page.find("ul", class_="timeline")[1].text == "00:01:00 removed acme/Beta"


def test_a_removal_stands_where_its_date_belongs() -> None:
    """It is told of later than it is dated, and yet no day comes twice and no line before a newer one."""
    dated = (("model.removed", 86_500.0), ("model.added", 86_560.0), ("model.removed", 60.0), ("model.added", 86_400.0))
    changes = tuple(Change(type, at, uuid(1), uuid(1), f"acme/{at:.0f}") for type, at in dated)  # type: ignore[arg-type]
    page = PageService(changes=lambda limit: changes).page("/changes")
    assert len(page.find("h2")) == 2
    names = [name.text for name in page.find("a", class_="name")]
    assert names == ["acme/86560", "acme/86500", "acme/86400", "acme/60"]


def test_without_any_list_nothing_is_said_of_changes() -> None:
    """Where no source has been read, and nothing is remembered, it is not known whether anything has changed."""
    assert "Nothing has changed" not in PageService(truth=lambda: None).page("/changes").text
    assert "Nothing has changed" in PageService().page("/changes").one("main").text
    remembered = (Change("model.removed", 60.0, uuid(2), uuid(2), "acme/Beta"),)
    assert "acme/Beta" in PageService(truth=lambda: None, changes=lambda limit: remembered).page("/changes").text


def test_names_lead_to_the_panel() -> None:
    """Wherever a model is named that has one: in the ranking, picks, failovers and the merge report."""
    attempts = (AttemptView("acme/Beta", 0.0, 0.5, 200, None, "committed"),)
    pick = Pick(1, Decision("r", 0.0, True, "standard", None, attempts, "acme/Beta", 200, 0.75, 1.5, None, "complete"))
    live = PageService(
        picks=lambda limit: (pick,),
        failovers=lambda: (Failover(0.0, "acme/Beta", "upstream_503", "acme/Alpha"),),
        measured=lambda: {"else/Where": Measured()},
    ).page("/live")
    hrefs = {
        part: [(link.text, link.attributes["href"]) for link in live.one(id=part).find("a")]
        for part in ("ranks", "picks", "failovers", "unranked")
    }
    alpha, beta = f"/?model={uuid(1)}", f"/?model={uuid(2)}"
    assert hrefs == {
        "ranks": [("Alpha", alpha), ("Beta", beta)],
        "picks": [("acme/Beta", beta)],
        "failovers": [("acme/Beta", beta), ("acme/Alpha", alpha)],
        "unranked": [],
    }
    chutes = [*CHUTES, chute(5, "acme/Delta-FP8")]
    merge = PageService(truth=lambda: merged(chutes, [*MODELS, model(6, "acme/Delta")], LOADS)).page("/merge")
    assert [link.attributes["href"] for link in merge.one("section", id="suggestions").find("a")] == [
        f"/?model={uuid(6)}",
        f"/?model={uuid(5)}",
    ]


def test_a_page_is_sent_compressed_and_only_once() -> None:
    """gzip where it is taken; 304 where the client has it, each form by its own tag."""
    service = PageService()
    plain, compressed = service.get("/"), service.get("/", "Accept-Encoding: gzip")
    assert gzip.decompress(compressed.body) == plain.body
    assert compressed.headers["vary"] == "Accept-Encoding"
    assert compressed.headers["etag"] != plain.headers["etag"]
    again = service.get("/", "Accept-Encoding: gzip", f"If-None-Match: {compressed.headers['etag']}")
    assert (again.status, again.body) == (304, b"")
    assert again.headers["content-security-policy"] == plain.headers["content-security-policy"]


def test_many_readers_of_one_moment_cost_one_rendering() -> None:
    """The same address within two seconds is not rendered again; then it is."""
    asked: list[Merged] = []
    service = PageService(truth=lambda: asked.append(merged()) or asked[-1])  # type: ignore[func-returns-value]
    service.get("/")
    once = len(asked)
    service.get("/")
    assert len(asked) == once
    service.clock.advance(2)
    service.get("/")
    assert len(asked) == 2 * once


def test_the_pages_own_files_never_change_under_their_names() -> None:
    """Named by content, kept for good, compressed ahead, of the right type; any other name is 404."""
    service = PageService()
    head = service.page("/").one("head")
    script = head.one("script").attributes["src"] or ""
    answer = service.get(script, "Accept-Encoding: br, gzip;q=0.5")
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert gzip.decompress(answer.body) == service.get(script, "Accept-Encoding: gzip;q=0, identity").body
    assert service.get(script, f"If-None-Match: {service.get(script).headers['etag']}").status == 304
    linked = [
        link.attributes["href"] or "" for link in head.find("link") if "/static/" in (link.attributes["href"] or "")
    ]
    plot = service.page("/").one("html").attributes["data-plot-script"] or ""
    assert {service.get(path).status for path in (*linked, plot)} == {200}
    for wrong in ("/static/app.js", "/static/..%2Fpages.py", "/static/", script + "x"):
        assert service.get(wrong).status == 404
