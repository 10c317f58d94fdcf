"""The history of each minute, and what pages have of it at hand."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from explorer_samples import chute_json, listing_body, uuid
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThreadPool

from chutes_autopilot.control.snapshots import Snapshot, SnapshotHolder
from chutes_autopilot.explorer.changes import Change, FieldChange
from chutes_autopilot.explorer.provenance import Provenance
from chutes_autopilot.explorer.records import CHUTES
from chutes_autopilot.explorer_composition import InTurn
from chutes_autopilot.explorer_live.minutes import MAX_AGE, MINUTE, MinuteByMinute, change_of, recorded_change
from chutes_autopilot.explorer_live.recorder import Recorder
from chutes_autopilot.explorer_live.sources import Sources
from chutes_autopilot.explorer_live.truth import Truth
from chutes_autopilot.policy.catalog import parse_catalog
from chutes_autopilot.policy.ranking import rank
from chutes_autopilot.policy.utilization import parse_utilization
from chutes_autopilot.storage.history import HistoryStore, HistoryUnavailable
from chutes_autopilot.storage.history_rows import CatalogChange, HistoryRow

CATALOG = json.dumps({"data": [{"id": "a", "chute_id": uuid(1)}]}).encode()
FEED = json.dumps(
    [
        {
            "name": "a",
            "chute_id": uuid(1),
            "active_instance_count": 4,
            "total_instance_count": 5,
            "utilization_current": 0.25,
            "utilization_5m": 0.5,
        }
    ]
).encode()
PRICE = {"per_million_tokens": {"input": {"usd": 0.5}, "output": {"usd": 1.5}}, "usd": {"hour": 4.0}}


class Store:
    """A history that keeps what it is given, or fails."""

    def __init__(self) -> None:
        self.minutes: list[tuple[float, Sequence[HistoryRow], tuple[CatalogChange, ...]]] = []
        self.kept: tuple[CatalogChange, ...] = ()
        self.failing = False
        self.writing: Deferred[None] = succeed(None)

    def record(self, at: float, rows: Sequence[HistoryRow], changes: Any, failovers: Any) -> Deferred[None]:
        if self.failing:
            return fail(HistoryUnavailable("full"))
        self.minutes.append((at, rows, tuple(changes)))
        return self.writing

    def changes(self, since: float, limit: int) -> Deferred[tuple[CatalogChange, ...]]:
        return succeed(self.kept)

    def sparklines(self, now: float) -> Deferred[dict[str, tuple[float | None, ...]]]:
        return succeed({uuid(1): (0.5,)})

    def first_seen(self) -> Deferred[dict[str, int]]:
        return succeed({uuid(1): 77})


class World:
    def __init__(self, store: Any = None) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.store: Any = store or Store()
        self.snapshots = SnapshotHolder()

        def in_thread(work: Any, *given: Any) -> Deferred[Any]:
            return succeed(work(*given))

        self.sources = Sources(in_thread)
        self.truth = Truth(self.sources, "off", in_thread, self.clock.seconds)
        self.minutes = MinuteByMinute(
            Recorder(self.store), self.store, self.truth, self.sources, self.snapshots, self.clock, self.clock.seconds
        )

    def start(self) -> None:
        self.truth.startService()
        self.minutes.startService()

    def tell(self, changes: Sequence[Change]) -> None:
        for listener in self.truth.change_listeners:
            listener(changes)

    def arrive(self, feed: bytes = FEED) -> None:
        now = self.clock.seconds()
        self.sources.fetched("catalog", CATALOG, now)
        self.sources.fetched("utilization", feed, now)
        listing = listing_body(
            chute_json(1, "a", current_estimated_price=PRICE), chute_json(2, "b", created_at="2026-01-02T03:04:05")
        )
        Deferred.fromCoroutine(self.sources.take(CHUTES, listing, now))
        ranking = rank(parse_utilization(FEED).rows, parse_catalog(CATALOG))
        self.snapshots.current = Snapshot(1, feed_fetched_at=now, ranking=ranking)


@pytest.fixture
def world() -> World:
    return World()


def test_every_minute_has_a_row_for_each_chute(world: World) -> None:
    """Load, instances, place, score and prices as they are known, once there is anything to record."""
    world.start()
    world.clock.advance(MINUTE)
    assert world.store.minutes == []
    world.arrive()
    world.clock.advance(MINUTE)
    ((at, rows, _),) = world.store.minutes
    assert at == 1_000_000.0 + 2 * MINUTE
    score = world.snapshots.current.ranking[0].score
    assert rows == (
        HistoryRow(uuid(1), "a", 0.25, 4, 5, 1, score, price_input=0.5, price_output=1.5, price_hour=4.0),
        HistoryRow(uuid(2), "b"),
    )


def test_what_an_old_feed_said_is_a_gap(world: World) -> None:
    """Prices stay; load, instances and places are not those of this minute."""
    world.start()
    world.arrive()
    world.clock.pump([MINUTE] * int(MAX_AGE / MINUTE + 1))
    row = world.store.minutes[-1][1][0]
    assert (row.utilization, row.active_instances, row.rank, row.score) == (None, None, None, None)
    assert row.price_input == 0.5


def test_changes_are_written_with_the_next_minute(world: World) -> None:
    """They come back from the history as they were."""
    world.start()
    world.arrive()
    change = Change("price.changed", 5.0, uuid(1), uuid(1), "a", (FieldChange("price.input", 1.0, 2.0, "usd"),))
    world.tell([change])
    world.clock.advance(MINUTE)
    ((_, _, changes),) = world.store.minutes
    assert changes == (recorded_change(change),)
    assert change_of(changes[0]) == change


def test_the_last_minute_is_written_at_the_stop(world: World) -> None:
    """With what has happened in it; nobody would ever tell of it again."""
    world.start()
    world.arrive()
    world.clock.advance(MINUTE + 5)
    change = Change("model.added", 5.0, uuid(1), uuid(1), "a")
    world.tell([change])
    assert world.minutes.stopService().called
    _, (at, rows, changes) = world.store.minutes
    assert (at, rows[0].utilization, changes) == (1_000_000.0 + MINUTE + 5, 0.25, (recorded_change(change),))


def test_a_stop_waits_for_the_minute_that_is_being_written(world: World) -> None:
    """What was taken to be written is written once, what came meanwhile then."""
    world.start()
    world.arrive()
    first, second = (Change("model.added", 5.0, key, key, key) for key in "ab")
    world.tell([first])
    world.store.writing = Deferred()
    world.clock.advance(MINUTE)
    world.tell([second])
    stopped = world.minutes.stopService()
    assert not stopped.called
    world.store.writing.callback(None)
    assert stopped.called
    assert [changes for *_, changes in world.store.minutes] == [(recorded_change(first),), (recorded_change(second),)]


async def test_the_history_closes_behind_its_last_minute(tmp_path: Path) -> None:
    """The file has what was still being gathered when the service stopped."""
    from twisted.internet import reactor

    in_thread = partial(deferToThreadPool, reactor, reactor.getThreadPool())  # type: ignore[attr-defined]
    change = Change("model.added", 5.0, uuid(1), uuid(1), "a")
    for seen in ((), (recorded_change(change),)):
        store = HistoryStore(reactor, tmp_path, 10**7, in_thread)
        world, service = World(store), InTurn()
        for part in (store, world.minutes):
            part.setServiceParent(service)
        service.startService()
        assert await store.changes(0, 10) == seen
        world.tell([] if seen else [change])
        await service.stopService()


def test_pages_have_the_lines_and_earlier_changes_at_hand(world: World) -> None:
    """From the start on, as soon as the history is open."""
    world.store.kept = (recorded_change(Change("model.added", 5.0, "k", None, "a")),)
    world.start()
    assert world.minutes.sparklines == {uuid(1): (0.5,)}
    assert [change.name for change in world.truth.recent(5)] == ["a"]


def test_a_model_that_nobody_dates_is_first_seen_when_it_was_first_recorded(world: World) -> None:
    """The listing's own date counts where there is one."""
    world.start()
    world.arrive()
    assert world.truth.current is not None
    seen = {each.chute_id: (each.fields["first_seen"], each.provenance.get("first_seen"))
            for each in world.truth.current.merged.records}  # fmt: skip
    assert seen[uuid(1)] == ("1970-01-01T00:01:17Z", Provenance("history", inferred=True))
    assert seen[uuid(2)] == ("2026-01-02T03:04:05Z", Provenance("chutes", inferred=True))


def test_a_count_that_is_none_is_a_gap_of_its_model_alone(world: World) -> None:
    """The database takes no larger number, and would refuse the whole minute."""
    world.start()
    world.arrive(FEED.replace(b": 4,", b": 1e300,"))
    world.clock.advance(MINUTE)
    (row, other) = world.store.minutes[-1][1]
    assert (row.active_instances, row.total_instances, other.name) == (None, 5, "b")


def test_a_history_that_fails_ends_nothing(world: World) -> None:
    """The next minutes are written when it can be written again."""
    world.start()
    world.arrive()
    world.store.failing = True
    world.clock.pump([MINUTE] * 2)
    world.store.failing = False
    world.clock.advance(MINUTE)
    assert len(world.store.minutes) == 1
    world.store.failing = True
    assert world.minutes.stopService().called
    assert not world.clock.getDelayedCalls()
