"""A request under the resilient rules, from its first attempt to its end: what the client gets, and what is left."""

from collections.abc import Mapping
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from resilient_bench import ALIAS, END, EVENTS, JSON, PROMPT, RESILIENT, ROLE, TEXT, Bench, event

from chutes_autopilot.policy.failover import ConnectFailed, DeadlinePassed, Lost
from chutes_autopilot.policy.resilience import Resilience
from chutes_autopilot.relay.endpoint import MESSAGES
from chutes_autopilot.wire.first_event import MAX_BYTES, MAX_EVENTS
from chutes_autopilot.wire.http1 import ResponseHead

CAPACITY = b'{"detail":"Infrastructure is at maximum capacity, try again later"}'
TOO_LONG = b'{"object":"error","message":"This model\'s maximum context length is 40000 tokens."}'
FAILED = event(error={"message": "engine died", "code": 500})
HELD = 0.5
"""Seconds of a wait of this bench where nobody says how long."""


def test_a_stream_is_held_until_its_first_event_and_then_relayed_byte_for_byte() -> None:
    """Comments, an empty delta and the pieces they came in make no difference."""
    bench = Bench()
    bench.ask()
    bench.last.observer.head(EVENTS)
    parts = (b": hello\n\n", ROLE[:20], ROLE[20:] + TEXT[:5])
    for part in parts:
        bench.last.observer.body(part)
        assert bench.downstream.starts == 0
    bench.last.observer.body(TEXT[5:])
    assert bench.downstream.body == b"".join(parts) + TEXT[5:]
    bench.last.observer.body(END)
    bench.last.observer.end()
    assert (bench.downstream.end, bench.downstream.body) == ("finished", b"".join(parts) + TEXT[5:] + END)
    assert bench.records[0].first_byte is not None


@pytest.mark.parametrize("rest", [b": hello\n\n", ROLE, ROLE + b"data: [DONE]\n\n", b""])
@pytest.mark.parametrize("whole", [True, False])
def test_a_stream_without_an_answer_fails_over(rest: bytes, whole: bool) -> None:
    """Nothing of it is sent, whether it comes whole or in pieces; the next model answers."""
    bench = Bench()
    bench.ask()
    if whole and rest:
        bench.last.answers(200, rest, *EVENTS.headers)
    else:
        bench.last.observer.head(EVENTS)
        if rest:
            bench.last.observer.body(rest)
        if bench.models == ["a/A"]:
            bench.last.observer.end()
    assert bench.models == ["a/A", "b/B"]
    bench.last.answers(200, ROLE + TEXT + END, *EVENTS.headers)
    assert bench.downstream.body == ROLE + TEXT + END


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (EVENTS, ROLE + FAILED),
        (EVENTS, b': hi\n\n{"error":{"message":"broken"}}\n'),
        (ResponseHead(200, b"OK", JSON), b'{"error":{"message":"engine died"}}'),
    ],
)
def test_an_error_inside_a_200_is_tried_again_and_then_fails_over(head: ResponseHead, body: bytes) -> None:
    """Like the same error with a status of its own."""
    bench = Bench()
    bench.ask(stream=head is EVENTS)
    for models in (["a/A"] * 2, ["a/A"] * 3):
        bench.last.answers(200, body, *head.headers)
        assert bench.wait(HELD) == models
    bench.last.answers(200, body, *head.headers)
    assert bench.models == ["a/A"] * 3 + ["b/B"]
    assert bench.relay.health.as_json(1000)["a/A"]["failures"] == 1


def test_the_last_error_inside_a_200_goes_to_the_client_as_it_is() -> None:
    """Where nobody is left, and where it is final."""
    bench = Bench(attrs.evolve(RESILIENT, same_model_retries=0), max_attempts=1)
    bench.ask()
    bench.last.answers(200, ROLE + FAILED + b"data: [DONE]\n\n", *EVENTS.headers)
    assert (bench.downstream.body, bench.downstream.end) == (ROLE + FAILED + b"data: [DONE]\n\n", "finished")
    bench = Bench()
    bench.ask()
    filtered = event(error={"message": "content_filter", "code": 400})
    bench.last.answers(200, filtered, *EVENTS.headers)
    assert (bench.models, bench.downstream.body) == (["a/A"], filtered)


@pytest.mark.parametrize("piece", [ROLE, b": " + b"x" * (MAX_BYTES // 8) + b"\n\n"])
def test_the_look_ahead_is_bounded(piece: bytes) -> None:
    """A stream that goes on without an answer is believed after so many events or bytes."""
    bench = Bench()
    bench.ask()
    bench.last.observer.head(EVENTS)
    sent = 0
    while not bench.downstream.starts:
        bench.last.observer.body(piece)
        sent += 1
        assert sent <= MAX_EVENTS
    assert bench.downstream.body == piece * sent
    assert bench.models == ["a/A"]


def test_comments_do_not_keep_a_silent_model_alive() -> None:
    """The deadline is counted on events; the model is not asked again, and the last one has more time."""
    bench = Bench(attrs.evolve(RESILIENT, first_event_timeout=7.0))
    bench.ask()
    for expected in (["a/A", "b/B"], ["a/A", "b/B", "c/C"], ["a/A", "b/B", "c/C"]):
        slow = bench.last
        slow.observer.head(EVENTS)
        slow.observer.body(ROLE)
        for _ in range(7):
            if slow.running and slow is bench.last:
                slow.observer.body(b": still here\n\n")
                bench.wait(1.0)
        assert bench.models == expected
    assert [attempt.running for attempt in bench.attempts] == [False, False, True]
    bench.wait(120.0)
    assert bench.error is not None
    assert bench.error.code == "upstream_first_body_byte_timeout"


def test_a_lost_connection_is_tried_again_after_a_moment() -> None:
    """Before the head and after it; the wait shows in record, decision, log line and metrics as what it is."""
    bench = Bench()
    bench.ask()
    bench.last.observer.failed(ConnectFailed())
    assert bench.wait(HELD - 0.01) == ["a/A"]
    assert bench.wait(0.01) == ["a/A"] * 2
    bench.last.observer.head(EVENTS)
    bench.last.observer.body(ROLE)
    bench.last.observer.failed(Lost())
    assert bench.wait(HELD) == ["a/A"] * 3
    bench.last.answers(200, TEXT + END, *EVENTS.headers)
    assert (bench.downstream.body, b"attempts: 3\r\n" in bench.downstream.own) == (TEXT + END, True)
    (record,) = bench.records
    assert (
        "attempts=a/A=upstream_connect_error+waited_ms:500,a/A=upstream_first_body_byte_error+waited_ms:500,a/A=200"
        in str(record)
    )
    (kept,) = bench.relay.decisions.newest(1)
    decision = kept.decision()
    assert (decision.missing(), decision.profile) == ((), "resilient")
    assert [(a.followed, a.waited) for a in decision.attempts] == [("again", 0.5), ("again", 0.5), ("committed", None)]
    assert [a.started for a in decision.attempts] == [0.0, 0.5, 1.0]
    metrics = bench.metrics.exposition().decode()
    assert 'chutes_autopilot_retry_waits_total{reason="upstream_connect_error"} 1.0' in metrics
    assert 'chutes_autopilot_retry_wait_seconds_total{reason="upstream_connect_error"} 0.5' in metrics


def test_a_client_keeps_the_model_that_answered_in_the_end() -> None:
    """Tries of the same model are no failover."""
    bench = Bench()
    bench.ask("b/B,a/A")
    bench.last.observer.failed(ConnectFailed())
    bench.wait(HELD)
    bench.last.answers(200, TEXT + END, *EVENTS.headers)
    bench.ask(ALIAS)
    assert bench.models == ["b/B"]
    bench.last.observer.failed(ConnectFailed())
    bench.wait(HELD)
    bench.last.answers(200, TEXT + END, *EVENTS.headers)
    bench.wait(31.0)
    bench.ask(ALIAS)
    assert bench.models == ["b/B"]


@pytest.mark.parametrize(("status", "body"), [(500, b"oh"), (502, b"<html>"), (504, b""), (524, b"x" * 20_000)])
@pytest.mark.parametrize("whole", [True, False])
def test_a_server_error_passes_in_the_end_as_it_came(status: int, body: bytes, whole: bool) -> None:
    """After three tries of each model; an SDK is told that this was the retry."""
    bench = Bench(max_attempts=4)
    bench.ask()
    for _ in range(4):
        attempt = bench.last
        if whole:
            attempt.answers(status, body)
        else:
            attempt.observer.head(ResponseHead(status, b"X", ()))
            for start in range(0, len(body), 7000):
                if attempt is bench.last:
                    attempt.observer.body(body[start : start + 7000])
            if attempt is bench.last and attempt.observer is not None:
                attempt.observer.end()
        bench.wait(HELD)
    assert bench.models == ["a/A"] * 3 + ["b/B"]
    assert bench.downstream.head is not None
    assert (bench.downstream.head.status, bench.downstream.body) == (status, body)
    assert b"x-should-retry: false\r\n" in bench.downstream.own


def test_a_500_for_want_of_an_instance_goes_on_at_once() -> None:
    """Its body says so, also where that comes late: until then it is waited for, but not for long."""
    bench = Bench()
    bench.ask()
    bench.last.answers(500, b'{"detail":"No infrastructure available to serve request"}')
    assert bench.models == ["a/A", "b/B"]
    bench.last.observer.head(ResponseHead(500, b"X", ()))
    bench.last.observer.body(b'{"detail":"exhausted all avail')
    assert bench.wait(4.9) == ["a/A", "b/B"]
    bench.wait(0.1)
    assert bench.wait(HELD) == ["a/A", "b/B", "b/B"]


@pytest.mark.parametrize("model", [ALIAS, "a/A,b/B,c/C"])
def test_a_request_too_long_goes_to_a_larger_context(model: str) -> None:
    """What is left out of a list is named; the 400 itself passes where nothing larger is left."""
    bench = Bench()
    bench.ask(model)
    bench.last.answers(400, TOO_LONG)
    assert bench.models == ["a/A", "c/C"]
    bench.last.answers(400, TOO_LONG)
    assert bench.downstream.head is not None
    assert (bench.downstream.head.status, bench.downstream.body) == (400, TOO_LONG)
    assert (b"x-chutes-autopilot-skipped: b/B=context\r\n" in bench.downstream.own) == ("," in model)
    assert bench.records[0].attempts[0].failure == "upstream_context_length"
    (kept,) = bench.relay.decisions.newest(1)
    reasons = kept.decision().reasons
    assert reasons is not None
    assert [(c.model, c.verdict, c.reason) for c in reasons.candidates] == [
        ("a/A", "planned", None),
        ("b/B", "incapable", "context"),
        ("c/C", "planned", None),
    ]
    assert "a/A" not in bench.relay.health.as_json(1000)


def test_a_larger_context_may_be_behind_the_last_attempt_allowed() -> None:
    """What is asked then is sent, counted and remembered like every other candidate."""
    bench = Bench(max_attempts=2)
    exchange = bench.ask(f"{ALIAS}:THINKING")
    bench.last.answers(400, TOO_LONG)
    assert bench.models == ["a/A:THINKING", "c/C:THINKING"]
    bench.last.answers(200, ROLE + TEXT + END, *EVENTS.headers)
    assert bench.relay.health.as_json(1000)["c/C"]["successes"] == 1
    assert exchange.key is not None
    assert getattr(bench.relay.sticky.get(exchange.key), "model", None) == "c/C"
    (kept,) = bench.relay.decisions.newest(1)
    decision = kept.decision()
    assert (decision.missing(), decision.selected) == ((), "c/C")
    assert decision.reasons is not None
    assert [c.verdict for c in decision.reasons.candidates] == ["planned", "incapable", "spare"]


def test_a_model_that_is_too_small_does_not_go_on_with_a_stream_either() -> None:
    """It would only refuse, and use up attempts."""
    bench = Bench(continue_streams=True)
    bench.ask(messages=PROMPT)
    bench.last.answers(400, TOO_LONG)
    bench.last.observer.head(EVENTS)
    bench.last.observer.body(TEXT)
    bench.last.observer.failed(Lost())
    assert (bench.models, bench.downstream.end) == (["a/A", "c/C"], "cut")


def test_a_client_whose_model_was_too_small_comes_back_to_the_preferred_order() -> None:
    """It counts as a failover, although the preferred model was left out and not asked."""
    bench = Bench()
    bench.ask("b/B")
    bench.last.answers(200, TEXT + END, *EVENTS.headers)
    bench.ask("b/B,a/A")
    bench.last.answers(200, TEXT + END, *EVENTS.headers)
    bench.ask("a/A,b/B,c/C")
    assert bench.models == ["b/B"]
    bench.last.answers(400, TOO_LONG.replace(b"40000", b"90000"))
    bench.last.answers(200, TEXT + END, *EVENTS.headers)
    assert bench.models == ["b/B", "c/C"]
    bench.wait(31.0)
    bench.ask("a/A,b/B,c/C")
    assert bench.models == ["a/A"]


@pytest.mark.parametrize(("retry_after", "seconds"), [(None, HELD), (b"0", HELD), (b"3", 3.0)])
def test_a_full_model_is_asked_once_more_and_then_the_next(retry_after: bytes | None, seconds: float) -> None:
    """Each 429 is counted by its kind, also those that are not relayed."""
    bench = Bench()
    bench.ask()
    headers = JSON if retry_after is None else (*JSON, (b"Retry-After", retry_after))
    for models in (["a/A"] * 2, ["a/A", "a/A", "b/B"]):
        bench.last.answers(429, CAPACITY, *headers)
        if len(models) == 2:
            assert bench.wait(seconds - 0.01) == ["a/A"]
            bench.wait(0.01)
        assert bench.models == models
    bench.last.answers(200, TEXT + END, *EVENTS.headers)
    assert bench.metrics.rate_limits == {"capacity": 2}
    assert [attempt.detail for attempt in bench.records[0].attempts] == ["capacity", "capacity", None]
    assert "a/A" not in bench.relay.health.as_json(1000)  # it says nothing of the model's health


def test_one_model_by_name_is_waited_for_too() -> None:
    """And its last 429 passes unchanged, left to the SDK; of the alias it would be what remains of all."""
    for model, shielded in (("a/A", False), (ALIAS, True)):
        bench = Bench(max_attempts=2)
        bench.ask(model)
        bench.last.answers(429, CAPACITY)
        assert bench.wait(HELD) == ["a/A"] * 2
        bench.last.answers(429, CAPACITY)
        assert (bench.downstream.body, bench.downstream.end) == (CAPACITY, "finished")
        assert (b"x-should-retry: false" in bench.downstream.own) == shielded
        assert bench.metrics.rate_limits == {"capacity": 2}


@pytest.mark.parametrize(
    ("body", "headers", "kind"),
    [
        (b"<html>429 nginx</html>", ((b"Content-Type", b"text/html"),), "edge"),
        (b'{"detail":"Free models limit reached for today"}', (*JSON, (b"Retry-After", b"1")), "account"),
        (b'{"detail":"no"}', JSON, "unknown"),
        (b'{"detail":"no"}', (*JSON, (b"Retry-After", b"6")), "unknown"),
    ],
)
def test_other_429s_pass_at_once(body: bytes, headers: Any, kind: str) -> None:
    """A ban page also shuts the client out, as ever."""
    bench = Bench()
    bench.ask()
    bench.last.answers(429, body, *headers)
    assert bench.downstream.head is not None
    assert (bench.models, bench.downstream.head.headers, bench.downstream.body) == (["a/A"], headers, body)
    assert bench.metrics.rate_limits == {kind: 1}
    assert bool(bench.relay.fuse.bans) == (kind == "edge")


@pytest.mark.parametrize("pieces", [True, False])
def test_our_advice_on_retries_takes_the_place_of_the_upstreams(pieces: bool) -> None:
    """Two that contradict each other would leave it to the SDK; alone the upstream's passes."""
    headers = ((b"X-Should-Retry", b"true"), (b"X-Other", b"1"))
    for model, left in ((ALIAS, headers[1:]), ("a/A", headers)):
        bench = Bench(None, max_attempts=1)
        bench.ask(model)
        if pieces:
            bench.last.observer.head(ResponseHead(503, b"X", headers))
        else:
            bench.last.answers(503, b"full", *headers)
        assert bench.downstream.head is not None
        assert bench.downstream.head.headers == left
        assert (b"x-should-retry: false" in bench.downstream.own) == (model == ALIAS)


@pytest.mark.parametrize("said", [(), ((b"Retry-After", b"10"),), ((b"retry-after", b"Wed, 21 Oct 2026 07:28 GMT"),)])
@pytest.mark.parametrize("pieces", [True, False])
def test_each_ban_page_says_how_long_the_client_is_refused(pieces: bool, said: tuple[tuple[bytes, bytes], ...]) -> None:
    """Doubled with each, whether the page comes at once or bit by bit, and in the place of what it says itself."""
    bench, waits = Bench(None), []
    html = ((b"Content-Type", b"text/html"),)
    for _ in range(3):
        bench.ask()
        page = ResponseHead(429, b"Too Many Requests", (*html, *said))
        if pieces:
            bench.last.observer.head(page)
            bench.last.observer.body(b"<html>")
            bench.last.observer.end()
        else:
            bench.last.observer.answer(page, b"<html>")
        (line,) = [line for line in bench.downstream.own.split(b"\r\n") if line.startswith(b"Retry-After")]
        waits.append(int(line.partition(b": ")[2]))
        assert bench.downstream.head is not None
        assert bench.downstream.head.headers == html
        bench.wait(waits[-1])
    assert waits == [60, 120, 240]
    assert bench.metrics.rate_limits == {"edge": 3}


def test_the_wait_told_is_not_that_of_models_that_cannot_be_asked() -> None:
    """What was left out of a list as it had an obstacle does not cool down: the end of the others' cooldown counts."""

    class Door:
        def obstacle(self, model: str) -> str | None:
            return "no_instances" if model == "a/A" else None

        def at_hand(self, model: str) -> bool:
            return True

        def passed_over(self, models: Mapping[str, str]) -> None:
            pass

    bench = Bench(None)
    bench.relay.reach, bench.relay.feed_interval = Door(), 3600.0
    bench.fails("b/B")
    bench.ask("a/A,b/B")
    bench.last.answers(503)
    assert bench.models == ["b/B"]
    (line,) = [line for line in bench.downstream.own.split(b"\r\n") if line.startswith(b"Retry-After")]
    assert 10 <= int(line.partition(b": ")[2]) <= 13


def test_a_client_that_leaves_ends_a_wait() -> None:
    """Nothing is tried any more, nothing waits, and what had been waited is recorded."""
    bench = Bench()
    exchange = bench.ask()
    bench.last.answers(429, CAPACITY, *JSON, (b"Retry-After", b"4"))
    bench.wait(1.5)
    exchange.client_gone()
    assert bench.wait(600.0) == ["a/A"]
    assert bench.records[0].attempts[0].waited == 1.5
    (kept,) = bench.relay.decisions.newest(1)
    assert (kept.decision().missing(), kept.decision().attempts[0].followed) == ((), "client_left")


def test_a_stop_ends_a_wait() -> None:
    """The client is told to ask again, elsewhere, and no model is said to have failed."""
    bench = Bench()
    bench.ask()
    bench.last.observer.failed(ConnectFailed())
    bench.clock.advance(0.25)
    bench.relay.stop()
    assert bench.error is not None
    assert (bench.error.code, dict(bench.error.headers)[b"Retry-After"]) == ("draining", b"1")
    assert b"x-should-retry" not in dict(bench.error.headers)
    assert [(r.outcome, r.error, r.attempts[0].waited) for r in bench.records] == [("refused", "draining", 0.25)]
    assert bench.wait(600) == ["a/A"]
    assert not bench.relay.waiting


def test_whoever_waits_no_more_is_not_known_to_a_stop() -> None:
    """Neither when the next attempt began, nor when the client has left."""
    bench = Bench()
    exchange = bench.ask()
    bench.last.observer.failed(ConnectFailed())
    assert len(bench.relay.waiting) == 1
    bench.clock.advance(0.5)
    assert not bench.relay.waiting
    bench.last.observer.failed(ConnectFailed())
    assert len(bench.relay.waiting) == 1
    exchange.client_gone()
    assert not bench.relay.waiting


def test_a_wait_that_the_request_has_no_time_for_is_not_begun() -> None:
    """The next model is asked at once, and the last one's 429 is passed on, where a wait would end with a 504."""
    bench = Bench(max_attempts=3)
    bench.ask()
    bench.wait(598.0)
    bench.last.answers(429, CAPACITY, *JSON, (b"Retry-After", b"2"))
    assert bench.models == ["a/A", "b/B"]
    bench.last.answers(429, CAPACITY, *JSON, (b"Retry-After", b"1"))
    assert bench.wait(1.0) == ["a/A", "b/B", "b/B"]
    bench.last.answers(429, CAPACITY)
    assert (bench.error, bench.downstream.body) == (None, CAPACITY)
    bench.ask("a/A")
    bench.wait(599.5)
    bench.last.answers(429, CAPACITY)
    assert (bench.models, bench.downstream.body) == (["a/A"], CAPACITY)


def test_the_request_deadline_ends_what_a_wait_has_led_to() -> None:
    """All tries and waits count."""
    bench = Bench()
    bench.ask("a/A")
    bench.wait(598.0)
    bench.last.answers(429, CAPACITY, *JSON, (b"Retry-After", b"1"))
    assert bench.wait(2.0) == ["a/A"] * 2
    assert bench.error is not None
    assert bench.error.code == "deadline_exceeded"


def test_what_cannot_be_read_is_relayed_as_in_the_standard_profile() -> None:
    """Streams with a coding, other types, answers without a body."""
    for head, body in (
        (ResponseHead(200, b"OK", (*EVENTS.headers, (b"Content-Encoding", b"gzip"))), b"\x1f\x8b"),
        (ResponseHead(200, b"OK", ((b"Content-Type", b"text/plain"),)), b"hello"),
        (ResponseHead(200, b"OK", JSON), b"{not json"),
    ):
        bench = Bench()
        bench.ask()
        bench.last.observer.head(head)
        bench.last.observer.body(body)
        bench.last.observer.end()
        assert (bench.downstream.body, bench.downstream.end) == (body, "finished")
    bench = Bench()
    bench.ask()
    bench.last.observer.head(ResponseHead(204, b"No Content", ()))
    bench.last.observer.end()
    assert bench.downstream.head is not None
    assert (bench.downstream.head.status, bench.downstream.end) == (204, "finished")


def test_events_of_other_endpoints_are_not_judged() -> None:
    """Their streams go to the client from the first byte; their errors are judged all the same."""
    bench = Bench()
    bench.relay.endpoint = MESSAGES
    bench.ask("a/A")
    bench.last.answers(502, b"oh")
    bench.wait(HELD)
    bench.last.observer.head(EVENTS)
    bench.last.observer.body(b"event: message_start\n")
    assert (len(bench.attempts), bench.downstream.body) == (2, b"event: message_start\n")


def test_a_whole_answer_is_held_no_longer_than_it_may() -> None:
    """An answer that is larger than what is held is relayed on from there."""
    bench = Bench()
    bench.ask(stream=False)
    bench.last.observer.head(ResponseHead(200, b"OK", JSON))
    piece = b'"' + b"x" * 100_000
    for sent in range(1, 5):
        bench.last.observer.body(piece)
        assert bench.downstream.starts == (sent >= 3)
    bench.last.observer.end()
    assert bench.downstream.body == piece * 4


PLAYS = [
    lambda a: a.observer.failed(ConnectFailed()),
    lambda a: a.observer.failed(Lost()),
    lambda a: a.observer.failed(DeadlinePassed("header")),
    lambda a: a.observer.head(EVENTS),
    lambda a: a.observer.head(ResponseHead(200, b"OK", JSON)),
    lambda a: a.observer.head(ResponseHead(429, b"X", JSON)),
    lambda a: a.observer.head(ResponseHead(200, b"OK", ((b"Content-Type", b"text/plain"),))),
    lambda a: a.observer.head(ResponseHead(404, b"X", JSON)),
    lambda a: a.observer.body(ROLE),
    lambda a: a.observer.body(TEXT),
    lambda a: a.observer.body(FAILED),
    lambda a: a.observer.body(CAPACITY),
    lambda a: a.observer.end(),
    lambda a: a.answers(200, ROLE + TEXT + END, *EVENTS.headers),
    lambda a: a.answers(500, b"oh"),
    lambda a: a.answers(502, b"oh"),
    lambda a: a.answers(400, TOO_LONG),
    lambda a: a.answers(429, CAPACITY),
]


@given(
    plays=st.lists(st.tuples(st.sampled_from(PLAYS), st.floats(0, 20)), max_size=40),
    max_attempts=st.integers(1, 6),
    leaves=st.integers(0, 60),
    model=st.sampled_from([ALIAS, "a/A", "c/C,a/A"]),
    rules=st.sampled_from([None, RESILIENT, attrs.evolve(RESILIENT, hedge=True)]),
)
def test_whatever_happens_there_is_one_answer(
    plays: list[tuple[Any, float]], max_attempts: int, leaves: int, model: str, rules: Resilience | None
) -> None:
    """Never two commits, never an attempt after one, the budget holds, nothing runs on, the record is complete.

    In the standard profile as in the resilient one.
    """
    bench = Bench(rules, max_attempts=max_attempts)
    for _ in range(60):
        bench.relay.hedges.earn()
        bench.relay.health.succeeded("a/A", 1.0, bench.clock.seconds())
        bench.relay.health.succeeded("c/C", 1.0, bench.clock.seconds())
    exchange = bench.ask(model)
    began: list[Any] = [None] * 6
    for place, (play, seconds) in enumerate(plays):
        if place == leaves:
            exchange.client_gone()
        running = [attempt for attempt in bench.attempts if attempt.running]
        if running:
            attempt = running[place % len(running)]
            number = bench.attempts.index(attempt)
            before = len(bench.attempts)
            committed = bench.downstream.starts
            play_in_order(play, attempt, began, number)
            if committed:
                assert len(bench.attempts) == before
        bench.wait(seconds)
        assert sum(attempt.running for attempt in bench.attempts) <= 2
        assert not bench.downstream.starts or sum(attempt.running for attempt in bench.attempts) <= 1
    exchange.client_gone()
    assert len(bench.attempts) <= max_attempts
    assert bench.downstream.starts <= 1
    assert len(bench.records) == 1
    assert bench.records[0].error != "internal_error"
    made = len(bench.attempts)
    bench.wait(10_000.0)
    assert len(bench.attempts) == made
    (kept,) = bench.relay.decisions.newest(1)
    assert kept.decision().missing() == ()
    assert all(not attempt.running for attempt in bench.attempts) or bench.downstream.starts


def play_in_order(play: Any, attempt: Any, began: list[Any], number: int) -> None:
    """An attempt reports one head, then its body, then one end."""
    place = PLAYS.index(play)
    headed = began[number] is not None
    heads, whole = range(3, 8), range(13, 18)
    if (headed and place in (0, 2, *heads, *whole)) or (not headed and place in (1, *range(8, 13))):
        return
    if place in heads:
        began[number] = place
    if place in (0, 1, 2, 12):
        attempt.running = False
    play(attempt)
