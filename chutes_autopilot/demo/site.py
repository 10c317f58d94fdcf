"""The HTTP server under the simulator: bodies in memory, headers kept as they came, no access log, an end on demand."""

import json
from io import BytesIO
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger, LogPublisher
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

MAX_BODY_BYTES = 32 * 1024 * 1024
IDLE_TIMEOUT = 75.0
"""Seconds for which a connection without a request is kept open."""


class SimulatorRequest(Request):
    """A request whose bounded body stays in memory and whose every answer says that it is simulated."""

    defaultContentType = None

    def __init__(self, channel: Any, queued: Any = False) -> None:
        super().__init__(channel, queued)
        self.received_headers: list[tuple[bytes, bytes]] = []
        self.received = 0
        self.setHeader(b"X-Simulated-Chutes", b"true")

    def gotLength(self, length: int | None) -> None:
        # twisted.web would put large and chunked bodies into a temporary file
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        self.received += len(data)
        if not self.too_large:
            super().handleContentChunk(data)

    @property
    def too_large(self) -> bool:
        """Whether the body passed MAX_BODY_BYTES; what came after that is not kept."""
        return self.received > MAX_BODY_BYTES

    def body(self) -> bytes:
        """The whole request body."""
        return cast(BytesIO, self.content).getvalue()

    def answer(self, status: int, body: bytes, content_type: bytes) -> None:
        """Send a complete answer."""
        self.setResponseCode(status)
        self.setHeader(b"Content-Type", content_type)
        self.setHeader(b"Content-Length", b"%d" % len(body))
        self.write(body)
        self.finish()

    def answer_json(self, status: int, value: object) -> None:
        """Send a complete answer in JSON."""
        self.answer(status, json.dumps(value).encode(), b"application/json")

    def reset_connection(self) -> None:
        """End the connection with a reset; the answer, if one had begun, may not arrive."""
        cast(ITCPTransport, self.channel.transport).abortConnection()

    def close_after(self, raw: bytes) -> None:
        """Send bytes past all HTTP, then close the connection; what was written before still arrives."""
        cast(ITCPTransport, self.channel.transport).write(raw)
        self.channel.loseConnection()

    def refuse(self, status: int, detail: object) -> None:
        """Send an error in the platform's shape, which is not OpenAI's."""
        self.answer_json(status, {"detail": detail})


class SimulatorChannel(HTTPChannel):
    """A connection that notes each header line and tells its site when it ends."""

    site: "SimulatorSite"
    _log = Logger(observer=LogPublisher())
    """Nobody listens: twisted.web would log the client's address when an idle connection times out."""

    def connectionMade(self) -> None:
        super().connectionMade()
        self.site.channels.add(self)

    def headerReceived(self, line: bytes) -> bool:
        # twisted.web groups headers by canonical name; only here their order and spelling can still be seen
        accepted: bool = super().headerReceived(line)
        if accepted:
            name, _, value = line.partition(b":")
            self.requests[-1].received_headers.append((name, value.strip(b" \t")))
        return accepted

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.site.channel_lost(self)


class SimulatorSite(Site):
    """The factory of the simulator's connections, which can end them all."""

    protocol = SimulatorChannel  # type: ignore[assignment]

    def __init__(self, resource: IResource, reactor: IReactorTime) -> None:
        super().__init__(
            resource,
            requestFactory=SimulatorRequest,
            parsePOSTFormSubmission=False,
            timeout=IDLE_TIMEOUT,
            reactor=reactor,
        )
        self.channels: set[SimulatorChannel] = set()
        self._emptied: list[Deferred[None]] = []

    def log(self, request: Any) -> None:
        """Write no access log: it would hold client addresses."""

    def channel_lost(self, channel: SimulatorChannel) -> None:
        """Forget a connection that has ended."""
        self.channels.discard(channel)
        if not self.channels:
            waiting, self._emptied = self._emptied, []
            for deferred in waiting:
                deferred.callback(None)

    def abort_connections(self) -> Deferred[None]:
        """Reset every open connection; fires when none is left."""
        done: Deferred[None] = Deferred()
        self._emptied.append(done)
        for channel in tuple(self.channels):
            cast(ITCPTransport, channel.transport).abortConnection()
        if not self.channels:
            self._emptied.remove(done)
            done.callback(None)
        return done
