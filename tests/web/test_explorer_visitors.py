"""What visitors get depends on nothing but what is public, whatever private chutes the operator's key can see."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from explorer_service import ADMIN, LOADS_BODY, MODELS_BODY, MODELS_URL, TOKEN, Service, chute, uuid
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, execute

from chutes_autopilot.explorer_live.listing import ListingRefresh
from chutes_autopilot.explorer_live.sources import Sources
from chutes_autopilot.explorer_live.truth import Truth
from chutes_autopilot.upstream.fetch import FetchedAnswer, FetchError

PUBLIC: list[Any] = [
    chute(1, "acme/Alpha", cord_ref_id="r1"),
    chute(2, "acme/Beta"),
    {"name": "acme/nameless", "public": True},
    chute(3, "zeta", tagline="x" * 40),
    chute(4, "acme/odd", price=float("nan")),
]
HIDDEN: list[Any] = [
    chute(66, "acme/secret", public=False, cord_ref_id="r2"),
    chute(67, "zeta", public=False, tagline="y" * 400),
    {"name": "", "public": False},
    chute(68, "acme/Alpha", public=None),
    chute(69, "acme/hidden", public=False, price=float("nan")),
]


class World(Service):
    """A service whose platform lists these chutes to the key, and only the public ones without it."""

    def __init__(self, directory: Path, chutes: list[Any], *, closed: bool) -> None:
        super().__init__(directory, admin_token=TOKEN)
        self.chutes = chutes
        self.closed = closed
        self.down = False
        sources = Sources(execute)
        merging = Truth(sources, "suggest", execute, self.clock.seconds)
        merging.startService()
        self.listing = ListingRefresh(self.published, sources, self.clock, self.clock.seconds)
        sources.fetched("catalog", MODELS_BODY, self.clock.seconds())
        sources.fetched("utilization", LOADS_BODY, self.clock.seconds())
        self.parts.truth = lambda: merging.current
        self.parts.refresh_sources = self.listing.refresh
        self.renew()

    async def _fetch(self, url: str, headers: tuple[tuple[str, str], ...]) -> FetchedAnswer:
        if self.down:
            raise FetchError("network", "no")
        if url == MODELS_URL:
            return FetchedAnswer(200, None, MODELS_BODY)
        if self.closed and not headers:
            return FetchedAnswer(401, None, b'{"detail":"no"}')
        listed = [each for each in self.chutes if headers or each["public"] is True]
        parts = urlsplit(url)
        if parts.path != "/chutes/":
            for each in listed:
                if each.get("chute_id") == parts.path.removeprefix("/chutes/"):
                    return FetchedAnswer(200, None, json.dumps(each).encode())
            return FetchedAnswer(404, None, b'{"detail":"Chute not found"}')
        query = parse_qs(parts.query)
        page, limit = int(query["page"][0]), int(query["limit"][0])
        found = [each for each in listed if query.get("name", [""])[0] in each["name"]]
        items = found[page * limit : (page + 1) * limit]
        refs = {each["cord_ref_id"]: [{"path": "/x"}] for each in items if "cord_ref_id" in each}
        body = {"total": len(found), "page": page, "limit": limit, "items": items, "cord_refs": refs}
        return FetchedAnswer(200, None, json.dumps(body).encode())

    def renew(self) -> None:
        assert Deferred.fromCoroutine(self.listing.refresh()).called

    def seen(self, target: str, *headers: str) -> bytes:
        """Everything a visitor gets, but for what is every request's own."""
        head, _, body = self.get(target, *headers).raw.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"x-request-id:", b"date:"))]
        return b"\r\n".join(lines) + b"\r\n\r\n" + body


chute_ids = st.sampled_from([uuid(number) for number in (1, 3, 66, 67, 68, 99)])
targets = st.one_of(
    st.builds(
        "/api/models?name={}&page={}&limit={}".format,
        st.sampled_from(["", "acme", "acme/secret", "zeta", "nobody"]),
        st.integers(0, 3),
        st.sampled_from([1, 2, 100]),
    ),
    chute_ids.map("/api/models/{}".format),
    st.sampled_from(
        [
            "/api/models/acme%2Falpha",
            "/api/models/acme%2Fsecret",
            "/api/models/zeta",
            "/api/models/v1/all",
            "/api/cache/status",
            "/api/health",
            "/api/export/data",
            "/api/export/data?format=csv",
            "/api/catalog",
            "/api/catalog/facets",
            "/api/merge/report",
            "/api/ranking",
        ]
    ),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("visitor"), targets),
        st.tuples(st.just("operator"), targets),
        st.tuples(st.sampled_from(["refresh", "renew", "down", "up"]), st.just("")),
        st.tuples(st.just("later"), st.sampled_from(["1", "400", "700"])),
    ),
    max_size=12,
)


def lists_of_both(places: list[int]) -> list[Any]:
    """The public chutes with private ones among them."""
    both = list(PUBLIC)
    for place, hidden in zip(places, HIDDEN, strict=False):
        both.insert(place, hidden)
    return both


@given(st.booleans(), st.lists(st.integers(0, 6), min_size=1, max_size=len(HIDDEN)), steps)
def test_private_chutes_change_nothing_for_visitors(
    closed: bool, places: list[int], steps: list[tuple[str, str]]
) -> None:
    """Two services of one history, one of them with private chutes: every visitor is answered the same, byte for byte,
    whatever the operator does meanwhile, and whether or not the platform is up or answers without a key."""
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        worlds = [
            World(Path(directory), chutes, closed=closed)
            for directory, chutes in ((one, PUBLIC), (other, lists_of_both(places)))
        ]
        last = [("visitor", target) for target in ("/api/cache/status", "/api/models?limit=2", "/api/merge/report")]
        for what, value in [*steps, *last]:
            answers = [_done(world, what, value) for world in worlds]
            assert answers[0] == answers[1]


def _done(world: World, what: str, value: str) -> bytes | None:
    match what:
        case "visitor":
            return world.seen(value)
        case "operator":
            world.get(value, ADMIN)
        case "refresh":
            world.post("/api/cache/refresh", ADMIN)
        case "renew":
            world.renew()
        case "down" | "up":
            world.down = what == "down"
        case "later":
            world.clock.advance(float(value))
    return None


@pytest.mark.parametrize("closed", [False, True], ids=["open", "wants a key"])
def test_the_two_services_differ_for_the_operator(tmp_path: Path, closed: bool) -> None:
    """Else the test above would show nothing."""
    worlds = [
        World(tmp_path / str(number), chutes, closed=closed)
        for number, chutes in enumerate((PUBLIC, lists_of_both([0, 2, 4, 6])))
    ]
    for target in ("/api/models?name=acme&limit=2", f"/api/models/{uuid(66)}", "/api/export/data", "/api/cache/status"):
        answers = [world.seen(target, ADMIN) for world in worlds]
        assert answers[0] != answers[1]
