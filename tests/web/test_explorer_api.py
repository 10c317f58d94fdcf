"""The merged models, the ranking and the past over HTTP; and how answers below /api/ are sent."""

import csv
import gzip
import io
import json
import re
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs
import pytest
from explorer_service import NOW, SampleViews, Service, ask, mounted, sample_truth, uuid
from twisted.internet.defer import Deferred, execute

from chutes_autopilot.errors import ApiError
from chutes_autopilot.explorer_live.measured import Failover, Measured
from chutes_autopilot.explorer_live.proxied import ProxyError
from chutes_autopilot.storage.history import HistoryUnavailable
from chutes_autopilot.storage.history_rows import MEASURES, CatalogChange, FailoverCount, Point
from chutes_autopilot.web.explorer.answers import Prepared, PreparedAnswers, has_already
from chutes_autopilot.web.explorer.errors import ExplorerError
from chutes_autopilot.web.explorer.places import starting, switched_off

BROWSER = "Accept: text/html,application/xhtml+xml,*/*;q=0.8"
HOSTILE = "<script>alert(1)</script>|=1+1"


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def names(answer: Any) -> list[str]:
    return [record["fields"]["name"] for record in answer.json["items"]]


def test_the_catalog_is_the_merged_records_by_pages(service: Service) -> None:
    """Records as the merge rules have them, totals, and links that lead through all pages."""
    target, seen = "/api/catalog?limit=2", []
    while target:
        page = service.get(target)
        seen += names(page)
        assert page.json["links"].get("next", "") in page.headers["link"]
        target = page.json["links"].get("next", "")
    assert seen == [HOSTILE, "acme/Alpha", "acme/Beta", "acme/Gamma", "twice", "twice"]
    whole = service.get("/api/catalog").json
    assert (whole["snapshot"], whole["total"], whole["everything"], whole["count"]) == ("s1", 6, 6, 6)
    assert whole["sources"]["chutes"] == {"count": 5, "fetched_at": "2027-01-15T08:00:00Z", "stale": False}
    alpha = json.loads(json.dumps(sample_truth().merged.by_key[uuid(1)].as_json()))
    assert whole["items"][1] == {**alpha, "conflicts": []}
    assert b"secret" not in service.get("/api/catalog").raw


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("source=v1&sort=-context_length", ["acme/Alpha", "acme/Gamma"]),
        ("kind=image", ["acme/Beta"]),
        ("q=%3Cscript", [HOSTILE]),
        ("price_max=0.5&hot=unknown", ["acme/Alpha"]),
        ("kind=&owner=&q=nothing+at+all", []),
    ],
)
def test_a_query_narrows_lists_counts_facets_and_files(service: Service, query: str, found: list[str]) -> None:
    """All of them agree on what it finds."""
    assert names(service.get(f"/api/catalog?{query}")) == found
    assert service.get(f"/api/catalog/count?{query}").json["total"] == len(found)
    counted = service.get(f"/api/catalog/facets?{query}").json
    assert (counted["total"], counted["everything"]) == (len(found), 6)
    assert set(counted["facets"]) >= {"kind", "feature", "tee", "conflict"}
    lines = service.get(f"/api/catalog?format=ndjson&{query}").body.splitlines()
    assert [json.loads(line)["fields"]["name"] for line in lines] == found


def test_a_file_holds_everything_unless_asked_for_less(service: Service) -> None:
    """No page's end cuts an export, and hostile names are cells like others."""
    table = service.get("/api/catalog?format=csv").body.decode()
    rows = list(csv.DictReader(io.StringIO(table, newline="")))
    assert [row["name"] for row in rows][:2] == [HOSTILE, "acme/Alpha"]
    assert len(service.get("/api/catalog?format=ndjson&offset=1&limit=2").body.splitlines()) == 2
    assert r"\<script\>alert(1)\</script\>\|=1+1" in service.get("/api/catalog?format=md").body.decode()


@pytest.mark.parametrize(
    ("target", "parameter"),
    [
        ("/api/catalog?limit=0", "limit"),
        ("/api/catalog?kind=song", "kind"),
        ("/api/catalog?format=xml", "format"),
        ("/api/catalog?q=%00", "q"),
        ("/api/catalog?q=%ff", "q"),
        ("/api/catalog/count?colour=red", "colour"),
        ("/api/catalog/count?format=csv", "format"),
        ("/api/catalog/facets?sort=colour", "sort"),
        ("/api/merge/report?x=1", "x"),
        ("/api/ranking?x=1", "x"),
        ("/api/failovers?days=0", "days"),
        (f"/api/history/{uuid(1)}?span=1y", "span"),
        (f"/api/history/{uuid(1)}?span=90d&resolution=minute", "resolution"),
        (f"/api/history/{uuid(1)}?measures=utilization,mood", "measures"),
        ("/api/prices/changes?limit=1001", "limit"),
        ("/api/prices/changes?chute_id=1%27--", "chute_id"),
        ("/api/catalog?%3Cscript%3E=1", "?script?"),
    ],
)
def test_a_parameter_that_means_nothing_is_named(service: Service, target: str, parameter: str) -> None:
    """400, and nothing is repeated that a visitor sent but a harmless name."""
    answer = service.get(target)
    assert answer.error == (400, f"invalid parameter {parameter}")
    assert b"<script>" not in answer.raw


@pytest.mark.parametrize("target", ["/api/catalog", "/api/catalog/count", "/api/catalog/facets", "/api/merge/report"])
def test_before_the_first_catalogs_there_is_nothing_yet(service: Service, target: str) -> None:
    """503, and when to come back."""
    service.truth = None  # type: ignore[assignment]
    answer = service.get(target)
    assert answer.error == (503, "not ready")
    assert answer.headers["retry-after"] == "2"


def test_the_report_is_of_the_current_state(service: Service) -> None:
    """With its snapshot and the age of its sources."""
    report = service.get("/api/merge/report").json
    assert (report["snapshot"], report["generated_at"]) == ("s1", "2027-01-15T08:00:00.000Z")
    assert report["matched"] == {"total": 1, "by_rule": {"chute_id": 1}}
    assert report["inputs"]["v1"] == {"count": 2, "fetched_at": "2027-01-15T08:00:00Z", "stale": False}


def test_the_ranking_is_the_routers_own(service: Service) -> None:
    """Its snapshot's id, the parts of each score, and why all others are no candidates."""
    ranking = service.get("/api/ranking").json
    assert (ranking["snapshot"], ranking["feed_fetched_at"]) == (7, "2027-01-15T07:59:59.000Z")
    (candidate,) = ranking["candidates"]
    ranked = service.parts.snapshots.current.ranking[0]
    assert (candidate["place"], candidate["model"], candidate["eligible"]) == (1, "acme/Alpha", True)
    assert candidate["score"] == ranked.score
    assert candidate["parts"] == {"idle": 1.5, "room": 0.0, "refusals": 0.0}
    assert "only candidate" in candidate["why"]
    assert [(each["name"], each["reason"], each["eligible"]) for each in ranking["excluded"]] == [
        ("acme/Beta", "no_active_instance", False),
        ("acme/Gamma", "no_utilization", False),
    ]
    service.parts.snapshots.current = attrs.evolve(service.parts.snapshots.current, id=8)  # type: ignore[misc]
    assert service.get("/api/ranking").json["snapshot"] == 8


def test_failovers_are_counts_and_what_was_measured(service: Service) -> None:
    """By hour from the history, the latest, and by model; without a history the rest is still there."""
    service.history.failed = (FailoverCount(int(NOW) - 3600, "a", "connect", None, 3),)
    paced = Measured(5, 1, 0.5, None, 0.021, 47.61, NOW + 5, True)
    service.parts.measured = lambda: {"b": Measured(2), "a": paced}
    service.parts.recent_failovers = lambda: [Failover(NOW, "a", "status_503", "b")]
    answer = service.get("/api/failovers?days=2&limit=9").json
    assert service.history.asked == [(NOW - 2 * 86400, 9)]
    assert answer["by_hour"] == [
        {"hour": "2027-01-15T07:00:00.000Z", "model": "a", "reason": "connect", "next_model": None, "count": 3}
    ]
    assert answer["recent"] == [
        {"at": "2027-01-15T08:00:00.000Z", "model": "a", "reason": "status_503", "next_model": "b"}
    ]
    assert answer["models"][0] == {
        "model": "a",
        "requests": 5,
        "failures": 1,
        "time_to_first_token": 0.5,
        "time_to_first_token_p95": None,
        "time_between_events": 0.021,
        "tokens_per_second": 47.6,
        "cooling_until": "2027-01-15T08:00:05.000Z",
        "probing": True,
    }
    service.history.fault = HistoryUnavailable("closed")
    again = service.get("/api/failovers").json
    assert (again["by_hour"], len(again["models"])) == (None, 2)


def test_history_aligns_all_measures_on_the_same_moments(service: Service) -> None:
    """Gaps are null; an hour has its extremes too; the same minute asks the store once."""
    service.history.points = {
        "utilization": (Point(60, 0.5, 0.25, 1.0), Point(120, 0.0, 0.0, 0.0)),
        "rank": (Point(120, 3, 1, 5),),
    }
    answer = service.get(f"/api/history/{uuid(1).upper()}?measures=utilization,rank")
    assert answer.json == {
        "chute_id": uuid(1),
        "since": int(NOW) + 60 - 86400,
        "until": int(NOW) + 60,
        "resolution": "minute",
        "at": [60, 120],
        "series": {"utilization": {"mean": [0.5, 0.0]}, "rank": {"mean": [None, 3]}},
    }
    assert len(service.history.asked) == 2
    service.get(f"/api/history/{uuid(1)}?measures=utilization,rank")
    assert len(service.history.asked) == 2
    hourly = service.get(f"/api/history/{uuid(1)}?span=7d&measures=utilization").json
    assert (hourly["resolution"], hourly["until"] - hourly["since"]) == ("hour", 7 * 86400)
    assert hourly["series"]["utilization"] == {"mean": [0.5, 0.0], "least": [0.25, 0.0], "greatest": [1.0, 0.0]}
    assert set(service.get(f"/api/history/{uuid(2)}").json["series"]) == set(MEASURES)


@pytest.mark.parametrize("asked", ["x", "..%2f..%2fhistory.sqlite3", f"{uuid(1)}%27", "acme%2FAlpha"])
def test_history_is_of_ids_only(service: Service, asked: str) -> None:
    """Nothing but a UUID reaches the store."""
    assert service.get(f"/api/history/{asked}").error == (404, "not found")
    assert service.history.asked == []


def test_price_changes_are_the_newest_first(service: Service) -> None:
    """Only price changes are asked for; the fields are those of the change."""
    field = {"field": "price.input", "before": 0.5, "after": 0.25, "unit": "usd_per_1m_tokens"}
    service.history.changed = (
        CatalogChange(int(NOW), "price.changed", uuid(1), "a", [field]),
        CatalogChange(int(NOW) - 5, "price.changed", None, "b", {"fields": [field], "key": "v1:b"}),
        CatalogChange(int(NOW) - 9, "price.changed", uuid(3), "c"),
    )
    changes = service.get(f"/api/prices/changes?chute_id={uuid(1)}&days=1").json["changes"]
    assert service.history.asked == [(int(NOW) - 86400, 100, ("price.changed",), uuid(1))]
    assert changes[0] == {
        "type": "price.changed",
        "at": "2027-01-15T08:00:00.000Z",
        "chute_id": uuid(1),
        "name": "a",
        "fields": [field],
    }
    assert [change["fields"] for change in changes[1:]] == [[field], []]


@pytest.mark.parametrize("target", [f"/api/history/{uuid(1)}", "/api/prices/changes"])
def test_a_history_that_cannot_be_read_is_told_and_not_kept(service: Service, target: str) -> None:
    """503, and the next visitor asks again."""
    service.history.fault = HistoryUnavailable("the history is closed")
    assert service.get(target).error == (503, "no history now")
    service.history.fault = None
    assert service.get(target).status == 200


def test_an_answer_is_made_once_per_snapshot_and_has_a_strong_tag(service: Service) -> None:
    """The same bytes have the same tag, in either form, and 304 has no body."""
    first = service.get("/api/catalog")
    tag = first.headers["etag"]
    assert (tag[0], tag[-1], first.headers["cache-control"]) == ('"', '"', "no-cache")
    again = service.get("/api/catalog", f"If-None-Match: {tag}")
    assert (again.status, again.headers["etag"], again.raw[-4:]) == (304, tag, b"\r\n\r\n")
    assert not {"content-type", "content-length", "server"} & again.headers.keys()
    zipped = service.get("/api/catalog", "Accept-Encoding: br, gzip", f"If-None-Match: {tag}")
    assert (zipped.status, zipped.headers["content-encoding"], zipped.headers["vary"]) == (
        200,
        "gzip",
        "Accept-Encoding",
    )
    assert gzip.decompress(zipped.body) == first.body
    assert zipped.headers["etag"] == tag[:-1] + '-gzip"'
    assert service.get("/api/catalog", "Accept-Encoding: gzip;q=0").body == first.body
    service.truth = sample_truth("s2")
    assert service.get("/api/catalog", f"If-None-Match: {tag}").json["snapshot"] == "s2"


@pytest.mark.parametrize(
    ("header", "has"),
    [
        (None, False),
        (b'"a"', True),
        (b'"x", "a"', True),
        (b'W/"a"', True),
        (b"*", True),
        (b'"x",*', False),
        (b"a", False),
        (b"", False),
    ],
)
def test_if_none_match_is_a_list_of_tags(header: bytes | None, has: bool) -> None:
    """RFC 9110 section 13.1.2, compared weakly."""
    assert has_already(header, b'"a"') is has


def test_kept_answers_are_bounded() -> None:
    """The least recently used go first, and one that is too large is not kept at all."""
    answers, made = PreparedAnswers(execute, kept_bytes=300), []

    def get(key: str, size: int = 100) -> None:
        def make() -> Prepared:
            made.append(key)
            return Prepared.of(b"x" * size)

        Deferred.fromCoroutine(answers.get(key, make))

    for key in ("a", "b", "c", "a", "d", "a", "c", "b"):
        get(key)
    assert made == ["a", "b", "c", "d", "b"]
    get("large", 301)
    get("large", 301)
    get("b")
    assert made == ["a", "b", "c", "d", "b", "large", "large"]


def test_what_cannot_be_made_is_made_anew_for_the_next() -> None:
    """A failure goes to all who wait for it, and is not kept."""
    pending: list[Deferred[Prepared]] = []

    def in_thread(*_work: Any) -> Deferred[Prepared]:
        pending.append(Deferred())
        return pending[-1]

    answers = PreparedAnswers(in_thread)
    waiting = [Deferred.fromCoroutine(answers.get("a", lambda: Prepared.of(b""))) for _ in range(3)]
    waiting[1].cancel()
    pending[0].errback(ExplorerError(502, "no", "No."))
    failures = [each.addErrback(lambda failure: failure.type.__name__).result for each in waiting]
    assert failures == ["ExplorerError", "CancelledError", "ExplorerError"]
    again = Deferred.fromCoroutine(answers.get("a", lambda: Prepared.of(b"")))
    pending[1].callback(Prepared.of(b"x"))
    assert again.result.body == b"x"


ALL_PATHS = (
    "/api/models",
    "/api/models/v1/all",
    f"/api/models/{uuid(1)}",
    "/api/cache/status",
    "/api/health",
    "/api/export/data",
    "/api/catalog",
    "/api/catalog/count",
    "/api/catalog/facets",
    "/api/merge/report",
    "/api/ranking",
    "/api/failovers",
    f"/api/history/{uuid(1)}",
    "/api/prices/changes",
    "/api/openapi.json",
)


@pytest.mark.parametrize("target", ALL_PATHS)
def test_no_answer_can_be_taken_for_a_page_or_be_read_by_another_site(service: Service, target: str) -> None:
    """Strict CSP, no sniffing, no CORS by default, HEAD without a body, and one method only."""
    answer = service.get(target, "Origin: https://evil.example")
    assert answer.status == 200
    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-type"] == "application/json"
    assert not [name for name in answer.headers if name.startswith("access-control")]
    head = service.ask("HEAD", target)
    assert (head.status, head.raw.partition(b"\r\n\r\n")[2]) == (200, b"")
    for method in ("POST", "DELETE", "OPTIONS"):
        refused = service.ask(method, target)
        assert refused.error == (405, "method not allowed")
        assert "GET" in refused.headers["allow"]


@pytest.mark.parametrize("target", ["/api", "/api/", "/api/nothing", "/api/models/v1", "/api//catalog", "/api/cache"])
def test_below_api_nothing_answers_in_another_shape(service: Service, target: str) -> None:
    """Unknown paths and bodies that are too large have the explorer's errors; elsewhere they stay OpenAI's."""
    assert service.get(target).error == (404, "not found")
    large = service.post("/api/models", body=b"x" * 1001)
    assert large.error == (413, "request too large")
    assert service.get("/v1/nothing").json["error"]["code"] == "not_found"


def test_sites_on_the_list_may_read_and_others_may_not(tmp_path: Path) -> None:
    """EXPLORER_CORS_ORIGINS: exact origins, also on errors and in a browser's preflight."""
    service = Service(tmp_path, cors_origins=("https://app.example",))
    allowed = service.get("/api/catalog", "Origin: https://app.example")
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert "X-Cache" in allowed.headers["access-control-expose-headers"]
    assert "Origin" in allowed.headers["vary"]
    assert "access-control-allow-credentials" not in allowed.headers
    error = service.get("/api/catalog?limit=x", "Origin: https://app.example")
    assert (error.status, error.headers["access-control-allow-origin"]) == (400, "https://app.example")
    for origin in ("https://app.example.evil", "http://app.example", "null", "https://APP.example"):
        assert "access-control-allow-origin" not in service.get("/api/catalog", f"Origin: {origin}").headers
    assert "Origin" in service.get("/api/catalog").headers["vary"]
    preflight = service.ask("OPTIONS", f"/api/models/{uuid(1)}", "Origin: https://app.example")
    assert (preflight.status, preflight.headers["access-control-allow-methods"]) == (204, "GET")
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    refused = service.ask("OPTIONS", "/api/catalog", "Origin: https://evil.example")
    assert (refused.status, [name for name in refused.headers if name.startswith("access-control")]) == (204, [])


def test_the_page_and_the_streams_have_their_paths(service: Service) -> None:
    """What answers them is given to the routes."""
    called = {
        "/": ["models"],
        "/live": ["live"],
        "/merge": ["merge"],
        "/changes": ["changes_page"],
        "/static/app.123.css": ["static", "app.123.css"],
        "/api/events": ["events"],
        "/api/ws": ["websocket"],
        "/feed.atom": ["feed"],
    }
    assert {target: service.get(target).json for target in called} == called


def test_streams_may_refuse_as_all_routes_do(tmp_path: Path) -> None:
    """An error of theirs becomes an answer; without any there is none."""

    class Full(SampleViews):
        def events(self, request: Any) -> Any:
            raise ExplorerError(503, "too many streams", "Ask again later.", ((b"Retry-After", b"30"),))

        async def websocket(self, request: Any) -> None:
            raise ProxyError(503, "busy", "Ask again.", retry_after=3)

    service = Service(tmp_path / "a", streams=Full())
    assert service.get("/api/events").error == (503, "too many streams")
    assert service.get("/api/ws").headers["retry-after"] == "3"
    without = Service(tmp_path / "b", streams=None)
    for target in ("/api/events", "/api/ws", "/feed.atom"):
        assert without.get(target).error == (404, "not found")


@pytest.mark.parametrize("target", ["/", "/live", "/merge", "/changes", "/static/app.css", "/feed.atom"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_switched_off_explorer_is_404_everywhere(target: str, method: str) -> None:
    """EXPLORER_ENABLED=false."""
    answer = ask(mounted(None), method, target)
    assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")
    assert "EXPLORER_ENABLED" in answer.json["error"]["message"]
    for below in ("/api", "/api/models", "/api/cache/refresh", "/api/x/y"):
        assert ask(mounted(None), method, below, BROWSER).error == (404, "not found")


@pytest.mark.parametrize(
    ("why", "status", "said", "retry_after", "reloads"),
    [(switched_off, 404, "EXPLORER_ENABLED=true", None, False), (starting, 503, "is starting", "1", True)],
)
def test_a_browser_is_told_by_a_page_why_there_is_no_explorer(
    why: Callable[[], ApiError], status: int, said: str, retry_after: str | None, reloads: bool
) -> None:
    """Complete in itself, kept by nobody, allowed its own style alone; reloaded until the explorer is there."""
    app = mounted(None, why)
    for target in ("/", "/live?x=1", "/merge", "/changes"):
        answer = ask(app, "GET", target, BROWSER)
        page = answer.body.decode()
        assert (answer.status, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
        assert said in page
        assert answer.headers.get("retry-after") == retry_after
        assert ('http-equiv="refresh" content="1"' in page) == reloads
        assert (answer.headers["cache-control"], answer.headers["vary"]) == ("no-store", "Accept")
    style = page.partition("<style>")[2].partition("</style>")[0]
    allowed = b64encode(sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{allowed}'" in answer.headers["content-security-policy"]
    assert re.findall(r'(?:href|src)="([^"]+)"', page) in (["data:,", "/v1/models"], ["data:,"])
    for method, target in (("POST", "/"), ("GET", "/static/app.css"), ("GET", "/feed.atom")):
        assert ask(app, method, target, BROWSER).headers["content-type"] == "application/json"
