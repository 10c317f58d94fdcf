"""A client's connection in memory: what it may send, how long it may take, and what follows a refusal."""

import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import trustme
from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ISystemHandle
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import directlyProvides

from chutes_autopilot.errors import ApiError
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.web.channel import LINGER_SECONDS, LOOK_SECONDS, PROBE_SECONDS
from chutes_autopilot.web.connections import ClientConnections
from chutes_autopilot.web.request_head import MAX_HEAD_BYTES, MAX_HEADERS, MAX_REQUEST_LINE
from chutes_autopilot.web.site import ClientLimits, GatewayRequest, GatewaySite

AUTHORITY = trustme.CA()
_ISSUED = AUTHORITY.issue_cert("localhost")
SERVER = PrivateCertificate.loadPEM(_ISSUED.private_key_pem.bytes() + _ISSUED.cert_chain_pems[0].bytes())
LIMITS = ClientLimits(max_request_bytes=1000, header_timeout=30, body_timeout=60, idle_timeout=75)


class Recorder(Resource):
    """Answers every request at once, or keeps it in ``held``."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bytes, bytes]] = []
        self.held: list[GatewayRequest] = []
        self.hold = False

    def render(self, request: Any) -> int:
        self.seen.append((request.uri, request.take_body()))
        self.held.append(request)
        if not self.hold:
            self.answer()
        return NOT_DONE_YET

    def answer(self) -> None:
        request = self.held.pop(0)
        request.answer(200, request.uri, b"text/plain")
        request.finish()


@define(eq=False)
class Peer:
    """A client of a site of its own."""

    clock: Clock = field(factory=Clock)
    resource: Recorder = field(factory=Recorder)
    refusals: list[str] = field(factory=list)
    transport: StringTransport = field(factory=StringTransport)
    channel: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        def refused(request: GatewayRequest, error: ApiError) -> None:
            self.refusals.append(error.code)

        self.connect(
            GatewaySite(self.resource, self.clock, LIMITS, refused, ClientConnections(1), Deadlines(self.clock))
        )

    def connect(self, site: GatewaySite) -> None:
        self.channel = site.buildProtocol(None)
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        self.channel.dataReceived(data)
        self.clock.advance(0)

    def answer(self) -> None:
        self.resource.answer()
        self.clock.advance(0)

    @property
    def received(self) -> bytes:
        return self.transport.value()

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", self.received)]

    @property
    def error(self) -> str:
        head, _, body = self.received.rpartition(b"\r\n\r\n")
        assert {b"Connection: close", b"Content-Type: application/json"} <= set(head.split(b"\r\n"))
        return str(json.loads(body)["error"]["code"])

    @property
    def is_reset(self) -> bool:
        return self.transport.disconnected

    def leave(self) -> None:
        if not self.transport.disconnected:
            self.channel.connectionLost()


class Wire(StringTransport):
    """Under TLS."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Everything is sent at once as it is."""


@define(eq=False)
class TlsPeer(Peer):
    """The same over TLS; of what it sends nothing is heard while nothing is read."""

    transport: StringTransport = field(factory=Wire)
    tls: ssl.SSLObject = field(init=False)
    wrapper: Any = field(init=False)
    incoming: ssl.MemoryBIO = field(factory=ssl.MemoryBIO)
    outgoing: ssl.MemoryBIO = field(factory=ssl.MemoryBIO)

    def connect(self, site: GatewaySite) -> None:
        trusting = ssl.create_default_context()
        AUTHORITY.configure_trust(trusting)
        self.tls = trusting.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.wrapper = TLSMemoryBIOFactory(SERVER.options(), False, site, self.clock).buildProtocol(None)
        self.wrapper.makeConnection(self.transport)
        self.channel = self.wrapper.wrappedProtocol
        self.until_done(self.tls.do_handshake)

    def until_done(self, work: Callable[[], object]) -> None:
        """Do what needs words of both sides, if the other one listens."""
        for _ in range(9):
            with suppress(ssl.SSLWantReadError):
                work()
                break
            self.talk()
        self.talk()

    def talk(self) -> None:
        if self.transport.producerState == "producing" and self.outgoing.pending:
            self.wrapper.dataReceived(self.outgoing.read())
        self.clock.advance(0)
        self.incoming.write(self.transport.value())
        self.transport.clear()

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self.talk()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.leave()
    assert not [call for call in peer.clock.getDelayedCalls() if "_sweep" not in str(call)]


def get(path: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join([b"GET " + path + b" HTTP/1.1", b"Host: x", *lines]) + b"\r\n\r\n"


def post(body: bytes, *lines: bytes, length: int | None = None) -> bytes:
    head = [b"POST /p HTTP/1.1", b"Host: x", b"Content-Length: %d" % (len(body) if length is None else length)]
    return b"\r\n".join([*head, *lines]) + b"\r\n\r\n" + body


def many(count: int) -> list[bytes]:
    return [b"X-%d: y" % i for i in range(count)]


@pytest.mark.parametrize(
    ("data", "code", "status"),
    [
        (get(b"/" + b"a" * MAX_REQUEST_LINE), "uri_too_long", 414),
        (b"GET /" + b"a" * (MAX_HEAD_BYTES + 1), "uri_too_long", 414),
        (get(b"/", *many(MAX_HEADERS)), "headers_too_large", 431),
        (get(b"/", *[b"X: " + b"y" * 8000] * 5), "headers_too_large", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * (MAX_HEAD_BYTES + 1), "headers_too_large", 431),
        (get(b"/", b"Expect: a-miracle"), "expectation_failed", 417),
        (post(b"", length=1001), "request_too_large", 413),
        (post(b"", length=10**40), "request_too_large", 413),
        (post(b"", b"Content-Length: 0"), "bad_request", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "bad_request", 400),
    ],
)
def test_a_refusal_is_json_and_the_last_thing_said(peer: Peer, data: bytes, code: str, status: int) -> None:
    """Whatever follows it is discarded, whether it came at once or later."""
    peer.send(data + get(b"/smuggled"))
    peer.send(get(b"/smuggled"))
    assert (peer.statuses, peer.error, peer.refusals) == ([status], code, [code])
    assert not peer.resource.seen
    peer.clock.advance(LINGER_SECONDS)
    assert peer.is_reset


def test_the_limits_themselves_are_allowed(peer: Peer) -> None:
    """As many headers, and as long a request line, as the documents promise."""
    peer.send(get(b"/" + b"a" * (MAX_REQUEST_LINE - len(b"GET / HTTP/1.1")), *many(MAX_HEADERS - 1)))
    assert peer.statuses == [200]


@pytest.mark.parametrize("tokens", [b"close", b"keep-alive, close", b"Keep-Alive,CLOSE", b"close ,x"])
def test_a_client_that_asks_for_it_gets_its_last_answer(peer: Peer, tokens: bytes) -> None:
    """RFC 9112 section 9.6, however the list is written; a request behind it is not read."""
    peer.send(get(b"/one", b"Connection: x", b"Connection: " + tokens) + get(b"/two"))
    assert peer.resource.seen == [(b"/one", b"")]
    assert b"\r\nConnection: close\r\n" in peer.received
    assert peer.transport.disconnecting


def test_http_1_0_is_answered_and_closed(peer: Peer) -> None:
    """Without a Host, and whatever it says of keeping the connection."""
    peer.send(b"GET /one HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + get(b"/two"))
    assert peer.resource.seen == [(b"/one", b"")]
    assert peer.transport.disconnecting


def test_pipelined_requests_are_answered_in_order(peer: Peer) -> None:
    """The next one is not even looked at before the answer to the one before is complete."""
    peer.resource.hold = True
    peer.send(get(b"/1") + post(b"two") + b"\r\n" + get(b"/3") + b"garbage\r\n" + get(b"/4"))
    for count in (1, 2, 3):
        assert (len(peer.resource.seen), len(peer.statuses)) == (count, count - 1)
        peer.answer()
    assert peer.resource.seen == [(b"/1", b""), (b"/p", b"two"), (b"/3", b"")]
    assert (peer.statuses, peer.error) == ([200, 200, 200, 400], "bad_request")


@pytest.mark.parametrize("hold", [False, True])
def test_one_request_is_read_in_a_turn_of_the_reactor(peer: Peer, hold: bool) -> None:
    """However many came in one read, or behind one that took long: others have their turns between them."""
    peer.resource.hold = hold
    peer.channel.dataReceived(get(b"/") * 9)
    if hold:
        peer.resource.hold = False
        peer.resource.answer()
    found = [len(peer.resource.seen)]
    peer.clock.callLater(0, lambda: found.append(len(peer.resource.seen)))  # in the same turn as the second request
    peer.clock.advance(0)
    assert (found, peer.statuses) == ([1, 2], [200] * 9)


@pytest.mark.parametrize(("body", "expected"), [(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), (b"late", b"")])
def test_a_client_that_waits_for_it_is_told_to_continue(peer: Peer, body: bytes, expected: bytes) -> None:
    """Once its head is accepted; expectations of HTTP/1.0 are ignored (RFC 9110 section 10.1.1)."""
    version = b"1.0" if body else b"1.1"
    peer.send(b"POST / HTTP/" + version + b"\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 4\r\n\r\n")
    assert peer.received == expected
    peer.send(b"body")
    assert peer.resource.seen == [(b"/", b"body")]


@pytest.mark.parametrize("begin", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX: 1", b"\r\nGET"])
def test_a_slow_head_is_refused(peer: Peer, begin: bytes) -> None:
    """408 when the head is not whole in time; for the first one it counts from the connection on."""
    peer.clock.advance(20)
    peer.send(begin)
    for _ in range(9):
        peer.clock.advance(1)
        peer.send(b"x")
    assert not peer.received
    peer.clock.advance(1)
    assert (peer.statuses, peer.error) == ([408], "request_timeout")


def test_a_slow_body_is_refused(peer: Peer) -> None:
    """408 when it is not whole in time, counted from the end of the head, however it drips."""
    peer.clock.advance(29)
    peer.send(post(b"", length=100))
    for _ in range(59):
        peer.clock.advance(1)
        peer.send(b"x")
    assert not peer.received
    peer.clock.advance(1)
    assert (peer.statuses, peer.error) == ([408], "request_timeout")
    assert not peer.resource.seen


def test_the_times_begin_anew_with_each_request(peer: Peer) -> None:
    """A head's at its first byte, and none runs while the gateway answers."""
    peer.send(get(b"/1"))
    peer.clock.advance(74)
    peer.send(b"POST /p")
    peer.clock.advance(29)
    peer.send(post(b"", length=3)[len(b"POST /p") :])
    peer.clock.advance(59)
    peer.resource.hold = True
    peer.send(b"two")
    peer.clock.advance(10_000)
    peer.resource.answer()
    assert (peer.statuses, peer.transport.disconnecting) == ([200, 200], False)


@pytest.mark.parametrize(("before", "seconds"), [(b"", 30), (get(b"/"), 75), (get(b"/") + b"\r\n", 75)])
def test_an_idle_connection_is_closed_without_a_word(peer: Peer, before: bytes, seconds: float) -> None:
    """Nothing was asked, so nothing is answered; a stray line end is no request, and a late one is not read."""
    peer.send(before)
    said = peer.received
    peer.clock.advance(seconds - 1)
    assert not peer.transport.disconnecting
    peer.clock.advance(1)
    assert peer.transport.disconnecting
    peer.send(get(b"/late"))
    assert peer.received == said


def test_a_client_that_never_closes_is_closed(peer: Peer) -> None:
    """Also after its last answer, when it neither reads nor goes away."""
    peer.send(get(b"/", b"Connection: close"))
    assert not peer.is_reset
    peer.clock.advance(75)
    assert peer.is_reset


@pytest.mark.parametrize(
    ("sent", "seconds", "status"),
    [(get(b"/"), LIMITS.idle_timeout, b" 200 OK"), (post(b"half", length=9), LIMITS.body_timeout, b" 408 ")],
    ids=["idle", "refused"],
)
def test_over_tls_the_clients_goodbye_is_heard_though_nothing_was_read_any_more(
    sent: bytes, seconds: float, status: bytes
) -> None:
    """Reading stops while a client takes nothing; when the connection is to end it goes on, so that both have said that
    they are done and nobody waits for a reset."""
    peer = TlsPeer()
    peer.send(sent)
    peer.transport.producer.pauseProducing()  # type: ignore[union-attr]
    assert peer.transport.producerState == "paused"
    peer.clock.advance(seconds)
    peer.talk()
    assert status in peer.tls.read(999)
    assert not peer.transport.disconnecting
    peer.until_done(peer.tls.unwrap)
    assert (peer.transport.disconnecting, peer.is_reset) == (True, False)
    peer.wrapper.connectionLost(Failure(ConnectionDone()))
    assert not [call for call in peer.clock.getDelayedCalls() if "_sweep" not in str(call)]


def outcome(pieces: list[bytes]) -> tuple[list[tuple[bytes, bytes]], list[int], list[str]]:
    peer = Peer()
    for piece in pieces:
        peer.send(piece)
    peer.leave()
    return peer.resource.seen, peer.statuses, peer.refusals


_line = st.sampled_from(
    [
        b"Host: x",
        b"Content-Length: 4",
        b"Transfer-Encoding: chunked",
        b"X: y",
        b" fold",
        b"X\x00: y",
        b"Connection: close",
    ]
)
_head = st.tuples(
    st.sampled_from([b"POST /1 HTTP/1.1", b"GET http://h HTTP/1.0", b"X", b""]), st.lists(_line, max_size=4)
)
_body = st.sampled_from([b"", b"body", b"4\r\nbody\r\n0\r\n\r\n", b"4\r\nbody0\r\n\r\n", b"\r\n", b"\n", b"\xff\x00"])
_request = st.builds(lambda head, body: b"\r\n".join([head[0], *head[1]]) + b"\r\n\r\n" + body, _head, _body)
_bytes = st.lists(_request, min_size=1, max_size=3).map(b"".join)


def _split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


@given(_bytes, st.lists(st.integers(min_value=0), max_size=8))
def test_how_bytes_are_cut_into_reads_changes_nothing(data: bytes, cuts: list[int]) -> None:
    """The same requests are served and the same refusals given, whatever the network does to the pieces."""
    assert outcome(_split(data, cuts)) == outcome([data])


@given(st.one_of(st.binary(max_size=200), _bytes, st.lists(st.one_of(_bytes, st.binary(max_size=8))).map(b"".join)))
def test_no_bytes_break_the_connection(data: bytes) -> None:
    """Every answer is a whole one, at most one is a refusal, and it is the last."""
    seen, statuses, refusals = outcome([data])
    served = [status for status in statuses if status == 200]
    assert len(served) == len(seen)
    assert statuses == served + ([] if not refusals else [statuses[-1]])
    assert len(refusals) <= 1


def test_a_client_that_is_read_no_more_may_end_behind_a_request_that_is_still_unread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its end is seen before it is read, and the connection is closed when it is read."""
    peer = Peer()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(peer.transport, "getHandle", lambda: ours, raising=False)
        directlyProvides(peer.transport, ISystemHandle)
        peer.channel.site.limits = evolve(LIMITS, max_request_bytes=100_000)
        peer.resource.hold = True
        peer.send(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
        peer.send(b"POST /second HTTP/1.1\r\nHost: a\r\nContent-Length: 80000\r\n\r\n" + b"x" * 70_000)
        theirs.shutdown(socket.SHUT_WR)
        peer.clock.advance(LOOK_SECONDS)
        peer.answer()
        peer.clock.advance(PROBE_SECONDS)
        assert not peer.transport.disconnecting
        peer.send(b"x" * 10_000)
        peer.channel.readConnectionLost()
        assert [uri for uri, _ in peer.resource.seen] == [b"/first", b"/second"]
        peer.answer()
        assert (peer.statuses, peer.transport.disconnecting) == ([200, 200], True)
