"""Connections to upstreams in memory: deadlines, reuse and what never goes back to the pool."""

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.python.failure import Failure
from zope.interface import implementer

from chutes_autopilot.policy.failover import ConnectFailed, DeadlinePassed, Lost
from chutes_autopilot.upstream.chat import ChatAttempt, UpstreamRequest
from chutes_autopilot.upstream.connection import SEND_SLICE_BYTES
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.upstream.pool import Backend, ConnectionPool, backend_from_url
from chutes_autopilot.wire.http1 import ResponseHead

BACKEND = Backend(False, "up.example", 80)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


class Transport(StringTransportWithDisconnection):
    """Remembers what was done to it."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def abortConnection(self) -> None:
        if self.connected:
            self.connected = False
            self.protocol.connectionLost(Failure(ConnectionLost()))


@implementer(IStreamClientEndpoint)
class MemoryEndpoint:
    """Connects when told to."""

    def __init__(self) -> None:
        self.pending: list[tuple[Any, Deferred[Any]]] = []
        self.cancelled = 0
        self.transports: list[Transport] = []

    def connect(self, factory: Any) -> Deferred[Any]:
        def cancel(_: Deferred[Any]) -> None:
            self.cancelled += 1

        connecting: Deferred[Any] = Deferred(cancel)
        self.pending.append((factory, connecting))
        return connecting

    def accept(self) -> Transport:
        factory, connecting = self.pending.pop(0)
        protocol = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        transport = Transport()
        transport.protocol = protocol
        self.transports.append(transport)
        protocol.makeConnection(transport)
        connecting.callback(protocol)
        return transport


class Observer:
    """Keeps what an attempt reports."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def head(self, head: ResponseHead) -> None:
        self.events.append(head.status)

    def answer(self, head: ResponseHead, data: bytes) -> None:
        self.events += [head.status, data, "end"]

    def body(self, data: bytes, framed: bytes = b"") -> None:
        self.events.append(data)

    def end(self) -> None:
        self.events.append("end")

    def failed(self, failure: Any) -> None:
        self.events.append(failure)


class Bench:
    """A pool with a clock and an endpoint in memory."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock)
        self.endpoint = MemoryEndpoint()
        self.pool = ConnectionPool(self.clock, lambda backend: self.endpoint, 2.0, **limits)

    def attempt(self, body: bytes = b"{}") -> tuple[ChatAttempt, Observer]:
        observer = Observer()
        request = UpstreamRequest(b"POST", b"/v1/x", b"A: b\r\n", (body,))
        attempt = ChatAttempt(self.pool, BACKEND, self.deadlines, request, 10.0, observer)
        attempt.start()
        return attempt, observer

    def answered(self) -> Transport:
        """One request sent and answered on a new connection."""
        self.attempt()
        transport = self.endpoint.accept()
        transport.protocol.dataReceived(OK + b"ok")
        return transport


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_an_answer_is_reported_head_body_end(bench: Bench) -> None:
    """And the connection waits for the next request."""
    _, observer = bench.attempt()
    transport = bench.endpoint.accept()
    assert transport.value() == b"POST /v1/x HTTP/1.1\r\nHost: up.example\r\nA: b\r\nContent-Length: 2\r\n\r\n{}"
    transport.protocol.dataReceived(OK + b"ok")
    assert observer.events == [200, b"ok", "end"]
    assert bench.pool.idle_count == 1


def test_the_connect_deadline_gives_up_the_connection(bench: Bench) -> None:
    """Two seconds of silence from the network are a failed connection, and the try is called off."""
    _, observer = bench.attempt()
    bench.clock.advance(2.0)
    assert observer.events == [ConnectFailed()]
    assert bench.endpoint.cancelled == 1


def test_the_header_deadline_counts_from_the_last_request_byte(bench: Bench) -> None:
    """Connecting does not use it up."""
    _, observer = bench.attempt()
    bench.clock.advance(1.9)
    transport = bench.endpoint.accept()
    bench.clock.advance(9.9)
    assert observer.events == []
    bench.clock.advance(0.1)
    assert observer.events == [DeadlinePassed("header")]
    assert not transport.connected


def test_each_slice_of_a_large_request_starts_the_header_deadline_anew(bench: Bench) -> None:
    """A slow upload that moves on is not cut; one that stands still is."""
    _, observer = bench.attempt(b"x" * (SEND_SLICE_BYTES * 2 - 500))
    transport = bench.endpoint.accept()
    for _ in range(2):
        bench.clock.advance(9.0)
        transport.producer.resumeProducing()
    bench.clock.advance(9.0)
    assert observer.events == []
    assert transport.value().endswith(b"\r\n\r\n" + b"x" * (SEND_SLICE_BYTES * 2 - 500))
    bench.clock.advance(1.0)
    assert observer.events == [DeadlinePassed("header")]


@pytest.mark.parametrize("sent", [True, False])
def test_the_header_deadline_may_be_put_off(bench: Bench, sent: bool) -> None:
    """From now, or from the last request byte where that is still to come."""
    attempt, observer = bench.attempt()
    if sent:
        transport = bench.endpoint.accept()
        bench.clock.advance(4.5)
        attempt.expect_body(60.0)
    else:
        attempt.expect_body(60.0)
        transport = bench.endpoint.accept()
    bench.clock.advance(59.5)
    assert observer.events == []
    bench.clock.advance(0.5)
    assert observer.events == [DeadlinePassed("header")]
    assert not transport.connected


def test_the_first_byte_deadline_counts_from_the_head_and_ends_with_the_byte(bench: Bench) -> None:
    """Only where it was asked for; afterwards the body may take its time."""
    attempt, observer = bench.attempt()
    transport = bench.endpoint.accept()
    transport.protocol.dataReceived(OK)
    attempt.expect_body(5.0)
    bench.clock.advance(4.9)
    transport.protocol.dataReceived(b"o")
    bench.clock.advance(1000)
    assert observer.events == [200, b"o"]


def test_a_missing_first_byte_is_a_passed_deadline(bench: Bench) -> None:
    """And the connection is gone."""
    attempt, observer = bench.attempt()
    transport = bench.endpoint.accept()
    transport.protocol.dataReceived(OK)
    attempt.expect_body(5.0)
    bench.clock.advance(5.0)
    assert observer.events == [200, DeadlinePassed("first_byte")]
    assert not transport.connected


@pytest.mark.parametrize("reason", [ConnectionDone(), ConnectionLost()])
def test_a_connection_lost_is_reported_by_phase(bench: Bench, reason: Exception) -> None:
    """Before the head nothing was made of it; after the head the answer is broken."""
    for sent, failure in ((b"HTTP/1.1 200", ConnectFailed()), (OK + b"o", Lost())):
        _, observer = bench.attempt()
        bench.endpoint.accept().protocol.dataReceived(sent)
        transport = bench.endpoint.transports[-1]
        transport.connected = False
        transport.protocol.connectionLost(Failure(reason))
        assert observer.events[-1] == failure


def test_the_last_used_connection_is_used_next(bench: Bench) -> None:
    """Last in, first out: the rest can grow old and close."""
    bench.attempt()
    bench.attempt()
    first, second = bench.endpoint.accept(), bench.endpoint.accept()
    first.protocol.dataReceived(OK + b"ok")
    second.protocol.dataReceived(OK + b"ok")
    second.clear()
    bench.attempt()
    assert second.value().startswith(b"POST ")


def test_an_idle_connection_is_closed_in_time(bench: Bench) -> None:
    """Before the upstream would close it."""
    transport = bench.answered()
    bench.clock.advance(30.0)
    assert not transport.connected
    assert bench.pool.idle_count == 0


def test_idle_connections_are_bounded() -> None:
    """The oldest goes first."""
    bench = Bench(max_idle=1)
    bench.attempt()
    bench.attempt()
    first, second = bench.endpoint.accept(), bench.endpoint.accept()
    first.protocol.dataReceived(OK + b"ok")
    second.protocol.dataReceived(OK + b"ok")
    assert (first.connected, second.connected, bench.pool.idle_count) == (False, True, 1)


def test_bytes_nobody_asked_for_close_an_idle_connection(bench: Bench) -> None:
    """A second answer to one request must not meet the next request."""
    transport = bench.answered()
    gone = []
    transport.abortConnection = lambda: gone.append(bench.pool.idle_count)
    transport.protocol.dataReceived(OK)
    assert gone == [0]  # it was taken away before, for a transport is lost only after the turn
    assert bench.pool.take_idle(BACKEND) is None


def test_a_paused_connection_never_returns_to_the_pool(bench: Bench) -> None:
    """Its reading stands still: the next request on it would hang."""
    attempt, observer = bench.attempt()
    transport = bench.endpoint.accept()
    attempt.pause()
    transport.protocol.dataReceived(OK + b"ok")
    assert observer.events[-1] == "end"
    assert (transport.connected, bench.pool.idle_count) == (False, 0)


def test_an_answer_before_all_of_the_request_was_sent_uses_the_connection_up(bench: Bench) -> None:
    """The rest of the request would be read as the next one."""
    _, observer = bench.attempt(b"x" * (SEND_SLICE_BYTES * 2))
    transport = bench.endpoint.accept()
    transport.producer.resumeProducing()
    transport.protocol.dataReceived(OK + b"ok")
    assert observer.events == [200, b"ok", "end"]
    assert (transport.connected, bench.pool.idle_count) == (False, 0)


def test_a_reused_connection_without_a_byte_is_replaced_once(bench: Bench) -> None:
    """One re-send on a new connection; if that fails too, the attempt has failed."""
    stale = bench.answered()
    _, observer = bench.attempt()
    stale.abortConnection()
    fresh = bench.endpoint.accept()
    assert fresh.value().startswith(b"POST ")
    fresh.abortConnection()
    assert observer.events == [ConnectFailed(repeated=True)]
    assert not bench.endpoint.pending


def test_a_reused_connection_that_breaks_later_is_not_replaced(bench: Bench) -> None:
    """It was no stale one: the upstream may have worked on the request, and would be asked twice."""
    stale = bench.answered()
    _, observer = bench.attempt()
    bench.clock.advance(0.6)
    stale.abortConnection()
    assert observer.events == [ConnectFailed()]
    assert not bench.endpoint.pending


def test_a_reused_connection_that_gave_a_byte_is_not_replaced(bench: Bench) -> None:
    """The upstream may have begun to work on the request."""
    stale = bench.answered()
    _, observer = bench.attempt()
    stale.protocol.dataReceived(b"H")
    stale.abortConnection()
    assert observer.events == [ConnectFailed()]
    assert not bench.endpoint.pending


@pytest.mark.parametrize("phase", ["connecting", "header", "body"])
def test_an_aborted_attempt_says_nothing_and_leaves_nothing(bench: Bench, phase: str) -> None:
    """In every phase: no report, no connection, and no deadline that is told later."""
    attempt, observer = bench.attempt()
    if phase != "connecting":
        transport = bench.endpoint.accept()
        if phase == "body":
            transport.protocol.dataReceived(OK)
            attempt.expect_body(5)
    attempt.abort()
    attempt.abort()
    assert observer.events == ([200] if phase == "body" else [])
    bench.clock.advance(1000)
    assert observer.events == ([200] if phase == "body" else [])
    assert not any(transport.connected for transport in bench.endpoint.transports)


def test_closing_the_pool_closes_everything(bench: Bench) -> None:
    """Also what is in use; whoever uses it is told."""
    bench.answered()
    _, observer = bench.attempt()
    _, other = bench.attempt()
    bench.endpoint.accept()
    closed = bench.pool.close()
    assert closed.called
    assert (observer.events, other.events) == ([ConnectFailed(repeated=True)], [ConnectFailed()])


@pytest.mark.parametrize(
    ("url", "host", "prefix"),
    [
        ("https://llm.chutes.ai", b"llm.chutes.ai", b""),
        ("https://h:444/a/b/", b"h:444", b"/a/b"),
        ("http://[::1]:80", b"[::1]", b""),
        ("http://[::1]:8000", b"[::1]:8000", b""),
    ],
)
def test_a_backend_is_read_from_its_url(url: str, host: bytes, prefix: bytes) -> None:
    """Host header and path prefix."""
    backend = backend_from_url(url)
    assert (backend.host_header, backend.prefix) == (host, prefix)
