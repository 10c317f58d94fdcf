"""The client's side of an exchange, written straight to the client's connection."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IPushProducer
from twisted.web.http import NO_BODY_CODES, datetimeToString
from zope.interface import implementer

from chutes_autopilot.errors import ApiError
from chutes_autopilot.interfaces import IDownstream
from chutes_autopilot.upstream.direct import Write
from chutes_autopilot.web.downstream import unsent_bytes
from chutes_autopilot.web.site import CUT_SECONDS
from chutes_autopilot.wire.headers import REQUEST_ID, Header, header_lines

if TYPE_CHECKING:
    from chutes_autopilot.edge.front import FrontChannel


@implementer(IDownstream)
class FrontDownstream:
    """Writes one answer in HTTP/1.1: with the upstream's length where it has one, chunked otherwise.

    The head waits for the first body bytes, so that both are one write.
    """

    def __init__(self, channel: "FrontChannel", write: Write, request_id: str) -> None:
        self._channel = channel
        self._transport = channel.transport
        self._write = write
        self._request_id = request_id
        self._head = b""
        self._chunked = False
        self.written = 0
        """How far the answer has been written; 0: not begun."""

    def start(self, status: int, reason: bytes, headers: Iterable[Header], producer: IPushProducer) -> None:
        headers = list(headers)
        names = {name.lower() for name, _ in headers}
        if b"date" not in names:
            headers.insert(0, (b"Date", datetimeToString()))
        if self._channel.on_last_answer:
            headers.append((b"Connection", b"close"))
        self._chunked = b"content-length" not in names and status not in NO_BODY_CODES
        if self._chunked:
            headers.append((b"Transfer-Encoding", b"chunked"))
        self._head = b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, reason, header_lines(headers))
        self.written = 1
        self._channel.registerProducer(producer, True)

    def write(self, data: bytes) -> None:
        self.written += len(data)
        head, self._head = self._head, b""
        if not data:
            self._transport.write(head)  # queued: body bytes of the same read still join it
        elif self._chunked:
            self._write(self._transport, b"%b%x\r\n%b\r\n" % (head, len(data), data))
        else:
            self._write(self._transport, head + data)

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
        lines = header_lines(
            [
                (b"Date", datetimeToString()),
                (b"Content-Type", b"application/json"),
                (b"Content-Length", b"%d" % len(body)),
                (REQUEST_ID, self._request_id.encode()),
                *error.headers,
                *([(b"Connection", b"close")] if self._channel.on_last_answer else []),
            ]
        )
        reason = HTTPStatus(error.status).phrase.encode()
        self._write(self._transport, b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (error.status, reason, lines, body))
