"""One replica asks the platform for all, and none goes without an answer."""

from itertools import cycle
from typing import Any

import pytest
from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from chutes_autopilot.control.periodic import PeriodicRefresh
from chutes_autopilot.control.refresh import Fetched, NothingNewer, UtilizationRefresh
from chutes_autopilot.control.shared_feed import SharedFetch
from chutes_autopilot.control.snapshots import SnapshotBuilder, SnapshotHolder
from chutes_autopilot.upstream.fetch import FetchError


@define(eq=False)
class Store:
    """What replicas share, at hand."""

    kept: dict[str, Fetched] = field(factory=dict)

    async def settled(self) -> None:
        """It is known from the start whether there is a store."""

    async def get(self, name: str, newer_than: float = 0.0) -> Fetched | None:
        found = self.kept.get(name)
        return found if found is not None and found.at > newer_than else None

    def share(self, name: str, body: bytes, at: float, lifetime: float) -> None:
        assert lifetime == 20.0
        self.kept[name] = Fetched(body, at)


@define(eq=False)
class Replica:
    """One that polls every 5 seconds.

    :param platform: whether it can be reached from here.
    :param sensible: whether what comes can be used here.
    """

    clock: Clock
    store: Store
    held: bool = False
    usable: bool = True
    resigned: int = 0
    asked: int = 0
    platform: bool = True
    sensible: bool = True

    _fetch: SharedFetch = field(init=False)

    @_fetch.default
    def _shared(self) -> SharedFetch:
        return SharedFetch(self._ask, self.store, self, "feed", 5.0, lambda: self.usable, self.clock.seconds)

    def resign(self) -> None:
        self.resigned += 1
        self.held = False

    async def _ask(self) -> bytes:
        self.asked += 1
        if not self.platform:
            raise FetchError("network", "it is away")
        return b"%d" % self.clock.seconds()

    def poll(self) -> Fetched | type[Exception]:
        """What comes of one poll."""
        result: list[Any] = []
        Deferred.fromCoroutine(self._fetch.fetch()).addBoth(result.append)
        if not isinstance(result[0], Fetched):
            return result[0].type
        result[0].judged(self.sensible)
        return result[0]


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.advance(1000)
    return clock


@pytest.fixture
def pair(clock: Clock) -> tuple[Replica, Replica]:
    """Who asks, and who reads."""
    store = Store()
    return Replica(clock, store, held=True), Replica(clock, store)


def test_one_asks_and_the_other_reads(clock: Clock, pair: tuple[Replica, Replica]) -> None:
    """The answer has the time at which it was fetched; the same one is read once."""
    leader, follower = pair
    assert leader.poll() == Fetched(b"1000", 1000.0)
    clock.advance(3)
    assert follower.poll() == Fetched(b"1000", 1000.0)
    assert follower.poll() is NothingNewer
    clock.advance(2)
    leader.poll()
    assert follower.poll() == Fetched(b"1005", 1005.0)
    assert (leader.asked, follower.asked) == (2, 0)


def test_nobody_goes_without(clock: Clock, pair: tuple[Replica, Replica]) -> None:
    """Who finds nothing, or nothing for two intervals and a half, asks; so does everybody while there is no store."""
    leader, follower = pair
    assert follower.poll() == Fetched(b"1000", 1000.0)
    clock.advance(12)
    assert follower.poll() is NothingNewer
    clock.advance(1)
    assert follower.poll() == Fetched(b"1013", 1013.0)
    assert leader.store.kept["feed"].at == 1013.0
    follower.usable = leader.usable = leader.held = False
    clock.advance(1)
    assert follower.poll() == leader.poll() == Fetched(b"1014", 1014.0)
    follower.platform = False
    assert follower.poll() is FetchError


def test_what_a_follower_has_is_never_four_intervals_old(clock: Clock, pair: tuple[Replica, Replica]) -> None:
    """As docs/scaling.md has /readyz bear so much: also where its polls come as unevenly as they may, and whoever has
    the lock shares nothing."""
    _, follower = pair
    latest, ages, late = clock.seconds(), list[float](), cycle((0.0, 0.0, 0.999, 0.5, 0.999))

    async def poll() -> None:
        nonlocal latest
        fetched = follower.poll()
        ages.append(clock.seconds() - latest)
        if isinstance(fetched, Fetched):
            latest = fetched.at

    polls = PeriodicRefresh(poll, 5.0, clock, lambda: next(late))
    polls.startService()
    clock.pump([0.05] * 6000)
    polls.stopService()
    assert 12.5 <= max(ages) <= 18.0, "a fetch may take until 20"


def test_who_cannot_reach_the_platform_leaves_it_to_another(clock: Clock, pair: tuple[Replica, Replica]) -> None:
    """After two failures in a row; an answer between them starts the count anew."""
    leader, follower = pair
    for platform in (False, True, False):
        leader.platform = platform
        leader.poll()
    assert leader.resigned == 0
    assert leader.poll() is FetchError
    assert leader.resigned == 1
    follower.platform = False
    assert follower.poll() == Fetched(b"1000", 1000.0), "old, and better than nothing"
    for _ in range(3):
        clock.advance(15)
        assert follower.poll() is FetchError
    assert follower.resigned == 0, "it has nothing to give up"


def test_an_answer_of_no_use_is_not_shared_and_costs_the_lock(clock: Clock, pair: tuple[Replica, Replica]) -> None:
    """What a proxy between one replica and the platform makes of an answer is no answer for the others; whoever gets
    nothing else twice in a row leaves the asking to another."""
    leader, follower = pair
    follower.poll()
    leader.sensible = False
    for polls in (1, 2):
        clock.advance(5)
        leader.poll()
        assert follower.poll() is NothingNewer
        assert leader.resigned == polls - 1
    assert leader.store.kept == {"feed": Fetched(b"1000", 1000.0)}
    clock.advance(5)
    assert follower.poll() == Fetched(b"1015", 1015.0)


def test_a_shared_answer_of_no_use_keeps_nobody_from_asking(clock: Clock, pair: tuple[Replica, Replica]) -> None:
    """However often the store has a new one: what cannot be used is not what a replica has."""
    _, follower = pair
    follower.poll()
    for at in (1005.0, 1010.0, 1015.0):
        clock.advance(5)
        follower.sensible = at == 1015.0
        follower.store.kept["feed"] = Fetched(b"<html>", at)
        polled = follower.poll()
        assert polled == (Fetched(b"1015", at) if follower.sensible else Fetched(b"<html>", at))
    clock.advance(5)
    assert follower.poll() is NothingNewer, "what it asked for is its own again"


@pytest.mark.parametrize("platform", [True, False])
def test_who_gets_nothing_by_asking_reads_again(clock: Clock, pair: tuple[Replica, Replica], platform: bool) -> None:
    """One answer of no use in the store does not part it from the others for good: it asks and reads in turn."""
    _, follower = pair
    follower.poll()
    follower.platform, follower.sensible = platform, False
    clock.advance(15)
    for _ in range(2):
        clock.advance(5)
        follower.store.kept["feed"] = Fetched(b"<html>", clock.seconds())
        assert follower.poll() == follower.store.kept["feed"]
        clock.advance(5)
        assert follower.poll() == (Fetched(b"%d" % clock.seconds(), clock.seconds()) if platform else FetchError)
    clock.advance(5)
    follower.sensible = True
    follower.store.kept["feed"] = Fetched(b"[]", clock.seconds())
    assert follower.poll() == Fetched(b"[]", clock.seconds())


def test_an_answer_from_the_future_is_not_believed(clock: Clock, pair: tuple[Replica, Replica]) -> None:
    """A clock that is wrong elsewhere must not keep newer answers away."""
    leader, follower = pair
    leader.store.kept["feed"] = Fetched(b"[]", 1006.0)
    assert follower.poll() == Fetched(b"1000", 1000.0)


def test_a_refresh_takes_the_time_of_the_answer_and_says_where_there_is_none(clock: Clock) -> None:
    """The snapshot is as old as what it was made of; that there is nothing newer changes nothing, and is no failure.
    Whoever brought an answer hears whether it was of use."""
    outcomes: list[str] = []
    judged: list[bool] = []

    class Observer:
        def refreshed(self, source: str, outcome: str, seconds: float) -> None:
            outcomes.append(outcome)

        def state_changed(self, source: str, state: str, detail: str) -> None:
            outcomes.append(state)

    holder = SnapshotHolder()
    answers: list[Fetched | Exception] = [
        Fetched(b"[]", 990.0, judged.append),
        NothingNewer(),
        FetchError("network", "x"),
        Fetched(b"<html>", 999.0, judged.append),
    ]

    async def fetch() -> Fetched:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    refresh = UtilizationRefresh(fetch, SnapshotBuilder(holder, clock), clock, Observer())
    for _ in range(4):
        Deferred.fromCoroutine(refresh.refresh())
        clock.pump([0] * 5)
    assert holder.current.feed_fetched_at == 990.0
    assert outcomes == ["ok", "ready", "unchanged", "network", "failed", "invalid", "failed"]
    assert judged == [True, False]
