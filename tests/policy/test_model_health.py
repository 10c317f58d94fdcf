from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chutes_autopilot.policy.cooldown import PROBE_SECONDS, Cooldown, CooldownRules
from chutes_autopilot.policy.health import ENOUGH_SAMPLES, FRESH_SECONDS, SAMPLES, Available, FleetHealth

RULES = CooldownRules(failures=3, first=10, longest=35, window=60)


def cooled(fleet: FleetHealth, model: str = "a", now: float = 0.0) -> FleetHealth:
    assert [fleet.failed(model, now) for _ in range(3)] == [False, False, True]
    return fleet


@pytest.mark.parametrize(
    ("failed_at", "cools"),
    [((0, 1, 2), True), ((0, 1), False), ((0, 30, 60), True), ((0, 30, 61), False), ((0, 50, 70, 100), True)],
)
def test_failures_in_a_row_within_the_window(failed_at: tuple[float, ...], cools: bool) -> None:
    """A model cools down at the third failure in a row within a minute."""
    state = Cooldown(RULES)
    assert [state.failed(at) for at in failed_at][-1] is cools
    assert state.open_at(failed_at[-1]) is cools


def test_an_answer_in_between_starts_the_count_anew() -> None:
    """Only failures in a row count."""
    state = Cooldown(RULES)
    state.failed(0)
    state.failed(1)
    state.succeeded()
    assert not any((state.failed(2), state.failed(3)))
    assert state.failed(4)


def test_one_failure_can_be_enough() -> None:
    """With COOLDOWN_FAILURES=1 each failure cools."""
    assert Cooldown(CooldownRules(failures=1)).failed(0)


def test_the_time_doubles_to_a_limit_and_an_answer_ends_it() -> None:
    """Each failed probe doubles the time; after an answer it begins small again."""
    state, now, times = Cooldown(RULES), 0.0, []
    for _ in range(3):
        state.failed(now)
    for _ in range(4):
        times.append(state.left(now))
        now += state.left(now)
        assert not state.open_at(now)
        probe = state.started(now)
        assert probe
        assert state.open_at(now)
        state.failed(now, probe=probe)
    assert times == [10, 20, 35, 35]
    state.succeeded()
    assert (state.open_at(now), state.left(now)) == (False, 0)


def test_failures_of_attempts_that_began_earlier_add_nothing() -> None:
    """Late failures neither prolong nor double a model's time, whether it cools down or one request probes it."""
    state = Cooldown(RULES)
    for at in (0, 0, 0, 5, 5, 5):
        state.failed(at)
    assert state.left(5) == 5
    assert state.started(10)
    assert not state.failed(11)
    assert (state.left(11), state.open_at(11)) == (0, True)


def test_only_the_end_of_the_probe_frees_its_place() -> None:
    """Whose client leaves while another's request probes ends nothing."""
    fleet = cooled(FleetHealth(RULES))
    assert fleet.started("a", 10)
    fleet.abandoned("a")
    assert not fleet.started("a", 10)
    fleet.abandoned("a", probe=True)
    assert fleet.started("a", 10)


def test_a_probe_that_was_lost_says_nothing_of_a_later_one() -> None:
    """Whoever leaves or fails after its time neither frees the place of the probe that goes on nor ends it."""
    fleet = cooled(FleetHealth(RULES))
    lost = fleet.started("a", 10)
    probe = fleet.started("a", 10 + PROBE_SECONDS)
    fleet.abandoned("a", probe=lost)
    assert not fleet.failed("a", 11 + PROBE_SECONDS, probe=lost)
    assert fleet.is_cooling("a", 11 + PROBE_SECONDS)
    assert not fleet.started("a", 11 + PROBE_SECONDS)
    fleet.abandoned("a", probe=probe)
    assert fleet.started("a", 11 + PROBE_SECONDS)


def test_rules_that_let_nothing_cool_down_free_what_does() -> None:
    """At once, whether it cools down or is probed; with other rules it goes on."""
    for at in (1.0, 10.0):
        fleet = cooled(FleetHealth(RULES))
        fleet.started("a", at)
        fleet.apply(CooldownRules(failures=5))
        assert fleet.cooling(at) == {"a"}
        fleet.apply(CooldownRules(failures=0))
        assert (fleet.cooling(at), fleet.left(["a"], at), fleet.started("a", at)) == (frozenset(), 0, 0)
        fleet.failed("a", at)
        assert fleet.cooling(at) == frozenset()


@pytest.mark.parametrize(
    "over", [lambda state: state.abandoned(), lambda state: state.succeeded(), None], ids=["left", "answered", "lost"]
)
def test_a_probe_that_is_over_frees_its_place(over: Callable[[Cooldown], None] | None) -> None:
    """One request at a time finds out; when it is over, or lost, another may."""
    state = Cooldown(RULES)
    for _ in range(3):
        state.failed(0)
    assert not state.started(9.9)
    assert state.started(10)
    assert not state.started(10)
    if over is None:
        assert state.open_at(10 + PROBE_SECONDS - 1)
        assert not state.open_at(10 + PROBE_SECONDS)
    else:
        over(state)
        assert not state.open_at(10)


def test_a_cooling_model_is_left_out_until_its_probe() -> None:
    """It is skipped, comes back for one request, and for all once that is answered."""
    fleet = cooled(FleetHealth(RULES))
    assert fleet.filter(("b", "a", "c"), 9) == Available(("b", "c"), ("a",))
    assert fleet.filter(("a", "b"), 10) == Available(("a", "b"), ())
    assert fleet.started("a", 10)
    assert fleet.filter(("a", "b"), 10) == Available(("b",), ("a",))
    fleet.succeeded("a", 0.2, 11)
    assert fleet.filter(("a", "b"), 11) == Available(("a", "b"), ())


def test_there_is_always_a_candidate() -> None:
    """Where all cool down, all are candidates in their order."""
    fleet = cooled(cooled(FleetHealth(RULES)), "b", 5)
    assert fleet.filter(("a", "b"), 6) == Available(("a", "b"), ("a", "b"), forced=True)
    assert fleet.filter((), 6) == Available((), ())
    assert fleet.left(("a", "b"), 6) == 4
    assert fleet.left(("a", "b", "c"), 6) == fleet.left((), 6) == 0


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["ok", "bad", "start", "left", "wait"]), st.floats(0, 40))
    )
)
def test_filtering_never_empties_or_reorders(steps: list[tuple[str, str, float]]) -> None:
    """Whatever happened, the filter keeps the order, loses no name and never returns nothing."""
    fleet, now = FleetHealth(RULES, max_models=2), 0.0
    for model, what, seconds in steps:
        match what:
            case "ok":
                fleet.succeeded(model, seconds, now)
            case "bad":
                fleet.failed(model, now)
            case "start":
                fleet.started(model, now)
            case "left":
                fleet.abandoned(model, probe=True)
            case _:
                now += seconds
        found = fleet.filter(("b", "a", "c"), now)
        assert found.candidates == tuple(m for m in "bac" if m in found.candidates)
        assert found.candidates
        assert set(found.candidates) | set(found.cooling) == {"a", "b", "c"}
        assert len(fleet.as_json(now)) <= 2


class CooldownMachine(RuleBasedStateMachine):
    """Attempts of any order against the states of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.now, self.probes, self.number = Cooldown(RULES), 0.0, 0, 0

    @rule(seconds=st.integers(0, 50))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def start(self) -> None:
        if self.state.started(self.now):
            assert not self.probes or self.now - self.began >= PROBE_SECONDS
            self.probes, self.began = 1, self.now
            self.number += 1

    @rule(probe=st.booleans())
    def fail(self, probe: bool) -> None:
        left, cooled = self.state.left(self.now), self.state.found[1]
        if self.state.failed(self.now, probe=self.number if probe and self.probes else 0):
            assert not left
            assert not cooled or (probe and self.probes)
            assert 10 <= self.state.left(self.now) <= 35
            self.probes = 0

    @rule()
    def succeed(self) -> None:
        self.state.succeeded()
        self.probes = 0
        assert not self.state.open_at(self.now)

    @precondition(lambda self: self.probes)
    @rule()
    def abandon(self) -> None:
        self.state.abandoned()
        self.probes = 0

    @invariant()
    def it_always_comes_back(self) -> None:
        assert not self.state.open_at(self.now + 35 + PROBE_SECONDS)


TestCooldownMachine = CooldownMachine.TestCase
TestCooldownMachine.settings = settings(max_examples=40, stateful_step_count=30)


def test_orders_by_measurement() -> None:
    """The measured ones first, best first; the others behind in their order."""
    fleet = FleetHealth()
    fleet.succeeded("slow", 2.0, 0)
    fleet.succeeded("quick", 0.1, 0)
    fleet.succeeded("plain", None, 0)
    fleet.streamed("slow", 101, 1001, 10.0, 0)
    fleet.streamed("quick", 101, 11, 10.0, 0)
    models = ("plain", "slow", "new", "quick")
    assert fleet.by_first_token(models, 1) == ("quick", "slow", "plain", "new")
    assert fleet.by_throughput(models, 1) == ("slow", "quick", "plain", "new")
    assert fleet.by_first_token(models, FRESH_SECONDS + 1) == models
    shown = fleet.as_json(1)["slow"]
    assert (shown["first_token_ms"], shown["between_events_ms"], shown["tokens_per_second"]) == (2000, 100, 100)


def test_averages_follow_what_is_new() -> None:
    """A new value counts a fifth, and alone after a long silence."""
    fleet = FleetHealth()
    fleet.succeeded("a", 1.0, 0)
    fleet.succeeded("a", 2.0, 1)
    assert fleet.as_json(1)["a"]["first_token_ms"] == pytest.approx(1200)
    fleet.succeeded("a", 3.0, FRESH_SECONDS + 2)
    assert fleet.as_json(FRESH_SECONDS + 2)["a"]["first_token_ms"] == 3000


@pytest.mark.parametrize(("events", "tokens", "seconds"), [(1, 50, 1.0), (0, 0, 0.0), (5, 50, 0.0)])
def test_a_stream_too_short_measures_nothing(events: int, tokens: int, seconds: float) -> None:
    """There is no time between one event."""
    fleet = FleetHealth()
    fleet.streamed("a", events, tokens, seconds, 0)
    assert fleet.as_json(0) == {}


def test_the_percentile_needs_samples_and_keeps_few() -> None:
    """Below twenty there is none; of many only the last hundred count."""
    fleet = FleetHealth()
    for _ in range(ENOUGH_SAMPLES - 1):
        fleet.succeeded("a", 9.0, 0)
    assert fleet.slow_first_token("a", 0) is None
    for number in range(SAMPLES):
        fleet.succeeded("a", number / 100, 0)
    assert fleet.slow_first_token("a", FRESH_SECONDS) == 0.95
    assert fleet.slow_first_token("b", 0) is None


def test_the_percentile_of_another_day_says_nothing() -> None:
    """Neither for itself nor beside the first sample after a long silence."""
    fleet = FleetHealth()
    for _ in range(SAMPLES):
        fleet.succeeded("a", 0.1, 0)
    assert fleet.slow_first_token("a", FRESH_SECONDS + 1) is None
    assert fleet.as_json(FRESH_SECONDS + 1)["a"]["first_token_p95_ms"] is None
    fleet.succeeded("a", 3.0, FRESH_SECONDS + 1)
    assert fleet.slow_first_token("a", FRESH_SECONDS + 1) is None


def test_the_number_of_models_is_bounded() -> None:
    """The least recently used model is forgotten, its cooling with it."""
    fleet = cooled(FleetHealth(RULES, max_models=2))
    fleet.succeeded("b", None, 0)
    fleet.succeeded("c", None, 0)
    assert sorted(fleet.as_json(0)) == ["b", "c"]
    assert not fleet.is_cooling("a", 0)


def test_what_another_replica_found_counts_as_found_here() -> None:
    """A model cools down as long as it does there, its next probe here counts on, and an answer there ends it here."""
    fleet = FleetHealth(RULES)
    fleet.heard("a", 20.0, 2, 0.0)
    assert fleet.cooling(19.9) == {"a"}
    assert fleet.started("a", 20.0)
    assert fleet.failed("a", 20.0, probe=True)
    assert fleet.left(["a"], 20.0) == 35.0
    fleet.heard("a", 0.0, 0, 21.0)
    assert fleet.cooling(21.0) == frozenset()
    fleet.heard("b", 5.0, 1, 10.0)  # over already
    assert fleet.cooling(10.0) == frozenset()
    fleet.heard("c", 1e9, 1, 0.0)  # by a clock that is wrong
    assert fleet.left(["c"], 0.0) == RULES.longest


def test_cooldowns_can_be_off_here() -> None:
    """Then what others find is their affair."""
    fleet = FleetHealth(CooldownRules(failures=0))
    fleet.heard("a", 20.0, 2, 0.0)
    assert fleet.cooling(0.0) == frozenset()


def test_others_are_told_of_beginnings_and_ends() -> None:
    """When a model begins or goes on to cool down, when all get their probe, and when it answers; not of single
    failures nor of answers of the healthy, nor of what the others said."""
    told: list[tuple[str, tuple[float, int]]] = []
    fleet = FleetHealth(RULES, told=lambda model, cooldown: told.append((model, cooldown.found)))
    fleet.succeeded("a", None, 0.0)
    cooled(fleet)
    fleet.back(["a"], 5.0)
    fleet.heard("b", 20.0, 1, 0.0)
    fleet.succeeded("a", None, 6.0)
    assert told == [("a", (10.0, 1)), ("a", (5.0, 1)), ("a", (5.0, 0))]
