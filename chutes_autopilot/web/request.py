"""One request of a client as twisted.web holds it: its body in memory and bounded, its answers without HTML."""

import re
import secrets
from collections.abc import Iterable
from http import HTTPStatus
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.python.failure import Failure
from twisted.web.server import Request

from chutes_autopilot.errors import ApiError, internal_error
from chutes_autopilot.observe import events
from chutes_autopilot.web.body_room import UNCOUNTED_BYTES
from chutes_autopilot.web.explorer.errors import (
    JSON,
    NOT_STORED,
    SAFE_HEADERS,
    body_of_api_error,
    is_explorer_path,
)
from chutes_autopilot.wire.headers import REQUEST_ID, Header, acceptable_request_id

CUT_SECONDS = 15.0
"""How long a client whose answer was cut may take to read what was already sent."""

CHUTES_ROUTE = (b"/v1/chutes/", b"/v1/attestation/", b"/v1/signature/", b"/v1/receipts/")
NOT_ENCRYPTED = (b"X-E2EE-Applied", b"false")
"""On every error of the Chutes route, whoever answers with it."""

_ABSOLUTE = re.compile(rb"https?://[^/?#]+", re.IGNORECASE)

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


class GatewayRequest(Request):
    """One request; its body is kept in memory, bounded by what the channel allows.

    twisted.web would spool larger bodies to a temporary file, and prompts do not belong on disk.
    """

    defaultContentType = None
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

    def aim(self, method: bytes, target: bytes, version: bytes) -> None:
        """Know what is asked before the whole request is there."""
        self.method, self.uri, self.clientproto = method, origin_form(target), version
        self.path = self.uri.partition(b"?")[0]

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        self.received_bytes += len(data)
        if self.refused or self.channel is None:
            return
        limit = self.channel.limits.max_request_bytes
        if self.received_bytes > limit:
            self.channel.refuse_too_large(self)
        elif self.received_bytes > UNCOUNTED_BYTES and not self.channel.hold(self.received_bytes):
            self.channel.refuse_for_room(self)
        else:
            self.content.write(data)

    def answer(self, status: int, body: bytes, content_type: bytes, headers: Iterable[Header] = ()) -> None:
        """Write a whole answer of our own with its length; whoever took the request finishes it."""
        self.setResponseCode(status, _PHRASES.get(status, b"Unknown"))
        self.responseHeaders.removeHeader(b"Server")
        self.setHeader(b"Content-Type", content_type)
        self.setHeader(b"Content-Length", b"%d" % len(body))
        self.setHeader(REQUEST_ID, self.request_id.encode())
        for name, value in headers:
            self.setHeader(name, value)
        self.write(body)

    def refuse(self, error: ApiError) -> None:
        """Write an error of our own, in the shape of its path; whoever took the request finishes it."""
        if is_explorer_path(self.path):
            self.answer(error.status, body_of_api_error(error), JSON, (*SAFE_HEADERS, NOT_STORED, *error.headers))
        elif (self.path or b"").startswith(CHUTES_ROUTE):
            self.answer(error.status, error.body(), JSON, (*error.headers, NOT_ENCRYPTED))
        else:
            self.answer(error.status, error.body(), JSON, error.headers)

    def refuse_unread(self, error: ApiError) -> None:
        """Write an error while the request is still being received; it is never processed and never finished."""
        self.refused = True
        self.content = BytesIO()
        error.headers += ((b"Connection", b"close"),)
        self.refuse(error)

    def take_body(self) -> bytes:
        """The body, which is then no longer kept here."""
        data = self.content.getvalue()
        self.content = BytesIO()
        return data

    def process(self) -> None:
        if self.refused:
            return
        self.uri = origin_form(self.uri)
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
        self.refuse(internal_error())
        self.finish()

    def cut(self) -> None:
        """End the answer so that no client takes it for complete.

        A framed body (a length or chunks) is visibly short when the connection closes, and what was sent before
        can still be read. A body that lasts until the close looks complete then: only a reset shows the cut, and that
        takes along what has not arrived by then.
        """
        channel = self.channel
        if channel is None:
            return
        self._was_cut = True
        self.unregisterProducer()
        if self.chunked or self.responseHeaders.hasHeader(b"Content-Length"):
            channel.close_soon(CUT_SECONDS)
        else:
            channel.reset_soon(CUT_SECONDS)

    def write(self, data: bytes) -> None:
        if not self._was_cut:
            super().write(data)

    def write_now(self, data: bytes, chunk: bytes) -> None:
        """The same where many get the same: ``chunk`` is the data as a chunk, and goes to the socket at once."""
        channel = self.channel
        if channel is None or not self.chunked or not self.startedWriting or self.finished or self._was_cut:
            self.write(data)
        else:
            self.sentLength += len(data)
            channel.direct_write(channel.transport, chunk)

    def finish(self) -> None:
        """Nothing may follow a cut, least of all the mark of a clean end."""
        if not self._was_cut:
            super().finish()


def too_large(limit: int) -> ApiError:
    """The refusal of a body of more than ``limit`` bytes."""
    return ApiError(
        "request_too_large",
        f"The request body is larger than {limit} bytes: shorten it, or have MAX_REQUEST_BYTES raised.",
    )


def origin_form(target: bytes) -> bytes:
    """The target without scheme and authority: servers must accept the absolute form (RFC 9112 section 3.2.2)."""
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        return target
    rest = target[absolute.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def _is_utf8(path: bytes) -> bool:
    try:
        unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        return False
    return True
