"""What anybody may see of the platform: asked for without the key, or what is public in the answer to the key."""

import json
from pathlib import Path
from typing import Any

import pytest
from explorer_samples import chute_json
from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock

from chutes_autopilot.explorer.cache_names import FULL_LISTING, ListingQuery
from chutes_autopilot.explorer_live.proxied import ProxiedJson, ProxyError
from chutes_autopilot.explorer_live.published import CLOSED_SECONDS, OPEN_SECONDS, Published, PublishedListing
from chutes_autopilot.storage.disk_cache import DiskCache
from chutes_autopilot.upstream.fetch import FetchedAnswer, FetchError

BASE = "https://api.example.org"
CHUTES = [chute_json(number, f"m{number}", public=number % 3 != 0) for number in range(8)]
PUBLIC = [each for each in CHUTES if each["public"]]


class World:
    """A platform that may want a key, behind a cache; remembers where it was asked, and whether with the key."""

    def __init__(self, directory: Path, *, key: bytes | None = b"cpk_x", show_private: bool = False) -> None:
        self.clock = Clock()
        self.closed = False
        self.refused = ""  # a part of the addresses that are refused without the key
        self.away = False
        self.asked: list[tuple[str, bool]] = []
        cache = DiskCache(directory, execute)
        documents = ProxiedJson(cache, self._fetch, 600.0, self.clock.seconds, execute, key)
        self.published = Published(documents, BASE, key is not None, show_private, self.clock.seconds, execute)

    async def _fetch(self, url: str, headers: tuple[tuple[str, str], ...]) -> FetchedAnswer:
        self.asked.append((url.removeprefix(BASE), bool(headers)))
        if self.away:
            raise FetchError("network", "no")
        if not headers and (self.closed or (self.refused and self.refused in url)):
            return FetchedAnswer(401, None, b'{"detail":"no"}')
        shown = CHUTES if headers else PUBLIC
        if "?" in url:
            return FetchedAnswer(200, None, json.dumps({"total": len(shown), "items": shown}).encode())
        return FetchedAnswer(200, None, json.dumps(CHUTES[0]).encode())

    def get(self, awaited: Any) -> Any:
        got: list[Any] = []
        Deferred.fromCoroutine(awaited).addBoth(got.append)
        return getattr(got[0], "value", got[0])

    def listing(self, query: ListingQuery) -> Any:
        listing = self.get(self.published.listing(query, visitor=True))
        assert isinstance(listing, PublishedListing)
        return json.loads(listing.visible())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_platform_is_asked_without_the_key(world: World) -> None:
    """For a page, for all chutes and for one of them."""
    assert world.listing(ListingQuery(page=2, name="m")) == {"total": len(PUBLIC), "items": PUBLIC}
    assert json.loads(world.get(world.published.whole()).body)["items"] == PUBLIC
    assert world.get(world.published.chute(CHUTES[0]["chute_id"], is_listed=False)).outcome == "MISS"
    assert world.asked == [
        ("/chutes/?page=2&limit=100&include_public=true&include_schemas=true&name=m", False),
        ("/chutes/?page=0&limit=5000&include_public=true&include_schemas=false", False),
        (f"/chutes/{CHUTES[0]['chute_id']}", False),
    ]


def test_all_chutes_are_asked_for_with_the_key_where_everybody_may_see_them(tmp_path: Path) -> None:
    """EXPLORER_SHOW_PRIVATE."""
    world = World(tmp_path, show_private=True)
    assert json.loads(world.get(world.published.whole()).body)["items"] == CHUTES
    assert world.asked == [(FULL_LISTING.url(""), True)]


def test_of_a_platform_that_wants_a_key_pages_are_cut_out_of_the_public_chutes(world: World) -> None:
    """The same filters, all on one page; it is one answer for every page, and the refusal is remembered for a while."""
    world.closed = True
    for page in range(4):
        items = PUBLIC[page * 2 : page * 2 + 2]
        answer = world.listing(ListingQuery(page=page, limit=2, template="vllm"))
        assert answer == {"total": len(PUBLIC), "page": page, "limit": 2, "items": items}
    first, asked, whole = world.asked
    assert first == (ListingQuery(limit=2, template="vllm").url(""), False)
    assert asked == (FULL_LISTING.url(""), False)
    assert whole == (ListingQuery(limit=5000, template="vllm").url(""), True)
    assert json.loads(world.get(world.published.whole()).body)["items"] == PUBLIC
    world.closed = False
    world.clock.advance(CLOSED_SECONDS)
    world.asked.clear()
    assert world.listing(ListingQuery())["items"] == PUBLIC
    assert [with_key for _, with_key in world.asked] == [False]


def test_of_a_platform_that_wants_a_key_only_listed_chutes_are_asked_for(world: World) -> None:
    """Else a visitor could have the key's own looked for, by an id."""
    world.closed = True
    chute_id = CHUTES[0]["chute_id"]
    assert world.get(world.published.chute(chute_id, is_listed=False)).status == 404
    assert world.asked == [(f"/chutes/{chute_id}", False), (FULL_LISTING.url(""), False)]
    assert world.get(world.published.chute(chute_id, is_listed=True)).outcome == "MISS"
    assert world.asked[2:] == [(f"/chutes/{chute_id}", True)]


def test_without_any_key_a_platform_that_wants_one_is_503(tmp_path: Path) -> None:
    """The error names the setting."""
    world = World(tmp_path, key=None)
    world.closed = True
    for asked in (world.published.whole(), world.published.chute(CHUTES[0]["chute_id"], is_listed=True)):
        error = world.get(asked)
        assert isinstance(error, ProxyError)
        assert (error.status, "CHUTES_API_KEY" in error.message) == (503, True)


def test_a_platform_that_begins_to_want_a_key_is_asked_with_it(world: World) -> None:
    """However many old answers it gave without one."""
    world.listing(ListingQuery())
    world.get(world.published.whole())
    world.closed = True
    world.clock.advance(600.0)
    world.asked.clear()
    whole = world.get(world.published.whole())
    assert (whole.outcome, json.loads(whole.body)["items"]) == ("MISS", PUBLIC)
    assert world.asked == [(FULL_LISTING.url(""), False), (FULL_LISTING.url(""), True)]
    assert world.listing(ListingQuery(limit=5))["limit"] == 5


def test_without_any_key_old_answers_stay(tmp_path: Path) -> None:
    """They are better than none, for a platform that wants a key wants it for everything."""
    world = World(tmp_path, key=None)
    chute_id = CHUTES[0]["chute_id"]
    for _ in range(2):
        whole, one = world.published.whole(), world.published.chute(chute_id, is_listed=True)
        outcomes = [world.get(asked).outcome for asked in (whole, one)]
        world.closed = True
        world.clock.advance(600.0)
    assert outcomes == ["STALE", "STALE"]


@pytest.mark.parametrize("key", [b"cpk_x", None])
def test_one_refused_address_does_not_make_a_platform_closed(tmp_path: Path, key: bytes | None) -> None:
    """Visitors choose it: others are served as ever, and no number of refusals has the whole list fetched for each."""
    world = World(tmp_path, key=key)
    world.refused = "include_public=false"
    for page in range(9):
        error = world.get(world.published.listing(ListingQuery(page, include_public=False), visitor=True))
        assert (type(error), error.status) == (ProxyError, 502)
    chute_id = world.refused = CHUTES[1]["chute_id"]
    assert world.get(world.published.chute(chute_id, is_listed=True)).status == 404
    assert world.asked.count((FULL_LISTING.url(""), False)) == 1
    assert not any(with_key for _, with_key in world.asked)
    assert world.listing(ListingQuery())["items"] == PUBLIC
    world.clock.advance(OPEN_SECONDS)
    world.closed = True
    listing = world.get(world.published.listing(ListingQuery(1), visitor=True))
    assert listing.closed if key else listing.status == 503


def test_an_old_page_stands_in_for_a_refused_one_but_no_old_chute_does(world: World) -> None:
    """A chute that is refused by itself may have become private."""
    query, chute_id = ListingQuery(name="m"), CHUTES[1]["chute_id"]
    world.listing(query)
    world.get(world.published.chute(chute_id, is_listed=True))
    world.clock.advance(600.0)
    world.refused = "name=m"
    assert world.get(world.published.listing(query, visitor=True)).answer.outcome == "STALE"
    world.refused = chute_id
    assert world.get(world.published.chute(chute_id, is_listed=True)).status == 404


def test_a_failure_to_find_out_is_no_sign_that_a_platform_is_closed(world: World) -> None:
    """Neither is an old whole list; whoever was refused is told of the failure."""
    world.get(world.published.whole())
    world.clock.advance(600.0)
    fetch = world.published._documents._fetch

    async def away_after_one(url: str, headers: tuple[tuple[str, str], ...]) -> FetchedAnswer:
        try:
            return await fetch(url, headers)
        finally:
            world.away = True

    world.refused = "name=x"
    world.published._documents._fetch = world.published._documents._fetch_for_visitors = away_after_one
    assert world.get(world.published.listing(ListingQuery(name="x"), visitor=True)).status == 502
    world.away = False
    assert not world.get(world.published.listing(ListingQuery(), visitor=True)).closed
