"""A whole service without sockets: a client connection, the gateway, and an upstream that always answers the same."""

import json
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from zope.interface import implementer

from chutes_autopilot.control.snapshots import Snapshot, SnapshotHolder
from chutes_autopilot.edge.front import FrontSite
from chutes_autopilot.errors import ApiError
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
from chutes_autopilot.web.site import GatewayRequest
from chutes_autopilot.web.timed import ClientLimits

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

    def unregisterProducer(self) -> None:
        self.producer = None  # sockets do not mind to be told twice

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
            lambda model, request, timeout, observer: ChatAttempt(
                pool, Backend(False, "up", 80), deadlines, request, timeout, observer
            ),
        )
        chat = ChatRoute(relay)
        root = build_root(chat, ModelsRoute(snapshots), OperationsRoute(lambda: None, self.metrics))
        limits = ClientLimits(2000, 30, 60, 75)

        def refused(request: GatewayRequest, error: ApiError) -> None:
            relay.refused(request.request_id, request.received_bytes, error)

        site = FrontSite(relay, root, clock, limits, refused, ClientConnections(10), deadlines)
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
