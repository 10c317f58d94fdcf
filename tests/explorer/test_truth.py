"""The merged state: when it is made anew, and what it tells of changes."""

import json
from typing import Any

import pytest
from explorer_samples import chute_json, listing_body, uuid
from twisted.internet.defer import CancelledError, Deferred, succeed

from chutes_autopilot.explorer.changes import PATIENCE, Change
from chutes_autopilot.explorer.records import CHUTES, UTILIZATION, V1
from chutes_autopilot.explorer_live.sources import Sources
from chutes_autopilot.explorer_live.truth import Truth, TruthState


def model(number: int, usd: float = 1.0, **members: Any) -> dict[str, Any]:
    return {"id": f"m{number}", "chute_id": uuid(number), "pricing": {"prompt": usd}, **members}


def feed(*numbers: int) -> bytes:
    return json.dumps([{"name": f"m{n}", "chute_id": uuid(n)} for n in numbers]).encode()


class World:
    """Sources, the truth made of them, and all that it told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.held: list[tuple[Deferred[Any], Any]] | None = None
        self.sources = Sources(self.in_thread)
        self.truth = Truth(self.sources, "suggest", self.in_thread, lambda: self.now)
        self.states: list[TruthState] = []
        self.changes: list[Change] = []
        self.truth.listeners.append(self.states.append)
        self.truth.change_listeners.append(self.changes.extend)
        self.truth.startService()

    def in_thread(self, work: Any, *given: Any) -> Deferred[Any]:
        if self.held is None:
            return succeed(work(*given))
        done: Deferred[Any] = Deferred()
        self.held.append((done, lambda: work(*given)))
        return done

    def v1(self, *models: dict[str, Any]) -> None:
        self.now += 300
        self.sources.fetched("catalog", json.dumps({"data": models}).encode(), self.now)

    def listing(self, *items: dict[str, Any]) -> None:
        self.now += 600
        assert Deferred.fromCoroutine(self.sources.take(CHUTES, listing_body(*items), self.now)).called

    def told(self) -> list[tuple[str, str]]:
        told = [(change.type, change.name) for change in self.changes]
        self.changes.clear()
        return told


@pytest.fixture
def world() -> World:
    return World()


def test_there_is_a_state_from_the_first_source_on_and_a_new_one_with_each_news(world: World) -> None:
    """Every state has an id of its own, its time, and how fresh each source is."""
    assert world.truth.current is None
    world.v1(model(1))
    world.listing(chute_json(1, "m1"), chute_json(2, "m2"))
    world.sources.failed("utilization", "timeout: late")
    first, second, third = world.states
    assert world.truth.current is third
    assert len({state.id for state in world.states}) == 3
    assert (len(first.merged.records), len(second.merged.records)) == (1, 2)
    assert third.merged is second.merged  # nothing was merged for a failure
    assert (first.freshness[CHUTES].fetched_at, first.freshness[CHUTES].stale) == (None, False)
    assert (third.freshness[UTILIZATION].fetched_at, third.freshness[UTILIZATION].stale) == (None, True)
    assert third.freshness[V1].fetched_at == "1970-01-12T13:51:40.000Z"
    assert third.generated_at == world.now


def test_what_comes_while_it_is_merged_is_merged_together(world: World) -> None:
    """A long merge runs in a thread; all that comes meanwhile makes one further state."""
    world.held = []
    world.sources.fetched("catalog", json.dumps({"data": [model(n) for n in range(60)]}).encode(), world.now)
    assert len(world.held) == 1
    world.sources.fetched("utilization", feed(1), world.now)
    world.listing(chute_json(1, "m1"))
    assert (len(world.held), world.states) == (1, [])
    done, work = world.held.pop()
    done.callback(work())
    ((done, work),) = world.held
    world.held = None
    done.callback(work())
    assert [set(state.merged.inputs) for state in world.states] == [{V1}, {CHUTES, V1, UTILIZATION}]


def test_the_first_state_of_a_source_tells_nothing_and_later_ones_do(world: World) -> None:
    """Added, removed and changed prices are told, once every catalog was asked again."""
    world.v1(model(1), model(2))
    world.listing(chute_json(1, "m1"), chute_json(7, "m7"))
    world.v1(model(1), model(2))
    assert world.told() == []
    world.v1(model(1, 2.0), model(2), model(3))
    assert world.told() == []  # the listing may yet say otherwise
    world.listing(chute_json(1, "m1"), chute_json(7, "m7"), chute_json(8, "m8"))
    assert world.told() == [("price.changed", "m1"), ("model.added", "m3"), ("model.added", "m8")]
    assert [change.name for change in world.truth.recent(2)] == ["m8", "m3"]
    assert world.truth.changes_seen == 3


def test_a_model_counts_as_missing_once_for_each_answer_of_its_catalog(world: World) -> None:
    """However often the other catalog and the feed come meanwhile, a model that blinks in one answer was never gone."""
    both = (chute_json(1, "m1"), chute_json(7, "m7"), chute_json(9, "m9"))
    world.v1(model(1))
    world.listing(*both)
    world.v1(model(1))
    world.listing(*both[:2])
    for number in range(4 * PATIENCE):
        world.v1(model(1))
        world.sources.fetched("utilization", feed(number), world.now)
    world.listing(*both)
    world.v1(model(1))
    assert world.told() == []
    for _ in range(PATIENCE):
        world.v1(model(1))
        world.listing(*both[:2])
    assert world.told() == [("model.removed", "m9")]


def test_a_catalog_that_fails_holds_up_nothing_and_removes_nothing(world: World) -> None:
    """The other one's changes are told; what only the failing one has is not missing."""
    world.v1(model(1), model(2))
    world.listing(chute_json(7, "m7"), chute_json(8, "m8"))
    world.sources.in_trouble(CHUTES, "timeout")
    for usd in (1.0, 3.0, 3.0, 3.0, 3.0):
        world.v1(model(1, usd), model(2))
    assert world.told() == [("price.changed", "m1")]


def test_what_earlier_processes_saw_is_remembered_behind_what_is_new(world: World) -> None:
    """The newest comes first."""
    world.truth.remember([Change("model.added", 1.0, "k", None, "old")])
    world.v1(model(1))
    world.v1(model(1), model(2))
    assert [change.name for change in world.truth.recent(9)] == ["m2", "old"]


def test_a_listener_that_fails_keeps_nothing_from_the_others(world: World) -> None:
    """They are told all the same."""

    def broken(_state: TruthState) -> None:
        raise ZeroDivisionError

    world.truth.listeners.insert(0, broken)
    world.v1(model(1))
    assert len(world.states) == 1


def test_a_stop_ends_what_is_under_way(world: World) -> None:
    """The merge in a thread is given up, and nothing starts any more."""
    world.held = []
    world.sources.fetched("catalog", json.dumps({"data": [model(n) for n in range(60)]}).encode(), world.now)
    world.truth.stopService()
    world.v1(model(1))
    assert (world.truth.current, world.states) == (None, [])
    world.held[0][0].addErrback(lambda failure: failure.trap(CancelledError))
