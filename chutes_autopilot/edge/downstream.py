"""The client's side of an exchange, written straight to the client's connection."""

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IPushProducer
from twisted.web.http import NO_BODY_CODES, OK, datetimeToString
from zope.interface import implementer

from chutes_autopilot.errors import ApiError
from chutes_autopilot.interfaces import IDownstream
from chutes_autopilot.unshown import Unshown
from chutes_autopilot.upstream.direct import Write, unsent_bytes
from chutes_autopilot.web.site import CUT_SECONDS
from chutes_autopilot.wire.headers import (
    DROPPED_FROM_RESPONSES,
    NO_CONTENT,
    OWN_PREFIX,
    PASSING,
    REQUEST_ID,
    downstream_response_headers,
    header_lines,
)
from chutes_autopilot.wire.http1 import ResponseHead

if TYPE_CHECKING:
    from chutes_autopilot.edge.front import FrontChannel


@implementer(IDownstream)
class FrontDownstream(Unshown, eq=False):
    """Writes one answer in HTTP/1.1: with the upstream's length where it has one, chunked otherwise.

    The head waits for the first body bytes, so that both are one write.
    """

    _channel: "FrontChannel"
    _transport: Any
    _write: Write
    _request_id: str
    _head: bytes = b""
    _chunked: bool = False
    written: int = 0
    """How far the answer has been written; 0: not begun."""

    def start(self, head: ResponseHead, own: bytes, producer: IPushProducer, keeps_body: bool = False) -> None:
        self._head = self._begun(head, own)
        self._channel.registerProducer(producer, True)
        if self._chunked:  # a stream, as a rule, of which there may be thousands
            self._channel.forget_head()
        if not keeps_body:
            self._channel.release()

    def answer(self, head: ResponseHead, own: bytes, data: bytes) -> None:
        start = self._begun(head, own)
        if self._chunked:
            self._write(self._transport, b"%b%x\r\n%b\r\n0\r\n\r\n" % (start, len(data), data))
        else:
            self._write(self._transport, start + data)

    def write(self, data: bytes, framed: bytes = b"") -> None:
        self.written += len(data)
        head = self._head
        if head:
            self._head = b""
        if not data:
            self._transport.write(head)  # queued: body bytes of the same read still join it
        elif not self._chunked:
            self._write(self._transport, head + data)
        elif framed:
            self._write(self._transport, head + framed)
        else:
            self._write(self._transport, b"%b%x\r\n%b\r\n" % (head, len(data), data))

    def finish(self) -> None:
        self._channel.unregisterProducer()
        end = self._head + (b"0\r\n\r\n" if self._chunked else b"")
        if end:
            self._write(self._transport, end)

    def abort(self) -> None:
        """Every answer here is framed, so closing shows the cut and what was sent can still be read."""
        self._channel.unregisterProducer()
        self._channel.close_soon(CUT_SECONDS)

    def unsent(self) -> int:
        return unsent_bytes(self._transport)

    def reset(self) -> None:
        self._channel.forceAbortClient()

    def refuse(self, error: ApiError) -> None:
        """Write an error of our own, whole."""
        body = error.body()
        last = self._channel.on_last_answer
        if last:
            self._channel.persistent = False
        lines = header_lines(
            [
                (b"Date", datetimeToString()),
                (b"Content-Type", b"application/json"),
                (b"Content-Length", b"%d" % len(body)),
                (REQUEST_ID, self._request_id.encode()),
                *error.headers,
                *([(b"Connection", b"close")] if last else []),
            ]
        )
        reason = HTTPStatus(error.status).phrase.encode()
        self._write(self._transport, b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (error.status, reason, lines, body))

    def _begun(self, head: ResponseHead, own: bytes) -> bytes:
        """The head of the answer, which has begun with it."""
        self.written = 1
        status, index, fields = head.status, head.index, head.passing
        if fields is None:
            fields = head.block
            if status == NO_CONTENT or (
                not index.keys() <= PASSING
                and (not DROPPED_FROM_RESPONSES.isdisjoint(index) or OWN_PREFIX in fields.lower())
            ):
                fields = header_lines(downstream_response_headers(head.headers, status))
        if b"date" not in index:
            own += self._channel.site.date.line()
        if self._channel.site.connections.draining:
            own += b"Connection: close\r\n"
            self._channel.persistent = False
        if b"content-length" not in index and status not in NO_BODY_CODES:
            self._chunked = True
            own += b"Transfer-Encoding: chunked\r\n"
        if status == OK and head.reason == b"OK":
            return b"".join((b"HTTP/1.1 200 OK\r\n", fields, own, b"\r\n"))  # by far quicker than to format it
        return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (status, head.reason, fields, own)
