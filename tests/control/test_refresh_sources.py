import json
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from chutes_autopilot.control.refresh import OUTCOMES, RETRY_SECONDS, CatalogRefresh, UtilizationRefresh
from chutes_autopilot.control.snapshots import Snapshot, SnapshotBuilder, SnapshotHolder
from chutes_autopilot.upstream.fetch import FetchError


def catalog(*ids: str) -> bytes:
    return json.dumps({"data": [{"id": name, "chute_id": f"chute of {name}"} for name in ids]}).encode()


def feed(*names: str, **numbers: float) -> bytes:
    """Rows with ever fewer instances, so that they rank as they stand."""
    rows = [
        {"name": name, "active_instance_count": len(names) - place, "utilization_5m": 0.0, **numbers}
        for place, name in enumerate(names)
    ]
    return json.dumps(rows).encode()


TURN = 2**-10


class TurnByTurn(Clock):
    """A clock on which what asks for the next turn of the reactor gets just that: advance(TURN) runs one turn."""

    def callLater(self, delay: float, callable: Any, *args: object, **kw: object) -> Any:
        return super().callLater(max(delay, TURN), callable, *args, **kw)


class Plane:
    """A control plane whose fetches the test answers, and everything its observer hears."""

    def __init__(self) -> None:
        self.clock = TurnByTurn()
        self.clock.advance(1000.0)
        self.holder = SnapshotHolder()
        self.answers: list[bytes | Exception] = []
        self.outcomes: list[tuple[str, str, float]] = []
        self.changes: list[tuple[str, str, str]] = []
        builder = SnapshotBuilder(self.holder, self.clock)
        self.catalog = CatalogRefresh(self.fetch, builder, self.clock, self)
        self.utilization = UtilizationRefresh(self.fetch, builder, self.clock, self)

    async def fetch(self) -> bytes:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def refreshed(self, source: str, outcome: str, seconds: float) -> None:
        assert outcome in OUTCOMES
        self.outcomes.append((source, outcome, seconds))

    def state_changed(self, source: str, state: str, detail: str) -> None:
        self.changes.append((source, state, detail))

    def begin(self, source: CatalogRefresh | UtilizationRefresh, answer: bytes | Exception) -> Deferred[None]:
        self.answers.append(answer)
        return Deferred.fromCoroutine(source.refresh())

    def refresh(self, source: CatalogRefresh | UtilizationRefresh, *answers: bytes | Exception) -> Snapshot:
        for answer in answers:
            done = self.begin(source, answer)
            assert done.called  # a small list needs no second turn of the reactor
        return self.now

    @property
    def now(self) -> Snapshot:
        return self.holder.current


@pytest.fixture
def plane() -> Plane:
    return Plane()


def test_both_sources_make_a_ranking(plane: Plane) -> None:
    """Catalog and feed together rank, and the snapshot says when each came and what was in it."""
    plane.refresh(plane.catalog, catalog("a", "b"))
    plane.clock.advance(5.0)
    snapshot = plane.refresh(plane.utilization, feed("b", "x", "a")[:-1] + b",7]")
    assert snapshot.ranked_models == ("b", "a")
    assert (snapshot.catalog_fetched_at, snapshot.feed_fetched_at) == (1000.0, 1005.0)
    assert (snapshot.id, snapshot.feed_rows, snapshot.feed_skipped) == (2, 3, 1)


def test_a_new_allowlist_ranks_the_last_feed_at_once(plane: Plane) -> None:
    """What the feed said before the catalog came counts as soon as it comes, renames included."""
    before = plane.refresh(plane.utilization, feed("a", "b-TEE"))
    assert before.ranked_models == ("b-TEE",)
    assert plane.refresh(plane.catalog, catalog("a")).ranked_models == ("a",)
    assert plane.refresh(plane.catalog, catalog("a", "b-TEE")).ranked_models == ("a", "b-TEE")
    assert before.ranked_models == ("b-TEE",)


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (FetchError("network", "ConnectionRefusedError"), "network"),
        (FetchError("timeout", "late"), "timeout"),
        (FetchError("status", "status 502"), "status"),
        (FetchError("too_large", "large"), "too_large"),
        (b"<html>", "invalid"),
        (b"null", "invalid"),
        (b"[[]]", "invalid"),
        (b'{"data":[[]]}', "invalid"),
    ],
)
def test_every_failure_keeps_the_last_known_good(plane: Plane, failure: bytes | Exception, outcome: str) -> None:
    """Whatever goes wrong, the snapshot stays the same object and the outcome is reported."""
    plane.refresh(plane.catalog, catalog("a"))
    good = plane.refresh(plane.utilization, feed("a"))
    assert plane.refresh(plane.catalog, failure) is good
    assert plane.refresh(plane.utilization, failure) is good
    assert [entry[:2] for entry in plane.outcomes[2:]] == [("catalog", outcome), ("utilization", outcome)]


@pytest.mark.parametrize("answers", [[b""], [catalog("a"), b""], [b"", catalog("a"), b""]])
def test_an_empty_catalog_is_believed_when_it_comes_twice(plane: Plane, answers: list[bytes]) -> None:
    """The first empty list after a full one is doubted, also after a doubt that was dispelled; the second counts."""
    empty = catalog()
    good = plane.refresh(plane.catalog, catalog("a"), *(answer or empty for answer in answers))
    assert good.catalog is not None
    assert good.catalog.ids == {"a"}
    assert plane.outcomes[-1][1] == "empty"
    assert plane.refresh(plane.catalog, FetchError("network", "cut")) is good
    emptied = plane.refresh(plane.catalog, empty)
    assert emptied.catalog is not None
    assert emptied.catalog.ids == frozenset()
    assert plane.outcomes[-1][1] == "ok"


def test_an_empty_feed_is_believed_when_it_comes_twice(plane: Plane) -> None:
    """The same holds for the feed; one of private chutes only is as empty."""
    good = plane.refresh(plane.utilization, feed("a-TEE"))
    assert plane.refresh(plane.utilization, feed("[private chute]")) is good
    assert plane.refresh(plane.utilization, feed()).ranking == ()


def test_an_empty_list_is_believed_where_there_was_none(plane: Plane) -> None:
    """With nothing to lose there is nothing to doubt."""
    assert plane.refresh(plane.catalog, catalog()).catalog is not None
    assert plane.refresh(plane.utilization, feed()).feed_fetched_at == 1000.0
    assert [outcome for _, outcome, _ in plane.outcomes] == ["ok", "ok"]


def test_only_changes_of_state_are_told(plane: Plane) -> None:
    """Every end is counted, but a line is worth only what differs from the time before."""
    cut, bad = FetchError("network", "ConnectionLost"), FetchError("status", "status 503")
    good = catalog("a")
    plane.refresh(plane.catalog, cut, cut, good, good, cut, bad, bad, good, good)
    assert plane.changes == [
        ("catalog", "failed", "network: ConnectionLost"),
        ("catalog", "ready", "1 models, 0 records skipped"),
        ("catalog", "failed", "network: ConnectionLost"),
        ("catalog", "failed", "status: status 503"),
        ("catalog", "recovered", "1 models, 0 records skipped"),
    ]
    assert len(plane.outcomes) == 9


def test_the_time_a_refresh_took_is_told(plane: Plane) -> None:
    """In seconds, never below zero although the clock may be set back."""
    arrived: Deferred[bytes] = Deferred()

    async def slow() -> bytes:
        return await arrived

    refresh = CatalogRefresh(slow, SnapshotBuilder(plane.holder, plane.clock), plane.clock, plane)
    done = Deferred.fromCoroutine(refresh.refresh())
    plane.clock.advance(2.5)
    arrived.callback(catalog("a"))
    assert done.called
    assert plane.outcomes == [("catalog", "ok", 2.5)]


LONG = [f"m{number}-TEE" for number in range(4000)]


def turns(plane: Plane, *waiting: Deferred[Any]) -> int:
    count = 0
    while not all(done.called for done in waiting):
        plane.clock.advance(TURN)
        count += 1
    return count


def test_a_long_feed_gives_way_to_the_reactor(plane: Plane) -> None:
    """Parsing and ranking thousands of rows takes many turns, and the snapshot changes only at the end."""
    done = plane.begin(plane.utilization, feed(*LONG))
    for _ in range(6):
        assert plane.now.id == 0
        plane.clock.advance(TURN)
    assert turns(plane, done) >= 4
    assert plane.now.ranked_models == tuple(LONG)


@pytest.mark.parametrize("head_start", range(12))
def test_sources_that_overlap_end_in_the_newest_of_both(plane: Plane, head_start: int) -> None:
    """A catalog that comes while a feed is being ranked, at whatever point, rules the outcome."""
    plane.refresh(plane.catalog, catalog("m0-TEE", "m1-TEE"))
    ranking = plane.begin(plane.utilization, feed(*LONG))
    for _ in range(head_start):
        plane.clock.advance(TURN)
    listing = plane.begin(plane.catalog, catalog("m1-TEE", "m3999-TEE"))
    seen = [plane.now.id]
    while not (ranking.called and listing.called):
        plane.clock.advance(TURN)
        seen.append(plane.now.id)
    assert plane.now.ranked_models == ("m1-TEE", "m3999-TEE")
    assert seen == sorted(seen)
    assert plane.now.id == 3


def test_a_refresh_that_is_cancelled_leaves_no_trace(plane: Plane) -> None:
    """Stopped in the middle of a ranking, it changes nothing and the other source goes on."""
    plane.refresh(plane.catalog, catalog("a"))
    before = plane.refresh(plane.utilization, feed("a"))
    outcomes = len(plane.outcomes)
    ranking = plane.begin(plane.utilization, feed("a", *LONG))
    for _ in range(7):
        plane.clock.advance(TURN)
    ranking.cancel()
    ended: list[object] = []
    ranking.addErrback(lambda failure: ended.append(failure.trap(CancelledError)))
    assert ended == [CancelledError]
    assert plane.now is before
    assert len(plane.outcomes) == outcomes
    assert plane.clock.getDelayedCalls() == []
    assert plane.refresh(plane.catalog, catalog("a", "m0-TEE")).ranked_models == ("a",)


def test_a_source_never_known_is_asked_again_soon(plane: Plane) -> None:
    """At the start every RETRY_SECONDS, until the first success; after it a failure waits for its turn."""
    down = FetchError("network", "ConnectionLost")
    plane.answers = [down, down, catalog("a"), down]
    first = Deferred.fromCoroutine(plane.catalog.refresh_until_known())
    for answers_left in (3, 2, 1):
        assert len(plane.answers) == answers_left
        plane.clock.advance(RETRY_SECONDS)
    assert first.called
    assert plane.now.catalog is not None
    assert Deferred.fromCoroutine(plane.catalog.refresh_until_known()).called
