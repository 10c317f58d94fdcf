"""What goes on for as long as a visitor stays: server-sent events, the same over a WebSocket, and the feed."""

import secrets
from base64 import b64decode
from binascii import Error as NoBase64
from importlib.util import find_spec
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from chutes_autopilot.explorer_live.live import Live, Subscription, TooManySubscribers
from chutes_autopilot.explorer_live.topics import Bundle
from chutes_autopilot.web.explorer.errors import ExplorerError
from chutes_autopilot.web.explorer.feed import Feed
from chutes_autopilot.web.site import GatewayRequest
from chutes_autopilot.wire.headers import REQUEST_ID

RETRY_MS = (2000, 5000)
"""Between which a browser waits before it comes again, each for a time of its own."""

_HEADERS = (
    (b"Content-Type", b"text/event-stream; charset=utf-8"),
    (b"Cache-Control", b"no-store, no-transform"),
    (b"X-Accel-Buffering", b"no"),
)


@define(eq=False)
class StreamRoutes:
    """Answers /api/events, /api/ws and /feed.atom.

    :param origins: sites other than this one whose pages may open a WebSocket.
    """

    _live: Live
    _feed: Feed
    _origins: tuple[str, ...] = ()

    def events(self, request: GatewayRequest) -> Deferred[None] | None:
        """GET /api/events: everything there is, then what changes; a Last-Event-ID changes nothing about that."""
        self._check_room()
        request.setResponseCode(200)
        request.responseHeaders.removeHeader(b"Server")
        request.setHeader(REQUEST_ID, request.request_id.encode())
        for name, value in _HEADERS:
            request.setHeader(name, value)
        if request.method == b"HEAD":
            return None
        return EventStream(request).follow(self._live)

    def websocket(self, request: GatewayRequest) -> Deferred[None]:
        """GET /api/ws: the same as JSON messages ``{"event", "id", "data"}``; nothing a client sends is read."""
        self._check_origin(request)
        key = _handshake_key(request)
        if find_spec("wsproto") is None:
            raise ExplorerError(
                501,
                "no WebSockets here",
                "Use GET /api/events, which tells the same; or have chutes-autopilot[websocket] installed.",
            )
        self._check_room()
        # an extra: imported only where it is there
        from chutes_autopilot.web.explorer.websockets import follow

        return follow(request, key, self._live)

    def feed(self, request: GatewayRequest) -> Any:
        """GET /feed.atom: what happened to the models."""
        return self._feed.answer(request)

    def _check_room(self) -> None:
        try:
            self._live.check_room()
        except TooManySubscribers:
            raise ExplorerError(
                503,
                "too many followers",
                "No further visitor can follow live now: ask again later, or ask GET /api/ranking from time to time.",
                ((b"Retry-After", b"30"),),
            ) from None

    def _check_origin(self, request: GatewayRequest) -> None:
        """Browsers let any page open a WebSocket anywhere, and say only here which one it is (RFC 6455 section 10.2).

        Whoever is no browser sends none. What stands in front of this service may speak TLS, so the scheme counts for
        nothing.
        """
        origin = request.getHeader(b"Origin")
        if origin is None:
            return
        given = origin.decode("latin-1").lower()
        host = (request.getHeader(b"Host") or b"").decode("latin-1").lower()
        if given not in (f"http://{host}", f"https://{host}") and given not in self._origins:
            raise ExplorerError(
                403,
                "not from this page",
                "Pages of other sites may not open a WebSocket here; EXPLORER_CORS_ORIGINS names those that may.",
            )


def _handshake_key(request: GatewayRequest) -> bytes:
    """The client's key (RFC 6455 section 4.2.1); ExplorerError where it asks for no WebSocket."""

    def tokens(name: bytes) -> set[bytes]:
        values = request.requestHeaders.getRawHeaders(name) or []
        return {token.strip().lower() for value in values for token in value.split(b",")}

    if b"websocket" not in tokens(b"Upgrade") or b"upgrade" not in tokens(b"Connection") or not _speaks_http11(request):
        raise ExplorerError(400, "no WebSocket asked for", "Open this path as a WebSocket, or use GET /api/events.")
    if tokens(b"Sec-WebSocket-Version") != {b"13"}:
        raise ExplorerError(
            426,
            "unknown version",
            "Speak version 13 of the WebSocket protocol.",
            ((b"Sec-WebSocket-Version", b"13"), (b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")),
        )
    keys = request.requestHeaders.getRawHeaders(b"Sec-WebSocket-Key") or []
    try:
        if len(keys) == 1 and len(b64decode(keys[0], validate=True)) == 16:
            return bytes(keys[0])
    except NoBase64:
        pass
    raise ExplorerError(400, "no handshake", "Send one Sec-WebSocket-Key of 16 bytes in base64.")


def _speaks_http11(request: GatewayRequest) -> bool:
    return bool(request.clientproto == b"HTTP/1.1")


@implementer(IPushProducer)
@define(eq=False)
class EventStream:
    """One visitor who follows by server-sent events."""

    _request: GatewayRequest
    _subscription: Subscription | None = None
    _done: Deferred[None] = field(init=False)

    def follow(self, live: Live) -> Deferred[None]:
        """Begin; fires when the stream was ended from here, and is to be cancelled when the visitor is gone."""
        request = self._request
        self._done = Deferred(lambda _: self.stopProducing())
        request.registerProducer(self, True)
        retry = RETRY_MS[0] + secrets.randbelow(RETRY_MS[1] - RETRY_MS[0])
        request.write(b"retry: %d\n\n" % retry)
        self._subscription = live.subscribe(self)
        return self._done

    def send(self, bundle: Bundle) -> None:
        """Write events."""
        self._request.write_now(bundle.sse, bundle.chunk)

    def beat(self) -> None:
        """Write a comment."""
        self._request.write(b":\n\n")

    def end(self) -> None:
        """End the stream cleanly; the visitor comes again."""
        self._request.unregisterProducer()
        if not self._done.called:
            self._done.callback(None)

    def drop(self) -> None:
        """Reset the connection."""
        if self._request.channel is not None:
            self._request.channel.forceAbortClient()

    def pauseProducing(self) -> None:
        """The connection's buffer is full."""
        if self._subscription is not None:
            self._subscription.pause()

    def resumeProducing(self) -> None:
        """It is empty again."""
        if self._subscription is not None:
            self._subscription.resume()

    def stopProducing(self) -> None:
        """The connection is gone."""
        if self._subscription is not None:
            self._subscription.gone()
