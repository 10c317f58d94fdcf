"""What a client can send over real sockets: nothing odd becomes a second request, and every answer arrives."""

import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trustme
from attrs import frozen
from loopback_peers import (
    CHUNKED,
    Gateway,
    RawClient,
    ScriptedUpstream,
    StartGateway,
    chunk,
    read_response,
    respond,
    silent,
)
from OpenSSL.SSL import TLS_METHOD
from pytest_twisted import blockon
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import eventAsText, globalLogPublisher
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import directlyProvides

from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.web.channel import AHEAD_BYTES
from chutes_autopilot.web.connections import ClientConnections
from chutes_autopilot.web.site import ClientLimits, GatewaySite

START = b"POST /v1/chat/completions HTTP/1.1"
BODY = b'{"model":"a/A"}'
SECOND = b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{"model":"b/B"}'


def head(*lines: bytes, start: bytes = START) -> bytes:
    return b"\r\n".join([start, b"Host: x", *lines]) + b"\r\n\r\n"


def sized(*lines: bytes, start: bytes = START) -> bytes:
    return head(b"Content-Length: 15", *lines, start=start) + BODY


def chunked(body: bytes, *lines: bytes) -> bytes:
    return head(b"Transfer-Encoding: chunked", *lines) + body


LIMITS = ClientLimits(max_request_bytes=1000, header_timeout=30, body_timeout=60, idle_timeout=75)

both_paths = pytest.mark.parametrize("path", ["front", "reference"])
"""For what concerns ordinary chat requests, whoever reads them."""


def read_by(path: str, data: bytes) -> bytes:
    """The same requests; for the reference path with a header that the front channel leaves to twisted.web."""
    return data if path == "front" else data.replace(b"Host: x\r\n", b"Host: x\r\nTE: trailers\r\n")


HOSTILE = {
    "length with coding": head(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "coding with length": head(b"Transfer-Encoding: chunked", b"Content-Length: 5") + b"0\r\n\r\n",
    "coding, blank before colon": head(b"Content-Length: 5", b"Transfer-Encoding : chunked") + b"0\r\n\r\n",
    "coding, tab before colon": head(b"Transfer-Encoding\t: chunked") + b"0\r\n\r\n",
    "coding xchunked": head(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    "coding identity": sized(b"Transfer-Encoding: identity"),
    "coding chunked, identity": head(b"Transfer-Encoding: chunked, identity") + b"0\r\n\r\n",
    "coding gzip, chunked": head(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    "coding with VT": head(b"Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n",
    "coding in quotes": head(b'Transfer-Encoding: "chunked"') + b"0\r\n\r\n",
    "coding folded": head(b"Transfer-Encoding:\r\n chunked") + b"0\r\n\r\n",
    "coding empty": head(b"Transfer-Encoding:") + b"0\r\n\r\n",
    "coding twice": head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "coding twice, other": head(b"Transfer-Encoding: chunked", b"Transfer-encoding: x") + b"0\r\n\r\n",
    "coding in HTTP/1.0": head(b"Transfer-Encoding: chunked", start=START[:-1] + b"0") + b"0\r\n\r\n",
    "lengths that differ": sized(b"Content-Length: 1"),
    "length twice": sized(b"Content-Length: 15"),
    "length list": head(b"Content-Length: 15,15") + BODY,
    "length +": head(b"Content-Length: +15") + BODY,
    "length -": head(b"Content-Length: -15") + BODY,
    "length hex": head(b"Content-Length: 0xf") + BODY,
    "length with underscore": head(b"Content-Length: 1_5") + BODY,
    "length with blank": head(b"Content-Length: 1 5") + BODY,
    "length empty": head(b"Content-Length:") + BODY,
    "length of 5000 digits": head(b"Content-Length: " + b"9" * 5000) + BODY,
    "LF within the head": head(b"Content-Length: 15\nX: y") + BODY,
    "LF only": head(b"Content-Length: 15").replace(b"\r\n", b"\n") + BODY,
    "CR only": head(b"Content-Length: 15").replace(b"\r\n", b"\r") + BODY,
    "CR in a value": sized(b"X: a\rY: b"),
    "NUL in a value": sized(b"X: a\x00b"),
    "DEL in a value": sized(b"X: a\x7fb"),
    "folded line": sized(b"X: a", b" b"),
    "blank first line": head(start=START).replace(b"Host", b" Host"),
    "blank in a name": sized(b"X Y: z"),
    "no name": sized(b": z"),
    "no colon": sized(b"XYZ"),
    "name that is not ASCII": sized(b"X\xe9: z"),
    "Host twice": sized(b"Host: y"),
    "Host with a path": sized(b"TE: trailers").replace(b"Host: x", b"Host: x/y"),
    "Host with a user": sized(b"TE: trailers").replace(b"Host: x", b"Host: u@x"),
    "no Host": sized().replace(b"Host: x\r\n", b""),
    "HTTP/0.9": b"POST /v1/chat/completions\r\n",
    "HTTP/1.2": sized(start=START[:-1] + b"2"),
    "http/1.1": sized(start=START.replace(b"HTTP", b"http")),
    "two blanks": sized(start=START.replace(b" ", b"  ")),
    "tab for a blank": sized(start=START.replace(b" ", b"\t")),
    "blank at the end": sized(start=START + b" "),
    "target that is not ASCII": sized(start=START.replace(b"chat", b"ch\xe4t")),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "chunk size +": chunked(b"+f\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk size -": chunked(b"-f\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk size 0x": chunked(b"0xf\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk size after a blank": chunked(b" f\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk size before a blank": chunked(b"f \r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk size empty": chunked(b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk size then LF": chunked(b"f\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk extension with LF": chunked(b"f;a\nb\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk without its end": chunked(b"f\r\n" + BODY + b"0\r\n\r\n"),
    "chunk longer than its size": chunked(b"e\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk extension without end": chunked(b"f;" + b"x" * 2000),
}


@both_paths
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
async def test_what_could_be_read_in_two_ways_is_refused(
    scripted: ScriptedUpstream, gateway: Gateway, path: str, data: bytes
) -> None:
    """One JSON 400, then the end: neither it nor the request hidden behind it reaches the upstream."""
    client = await gateway.connect()
    client.transport.write(read_by(path, data + SECOND))
    await client.closed
    response = read_response(client.received)
    assert (response.status, response.error["code"]) == (400, "bad_request")
    assert response.header("connection") == "close"
    assert len(re.findall(rb"HTTP/1\.[01] \d", client.received)) == 1
    assert not scripted.requests


ODD_BUT_PLAIN = {
    "absolute form": sized(start=START.replace(b" /", b" HTTP://other.host:81/")),
    "coding after a tab": head(b"Transfer-Encoding:\tCHUNKED \t") + b"f\r\n" + BODY + b"\r\n0\r\n\r\n",
    "length with zeros": head(b"Content-Length: 0015") + BODY,
    "chunks with zeros and extensions": chunked(
        b'0005;a="b"\r\n' + BODY[:5] + b"\r\nA\r\n" + BODY[5:] + b"\r\n00\r\n\r\n"
    ),
    "trailers": chunked(b"f\r\n" + BODY + b"\r\n0\r\nContent-Length: 3\r\nX: y\r\n\r\n"),
    "a line end before it": b"\r\n" + sized(),
    "Host empty": sized().replace(b"Host: x", b"Host:"),
    "value with high bytes": sized(b"X: \xff\x80"),
    "an upgrade nobody takes": sized(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AA"),
}


@both_paths
@pytest.mark.parametrize("data", ODD_BUT_PLAIN.values(), ids=ODD_BUT_PLAIN)
async def test_what_can_only_be_read_in_one_way_is_served(
    scripted: ScriptedUpstream, gateway: Gateway, path: str, data: bytes
) -> None:
    """The upstream gets one request with the body's bytes and its length, and the next one after it."""
    client = await gateway.connect()
    client.transport.write(read_by(path, data + SECOND))
    await client.until(b'{"from":"b/B"}')
    assert [seen.body for seen in scripted.requests] == [BODY, SECOND[-15:]]
    for seen in scripted.requests:
        assert seen.head.startswith(START + b"\r\n")
        assert b"\r\nContent-Length: 15" in seen.head
        assert b"ransfer-" not in seen.head
        assert b"ettings" not in seen.head


async def test_http_1_0_is_closed_after_its_answer(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """It may ask to be kept alive and needs no Host; what follows is not read."""
    client = await gateway.connect()
    start = START[:-1] + b"0"
    client.transport.write(start + b"\r\nConnection: keep-alive\r\nContent-Length: 15\r\n\r\n" + BODY + SECOND)
    await client.closed
    assert read_response(client.received).body == b'{"from":"a/A"}'
    assert len(scripted.requests) == 1


@both_paths
async def test_requests_sent_ahead_wait_for_the_stream_before_them(
    scripted: ScriptedUpstream, gateway: Gateway, path: str
) -> None:
    """The upstream hears of the second request only when the first stream has ended; garbage is then refused."""
    scripted.scripts["a/A"] = respond(CHUNKED + chunk(b"data: one\n\n"))
    client = await gateway.connect()
    client.transport.write(read_by(path, sized() + SECOND + b"garbage\r\n\r\n" + SECOND))
    await client.until(b"data: one")
    assert len(scripted.requests) == 1
    scripted.connections[-1].transport.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
    await client.closed
    assert [seen.model for seen in scripted.requests] == ["a/A", "b/B"]
    positions = [client.received.index(mark) for mark in (b"data: [DONE]", b'{"from":"b/B"}', b"bad_request")]
    assert positions == sorted(positions)


@both_paths
@pytest.mark.parametrize(
    ("data", "settings", "code", "status"),
    [
        (head(b"Content-Length: 15", b"Expect: more"), {}, "expectation_failed", 417),
        (sized(*[b"X: y"] * 100), {}, "headers_too_large", 431),
        (head()[:-2] + b"X", {"CLIENT_HEADER_TIMEOUT_MS": "50"}, "request_timeout", 408),
        (sized()[:-1], {"CLIENT_BODY_TIMEOUT_MS": "50"}, "request_timeout", 408),
        (chunked(b"f\r\n{"), {"CLIENT_BODY_TIMEOUT_MS": "50"}, "request_timeout", 408),
        (sized().replace(b"15", b"1001"), {"MAX_REQUEST_BYTES": "1000"}, "request_too_large", 413),
        (chunked(b"fffffffffffff\r\n" + b" " * 1001), {"MAX_REQUEST_BYTES": "1000"}, "request_too_large", 413),
    ],
    ids=["expectation", "headers", "slow head", "slow body", "slow chunks", "huge body", "huge chunk"],
)
async def test_a_chat_request_refused_unread_is_answered_and_counted(
    scripted: ScriptedUpstream,
    start_gateway: StartGateway,
    path: str,
    data: bytes,
    settings: dict[str, str],
    code: str,
    status: int,
) -> None:
    """In the one error shape, with a request id, and the connection is closed."""
    gateway = await start_gateway(**settings)
    client = await gateway.connect()
    client.transport.write(read_by(path, data))
    await client.closed
    response = read_response(client.received)
    assert (response.status, response.error["code"]) == (status, code)
    assert (response.header("connection"), len(response.header("x-request-id") or "")) == ("close", 32)
    assert not scripted.requests
    metrics = await gateway.metrics()
    assert (metrics[f'requests_total{{status="{status}"}}'], metrics["requests_active"]) == (1, 0)


@both_paths
async def test_an_idle_connection_is_closed(start_gateway: StartGateway) -> None:
    """After CLIENT_IDLE_TIMEOUT_MS without a request, without a word."""
    gateway = await start_gateway(CLIENT_IDLE_TIMEOUT_MS="50")
    client = await gateway.connect()
    client.post(BODY)
    await client.closed
    assert client.received.endswith(b'{"from":"a/A"}')


@both_paths
@pytest.mark.parametrize("piece", [b"{", b'{"model":"a/A", "stream":true'])
async def test_a_client_that_resets_mid_body_leaves_nothing(
    scripted: ScriptedUpstream, gateway: Gateway, path: str, piece: bytes
) -> None:
    """No request, no error in the log, no connection."""
    for framing in (b"Content-Length: 100", b"Transfer-Encoding: chunked"):
        client = await gateway.connect()
        client.transport.write(read_by(path, head(framing)) + (piece if b"Length" in framing else chunk(piece)))
        await gateway.get("/healthz")
        client.transport.abortConnection()
        await client.closed
    metrics = await gateway.metrics()
    while metrics["client_connections"] > 1:
        metrics = await gateway.metrics()
    assert metrics["requests_active"] == 0
    assert not scripted.requests


@both_paths
@pytest.mark.parametrize("lines", [[], [b"Connection: close"]], ids=["kept", "closed"])
async def test_what_is_ahead_unread_costs_no_answer(
    scripted: ScriptedUpstream, gateway: Gateway, path: str, lines: list[bytes]
) -> None:
    """Requests that reading has stopped before are answered in their turn; where the answer under way was the last one,
    it comes whole and the connection ends in order, not with the reset that unread bytes bring."""
    scripted.scripts["a/A"] = silent
    client = await gateway.connect()
    ahead = SECOND.replace(b"15", b"900").replace(b"}", b" " * 885 + b"}")
    client.transport.write(read_by(path, sized(*lines) + ahead * 5000))
    while (await gateway.metrics())["buffered_request_bytes"] <= AHEAD_BYTES:
        await deferLater(gateway.reactor, 0.001)
    respond(CHUNKED + chunk(b"whole") + b"0\r\n\r\n")(scripted.connections[-1])
    if lines:
        assert await client.closed is ConnectionDone
        assert client.received.endswith(b"whole\r\n0\r\n\r\n")
        assert len(scripted.requests) == 1
    else:
        await client.until(b'{"from":"b/B"}', 500)


class Held(Resource):
    """Keeps the request that it gets."""

    isLeaf = True
    request: Any = None

    def render(self, request: Any) -> int:
        self.request = request
        return NOT_DONE_YET


async def test_what_is_ahead_unread_costs_no_answer_over_a_unix_socket(short_path: Path) -> None:
    """There, too, the answer comes whole and the connection ends in order."""
    from twisted.internet import reactor

    connections, deadlines, held = ClientConnections(10), Deadlines(reactor), Held()
    site = GatewaySite(held, reactor, LIMITS, lambda request, error: None, connections, deadlines)
    port = reactor.listenUNIX(str(short_path), site)
    client = await connectProtocol(UNIXClientEndpoint(reactor, str(short_path)), RawClient())
    client.transport.write(head(b"Connection: close", start=b"GET / HTTP/1.1") + SECOND * 50_000)
    while connections.bodies.held <= AHEAD_BYTES:
        await deferLater(reactor, 0.001)
    held.request.answer(200, b"whole", b"text/plain")
    held.request.finish()
    assert await client.closed is ConnectionDone
    assert client.received.endswith(b"\r\n\r\nwhole")
    await port.stopListening()
    await connections.gone()
    deadlines.stop()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Of a file that is not there yet: those of Unix sockets have a limit."""
    with TemporaryDirectory(prefix="site-") as directory:
        yield Path(directory) / "s"


async def half_close(gateway: Gateway, data: bytes) -> Any:
    """A client that says with its FIN that it has sent everything."""
    client = await gateway.connect()
    directlyProvides(client, IHalfCloseableProtocol)
    client.readConnectionLost = client.transport.loseConnection  # type: ignore[attr-defined]
    client.writeConnectionLost = lambda: None  # type: ignore[attr-defined]
    client.transport.write(data)
    client.transport.loseWriteConnection()
    return client


@both_paths
async def test_a_half_closed_client_gets_its_answers(scripted: ScriptedUpstream, gateway: Gateway, path: str) -> None:
    """All that it had asked for, then the connection closes; the answers themselves are what it waits for."""
    client = await half_close(gateway, read_by(path, sized()) + head(start=b"GET /healthz HTTP/1.1"))
    await client.closed
    assert b'{"from":"a/A"}' in client.received
    assert client.received.endswith(b"ok")


@both_paths
async def test_a_half_closed_client_gets_all_that_it_sent_far_ahead(
    scripted: ScriptedUpstream, gateway: Gateway, path: str
) -> None:
    """Though reading has stopped, it is asked whether it is still there, and answered to the last request."""
    scripted.scripts["a/A"] = silent
    ahead = SECOND.replace(b"15", b"9000").replace(b"}", b" " * 8985 + b"}")
    client = await half_close(gateway, read_by(path, sized()) + ahead * 9)
    await client.until(b"HTTP/1.1 100 Continue\r\n\r\n")
    respond(CHUNKED + chunk(b"whole") + b"0\r\n\r\n")(scripted.connections[-1])
    await client.closed
    assert client.received.count(b'{"from":"b/B"}') == 9


@both_paths
async def test_a_half_closed_client_may_wait_long(scripted: ScriptedUpstream, gateway: Gateway, path: str) -> None:
    """It is asked with a 100 Continue whether it is still there, once, and then gets the whole stream."""
    scripted.scripts["a/A"] = silent
    client = await half_close(gateway, read_by(path, sized()))
    await client.until(b"HTTP/1.1 100 Continue\r\n\r\n")
    await deferLater(gateway.reactor, 1)
    side = scripted.connections[-1]
    respond(CHUNKED + chunk(b"data: one\n\n"))(side)
    await client.until(b"data: one")
    respond(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")(side)
    await client.closed
    assert client.received.count(b"100 Continue") == 1
    assert client.received.endswith(b"0\r\n\r\n")


@both_paths
@pytest.mark.parametrize("begun", [b"", CHUNKED, CHUNKED + chunk(b"data: one\n\n")], ids=["no head", "head", "stream"])
async def test_a_client_that_closed_is_found_out_within_a_second(
    scripted: ScriptedUpstream, gateway: Gateway, path: str, begun: bytes
) -> None:
    """Its close looks like a half-close; the upstream is let go in every phase, and no other is asked."""
    scripted.scripts["a/A"] = respond(begun)
    client = await gateway.connect()
    client.transport.write(read_by(path, head(b"Content-Length: 39")) + b'{"model":"a/A,b/B,c/C", "stream": true}')
    await scripted.when_asked(1)
    if b"one" in begun:
        await client.until(b"data: one")
    started = gateway.reactor.seconds()
    client.transport.loseConnection()
    await scripted.connections[-1].lost
    assert gateway.reactor.seconds() - started < 1
    assert len(scripted.requests) == 1
    assert (await gateway.metrics())['requests_total{status="499"}'] == 1


@both_paths
@pytest.mark.parametrize("end", ["loseConnection", "abortConnection"])
@pytest.mark.parametrize("unread", [b"", SECOND * 100], ids=["read", "unread"])
async def test_a_client_that_left_is_found_out_though_it_is_read_no_more(
    scripted: ScriptedUpstream, gateway: Gateway, path: str, unread: bytes, end: str
) -> None:
    """It has sent so much ahead that reading has stopped, and then closed; it is noticed as soon as any other."""
    scripted.scripts["a/A"] = silent
    client = await gateway.connect()
    client.transport.write(read_by(path, sized()) + SECOND * (AHEAD_BYTES // len(SECOND) + 10))
    while (await gateway.metrics())["buffered_request_bytes"] <= AHEAD_BYTES:
        await deferLater(gateway.reactor, 0.001)
    client.transport.write(unread)
    await deferLater(gateway.reactor, 0)
    started = gateway.reactor.seconds()
    getattr(client.transport, end)()
    await scripted.connections[-1].lost
    assert gateway.reactor.seconds() - started < 1
    assert len(scripted.requests) == 1
    assert (await gateway.metrics())['requests_total{status="499"}'] == 1


@frozen
class TlsSite:
    """The channel behind TLS, without a service."""

    port: int
    trusting: ssl.SSLContext
    held: Held
    connections: ClientConnections


@pytest.fixture
def tls_site(tmp_path: Path) -> Iterator[TlsSite]:
    from twisted.internet import reactor

    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    context = DefaultOpenSSLContextFactory(str(tmp_path / "key.pem"), str(tmp_path / "cert.pem"), TLS_METHOD)
    connections, deadlines = ClientConnections(10), Deadlines(reactor)
    held = Held()
    site = GatewaySite(held, reactor, LIMITS, lambda request, error: None, connections, deadlines)
    port = reactor.listenSSL(0, site, context, interface="127.0.0.1")
    yield TlsSite(port.getHost().port, trusting, held, connections)
    blockon(maybeDeferred(port.stopListening))
    blockon(connections.gone())
    deadlines.stop()


def send_over_tls_then_read(site: TlsSite, data: bytes) -> bytes:
    """A plain blocking client that looks at the answer only when it has sent everything; fails on a ragged end."""
    with (
        socket.create_connection(("127.0.0.1", site.port)) as plain,
        site.trusting.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as client,
    ):
        client.sendall(data)
        received = b""
        while piece := client.recv(65536):
            received += piece
        return received


async def test_over_tls_a_client_that_sends_on_can_still_read_the_413(tls_site: TlsSite) -> None:
    """Ten megabytes over the limit are taken to the end, and the connection ends with TLS' own goodbye."""
    data = head(b"Content-Length: 10485760") + b"x" * 10485760
    received = await deferToThread(send_over_tls_then_read, tls_site, data)
    assert read_response(received).status == 413


def send_over_tls_then_leave(site: TlsSite, data: bytes) -> float:
    """A client that closes once it is read no more; returns when it did."""
    with (
        socket.create_connection(("127.0.0.1", site.port)) as plain,
        site.trusting.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(data)
        while site.connections.bodies.held <= AHEAD_BYTES:
            time.sleep(0.001)
    return time.monotonic()


async def test_over_tls_too_a_client_that_left_is_found_out_though_it_is_read_no_more(tls_site: TlsSite) -> None:
    """By its connection, for nothing that it says is read."""
    left = await deferToThread(send_over_tls_then_leave, tls_site, head(start=b"GET / HTTP/1.1") + SECOND * 1000)
    with suppress(ConnectionLost):
        await tls_site.held.request.notifyFinish()
    assert time.monotonic() - left < 1


async def test_hostile_requests_leave_nothing_in_the_log(gateway: Gateway) -> None:
    """Neither what was sent nor who sent it, whatever the level."""
    events: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(events.append)
    for data in [
        sized(b"X-Secret: Marker\x00"),
        sized(b"Authorization: Bearer Marker", start=START.replace(b" HTTP", b"?Marker HTTP")),
        sized(b"TE: trailers", b"Cookie: Marker"),
        chunked(b"f;Marker\n\r\n"),
        b"Marker\r\n\r\n",
        sized(b"Expect: Marker"),
        sized().replace(b"a/A", b"Mar"),
    ]:
        client = await gateway.connect()
        client.transport.write(data)
        await client.until(b"\r\n\r\n")
        client.transport.abortConnection()
        await client.closed
    globalLogPublisher.removeObserver(events.append)
    said = " ".join(eventAsText(event) + str({k: v for k, v in event.items() if k != "log_logger"}) for event in events)
    assert "unknown_model" in said  # the log was heard
    assert "127.0.0.1" not in said
    for secret in ("Marker", "Mar"):
        assert secret not in said
