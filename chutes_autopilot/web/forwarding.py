"""What a worker does with a request that is not its own to answer: passed on to the parent as it is.

The client's connection is joined with one to the parent, byte for byte in both directions, until one of them ends; so
pages, server-sent events and WebSockets need nothing of their own here. It carries no second request: the answer says
`Connection: close`, unless the connection becomes a WebSocket.
"""

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.client_address import TrustedProxies, parse_cidrs
from chutes_autopilot.web.explorer.origin import origin_of
from chutes_autopilot.web.site import CUT_SECONDS, GatewayChannel, GatewayRequest, GatewaySite

OpenLine = Callable[[Protocol], None]
"""Connects a protocol to the parent at once."""

_OF_THE_CONNECTION = frozenset({b"connection", b"content-length", b"transfer-encoding", b"keep-alive", b"expect"})
_SAID_ANEW = frozenset({b"x-forwarded-proto", b"x-forwarded-host"})

LINES = parse_cidrs("0.0.0.0/32")
"""The parent's trusted proxies: its workers, which come from an address that no client can have."""


class _LineRequest(GatewayRequest):
    """A request that a worker has passed on."""

    def getClientAddress(self) -> IPv4Address:
        return IPv4Address("TCP", str(LINES[0].network_address), 0)


class _LineChannel(GatewayChannel):
    requestFactory = _LineRequest


class LineSite(GatewaySite):
    """The parent's, for what workers pass on."""

    protocol: Any = _LineChannel


@implementer(IPushProducer)
class _Line(Protocol):
    """The connection to the parent for one request."""

    def __init__(self, request: GatewayRequest) -> None:
        self._request = request
        self._client: Any = request.channel
        self._parent: Any = None
        self.done: Deferred[None] = Deferred(lambda _: self.stopProducing())

    def join(self, open_line: OpenLine, trusted: TrustedProxies | None) -> None:
        """Send the request, and from now on whatever the client sends where it wants to go on in both directions."""
        request, client = self._request, self._client
        upgrade = request.requestHeaders.hasHeader(b"Upgrade")
        open_line(self)
        self._parent = transport = cast(Any, self.transport)
        transport.write(_head(request, upgrade, origin_of(request, trusted)) + request.take_body())
        client.dataReceived = transport.write if upgrade else _ignore
        # one that only sends no more may wait for its answer; one that left is noticed when it is written to
        client.readConnectionLost = client.forceAbortClient if upgrade else _ignore
        request.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        self._client.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._request.channel is not None:
            self._request.unregisterProducer()
            self._client.close_soon(CUT_SECONDS)

    # IPushProducer: how fast the client reads

    def pauseProducing(self) -> None:
        """The client's connection is full."""
        if self._parent is not None:
            self._parent.pauseProducing()

    def resumeProducing(self) -> None:
        """It is empty again."""
        if self._parent is not None:
            self._parent.resumeProducing()

    def stopProducing(self) -> None:
        """The client is gone."""
        if self._parent is not None:
            self._parent.abortConnection()


def forward_to(open_line: OpenLine, trusted: Callable[[], TrustedProxies | None]) -> Callable[..., Deferred[None]]:
    """A route that has every request answered by the parent.

    :param trusted: the proxies that are believed where this service is reached; the parent is told what came of it.
    """

    def forward(request: GatewayRequest, **_segments: str) -> Deferred[None]:
        line = _Line(request)
        try:
            line.join(open_line, trusted())
        except OSError:  # no descriptor is left
            raise ApiError(
                "overloaded", "This gateway has too much open at the moment: try again in a second."
            ) from None
        return line.done  # never fires; it is cancelled when the client is gone

    return forward


def _ignore(_data: bytes = b"") -> None:
    """The answer is the connection's last: a client that sends more repeats it on another."""


def _head(request: GatewayRequest, upgrade: bool, origin: str) -> bytes:
    lines = [b"%b %b %b" % (request.method, request.uri, request.clientproto)]
    for name, values in request.requestHeaders.getAllRawHeaders():
        if name.lower() not in _OF_THE_CONNECTION | _SAID_ANEW:
            lines += [b"%b: %b" % (name, value) for value in values]
    lines.append(b"Connection: Upgrade" if upgrade else b"Connection: close")
    scheme, _, host = origin.partition("://")
    lines += [b"X-Forwarded-Proto: " + scheme.encode(), b"X-Forwarded-Host: " + host.encode()]
    body = request.content.getbuffer().nbytes
    if body:
        lines.append(b"Content-Length: %d" % body)
    return b"\r\n".join(lines) + b"\r\n\r\n"
