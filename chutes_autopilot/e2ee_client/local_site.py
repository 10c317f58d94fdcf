"""The HTTP server of the local endpoint: for programs on this machine, bodies in memory, no access log."""

from io import BytesIO
from ipaddress import ip_address
from typing import Any, cast

from twisted.logger import Logger, LogPublisher
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from chutes_autopilot.e2ee_client.errors import ClientError, GatewayRefused

MAX_REQUEST_BYTES = 32 * 1024 * 1024
IDLE_SECONDS = 75
"""How long a program's connection is kept without a request."""

JSON = b"application/json"


class LocalRequest(Request):
    """A request whose bounded body stays in memory: twisted.web would put a large prompt into a file."""

    defaultContentType = None
    channel: Any
    received = 0

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        self.received += len(data)
        if self.received <= MAX_REQUEST_BYTES:
            super().handleContentChunk(data)

    def body(self) -> bytes:
        """All of it; raises ClientError where it was too large to be kept."""
        if self.received > MAX_REQUEST_BYTES:
            text = f"The request is larger than {MAX_REQUEST_BYTES} bytes."
            raise ClientError("request_too_large", text, status=413)
        return cast(BytesIO, self.content).getvalue()

    def is_local(self) -> bool:
        """Whether a program of this machine asks, as far as HTTP can tell.

        A web page in a browser here could reach this port, too: it names its own host (DNS rebinding) or its origin.
        """
        host = (self.getHeader("Host") or "").lower()
        name, _, port = host.rpartition(":")
        return is_loopback(name if port.isdigit() else host) and self.getHeader("Origin") is None

    def head(self, status: int, content_type: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """Set everything but the body."""
        self.setResponseCode(status)
        self.responseHeaders.removeHeader(b"Server")
        self.setHeader(b"Content-Type", content_type)
        self.setHeader(b"Cache-Control", b"no-store")
        for name, value in headers:
            self.responseHeaders.addRawHeader(name, value)

    def answer(self, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """Send a whole JSON answer."""
        self.head(status, JSON, headers)
        self.setHeader(b"Content-Length", b"%d" % len(body))
        self.write(body)
        self.finish()

    def refuse(self, error: ClientError) -> None:
        """Send an error."""
        self.answer(error.status, error.body(), error.headers if isinstance(error, GatewayRefused) else ())

    def cut(self) -> None:
        """End an answer so that no program takes it for complete: without the last chunk, or with a reset."""
        if self.chunked:
            self.channel.loseConnection()
        else:
            self.channel.forceAbortClient()


class LocalChannel(HTTPChannel):
    """A program's connection."""

    _log = Logger(observer=LogPublisher())
    """Nobody listens: a connection that times out is no news."""


class LocalSite(Site):
    """The listening factory, without an access log."""

    protocol: Any = LocalChannel
    noisy = False

    def __init__(self, resource: Resource, reactor: Any) -> None:
        super().__init__(
            resource, requestFactory=LocalRequest, parsePOSTFormSubmission=False, timeout=IDLE_SECONDS, reactor=reactor
        )

    def startFactory(self) -> None:
        """No log file, and no clock ticking for its time stamps."""

    def log(self, request: Any) -> None:
        """Write nothing."""


def is_loopback(host: str) -> bool:
    """Whether a host's name or address, an IPv6 one with or without brackets, is this machine's own."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
