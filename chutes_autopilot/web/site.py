"""How twisted.web is bent to a gateway: bodies in memory and bounded, no access log, no HTML, no invented headers."""

import secrets
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from twisted.internet.interfaces import IReactorTime, ITCPTransport
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from chutes_autopilot.errors import ApiError
from chutes_autopilot.observe import events
from chutes_autopilot.wire.headers import REQUEST_ID, Header, acceptable_request_id

LINGER_SECONDS = 30.0
"""How long a client may go on sending a body that was refused before its connection is reset."""

CUT_SECONDS = 15.0
"""How long a client whose answer was cut may take to read what was already sent."""

_BAD_REQUEST_HEAD = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
)


class GatewayRequest(Request):
    """One request; its body is kept in memory, bounded by the site's ``max_request_bytes``.

    twisted.web would spool larger bodies to a temporary file, and prompts do not belong on disk.
    """

    defaultContentType = None
    site: "GatewaySite"
    channel: Any  # a GatewayChannel, None once the client is gone
    content: BytesIO
    refused = False
    received_bytes = 0
    _request_id: str | None = None
    _was_cut = False

    @property
    def request_id(self) -> str:
        """The client's own X-Request-Id where it is acceptable, else one made here."""
        if self._request_id is None:
            sent = acceptable_request_id(self.getHeader(REQUEST_ID))
            self._request_id = sent or secrets.token_hex(16)
        return self._request_id

    def gotLength(self, length: int | None) -> None:
        """The headers are complete: refuse by the declared length before a byte of the body is read."""
        self.content = BytesIO()
        if length is not None and self.channel is not None and length > self.channel.site.max_request_bytes:
            self._refuse_body()

    def handleContentChunk(self, data: bytes) -> None:
        self.received_bytes += len(data)
        if self.refused or self.channel is None:
            return
        if self.received_bytes > self.channel.site.max_request_bytes:
            self._refuse_body()
        else:
            self.content.write(data)

    def answer(self, status: int, body: bytes, content_type: bytes, headers: Iterable[Header] = ()) -> None:
        """Write a whole answer of our own with its length; whoever took the request finishes it."""
        self.setResponseCode(status)
        self.responseHeaders.removeHeader(b"Server")
        self.setHeader(b"Content-Type", content_type)
        self.setHeader(b"Content-Length", b"%d" % len(body))
        self.setHeader(REQUEST_ID, self.request_id.encode())
        for name, value in headers:
            self.setHeader(name, value)
        self.write(body)

    def refuse(self, error: ApiError) -> None:
        """Write an error of our own; whoever took the request finishes it."""
        self.answer(error.status, error.body(), b"application/json", error.headers)

    def _refuse_body(self) -> None:
        """Answer 413 while the client is still sending, and go on reading so that it can read the answer."""
        channel = self.channel
        assert channel is not None  # noqa: S101 - the request is being received
        self.refused = True
        self.content = BytesIO()
        self.method, self.uri, self.clientproto = channel.request_line
        self.path = self.uri.partition(b"?")[0]
        limit = channel.site.max_request_bytes
        error = ApiError(
            "request_too_large",
            f"The request body is larger than {limit} bytes: shorten it, or have MAX_REQUEST_BYTES raised.",
            headers=((b"Connection", b"close"),),
        )
        channel.site.body_refused(self, error)
        self.refuse(error)
        channel.linger()

    def take_body(self) -> bytes:
        """The body, which is then no longer kept here."""
        data = self.content.getvalue()
        self.content = BytesIO()
        return data

    def process(self) -> None:
        if self.refused:
            return
        self.uri = _origin_form(self.uri)
        self.path = self.uri.partition(b"?")[0]
        if not self.path.startswith(b"/") or not _is_utf8(self.path):
            self.refuse(ApiError("not_found", "There is nothing at this path."))
            self.finish()
            return
        super().process()

    def getRequestHostname(self) -> bytes:
        """Nothing here depends on the Host a client names, so no Host can make routing fail."""
        return b"gateway"

    def processingFailed(self, reason: Failure) -> None:
        """An error that no handler took: JSON where nothing was sent, a cut where the answer had begun."""
        events.failed_unexpectedly(reason, "answering a request")
        if self.channel is None:
            return
        if self.startedWriting:
            self.cut()
            return
        self.refuse(ApiError("internal_error", "The gateway failed on this request."))
        self.finish()

    def cut(self) -> None:
        """End the answer so that no client takes it for complete.

        A framed body (a length or chunks) is visibly short when the connection closes, and what was sent before
        can still be read. A body that lasts until the close looks complete then: only a reset shows the cut.
        """
        channel = self.channel
        if channel is None:
            return
        self._was_cut = True
        self.unregisterProducer()
        if self.chunked or self.responseHeaders.hasHeader(b"Content-Length"):
            channel.close_soon(CUT_SECONDS)
        else:
            channel.forceAbortClient()

    def write(self, data: bytes) -> None:
        if not self._was_cut:
            super().write(data)

    def finish(self) -> None:
        """Nothing may follow a cut, least of all the mark of a clean end."""
        if not self._was_cut:
            super().finish()


class GatewayChannel(HTTPChannel):
    """One client connection."""

    requestFactory = GatewayRequest
    site: "GatewaySite"
    transport: Any
    _networkProducer: Any
    _lingering = False

    @property
    def request_line(self) -> tuple[bytes, bytes, bytes]:
        """Method, target and version of the request being received."""
        return self._command, self._path, self._version

    def linger(self) -> None:
        """Discard what the client still sends until it closes, at most LINGER_SECONDS.

        Closing at once would reset the connection under the unread bytes and take the answer with it
        (RFC 9112 section 9.6).
        """
        self._lingering = True
        self.setTimeout(None)
        self._networkProducer.unregisterProducer()
        if ITCPTransport.providedBy(self.transport) and not self.isSecure():
            self.transport.loseWriteConnection()
        self._abortingCall = self.callLater(LINGER_SECONDS, self.forceAbortClient)

    def close_soon(self, seconds: float) -> None:
        """Close when everything written was sent, by force after ``seconds``."""
        if self._abortingCall is None:
            self._abortingCall = self.callLater(seconds, self.forceAbortClient)
        self.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        if not self._lingering:
            super().dataReceived(data)

    def rawDataReceived(self, data: bytes) -> None:
        if not self._lingering:
            super().rawDataReceived(data)

    def _send100Continue(self) -> None:
        if not self._lingering:
            super()._send100Continue()

    def timeoutConnection(self) -> None:
        """As in twisted.web, without its log line: that holds the client's address."""
        self.close_soon(self.abortTimeout)

    def forceAbortClient(self) -> None:
        """As in twisted.web, without its log line."""
        self._abortingCall = None
        self.transport.abortConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:
        body = ApiError("bad_request", "The request is not valid HTTP/1.1.").body()
        self.transport.write(_BAD_REQUEST_HEAD % len(body) + body)
        self.loseConnection()


class GatewaySite(Site):
    """The listening factory.

    :param max_request_bytes: the largest body that is read.
    :param body_refused: told of a request whose body was too large.
    """

    protocol: Any = GatewayChannel
    noisy = False

    def __init__(
        self,
        resource: IResource,
        clock: IReactorTime,
        max_request_bytes: int,
        body_refused: Callable[[GatewayRequest, ApiError], None],
    ) -> None:
        super().__init__(resource, requestFactory=GatewayRequest, reactor=clock, parsePOSTFormSubmission=False)
        self.max_request_bytes = max_request_bytes
        self.body_refused = body_refused

    def startFactory(self) -> None:
        """No log file, and no clock ticking for its time stamps."""

    def log(self, request: Any) -> None:
        """No access log: its lines hold client addresses."""


def _origin_form(target: bytes) -> bytes:
    """The target without scheme and authority: servers must accept the absolute form (RFC 9112 section 3.2.2)."""
    if target[:7].lower() != b"http://" and target[:8].lower() != b"https://":
        return target
    parts = urlsplit(target)
    path = parts.path or b"/"
    return path + b"?" + parts.query if parts.query else path


def _is_utf8(path: bytes) -> bool:
    try:
        unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        return False
    return True
