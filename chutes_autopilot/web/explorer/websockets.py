"""Following over a WebSocket, by twisted.web.websocket; needs the extra ``websocket``.

A client has nothing to say: what it sends is read for its pongs and its goodbye, and bounded.
"""

from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.server import NOT_DONE_YET
from twisted.web.websocket import WebSocketResource, WebSocketTransport
from zope.interface import implementer

from chutes_autopilot.explorer_live.live import Live, Subscription
from chutes_autopilot.explorer_live.topics import Bundle
from chutes_autopilot.web.explorer.errors import ExplorerError
from chutes_autopilot.web.request import CUT_SECONDS
from chutes_autopilot.web.site import GatewayRequest

MAX_RECEIVED = 64 * 1024
"""Bytes that a client may send in all: the pongs of more than a day. Twisted would collect a message of any length."""

GOING_AWAY = 1001
POLICY_VIOLATION = 1008
"""Close codes, RFC 6455 section 7.4.1."""


def follow(request: GatewayRequest, key: bytes, live: Live) -> Deferred[None]:
    """Make the request's connection a WebSocket that follows; the result is cancelled when it is gone.

    :param key: the client's, checked, as is all else of the handshake.
    """
    channel = request.channel
    # wsproto would judge the whole head by rules of its own, and log what it refuses
    request.requestHeaders = Headers(
        {
            b"Host": [b"gateway"],
            b"Connection": [b"Upgrade"],
            b"Upgrade": [b"websocket"],
            b"Sec-WebSocket-Version": [b"13"],
            b"Sec-WebSocket-Key": [key],
        }
    )
    follower = Follower(request)
    if WebSocketResource(_Only(follower)).render_GET(request) is not NOT_DONE_YET:
        raise ExplorerError(400, "no handshake", "Send the headers of RFC 6455 section 4.1.")
    # Twisted has put its own in the place of these two methods of the channel
    channel.dataReceived = follower.bounded(channel.dataReceived)
    channel.readConnectionLost = channel.forceAbortClient
    request.registerProducer(follower, True)
    follower.subscription = live.subscribe(follower)
    return follower.done


@define
class _Only:
    """The factory of one protocol."""

    _protocol: "Follower"

    def buildProtocol(self, _request: Any) -> "Follower":
        return self._protocol


@implementer(IPushProducer)
@define(eq=False)
class Follower:
    """One client that follows; also what twisted.web.websocket calls its protocol."""

    _request: GatewayRequest
    subscription: Subscription | None = None
    done: Deferred[None] = field(init=False)
    _channel: Any = field(init=False)
    _transport: WebSocketTransport = field(init=False)
    _received: int = field(default=0, init=False)
    _closing: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._channel = self._request.channel
        self.done = Deferred(lambda _: self.stopProducing())

    def bounded(self, wire_received: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """What receives in the place of Twisted's own."""

        def received(data: bytes) -> None:
            if self._closing:
                return
            self._received += len(data)
            if self._received > MAX_RECEIVED:
                self._close(POLICY_VIOLATION)
                return
            try:
                wire_received(data)
            except Exception:  # noqa: BLE001 - whatever a client can make wsproto raise
                self.drop()
            if self._channel.transport.disconnecting and not self._closing:
                self._leave()  # the client said goodbye, or what it said is none of the protocol

        return received

    # twisted.web.websocket.WebSocketProtocol

    def negotiationStarted(self, transport: WebSocketTransport) -> None:
        self._transport = transport

    def negotiationFinished(self) -> None:
        pass

    def pongReceived(self, payload: bytes) -> None:
        pass

    def textMessageReceived(self, message: str) -> None:
        pass

    def bytesMessageReceived(self, data: bytes | bytearray) -> None:
        pass

    def connectionLost(self, reason: Failure) -> None:
        """Let the channel know, which Twisted has left out of it: it counts connections, and ends its request."""
        self.stopProducing()
        type(self._channel).connectionLost(self._channel, reason)

    # explorer_live.live.Subscriber

    def send(self, bundle: Bundle) -> None:
        """Write messages."""
        for message in bundle.messages:
            if not self._closing:
                self._transport.sendTextMessage(message.text)

    def beat(self) -> None:
        """Ping."""
        if not self._closing:
            self._transport.ping()

    def end(self) -> None:
        """Say goodbye; the service stops."""
        self._close(GOING_AWAY)

    def drop(self) -> None:
        """Reset the connection."""
        self._closing = True
        self._channel.forceAbortClient()

    # IPushProducer

    def pauseProducing(self) -> None:
        """The connection's buffer is full."""
        if self.subscription is not None:
            self.subscription.pause()

    def resumeProducing(self) -> None:
        """It is empty again."""
        if self.subscription is not None and not self._closing:
            self.subscription.resume()

    def stopProducing(self) -> None:
        """The connection is gone."""
        if self.subscription is not None:
            self.subscription.gone()

    def _close(self, code: int) -> None:
        if not self._closing:
            self._transport.loseConnection(code)
            self._leave()

    def _leave(self) -> None:
        self._closing = True
        self.stopProducing()
        self._channel.close_soon(CUT_SECONDS)
