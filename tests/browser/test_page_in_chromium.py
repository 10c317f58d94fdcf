"""What a visitor sees and does, in a real browser."""

import json
from collections.abc import Callable
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from page_service import uuid
from playwright.sync_api import Locator, Page, Route, expect
from scripted_platform import ScriptedPlatform
from watched_page import PHONE

Open = Callable[..., Page]

IN_VIEW = """elements => elements.filter(element => {
    const box = element.getBoundingClientRect();
    return box.width > 0 && box.top >= 0 && box.bottom <= innerHeight && box.left >= 0 && box.right <= innerWidth;
}).length"""
FOCUSED = "document.activeElement.id"
UNKNOWN = "\u2013"


def in_view(page: Page, selector: str) -> int:
    """How many of these are wholly within the window."""
    return page.eval_on_selector_all(selector, IN_VIEW)


def focus_of(page: Page) -> str:
    return page.evaluate(FOCUSED)


def number_in(cell: Locator) -> float:
    """Of what a cell says to the eye; "best" is for the ear."""
    return float((cell.text_content() or "").removesuffix(" best"))


def names(page: Page) -> list[str]:
    return page.locator("#rows a.name").all_text_contents()


def test_the_first_screen_of_a_desktop_shows_twenty_models_and_how_to_narrow_them(demo: str, open_page: Open) -> None:
    """At 1440x900: search, chips with counts, freshness, and at least 20 whole rows; nothing scrolls sideways."""
    page = open_page(demo, "/")
    assert in_view(page, "#q") == 1
    assert in_view(page, ".chips .chip .count") >= 5
    assert in_view(page, "#freshness li") == 3
    assert in_view(page, "#rows > tr") >= 20
    width = page.eval_on_selector("#results", "list => [list.scrollWidth, list.clientWidth]")
    assert width[0] <= width[1]


def test_the_first_screen_of_a_phone_shows_three_cards(demo: str, open_page: Open) -> None:
    """At 390x844: at least 3 whole models below the search field; no tab, panel or menu is wider than the window."""
    page = open_page(demo, "/", size=PHONE)
    assert in_view(page, "#q") == 1
    assert in_view(page, "#rows > tr") >= 3
    for menu in ("more", "columns", "export"):
        page.locator(f"#{menu} summary").click()
        sheet = page.locator(f"#{menu} .sheet").bounding_box()
        assert sheet is not None
        assert (sheet["x"] >= 0, sheet["x"] + sheet["width"] <= PHONE[0]) == (True, True), menu
        page.keyboard.press("Escape")
    rows = page.locator("#rows > tr").evaluate_all("rows => rows.map(row => row.id.slice(4))")
    panels = [f"/?model={rows[0]}", *(f"/?compare={','.join(rows[:count])}" for count in (3, 4))]
    for path in ("/", "/live", "/merge", "/changes", *panels):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0], path


@pytest.mark.parametrize("width", [320, 360])
@pytest.mark.parametrize("path", ["/", "/?kind=chat&q=a&modality=text", "/live", "/merge", "/changes"])
def test_no_page_is_wider_than_a_small_phone(demo: str, open_page: Open, path: str, width: int) -> None:
    """Also with filters set, whose count and links stand beside each other where there is room."""
    page = open_page(demo, path, size=(width, 640))
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("width", [1024, 1280])
def test_the_live_ranking_shows_all_of_its_columns_and_whole_names(demo: str, open_page: Open, width: int) -> None:
    """Beside the picks or above them: nothing to scroll to sideways, and each name in one line."""
    page = open_page(demo, "/live", size=(width, 768))
    widths = page.eval_on_selector(".ranking .scroll", "list => [list.scrollWidth, list.clientWidth]")
    assert widths[0] <= widths[1]
    cut = "names => names.filter(name => name.getClientRects().length > 1 || name.scrollWidth > name.clientWidth + 1)"
    assert page.eval_on_selector_all("#ranks .name, #ranks tbody th", f"{cut}.map(each => each.textContent)") == []
    assert in_view(page, "#picks-title") == in_view(page, "#failovers-title") == 1


@pytest.mark.parametrize("opened", ["panel", "compare"])
def test_without_scripts_the_tools_beside_a_panel_stand_apart(demo: str, open_page: Open, opened: str) -> None:
    """At 1280 no tool covers another one."""
    page = open_page(demo, "/", size=(1280, 800), scripts=False)
    rows = page.locator("#rows > tr").evaluate_all("rows => rows.map(row => row.id.slice(4))")
    page.goto(f"/?model={rows[0]}" if opened == "panel" else f"/?compare={','.join(rows[:2])}")
    tools = page.locator(".toolbar form > *, .toolbar .summary > *").all()
    boxes = [box for tool in tools if tool.is_visible() and (box := tool.bounding_box()) and box["width"]]
    for place, one in enumerate(boxes):
        for other in boxes[place + 1 :]:
            apart = one["x"] + one["width"] <= other["x"] or one["y"] + one["height"] <= other["y"]
            inside = other["x"] >= one["x"] and other["x"] + other["width"] <= one["x"] + one["width"] + 1
            assert apart or inside or other["x"] + other["width"] <= one["x"], (one, other)


def test_sorting_by_keyboard_keeps_the_focus_and_tells_the_order(demo: str, open_page: Open) -> None:
    """Enter on a head sorts, Enter again turns the order around; the page is not loaded anew."""
    page = open_page(demo, "/?kind=chat")
    page.evaluate("window.same = true")
    head = page.locator("th.c-input")
    for order in ("ascending", "descending"):
        page.locator("#sort-input").press("Enter")
        expect(head).to_have_attribute("aria-sort", order)
        told = page.locator("#rows td.c-input").all_text_contents()
        prices = [float(text.replace("free", "0")) for text in told if text != UNKNOWN]
        assert len(prices) > 20
        assert prices == sorted(prices, reverse=order == "descending")
        assert focus_of(page) == "sort-input"
    assert page.url.endswith("/?kind=chat&sort=-price_input")
    assert page.evaluate("window.same")


def test_the_address_holds_the_state(demo: str, open_page: Open) -> None:
    """What is searched, filtered and opened is there again after a reload, and gone after going back."""
    page = open_page(demo, "/")
    everything = page.locator("#rows tr").count()
    page.locator("#chip-kind-chat").click()
    expect(page.locator("#chip-kind-chat")).to_have_attribute("aria-current", "true")
    page.locator("#q").press_sequentially("aurora")
    expect(page).to_have_url(f"{demo}/?q=aurora&kind=chat")
    found = names(page)
    assert 0 < len(found) < everything
    assert all("aurora" in name.lower() for name in found)
    assert focus_of(page) == "q"
    page.locator("#rows a.name").first.click()
    expect(page.locator("#panel-title")).to_contain_text(found[0])
    page.reload()
    expect(page.locator("#panel-title")).to_contain_text(found[0])
    assert (page.locator("#q").input_value(), sorted(names(page))) == ("aurora", sorted(found))
    page.go_back()
    expect(page.locator("#panel")).to_have_count(0)
    expect(page.locator("#q")).to_have_value("aurora")


def test_going_back_undoes_a_search_and_no_more(demo: str, open_page: Open) -> None:
    """A burst of typing is one step of the history, sent by Enter or not; the field shows what is searched for then."""
    page = open_page(demo, "/changes")
    page.locator("#tab-").click()
    expect(page).to_have_url(f"{demo}/")
    everything = page.locator("#rows tr").count()
    field = page.locator("#q")
    field.press_sequentially("aur", delay=300)
    expect(page).to_have_url(f"{demo}/?q=aur")
    field.press_sequentially("ora")
    field.press("Enter")
    expect(page).to_have_url(f"{demo}/?q=aurora")
    field.press("Enter")
    page.go_back()
    expect(page).to_have_url(f"{demo}/")
    expect(page.locator("#rows tr")).to_have_count(everything)
    expect(field).to_have_value("")
    page.go_forward()
    expect(page).to_have_url(f"{demo}/?q=aurora")
    expect(field).to_have_value("aurora")
    page.go_back()
    page.go_back()
    expect(page).to_have_url(f"{demo}/changes")


def test_the_live_ranking_moves_neither_focus_nor_scroll(
    scripted: str, platform: ScriptedPlatform, open_page: Open
) -> None:
    """Rows change places under the reader, a request shows with its reason, and that is all."""
    page = open_page(scripted, "/live")
    expect(page.locator("#stream-state")).to_have_text("live")
    order = "[...document.querySelectorAll('#ranks > tr')].map(row => row.id).join()"
    before = page.evaluate(order)
    page.locator("#pause").focus()
    page.evaluate("document.querySelector('.ranking .scroll').scrollTop = 300")
    platform.busy(7, 0.1)
    page.wait_for_function(f"before => {order} !== before", arg=before)
    body = json.dumps({"model": "chutesai/AutoPilot", "messages": []}).encode()
    with pytest.raises(HTTPError):  # the platform here has no such path, and that is the answer
        urlopen(Request(f"{scripted}/v1/chat/completions", body, {"Content-Type": "application/json"}))  # noqa: S310
    expect(page.locator("#picks > li .why")).to_contain_text("Number 1 of the ranking answered 501.")
    assert page.evaluate("document.querySelector('.ranking .scroll').scrollTop") == 300
    assert focus_of(page) == "pause"
    page.keyboard.press("Enter")
    expect(page.locator("#stream-state")).to_have_text("paused")


def test_a_page_that_waits_asks_again_though_nobody_answered(demo: str, open_page: Open) -> None:
    """Later each time, until there is an answer; then what was waited for is there."""
    page = open_page(demo, "/merge")
    page.clock.install()
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) in (2, 3):
            route.abort()
        elif len(asked) == 1:
            loaded = route.fetch()
            page_that_waits = loaded.text().replace("</main>", '<p class="state loading"></p></main>')
            route.fulfill(response=loaded, body=page_that_waits)
        else:
            route.continue_()

    page.route(f"{demo}/merge", answer)
    page.reload()
    waits = page.locator(".state.loading")
    expect(waits).to_have_count(1)
    for too_soon, enough in ((1500, 3000), (3000, 5500), (8000, 8000)):
        page.clock.run_for(too_soon)
        with page.expect_request(f"{demo}/merge"):
            page.clock.run_for(enough)
        page.evaluate("fetch('/healthz').then(answer => answer.text())")  # by then the page knows what became of it
    expect(waits).to_have_count(0)
    assert len(asked) == 4
    troubles = page.watch.troubles  # type: ignore[attr-defined]
    assert ["net::ERR_FAILED" in trouble for trouble in troubles] == [True, True]
    troubles.clear()


def test_new_values_in_the_list_move_neither_focus_nor_scroll_nor_rows(
    scripted: str, platform: ScriptedPlatform, open_page: Open
) -> None:
    """A price that changes is shown in its place, though the list is sorted by it."""
    page = open_page(scripted, "/?sort=price_input&q=acme")
    rows = names(page)
    link = page.locator(f"#open-{uuid(30)}")
    link.focus()
    scroll = page.evaluate("document.querySelector('#results').scrollTop = 200")
    platform.price(1, 7.25)
    page.wait_for_function(  # what happens every half minute, and when somebody comes back to the page
        """id => {
            document.dispatchEvent(new Event("visibilitychange"));
            return document.getElementById(id).querySelector(".c-input").textContent.startsWith("7.25");
        }""",
        arg=f"row-{uuid(1)}",
        polling=200,
    )
    assert page.evaluate("document.querySelector('#results').scrollTop") == scroll
    assert focus_of(page) == f"open-{uuid(30)}"
    assert names(page) == rows


def test_the_panel_draws_the_history(scripted: str, open_page: Open) -> None:
    """Three charts of what the service remembers, with the values under the pointer; none where nothing is known."""
    page = open_page(scripted, f"/?model={uuid(1)}")
    expect(page.locator(".uplot")).to_have_count(3)
    figure = page.locator("figure", has=page.locator("[data-chart=utilization]"))
    figure.locator(".u-over").hover()
    expect(figure.locator(".readout")).to_contain_text("50%")
    page.locator("#span-7d").click()
    expect(page.locator("#span-7d")).to_have_attribute("aria-pressed", "true")
    page.goto(f"/?model={uuid(2)}")
    expect(page.locator("[data-chart=utilization]")).to_contain_text("No history yet")


def test_the_keyboard_reaches_everything_in_the_order_of_the_page(demo: str, open_page: Open) -> None:
    """The skip link comes first and leads to the content; then the frame, the tools and the list follow."""
    page = open_page(demo, "/")
    page.keyboard.press("Tab")
    assert in_view(page, ".skip:focus") == 1
    page.keyboard.press("Enter")
    assert focus_of(page) == "main"
    page.goto("/")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert reached == [
        "Skip to the content",
        *("brand", "tab-", "tab-live", "tab-merge", "tab-changes", "theme"),
        *("q", "Filters", "Columns", "Export", "chip-all"),
    ]
    page.keyboard.press("/")
    assert focus_of(page) == "q"


def test_escape_closes_what_is_open_and_gives_the_focus_back(demo: str, open_page: Open) -> None:
    """A menu first; the panel takes the focus when it opens and returns it to the model's name."""
    page = open_page(demo, "/")
    page.locator("#more summary").press("Enter")
    expect(page.locator("#filter-modality")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#filter-modality")).to_be_hidden()
    name = page.locator("#rows a.name").nth(2)
    opened = name.get_attribute("id")
    name.press("Enter")
    expect(page.locator("#panel")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#panel")).to_have_count(0)
    expect(page.locator(f"#{opened}")).to_be_focused()
    assert page.url == f"{demo}/"


def test_models_are_compared_and_a_use_is_reckoned(demo: str, open_page: Open) -> None:
    """Ticked models stand beside each other; ten times the requests cost ten times as much."""
    page = open_page(demo, "/?kind=chat")
    for place in (0, 1):
        page.locator("#rows input[name=compare]").nth(place).check()
    expect(page.locator("#panel-title")).to_have_text("Compare 2 models")
    cost = page.locator(".cost td").first
    before = number_in(cost)
    page.locator("#use-requests").fill("10000")
    expect(cost).not_to_contain_text(f"{before:.2f}")
    assert number_in(cost) == pytest.approx(before * 10, abs=0.06)


def test_the_page_works_without_scripts(demo: str, open_page: Open) -> None:
    """Links and forms do it all: sort, search, open, compare."""
    page = open_page(demo, "/", scripts=False)
    page.locator("#sort-context").click()
    expect(page.locator("th.c-context")).to_have_attribute("aria-sort", "descending")
    page.locator("#q").fill("aurora")
    page.locator("#q").press("Enter")
    assert (names(page) != [], all("Aurora" in name for name in names(page))) == (True, True)
    page.locator("#rows a.name").first.click()
    expect(page.locator("#panel-title")).to_contain_text("Aurora")
    page.locator("#close").click()
    for box in page.locator("#rows input[name=compare]").all()[:2]:
        box.check()
    page.locator("#compare-ticked").click()
    expect(page.locator("#panel-title")).to_have_text("Compare 2 models")
    page.goto("/live")
    assert page.locator("#ranks > tr").count() > 20
