"""Following the explorer live over real sockets: server-sent events and WebSockets, and who is let go."""

import json
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha1
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import define, field
from klein import Klein
from loopback_peers import Gateway, RawClient
from pytest_twisted import blockon
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure

from chutes_autopilot.edge.front import FrontSite
from chutes_autopilot.explorer.changes import Change
from chutes_autopilot.explorer_live.live import HEARTBEAT, SLOW_SECONDS, TICK, Live
from chutes_autopilot.explorer_live.topics import Occurrences, Table
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.web.answers import install_error_answers
from chutes_autopilot.web.connections import ClientConnections
from chutes_autopilot.web.explorer.feed import Feed
from chutes_autopilot.web.explorer.parts import ExplorerParts
from chutes_autopilot.web.explorer.routes import mount_explorer
from chutes_autopilot.web.explorer.streams import StreamRoutes
from chutes_autopilot.web.site import ClientLimits

LIMITS = ClientLimits(max_request_bytes=1000, header_timeout=30, body_timeout=60, idle_timeout=75)
KEY = b64encode(bytes(16))
ALLOWED = "https://other.example.org"


@define(eq=False)
class Stage:
    """A site that serves a table and occurrences which the test moves, and the clock of those who follow."""

    reactor: Any
    limit: int = 100
    clock: Clock = field(factory=Clock)
    rows: dict[str, dict[str, Any]] = field(factory=lambda: {"a": {"n": 1}})
    happened: list[dict[str, Any]] = field(factory=list)
    connections: ClientConnections = field(factory=lambda: ClientConnections(100))
    gateway: Gateway = field(init=False)
    live: Live = field(init=False)
    port: Any = field(init=False)
    deadlines: Deadlines = field(init=False)

    def start(self) -> None:
        table = Table("table", lambda: repr(self.rows), lambda: ({}, dict(self.rows)))
        occurrences = Occurrences("events", lambda: len(self.happened), lambda n: self.happened[::-1][:n])
        self.live = Live(self.clock, (table, occurrences), self.limit, lambda: self.connections.draining)
        self.live.startService()
        feed = Feed(lambda: 1, lambda n: (Change("model.added", 5.0, "k", None, "a/b"),), 0.0)
        unused: Any = SimpleNamespace()

        def no_page(_request: Any) -> None:
            raise AssertionError

        pages: Any = SimpleNamespace(models=no_page, live=no_page, merge=no_page, changes_page=no_page, static=no_page)
        parts = ExplorerParts(
            truth=lambda: None,
            snapshots=unused,
            documents=unused,
            published=unused,
            history=unused,
            pages=pages,
            in_thread=unused,
            now=self.clock.seconds,
            chutes_api_base_url="",
            models_url="",
            api_key_configured=False,
            cors_origins=(ALLOWED,),
            streams=StreamRoutes(self.live, feed, (ALLOWED,)),
        )
        app = Klein()
        install_error_answers(app)
        mount_explorer(app, parts)
        self.deadlines = Deadlines(self.reactor)
        relay: Any = None
        site = FrontSite(relay, app.resource(), self.reactor, LIMITS, lambda *_: None, self.connections, self.deadlines)
        self.port = self.reactor.listenTCP(0, site, interface="127.0.0.1")
        self.gateway = Gateway(self.reactor, self.port.getHost().port)

    def tick(self, seconds: float = TICK) -> None:
        self.clock.advance(seconds)
        self.clock.advance(0)

    async def follow(self, *headers: bytes, count: int = 2) -> RawClient:
        """A client that follows by events and has got its first messages."""
        client = await self.gateway.connect()
        lines = [b"GET /api/events HTTP/1.1", b"Host: x", *headers]
        client.transport.write(b"\r\n".join(lines) + b"\r\n\r\n")
        await client.until(b"retry: ")
        self.clock.advance(0)
        if count:
            await client.until(b"event: ", count)
        return client

    async def upgraded(self, *headers: bytes, key: bytes = KEY, version: bytes = b"13") -> RawClient:
        """A client that has asked for a WebSocket and got the head of an answer."""
        client = await self.gateway.connect()
        handshake = [b"GET /api/ws HTTP/1.1", b"Host: x:1", b"Upgrade: websocket", b"Connection: keep-alive, Upgrade"]
        lines = [*handshake, b"Sec-WebSocket-Version: " + version, b"Sec-WebSocket-Key: " + key, *headers]
        client.transport.write(b"\r\n".join(lines) + b"\r\n\r\n")
        await client.until(b"\r\n\r\n")
        return client

    async def gone(self) -> None:
        """Fires when no connection is open."""
        await self.connections.gone()

    async def settle(self) -> None:
        await deferLater(self.reactor, 0.02)


@pytest.fixture
def limit() -> int:
    return 100


@pytest.fixture
def stage(limit: int) -> Iterator[Stage]:
    from twisted.internet import reactor

    made = Stage(reactor, limit)
    made.start()
    yield made
    clients = [client for client in made.gateway.clients if not client.closed.called]
    for client in clients:
        client.transport.abortConnection()
    blockon(gatherResults([client.closed for client in clients]))
    blockon(made.connections.gone())
    blockon(maybeDeferred(made.port.stopListening))
    if made.live.running:
        made.live.stopService()
    made.deadlines.stop()
    blockon(deferLater(reactor, 0))


def events(received: bytes) -> list[tuple[str, Any]]:
    """The events of a stream, its chunks undone."""
    _, _, rest = received.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    found = []
    for block in body.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in lines:
            assert lines["id"].startswith(lines["event"])
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def frames(received: bytes) -> list[tuple[int, bytes]]:
    """The frames of a server: opcode and payload."""
    rest, found = received.partition(b"\r\n\r\n")[2], []
    while rest:
        length, start = rest[1], 2
        if length == 126:
            length, start = int.from_bytes(rest[2:4], "big"), 4
        elif length == 127:
            length, start = int.from_bytes(rest[2:10], "big"), 10
        found.append((rest[0] & 15, rest[start : start + length]))
        rest = rest[start + length :]
    return found


def masked(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A client's frame, its mask being zero."""
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return bytes([(0x80 if final else 0) | opcode]) + size + bytes(4) + payload


async def test_events_begin_with_everything_and_go_on_with_what_changes(stage: Stage) -> None:
    """The head is that of a stream that nobody may keep or hold back; a Last-Event-ID gets the same."""
    client = await stage.follow(b"Last-Event-ID: table-77")
    head = client.received.partition(b"\r\n\r\n")[0].decode()
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    for line in ("text/event-stream", "Cache-Control: no-store, no-transform", "X-Accel-Buffering: no"):
        assert line in head
    assert "Server:" not in head
    stage.rows["b"] = {"n": 2}
    stage.happened.append({"x": 1})
    stage.tick()
    await client.until(b"event: ", 4)
    assert events(client.received) == [
        ("table", {"full": True, "rows": [{"n": 1}], "gone": []}),
        ("events", {"full": True, "items": []}),
        ("table", {"full": False, "rows": [{"n": 2}], "gone": []}),
        ("events", {"full": False, "items": [{"x": 1}]}),
    ]
    stage.tick(HEARTBEAT)
    stage.tick()
    await client.until(b"\r\n:\n\n\r\n")


async def test_a_visitor_that_leaves_is_forgotten(stage: Stage) -> None:
    """Its place and its connection are free again."""
    client = await stage.follow()
    assert len(stage.live.subscriptions) == 1
    client.transport.loseConnection()
    await stage.gone()
    assert len(stage.live.subscriptions) == 0


async def test_a_head_alone_is_answered_at_once(stage: Stage) -> None:
    """HEAD follows nothing."""
    response = await stage.gateway.get("/api/events", method=b"HEAD")
    assert (response.status, response.body, len(stage.live.subscriptions)) == (200, b"", 0)


@pytest.mark.parametrize("limit", [2])
async def test_the_number_of_followers_is_capped_over_both_ways(stage: Stage) -> None:
    """The next one is told when to come again, in the shape of the API."""
    await stage.follow()
    await stage.upgraded()
    for path in ("/api/events", "/api/ws"):
        headers = (b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: " + KEY)
        client = await stage.gateway.connect()
        upgrade = b"Connection: Upgrade"
        lines = [f"GET {path} HTTP/1.1".encode(), b"Host: x", upgrade, *headers]
        client.transport.write(b"\r\n".join(lines) + b"\r\n\r\n")
        await client.complete()
        assert client.received.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 30\r\n" in client.received
        assert set(json.loads(client.received.partition(b"\r\n\r\n")[2])) == {"error", "message"}
        client.transport.loseConnection()


@pytest.mark.wait(30)
@pytest.mark.parametrize("kind", ["events", "websocket"])
async def test_one_that_does_not_read_is_skipped_and_then_closed(stage: Stage, kind: str) -> None:
    """Others go on to be told; what is kept for it is what its connection holds and no more."""
    other = await stage.follow()
    slow = await stage.follow() if kind == "events" else await stage.upgraded()
    other.keep = slow.keep = 4096
    stage.tick()
    slow.transport.pauseProducing()
    (subscription,) = [each for each in stage.live.subscriptions if each is not next(iter(stage.live.subscriptions))]
    megabyte = "x" * 1_000_000
    number = 0
    while subscription.full_since is None:
        number += 1
        assert number < 50
        stage.rows = {"a": {"n": number, "x": megabyte}}
        stage.tick()
        await other.until(b'"gone":[]}\n\n')
        other.received = b""
    written = slow.total
    for _ in range(3):
        stage.rows = {"a": {"n": -1 - number, "x": megabyte}}
        number += 1
        stage.tick()
        await other.until(b'"gone":[]}\n\n')
        other.received = b""
    assert slow.total == written
    stage.tick(SLOW_SECONDS)
    assert subscription not in stage.live.subscriptions
    slow.transport.resumeProducing()
    reason = await slow.closed
    assert reason is not ConnectionDone
    assert len(stage.live.subscriptions) == 1


async def test_a_full_connection_that_is_read_again_gets_the_state_of_the_moment(stage: Stage) -> None:
    """What it missed meanwhile is not sent."""
    slow = await stage.follow()
    (subscription,) = stage.live.subscriptions
    slow.transport.pauseProducing()
    number = 0
    while subscription.full_since is None:
        number += 1
        stage.rows = {"a": {"n": number, "x": "x" * 1_000_000}}
        stage.tick()
        await deferLater(stage.reactor, 0)
    for missed in range(5):
        stage.rows = {"a": {"n": 1000 + missed}}
        stage.tick()
    slow.keep = 3_000_000
    slow.transport.resumeProducing()
    while subscription.full_since is not None:
        await deferLater(stage.reactor, 0.001)
    stage.clock.advance(0)
    await slow.until(b'"n":1004')
    assert b'"n":1003' not in slow.received


@pytest.mark.parametrize("kind", ["events", "websocket"])
async def test_all_are_sent_away_when_the_service_stops(stage: Stage, kind: str) -> None:
    """A stream ends cleanly, a WebSocket with 1001, and their connections close."""
    client = await (stage.follow() if kind == "events" else stage.upgraded())
    stage.connections.draining = stage.connections.idle_closed = True
    stage.tick()
    if kind == "websocket":
        await client.until(b"\x88\x02\x03\xe9")
    assert await client.closed is ConnectionDone
    if kind == "events":
        assert client.received.endswith(b"\r\n0\r\n\r\n")
    await stage.gone()


async def test_a_websocket_tells_the_same(stage: Stage) -> None:
    """Each message has its event, id and data; a quiet connection is pinged."""
    client = await stage.upgraded()
    assert client.received.startswith(b"HTTP/1.1 101 ")
    accept = b64encode(sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())  # noqa: S324 - RFC 6455
    assert b"\r\nsec-websocket-accept: " + accept in client.received.replace(b"Sec-WebSocket-A", b"sec-websocket-a")
    stage.clock.advance(0)
    await client.until(b'"event":', 2)
    stage.rows["a"] = {"n": 2}
    stage.tick()
    await client.until(b'"event":', 3)
    messages = [json.loads(payload) for opcode, payload in frames(client.received) if opcode == 1]
    assert [(each["event"], each["data"].get("rows")) for each in messages] == [
        ("table", [{"n": 1}]),
        ("events", None),
        ("table", [{"n": 2}]),
    ]
    stage.tick(HEARTBEAT)
    stage.tick()
    await client.until(b"\x89\x00")


async def test_twisteds_own_client_understands_it(stage: Stage) -> None:
    """The handshake is one that a strict client takes, and a client's goodbye is answered."""
    from twisted.web.websocket import WebSocketClientEndpoint

    class Follower:
        def __init__(self) -> None:
            self.messages: list[str] = []
            self.two: Deferred[None] = Deferred()
            self.lost: Deferred[None] = Deferred()

        def negotiationStarted(self, transport: Any) -> None:
            self.transport = transport

        def negotiationFinished(self) -> None:
            pass

        def textMessageReceived(self, message: str) -> None:
            self.messages.append(message)
            if len(self.messages) == 2:
                self.two.callback(None)

        def bytesMessageReceived(self, data: bytes | bytearray) -> None:
            raise AssertionError

        def pongReceived(self, payload: bytes) -> None:
            raise AssertionError

        def connectionLost(self, reason: Failure) -> None:
            self.lost.callback(None)

    class Only:
        def buildProtocol(self, _url: str) -> Follower:
            return Follower()

    url = f"ws://127.0.0.1:{stage.gateway.port}/api/ws"
    follower = await WebSocketClientEndpoint.new(stage.reactor, url).connect(Only())
    stage.clock.advance(0)
    await follower.two
    assert [json.loads(message)["event"] for message in follower.messages] == ["table", "events"]
    follower.transport.loseConnection()
    await follower.lost
    await stage.gone()
    assert len(stage.live.subscriptions) == 0


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (b"http://x:1", 101),
        (b"https://x:1", 101),
        (b"HTTP://X:1", 101),
        (ALLOWED.encode(), 101),
        (b"http://x", 403),
        (b"http://x:1.evil.example", 403),
        (b"https://evil.example", 403),
        (b"null", 403),
        (b"", 403),
    ],
)
async def test_only_pages_of_this_service_and_allowed_ones_may_open_a_websocket(
    stage: Stage, origin: bytes, status: int
) -> None:
    """A browser says which page asks; another site's is refused before anything is told."""
    client = await stage.upgraded(b"Origin: " + origin)
    assert client.received.startswith(b"HTTP/1.1 %d " % status)
    assert len(stage.live.subscriptions) == (status == 101)


@pytest.mark.parametrize(
    ("key", "version", "status"),
    [
        (KEY, b"8", 426),
        (KEY, b"", 426),
        (b"short", b"13", 400),
        (b64encode(bytes(15)), b"13", 400),
        (b"\xff" * 24, b"13", 400),
    ],
)
async def test_a_handshake_that_is_none_is_refused(stage: Stage, key: bytes, version: bytes, status: int) -> None:
    """In the API's own shape, and the connection goes on."""
    client = await stage.upgraded(key=key, version=version)
    await client.complete()
    assert client.received.startswith(b"HTTP/1.1 %d " % status)
    assert set(json.loads(client.received.partition(b"\r\n\r\n")[2])) == {"error", "message"}
    assert (b"sec-websocket-version: 13" in client.received.lower()) == (status == 426)
    assert (await stage.gateway.get("/api/ws")).status == 400


async def test_hostile_heads_are_no_matter_of_the_handshakes(stage: Stage) -> None:
    """Whatever else is in the head, the WebSocket is opened by what we checked."""
    client = await stage.upgraded(
        b"Sec-WebSocket-Extensions: ((", b"Sec-WebSocket-Protocol: \xff, ,", b"X-A: " + b"y" * 8000
    )
    assert client.received.startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff" * 20,  # reserved bits
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",  # not a frame
        b"\x81\x05hello",  # not masked
        masked(9, b"x" * 126),  # a control frame that is too long
        masked(1, b"\xff\xff"),  # no UTF-8
    ],
)
async def test_one_that_does_not_speak_the_protocol_is_closed(stage: Stage, sent: bytes) -> None:
    """Nothing is logged as a failure, and what it sends after that is not read."""
    client = await stage.upgraded()
    client.transport.write(sent)
    client.transport.write(sent)
    await client.closed
    await stage.gone()
    assert len(stage.live.subscriptions) == 0


async def test_a_websocket_client_may_talk_but_not_at_length(stage: Stage) -> None:
    """Messages are read by nobody; one without end is cut off with 1008."""
    client = await stage.upgraded()
    client.transport.write(masked(1, b"hello") + masked(2, b"\x00") + masked(10, b"") + masked(9, b"hi"))
    await client.until(b"\x8a\x02hi")
    client.transport.write(masked(1, b"a" * 60_000, final=False))
    for _ in range(2):
        client.transport.write(masked(0, b"a" * 60_000, final=False))
    await client.until(b"\x88\x02\x03\xf0")
    await client.closed
    await stage.gone()


async def test_a_websocket_client_that_half_closes_has_left(stage: Stage) -> None:
    """Nothing that is no frame is written to it."""
    client = await stage.upgraded()
    client.transport.loseWriteConnection()
    await client.closed
    await stage.gone()
    assert [opcode for opcode, _ in frames(client.received)] == []


async def test_without_the_package_there_are_events_still(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer says what there is instead."""
    monkeypatch.setattr("chutes_autopilot.web.explorer.streams.find_spec", lambda _name: None)
    client = await stage.upgraded()
    await client.complete()
    assert client.received.startswith(b"HTTP/1.1 501 ")
    assert b"/api/events" in client.received
    await stage.follow()


async def test_the_feed_has_a_tag(stage: Stage) -> None:
    """Who has it already is told so."""
    first = await stage.gateway.get("/feed.atom")
    assert (first.status, first.header("content-type")) == (200, "application/atom+xml; charset=utf-8")
    tag = first.header("etag") or ""
    again = await stage.gateway.get("/feed.atom", b"If-None-Match: " + tag.encode())
    assert (again.status, again.body) == (304, b"")
