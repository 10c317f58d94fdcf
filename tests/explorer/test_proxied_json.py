"""The platform's answers passed on: few calls for many visitors, old answers for want of new ones, never an error."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, execute
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher

from chutes_autopilot.explorer_live.proxied import (
    MAX_FETCHES,
    MAX_FLIGHTS,
    UNREADABLE_PAUSE,
    ProxiedAnswer,
    ProxiedJson,
    ProxyError,
)
from chutes_autopilot.storage.disk_cache import DiskCache
from chutes_autopilot.upstream.fetch import FetchedAnswer, FetchError

NAME = "v1_models_all.json"
URL = "https://api.example.org/v1/models"
KEY = b"cpk_hunter2"


class Platform:
    """Answers when the test says so; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[tuple[str, str], ...]]] = []
        self.open: list[Deferred[FetchedAnswer]] = []
        self.cancelled = 0

    def fetch(self, url: str, headers: tuple[tuple[str, str], ...]) -> Deferred[FetchedAnswer]:
        self.asked.append((url, headers))
        self.open.append(Deferred(self._cancel))
        return self.open[-1]

    def _cancel(self, fetching: Deferred[FetchedAnswer]) -> None:
        self.cancelled += 1

    def answer(self, body: bytes = b'{"data":[1,2]}', status: int = 200) -> None:
        self.open.pop(0).callback(FetchedAnswer(status, None, body))

    def fail(self, reason: Any = "network") -> None:
        self.open.pop(0).errback(FetchError(reason, "no"))


class Fixture:
    def __init__(self, directory: Path, key: bytes | None = None) -> None:
        self.directory = directory
        self.platform = Platform()
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.cache = DiskCache(directory, execute)
        self.proxied = ProxiedJson(self.cache, self.platform.fetch, 600.0, self.clock.seconds, execute, key)
        self.proxied.startService()

    def get(self, name: str = NAME, **how: bool) -> Deferred[ProxiedAnswer]:
        return Deferred.fromCoroutine(self.proxied.get(name, URL, **how))

    async def filled(self, body: bytes = b'{"data":[1,2]}') -> None:
        asked = self.get()
        self.platform.answer(body)
        await asked


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def one(directory: Path) -> Fixture:
    return Fixture(directory)


def logged(name: str) -> Iterator[list[str]]:
    lines: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("event") == name:
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    yield from logged("chutes_key_refused")


@pytest.fixture
def unreadable() -> Iterator[list[str]]:
    yield from logged("records_unreadable")


def refused(asked: Deferred[ProxiedAnswer]) -> ProxyError:
    failure = asked.addErrback(lambda failure: failure.value).result
    assert isinstance(failure, ProxyError)
    assert "hunter2" not in f"{failure} {failure.message}"
    return failure


async def test_an_answer_is_fetched_once_and_then_served_until_it_is_old(one: Fixture) -> None:
    """First MISS, then HIT with its age in whole seconds, then MISS again; white space around the body goes."""
    asked = one.get()
    one.platform.answer(b' {"data" : [1.0,2]}\r\n')
    assert await asked == ProxiedAnswer("MISS", 0, b'{"data" : [1.0,2]}', 2)
    one.clock.advance(599.9)
    assert await one.get() == ProxiedAnswer("HIT", 599, b'{"data" : [1.0,2]}', 2)
    assert len(one.platform.asked) == 1
    one.clock.advance(0.1)
    asked = one.get()
    one.platform.answer(b"[]")
    assert await asked == ProxiedAnswer("MISS", 0, b"[]", 0)


async def test_twenty_concurrent_misses_are_one_call(one: Fixture) -> None:
    """Everybody gets that one answer, and whoever leaves takes it from nobody else, the first one included."""
    asked = [one.get() for _ in range(20)]
    for leaving in (asked[0], asked[7]):
        leaving.cancel()
        assert isinstance(leaving.addErrback(lambda failure: failure.value).result, CancelledError)
    one.platform.answer()
    answers = [await waiting for waiting in asked[1:7] + asked[8:]]
    assert {(answer.outcome, answer.body) for answer in answers} == {("MISS", b'{"data":[1,2]}')}
    assert (len(answers), len(one.platform.asked), one.platform.cancelled) == (18, 1, 0)


async def test_an_answer_nobody_waits_for_any_more_still_fills_the_cache(one: Fixture) -> None:
    """The call is paid for anyway."""
    asked = one.get()
    asked.addErrback(lambda failure: failure.trap(CancelledError))
    asked.cancel()
    one.platform.answer()
    assert (await one.get()).outcome == "HIT"


async def test_what_one_process_fetched_another_serves(one: Fixture, directory: Path) -> None:
    """The cache on disk answers after a restart, by its true age, and is then young or stale as before."""
    await one.filled()
    later = Fixture(directory)
    later.clock.advance(60.0)
    assert await later.get() == ProxiedAnswer("HIT", 60, b'{"data":[1,2]}', 2)
    later = Fixture(directory)
    later.clock.advance(10_000.0)
    asked = later.get()
    later.platform.fail()
    assert await asked == ProxiedAnswer("STALE", 10_000, b'{"data":[1,2]}', 2)


@pytest.mark.parametrize("how", ["network", "timeout", "too_large", 500, 429, 404, 302, 401, b"<html>", b"", b"7"])
async def test_for_want_of_a_new_answer_the_old_one_is_served(one: Fixture, how: Any) -> None:
    """STALE with its true age, for every kind of failure; the failure itself is not kept: the next one asks again.

    Only a refusal is told apart.
    """
    await one.filled()
    for age in (600, 601):
        one.clock.advance(age - (one.clock.seconds() - 1_000_000.0))
        asked = one.get()
        fail(one.platform, how)
        assert await asked == ProxiedAnswer("STALE", age, b'{"data":[1,2]}', 2, refused=how == 401)
    asked = one.get()
    one.platform.answer(b"[]")
    assert (await asked).outcome == "MISS"


def fail(platform: Platform, how: Any) -> None:
    match how:
        case int():
            platform.answer(b'{"detail":"no"}', how)
        case bytes():
            platform.answer(how)
        case _:
            platform.fail(how)


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("network", 502),
        ("timeout", 504),
        (500, 502),
        (429, 502),
        (404, 502),
        (401, 502),
        (b"<html>", 502),
        (b"null", 502),
    ],
)
async def test_with_nothing_old_it_is_an_error_that_is_not_kept(one: Fixture, how: Any, status: int) -> None:
    """502, or 504 where it took too long, for all who wait; nothing of the upstream's is in it."""
    asked = [one.get(), one.get()]
    fail(one.platform, how)
    for waiting in asked:
        error = refused(waiting)
        assert error.status == status
        assert error.message
        assert "html" not in f"{error} {error.message}"
    assert one.cache.entries() == ()
    again = one.get()
    one.platform.answer()
    assert (await again).outcome == "MISS"


async def test_a_missing_chute_is_missing_even_where_an_old_answer_is_there(one: Fixture) -> None:
    """Where a 404 of the platform is an answer it is passed on, and no deleted chute is served."""
    await one.filled()
    one.clock.advance(600.0)
    asked = one.get(may_be_missing=True)
    one.platform.answer(b'{"detail":"Chute not found"}', 404)
    assert refused(asked).status == 404


async def test_fresh_answers_are_fetched_though_the_cache_is_young(one: Fixture) -> None:
    """Several who want it afresh share one call with each other and with whoever else asks meanwhile."""
    await one.filled()
    asked = [one.get(fresh=True), one.get(fresh=True)]
    assert (await one.get()).outcome == "HIT"
    one.platform.answer(b"[]")
    assert [(await waiting).body for waiting in asked] == [b"[]", b"[]"]
    assert len(one.platform.asked) == 2


async def test_whoever_joins_wants_it_fresh(directory: Path, one: Fixture) -> None:
    """A young document on disk does not satisfy a flight that somebody joined for a fresh one."""
    await one.filled()
    held: list[Deferred[None]] = []

    def in_thread(work: Any, *given: Any) -> Deferred[Any]:
        held.append(Deferred())
        return held[-1].addCallback(lambda _: work(*given))

    later = Fixture(directory)
    later.cache._in_thread = in_thread
    asked = [later.get(), later.get(fresh=True)]
    held[0].callback(None)
    later.platform.answer(b"[]")
    held[1].callback(None)
    held[2].callback(None)
    assert [(await waiting).outcome for waiting in asked] == ["MISS", "MISS"]


@pytest.mark.parametrize("failed", [False, True], ids=["answered", "failed"])
async def test_whoever_joins_may_want_the_platform_asked(directory: Path, failed: bool) -> None:
    """After they asked: what is on its way may come from another replica. Several share one call, and visitors get what
    came of it."""
    one, platform = Fixture(directory), Platform()
    one.proxied._fetch_anew = platform.fetch
    visitor, operator, another = one.get(visitor=True), one.get(anew=True), one.get(anew=True)
    assert (len(one.platform.asked), len(platform.asked)) == (1, 0)
    if failed:
        one.platform.fail()
    else:
        one.platform.answer(b"[1]")
    platform.answer(b"[2]")
    assert [(await each).body for each in (visitor, operator, another)] == [b"[2]"] * 3
    again = one.get(anew=True)
    platform.answer(b"[3]")
    assert (await again).body == b"[3]"
    assert (len(one.platform.asked), len(platform.asked)) == (1, 2)


async def test_documents_from_the_future_are_not_young(one: Fixture) -> None:
    """After the clock was set back, nothing is served for longer than it should be."""
    await one.filled()
    one.clock.rightNow -= 50_000.0
    asked = one.get()
    one.platform.fail()
    assert await asked == ProxiedAnswer("STALE", 0, b'{"data":[1,2]}', 2)


async def test_the_key_goes_where_it_is_wanted(directory: Path) -> None:
    """It is a Bearer where the caller says so, and nowhere else."""
    one = Fixture(directory, KEY)
    for name, with_key in ((NAME, False), ("chute_x.json", True)):
        asked = one.get(name, with_key=with_key)
        one.platform.answer()
        await asked
    assert [headers for _, headers in one.platform.asked] == [(), (("Authorization", "Bearer cpk_hunter2"),)]


async def test_a_refused_key_is_reported_once_and_left_out(directory: Path, warnings: list[str]) -> None:
    """The same request goes on without it, further ones do for a while, and then it is tried again."""
    one = Fixture(directory, KEY)
    for key_is_tried in (True, False, True):
        asked = one.get(with_key=True, fresh=True)
        if key_is_tried:
            one.platform.answer(b'{"detail":"Invalid token."}', 401)
        one.platform.answer()
        assert (await asked).outcome == "MISS"
        one.clock.advance(300.0)
    assert [bool(headers) for _, headers in one.platform.asked] == [True, False, False, True, False]
    assert warnings == ["CHUTES_API_KEY is refused by the platform: the explorer asks without it"]


async def test_a_key_that_works_again_is_reported_when_it_fails_again(directory: Path, warnings: list[str]) -> None:
    """Each change for the worse is worth one line."""
    one = Fixture(directory, KEY)
    for statuses in ((401, 200), (200,), (401, 200)):
        asked = one.get(with_key=True, fresh=True)
        for status in statuses:
            one.platform.answer(status=status)
        await asked
        one.clock.advance(600.0)
    assert len(warnings) == 2


@pytest.mark.parametrize("key", [None, KEY])
async def test_a_platform_that_insists_on_a_key_is_503(directory: Path, key: bytes | None) -> None:
    """The error names the setting to mend; the key itself is in no error."""
    one = Fixture(directory, key)
    asked = one.get(with_key=True)
    while one.platform.open:
        one.platform.answer(b'{"detail":"Authentication required."}', 401)
    error = refused(asked)
    assert error.status == 503
    assert "CHUTES_API_KEY" in error.message


async def test_few_calls_at_once_and_a_bound_on_what_waits(one: Fixture) -> None:
    """Further documents wait for their turn, and when too many wait a visitor's next is 503 at once; not our own."""
    names = [f"chute_{number}.json" for number in range(MAX_FLIGHTS)]
    asked = [one.get(name, visitor=True) for name in names]
    assert len(one.platform.open) == MAX_FETCHES
    error = refused(one.get("chute_x.json", visitor=True))
    assert (error.status, error.retry_after) == (503, 1)
    joined, own = one.get(names[0], visitor=True), one.get("v1_models_all.json")
    for _ in [*names, own]:
        one.platform.answer()
    assert {(await waiting).outcome for waiting in [*asked, joined, own]} == {"MISS"}


async def test_a_large_answer_is_checked_in_a_thread(directory: Path) -> None:
    """What would hold the reactor does not."""
    one = Fixture(directory)
    checked: list[int] = []

    def in_thread(work: Any, *given: Any) -> Deferred[Any]:
        checked.append(len(given[0]))
        return execute(work, *given)

    one.proxied._in_thread = in_thread
    body = b"[" + b"1," * 200_000 + b"1]"
    asked = one.get()
    one.platform.answer(body)
    assert (await asked).items == 200_001
    assert checked == [len(body)]


@pytest.mark.parametrize("large", [False, True])
async def test_a_record_that_is_no_json_costs_no_other(one: Fixture, unreadable: list[str], large: bool) -> None:
    """It is null from then on, also after a restart, and the log says so, but not each time."""
    pad = b"1," * 200_000 if large else b""
    for _ in range(2):
        asked = one.get(fresh=True)
        one.platform.answer(b'{"data":[%b{"a":NaN},{"b" : 1.50}]}' % pad)
        assert (await asked).body == b'{"data":[%bnull,{"b" : 1.50}]}' % pad
    count = len(pad) // 2 + 2
    assert unreadable == [
        f"1 of {count} records in an answer of the platform are no JSON: the explorer leaves them out"
    ]
    assert (await Fixture(one.directory).get()).items == count
    one.clock.advance(UNREADABLE_PAUSE)
    asked = one.get()
    one.platform.answer(b"[NaN,1]")
    assert (await asked).body == b"[null,1]"
    assert len(unreadable) == 2


async def test_an_unforeseen_failure_is_reported_and_is_502(one: Fixture) -> None:
    """Whoever waits is not left waiting."""
    asked = one.get()
    one.platform.open.pop(0).errback(RuntimeError("secret"))
    error = refused(asked)
    assert error.status == 502
    assert "secret" not in f"{error} {error.message}"


async def test_the_stop_gives_up_what_is_under_way(one: Fixture) -> None:
    """The call is cancelled and whoever waits learns it."""
    asked = one.get()
    await one.proxied.stopService()
    assert isinstance(asked.addErrback(lambda failure: failure.value).result, CancelledError)
    assert one.platform.cancelled == 1


async def test_no_name_leads_out_of_the_cache(one: Fixture) -> None:
    """A name that is a path asks nobody and writes nothing."""
    with pytest.raises(ValueError, match="not the name of a cache file"):
        await one.get("../v1_models_all.json")
    assert one.platform.asked == []
