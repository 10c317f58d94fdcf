"""Polling without what Twisted does around each descriptor: what a descriptor's events mean stays as it is."""

import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, cast

import pytest
import trustme
from twisted.internet.defer import succeed
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.ssl import Certificate, optionsForClientTLS
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection, Server
from twisted.python.failure import Failure
from zope.interface import implementer

from chutes_autopilot.polling import poll_plainly
from chutes_autopilot.upstream.connection import SEND_SLICE_BYTES, UpstreamConnection
from chutes_autopilot.upstream.direct import TOGETHER, best_write
from chutes_autopilot.upstream.tls import TLSEndpoint


class Side:
    """A descriptor that notes what it is told."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.fileno = connection.fileno
        self.told: list[Any] = []
        self.then = lambda: None

    def doRead(self) -> object:
        data = self.connection.recv(100)
        self.told.append(data)
        self.then()
        return None if data else CONNECTION_DONE

    def doWrite(self) -> None:
        self.told.append("writable")

    def connectionLost(self, reason: Failure) -> None:
        self.told.append(reason.type)

    def logPrefix(self) -> str:
        raise AssertionError("asked for its log context")


class World:
    """A reactor of its own, with two descriptors that have peers."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.reactor: Any = EPollReactor()
        if clock is not None:
            self.reactor.seconds = clock.seconds
        self.pairs = [socket.socketpair() for _ in range(2)]
        self.sides = [Side(ours) for ours, _ in self.pairs]
        for side in self.sides:
            self.reactor.addReader(side)

    def close(self) -> None:
        self.reactor.runUntilCurrent()
        for left in self.reactor.removeAll():
            if isinstance(left, Connection):
                left.connectionLost(Failure(CONNECTION_DONE))
        for pair in self.pairs:
            for end in pair:
                end.close()
        self.reactor._poller.close()
        self.reactor.waker.connectionLost(None)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    assert poll_plainly(made.reactor)
    yield made
    made.close()


def test_each_is_told_of_its_events_without_a_log_context(world: World) -> None:
    """Readable, writable and gone are told as the reactor itself would."""
    (_, peer), side = world.pairs[0], world.sides[0]
    world.reactor.addWriter(side)
    peer.send(b"x")
    world.reactor.doIteration(1)
    world.reactor.removeWriter(side)
    peer.close()
    world.reactor.doIteration(1)
    assert side.told == [b"x", "writable", b"", type(CONNECTION_DONE)]


def test_an_exception_costs_its_descriptor_alone(world: World, logged_errors: Any) -> None:
    """It is logged, and its transport is told that it is lost."""

    def fail() -> None:
        raise ZeroDivisionError

    world.sides[0].then = fail
    for _, peer in world.pairs:
        peer.send(b"x")
    world.reactor.doIteration(1)
    assert [side.told for side in world.sides] == [[b"x", ZeroDivisionError], [b"x"]]
    assert len(logged_errors.flush(ZeroDivisionError)) == 1


def test_one_that_another_removed_in_the_same_turn_is_not_read(world: World) -> None:
    """The kernel named both before the first one was served."""
    first, second = world.sides
    first.then = lambda: world.reactor.removeReader(second)
    second.then = lambda: world.reactor.removeReader(first)
    for _, peer in world.pairs:
        peer.send(b"x")
    world.reactor.doIteration(1)
    assert sorted([first.told, second.told]) == [[], [b"x"]]


class Connected(Protocol):
    """Notes what a connection brings, and may do more."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.then = lambda: None

    def dataReceived(self, data: bytes) -> None:
        self.told.append(data)
        self.then()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.told.append(reason.type)


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Connected):
    """Goes on when the other side sends no more."""

    def readConnectionLost(self) -> None:
        self.told.append("no more")

    def writeConnectionLost(self) -> None:
        pass


class Listening:
    """What a server's transport asks of its port."""

    _realPortNumber = 0


class Line:
    """A transport of Twisted's own, as a server accepts it, with its peer."""

    def __init__(self, reactor: Any, protocol: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.peer = socket.create_connection(listening.getsockname(), 5)
            ours, address = listening.accept()
        self.reactor = reactor
        self.protocol = protocol
        self.transport = Server(ours, protocol, address, cast(Any, Listening()), 1, reactor)
        protocol.makeConnection(self.transport)
        self.transport.startReading()

    def turns(self, count: int = 1) -> list[Any]:
        for _ in range(count):
            self.reactor.runUntilCurrent()
            self.reactor.doIteration(0.2)
        told, self.protocol.told = self.protocol.told, []
        return told


@pytest.fixture
def line(world: World) -> Iterator[Line]:
    made = Line(world.reactor, Connected())
    yield made
    made.peer.close()


def test_a_connection_gets_its_bytes_and_its_end(line: Line) -> None:
    """What the socket has, and then that it was closed."""
    line.peer.send(b"x")
    assert line.turns() == [b"x"]
    line.peer.close()
    assert line.turns() == [type(CONNECTION_DONE)]


def test_a_reset_is_no_clean_end(line: Line) -> None:
    """The error of the socket is told as Twisted tells it."""
    line.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.peer.close()
    assert line.turns() == [type(CONNECTION_LOST)]


def test_an_error_of_a_protocol_costs_its_connection(line: Line, logged_errors: Any) -> None:
    """It is logged, and the connection is closed with it as the reason."""

    def fail() -> None:
        raise ZeroDivisionError

    line.protocol.then = fail
    line.peer.send(b"x")
    assert line.turns() == [b"x", ZeroDivisionError]
    assert len(logged_errors.flush(ZeroDivisionError)) == 1


def test_an_aborted_connection_is_not_read(line: Line) -> None:
    """Not even where somebody has it read on before it is gone."""

    def abort() -> None:
        line.transport.abortConnection()
        line.transport.startReading()

    line.protocol.then = abort
    line.peer.send(b"x")
    assert line.turns() == [b"x"]
    line.peer.send(b"y")
    assert b"y" not in line.turns(2)


def test_the_end_of_one_direction_is_told_to_who_wants_to_know(world: World) -> None:
    """A half-close is not a close."""
    protocol = HalfCloseable()
    line = Line(world.reactor, protocol)
    line.peer.shutdown(socket.SHUT_WR)
    assert line.turns() == ["no more"]
    line.transport.write(b"z")
    line.turns()
    assert line.peer.recv(1) == b"z"
    line.peer.close()
    line.transport.connectionLost(Failure(CONNECTION_DONE))


def test_a_connection_is_made(world: World) -> None:
    """Its descriptor is ready once for that, and is not read then."""
    protocol = Connected()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(5)
        factory = cast(Any, ClientFactory).forProtocol(lambda: protocol)
        factory.noisy = False
        world.reactor.connectTCP(*listening.getsockname(), factory)
        world.reactor.runUntilCurrent()
        peer, _ = listening.accept()
        peer.send(b"hello")
        for _ in range(3):
            world.reactor.runUntilCurrent()
            world.reactor.doIteration(0.2)
        assert protocol.told == [b"hello"]
        peer.close()
        world.reactor.doIteration(0.2)


def received(line: Line) -> bytes:
    """What has come to the peer by now."""
    line.peer.setblocking(False)
    try:
        return line.peer.recv(1 << 20)
    except BlockingIOError:
        return b""
    finally:
        line.peer.settimeout(5)


def test_what_is_sent_in_a_turn_goes_out_when_it_is_over(line: Line) -> None:
    """In order, and without another turn; outside of one it goes at once."""
    send, seen = best_write(line.transport), list[bytes]()

    def answer() -> None:
        send(line.transport, b"one ")
        send(line.transport, b"two")
        seen.append(received(line))

    line.protocol.then = answer
    line.peer.send(b"x")
    line.turns()
    assert seen == [b""]
    assert received(line) == b"one two"
    send(line.transport, b"three")
    assert received(line) == b"three"


def test_only_so_many_sends_wait_for_one_another(world: World, line: Line) -> None:
    """The first of them do not wait for the end of a long turn."""
    others = [Line(world.reactor, Connected()) for _ in range(TOGETHER - 1)]
    send, seen = best_write(line.transport), list[bytes]()

    def answer() -> None:
        send(line.transport, b"first")
        for number, other in enumerate(others, 2):
            seen.append(received(line))
            send(other.transport, b"%d" % number)
        seen.append(received(line))

    line.protocol.then = answer
    line.peer.send(b"x")
    line.turns()
    assert seen == [b""] * (TOGETHER - 1) + [b"first"]
    for number, other in enumerate(others, 2):
        assert other.peer.recv(9) == b"%d" % number
        other.peer.close()


def test_what_the_kernel_does_not_take_is_sent_later(line: Line) -> None:
    """All of it arrives, and a producer is told to wait meanwhile."""
    size, told = 8 << 20, list[str]()

    class Producer:
        pauseProducing = partial(told.append, "pause")
        resumeProducing = partial(told.append, "resume")
        stopProducing = partial(told.append, "stop")

    line.transport.registerProducer(Producer(), True)
    line.protocol.then = lambda: best_write(line.transport)(line.transport, b"z" * size)
    line.peer.send(b"x")
    line.turns()
    assert told == ["pause"]
    got = 0
    while got < size:
        got += len(received(line))
        line.turns()
    assert told == ["pause", "resume"]
    line.transport.unregisterProducer()


@pytest.mark.parametrize("close", ["loseConnection", "loseWriteConnection"])
def test_what_was_sent_before_a_connection_is_closed_still_goes_out(world: World, close: str) -> None:
    """The closing waits for it, as for all that is written."""
    protocol = HalfCloseable()
    line = Line(world.reactor, protocol)

    def answer() -> None:
        best_write(line.transport)(line.transport, b"goodbye")
        getattr(line.transport, close)()

    protocol.then = answer
    line.peer.send(b"x")
    line.turns(3)
    line.peer.settimeout(5)
    assert line.peer.recv(100) == b"goodbye"
    assert line.peer.recv(100) == b""
    line.peer.close()
    if line.transport.connected:
        line.transport.connectionLost(Failure(CONNECTION_DONE))


def test_a_producer_that_fails_costs_its_own_connection_alone(world: World, line: Line, logged_errors: Any) -> None:
    """What others sent in the same turn goes out, and the one is closed."""
    other = Line(world.reactor, Connected())

    class Producer:
        def pauseProducing(self) -> None:
            raise ZeroDivisionError

        def stopProducing(self) -> None:
            pass

    def answer() -> None:
        best_write(line.transport)(line.transport, b"z" * (8 << 20))
        best_write(other.transport)(other.transport, b"kept")

    line.transport.registerProducer(Producer(), True)
    line.protocol.then = answer
    line.peer.send(b"x")
    line.turns()
    assert other.peer.recv(9) == b"kept"
    assert line.turns(2) == [ConnectionAborted]
    assert len(logged_errors.flush(ZeroDivisionError)) == 1
    other.peer.close()


def test_a_connection_that_is_lost_in_the_turn_takes_its_bytes_along(world: World, line: Line) -> None:
    """And none of another's."""
    other = Line(world.reactor, Connected())

    def answer() -> None:
        best_write(line.transport)(line.transport, b"lost")
        best_write(other.transport)(other.transport, b"kept")
        line.transport.connectionLost(Failure(CONNECTION_DONE))

    line.protocol.then = answer
    line.peer.send(b"x")
    line.turns()
    assert (line.peer.recv(9), other.peer.recv(9)) == (b"", b"kept")
    other.peer.close()


def test_an_aborted_connection_sends_nothing_more(world: World, line: Line) -> None:
    """Neither what was gathered before nor what comes later in the turn, or after it."""
    send = best_write(line.transport)

    def answer() -> None:
        send(line.transport, b"gathered")
        line.transport.abortConnection()
        send(line.transport, b"late")

    line.protocol.then = answer
    line.peer.send(b"x")
    line.turns()
    send(line.transport, b"later")
    line.turns()
    with pytest.raises(ConnectionResetError):
        line.peer.recv(9)


class Upstream:
    """What an upstream connection tells its holder and its receiver."""

    def __init__(self, *, secure: bool = False) -> None:
        self.told: list[Any] = []
        self.connection = UpstreamConnection(self, secure=secure)

    def made(self, connection: UpstreamConnection) -> None:
        pass

    opened = made

    def wrote(self) -> None:
        pass

    def idle(self, connection: UpstreamConnection) -> None:
        self.told.append("idle")

    def spoiled(self, connection: UpstreamConnection) -> None:
        self.told.append("spoiled")

    def lost(self, connection: UpstreamConnection) -> None:
        self.told.append("lost")

    def broken(self) -> None:
        self.told.append(("broken", self.connection.silent))

    def answer(self, head: object, data: bytes) -> None:
        self.told.append(data)

    head = body = end = broken


STRAY = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray"
SPOILED = ["spoiled", ("broken", True)]


class PlainUpstream(Line):
    """The transport of an upstream connection, and what the upstream says over it."""

    def __init__(self, world: World) -> None:
        self.upstream = Upstream()
        super().__init__(world.reactor, self.upstream.connection)

    def says(self, data: bytes) -> None:
        self.peer.send(data)


class SecureUpstream(PlainUpstream):
    """The same over TLS, after the handshake."""

    def __init__(self, world: World) -> None:
        self.upstream = Upstream(secure=True)
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("up.test").configure_cert(context)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        trust = Certificate.loadPEM(authority.cert_pem.bytes())
        made: list[Any] = []

        class Plain:
            def connect(self, factory: Any) -> Any:
                made.append(factory.buildProtocol(None))
                return succeed(made[0])

        factory = Factory.forProtocol(lambda: self.upstream.connection)
        options = optionsForClientTLS("up.test", trustRoot=trust)
        TLSEndpoint(options, Plain()).connect(factory)  # type: ignore[arg-type]
        Line.__init__(self, world.reactor, made[0])
        self.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            self._in.write(self.peer.recv(1 << 16))
            with suppress(ssl.SSLWantReadError):
                self._tls.do_handshake()
            self.peer.send(self._out.read())
            self.reactor.doIteration(0.2)
        self.reactor.doIteration(0)  # now the kernel names it behind others that became readable before it

    def says(self, data: bytes) -> None:
        self._tls.write(data)
        self.peer.send(self._out.read())


@pytest.fixture(params=[PlainUpstream, SecureUpstream])
def up(request: pytest.FixtureRequest, world: World) -> Iterator[PlainUpstream]:
    made: PlainUpstream = request.param(world)
    yield made
    made.peer.close()


@pytest.mark.parametrize("size", [4, SEND_SLICE_BYTES + 1])
def test_an_answer_to_a_request_that_was_not_sent_is_none(line: Line, up: PlainUpstream, size: int) -> None:
    """A second answer to the request before: the next one, sent in the same turn, must not get it, nor be sent."""
    line.protocol.then = lambda: up.upstream.connection.send(b"POST" * (size // 4 + 1), up.upstream)
    line.peer.send(b"x")
    up.says(STRAY)
    up.reactor.runUntilCurrent()
    up.reactor.doIteration(0.2)
    assert up.upstream.told == SPOILED
    line.turns(2)
    assert up.upstream.told[2:] == ["lost"]
    with pytest.raises(ConnectionResetError):
        up.peer.recv(9)


def test_nor_is_what_comes_before_the_first_part_of_a_large_one_was_sent(up: PlainUpstream) -> None:
    """It goes out when the socket was found to have room, which may be turns later."""
    up.upstream.connection.send(b"z" * (SEND_SLICE_BYTES + 1), up.upstream)
    up.says(STRAY)
    up.reactor.runUntilCurrent()
    up.reactor.doIteration(0.2)
    assert up.upstream.told == SPOILED


@pytest.mark.parametrize("size", [4, SEND_SLICE_BYTES + 1])
def test_nor_is_what_had_come_before_a_request_is_sent_between_two_turns(up: PlainUpstream, size: int) -> None:
    """As after a pause, or when a thread has done its work; nothing of the request is sent."""
    up.says(STRAY)
    up.upstream.connection.send(b"z" * size, up.upstream)
    up.reactor.runUntilCurrent()
    up.reactor.doIteration(0.2)
    up.reactor.runUntilCurrent()
    assert up.upstream.told == [*SPOILED, "lost"]
    with pytest.raises(ConnectionResetError):
        up.peer.recv(9)


def test_nor_is_what_had_come_before_the_request_was_sent_in_a_long_turn(
    world: World, line: Line, up: PlainUpstream
) -> None:
    """The kernel named both together, but the request did not wait for the end of the turn."""
    others = [Line(world.reactor, Connected()) for _ in range(TOGETHER)]

    def ask() -> None:
        up.upstream.connection.send(b"POST", up.upstream)
        for other in others:
            best_write(other.transport)(other.transport, b"x")

    line.protocol.then = ask
    line.peer.send(b"x")
    up.says(STRAY)
    up.reactor.runUntilCurrent()
    up.reactor.doIteration(0.2)
    assert up.upstream.told == SPOILED
    for other in others:
        other.peer.close()


@pytest.mark.parametrize(
    ("kind", "size"),
    [(PlainUpstream, SEND_SLICE_BYTES), (PlainUpstream, 2 * SEND_SLICE_BYTES), (SecureUpstream, SEND_SLICE_BYTES)],
)
def test_a_part_of_a_request_can_be_answered(world: World, kind: type[PlainUpstream], size: int) -> None:
    """As where a body is refused for its size; but the connection carries no other request, for the rest is stuck."""
    up = kind(world)
    up.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    up.upstream.connection.send(b"z" * size, up.upstream)
    for say in (bytes, partial(up.says, STRAY), bytes):
        say()
        up.reactor.runUntilCurrent()
        up.reactor.doIteration(0.2)
    assert up.upstream.told == [b"stray", "lost"]
    up.peer.close()


class Busy:
    """A running reactor, on which time stands still, with a descriptor that is readable as soon as it was read."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.world = World(self.clock)
        self.reads = 0
        self.reactor = self.world.reactor
        assert poll_plainly(self.reactor)
        self.reactor.startRunning(installSignalHandlers=False)
        self.reactor.runUntilCurrent()
        side, (_, peer) = self.world.sides[0], self.world.pairs[0]
        side.then = self.read
        self.then: Callable[[], object] = lambda: None
        self.send = lambda: peer.send(b"x")
        self.send()

    def read(self) -> None:
        self.send()
        self.reads += 1
        if self.reads == 5:
            self.then()
        assert self.reads < 100, "nothing ends the turn"


@pytest.fixture
def busy() -> Iterator[Busy]:
    made = Busy()
    yield made
    made.reactor._justStopped = False  # there is nothing to shut down
    made.world.close()


@pytest.mark.parametrize(
    "what",
    [
        lambda reactor: reactor.callLater(0, int),
        lambda reactor: reactor.callLater(1000, int),
        lambda reactor: reactor.callFromThread(int),
        lambda reactor: reactor.stop(),
        lambda reactor: reactor.crash(),
    ],
    ids=["a call", "a later call", "a thread's call", "stop", "crash"],
)
def test_whatever_else_is_to_be_done_ends_a_turn(busy: Busy, what: Callable[[Any], object]) -> None:
    """Sockets that are always ready keep nothing from its time, and nobody from stopping the reactor."""
    busy.then = lambda: what(busy.reactor)
    busy.reactor.doIteration(None)
    assert busy.reads == 5


def test_a_delayed_call_ends_a_turn_when_its_time_has_come(busy: Busy) -> None:
    """Also where another call, of a later time, is there as well."""
    called: list[int] = []
    for seconds in (7, 3):
        busy.reactor.callLater(seconds, called.append, seconds)
    busy.reactor.runUntilCurrent()
    busy.then = lambda: busy.clock.advance(3)
    busy.reactor.doIteration(3)
    busy.reactor.runUntilCurrent()
    assert (busy.reads, called) == (5, [3])


def test_other_reactors_are_left_as_they_are() -> None:
    """Only the one whose inside is known is changed."""
    reactor: Any = SelectReactor()
    before = reactor.doIteration
    assert not poll_plainly(reactor)
    assert reactor.doIteration == before
    reactor.removeAll()
