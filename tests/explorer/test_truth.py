"""The merged state: when it is made anew, and what it tells of changes."""

import json
from pathlib import Path
from typing import Any

import pytest
from explorer_samples import chute_json, listing_body, uuid
from twisted.internet.defer import CancelledError, Deferred, execute
from twisted.logger import capturedLogs, formatEvent

from chutes_autopilot.explorer.changes import PATIENCE, Change
from chutes_autopilot.explorer.records import CHUTES, UTILIZATION, V1
from chutes_autopilot.explorer_live.sources import Sources
from chutes_autopilot.explorer_live.truth import Truth, TruthState
from chutes_autopilot.storage.watch_file import WatchFile


def model(number: int, usd: float = 1.0, **members: Any) -> dict[str, Any]:
    return {"id": f"m{number}", "chute_id": uuid(number), "pricing": {"prompt": usd}, **members}


def feed(*numbers: int) -> bytes:
    return json.dumps([{"name": f"m{n}", "chute_id": uuid(n)} for n in numbers]).encode()


class World:
    """Sources, the truth made of them, and all that it told."""

    def __init__(self, directory: Path | None = None, *lists: str) -> None:
        self.now = 1_000_000.0
        self.held: list[tuple[Deferred[Any], Any]] | None = None
        self.sources = Sources(self.in_thread)
        file = None if directory is None else WatchFile(directory, lists, self.in_thread)
        self.truth = Truth(self.sources, "suggest", self.in_thread, lambda: self.now, file)
        self.states: list[TruthState] = []
        self.changes: list[Change] = []
        self.truth.listeners.append(self.states.append)
        self.truth.change_listeners.append(self.changes.extend)
        self.truth.startService()

    def in_thread(self, work: Any, *given: Any) -> Deferred[Any]:
        if self.held is None:
            return execute(work, *given)
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


def both_lists(world: World, *models: dict[str, Any]) -> None:
    """The next answers of both catalogs."""
    world.v1(*models)
    world.listing(*(chute_json(int(each["id"][1:]), each["id"]) for each in models))


def test_what_changes_while_the_service_is_down_is_found_at_the_next_start(tmp_path: Path) -> None:
    """Prices and newcomers at once, a removal once it is sure; the very first start of all tells nothing."""
    first = World(tmp_path)
    both_lists(first, model(1), model(2), model(3))
    both_lists(first, model(1), model(2))  # the third has begun to be missing
    assert first.told() == []
    later = World(tmp_path)
    both_lists(later, model(1, 2.0), model(4))
    assert later.told() == [("price.changed", "m1"), ("model.added", "m4")]
    both_lists(later, model(1, 2.0), model(4))
    again = World(tmp_path)  # what is missing must be so three times in one run: a restart may read an old answer
    for _ in range(PATIENCE):  # in the first of them each list comes alone
        both_lists(again, model(1, 2.0), model(4))
    assert again.told() == []
    both_lists(again, model(1, 2.0), model(4))
    assert again.told() == [("model.removed", "m2"), ("model.removed", "m3")]
    last = World(tmp_path)
    both_lists(last, model(1, 2.0), model(4))
    assert last.told() == []


def test_a_start_whose_first_list_comes_alone_removes_nothing(tmp_path: Path) -> None:
    """What only the other list has is not missing until that one has come."""
    both_lists(World(tmp_path), *map(model, range(1, 4)))
    world = World(tmp_path)
    world.v1(model(1))
    world.v1(model(1))
    for _ in range(PATIENCE):
        both_lists(world, model(1), model(2), model(3))
    assert world.told() == []


@pytest.mark.parametrize("text", [b"", b'{"timestamp": 1, "data": {"of": 1}}', b'{"timestamp": 1, "data": [['])
def test_a_damaged_file_and_one_of_other_lists_count_for_nothing(tmp_path: Path, text: bytes) -> None:
    """The next state is the very first one, and is kept in its place."""
    both_lists(World(tmp_path, "here"), model(1))
    elsewhere = World(tmp_path, "there")
    both_lists(elsewhere, model(2))
    (tmp_path / "watch.json").write_bytes(text)
    world = World(tmp_path, "there")
    both_lists(world, model(3))
    assert (elsewhere.told(), world.told()) == ([], [])
    after = World(tmp_path, "there")
    both_lists(after, model(3, 2.0))
    assert after.told() == [("price.changed", "m3")]
    assert (tmp_path / "watch.json").stat().st_mode & 0o777 == 0o600


def test_a_directory_that_cannot_be_written_holds_up_nothing(tmp_path: Path) -> None:
    """Changes are told as ever; the log says once what will be missed."""
    (tmp_path / "file").touch()
    world = World(tmp_path / "file" / "below")
    with capturedLogs() as logged:
        both_lists(world, model(1))
        both_lists(world, model(1, 2.0))
    assert world.told() == [("price.changed", "m1")]
    assert [formatEvent(each) for each in logged] == [
        "what changes while the service is down will not be found: Not a directory"
    ]


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
