"""One client connection on the reference path: strict about what is a request, bounded in bytes.

twisted.web's HTTPChannel keeps what it is good at: bodies, pipelining, writing with back-pressure. Heads are read
here, because it accepts more than is safe behind a proxy, and goes on parsing after a refusal.
"""

import select
from socket import SO_ERROR, SOL_SOCKET
from typing import Any

from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    ISystemHandle,
    ITCPTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from twisted.web.http import Request
from zope.interface import implementer

from chutes_autopilot.errors import ApiError
from chutes_autopilot.upstream.direct import Write, best_write, queue
from chutes_autopilot.web.body_room import UNCOUNTED_BYTES, no_room
from chutes_autopilot.web.request import GatewayRequest, too_large
from chutes_autopilot.web.request_head import (
    FORBIDDEN,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    RequestLine,
    headers_too_large,
    malformed,
    read_header_lines,
    read_request_line,
    uri_too_long,
)
from chutes_autopilot.web.timed import Awaited, TimedChannel

__all__ = ["Awaited", "GatewayChannel"]

LINGER_SECONDS = 30.0
"""How long a client may go on sending after a refusal before its connection is reset."""

AHEAD_BYTES = 65536
"""How much a client may send ahead of the answer under way until reading stops."""

PROBE_SECONDS = 0.3
"""How long after the client's last byte, and then how often, it is found out whether it still reads."""

LOOK_SECONDS = 0.2
"""How often it is found out, of a client that is read no more, whether it has left."""

_SENDS_NO_MORE = getattr(select, "POLLRDHUP", 0)  # of Linux; elsewhere a reset alone is noticed


@implementer(IHalfCloseableProtocol)
class GatewayChannel(TimedChannel):
    """One client connection.

    ::

        READING ──a whole request──▶ BUSY ──answer over, nothing ahead──▶ READING
                                          ──answer over, more ahead──▶ TURN IS NEXT ──its turn──▶ READING

    What a client sends while it is not being READ is kept. Of that, one request is read in a turn of the reactor, so
    that no connection holds up the others, and none before the transport has room for its answer, so that no answers
    pile up for a client that asks and does not read. `_handlingRequest`, twisted.web's own word for BUSY, stays true
    until the turn has come: whoever looks in between finds a connection in use.
    """

    MAX_LENGTH = MAX_HEAD_BYTES  # of a line that has no end yet
    requestFactory = GatewayRequest
    persistent: bool
    _networkProducer: Any
    _line: RequestLine | None = None
    _skipped_blank = False
    _turn_is_next = False  # the answer is over, and more was sent ahead
    _turn: IDelayedCall | None = None  # None while it waits for the client to read
    _ahead_bytes = 0
    _ahead_refused = False  # there is no room for what was sent ahead: it is dropped, and answered in its turn
    _held = 0  # bytes counted of the body at hand
    _held_ahead = 0  # and of what was sent ahead
    _head_bytes = 0
    _header_lines: list[bytes]
    _probe: IDelayedCall | None = None
    _end_read = False
    _look: IDelayedCall | None = None
    direct_write: Write = staticmethod(queue)
    """What gives bytes to the transport, past twisted.web, in the quickest way there is for it."""

    def connectionMade(self) -> None:
        self._header_lines = []
        super().connectionMade()
        self.direct_write = best_write(self.transport)
        self.site.connections.opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        for call in (self._probe, self._turn, self._look):
            if call is not None:
                call.cancel()
        self._probe = self._turn = self._look = None
        self._client_left()
        super().connectionLost(reason)
        self.release()
        self._take_ahead()
        self.site.connections.closed(self)

    # what the client sends

    def dataReceived(self, data: bytes) -> None:
        if self._lingering:
            return
        super().dataReceived(data)
        if self._busyReceiving or self._lingering:
            return
        if self.line_mode and FORBIDDEN.search(self._buffer.removesuffix(b"\r")):
            # Such a line may never end: the client takes LF for a line end, or does not speak HTTP at all.
            self.refuse(malformed("its head holds a control character"))
        self.watch_client()

    def lineReceived(self, line: bytes) -> bool:
        """Collect a head; True stops the reading of lines."""
        self._head_bytes += len(line) + 2
        try:
            if self._line is None:
                self._first_line_received(line)
            elif line:
                self._header_lines.append(line)
                if self._head_bytes > MAX_HEAD_BYTES or len(self._header_lines) > MAX_HEADERS:
                    raise headers_too_large()
            else:
                self._head_complete(self._line)
        except ApiError as error:
            self.refuse(error)
        return self._lingering

    def lineLengthExceeded(self, line: bytes) -> None:
        self.refuse(headers_too_large() if self.requests else uri_too_long())

    def _first_line_received(self, line: bytes) -> None:
        if not line and not self._skipped_blank:
            self._skipped_blank = True  # some clients end a body with one (RFC 9112 section 2.2)
            return
        self._line = read_request_line(line)
        request = self.requestFactory(self, False)
        request.aim(self._line.method, self._line.target, self._line.version)
        self.requests.append(request)

    def _head_complete(self, line: RequestLine) -> None:
        request = self.requests[-1]
        head = read_header_lines(self._header_lines, line.version)
        self._line, self._header_lines, self._head_bytes, self._skipped_blank = None, [], 0, False
        for name, value in head.headers:
            request.requestHeaders.addRawHeader(name, value)
        if head.length is not None and head.length > self.limits.max_request_bytes:
            self.refuse_too_large(request)
            return
        self._command, self._path, self._version = line.method, line.target, line.version
        self.persistent = head.persistent
        if not head.persistent:
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        request.gotLength(head.length)
        if head.length == 0:
            self.allContentReceived()
            return
        if head.length is None:
            self._maybeChooseTransferDecoder(b"Transfer-Encoding", b"chunked")
        else:
            self._maybeChooseTransferDecoder(b"Content-Length", b"%d" % head.length)
        if head.wants_continue:
            self._send100Continue()
        self.setRawMode()

    def rawDataReceived(self, data: bytes) -> None:
        if self._lingering:
            return
        if self._handlingRequest:
            self.keep_ahead(data)
        else:
            super().rawDataReceived(data)

    def _finishRequestBody(self, data: bytes) -> None:
        """What twisted.web calls at the end of a body, with what came behind it."""
        if data:
            self.keep_ahead(data)
        self.allContentReceived()

    def keep_ahead(self, data: bytes) -> None:
        """Keep what a client sends ahead of the answer under way, to be read when its turn comes.

        Reading goes on meanwhile, as so a client that leaves is noticed; but of one that has sent more than AHEAD_BYTES
        no more is read until its turn comes, and the kernel is asked from time to time.
        """
        if self._lingering or self._ahead_refused:
            return
        kept: list[Any] = self._dataBuffer
        if not kept:
            kept.append(data)  # mostly what is left of one read: it need not be copied
        elif isinstance(kept[-1], bytearray):
            kept[-1] += data
        else:
            kept.append(bytearray(data))
        self._ahead_bytes += len(data)
        if self._ahead_bytes > UNCOUNTED_BYTES:
            if not self.site.connections.bodies.take(self._ahead_bytes - self._held_ahead):
                self._ahead_refused = True
                self._take_ahead()
                self._dataBuffer = [b""]  # a reminder that something was there
                return
            self._held_ahead = self._ahead_bytes
        if self._ahead_bytes > AHEAD_BYTES:
            self._networkProducer.pauseProducing()
            if self._look is None and ISystemHandle.providedBy(_innermost(self.transport)):
                self._look = self.callLater(LOOK_SECONDS, self._look_for_client)

    def hold(self, received: int) -> bool:
        """Count ``received`` bytes as held of the body at hand; False where all clients' bodies are too much by that.

        Called as they arrive, of bodies over UNCOUNTED_BYTES.
        """
        if not self.site.connections.bodies.take(received - self._held):
            return False
        self._held = received
        return True

    def release(self) -> None:
        """The body at hand is not held any more."""
        if self._held:
            held, self._held = self._held, 0
            self.site.connections.bodies.give_back(held)

    def await_turn(self) -> None:
        """The answer is over, and more was sent ahead: read on as soon as that may be."""
        self._turn_is_next = True
        self._turn = self.callLater(0, self._take_turn)

    def _take_turn(self) -> None:
        """Read one request of what was sent ahead; what is behind it is ahead again."""
        self._turn = None
        if self._lingering:
            return
        if self._waitingForTransport:
            self.resume_time()  # the client's, to read what waits for it; `resumeProducing` tells that it did
            return
        ahead = self._take_ahead()
        self._turn_is_next = self._handlingRequest = False
        self.setLineMode()
        if self._ahead_refused:
            self.refuse(no_room())
        else:
            self.dataReceived(ahead)
        if self.site.connections.idle_closed:
            self.close_if_idle()  # it was no request

    def _take_ahead(self) -> bytes:
        """What was sent ahead, which is then held here no longer; reading goes on."""
        if self._ahead_bytes > AHEAD_BYTES:
            self._networkProducer.resumeProducing()
            if self._look is not None:
                self._look.cancel()
                self._look = None
        ahead, self._dataBuffer = b"".join(self._dataBuffer), []
        held, self._held_ahead = self._held_ahead, 0
        self._ahead_bytes = 0
        self.site.connections.bodies.give_back(held)
        return ahead

    def resumeProducing(self) -> None:
        """The transport has nothing left to write."""
        super().resumeProducing()
        if self._turn_is_next and self._turn is None:
            self.await_turn()

    def awaited(self) -> Awaited | None:
        if self._turn_is_next and self._turn is None:
            return Awaited.NEXT_REQUEST  # it is here, but not asked before the client reads
        return super().awaited()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """What twisted.web calls for a body that is not chunked as it should be."""
        self.refuse(malformed("its body is not correctly chunked"))

    def readConnectionLost(self) -> None:
        """The client sends no more: some do so after a request and want its answer, others have left.

        Only writing tells them apart, as the kernel of a client that left answers with a reset. What is written
        is the answer itself. Where it does not begin in time it is a 100 Continue, which every HTTP/1.1 client has
        to skip (RFC 9110 section 15.2), and where it has begun and stands still the client is taken to have left.
        """
        self._end_read = True
        if self._lingering or not self._handlingRequest:
            self._client_left()
            self.loseConnection()
        else:
            self.persistent = self.persistent and bool(self._dataBuffer)
            self._begin_probing()

    def _begin_probing(self) -> None:
        if self._probe is None:
            self._probe = self.callLater(PROBE_SECONDS, self._probe_client, self.written())

    def _look_for_client(self) -> None:
        """Of a client that is read no more: find out whether it has left, or only sends no more than is unread."""
        self._look = None
        poll = select.poll()
        poll.register(_innermost(self.transport).getHandle(), _SENDS_NO_MORE)
        events = poll.poll(0)
        if not events:
            self._look = self.callLater(LOOK_SECONDS, self._look_for_client)
        elif self.isSecure() or events[0][1] & (select.POLLERR | select.POLLHUP):
            self.forceAbortClient()
        else:
            self._begin_probing()

    def _client_left(self) -> None:
        """Nothing more comes: tell of the request that was being received, once."""
        if not self._lingering and self._receives(self.awaited()):
            self.abandoned()

    def abandoned(self) -> None:
        """Tell of the request that was being received, if it is known what was asked."""
        if self.requests:
            request = self.requests[-1]
            self.site.abandoned(request.path, request.request_id, request.received_bytes)

    def _probe_client(self, written_before: int | None, first: bool = True) -> None:
        self._probe = None
        written = self.written()
        if self._lingering or not self._handlingRequest:
            if self._end_read:  # else what is still unread may be a request; its end is read behind it
                self.loseConnection()
            return
        silent = first and written == written_before and not self._turn_is_next
        was_reset = self.transport.getHandle().getsockopt(SOL_SOCKET, SO_ERROR) != 0
        if was_reset or (silent and not self._may_continue(written)):
            self.forceAbortClient()
            return
        if silent:
            self._send100Continue()
        self._probe = self.callLater(PROBE_SECONDS, self._probe_client, None, False)

    def _may_continue(self, written: int | None) -> bool:
        """Whether 100 Continue may be sent now."""
        return written == 0 and self.requests[0].clientproto == b"HTTP/1.1"

    def writeConnectionLost(self) -> None:
        """What `linger` asked for."""

    # what is answered

    @property
    def on_last_answer(self) -> bool:
        """Whether the service is stopping, so that no request may follow the one being answered."""
        draining: bool = self.site.connections.draining
        return draining

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
        """While the service stops, tell the client that this is the connection's last answer."""
        if self.on_last_answer:
            headers.setRawHeaders(b"Connection", [b"close"])
            self.persistent = False
        super().writeHeaders(version, code, reason, headers)

    def written(self) -> int | None:
        """How far the answer under way has been written, 0: not begun; None where that is not known."""
        if not self.requests:
            return None
        written: int = self.requests[0].startedWriting + self.requests[0].sentLength
        return written

    def requestDone(self, request: Request) -> None:
        self.release()
        if self.persistent and (self._dataBuffer or self._buffer):  # the latter is about to be kept
            self.requests.remove(request)
            self.await_turn()
            return
        if self.site.connections.idle_closed:
            # Not before: where the answer began without a word of it, the next request may be on its way already.
            self.persistent = False
        super().requestDone(request)
        if self._waitingForTransport and not self._lingering:
            self._networkProducer.pauseProducing()  # nor is the next one read; twisted.web did not, being busy
        self.watch_client()  # twisted.web began its time while the body's reader was still in place

    def refuse(self, error: ApiError) -> None:
        """Answer a request before all of it was received; nothing that follows is read as a request."""
        if self._lingering:
            return
        request = self.incoming()
        self.site.refused(request, error)
        request.refuse_unread(error)
        self.linger()

    def refuse_too_large(self, request: GatewayRequest) -> None:
        """Refuse a body for its size, unless its sender is nobody who may send one at all."""
        self._refuse_body(request, too_large(self.limits.max_request_bytes))

    def refuse_for_room(self, request: GatewayRequest) -> None:
        """The same for the size of all that is held."""
        self._refuse_body(request, no_room())

    def _refuse_body(self, request: GatewayRequest, error: ApiError) -> None:
        try:
            self.site.admit(request)
            raise error
        except ApiError as why:
            self.refuse(why)

    def incoming(self) -> GatewayRequest:
        """The request that is being received, as far as it is known."""
        if not self.requests:
            self.requests.append(self.requestFactory(self, False))
            self.requests[0].clientproto = b"HTTP/1.1"
        request: GatewayRequest = self.requests[-1]
        return request

    # how the connection ends

    def close_soon(self, seconds: float) -> None:
        if self._ahead_bytes > AHEAD_BYTES:
            self.linger(seconds)  # bytes of it wait in the kernel, unread
        else:
            self._take_ahead()
            super().close_soon(seconds)

    def reset_soon(self, seconds: float) -> None:
        self._take_ahead()
        super().reset_soon(seconds)

    def linger(self, seconds: float = LINGER_SECONDS) -> None:
        """Discard what the client still sends until it closes, at most for ``seconds``.

        Closing at once would reset the connection under the unread bytes and take the answer with it
        (RFC 9112 section 9.6).
        """
        self._lingering = True
        self.release()
        self._take_ahead()
        self.watch_client()
        self._buffer = b""
        if self._abortingCall is None:
            self._abortingCall = self.callLater(seconds, self.forceAbortClient)
        self._networkProducer.unregisterProducer()
        transport: Any = self.transport
        resume = self._networkProducer.resumeProducing
        if self.isSecure():
            resume()
            transport.loseConnection()  # says goodbye; the connection closes when the client did too
        elif any(kind.providedBy(transport) for kind in (ITCPTransport, IHalfCloseableDescriptor)):
            transport.loseWriteConnection()
            resume()


def _innermost(transport: Any) -> Any:
    """The transport that has the socket, under TLS and whatever else is wrapped around it."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport
