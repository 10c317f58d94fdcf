"""Connections opened ahead: when, how many, and that a quiet service ends without any."""

from typing import Any

import pytest
from test_connection_pool import MemoryEndpoint, Transport
from twisted.internet.task import Clock

from chutes_autopilot.upstream.connection import UpstreamConnection
from chutes_autopilot.upstream.pool import Backend, ConnectionPool
from chutes_autopilot.upstream.prewarming import AHEAD, PAUSE_SECONDS, PrewarmingService
from chutes_autopilot.wire.http1 import ResponseHead

BACKEND = Backend(True, "up.example", 443)
IDLE = 30.0


class Ignoring:
    """A receiver that wants nothing of a response."""

    def wrote(self) -> None:
        pass

    def head(self, head: ResponseHead) -> None:
        pass

    def body(self, data: bytes, framed: bytes) -> None:
        pass

    def answer(self, head: ResponseHead, data: bytes) -> None:
        pass

    def end(self) -> None:
        pass

    def broken(self) -> None:
        pass


class Warm:
    """A pool with one prewarmed backend."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.endpoint = MemoryEndpoint()
        self.pool = ConnectionPool(self.clock, lambda backend: self.endpoint, 2.0, IDLE, **limits)
        self.pool.prewarm(BACKEND)

    @property
    def wanted(self) -> int:
        """How many connections are being opened."""
        return len(self.endpoint.pending)

    def accept(self) -> list[Transport]:
        """Accept whatever is being opened."""
        transports = []
        while self.endpoint.pending:
            transports.append(self.endpoint.accept())
            transports[-1].protocol.handshakeCompleted()
        return transports

    def request(self) -> None:
        """One request and its answer, on an idle connection where there is one, else on a new one."""
        connection = self.pool.take_idle(BACKEND)
        if connection is not None:
            self._exchange(connection)
        else:
            self.pool.connect(BACKEND, self._exchange, lambda: None)

    def _exchange(self, connection: UpstreamConnection) -> None:
        connection.send(b"GET / HTTP/1.1\r\n\r\n", Ignoring())
        connection.dataReceived(b"HTTP/1.1 204 No\r\n\r\n")

    def refuse(self) -> None:
        """Fail whatever is being opened."""
        pending, self.endpoint.pending = self.endpoint.pending, []
        for _, connecting in pending:
            connecting.errback(OSError())


@pytest.fixture
def warm() -> Warm:
    return Warm()


def test_the_first_request_finds_a_connection(warm: Warm) -> None:
    """A few are opened at the start, and no more for asking twice."""
    warm.pool.prewarm(BACKEND)
    assert warm.wanted == AHEAD
    warm.accept()
    assert warm.pool.idle_count == AHEAD
    warm.request()
    assert (warm.wanted, warm.pool.idle_count) == (0, AHEAD)


def test_without_tls_nothing_is_opened_ahead() -> None:
    """There is no handshake to be saved: a simulated or a local upstream is left alone."""
    endpoint = MemoryEndpoint()
    pool = ConnectionPool(Clock(), lambda backend: endpoint, 2.0)
    pool.prewarm(Backend(False, "127.0.0.1", 80))
    assert not endpoint.pending


def test_a_service_that_nobody_uses_ends_without_connections(warm: Warm) -> None:
    """What was opened ahead and not used is not replaced."""
    transports = warm.accept()
    warm.clock.advance(IDLE)
    assert not any(transport.connected for transport in transports)
    assert (warm.wanted, warm.clock.getDelayedCalls()) == (0, [])


def test_a_used_connection_that_grows_too_old_is_replaced_once(warm: Warm) -> None:
    """So requests up to twice the idle time apart find one; then there is quiet."""
    warm.accept()
    warm.request()
    warm.clock.advance(IDLE)
    assert warm.wanted == AHEAD
    warm.accept()
    warm.clock.advance(IDLE)
    assert (warm.wanted, warm.pool.idle_count, warm.clock.getDelayedCalls()) == (0, 0, [])


def test_a_request_that_finds_none_has_more_opened(warm: Warm) -> None:
    """Beside its own, as many as are wanted ahead, however many such requests there are."""
    warm.accept()
    warm.clock.advance(IDLE)
    warm.request()
    assert warm.wanted == 1 + AHEAD
    warm.request()
    assert warm.wanted == 2 + AHEAD
    warm.accept()
    assert warm.pool.idle_count == 2 + AHEAD


def test_an_upstream_that_refuses_is_left_alone_for_a_while(warm: Warm) -> None:
    """Requests connect for themselves meanwhile."""
    warm.refuse()
    warm.request()
    assert warm.wanted == 1
    warm.refuse()
    warm.clock.advance(PAUSE_SECONDS)
    assert warm.wanted == 0
    warm.request()
    assert warm.wanted == 1 + AHEAD


def test_an_upstream_that_closes_unused_connections_is_left_alone_too(warm: Warm) -> None:
    """It does not want them; one that closes a used connection had its reasons."""
    for transport in warm.accept():
        transport.abortConnection()
    warm.request()
    assert warm.wanted == 1
    (used,) = warm.accept()
    warm.clock.advance(PAUSE_SECONDS - 1)
    used.abortConnection()
    warm.clock.advance(1)
    warm.request()
    assert warm.wanted == 1 + AHEAD


def test_nobody_waits_for_room_that_was_taken_ahead() -> None:
    """Where the pool is full nothing is opened ahead."""
    warm = Warm(max_open=1)
    assert warm.wanted == 1
    (kept,) = warm.accept()
    assert kept.connected
    warm.clock.advance(PAUSE_SECONDS)
    warm.request()
    assert warm.wanted == 1


def test_the_service_begins_when_all_has_started_and_not_after_its_stop() -> None:
    """Listening and answering come first."""
    clock, begun = Clock(), []
    service = PrewarmingService(clock, lambda: begun.append("begun"))
    service.startService()
    assert not begun
    clock.advance(0)
    assert begun == ["begun"]
    service.startService()
    service.stopService()
    clock.advance(0)
    assert begun == ["begun"]
