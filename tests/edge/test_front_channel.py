"""The front channel does what the reference path does: the same requests over both, compared to the byte."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from zope.interface import implementer

from chutes_autopilot.control.snapshots import Snapshot, SnapshotHolder
from chutes_autopilot.edge.front import FrontSite
from chutes_autopilot.observe.metrics import Metrics
from chutes_autopilot.policy.catalog import parse_catalog
from chutes_autopilot.policy.failover import Timeouts
from chutes_autopilot.policy.ranking import rank
from chutes_autopilot.policy.utilization import parse_utilization
from chutes_autopilot.relay.chat import ChatRelay, RoutingRules
from chutes_autopilot.relay.exchange import Limits
from chutes_autopilot.relay.watch import Patience
from chutes_autopilot.storage.memory import MemoryStickyStore
from chutes_autopilot.upstream.chat import ChatAttempt
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.upstream.pool import Backend, ConnectionPool
from chutes_autopilot.web.channel import GatewayChannel
from chutes_autopilot.web.chat import ChatRoute
from chutes_autopilot.web.connections import ClientConnections
from chutes_autopilot.web.models import ModelsRoute
from chutes_autopilot.web.operations import OperationsRoute
from chutes_autopilot.web.root import build_root
from chutes_autopilot.web.timed import ClientLimits
from chutes_autopilot.wire.ordinary import read_ordinary_head

NAMES = ("a/A", "b/B")
CHUTES = [f"{i}0000000-0000-0000-0000-000000000000" for i in range(2)]
CATALOG = parse_catalog(
    json.dumps({"data": [{"id": n, "chute_id": c} for n, c in zip(NAMES, CHUTES, strict=True)]}).encode()
)
FEED = parse_utilization(
    json.dumps(
        [
            {"name": n, "chute_id": c, "active_instance_count": 9 - i}
            for i, (n, c) in enumerate(zip(NAMES, CHUTES, strict=True))
        ]
    ).encode()
)


class Transport(StringTransportWithDisconnection):
    """A client's or an upstream's end, in memory."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def loseWriteConnection(self) -> None:
        pass

    def abortConnection(self) -> None:
        self.loseConnection()


@implementer(IStreamClientEndpoint)
class Upstream:
    """Answers every request on every connection with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.transports: list[Transport] = []

    def connect(self, factory: Any) -> Deferred[Any]:
        protocol = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        transport = Transport()
        transport.protocol = protocol
        self.transports.append(transport)
        protocol.makeConnection(transport)
        return succeed(protocol)

    def respond(self) -> bytes:
        """Give the answer to the last request and return what was asked."""
        asked = b""
        for transport in self.transports:
            if transport.value():
                asked += transport.value()
                transport.clear()
                transport.protocol.dataReceived(self.answer)
        return asked


class World:
    """A whole service without sockets, one client connection, and an upstream.

    :param front: whether the front channel may take requests, or twisted.web reads them all.
    """

    def __init__(self, answer: bytes, front: bool) -> None:
        self.clock = clock = Clock()
        clock.advance(1000)
        self.upstream = Upstream(answer)
        snapshots = SnapshotHolder(Snapshot(1, CATALOG, 1000, 1000, tuple(rank(FEED.rows, CATALOG)), 2, 0))
        self.metrics = Metrics(lambda model: model)
        deadlines = Deadlines(clock)
        pool = ConnectionPool(clock, lambda backend: self.upstream, 2.0)
        rules = RoutingRules(
            limits=Limits(2, Timeouts(10, 120, 600), 600, Patience(60, 60)),
            max_inflight=100,
            max_list_items=8,
            unknown_models="refuse",
            failback=30,
            client_key_secret=b"0123456789abcdef",
            trusted_proxies=None,
        )
        relay = ChatRelay(
            rules,
            snapshots,
            MemoryStickyStore(1800, 100, clock.seconds),
            self.metrics,
            clock,
            deadlines,
            lambda request, timeout, observer: ChatAttempt(
                pool, Backend(False, "up", 80), deadlines, request, timeout, observer
            ),
        )
        chat = ChatRoute(relay)
        root = build_root(chat, ModelsRoute(snapshots), OperationsRoute(lambda: None, self.metrics))
        limits = ClientLimits(2000, 30, 60, 75)
        site = FrontSite(relay, root, clock, limits, chat.body_refused, ClientConnections(10), deadlines)
        if not front:
            site.protocol = GatewayChannel
        self.channel = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 5))
        self.client = Transport()
        self.client.protocol = self.channel
        self.channel.makeConnection(self.client)

    def send(self, pieces: list[bytes]) -> None:
        """Give bytes to the service; the upstream answers after each piece."""
        self.asked = b""
        for piece in pieces:
            if self.client.connected:
                self.channel.dataReceived(piece)
            self.settle()

    def settle(self) -> None:
        """Let everything happen that waits for nobody."""
        for _ in range(12):
            self.asked += self.upstream.respond()
            self.clock.advance(0)

    def seen(self) -> tuple[list[Any], Any, bool]:
        """What the client got and what the upstream was asked, in a form in which the paths may not differ."""
        return messages(self.client.value()), messages(self.asked), self.client.connected


def messages(raw: bytes) -> list[Any]:
    """Start lines, sorted header lines with lower-case names, bodies; whatever is between heads counts as body."""
    found = []
    for part in raw.split(b"\r\n\r\n"):
        lines = part.split(b"\r\n")
        fields = sorted(
            n.lower() + b":" + v.strip() for n, colon, v in (line.partition(b":") for line in lines[1:]) if colon
        )
        found.append((lines[0], [f for f in fields if not f.startswith((b"date:", b"x-request-id:"))]))
    return found


ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nX-Up: 1\r\n"
    b"Set-Cookie: a\r\nSet-Cookie: b\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nDate: then\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    b"HTTP/1.1 429 Slow Down\r\nContent-Length: 4\r\nRetry-After: 1\r\n\r\nslow",
    b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy",
    b"HTTP/1.1 204 No Content\r\nX-Up: 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"not HTTP at all\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n",
]
BODIES = st.sampled_from(
    [
        b'{"model":"chutesai/AutoPilot","stream":true}',
        b'{"model":"b/B"}',
        b'{"model":"b/B, a/A","prompt_cache_key":"k"}',
        b'{"model":"nobody/Knows"}',
        b'{"model":',
        b"[]",
        b"",
        b'{"model":"a/A","x":"' + b"y" * 2500 + b'"}',
    ]
)
HEADERS = st.lists(
    st.sampled_from(
        [
            b"Authorization: Bearer t",
            b"authorization:Bearer t",
            b"Content-Type: application/json",
            b"X-Request-Id: my-id",
            b"X-Request-Id: not acceptable",
            b"X-Session-Id: s",
            b"X-Forwarded-For: 1.2.3.4",
            b"Accept-Encoding: gzip",
            b"Connection: keep-alive",
            b"Connection: close",
            b"Connection: X-Hop",
            b"X-Hop: 1",
            b"TE: trailers",
            b"Expect: 100-continue",
            b"X-Chutes-Trace: true",
            b"X-Chutes-Autopilot-Selected: spoof",
            b"X-Empty:",
            b"X-Tabs:\t a \t",
            "X-Latin: é".encode("latin-1"),
            b"Content-Length: 3",
            b"Transfer-Encoding: chunked",
            b"Bad Name: x",
            b" folded",
            b"NoColon",
            b"X-Nul: \x00",
        ]
    ),
    max_size=5,
    unique=True,
)
TARGETS = st.sampled_from(
    [b"/v1/chat/completions"] * 4 + [b"/v1/chat/completions?a=1&b", b"/v1/chat/completions/", b"/nope"]
)
VERSIONS = st.sampled_from([b"HTTP/1.1"] * 5 + [b"HTTP/1.0"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request, ordinary or odd."""
    body = draw(BODIES)
    lines = [b"POST " + draw(TARGETS) + b" " + draw(VERSIONS), b"Host: x", *draw(HEADERS)]
    if draw(st.integers(0, 9)):
        lines.insert(draw(st.integers(1, len(lines))), b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@settings(max_examples=300, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=3), st.sampled_from(ANSWERS), st.data())
def test_both_paths_do_the_same(sent: list[bytes], answer: bytes, data: st.DataObject) -> None:
    """For generated requests, pipelined and cut anywhere: the same answers, the same requests upstream."""
    raw = b"".join(sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=3)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    worlds = [World(answer, front) for front in (True, False)]
    for world in worlds:
        world.send(pieces)
    assert worlds[0].seen() == worlds[1].seen()
    assert worlds[0].metrics.active == worlds[1].metrics.active == 0


ORDINARY = b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{"model":"a/A"}'


def test_the_ordinary_request_is_taken_from_the_bytes() -> None:
    """It never becomes a twisted.web request; one with an odd header does."""
    for request, taken in ((ORDINARY, True), (ORDINARY.replace(b"Host", b"TE: trailers\r\nHost"), False)):
        world = World(ANSWERS[0], front=True)
        world.upstream.answer = b""
        world.send([request])
        assert bool(world.channel.requests) is not taken


@pytest.mark.parametrize(
    "change",
    [
        (b"POST", b"post"),
        (b" HTTP/1.1", b"  HTTP/1.1"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"completions", b"completions/"),
        (b"Host: x\r\n", b""),
        (b"Host: x", b"Host:"),
        (b"Host: x", b"Host: u@x"),
        (b"Host: x", b"Host: x\r\nHost: y"),
        (b"Content-Length: 15", b"Content-Length: +15"),
        (b"Content-Length: 15", b"Content-Length: 15\r\ncontent-length: 15"),
        (b"Content-Length: 15", b"Transfer-Encoding: chunked"),
        (b"Host: x", b"Host: x\r\nConnection: close"),
        (b"Host: x", b"Host: x\r\nUpgrade: h2c"),
        (b"Host: x", b"Host : x"),
        (b"Host: x\r\n", b"Host: x\n"),
        (b"Host: x", b"Host: x\r\n folded"),
        (b"Host: x", b"Host: \x01"),
        (b"Host: x", b"Host: x\r\nX-Chutes-Autopilot-Attempts: 9"),
        (b"Host: x", b"Host: x\r\nX: " + b"y" * 9000),
    ],
)
def test_whatever_is_not_exactly_ordinary_is_left_to_the_reference_path(change: tuple[bytes, bytes]) -> None:
    """Method, version, target, repeated, folded or framing headers: nothing odd is judged here."""
    assert read_ordinary_head(ORDINARY) is not None
    assert read_ordinary_head(ORDINARY.replace(*change, 1)) is None


def test_a_client_that_sends_far_too_much_ahead_is_cut_off() -> None:
    """What waits for the answer under way is bounded."""
    world = World(b"", front=True)
    world.send([ORDINARY, ORDINARY * 400, ORDINARY * 1000])
    assert not world.client.connected
    assert world.metrics.active == 0


def test_a_body_in_pieces_has_its_time() -> None:
    """CLIENT_BODY_TIMEOUT_MS holds for requests the channel reads itself: a JSON 408."""
    world = World(ANSWERS[0], front=True)
    world.send([ORDINARY[:-5]])
    world.clock.advance(59.0)
    assert world.client.value() == b""
    world.clock.advance(1.5)
    assert world.client.value().startswith(b"HTTP/1.1 408 ")
    assert b'requests_total{status="408"} 1.0' in world.metrics.exposition()
