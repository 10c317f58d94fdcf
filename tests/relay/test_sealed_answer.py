"""Sealed streams: the first event commits, [DONE] ends, and nothing ends them quietly in between."""

import json
from typing import Any

import pytest
from answer_case import DONE, FAR, STREAM, Case, Heard, Inside, begin, chunk_event, response
from hypothesis import given, settings
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from chutes_autopilot.interfaces import IAttemptObserver, IUpstreamAttempt
from chutes_autopilot.policy.failover import ConnectFailed, DeadlinePassed, Lost
from chutes_autopilot.relay.sealed_answer import DRAIN_SECONDS

HEAD = response(200, STREAM, (b"Set-Cookie", b"a=b"))
MARKER = "Top|Secret"
ERROR = b'data: {"error":{"message":"Top|Secret"}}\n\n'
FAILURES = [
    pytest.param([ERROR], "upstream_error", id="error event"),
    pytest.param([b"data: Top|Secret\n\n"], "e2ee_encryption_failed", id="no JSON"),
    pytest.param([b'data: {"choices":[{"delta":{"content":7}}]}\n\n'], "e2ee_encryption_failed", id="no text"),
    pytest.param([b"data: Top|Secret " + b"x" * 10_001], "e2ee_encryption_failed", id="too large"),
    pytest.param([b": Top|Secret\n\n", None], "upstream_stream_truncated", id="clean end without an end mark"),
    pytest.param([b"data: {}", None], "e2ee_encryption_failed", id="no chunk at the clean end"),
]


def test_the_doubles_and_the_filter_are_what_they_stand_for() -> None:
    """The interfaces hold on all sides."""
    case = Case()
    verifyObject(IUpstreamAttempt, Inside())
    verifyObject(IAttemptObserver, Heard())
    verifyObject(IUpstreamAttempt, case.answer)
    verifyObject(IAttemptObserver, case.answer)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_stream_is_sealed_event_by_event(version: int, at_once: bool) -> None:
    """Under a head of our own; the client opens every text, and its hash and id are remembered."""
    case = Case(version)
    if at_once:
        case.answer.answer(HEAD, chunk_event("Hel") + chunk_event("lo") + DONE)
    else:
        begin(case.answer, HEAD, chunk_event("Hel"), chunk_event("lo"), DONE)
        case.answer.end()
        assert case.heard.events == ["head", "body", "body", "body", "end"]
    assert case.heard.headers == {
        b"Content-Type": b"text/event-stream; charset=utf-8",
        b"Cache-Control": b"no-store",
        b"X-E2EE-Applied": b"true",
        b"X-E2EE-Version": b"%d" % version,
        b"X-E2EE-Alg": b"ed25519",
        b"X-E2EE-Algo": b"ed25519",
        b"X-E2EE-Uncovered": b"reject",
        b"X-Accel-Buffering": b"no",
    }
    assert case.opened() == "Hello"
    assert case.heard.bytes.endswith(DONE)
    assert case.heard.events[-1] == "end"
    assert case.answer.chat_id == "chatcmpl-1"
    case.nothing_follows()


def test_only_a_sealed_event_counts_as_the_first_byte() -> None:
    """Comments and an event without its end let the deadline pass: another candidate may be tried."""
    case = Case()
    case.answer.head(HEAD)
    case.answer.expect_body(5)
    for piece in (b": keep-alive\n\n", b"retry: 1\n\n", chunk_event("late")[:-1]):
        case.clock.advance(1.6)
        case.answer.body(piece)
    case.clock.advance(0.3)
    assert case.heard.failures == [DeadlinePassed("first_byte")]
    assert (case.heard.pieces, case.inside.asked) == ([], ["abort"])
    case.nothing_follows()


def test_the_first_sealed_event_is_in_time() -> None:
    """After it no deadline of the first byte is left."""
    case = Case()
    case.answer.head(HEAD)
    case.answer.expect_body(5)
    case.clock.advance(4.9)
    case.answer.body(chunk_event("in time"))
    case.nothing_follows()
    assert case.heard.events == ["head", "body"]


@pytest.mark.parametrize(("pieces", "code"), FAILURES)
def test_a_failure_before_the_first_event_is_a_failed_attempt(pieces: list[Any], code: str) -> None:
    """Another candidate may be tried, for nothing was written."""
    case = Case()
    case.answer.head(HEAD)
    case.answer.expect_body(5)
    feed(case, pieces)
    assert case.heard.refused == (502, code, True, code)
    assert (case.heard.pieces, case.inside.asked[0]) == ([], "abort")
    assert MARKER not in str(case.heard.failures)
    case.answer.body(chunk_event("too late"))
    case.nothing_follows()


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize(("pieces", "code"), FAILURES)
def test_a_failure_after_the_first_event_is_told_and_then_cut(pieces: list[Any], code: str, apart: bool) -> None:
    """What was sealed before goes out, then an error event of constant text, then no [DONE] but a failure."""
    case = Case()
    case.answer.head(HEAD)
    first = chunk_event("Hello")
    feed(case, [first, *pieces] if apart else [first + pieces[0], *pieces[1:]])
    assert case.heard.events[-1] == "failed"
    assert case.heard.refused[3] == code
    *_, told, rest = case.heard.bytes.split(b"\n\n")
    error = json.loads(told.removeprefix(b"data: "))["error"]
    assert (rest, error["type"], error["code"], error["param"]) == (b"", code, code, None)
    case.heard.pieces = [case.heard.bytes.removesuffix(told + b"\n\n")]
    assert case.opened() == "Hello"
    assert b"[DONE]" not in case.heard.bytes
    assert MARKER not in told.decode()
    case.answer.body(DONE)
    case.nothing_follows()


def feed(case: Case, pieces: list[Any]) -> None:
    """Body pieces; None is the clean end."""
    for piece in pieces:
        if piece is None:
            case.answer.end()
        else:
            case.answer.body(piece)


def test_an_upstream_that_dies_early_is_reported_as_it_died() -> None:
    """Before an event the failure is the attempt's own."""
    for state in (None, HEAD):
        for failure in (ConnectFailed(), Lost(), DeadlinePassed("header")):
            case = Case()
            if state is not None:
                case.answer.head(state)
            case.answer.failed(failure)
            assert case.heard.failures == [failure]
            case.nothing_follows()


def test_an_upstream_that_dies_later_truncates_the_stream() -> None:
    """The client is told, and cut."""
    case = Case()
    begin(case.answer, HEAD, chunk_event("Hello"))
    case.answer.failed(Lost())
    assert case.heard.refused[3] == "upstream_stream_truncated"
    assert b"upstream_stream_truncated" in case.heard.bytes


def test_the_end_mark_ends_the_answer_though_the_upstream_stays() -> None:
    """Its connection has a while to end by itself; what it says meanwhile is not heard."""
    case = Case()
    begin(case.answer, HEAD, chunk_event("Hello") + DONE + chunk_event(MARKER), chunk_event(MARKER), ERROR)
    assert case.heard.events == ["head", "body", "end"]
    assert case.heard.bytes.endswith(DONE)
    case.clock.advance(DRAIN_SECONDS - 0.1)
    assert case.inside.asked == []
    case.clock.advance(0.1)
    assert case.inside.asked == ["abort"]
    case.nothing_follows()


@pytest.mark.parametrize("lost", [True, False])
def test_an_upstream_that_ends_by_itself_is_not_aborted(lost: bool) -> None:
    """Its connection may be used again; and whatever comes behind [DONE] is no failure any more."""
    case = Case()
    begin(case.answer, HEAD, chunk_event("Hello") + DONE)
    if lost:
        case.answer.failed(Lost())
    else:
        case.answer.end()
    case.nothing_follows()
    assert (case.heard.events[-1], case.inside.asked) == ("end", [])


def test_pieces_are_gathered_for_a_while() -> None:
    """So that the lengths of single deltas do not show."""
    case = Case(coalesce=0.05)
    begin(case.answer, HEAD, chunk_event("Hel"))
    case.clock.advance(0.04)
    case.answer.body(chunk_event("lo"))
    assert case.heard.events == ["head"]
    case.clock.advance(0.01)
    assert case.heard.bytes.count(b"data: ") == 1
    case.answer.body(chunk_event(", world") + DONE)
    case.answer.end()  # which waits for nothing
    assert case.opened() == "Hello, world"
    assert case.heard.events == ["head", "body", "body", "end"]
    case.nothing_follows()


def test_what_was_gathered_is_not_lost_with_the_upstream() -> None:
    """It goes out before the client is told of the failure."""
    case = Case(coalesce=0.05)
    begin(case.answer, HEAD, chunk_event("Hello"))
    case.answer.failed(Lost())
    assert case.heard.events == ["head", "body", "body", "failed"]
    case.nothing_follows()


def test_no_more_is_gathered_than_one_event_may_have() -> None:
    """A fast upstream does not fill the memory meanwhile."""
    case = Case(coalesce=10)
    begin(case.answer, HEAD, *[chunk_event("x" * 900)] * 10)
    assert case.heard.events == ["head", "body"]


def test_no_more_is_gathered_than_can_be_sealed_in_one_go() -> None:
    """However large a single event may be: very many small ones would hold the reactor."""
    case = Case(coalesce=10, max_event_bytes=1024 * 1024)
    begin(case.answer, HEAD, *[chunk_event("x" * 900)] * 60)
    assert case.heard.events == ["head"]
    case.answer.body(chunk_event("x" * 900) * 15)
    assert case.heard.events == ["head", "body"]


@pytest.mark.parametrize("coalesce", [0, 0.05])
@pytest.mark.parametrize("pieces", [[], [b": comment\n\n"], [chunk_event("x")], [chunk_event("x") + DONE]])
def test_an_abort_leaves_nothing_behind(pieces: list[bytes], coalesce: float) -> None:
    """In whatever state: the attempt inside is aborted, and no deadline is left."""
    for begun in (True, False):
        case = Case(coalesce=coalesce)
        case.answer.start()
        if begun:
            case.answer.head(HEAD)
            case.answer.expect_body(5)
            feed(case, pieces)
        heard = list(case.heard.events)
        case.answer.abort()
        assert case.inside.asked == ["start", "abort"]
        case.nothing_follows()
        feed(case, [chunk_event("late"), None])
        assert case.heard.events == heard


def test_back_pressure_reaches_the_upstream() -> None:
    """The client's slowness pauses it."""
    case = Case()
    case.answer.head(HEAD)
    case.answer.pause()
    case.answer.resume()
    assert case.inside.asked == ["pause", "resume"]


marked = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *[each.encode() for each in (MARKER, "\u2028", "\x85", "\r", "\n", "\r\n", "\n\n", "data: ", ": ")],
                ERROR,
                DONE,
                chunk_event(MARKER),
                chunk_event("ok"),
                b'{"choices":[],"error":null,"x":"Top|Secret"}',
                b'data: {"choices":[{"delta":{"tool_calls":["Top|Secret"],"refusal":"Top|Secret"}}]}\n\n',
            ]
        ),
        st.binary(max_size=8),
    ),
    max_size=12,
).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(st.data(), marked, st.sampled_from([200, 200, 400, 503]), st.booleans(), st.sampled_from(["end", "lost", None]))
def test_no_byte_of_the_upstream_passes_unsealed(
    data: st.DataObject, sent: bytes, status: int, stream: bool, ending: str | None
) -> None:
    """Whatever it sends, split anywhere, with whatever status and end: the marker in it is never heard."""
    case = Case(coalesce=data.draw(st.sampled_from([0, 0.05])))
    case.answer.head(response(status, STREAM if stream else (b"Content-Type", MARKER.encode()), (b"X", b"Top|Secret")))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=5)))
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        if start < end:
            case.answer.body(sent[start:end])
    if ending == "end":
        case.answer.end()
    elif ending == "lost":
        case.answer.failed(Lost())
    case.clock.advance(FAR)
    headers = [header for head in case.heard.heads for header in (*head.headers, (b"", head.reason))]
    assert MARKER not in str([case.heard.bytes, headers, case.heard.failures])
    assert all(b"[DONE]" not in piece for piece in case.heard.pieces[:-1])
    if "failed" in case.heard.events:
        assert b"[DONE]" not in case.heard.bytes
