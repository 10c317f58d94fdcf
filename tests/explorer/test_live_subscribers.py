"""Who follows live: what they are told, in which order, and when they are let go."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from chutes_autopilot.control.snapshots import Snapshot, SnapshotHolder
from chutes_autopilot.explorer_live.decided import Decided
from chutes_autopilot.explorer_live.live import (
    BATCH,
    HEARTBEAT,
    SLOW_SECONDS,
    TICK,
    Live,
    Subscription,
    TooManySubscribers,
)
from chutes_autopilot.explorer_live.live_topics import BUSY, RANKING_ROWS, live_topics
from chutes_autopilot.explorer_live.measured import Measurements
from chutes_autopilot.explorer_live.sources import Sources
from chutes_autopilot.explorer_live.topics import Bundle, Occurrences, Table
from chutes_autopilot.explorer_live.truth import Truth
from chutes_autopilot.observe.record import AttemptRecord, RequestRecord
from chutes_autopilot.policy.cooldown import CooldownRules
from chutes_autopilot.policy.decision import RecentDecisions
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.policy.ranking import rank
from chutes_autopilot.policy.utilization import UtilizationRow
from chutes_autopilot.relay.explain import Explained

TURN = 2**-10


class TurnByTurn(Clock):
    """A clock on which what asks for the next turn of the reactor gets just that: advance(TURN) runs one turn."""

    def callLater(self, delay: float, callable: Any, *args: object, **kw: object) -> Any:
        return super().callLater(max(delay, TURN), callable, *args, **kw)


class Follower:
    """Keeps what it is sent, and can be full."""

    def __init__(self) -> None:
        self.subscription: Subscription | None = None
        self.got: list[tuple[str, dict[str, Any]]] = []
        self.beats = 0
        self.fate: str | None = None
        self.full_after: int | None = None

    def send(self, bundle: Bundle) -> None:
        self.got += [(message.topic, json.loads(message.data)) for message in bundle.messages]
        if self.full_after is not None and len(self.got) >= self.full_after:
            assert self.subscription is not None
            self.subscription.pause()

    def beat(self) -> None:
        self.beats += 1

    def end(self) -> None:
        self.fate = "ended"

    def drop(self) -> None:
        self.fate = "dropped"

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        got, self.got = self.got, []
        return got


class Stage:
    """A table and a list of occurrences that the test moves, and whoever follows them."""

    def __init__(self, limit: int = 100, every: int = 1) -> None:
        self.clock = TurnByTurn()
        self.rows: dict[str, dict[str, Any]] = {"a": {"n": 1}, "b": {"n": 1}}
        self.happened: list[dict[str, Any]] = []
        self.reads = 0
        self.draining = False
        table = Table("table", lambda: repr(self.rows), self.read, every)
        occurrences = Occurrences("events", lambda: len(self.happened), lambda n: self.happened[::-1][:n], 5)
        self.live = Live(self.clock, (table, occurrences), limit, lambda: self.draining)
        self.live.startService()

    def read(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        self.reads += 1
        return {"sum": sum(row["n"] for row in self.rows.values())}, dict(self.rows)

    def follow(self) -> Follower:
        follower = Follower()
        follower.subscription = self.live.subscribe(follower)
        self.turns()
        return follower

    def turns(self, count: int = 20) -> None:
        for _ in range(count):
            self.clock.advance(TURN)

    def tick(self) -> None:
        self.clock.advance(TICK)
        self.turns()


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_a_new_follower_gets_everything_and_then_what_changes(stage: Stage) -> None:
    """The full table first; later only the rows that changed, the keys that are gone, and what happened."""
    stage.happened.append({"x": 1})
    follower = stage.follow()
    assert follower.take() == [
        ("table", {"full": True, "sum": 2, "rows": [{"n": 1}, {"n": 1}], "gone": []}),
        ("events", {"full": True, "items": [{"x": 1}]}),
    ]
    stage.tick()
    assert follower.take() == []
    stage.rows = {"b": {"n": 1}, "c": {"n": 3}}
    stage.happened += [{"x": 2}, {"x": 3}]
    stage.tick()
    assert follower.take() == [
        ("table", {"full": False, "sum": 4, "rows": [{"n": 3}], "gone": ["a"]}),
        ("events", {"full": False, "items": [{"x": 2}, {"x": 3}]}),
    ]


def test_a_full_follower_is_skipped_and_gets_the_state_of_the_moment_when_it_can_take_it(stage: Stage) -> None:
    """What it missed is not kept for it: one message per topic, and of occurrences only the last ones."""
    follower = stage.follow()
    other = stage.follow()
    follower.take()
    assert follower.subscription is not None
    follower.subscription.pause()
    for number in range(9):
        stage.rows["a"] = {"n": number}
        stage.happened.append({"x": number})
        stage.tick()
    assert follower.take() == []
    assert len(other.take()) == 2 + 2 * 9
    follower.subscription.resume()
    stage.turns()
    assert follower.take() == [
        ("table", {"full": True, "sum": 9, "rows": [{"n": 8}, {"n": 1}], "gone": []}),
        ("events", {"full": True, "items": [{"x": number} for number in range(4, 9)]}),
    ]


def test_a_follower_that_fills_up_gets_what_comes_later_when_it_can_take_it(stage: Stage) -> None:
    """Nothing is written into a full connection, and nothing is lost."""
    follower = Follower()
    follower.full_after = 1
    follower.subscription = stage.live.subscribe(follower)
    stage.turns()
    assert [topic for topic, _ in follower.take()] == ["table", "events"]
    stage.happened.append({"x": 1})
    stage.tick()
    assert follower.take() == []
    follower.subscription.resume()
    stage.turns()
    assert [topic for topic, _ in follower.take()] == ["events"]


def test_a_follower_that_stays_full_is_dropped(stage: Stage) -> None:
    """After SLOW_SECONDS, and not while it takes something now and then."""
    slow, slower = stage.follow(), stage.follow()
    assert slow.subscription is not None
    assert slower.subscription is not None
    slower.subscription.pause()
    for second in range(int(SLOW_SECONDS)):
        slow.subscription.resume()
        slow.subscription.pause()
        assert slower.fate is None, second
        stage.tick()
    assert (slow.fate, slower.fate) == (None, "dropped")
    assert list(stage.live.subscriptions) == [slow.subscription]


def test_a_quiet_connection_is_kept_alive(stage: Stage) -> None:
    """After HEARTBEAT seconds without a message, and only then."""
    follower = stage.follow()
    stage.clock.pump([TICK] * int(HEARTBEAT - 1))
    assert follower.beats == 0
    stage.clock.pump([TICK] * 2)
    assert follower.beats == 1
    stage.rows["a"] = {"n": 7}
    stage.tick()
    stage.clock.pump([TICK] * int(HEARTBEAT - 1))
    assert follower.beats == 1


def test_no_more_than_the_limit_follow() -> None:
    """The next one is refused until one has left; leaving twice frees one place."""
    stage = Stage(limit=2)
    first = stage.follow()
    stage.follow()
    with pytest.raises(TooManySubscribers):
        stage.follow()
    assert first.subscription is not None
    first.subscription.gone()
    first.subscription.gone()
    stage.follow()
    with pytest.raises(TooManySubscribers):
        stage.follow()


def test_a_few_are_served_in_each_turn(stage: Stage) -> None:
    """Hundreds of followers never hold the reactor up at once, and each of them is served."""
    followers = [stage.follow() for _ in range(5 * BATCH)]
    for follower in followers:
        follower.take()
    stage.rows["a"] = {"n": 5}
    served = []
    while sum(served) < len(followers):
        stage.clock.advance(TURN)
        served.append(sum(bool(follower.take()) for follower in followers))
        assert len(served) < 5000
    served = [count for count in served if count]
    assert served == [BATCH] * 5


def test_nothing_is_read_for_nobody(stage: Stage) -> None:
    """Only while somebody follows."""
    for _ in range(5):
        stage.rows["a"] = {"n": stage.rows["a"]["n"] + 1}
        stage.tick()
    assert stage.reads == 0
    follower = stage.follow()
    assert follower.take()[0][1]["sum"] == 7
    assert stage.reads == 1


@pytest.mark.parametrize("ticks", [1, 2, 3])
def test_the_first_after_a_while_is_told_what_is_and_not_what_was(ticks: int) -> None:
    """Also of what changes so often that those who follow hear of it now and then only."""
    stage = Stage(every=2)
    first = stage.follow()
    for _ in range(ticks):
        stage.tick()
    assert first.subscription is not None
    first.subscription.gone()
    stage.rows["a"] = {"n": 40}
    stage.tick()
    assert stage.follow().take()[0][1]["sum"] == 41


def test_all_are_sent_away_when_the_service_is_about_to_stop(stage: Stage) -> None:
    """As soon as it drains, and at the latest with the stop; nobody new is let in."""
    first = stage.follow()
    stage.draining = True
    stage.tick()
    assert first.fate == "ended"
    with pytest.raises(TooManySubscribers):
        stage.follow()
    stage.draining = False
    second = stage.follow()
    stage.live.stopService()
    assert (second.fate, stage.live.subscriptions) == ("ended", {})
    with pytest.raises(TooManySubscribers):
        stage.follow()
    assert not stage.clock.getDelayedCalls()


def test_one_that_cannot_be_written_to_harms_no_other(stage: Stage) -> None:
    """It is dropped."""
    broken, well = stage.follow(), stage.follow()
    well.take()

    def send(_bundle: Bundle) -> None:
        raise ZeroDivisionError

    broken.send = send  # type: ignore[method-assign]
    stage.rows["a"] = {"n": 5}
    stage.tick()
    assert (broken.fate, len(well.take())) == ("dropped", 1)


def test_a_topic_that_cannot_be_read_ends_nothing(stage: Stage) -> None:
    """What comes after it is told."""
    follower = stage.follow()
    follower.take()
    stage.rows = {"a": {}}
    stage.tick()
    stage.rows = {"a": {"n": 2}}
    stage.tick()
    assert [message["sum"] for _, message in follower.take()] == [2]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=25))
def test_whoever_puts_the_messages_together_has_the_table(steps: list[tuple[int, int, bool]]) -> None:
    """Full messages and deltas add up to the current rows, also for one that is full from time to time."""
    stage = Stage()
    stage.rows = {}
    follower = stage.follow()
    shown: dict[str, dict[str, Any]] = {}
    for key, number, full in [*steps, (0, 9, False)]:
        assert follower.subscription is not None
        follower.subscription.pause() if full else follower.subscription.resume()
        name = "abcd"[key]
        stage.rows = {k: row for k, row in stage.rows.items() if k != name}
        if number:
            stage.rows[name] = {"key": name, "n": number}
        stage.tick()
        for topic, message in follower.take():
            if topic == "table":
                kept = {} if message["full"] else {k: row for k, row in shown.items() if k not in message["gone"]}
                shown = kept | {row["key"]: row for row in message["rows"]}
        assert full or shown == stage.rows


def test_the_explorers_topics_tell_what_the_router_and_the_service_know() -> None:
    """Ranking with its reasons, what was measured, failovers, and how fresh each source is."""
    clock = Clock()
    holder = SnapshotHolder()
    sources = Sources(lambda work, *given: work(*given))
    truth = Truth(sources, "off", lambda work, *given: work(*given), clock.seconds)
    health = FleetHealth(CooldownRules(failures=1))
    measurements = Measurements(lambda model: model, lambda *_: None, [health], clock.seconds)
    decisions: RecentDecisions[Explained] = RecentDecisions()
    topics = live_topics(holder, measurements, truth, sources, Decided(decisions, lambda model: None))
    live = Live(clock, topics, 10)
    live.startService()
    follower = Follower()
    follower.subscription = live.subscribe(follower)
    clock.advance(0)
    assert [topic for topic, _ in follower.take()] == [
        "ranking",
        "measured",
        "picks",
        "failovers",
        "changes",
        "freshness",
    ]

    rows = [UtilizationRow(f"m{n:03}-TEE", active_instance_count=300 - n, utilization_5m=0.0) for n in range(250)]
    holder.current = Snapshot(id=7, ranking=rank(rows, None))
    failed = AttemptRecord("m001-TEE", 503, "upstream_503", 5.0)
    record = RequestRecord("id", 1.0, attempts=[failed, AttemptRecord("m000-TEE", 200)])
    decisions.keep(Explained(record, None), b"owner")
    measurements.finished(record)
    sources.failed("catalog", "timeout: late")
    clock.pump([TICK] * BUSY)
    clock.advance(0)
    told = dict(follower.take())
    assert set(told) == {"ranking", "measured", "picks", "failovers", "freshness"}
    assert told["picks"]["requests"] == 1
    assert [(row["number"], row["at"], row["attempts"][0]["model"]) for row in told["picks"]["rows"]] == [
        (1, "1970-01-01T00:00:01.000Z", "(others)")
    ]
    ranking = told["ranking"]
    assert (ranking["snapshot"], ranking["candidates"], len(ranking["rows"])) == (7, 250, RANKING_ROWS)
    best = ranking["rows"][0]
    assert (best["place"], best["model"], best["score"], best["parts"]["idle"]) == (1, "m000-TEE", 300.0, 300.0)
    assert best["why"].startswith("300 active instances")
    assert {row["model"]: (row["requests"], row["failures"]) for row in told["measured"]["rows"]} == {
        "m001-TEE": (1, 1),
        "m000-TEE": (1, 0),
    }
    assert told["failovers"]["items"] == [
        {"at": "1970-01-01T00:00:05.000Z", "model": "m001-TEE", "reason": "upstream_503", "next_model": "m000-TEE"}
    ]
    assert told["freshness"]["rows"] == [
        {"source": "v1", "state": "down", "fetched_at": None, "reason": "timeout: late"}
    ]
    health.failed("m001-TEE", clock.seconds())
    clock.pump([TICK] * BUSY)
    clock.advance(0)
    ((topic, cooling),) = follower.take()
    assert (topic, [row["model"] for row in cooling["rows"]]) == ("measured", ["m001-TEE"])
    live.stopService()
