"""One connection to an upstream, carrying one request and its response at a time."""

from math import nan
from typing import Any
from typing import Protocol as TypingProtocol

from twisted.internet.interfaces import IHandshakeListener, IPullProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from chutes_autopilot.upstream.direct import Write, best_write, is_readable, queue, sends_to, unsent_bytes
from chutes_autopilot.wire.http1 import (
    REUSABLE,
    Body,
    End,
    HeadShape,
    Invalid,
    ResponseHead,
    ResponseParser,
    shape_of,
    whole_response,
)

MAX_SHAPES = 8
"""How often a connection takes note of what heads of answers look like; a server that changes its mind is not worth it.
"""

SURE_BYTES = 4096
"""A request up to this size goes out whole: there is room for it in the socket of an idle connection."""

SEND_SLICE_BYTES = 262144
"""A request up to this size is one write; a larger one is sent in slices as the socket takes them."""


class _Unknown:
    """In the place of a transport that does not say what it has yet to send."""

    dataBuffer = b""
    offset = 0
    _tempDataLen = 0


class ResponseReceiver(TypingProtocol):
    """Whoever waits for the response of the request that a connection carries."""

    def wrote(self) -> None:
        """Request bytes were handed to the socket; the last call comes with the last byte."""

    def head(self, head: ResponseHead) -> None:
        """The complete final head arrived."""

    def body(self, data: bytes, framed: bytes) -> None:
        """Body bytes arrived, transfer coding removed; ``framed``: the same in whole chunks, where they came so."""

    def answer(self, head: ResponseHead, data: bytes) -> None:
        """The whole response arrived at once: `head`, `body` and `end` in one."""

    def end(self) -> None:
        """The response is complete; the connection is no longer the receiver's."""

    def broken(self) -> None:
        """The connection was lost, or its bytes were invalid, before the response was complete."""


class ConnectionHolder(TypingProtocol):
    """Whoever answers for a connection: first the opening that makes it, then its pool."""

    def made(self, connection: "UpstreamConnection") -> None:
        """The transport is connected; `lost` follows sooner or later."""

    def opened(self, connection: "UpstreamConnection") -> None:
        """It is usable, after the handshake where there is one; called once."""

    def idle(self, connection: "UpstreamConnection") -> None:
        """A response ended cleanly in a way that allows another request."""

    def spoiled(self, connection: "UpstreamConnection") -> None:
        """It is about to be closed, for it said what nobody had asked for; `lost` follows."""

    def lost(self, connection: "UpstreamConnection") -> None:
        """The connection is gone, whoever closed it; called once."""


@implementer(IHandshakeListener)
class UpstreamConnection(Protocol):
    """The client side of HTTP/1.1 over one TCP or TLS transport.

    Back-pressure: `pause` stops reading from the socket, so the upstream's own send buffer fills and it slows
    down. A paused connection is never given back to the pool: the next request on it would hang.

    Whose answer. What had come before a byte of a request reached the socket is no answer to it; mostly it is more than
    one to the request before. So the connection is spoiled, and whoever waits is told that it broke while `silent`.
    What is read in the turn of the reactor in which the request was sent had come before, and where it is sent between
    two turns the socket is asked. A large request may be
    answered before all of it was sent; then the upstream may not read the rest, and the connection carries no other.

    :param secure: whether a TLS handshake comes before the connection is usable.
    :ivar holder: told what becomes of it; may be replaced.
    """

    transport: Any

    def __init__(self, holder: ConnectionHolder, *, secure: bool) -> None:
        self.holder = holder
        self._secure = secure
        self._write: Write = queue
        self._tcp: Any = _Unknown  # what is below TLS
        self._receiver: ResponseReceiver | None = None
        self._parser: ResponseParser | None = None  # made for a response that does not come in one piece
        self._shape: HeadShape | None = None  # of the last answer that came in one piece
        self._shapes_left = MAX_SHAPES
        self._turn = nan  # in which the last request was sent
        self._size = 0  # of the last request, and what of it the transport has yet to be given
        self._left = 0
        self._early = False  # an answer came before all of its request was sent
        self._paused = False
        self.silent = True
        """Whether no byte has come back since the last request was sent."""

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self._write = best_write(self.transport)
        tcp = getattr(self.transport, "transport", self.transport)
        if isinstance(tcp, Connection):
            self._tcp = tcp
        self._sends = sends_to(tcp)
        if isinstance(self.transport, Connection):
            self.transport.protocol = self  # not the endpoint's wrapper, which has had its say: one call less a read
        self.holder.made(self)
        if not self._secure:
            self.holder.opened(self)

    def handshakeCompleted(self) -> None:
        self.holder.opened(self)

    def send(self, request: bytes, receiver: ResponseReceiver) -> None:
        """Send a request, head and body; ``receiver`` hears of the response until its ``end`` or ``broken``."""
        self._receiver = receiver
        self.silent = True
        sends = self._sends
        if not sends.gathering and is_readable(self._tcp):
            # outside of the reactor's look at its sockets, so what is to be read is read first, in the next look
            self._size = self._left = SURE_BYTES + 1
            self._tcp.reactor.callLater(0, self._send_behind, request, receiver)
            return
        self._turn = sends.turn
        self._size = size = len(request)
        if size <= SEND_SLICE_BYTES:
            self._write(self.transport, request)
            receiver.wrote()
        else:
            self._left = size
            self.transport.registerProducer(_Slices(self, request), False)

    def _send_behind(self, request: bytes, receiver: ResponseReceiver) -> None:
        """Send, if what was read meanwhile has not spoiled the connection."""
        if self._receiver is receiver:
            self._left = 0
            self.send(request, receiver)

    def send_slice(self, data: bytes) -> None:
        """Write a slice of a large request."""
        self._left -= len(data)
        self.transport.write(data)
        if not self._left:
            self.transport.unregisterProducer()
        if self._receiver is not None:
            self._receiver.wrote()

    def pause(self) -> None:
        """Read no more bytes until `resume`; what was already read may still be delivered."""
        self._paused = True
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Go on reading."""
        self._paused = False
        self.transport.resumeProducing()

    def abort(self) -> None:
        """Close at once; the receiver hears nothing more and the connection is not used again."""
        self._receiver = None
        self._parser = None
        self.transport.abortConnection()

    def close(self) -> None:
        """Close at once; unlike after `abort`, a receiver that still waits is told that its response broke."""
        self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        if self.silent:
            if self._turn == self._sends.turn or (self._size > SURE_BYTES and not self._is_sent()):
                self._spoiled()
                return
            self.silent = False
        parser = self._parser
        if parser is None:
            receiver = self._receiver
            if receiver is None:
                self._spoiled()
                return
            shape = self._shape
            whole = None if shape is None else shape.whole(data)
            if whole is None:
                whole = whole_response(data)
                if whole is not None and self._shapes_left:
                    self._shapes_left -= 1
                    self._shape = shape_of(whole[0])
            if whole is not None:
                if self._early or self._paused:
                    self._release(False)
                else:  # what `_release` would do, without its call
                    self._receiver = None
                    self.holder.idle(self)
                receiver.answer(whole[0], whole[1])
                return
            parser = self._parser = ResponseParser()
        events = parser.receive(data)
        last = events[-1] if events else None
        if last is REUSABLE and len(events) == 3 and self._receiver is not None:
            head, body, _ = events  # two bodies would be one
            assert isinstance(head, ResponseHead) and isinstance(body, Body)  # noqa: S101, PT018
            receiver = self._receiver
            self._release(True)
            receiver.answer(head, body.data)
        elif type(last) is Body and len(events) == 1 and self._receiver is not None:
            self._receiver.body(last.data, last.framed)
        else:
            self._deliver(events)

    def _is_sent(self) -> bool:
        """Whether what comes now can be an answer: some of the request has reached the socket.

        (TLS makes the bytes more. So few that the rest is still as long as the request hold nothing to be read.)
        """
        unsent = unsent_bytes(self._tcp) + self._left
        self._early = unsent > 0
        return unsent < self._size

    def _spoiled(self) -> None:
        """Bytes came that no request has asked for."""
        receiver = self._receiver
        self.holder.spoiled(self)  # now, for it is lost only after this turn, and would be given to others meanwhile
        self.abort()
        if receiver is not None:
            receiver.broken()

    def _release(self, reusable: bool) -> None:
        """The response is complete: the connection is the pool's again, or at its end."""
        self._receiver = None
        self._parser = None
        if reusable and not self._early and not self._paused:
            self.holder.idle(self)
        else:
            self.transport.abortConnection()

    def _deliver(self, events: list[ResponseHead | Body | End | Invalid]) -> None:
        for event in events:
            receiver = self._receiver
            if receiver is None:
                return
            match event:
                case ResponseHead():
                    receiver.head(event)
                case Body(data):
                    receiver.body(data, event.framed)
                case Invalid():
                    self.abort()
                    receiver.broken()
                case End():
                    self._release(event.reusable)
                    receiver.end()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        parser, orderly = self._parser, reason.check(type(connectionDone.value)) is not None
        if parser is not None and orderly:
            self._deliver(parser.closed())
        receiver, self._receiver, self._parser = self._receiver, None, None
        if receiver is not None:
            receiver.broken()
        self.holder.lost(self)


@implementer(IPullProducer)
class _Slices:
    """Writes a large request as fast as the socket takes it, so that a stalled upstream is seen as stalled."""

    def __init__(self, connection: UpstreamConnection, request: bytes) -> None:
        self._connection = connection
        self._rest = memoryview(request)

    def resumeProducing(self) -> None:
        piece, self._rest = self._rest[:SEND_SLICE_BYTES], self._rest[SEND_SLICE_BYTES:]
        self._connection.send_slice(bytes(piece))

    def stopProducing(self) -> None:
        self._rest = self._rest[:0]
