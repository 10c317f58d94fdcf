"""A second attempt beside a slow one: when it begins, who wins, and what becomes of the other."""

import attrs
import pytest
from resilient_bench import ALIAS, END, EVENTS, RESILIENT, ROLE, TEXT, Bench

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.failover import ConnectFailed
from chutes_autopilot.policy.health import ENOUGH_SAMPLES
from chutes_autopilot.policy.resilience import Resilience
from chutes_autopilot.wire.http1 import ResponseHead

ANSWER = ROLE + TEXT + END


def measured(rules: Resilience = RESILIENT, samples: int = ENOUGH_SAMPLES, **limits: int) -> Bench:
    """A bench whose models gave their first token after two seconds, and that has saved up a hedge."""
    bench = Bench(attrs.evolve(rules, hedge=True), **limits)
    for model in ("a/A", "b/B"):
        for _ in range(samples):
            bench.relay.health.succeeded(model, 2.0, bench.clock.seconds())
    for _ in range(20):
        bench.relay.hedges.earn()
    return bench


def test_a_second_model_is_asked_when_the_first_is_later_than_nearly_ever() -> None:
    """Comments and an empty delta are no event; whoever answers first wins, and the other is cancelled."""
    bench = measured()
    bench.ask()
    bench.last.observer.head(EVENTS)
    bench.last.observer.body(ROLE + b": wait\n\n")
    assert bench.wait(1.99) == ["a/A"]
    assert bench.wait(0.01) == ["a/A", "b/B"]
    slow, quick = bench.attempts
    quick.observer.head(EVENTS)
    slow.observer.body(b": wait\n\n")
    assert (slow.running, quick.running, bench.downstream.starts) == (True, True, 0)
    quick.observer.body(ANSWER)
    assert (slow.running, bench.downstream.body) == (False, ANSWER)
    quick.observer.end()
    assert b"selected: b/B\r\n" in bench.downstream.own
    assert b"attempts: 2\r\n" in bench.downstream.own
    (record,) = bench.records
    assert [(a.model, a.failure, a.status) for a in record.attempts] == [
        ("a/A", "hedge_lost", 200),
        ("b/B", None, 200),
    ]
    (kept,) = bench.relay.decisions.newest(1)
    assert (kept.decision().missing(), [a.followed for a in kept.decision().attempts]) == ((), ["outrun", "committed"])


def test_the_first_model_may_still_win() -> None:
    """Then it is the one selected, its health has the success, and the client stays with it."""
    bench = measured()
    bench.ask()
    bench.wait(2.0)
    slow, quick = bench.attempts
    slow.answers(200, ANSWER, *EVENTS.headers)
    assert (quick.running, bench.downstream.end) == (False, "finished")
    assert b"selected: a/A\r\n" in bench.downstream.own
    assert [a.model for a in bench.records[0].attempts] == ["b/B", "a/A"]
    (kept,) = bench.relay.decisions.newest(1)
    assert kept.decision().missing() == ()
    assert [a.started for a in kept.decision().attempts] == [2.0, 0.0]
    health = bench.relay.health.as_json(1002)
    assert [health[name]["successes"] for name in ("a/A", "b/B")] == [ENOUGH_SAMPLES + 1, ENOUGH_SAMPLES]
    bench.wait(60.0)
    bench.ask()
    assert bench.models == ["a/A"]


@pytest.mark.parametrize("earlier", [True, False])
def test_when_one_fails_the_other_goes_on_alone(earlier: bool) -> None:
    """Neither is tried again; the next comes when both have failed."""
    bench = measured()
    bench.ask()
    bench.wait(2.0)
    one, other = bench.attempts if earlier else reversed(bench.attempts)
    one.observer.failed(ConnectFailed())
    assert (bench.wait(5.0), other.running, bench.error) == (["a/A", "b/B"], True, None)
    other.answers(502, b"oh")
    assert bench.wait(0.0) == ["a/A", "b/B", "c/C"]
    bench.last.answers(200, ANSWER, *EVENTS.headers)
    assert bench.downstream.body == ANSWER
    assert {a.model: a.failure for a in bench.records[0].attempts} == {
        one.model: "upstream_connect_error",
        other.model: "upstream_server_error",
        "c/C": None,
    }


@pytest.mark.parametrize("earlier", [True, False])
def test_the_one_that_goes_on_may_have_begun_already(earlier: bool) -> None:
    """Also where its answer is of a kind that is not judged: its head is kept."""
    bench = measured()
    bench.ask()
    bench.wait(2.0)
    one, other = bench.attempts if earlier else reversed(bench.attempts)
    other.observer.head(ResponseHead(200, b"OK", ((b"Content-Type", b"text/plain"),)))
    one.observer.failed(ConnectFailed())
    other.observer.body(b"hello")
    other.observer.end()
    assert bench.downstream.head is not None
    assert (bench.downstream.head.headers, bench.downstream.body) == (((b"Content-Type", b"text/plain"),), b"hello")


def test_both_are_cancelled_when_the_client_leaves() -> None:
    """At once, and neither counts as outrun by the other."""
    bench = measured()
    exchange = bench.ask()
    bench.wait(2.0)
    exchange.client_gone()
    assert [attempt.running for attempt in bench.attempts] == [False, False]
    (kept,) = bench.relay.decisions.newest(1)
    decision = kept.decision()
    assert (decision.missing(), [(a.failure, a.followed) for a in decision.attempts]) == (
        (),
        [(None, "client_left")] * 2,
    )


def test_both_have_failed_when_the_time_for_the_request_is_over() -> None:
    """Neither has answered by then."""
    bench = measured()
    bench.ask()
    bench.wait(2.0)
    bench.wait(600.0)
    assert bench.error is not None
    assert bench.error.code == "deadline_exceeded"
    assert [attempt.running for attempt in bench.attempts] == [False, False]
    health = bench.relay.health.as_json(bench.clock.seconds())
    assert [health[name]["failures"] for name in ("a/A", "b/B")] == [1, 1]
    (kept,) = bench.relay.decisions.newest(1)
    decision = kept.decision()
    assert (decision.missing(), [(a.failure, a.followed) for a in decision.attempts]) == (
        (),
        [("deadline_exceeded", "gave_up")] * 2,
    )


@pytest.mark.parametrize("rules", [RESILIENT, Resilience()])
def test_a_ban_that_one_of_them_meets_is_a_ban(rules: Resilience) -> None:
    """It counts by its kind, and the client's next call is not passed on, though the other one answered."""
    bench = measured(rules)
    bench.ask()
    bench.wait(2.0)
    bench.last.answers(429, b"<html>nginx</html>", (b"Content-Type", b"text/html"))
    assert dict(bench.relay.metrics.rate_limits) == {"edge": 1}
    bench.attempts[0].answers(200, ANSWER, *EVENTS.headers)
    assert bench.downstream.body == ANSWER
    with pytest.raises(ApiError) as refusal:
        bench.ask()
    assert refusal.value.code == "upstream_ban"


def test_a_hedge_needs_samples_room_and_somebody_to_ask() -> None:
    """Nor is it for answers that do not stream, nor for one model by name, nor beyond the attempts allowed."""
    for bench, model, stream in (
        (measured(samples=ENOUGH_SAMPLES - 1), ALIAS, True),
        (measured(), ALIAS, False),
        (measured(), "a/A", True),
        (measured(max_attempts=1), ALIAS, True),
    ):
        exchange = bench.ask(model, stream=stream)
        assert bench.wait(5.0) == ["a/A"]
        exchange.client_gone()
    bench = measured()
    while bench.relay.hedges.spend():
        pass
    bench.ask()
    assert bench.wait(5.0) == ["a/A"]


def test_a_stream_that_has_begun_is_not_hedged() -> None:
    """Nor is one that has failed over by then."""
    bench = measured()
    bench.ask()
    bench.last.observer.head(EVENTS)
    bench.last.observer.body(TEXT)
    assert bench.wait(30.0) == ["a/A"]
    bench = measured()
    bench.ask()
    bench.last.answers(503)
    assert bench.wait(9.0) == ["a/A", "b/B"]


def test_losing_does_not_make_a_model_look_quick() -> None:
    """That its first token had not come by then counts, or hedges would make hedges more likely."""
    bench = measured(samples=ENOUGH_SAMPLES)
    bench.ask()
    bench.wait(2.0)
    bench.wait(7.0)
    bench.last.answers(200, ANSWER, *EVENTS.headers)
    assert bench.relay.health.as_json(1009)["a/A"]["first_token_ms"] == pytest.approx(2000 + 0.2 * 7000)


def test_losing_at_once_does_not_make_a_model_look_quick_either() -> None:
    """The one begun later had no time to answer."""
    bench = measured()
    bench.ask()
    bench.wait(2.0)
    bench.wait(0.05)
    bench.attempts[0].answers(200, ANSWER, *EVENTS.headers)
    assert bench.relay.health.as_json(1002)["b/B"]["first_token_ms"] == 2000


def test_two_silent_streams_give_way_to_the_next_candidate() -> None:
    """Their heads are no answer: the time for a first event goes by events, for each of the two."""
    bench = measured()
    bench.ask()
    bench.attempts[0].observer.head(EVENTS)
    bench.wait(2.0)
    bench.attempts[1].observer.head(EVENTS)
    assert bench.wait(9.9) == ["a/A", "b/B"]
    assert bench.wait(0.1) == ["a/A", "b/B", "c/C"]


def test_whoever_is_left_as_the_last_has_all_the_time() -> None:
    """Though it had begun while another candidate was left."""
    bench = measured(max_attempts=2)
    bench.ask()
    bench.attempts[0].observer.head(EVENTS)
    bench.wait(2.0)
    bench.attempts[1].observer.failed(ConnectFailed())
    bench.wait(119.0)
    bench.attempts[0].observer.body(ANSWER)
    assert bench.downstream.body == ANSWER


@pytest.mark.parametrize("answered", ["head", "text", "error"])
@pytest.mark.parametrize(("attempts", "given"), [(2, 120.0), (3, None)])
def test_whoever_is_left_as_the_last_has_all_the_time_for_a_head_too(
    attempts: int, given: float | None, answered: str
) -> None:
    """While another candidate is left its time stays short; an error that is being read has its own."""
    bench = measured(max_attempts=attempts)
    bench.ask()
    bench.wait(2.0)
    slow, quick = bench.attempts
    if answered == "text":
        slow.observer.head(ResponseHead(200, b"OK", ((b"Content-Type", b"text/plain"),)))
    elif answered == "error":
        slow.observer.head(ResponseHead(500, b"X", ((b"Content-Type", b"text/plain"),)))
    slow.expected.clear()
    quick.observer.failed(ConnectFailed())
    assert slow.expected == ([given] if given and answered != "error" else [])
