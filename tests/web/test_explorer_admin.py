"""POST /api/cache/refresh: the operator's alone, one at a time, and not too often."""

from pathlib import Path

import pytest
from explorer_service import ADMIN, BASE, LISTING_BODY, MODELS_URL, TOKEN, Service, uuid
from twisted.internet.defer import Deferred

from chutes_autopilot.upstream.fetch import FetchedAnswer
from chutes_autopilot.web.explorer.parts import ExplorerParts

PATH = "/api/cache/refresh"
FULL = "models_p0_l5000_tnull_nnull_pubtrue_schfalse_open.json"


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path, admin_token=TOKEN)


@pytest.mark.parametrize(
    "header",
    [
        "X-Nothing: 1",
        "Authorization: Bearer open sesamE",
        "Authorization: Basic b3BlbiBzZXNhbWU=",
        "Authorization: Bearer",
        "X-Api-Key: open sesame",
    ],
)
def test_everybody_else_is_turned_away(service: Service, header: str) -> None:
    """401, which does not say why, and nothing is fetched."""
    answer = service.post(PATH, header)
    assert answer.error == (401, "not the operator")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert service.asked == []


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_without_a_token_there_is_no_such_path(tmp_path: Path, method: str) -> None:
    """ADMIN_TOKEN unset: 404 for everybody, also with an empty token."""
    service = Service(tmp_path)
    assert service.ask(method, PATH, "Authorization: Bearer ").error == (404, "not found")
    assert service.ask(method, PATH, ADMIN).error == (404, "not found")
    assert service.asked == []


def test_a_refresh_fetches_what_is_cached_and_the_sources(service: Service) -> None:
    """The two catalogs always, and what visitors have asked for; each is told."""
    refreshed = []

    async def refresh_sources() -> None:
        refreshed.append(True)

    service.parts.refresh_sources = refresh_sources
    service.get("/api/models?name=a/b")
    service.get(f"/api/models/{uuid(1)}")
    service.get("/api/models", ADMIN)
    service.answers[MODELS_URL] = "network"
    service.asked.clear()
    answer = service.post(PATH, ADMIN, body=b"{}")
    assert (answer.status, refreshed, answer.headers["cache-control"]) == (200, [True], "no-store")
    outcomes = {each["key"]: (each["outcome"], each["itemCount"]) for each in answer.json["documents"]}
    assert outcomes == {
        FULL: ("MISS", 5),
        "v1_models_all.json": ("failed", None),
        f"chute_{uuid(1)}_open.json": ("MISS", 1),
        "models_p0_l100_tnull_na%2Fb_pubtrue_open.json": ("MISS", 5),
        "models_p0_l100_tnull_nnull_pubtrue_key.json": ("MISS", 6),
    }
    assert len(service.asked) == 5


def test_a_refresh_has_the_platform_itself_asked_for_every_document(service: Service) -> None:
    """None of them, and not the merged listing either, is taken from another replica."""

    async def of_another_replica(url: str, headers: tuple[tuple[str, str], ...]) -> FetchedAnswer:
        return FetchedAnswer(200, None, LISTING_BODY)

    service.documents._fetch = service.documents._fetch_for_visitors = of_another_replica
    service.get("/api/models?name=a")
    service.get("/api/models", ADMIN)
    assert service.asked == []
    service.post(PATH, ADMIN)
    assert len(service.asked) == 4


def test_refreshes_are_coalesced_and_rate_limited(service: Service) -> None:
    """Who asks while one is under way gets its result; who asks soon after is told to wait."""
    gate: Deferred[None] = Deferred()
    service.answers[f"{BASE}/chutes/"] = gate
    one, other = service.post(PATH, ADMIN), service.post(PATH, ADMIN)
    assert (one.raw, other.raw) == (b"", b"")
    gate.callback(None)
    assert one.json == other.json
    assert len(service.asked) == 2
    service.clock.advance(3)
    soon = service.post(PATH, ADMIN)
    assert soon.error == (429, "refreshed just now")
    assert soon.headers["retry-after"] == "7"
    service.clock.advance(7)
    assert service.post(PATH, ADMIN).status == 200
    assert len(service.asked) == 4


def test_of_a_platform_that_wants_a_key_the_list_is_what_the_key_is_shown(service: Service) -> None:
    """And no failure, though nobody is answered without the key."""
    service.needs_key = True
    for _ in range(2):
        listing, catalog = service.post(PATH, ADMIN).json["documents"]
        assert listing == {"key": FULL.replace("_open", "_key"), "outcome": "MISS", "itemCount": 6}
        assert catalog["outcome"] == "failed"
        service.clock.advance(10)


def test_a_refresh_that_brings_nothing_is_an_error(service: Service) -> None:
    """502, and what was cached stays."""
    service.get("/api/models/v1/all")
    service.answers = {f"{BASE}/chutes/": (500, b""), MODELS_URL: "timeout"}
    assert service.post(PATH, ADMIN).error == (502, "nothing could be fetched")
    assert service.get("/api/models/v1/all").headers["x-cache"] == "HIT"


def test_the_token_is_in_no_repr(service: Service) -> None:
    """Parts may end up in a traceback."""
    assert isinstance(service.parts, ExplorerParts)
    assert TOKEN.decode() not in repr(service.parts)
