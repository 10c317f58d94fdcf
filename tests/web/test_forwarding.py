"""What a worker passes on to its parent: the request as it came, and the answer byte for byte."""

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from in_memory_route import LIMITS, app
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.client_address import TrustedProxies, parse_cidrs
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.web.connections import ClientConnections
from chutes_autopilot.web.forwarding import OpenLine, forward_to
from chutes_autopilot.web.site import GatewayRequest, GatewaySite
from chutes_autopilot.workers.channel import Channel
from chutes_autopilot.workers.link import ParentLink
from chutes_autopilot.workers.messages import Line, ToParent, ToWorker


class Wire(StringTransport):
    """Either connection; twisted.web asks for more than Twisted's double has."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Worker:
    """A client of a worker that passes everything on, and the line to the parent."""

    def __init__(self, open_line: OpenLine | None = None) -> None:
        self.parent, self.client, self.clock = Wire(), Wire(peerAddress=IPv4Address("TCP", "10.0.0.1", 5)), Clock()
        self.trusted: TrustedProxies | None = None
        self.lines_left = 1
        made = app()
        made.route("/<path:rest>")(forward_to(open_line or self._open, lambda: self.trusted))
        site = GatewaySite(made.resource(), self.clock, LIMITS, _never, ClientConnections(1), Deadlines(self.clock))
        self.channel: Any = site.buildProtocol(None)
        self.channel.makeConnection(self.client)

    def _open(self, protocol: Any) -> None:
        if not self.lines_left:
            raise OSError(24, "Too many open files")
        self.line = protocol
        protocol.makeConnection(self.parent)

    def ask(self, *lines: str, method: str = "GET", body: str = "") -> tuple[str, set[str], str]:
        """What the parent gets: its request line, its headers and its body."""
        head = [f"{method} /api/x?q=1 HTTP/1.1", "Host: here:81", *lines]
        self.channel.dataReceived("\r\n".join([*head, "", body]).encode())
        first, _, rest = self.parent.value().decode().partition("\r\n")
        headers, _, body = rest.partition("\r\n\r\n")
        return first, set(headers.split("\r\n")), body


def _never(_request: GatewayRequest, error: ApiError) -> None:
    raise AssertionError(error)


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.channel.connectionLost(Failure(ConnectionError()))


def test_the_request_goes_as_it_came_but_for_its_connection(worker: Worker) -> None:
    """Target, headers and body; it is the last one of the line, and its body has one length."""
    first, headers, body = worker.ask(
        "Connection: keep-alive",
        "Transfer-Encoding: chunked",
        "A: b",
        "a: c",
        method="POST",
        body="3\r\nabc\r\n0\r\n\r\n",
    )
    assert (first, body) == ("POST /api/x?q=1 HTTP/1.1", "abc")
    ours = {"X-Forwarded-Proto: http", "X-Forwarded-Host: here:81"}
    assert headers == {"Host: here:81", "A: b", "A: c", "Connection: close", "Content-Length: 3"} | ours


@pytest.mark.parametrize(
    ("trusted", "seen"), [("10.0.0.0/8", ("https", "llm.example")), ("11.0.0.0/8", ("http", "here:81"))]
)
def test_the_parent_learns_where_the_visitor_is(worker: Worker, trusted: str, seen: tuple[str, str]) -> None:
    """What a proxy says counts where it is trusted, and is passed on nowhere else."""
    worker.trusted = parse_cidrs(trusted)
    _, headers, _ = worker.ask("X-Forwarded-Proto: https", "X-Forwarded-Host: llm.example")
    assert {line for line in headers if line.startswith("X-Forwarded")} == {
        f"X-Forwarded-Proto: {seen[0]}",
        f"X-Forwarded-Host: {seen[1]}",
    }


def test_the_answer_comes_as_it_is_and_ends_the_connection(worker: Worker) -> None:
    """Every byte at once, nothing of our own; what the client sends meanwhile is nothing."""
    worker.ask()
    worker.line.dataReceived(b"HTTP/1.1 200 OK\r\n\r\nda")
    worker.channel.dataReceived(b"GET /smuggled HTTP/1.1\r\n\r\n")
    worker.line.dataReceived(b"ta")
    assert (worker.client.value(), worker.client.disconnecting) == (b"HTTP/1.1 200 OK\r\n\r\ndata", False)
    worker.line.connectionLost()
    assert (worker.client.disconnecting, b"smuggled" in worker.parent.value()) == (True, False)


def test_a_websocket_goes_both_ways(worker: Worker) -> None:
    """Once asked for, what the client sends reaches the parent as it is."""
    _, headers, _ = worker.ask("Connection: Upgrade", "Upgrade: websocket")
    assert {"Connection: Upgrade", "Upgrade: websocket"} <= headers
    worker.line.dataReceived(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    worker.channel.dataReceived(b"\x81\x00")
    assert worker.parent.value().endswith(b"\r\n\r\n\x81\x00")


def test_a_slow_client_slows_the_parent(worker: Worker) -> None:
    """Back-pressure of the client's connection becomes that of the line."""
    worker.ask()
    worker.channel.pauseProducing()
    paused = worker.parent.producerState
    worker.channel.resumeProducing()
    assert (paused, worker.parent.producerState) == ("paused", "producing")


def test_a_client_that_leaves_ends_the_line() -> None:
    """The parent need not go on."""
    worker = Worker()
    worker.ask()
    worker.channel.connectionLost(Failure(ConnectionError()))
    assert worker.parent.aborted


async def test_a_client_that_leaves_at_once_hurts_nobody() -> None:
    """Its line comes to the parent as an ended one, and the parent and the worker go on to talk."""
    talking: list[Deferred[Any]] = [Deferred(), Deferred(), Deferred()]
    heard, *ended = talking
    made: Any = reactor
    ours = Channel(ToWorker, made, lambda message: None, lambda: ended[0].callback(None))
    theirs = Channel(ToParent, made, heard.callback, lambda: ended[1].callback(None))
    for side, end in zip((ours, theirs), socket.socketpair(), strict=True):
        with end:
            end.setblocking(False)
            made.adoptStreamConnection(end.fileno(), socket.AF_UNIX, Factory.forProtocol(lambda side=side: side))  # type: ignore[misc]
    begin: Any = SimpleNamespace(workers=1)
    worker = Worker(ParentLink(begin, ours, made, ()).open_line)
    worker.ask()
    worker.channel.connectionLost(Failure(ConnectionError()))
    assert await heard == Line()
    (line,) = theirs.take_descriptors(1)
    with socket.socket(fileno=line) as sent:
        assert sent.recv(1) == b""
    assert ours.open
    ours.close()
    theirs.close()
    for each in ended:
        await each


def test_without_a_line_the_client_is_told(worker: Worker) -> None:
    """Out of descriptors it is 503 overloaded, and the connection lives on."""
    worker.lines_left = 0
    worker.ask()
    assert worker.client.value().startswith(b"HTTP/1.1 503 ")
    assert b"overloaded" in worker.client.value()
