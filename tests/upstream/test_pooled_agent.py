"""The agent over the pool in memory: what is sent, how a body is read, and every way a request can end."""

from typing import Any

import pytest
from test_connection_pool import MemoryEndpoint, Transport
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectionDone, DNSLookupError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.error import SchemeNotSupported
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IResponse
from zope.interface import implementer
from zope.interface.verify import verifyObject

from chutes_autopilot.upstream.agent import PooledAgent
from chutes_autopilot.upstream.pool import ConnectionPool
from chutes_autopilot.upstream.request_body import MAX_BODY_BYTES

URL = b"http://up.example/feed?a=1"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"


class Reader(Protocol):
    """Keeps a body, pauses after each piece where told to, and knows how it ended."""

    def __init__(self, *, pausing: bool = False) -> None:
        self.body = b""
        self.end: Any = None
        self.pausing = pausing

    def dataReceived(self, data: bytes) -> None:
        self.body += data
        if self.pausing:
            self.transport.pauseProducing()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        assert self.end is None
        self.end = reason.type


@implementer(IBodyProducer)
class Producer:
    """A body in pieces; the end comes when ``finish`` is called, or at once."""

    def __init__(self, *pieces: bytes, length: Any = None, at_once: bool = True) -> None:
        self.pieces = pieces
        self.length = sum(map(len, pieces)) if length is None else length
        self.finished: Deferred[None] = succeed(None) if at_once else Deferred()
        self.stopped = False

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        for piece in self.pieces:
            consumer.write(piece)
        return self.finished

    def pauseProducing(self) -> None:
        raise AssertionError

    def resumeProducing(self) -> None:
        raise AssertionError

    def stopProducing(self) -> None:
        self.stopped = True


class Asked:
    """An agent in front of an endpoint in memory, and what has come of its requests."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.endpoint = MemoryEndpoint()
        self.pool = ConnectionPool(self.clock, lambda backend: self.endpoint, 2.0)
        self.agent = PooledAgent(self.pool)
        self.result: Any = None

    def request(self, method: bytes = b"GET", url: bytes = URL, *rest: Any) -> Deferred[IResponse]:
        asking = self.agent.request(method, url, *rest)
        asking.addBoth(self._got)
        return asking

    def _got(self, result: Any) -> None:
        self.result = result.type if isinstance(result, Failure) else result

    def connected(self, method: bytes = b"GET", *rest: Any) -> Transport:
        """A request that was sent on a new connection."""
        self.request(method, URL, *rest)
        return self.endpoint.accept()

    def read(self, **how: Any) -> Reader:
        reader = Reader(**how)
        self.result.deliverBody(reader)
        return reader


@pytest.fixture
def asked() -> Asked:
    return Asked()


def lose(transport: Transport, reason: Exception) -> None:
    transport.connected = False
    transport.protocol.connectionLost(Failure(reason))


def test_a_get_has_no_body_and_its_answer_is_a_response(asked: Asked) -> None:
    """It is what twisted.web's own agents would give."""
    assert verifyObject(IAgent, asked.agent)
    transport = asked.connected(b"GET", Headers({"A-B": ["c", "d"], "Host": ["elsewhere"]}))
    assert transport.value() == b"GET /feed?a=1 HTTP/1.1\r\nHost: up.example\r\nA-B: c\r\nA-B: d\r\n\r\n"
    transport.protocol.dataReceived(b"HTTP/1.1 404 No such\r\nX-Y: z\r\nContent-Length: 4\r\n\r\nnone")
    response = asked.result
    assert verifyObject(IResponse, response)
    assert (response.code, response.phrase, response.length) == (404, b"No such", 4)
    assert response.headers.getRawHeaders("x-y") == ["z"]
    assert (response.request.method, response.request.absoluteURI) == (b"GET", URL)
    reader = asked.read()
    assert (reader.body, reader.end) == (b"none", ResponseDone)
    with pytest.raises(RuntimeError):
        response.deliverBody(Reader())


def test_connections_are_used_again(asked: Asked) -> None:
    """Also after an answer without a body, and whether or not anybody has read the body."""
    transport = asked.connected()
    for answer in (
        OK + b"body",
        b"HTTP/1.1 204 No\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        OK + b"more",
    ):
        transport.protocol.dataReceived(answer)
        assert (transport.connected, asked.pool.idle_count) == (True, 1)
        transport.clear()
        asked.request()
        assert transport.value().startswith(b"GET /feed")
    assert not asked.endpoint.pending


def test_a_body_waits_for_its_reader(asked: Asked) -> None:
    """No more is read from the connection until there is one."""
    transport = asked.connected()
    transport.protocol.dataReceived(OK + b"bo")
    assert transport.producerState == "paused"
    reader = asked.read()
    assert (reader.body, reader.end, transport.producerState) == (b"bo", None, "producing")
    transport.protocol.dataReceived(b"dy")
    assert (reader.body, reader.end) == (b"body", ResponseDone)


def test_a_reader_that_pauses_gets_nothing_until_it_resumes(asked: Asked) -> None:
    """Neither from the connection, which stands still, nor what one read has brought already."""
    transport = asked.connected()
    transport.protocol.dataReceived(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert asked.result.length is UNKNOWN_LENGTH
    reader = asked.read(pausing=True)
    transport.protocol.dataReceived(b"2\r\nab\r\n")
    assert transport.producerState == "paused"
    transport.protocol.dataReceived(b"2\r\ncd\r\n")
    assert reader.body == b"ab"
    reader.transport.resumeProducing()  # type: ignore[union-attr]
    assert (reader.body, transport.producerState) == (b"abcd", "paused")
    reader.transport.resumeProducing()  # type: ignore[union-attr]
    assert transport.producerState == "producing"
    transport.protocol.dataReceived(b"0\r\n\r\n")
    assert reader.end is ResponseDone


@pytest.mark.parametrize(
    ("head", "reason", "end"),
    [
        (OK, ConnectionDone(), ResponseFailed),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n", ConnectionDone(), ResponseFailed),
        (b"HTTP/1.0 200 OK\r\n\r\n", ConnectionDone(), PotentialDataLoss),
        (b"HTTP/1.0 200 OK\r\n\r\n", ConnectTimeout(), ResponseFailed),
    ],
    ids=["length", "chunked", "until close", "until reset"],
)
def test_a_body_that_stops_early_does_not_look_whole(
    asked: Asked, head: bytes, reason: Exception, end: type[Exception]
) -> None:
    """What came is delivered first."""
    transport = asked.connected()
    transport.protocol.dataReceived(head + b"bo")
    lose(transport, reason)
    reader = asked.read()
    assert (reader.body, reader.end) == (b"bo", end)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 2", b"garbage\r\n\r\n"])
def test_no_head_is_no_response(asked: Asked, sent: bytes) -> None:
    """A connection that breaks, or brings no HTTP, is told as Twisted tells it."""
    transport = asked.connected()
    transport.protocol.dataReceived(sent)
    if transport.connected:
        lose(transport, ConnectionDone())
    assert asked.result is ResponseNeverReceived


@pytest.mark.parametrize("phase", ["connecting", "waiting"])
def test_cancelling_closes_what_was_begun(asked: Asked, phase: str) -> None:
    """And is told as such."""
    asking = asked.request()
    transport = asked.endpoint.accept() if phase == "waiting" else None
    asking.cancel()
    assert asked.result is CancelledError
    if transport is None:
        assert asked.endpoint.cancelled == 1
    else:
        assert not transport.connected
    assert not asked.clock.getDelayedCalls()


@pytest.mark.parametrize("arrived", [OK + b"bo", OK + b"body"], ids=["part", "whole"])
def test_a_reader_can_close_the_connection(asked: Asked, arrived: bytes) -> None:
    """It gets no further byte, and hears once that it is over."""

    class Closing(Reader):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            assert self.transport is not None
            self.transport.loseConnection()

    transport = asked.connected()
    transport.protocol.dataReceived(arrived)
    reader = Closing()
    asked.result.deliverBody(reader)
    assert reader.end is ResponseFailed
    assert transport.connected is (arrived == OK + b"body")


def test_what_still_comes_after_the_reader_closed_is_dropped(asked: Asked) -> None:
    """Closing takes a turn of the reactor, and TLS may hold more than one read."""
    transport = asked.connected()
    transport.protocol.dataReceived(OK)
    reader = asked.read()
    transport.abortConnection = lambda: None  # type: ignore[method-assign]
    reader.transport.loseConnection()  # type: ignore[union-attr]
    transport.protocol.dataReceived(b"bo")
    lose(transport, ConnectionDone())
    assert (reader.body, reader.end) == (b"", ResponseFailed)


def test_a_reader_that_fails_fails_alone(asked: Asked) -> None:
    """Its error ends its own body, and the connection with it."""

    class Failing(Reader):
        def dataReceived(self, data: bytes) -> None:
            raise ValueError

    transport = asked.connected()
    transport.protocol.dataReceived(OK + b"bo")
    reader = Failing()
    asked.result.deliverBody(reader)
    assert (reader.end, transport.connected) == (ValueError, False)


def test_why_no_connection_came_about_is_told(asked: Asked) -> None:
    """The operator reads it in the log: no such name, and nobody who answers in time."""
    asked.request()
    asked.endpoint.pending.pop()[1].errback(DNSLookupError())
    assert asked.result is DNSLookupError
    asked.request()
    asked.clock.advance(2.0)
    assert asked.result is ConnectTimeout


def test_a_body_is_sent_with_its_length(asked: Asked) -> None:
    """Collected first, from a producer of any kind; without one, a POST says that it has none."""
    transport = asked.connected(b"POST", Headers({"Content-Length": ["7"]}), Producer(b"ab", b"cd"))
    assert transport.value() == b"POST /feed?a=1 HTTP/1.1\r\nHost: up.example\r\nContent-Length: 4\r\n\r\nabcd"
    assert asked.connected(b"POST").value().endswith(b"\r\nContent-Length: 0\r\n\r\n")
    late = Producer(b"ab", length=UNKNOWN_LENGTH, at_once=False)
    asked.request(b"POST", URL, None, late)
    assert not asked.endpoint.pending
    late.finished.callback(None)
    assert asked.endpoint.accept().value().endswith(b"\r\nContent-Length: 2\r\n\r\nab")


def test_a_body_that_cannot_be_sent_is_an_error(asked: Asked) -> None:
    """Too large, or not of the length it claims, or never whole: no connection is made for it."""
    for body in (Producer(b"x" * MAX_BODY_BYTES, b"x"), Producer(b"ab", length=3)):
        asked.request(b"POST", URL, None, body)
        assert asked.result is ValueError
    broken = Producer(b"ab", at_once=False)
    asked.request(b"POST", URL, None, broken)
    broken.finished.errback(OSError())
    assert asked.result is OSError
    stopped = Producer(b"ab", at_once=False)
    asked.request(b"POST", URL, None, stopped).cancel()
    assert (asked.result, stopped.stopped) == (CancelledError, True)
    assert not asked.endpoint.pending


def test_only_a_get_is_sent_a_second_time(asked: Asked) -> None:
    """On a kept connection that gave no byte; a POST takes a new connection to begin with."""
    stale = asked.connected()
    stale.protocol.dataReceived(OK + b"body")
    asked.request()
    lose(stale, ConnectionDone())
    fresh = asked.endpoint.accept()
    assert fresh.value().startswith(b"GET ")
    fresh.protocol.dataReceived(OK + b"body")
    assert asked.result.code == 200
    asked.request(b"POST")
    assert len(asked.endpoint.pending) == 1


@pytest.mark.parametrize(
    ("method", "url", "headers", "error"),
    [
        (b"GET", b"ftp://up.example/", None, SchemeNotSupported),
        (b"GET", b"http:///feed", None, ValueError),
        (b"GET", b"http://up.example:99999/", None, ValueError),
        (b"GET", b"http://up.example/a b", None, ValueError),
        (b"GET", b"http://up.example/\xc3\xa9", None, ValueError),
        (b"GET\r\nA: b", URL, None, ValueError),
        (b"HEAD", URL, None, ValueError),
        (b"GET", URL, Headers({"A": ["b\0"]}), ValueError),
    ],
)
def test_what_cannot_be_sent_is_refused(
    asked: Asked, method: bytes, url: bytes, headers: Headers | None, error: type[Exception]
) -> None:
    """By a failure, like everything else, and without a connection."""
    asked.request(method, url, headers)
    assert issubclass(asked.result, error)
    assert not asked.endpoint.pending
