"""One sealed request on the wire: connected, sent once, its answer told as it comes."""

from collections.abc import Callable
from math import inf
from typing import Protocol

from attrs import frozen

from chutes_autopilot.policy.failover import ConnectFailed, DeadlinePassed, Lost, Phase
from chutes_autopilot.upstream.chat import STALE_SECONDS
from chutes_autopilot.upstream.chute_e2ee.pools import Session
from chutes_autopilot.upstream.connection import UpstreamConnection
from chutes_autopilot.upstream.deadlines import Deadline, Deadlines
from chutes_autopilot.upstream.pool import Backend, ConnectionPool
from chutes_autopilot.wire.http1 import ResponseHead, request_head

TARGET = b"/e2e/invoke"


@frozen
class Stale:
    """The connection had been closed before the request came; unlike a plain one, a sealed one is not sent twice."""


class InvocationObserver(Protocol):
    """Whoever is told of the answer."""

    def head(self, head: ResponseHead) -> None:
        """The complete final head arrived."""

    def body(self, data: bytes) -> None:
        """Body bytes arrived, transfer coding removed."""

    def end(self) -> None:
        """The response is complete."""

    def failed(self, failure: ConnectFailed | Stale | DeadlinePassed | Lost) -> None:
        """It broke: Lost after the head, else one of the others before it or, for a deadline, at any time."""


def invoke_fields(session: Session, api_key: str, *, stream: bool) -> bytes:
    """The header lines of the request; nothing of the client's request is among them."""
    return (
        b"Authorization: Bearer %b\r\nContent-Type: application/octet-stream\r\n"
        b"X-Chute-Id: %b\r\nX-Instance-Id: %b\r\nX-E2E-Nonce: %b\r\nX-E2E-Stream: %b\r\n"
        b"X-E2E-Path: /v1/chat/completions\r\nAccept-Encoding: identity\r\n"
    ) % (
        api_key.encode(),
        session.chute_id.encode(),
        session.instance.instance_id.encode(),
        session.nonce.encode(),
        b"true" if stream else b"false",
    )


class Invocation:
    """Sends and reads. The header deadline begins with the last byte sent and lasts until `in_time` ends it.

    :param fields: what `invoke_fields` made.
    :param header_timeout: seconds, inf: none; of few different values, for deadlines has a queue for each.
    """

    def __init__(
        self,
        connections: ConnectionPool,
        backend: Backend,
        deadlines: Deadlines,
        fields: bytes,
        blob: bytes,
        header_timeout: float,
        observer: InvocationObserver,
    ) -> None:
        self._connections = connections
        self._backend = backend
        self._deadlines = deadlines
        head = request_head(b"POST", backend.prefix + TARGET, backend.host_header, fields, len(blob))
        self._request = head + blob
        self._header_timeout = header_timeout
        self._observer: InvocationObserver | None = observer
        self._connection: UpstreamConnection | None = None
        self._cancel_connecting: Callable[[], None] | None = None
        self._deadline: Deadline | None = None
        self._reused = False
        self._head_seen = False
        self.sent_at = deadlines.now()
        """When the last bytes were sent."""

    def start(self, *, fresh: bool) -> None:
        """Send the request, on an idle connection where there is one.

        :param fresh: only on a new one.
        """
        idle = None if fresh else self._connections.take_idle(self._backend)
        if idle is None:
            self._cancel_connecting = self._connections.connect(self._backend, self._send, self._not_connected)
        else:
            self._reused = True
            self._send(idle)

    def pause(self) -> None:
        """Read no more until `resume`."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Go on reading."""
        if self._connection is not None:
            self._connection.resume()

    def in_time(self) -> None:
        """The deadline under way is met."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def expect(self, seconds: float) -> None:
        """A new deadline, of the phase ``first_byte``, in the place of the one under way."""
        self.in_time()
        self._deadline = self._deadlines.start(seconds, lambda: self._late("first_byte"))

    def leave(self, seconds: float) -> None:
        """The observer has all it wanted: the connection may end the answer in this time, to be used again."""
        self._observer = None
        self.in_time()
        if self._connection is not None:
            self._connection.resume()
            self._deadline = self._deadlines.start(seconds, self.abort)

    def abort(self) -> None:
        """Drop it in whatever phase it is; the observer hears nothing more. Harmless when it is over."""
        self._observer = None
        self.in_time()
        if self._cancel_connecting is not None:
            self._cancel_connecting()
            self._cancel_connecting = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def _not_connected(self) -> None:
        self._cancel_connecting = None
        self._fail(ConnectFailed())

    def _send(self, connection: UpstreamConnection) -> None:
        self._cancel_connecting = None
        self._connection = connection
        request, self._request = self._request, b""
        self.sent_at = self._deadlines.now()
        connection.send(request, self)

    def _fail(self, failure: ConnectFailed | Stale | DeadlinePassed | Lost) -> None:
        observer = self._observer
        self.abort()
        if observer is not None:
            observer.failed(failure)

    def _late(self, phase: Phase) -> None:
        self._deadline = None
        self._fail(DeadlinePassed(phase))

    # what the connection reports

    def wrote(self) -> None:
        if not self._head_seen and self._observer is not None:
            self.in_time()
            self.sent_at = self._deadlines.now()
            if self._header_timeout != inf:
                self._deadline = self._deadlines.start(self._header_timeout, lambda: self._late("header"))

    def head(self, head: ResponseHead) -> None:
        self._head_seen = True
        if self._observer is not None:
            self._observer.head(head)

    def body(self, data: bytes, framed: bytes = b"") -> None:
        if self._observer is not None:
            self._observer.body(data)

    def answer(self, head: ResponseHead, data: bytes) -> None:
        self._connection = None
        self.head(head)
        self.body(data)
        self.end()

    def end(self) -> None:
        self._connection = None
        observer = self._observer
        if observer is None:
            self.in_time()
        else:
            observer.end()

    def broken(self) -> None:
        self._connection = None
        stale = self._reused and self._deadlines.now() - self.sent_at <= STALE_SECONDS
        if self._head_seen:
            self._fail(Lost())
        else:
            self._fail(Stale() if stale else ConnectFailed())
