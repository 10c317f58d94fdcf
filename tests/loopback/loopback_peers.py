"""The peers of the loopback tests: an upstream that does what a test tells it, and a raw client."""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import NAMESPACE_DNS, uuid5

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n", re.IGNORECASE)


@frozen
class Seen:
    """One chat request as the upstream saw it."""

    head: bytes
    body: bytes

    @property
    def model(self) -> str:
        return str(json.loads(self.body)["model"])

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(n, v) for n, _, v in (line.partition(b": ") for line in self.head.split(b"\r\n")[1:] if line)]


class UpstreamSide(Protocol):
    """One connection from the gateway; a script answers with `transport` or keeps silent."""

    def __init__(self, upstream: "ScriptedUpstream") -> None:
        self.upstream = upstream
        self.buffer = b""
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.upstream.connections.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            found = LENGTH.search(head + b"\r\n")
            length = int(found[1]) if found else 0
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            self.upstream.asked(self, head, rest[:length])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


Script = Callable[[UpstreamSide], Any]


def respond(raw: bytes, *, close: bool = False) -> Script:
    """A script that writes these bytes, and perhaps closes."""

    def script(side: UpstreamSide) -> None:
        side.transport.write(raw)
        if close:
            side.transport.loseConnection()

    return script


def answer(body: bytes, status: bytes = b"200 OK", *headers: bytes) -> Script:
    """A script that gives a whole answer with its length."""
    lines = [b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body)]
    return respond(b"\r\n".join(lines) + b"\r\n\r\n" + body)


def silent(side: UpstreamSide) -> None:
    """A script that never answers."""


def reset(side: UpstreamSide) -> None:
    """A script that resets the connection."""
    side.transport.abortConnection()


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@define(eq=False)
class ScriptedUpstream:
    """Plays Chutes: feeds for the models "a/A" > "b/B" > "c/C", and a script for each model's answers."""

    names: tuple[str, ...] = ("a/A", "b/B", "c/C")
    scripts: dict[str, Script] = field(factory=dict)
    offers: dict[str, dict[str, Any]] = field(factory=dict)  # further members of a model's entry in the catalog
    requests: list[Seen] = field(factory=list)
    heads: list[bytes] = field(factory=list)  # of every request, those for the feeds too
    connections: list[UpstreamSide] = field(factory=list)
    listing: Script | None = None
    """In the place of the list of models."""
    port: Any = None
    _waiting: list[tuple[int, Deferred[None]]] = field(factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port.getHost().port}"

    def when_asked(self, count: int) -> Deferred[None]:
        """Fires when ``count`` chat requests have come."""
        waiter: Deferred[None] = Deferred()
        self._waiting.append((count, waiter))
        self._tell()
        return waiter

    def _tell(self) -> None:
        for entry in [w for w in self._waiting if w[0] <= len(self.requests)]:
            self._waiting.remove(entry)
            entry[1].callback(None)

    def asked(self, side: UpstreamSide, head: bytes, body: bytes) -> None:
        self.heads.append(head)
        if head.startswith(b"GET /v1/models ") and self.listing is not None:
            self.listing(side)
        elif head.startswith(b"GET /v1/models "):
            answer(json.dumps({"object": "list", "data": [self._entry(n) for n in self.names]}).encode())(side)
        elif head.startswith(b"GET /chutes/utilization "):
            answer(json.dumps([self._row(i, n) for i, n in enumerate(self.names)]).encode())(side)
        else:
            seen = Seen(head, body)
            self.requests.append(seen)
            self.scripts.get(seen.model, answer(b'{"from":"%s"}' % seen.model.encode()))(side)
            self._tell()

    def _entry(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "chute_id": str(uuid5(NAMESPACE_DNS, name)), "price": {"x": 1.50}} | (
            self.offers.get(name, {})
        )

    def _row(self, rank: int, name: str) -> dict[str, Any]:
        return {"name": name, "chute_id": str(uuid5(NAMESPACE_DNS, name)), "active_instance_count": 10 - rank}


class RawClient(Protocol):
    """A client that writes bytes and keeps what comes back."""

    def __init__(self) -> None:
        self.received = b""
        self.total = 0
        self.keep: int | None = None  # how many of the last bytes to keep, where there are many
        self.reference = False  # whether to send what the front channel leaves to twisted.web
        self.closed: Deferred[Failure] = Deferred()
        self._complete: Deferred[None] | None = None
        self._waiting: list[tuple[bytes, int, Deferred[bytes]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.total += len(data)
        self.received = (self.received + data)[-(self.keep or 0) :]
        for entry in [w for w in self._waiting if self.received.count(w[0]) >= w[1]]:
            self._waiting.remove(entry)
            entry[2].callback(self.received)
        if self._complete is not None and is_complete(self.received):
            complete, self._complete = self._complete, None
            complete.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._complete is not None:
            complete, self._complete = self._complete, None
            complete.callback(None)
        waiting, self._waiting = self._waiting, []
        for _, _, waiter in waiting:
            waiter.errback(reason)
        self.closed.callback(reason.type)

    def until(self, marker: bytes, count: int = 1) -> Deferred[bytes]:
        """Fires with everything received once ``marker`` has come ``count`` times."""
        waiter: Deferred[bytes] = Deferred()
        self._waiting.append((marker, count, waiter))
        self.dataReceived(b"")
        return waiter

    def complete(self) -> Deferred[None]:
        """Fires when what was received is a whole response, or the connection is closed."""
        self._complete = Deferred()
        self.dataReceived(b"")
        return self._complete or succeed(None)

    def post(
        self, body: bytes, *headers: bytes, target: bytes = b"/v1/chat/completions", version: bytes = b"1.1"
    ) -> None:
        lines = [b"POST %b HTTP/%b" % (target, version), b"Host: x", b"Content-Length: %d" % len(body), *headers]
        if self.reference:
            lines.append(b"TE: trailers")
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)


@frozen
class Response:
    """A whole response: status, headers with lower-case names, and the body without chunked coding."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert self.header("content-type") == "application/json"
        assert set(error) == {"message", "type", "param", "code"}
        return error


def is_complete(raw: bytes) -> bool:
    """Whether these bytes are a whole response: by its length, its last chunk, or its lack of a body."""
    head, found, body = raw.partition(b"\r\n\r\n")
    if not found:
        return False
    length = LENGTH.search(head + b"\r\n")
    if length is not None:
        return len(body) >= int(length[1]) or head[9:12] == b"304"
    return head[9:12] in (b"204", b"304") or body.endswith(b"0\r\n\r\n")


def read_response(raw: bytes) -> Response:
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = [(n.lower(), v) for n, _, v in (line.partition(": ") for line in lines[1:])]
    if ("transfer-encoding", "chunked") in headers:
        pieces, rest = [], body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            pieces.append(rest[: int(size, 16)])
            rest = rest[int(size, 16) + 2 :]
        body = b"".join(pieces)
    return Response(int(lines[0].split(" ")[1]), headers, body)


@define(eq=False)
class Gateway:
    """A running service and the ways to talk to it."""

    reactor: Any
    port: int
    reference: bool = False
    service: Any = None
    clients: list[RawClient] = field(factory=list)

    async def connect(self) -> RawClient:
        endpoint = TCP4ClientEndpoint(self.reactor, "127.0.0.1", self.port)
        client: RawClient = await connectProtocol(endpoint, RawClient())
        client.reference = self.reference
        self.clients.append(client)
        return client

    async def get(self, path: str, *headers: bytes, method: bytes = b"GET") -> Response:
        client = await self.connect()
        lines = [method + b" " + path.encode() + b" HTTP/1.1", b"Host: x", b"Connection: close", *headers]
        client.transport.write(b"\r\n".join(lines) + b"\r\n\r\n")
        await client.closed
        return read_response(client.received)

    async def chat(self, body: Any, *headers: bytes, target: bytes = b"/v1/chat/completions") -> Response:
        """One chat request on a connection of its own; ``body`` as bytes, or anything that JSON can say."""
        client = await self.connect()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        client.post(data, *headers, target=target)
        await client.complete()
        client.transport.loseConnection()
        return read_response(client.received)

    async def metrics(self) -> dict[str, float]:
        text = (await self.get("/metrics")).body.decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name.removeprefix("chutes_autopilot_"): float(value) for name, _, value in lines}


StartGateway = Callable[..., Awaitable[Gateway]]
