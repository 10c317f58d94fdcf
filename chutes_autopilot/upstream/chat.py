"""One attempt: a chat request sent to one model, under its deadlines, until its response ends or breaks."""

from collections.abc import Callable
from math import inf

from zope.interface import implementer

from chutes_autopilot.interfaces import IAttemptObserver, IUpstreamAttempt
from chutes_autopilot.policy.failover import ConnectFailed, DeadlinePassed, Lost, Phase
from chutes_autopilot.unshown import Unshown
from chutes_autopilot.upstream.connection import UpstreamConnection
from chutes_autopilot.upstream.deadlines import Deadline, Deadlines
from chutes_autopilot.upstream.pool import Backend, ConnectionPool
from chutes_autopilot.wire.body import Piece
from chutes_autopilot.wire.http1 import ResponseHead, request_head

STALE_SECONDS = 0.5
"""How long after a request the news may take that its connection had been closed before: about one round trip."""


class UpstreamRequest(Unshown, eq=False):
    """What is sent: method and target as the client gave them, the filtered header lines, the body's bytes.

    :param body: in pieces, so that a large one is copied once, when it is sent.
    :param fresh: on a new connection, for it was lost on another.
    """

    method: bytes
    target: bytes
    fields: bytes
    body: tuple[Piece, ...]
    fresh: bool = False


_SENT = UpstreamRequest(b"", b"", b"", ())


@implementer(IUpstreamAttempt)
class ChatAttempt(Unshown, eq=False):
    """Sends one request and reports to its observer: one head, body pieces, then an end or one failure.

    The phase under way has a deadline: "connect" until the handshake is done (kept by the
    pool), "header" from the last request byte until the complete head, "first_byte" from the head where
    `expect_body` asked for it. While a large request is being sent, every slice the socket takes starts the
    header deadline anew; one of inf is none.

    A reused connection that breaks within STALE_SECONDS of the request, without having given a byte, was closed by
    the upstream while it was idle: the request is then sent once more, on a new connection. That is not another
    attempt. One that breaks later may have been at work on the request, which is then not sent twice (RFC 9112
    section 9.3.1).
    """

    _pool: ConnectionPool
    _backend: Backend
    _deadlines: Deadlines
    _request: UpstreamRequest
    _header_timeout: float
    observer: IAttemptObserver
    _connection: UpstreamConnection | None = None
    _cancel_connecting: Callable[[], None] | None = None
    _deadline: Deadline | None = None
    _reused: bool = False
    _repeated: bool = False
    _head_seen: bool = False
    _sent_at: float = 0.0

    def start(self) -> None:
        """Send the request, on an idle connection where there is one."""
        idle = None if self._request.fresh else self._pool.take_idle(self._backend)
        if idle is None:
            self._connect()
        else:
            self._reused = True
            self._send(idle)

    def expect_body(self, timeout: float) -> None:
        """As of IUpstreamAttempt."""
        if not self._head_seen:
            self._header_timeout = timeout
            if self._deadline is None:
                return  # it begins with what is sent
        self._disarm()
        late = self._first_byte_late if self._head_seen else self._header_late
        self._deadline = self._deadlines.start(timeout, late)

    def pause(self) -> None:
        """Back-pressure: read no more from the upstream until `resume`."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Go on reading from the upstream."""
        if self._connection is not None:
            self._connection.resume()

    def abort(self) -> None:
        """Drop the attempt in whatever phase it is; the observer hears nothing more. Harmless when it is over."""
        self._disarm()
        if self._cancel_connecting is not None:
            self._cancel_connecting()
            self._cancel_connecting = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def _connect(self) -> None:
        self._cancel_connecting = self._pool.connect(self._backend, self._send, self._not_connected)

    def _not_connected(self) -> None:
        self._cancel_connecting = None
        self.observer.failed(ConnectFailed(self._repeated))

    def _send(self, connection: UpstreamConnection) -> None:
        if self._cancel_connecting is not None:
            self._cancel_connecting = None
        self._connection = connection
        request, backend, body = self._request, self._backend, self._request.body
        target = backend.prefix + request.target
        head = request_head(request.method, target, backend.host_header, request.fields, sum(map(len, body)))
        self._sent_at = self._deadlines.now()
        connection.send(b"".join((head, *body)), self)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _header_late(self) -> None:
        self._out_of_time("header")

    def _first_byte_late(self) -> None:
        self._out_of_time("first_byte")

    def _out_of_time(self, phase: Phase) -> None:
        self._deadline = None
        self.abort()
        self.observer.failed(DeadlinePassed(phase))

    # what the connection reports

    def wrote(self) -> None:
        if not self._head_seen and self._header_timeout != inf:
            now = None
            if self._deadline is None:
                now = self._sent_at
            else:
                self._disarm()
            self._deadline = self._deadlines.start(self._header_timeout, self._header_late, now)

    def head(self, head: ResponseHead) -> None:
        self._head_seen = True
        self._request = _SENT  # it is not sent again, and the answer may take long
        self._disarm()
        self.observer.head(head)

    def body(self, data: bytes, framed: bytes) -> None:
        if self._deadline is not None:
            self._disarm()
        self.observer.body(data, framed)

    def answer(self, head: ResponseHead, data: bytes) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._connection = None
        self.observer.answer(head, data)
        self._disarm()  # the observer may have asked for a first byte that it had been given already

    def end(self) -> None:
        self._disarm()
        self._connection = None
        self.observer.end()

    def broken(self) -> None:
        self._disarm()
        connection, self._connection = self._connection, None
        stale = self._reused and self._deadlines.now() - self._sent_at <= STALE_SECONDS
        if stale and connection is not None and connection.silent:
            self._reused = False
            self._repeated = True
            self._connect()
            return
        self.observer.failed(Lost() if self._head_seen else ConnectFailed(self._repeated))
