"""What the service itself sees of the models, told by the records of finished requests."""

from itertools import zip_longest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.explorer_live.counting import MAX_MODELS, MAX_OTHERS, OTHERS, SAMPLES, Counting
from chutes_autopilot.explorer_live.measured import MAX_FAILOVERS, Measured, Measurements
from chutes_autopilot.observe.record import AttemptRecord, RequestRecord
from chutes_autopilot.policy.cooldown import CooldownRules
from chutes_autopilot.policy.health import FleetHealth

LISTED = {"a", "b", "c"}


class Seen:
    """Measurements of a catalog of three models, and the failovers that were handed on."""

    def __init__(self) -> None:
        self.handed_on: list[tuple[str, str, str | None]] = []
        self.measurements = Measurements(self.listed, lambda *failover: self.handed_on.append(failover))
        self.finished = self.measurements.finished

    @staticmethod
    def listed(model: str) -> str | None:
        base = model.partition(":")[0]
        return base if base in LISTED else None


def record(*attempts: AttemptRecord, first_byte: float | None = None, stream: bool = True) -> RequestRecord:
    made = RequestRecord("id", 100.0, stream=stream, attempts=list(attempts), first_byte=first_byte)
    made.first_attempt = 100.5 if attempts else None
    return made


def failed(model: str, at: float, why: str = "upstream_503") -> AttemptRecord:
    return AttemptRecord(model, status=503, failure=why, failed=at)


def answered(model: str) -> AttemptRecord:
    return AttemptRecord(model, status=200)


@pytest.fixture
def seen() -> Seen:
    return Seen()


def test_requests_failures_and_first_tokens_are_counted_by_model(seen: Seen) -> None:
    """The time to the first token begins with the attempt that brought it; its median counts."""
    seen.finished(record(answered("a"), first_byte=101.0))
    seen.finished(record(answered("a"), first_byte=109.5))
    seen.finished(record(answered("a:THINKING"), first_byte=102.5))
    seen.finished(record(failed("a", 103.0), answered("b"), first_byte=104.0))
    assert seen.measurements.measured() == {"a": Measured(4, 1, 2.0), "b": Measured(1, 0, 1.0)}


def test_what_routing_goes_by_is_shown_with_it() -> None:
    """Pace and cooldown of the first of the routes that knows the model; what is too old is not known."""
    health, other = FleetHealth(CooldownRules(failures=1, first=10.0)), FleetHealth()
    measurements = Measurements(Seen.listed, lambda *_: None, [health, other], lambda: 1000.0)
    other.streamed("a", 2, None, 9.0, 999.0)
    other.streamed("b", 11, 21, 0.5, 999.0)
    health.streamed("a", 11, None, 0.2, 10.0)
    for model in ("a", "b"):
        measurements.finished(record(answered(model)))
    stamp = measurements.stamp()
    health.failed("a", 995.0)
    assert measurements.stamp() != stamp
    assert measurements.measured() == {
        "a": Measured(1, cooling_until=1005.0),
        "b": Measured(1, between_events=0.05, tokens_per_second=40.0),
    }


def test_only_streams_have_a_time_to_the_first_token(seen: Seen) -> None:
    """The first byte of an answer in one piece comes with its last token; one that never came counts for nothing."""
    seen.finished(record(answered("a"), first_byte=101.0, stream=False))
    seen.finished(record(failed("b", 103.0), first_byte=None))
    assert seen.measurements.measured() == {"a": Measured(1, 0, None), "b": Measured(1, 1, None)}


def test_failovers_are_kept_with_what_took_their_place(seen: Seen) -> None:
    """The newest first; the last one of a request has no other behind it; each is handed on to the history."""
    seen.finished(record(failed("a", 101.0), failed("b", 102.0, "upstream_connect_error")))
    last, first = seen.measurements.failovers()
    assert (first.at, first.model, first.why, first.next_model) == (101.0, "a", "upstream_503", "b")
    assert (last.at, last.model, last.why, last.next_model) == (102.0, "b", "upstream_connect_error", None)
    assert seen.handed_on == [("a", "upstream_503", "b"), ("b", "upstream_connect_error", None)]
    assert seen.measurements.failovers_seen == 2


def test_a_failover_is_another_model_in_place_of_one_that_failed(seen: Seen) -> None:
    """A further try of the same one is none, nor is a hedge, whichever of the two was slower or failed.

    A model that is tried again has failed once; one that was slower has not. Its first token is counted from its own
    beginning, and not from the pause before.
    """
    again = AttemptRecord("a", 200, started=106.0)
    slower = AttemptRecord("b", failure="hedge_lost", failed=104.0, started=103.0)
    beside = AttemptRecord("c", 503, "upstream_503", 104.0, started=103.0)
    seen.finished(record(failed("a", 101.0), again, first_byte=107.0))
    seen.finished(record(slower, AttemptRecord("a", 200, started=100.5), first_byte=104.5))
    seen.finished(record(beside, AttemptRecord("a", 200, started=100.5), first_byte=103.5))
    assert seen.measurements.measured() == {"a": Measured(4, 1, 3.0), "b": Measured(1), "c": Measured(1, 1)}
    assert seen.measurements.failovers() == ()


def test_attempts_to_go_on_with_a_stream_count_too(seen: Seen) -> None:
    """For the models that were asked; the time to the first token is that of the stream's first model."""
    broken = record(answered("a"), first_byte=101.0)
    broken.continuations = (failed("b", 105.0), answered("c"))
    seen.finished(broken)
    assert seen.measurements.measured() == {"a": Measured(1, 0, 0.5), "b": Measured(1, 1), "c": Measured(1)}
    assert seen.handed_on == [("b", "upstream_503", "c")]


def test_what_clients_make_up_is_shown_under_no_name(seen: Seen) -> None:
    """A model that is not listed counts with all others of its kind."""
    seen.finished(record(failed("my secret project", 101.0), answered("x" * 300)))
    assert set(seen.measurements.measured()) == {OTHERS}
    assert {(each.model, each.next_model) for each in seen.measurements.failovers()} == {(OTHERS, OTHERS)}


def test_a_request_that_was_never_sent_changes_nothing(seen: Seen) -> None:
    """Refused requests have no attempts."""
    seen.finished(record())
    assert (seen.measurements.version, seen.measurements.measured()) == (0, {})


def test_memory_is_bounded() -> None:
    """However many models, samples and failovers there are."""
    measurements = Measurements(lambda model: model, lambda *_: None)
    for number in range(MAX_MODELS + 50):
        measurements.finished(record(failed(f"m{number}", 101.0)))
    for number in range(SAMPLES + 50):
        measurements.finished(record(answered("m0"), first_byte=101.0 + (number >= 50)))
    measured = measurements.measured()
    assert len(measured) == MAX_MODELS + 1
    assert measured[OTHERS].failures == 50
    assert measured["m0"].ttft == 1.5  # the oldest samples are forgotten
    assert len(measurements.failovers()) == MAX_FAILOVERS


_ATTEMPTS = st.lists(st.tuples(st.sampled_from("abcx"), st.booleans()), max_size=4)
_REQUESTS = st.lists(st.tuples(_ATTEMPTS, st.none() | st.floats(101, 200), st.booleans()), max_size=20)


@given(_REQUESTS)
def test_what_is_counted_beforehand_adds_up_to_the_same(
    requests: list[tuple[list[tuple[str, bool]], float | None, bool]],
) -> None:
    """Whether each request is told, or plain ones as a number: for those who tell of many at once."""
    records = [
        record(*(failed(m, 101.0) if bad else answered(m) for m, bad in attempts), first_byte=at, stream=stream)
        for attempts, at, stream in requests
    ]
    one_by_one, together = Seen(), Seen()
    for each in records:
        one_by_one.finished(each)
    counting = Counting()
    for each in records:
        counting.take(each)
    together.measurements.add(counting.plain)
    for each in counting.others:
        together.finished(each)
    assert together.measurements.measured() == one_by_one.measurements.measured()
    assert together.measurements.failovers() == one_by_one.measurements.failovers()
    assert together.measurements.version == one_by_one.measurements.version
    assert all(len(each.attempts) > 1 or each.attempts[0].failure for each in counting.others)
    assert counting.seen == len(records)


def test_counting_beforehand_is_bounded() -> None:
    """Of each model the last times are kept, of models and of what has more to tell so many."""
    counting = Counting()
    for number in range(SAMPLES + 50):
        counting.take(record(answered("m"), first_byte=101.0 + (number >= 50)))
    assert counting.plain["m"] == (SAMPLES + 50, [1.5] * SAMPLES)
    for number in range(MAX_MODELS + 50):
        counting.take(record(answered(f"m{number}")))
    assert len(counting.plain) == MAX_MODELS + 1
    assert counting.plain[OTHERS] == (51, [])
    for _ in range(MAX_OTHERS + 50):
        counting.take(record(failed("m", 101.0)))
    assert len(counting.others) == MAX_OTHERS


@given(st.lists(st.lists(st.tuples(st.sampled_from("abcx"), st.booleans()), max_size=4), max_size=20))
def test_every_attempt_counts_once(requests: list[list[tuple[str, bool]]]) -> None:
    """Requests, failures and failovers add up to those of the records, whatever they are."""
    seen = Seen()
    for attempts in requests:
        seen.finished(record(*(failed(m, 101.0) if bad else answered(m) for m, bad in attempts)))
    measured = seen.measurements.measured().values()
    assert sum(each.requests for each in measured) == sum(map(len, requests))
    assert sum(each.failures for each in measured) == sum(bad for attempts in requests for _, bad in attempts)
    followed = [pair for attempts in requests for pair in zip_longest(attempts, attempts[1:])]
    moved_on = sum(bad for (model, bad), after in followed if after is None or after[0] != model)
    assert seen.measurements.failovers_seen == len(seen.handed_on) == moved_on
