"""The pipe in memory: how answers end after the commit, and how long it waits for either side."""

import json
from typing import Any

import pytest
from pipe_sides import Client, Upstream
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from chutes_autopilot.interfaces import IAttemptObserver, IDownstream, IUpstreamAttempt
from chutes_autopilot.policy.failover import Lost
from chutes_autopilot.relay.pipe import Pipe
from chutes_autopilot.relay.watch import LOOKS, Patience
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.wire.http1 import ResponseHead

STREAM = (b"Content-Type", b"text/event-stream; charset=utf-8")
EVENT = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
FINISH = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
ERROR = b'data: {"error":{"message":"engine failed"}}\n\n'
DONE = b"data: [DONE]\n\n"
TAIL = b'{"error":"Unhandled exception during response stream: x"}'


class Case:
    """A pipe between the two, with 8 s of patience for the upstream and 16 s for the client."""

    def __init__(self, *headers: tuple[bytes, bytes]) -> None:
        self.clock = Clock()
        self.upstream, self.client = Upstream(), Client()
        self.ended: list[tuple[str, str | None]] = []
        head = ResponseHead(200, b"OK", headers)
        deadlines = Deadlines(self.clock)
        self.pipe = Pipe(self.upstream, self.client, head, self.clock, deadlines, Patience(8, 16), self._over)

    def _over(self, outcome: str, fault: str | None) -> None:
        self.pipe.stop()
        self.ended.append((outcome, fault))

    def advance(self, seconds: float) -> None:
        """Time passes in steps smaller than any look."""
        for _ in range(round(seconds * 4)):
            self.clock.advance(0.25)

    def error_behind(self, relayed: bytes) -> dict[str, Any]:
        """The error event that the client got behind these bytes, and nothing else."""
        assert self.client.written.startswith(relayed + b"\n\ndata: ")
        error: dict[str, Any] = json.loads(self.client.written[len(relayed) + 8 :])["error"]
        return error


def test_the_doubles_and_the_pipe_are_what_they_stand_for() -> None:
    """The interfaces hold on both sides."""
    case = Case()
    verifyObject(IUpstreamAttempt, case.upstream)
    verifyObject(IDownstream, case.client)
    verifyObject(IAttemptObserver, case.pipe)
    verifyObject(IPushProducer, case.pipe)


@pytest.mark.parametrize("pieces", [[EVENT, DONE], [EVENT, FINISH], [EVENT, FINISH + DONE], [EVENT, ERROR], [DONE]])
def test_a_stream_that_came_to_its_end_passes_unchanged(pieces: list[bytes]) -> None:
    """[DONE], a finish_reason or an error that the engine framed itself: nothing is added."""
    case = Case(STREAM)
    for piece in pieces:
        case.pipe.body(piece)
    case.pipe.end()
    assert (case.client.written, case.client.ends) == (b"".join(pieces), ["finish"])
    assert case.ended == [("complete", None)]
    assert case.pipe.bytes_relayed == len(case.client.written)


@pytest.mark.parametrize("last", [EVENT, EVENT[:20], TAIL, FINISH[:-1], FINISH + TAIL])
def test_a_stream_that_ends_too_early_gets_an_error_event_and_a_cut(last: bytes) -> None:
    """Neither finish_reason nor [DONE], or the platform's bare error: the end is not passed on as a clean one."""
    case = Case(STREAM)
    case.pipe.body(EVENT)
    case.pipe.body(last)
    case.pipe.end()
    error = case.error_behind(EVENT + last)
    assert (error["type"], error["param"], error["code"]) == ("server_error", None, "upstream_stream_truncated")
    assert case.client.ends == ["abort"]
    assert case.ended == [("cut", "upstream_stream_truncated")]
    assert case.pipe.bytes_relayed == len(case.client.written)


def test_a_stream_whose_upstream_dies_gets_an_error_event_also_behind_its_finish_reason() -> None:
    """The usage and the [DONE] are missing, so the answer is not whole."""
    case = Case(STREAM)
    case.pipe.body(EVENT + FINISH)
    case.pipe.failed(Lost())
    assert case.error_behind(EVENT + FINISH)["code"] == "upstream_stream_truncated"
    assert (case.client.ends, case.ended) == (["abort"], [("cut", "upstream_stream_truncated")])


@pytest.mark.parametrize("last", [DONE, ERROR])
def test_nothing_follows_an_event_that_ends_a_stream(last: bytes) -> None:
    """An upstream that dies behind [DONE] or its own error is cut, without another event."""
    case = Case(STREAM)
    case.pipe.body(EVENT + last)
    case.pipe.failed(Lost())
    assert (case.client.written, case.client.ends) == (EVENT + last, ["abort"])
    assert case.ended == [("cut", "upstream_stream_truncated")]


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Content-Type", b"application/json")],
        [STREAM, (b"Content-Encoding", b"gzip")],
    ],
)
def test_bodies_that_are_no_readable_stream_are_left_alone(headers: list[tuple[bytes, bytes]]) -> None:
    """Their clean end is passed on whatever they hold, and their death is a cut without an event."""
    case = Case(*headers)
    case.pipe.body(EVENT)
    case.pipe.end()
    assert (case.client.written, case.client.ends, case.ended) == (EVENT, ["finish"], [("complete", None)])
    case = Case(*headers)
    case.pipe.body(EVENT)
    case.pipe.failed(Lost())
    assert (case.client.written, case.client.ends, case.ended) == (EVENT, ["abort"], [("cut", None)])


@pytest.mark.parametrize("length", [b"%d", b"%d ,"])
def test_a_declared_length_is_never_reached_by_a_truncated_stream(length: bytes) -> None:
    """Nothing can be added to it, so its last byte is kept back: then the cut is seen."""
    case = Case(STREAM, (b"content-length", length % (2 * len(EVENT))))
    case.pipe.body(EVENT)
    assert case.client.written == EVENT
    case.pipe.body(EVENT)
    assert (case.client.written, case.client.ends) == ((EVENT + EVENT)[:-1], ["abort"])
    assert case.upstream.asked == ["abort"]
    assert case.pipe.bytes_relayed == len(case.client.written)


def test_a_declared_length_that_is_cut_or_reached_gets_no_event() -> None:
    """A whole stream ends cleanly; one that dies is only cut."""
    case = Case(STREAM, (b"Content-Length", b"%d" % len(DONE)))
    case.pipe.body(DONE)
    case.pipe.end()
    assert (case.client.written, case.client.ends) == (DONE, ["finish"])
    case = Case(STREAM, (b"Content-Length", b"1000"))
    case.pipe.body(EVENT)
    case.pipe.failed(Lost())
    assert (case.client.written, case.client.ends) == (EVENT, ["abort"])


def test_a_silent_stream_is_ended_with_an_error_event() -> None:
    """The patience is counted from the last data event, and passes but once."""
    case = Case(STREAM)
    for _ in range(3):
        case.advance(7)
        case.pipe.body(EVENT)
    case.advance(7.75)
    assert not case.ended
    case.advance(0.25 + 8 / LOOKS)
    assert case.error_behind(3 * EVENT)["code"] == "upstream_stream_truncated"
    assert (case.client.ends, case.upstream.asked) == (["abort"], ["abort"])
    assert case.ended == [("cut", "upstream_stream_idle")]
    case.advance(100)
    assert len(case.ended) == 1


def test_comments_keep_no_stream_alive() -> None:
    """A stream that sends only pings is idle; they are relayed all the same."""
    case = Case(STREAM)
    for _ in range(10):
        case.advance(1)
        if not case.ended:
            case.pipe.body(b": ping\n\n")
    assert case.client.written.startswith(b": ping\n\n: ping\n\n")
    assert case.ended == [("cut", "upstream_stream_idle")]


def test_a_body_that_is_no_stream_has_the_same_patience_for_its_bytes() -> None:
    """A JSON answer that stops in the middle is cut, without an event."""
    case = Case((b"Content-Type", b"application/json"))
    case.pipe.body(b"{")
    case.advance(7)
    case.pipe.body(b":")
    case.advance(7)
    assert not case.ended
    case.advance(3)
    assert (case.client.written, case.client.ends, case.ended) == (b"{:", ["abort"], [("cut", None)])


def test_the_upstreams_time_stands_still_while_the_client_is_slow() -> None:
    """Only the time in which it could send counts: before and after the pause."""
    case = Case(STREAM)
    case.pipe.body(EVENT)
    case.advance(6)
    case.pipe.pauseProducing()
    for waiting in range(100):  # the client takes a little all the time
        case.client.waiting = waiting
        case.advance(1)
    case.pipe.resumeProducing()
    assert case.upstream.asked == ["pause", "resume"]
    case.advance(1.75)
    assert not case.ended
    case.advance(2)
    assert case.ended == [("cut", "upstream_stream_idle")]


@pytest.mark.parametrize("paused", [False, True])
def test_a_stream_that_a_slow_client_held_up_says_nothing_of_its_models_pace(paused: bool) -> None:
    """Neither while it was paused nor in the burst behind that did it come as fast as the model is."""
    case = Case(STREAM)
    case.pipe.body(EVENT)
    case.advance(1)
    if paused:
        case.pipe.pauseProducing()
        case.advance(3)
        case.pipe.resumeProducing()
    case.pipe.body(FINISH + DONE)
    case.pipe.end()
    assert (case.pipe.pace() is None) == paused


def test_a_client_that_takes_nothing_is_reset() -> None:
    """Counted from the last byte it took; the upstream is dropped and the request counts as abandoned."""
    case = Case(STREAM)
    case.pipe.body(EVENT)
    case.client.waiting = 1000
    case.pipe.pauseProducing()
    case.advance(10)
    case.client.waiting = 999
    case.advance(15.75)
    assert not case.ended
    case.advance(0.25 + 2 * 8 / LOOKS)
    assert (case.client.ends, case.upstream.asked) == (["reset"], ["pause", "abort"])
    assert case.ended == [("client_gone", None)]
    assert case.client.written == EVENT


def test_the_end_waits_for_a_client_that_has_yet_to_take_the_rest() -> None:
    """A paused client gets the end when it has taken everything, or is reset when it takes nothing."""
    case = Case(STREAM)
    case.pipe.body(DONE)
    case.pipe.pauseProducing()
    case.pipe.end()
    assert not case.ended
    case.pipe.resumeProducing()
    assert (case.client.ends, case.ended) == (["finish"], [("complete", None)])

    case = Case(STREAM)
    case.pipe.body(DONE)
    case.pipe.pauseProducing()
    case.pipe.end()
    case.advance(18)
    assert (case.client.ends, case.ended) == (["reset"], [("client_gone", None)])


def test_a_pipe_that_was_stopped_does_nothing_more() -> None:
    """When the client has left, no time passes for anyone."""
    case = Case(STREAM)
    case.pipe.body(EVENT)
    case.pipe.stop()
    case.advance(100)
    assert (case.client.written, case.client.ends, case.upstream.asked) == (EVENT, [], [])
