"""What an upstream can send over real sockets: what is whole arrives whole, what is not is never taken for it."""

import gzip
from typing import Any, Literal

import pytest
from attrs import define, field, frozen
from loopback_peers import (
    CHUNKED,
    Gateway,
    ScriptedUpstream,
    StartGateway,
    UpstreamSide,
    answer,
    chunk,
    is_complete,
    read_response,
    respond,
)
from twisted.internet.task import deferLater
from twisted.internet.tcp import Server

from chutes_autopilot.upstream.direct import unsent_bytes

DIRECT = b'{"model":"a/A"}'
NEXT = b'{"model":"b/B"}'
ALIAS = b'{"model":"chutesai/AutoPilot"}'
NO_CONTENT = 204
LAST_CHUNK = b"0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
SIZED = OK + b"Content-Length: 5\r\n\r\n"
STREAM = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
PACKED = gzip.compress(b"data: half of a stream\n\n")

Then = Literal["wait", "close", "reset"]


@pytest.fixture(params=["front", "reference"])
def path(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both readers of requests."""
    return str(request.param)


@define(eq=False)
class Behaviour:
    """A script that always writes the same, and remembers the connections on which it was asked."""

    sent: bytes
    sides: list[UpstreamSide] = field(factory=list)

    def __call__(self, side: UpstreamSide) -> None:
        self.sides.append(side)
        side.transport.write(self.sent)


async def read_by_now(gateway: Gateway) -> None:
    """Until the gateway has read what was written to it: its own answer to a new client takes longer."""
    await gateway.get("/healthz")


async def asked(gateway: Gateway, upstream: Behaviour, then: Then, body: bytes = ALIAS) -> Any:
    """A client whose request the upstream has answered in its way, after which its connection ends, or does not."""
    client = await gateway.connect()
    client.post(body)
    while not upstream.sides:
        await deferLater(gateway.reactor, 0.001)
    await read_by_now(gateway)
    finish(upstream, then)
    return client


def finish(upstream: Behaviour, then: Then) -> None:
    side = upstream.sides[-1]
    if then == "reset" and not side.lost.called:
        side.transport.abortConnection()
    elif then == "close":
        side.transport.loseConnection()


async def next_connection(scripted: ScriptedUpstream, gateway: Gateway, client: Any) -> UpstreamSide:
    """The upstream connection that carries the client's next request, on the same connection of the client."""
    upstream = scripted.scripts["b/B"] = Behaviour(SIZED + b"right")
    client.received = b""
    client.post(NEXT)
    await client.until(b"right")
    assert client.received.startswith(OK)  # and nothing before it
    (side,) = upstream.sides
    return side


@frozen
class Whole:
    """An answer that is complete, and whether its connection may carry another request."""

    sent: bytes
    body: bytes
    reused: bool = False
    then: Then = "wait"
    status: int = 200


WHOLE = {
    "a length that Connection names": Whole(
        OK + b"Connection: Content-Length\r\nContent-Length: 5\r\n\r\nwhole", b"whole", reused=True
    ),
    "100 before it": Whole(b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED + b"whole", b"whole", reused=True),
    "102 and 103 before it": Whole(
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nSet-Cookie: early=1\r\n\r\n" + SIZED + b"whole",
        b"whole",
        reused=True,
    ),
    "16 times 102": Whole(b"HTTP/1.1 102 Processing\r\n\r\n" * 16 + SIZED + b"whole", b"whole", reused=True),
    "204": Whole(b"HTTP/1.1 204 No Content\r\n\r\n", b"", reused=True, status=204),
    "204 with a length": Whole(
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", b"", reused=True, status=204
    ),
    "304 with a coding": Whole(
        b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", b"", reused=True, status=304
    ),
    "204 with chunks all the same": Whole(
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n", b"", status=204
    ),
    "204 with a body all the same": Whole(b"HTTP/1.1 204 No Content\r\n\r\nbody", b"", status=204),
    "304 with the length of another": Whole(
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b"", reused=True, status=304
    ),
    "304 with a body all the same": Whole(
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nbody", b"", status=304
    ),
    "a head of 60 KB": Whole(OK + b"X: %s\r\nContent-Length: 5\r\n\r\nwhole" % (b"x" * 60000), b"whole", reused=True),
    "256 header lines": Whole(OK + b"X: y\r\n" * 255 + b"Content-Length: 5\r\n\r\nwhole", b"whole", reused=True),
    "no reason": Whole(SIZED.replace(b" OK", b"") + b"whole", b"whole", reused=True),
    "a status nobody knows": Whole(SIZED.replace(b"200 OK", b"799 Odd") + b"whole", b"whole", reused=True, status=799),
    "Connection: close": Whole(OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nwhole", b"whole"),
    "Connection: close in a list": Whole(OK + b"Connection: X, CLOSE\r\nContent-Length: 5\r\n\r\nwhole", b"whole"),
    "HTTP/1.0 with a length": Whole(SIZED.replace(b"1.1", b"1.0") + b"whole", b"whole"),
    "HTTP/1.0 kept alive": Whole(
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nwhole", b"whole", reused=True
    ),
    "HTTP/1.0 until it closes": Whole(b"HTTP/1.0 200 OK\r\n\r\nwhole", b"whole", then="close"),
    "HTTP/1.1 until it closes": Whole(OK + b"\r\nwhole", b"whole", then="close"),
    "an error until it closes": Whole(
        b"HTTP/1.0 500 Broken\r\n\r\nwhole", b"whole", then="close", status=500
    ),
    "closed behind its end": Whole(SIZED + b"whole", b"whole", then="close"),
    "reset behind its end": Whole(SIZED + b"whole", b"whole", then="reset"),
    "longer than its length": Whole(SIZED + b"wholesome", b"whole"),
    "a second answer behind it": Whole(SIZED + b"whole" + SIZED + b"wrong", b"whole"),
    "bytes behind the last chunk": Whole(CHUNKED + chunk(b"whole") + LAST_CHUNK + b"more", b"whole"),
    "chunks": Whole(CHUNKED + chunk(b"who") + b"002\r\nle\r\n" + LAST_CHUNK, b"whole", reused=True),
    "chunk extensions": Whole(CHUNKED + b'5 ;a="b";c\r\nwhole\r\n0;d\r\n\r\n', b"whole", reused=True),
    "trailers": Whole(CHUNKED + chunk(b"whole") + b"0\r\nSet-Cookie: t\r\nX-T: 1\r\n\r\n", b"whole", reused=True),
    "gzip": Whole(
        OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(PACKED) + PACKED, PACKED, reused=True
    ),
    "a gzip stream": Whole(
        STREAM + b"Content-Encoding: gzip\r\n\r\n" + chunk(PACKED) + LAST_CHUNK, PACKED, reused=True
    ),
}  # fmt: skip


@pytest.mark.parametrize("upstream", WHOLE.values(), ids=WHOLE)
async def test_a_whole_answer_arrives_whole(scripted: ScriptedUpstream, gateway: Gateway, upstream: Whole) -> None:
    """Status and body bytes, and nothing behind them: the client's connection carries the next request. No other
    model is asked, though there are some. The upstream's connection is used again where nothing speaks against it, else
    it is closed; no request is sent twice."""
    behaviour = scripted.scripts["a/A"] = Behaviour(upstream.sent)
    client = await asked(gateway, behaviour, upstream.then)
    await client.complete()
    response = read_response(client.received)
    assert (response.status, response.body) == (upstream.status, upstream.body)
    assert response.header("x-chutes-autopilot-attempts") == "1"
    assert upstream.status != NO_CONTENT or response.header("content-length") is None
    for ended_here in (b"Set-Cookie", b"X-T", b"railer", b"102 ", b"103 "):
        assert ended_here not in client.received
    (side,) = behaviour.sides
    assert (await next_connection(scripted, gateway, client) is side) is upstream.reused
    assert len(scripted.requests) == 2
    if not upstream.reused:
        await side.lost


@frozen
class Cut:
    """An answer that has begun and never becomes whole: how much of it the client gets."""

    sent: bytes
    relayed: bytes
    then: Then = "wait"


ONE = CHUNKED + chunk(b"one")
UNTIL_CLOSE = OK + b"\r\none"
CUT = {
    "closed before its length": Cut(SIZED + b"one", b"one", "close"),
    "reset before its length": Cut(SIZED + b"one", b"one", "reset"),
    "reset until it closes": Cut(UNTIL_CLOSE, b"one", "reset"),
    "HTTP/1.0, reset until it closes": Cut(UNTIL_CLOSE.replace(b"1.1", b"1.0"), b"one", "reset"),
    "closed between chunks": Cut(ONE, b"one", "close"),
    "reset between chunks": Cut(ONE, b"one", "reset"),
    "closed within a chunk": Cut(ONE + b"5\r\ntwo", b"onetwo", "close"),
    "reset within a chunk": Cut(ONE + b"5\r\ntwo", b"onetwo", "reset"),
    "closed within a size": Cut(ONE + b"5", b"one", "close"),
    "closed behind a chunk's bytes": Cut(ONE + b"3\r\ntwo", b"onetwo", "close"),
    "closed within the last chunk": Cut(ONE + b"0\r\n", b"one", "close"),
    "reset within the last chunk": Cut(ONE + b"0\r\n", b"one", "reset"),
    "closed within the trailers": Cut(ONE + b"0\r\nX-T: 1\r\n", b"one", "close"),
    "an error that is closed early": Cut(
        b"HTTP/1.1 500 Broken\r\nContent-Length: 5\r\n\r\none", b"one", "close"
    ),
    "a gzip stream that is closed early": Cut(
        STREAM + b"Content-Encoding: gzip\r\n\r\n" + chunk(PACKED[:-5]), PACKED[:-5], "close"
    ),
    "a chunk longer than its size": Cut(ONE + b"3\r\ntwotwo\r\n", b"onetwo"),
    "a size that is none": Cut(ONE + b"x\r\ntwo\r\n", b"one"),
    "a size of nothing": Cut(ONE + b"\r\ntwo\r\n", b"one"),
    "a size with a sign": Cut(ONE + b"-3\r\ntwo\r\n", b"one"),
    "a size with a plus": Cut(ONE + b"+3\r\ntwo\r\n", b"one"),
    "a size with 0x": Cut(ONE + b"0x3\r\ntwo\r\n", b"one"),
    "a size behind a blank": Cut(ONE + b" 3\r\ntwo\r\n", b"one"),
    "a size of 17 digits": Cut(ONE + b"1" + b"0" * 15 + b"3\r\ntwo\r\n", b"one"),
    "a size that ends in LF": Cut(ONE + b"3\ntwo\r\n", b"one"),
    "an extension with LF": Cut(ONE + b"3;a\nb\r\ntwo\r\n", b"one"),
    "an extension without end": Cut(ONE + b"3;" + b"x" * 5000, b"one"),
    "a trailer that is no field": Cut(ONE + b"0\r\nnonsense\r\n\r\n", b"one"),
    "a folded trailer": Cut(ONE + b"0\r\nX: y\r\n z\r\n\r\n", b"one"),
    "trailers without end": Cut(ONE + b"0\r\n" + b"X: y\r\n" * 5000, b"one"),
    "bytes that are not chunked": Cut(ONE + b"HTTP/1.1 200 OK\r\n\r\n", b"one"),
}  # fmt: skip


@pytest.mark.parametrize("upstream", CUT.values(), ids=CUT)
async def test_an_answer_that_ends_early_never_ends_cleanly(
    scripted: ScriptedUpstream, gateway: Gateway, upstream: Cut
) -> None:
    """The client gets what came and then sees its connection close before the end; the upstream's connection is
    closed too, nobody else is asked, and the cut is counted."""
    behaviour = scripted.scripts["a/A"] = Behaviour(upstream.sent)
    client = await asked(gateway, behaviour, upstream.then)
    await client.closed
    response = read_response(client.received)
    assert response.body == upstream.relayed
    assert not is_complete(client.received)
    assert response.header("content-length") == "5" or response.header("transfer-encoding") == "chunked"
    await behaviour.sides[0].lost
    assert [seen.model for seen in scripted.requests] == ["a/A"]
    metrics = await gateway.metrics()
    assert (metrics["streams_cut_total"], metrics["requests_active"]) == (1, 0)


@frozen
class NoAnswer:
    """What is no answer that could be relayed: nothing of it reaches the client."""

    sent: bytes
    then: Then = "wait"
    code: str = "upstream_connect_error"
    status: int = 502


def head(*lines: bytes) -> bytes:
    return OK + b"\r\n".join(lines) + b"\r\n\r\n"


AFTER_HEAD = "upstream_first_body_byte_error"
NO_ANSWER = {
    "closed before a byte": NoAnswer(b"", "close"),
    "reset before a byte": NoAnswer(b"", "reset"),
    "closed within the status line": NoAnswer(b"HTTP/1.1 20", "close"),
    "reset within the status line": NoAnswer(b"HTTP/1.1 20", "reset"),
    "closed within the head": NoAnswer(OK + b"Content-Le", "close"),
    "reset within the head": NoAnswer(OK + b"Content-Le", "reset"),
    "closed before the blank line": NoAnswer(OK + b"Content-Length: 0\r\n", "close"),
    "reset behind a 100": NoAnswer(b"HTTP/1.1 100 Continue\r\n\r\n", "reset"),
    "closed behind the head": NoAnswer(SIZED, "close", AFTER_HEAD),
    "reset behind the head": NoAnswer(SIZED, "reset", AFTER_HEAD),
    "reset behind a head without length": NoAnswer(OK + b"\r\n", "reset", AFTER_HEAD),
    "closed behind a head without length": NoAnswer(
        OK + b"\r\n", "close", "upstream_first_body_byte_timeout", 504
    ),
    "reset in the first chunk's size": NoAnswer(CHUNKED + b"5", "reset", AFTER_HEAD),
    "a bad first chunk": NoAnswer(CHUNKED + b"-5\r\n", "wait", AFTER_HEAD),
    "a length without a number": NoAnswer(OK + b"Content-Length:\r\n\r\nwhole"),
    "a length behind a comma": NoAnswer(OK + b"Content-Length: ,5\r\n\r\nwhole"),
    "a length before a comma": NoAnswer(OK + b"Content-Length: 5,\r\n\r\nwhole"),
    "a length and an empty one": NoAnswer(OK + b"Content-Length: 5\r\nContent-Length:\r\n\r\nwhole"),
    "a blank line": NoAnswer(b"\r\n\r\n"),
    "text": NoAnswer(b"rubbish\r\n\r\n"),
    "zeros": NoAnswer(b"\x00" * 100),
    "HTML": NoAnswer(b"<html>Bad gateway</html>"),
    "TLS": NoAnswer(b"\x15\x03\x01\x00\x02\x02\x0a"),
    "SSH": NoAnswer(b"SSH-2.0-OpenSSH\r\n"),
    "HTTP/2": NoAnswer(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00@\x00"),
    "HTTP/2 in words": NoAnswer(SIZED.replace(b"1.1", b"2") + b"whole"),
    "HTTP/1.2": NoAnswer(SIZED.replace(b"1.1", b"1.2") + b"whole"),
    "http in small letters": NoAnswer(SIZED.replace(b"HTTP", b"http") + b"whole"),
    "ICY": NoAnswer(SIZED.replace(b"HTTP/1.1", b"ICY") + b"whole"),
    "no status": NoAnswer(SIZED.replace(b" 200", b"") + b"whole"),
    "a status of two digits": NoAnswer(SIZED.replace(b"200", b"20") + b"whole"),
    "a status of four digits": NoAnswer(SIZED.replace(b"200", b"2000") + b"whole"),
    "a status below 100": NoAnswer(SIZED.replace(b"200", b"099") + b"whole"),
    "a status with a sign": NoAnswer(SIZED.replace(b"200", b"+200") + b"whole"),
    "two blanks before the status": NoAnswer(SIZED.replace(b" 200", b"  200") + b"whole"),
    "a tab before the status": NoAnswer(SIZED.replace(b" 200", b"\t200") + b"whole"),
    "NUL in the reason": NoAnswer(SIZED.replace(b"OK", b"O\x00K") + b"whole"),
    "CR in the reason": NoAnswer(SIZED.replace(b"OK", b"O\rK") + b"whole"),
    "a status line that ends in LF": NoAnswer(SIZED.replace(b"OK\r\n", b"OK\n") + b"whole"),
    "LF only": NoAnswer(SIZED.replace(b"\r\n", b"\n") + b"whole"),
    "LF within a field": NoAnswer(head(b"X: y\nSet-Cookie: forged", b"Content-Length: 0")),
    "CR within a field": NoAnswer(head(b"X: y\rSet-Cookie: forged", b"Content-Length: 0")),
    "NUL within a field": NoAnswer(head(b"X: \x00", b"Content-Length: 0")),
    "a folded field": NoAnswer(head(b"X: y", b" z", b"Content-Length: 0")),
    "a folded first field": NoAnswer(head(b" X: y", b"Content-Length: 0")),
    "a blank before the colon": NoAnswer(head(b"Content-Length : 0")),
    "a field without name": NoAnswer(head(b": y", b"Content-Length: 0")),
    "a line without colon": NoAnswer(head(b"nonsense", b"Content-Length: 0")),
    "a length and a coding": NoAnswer(head(b"Content-Length: 5", b"Transfer-Encoding: chunked") + chunk(b"whole")),
    "lengths that differ": NoAnswer(head(b"Content-Length: 5", b"Content-Length: 6") + b"whole!"),
    "a length twice": NoAnswer(head(b"Content-Length: 5", b"Content-Length: 5") + b"whole"),
    "a list of lengths": NoAnswer(head(b"Content-Length: 5, 5") + b"whole"),
    "a length with a sign": NoAnswer(head(b"Content-Length: +5") + b"whole"),
    "a length below 0": NoAnswer(head(b"Content-Length: -5") + b"whole"),
    "a length in hex": NoAnswer(head(b"Content-Length: 0x5") + b"whole"),
    "a length of 19 digits": NoAnswer(head(b"Content-Length: " + b"9" * 19) + b"whole"),
    "a length that is no number": NoAnswer(head(b"Content-Length: five") + b"whole"),
    "the coding gzip, chunked": NoAnswer(head(b"Transfer-Encoding: gzip, chunked") + chunk(b"whole")),
    "the coding chunked twice": NoAnswer(head(*[b"Transfer-Encoding: chunked"] * 2) + chunk(b"whole")),
    "the coding xchunked": NoAnswer(head(b"Transfer-Encoding: xchunked") + chunk(b"whole")),
    "the coding identity": NoAnswer(head(b"Transfer-Encoding: identity") + b"whole"),
    "chunks in HTTP/1.0": NoAnswer(CHUNKED.replace(b"1.1", b"1.0") + chunk(b"whole")),
    "101": NoAnswer(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"),
    "17 times 102": NoAnswer(b"HTTP/1.1 102 Processing\r\n\r\n" * 17 + SIZED + b"whole"),
    "text behind a 100": NoAnswer(b"HTTP/1.1 100 Continue\r\n\r\nrubbish"),
    "257 header lines": NoAnswer(head(*[b"X: y"] * 256, b"Content-Length: 5") + b"whole"),
    "a head of 70 KB": NoAnswer(head(b"X: " + b"x" * 70000, b"Content-Length: 5") + b"whole"),
    "a status line without end": NoAnswer(b"HTTP/1.1 200 " + b"x" * 70000),
    "a field without end": NoAnswer(OK + b"X: " + b"x" * 70000),
    "fields without end": NoAnswer(OK + b"X: y\r\n" * 12000),
}  # fmt: skip


@pytest.mark.parametrize("upstream", NO_ANSWER.values(), ids=NO_ANSWER)
async def test_what_is_no_answer_is_never_relayed(
    scripted: ScriptedUpstream, gateway: Gateway, upstream: NoAnswer
) -> None:
    """Where there is another candidate its answer comes, and where there is none a JSON error; on the same connection
    of the client, as nothing of the other bytes came there. The upstream is asked once for each, and dropped."""
    behaviour = scripted.scripts["a/A"] = Behaviour(upstream.sent)
    scripted.scripts["b/B"] = answer(b"right", b"200 OK", b"Connection: close")  # so that both meet a new connection
    client = await asked(gateway, behaviour, upstream.then, b'{"model":"a/A, b/B"}')
    await client.complete()
    response = read_response(client.received)
    assert (response.status, response.body) == (200, b"right")
    await behaviour.sides[0].lost

    client.received = b""
    client.post(DIRECT)
    while len(behaviour.sides) < 2:
        await deferLater(gateway.reactor, 0.001)
    await read_by_now(gateway)
    finish(behaviour, upstream.then)
    await client.complete()
    response = read_response(client.received)
    assert (response.status, response.error["code"]) == (upstream.status, upstream.code)
    assert response.header("set-cookie") is None
    await behaviour.sides[1].lost
    assert [seen.model for seen in scripted.requests] == ["a/A", "b/B", "a/A"]
    assert (await gateway.metrics())[f'failover_reason_total{{reason="{upstream.code}"}}'] == 2


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_request_is_never_sent_more_than_twice(
    scripted: ScriptedUpstream, gateway: Gateway, then: Then
) -> None:
    """A reused connection that ends without a byte may have been closed before: the request is sent once more, on a
    new connection. When that one ends too it is an error, not an excuse for another try."""
    assert (await gateway.chat(NEXT)).status == 200
    behaviour = scripted.scripts["a/A"] = Behaviour(b"")
    client = await asked(gateway, behaviour, then, DIRECT)
    while len(behaviour.sides) < 2:
        await deferLater(gateway.reactor, 0.001)
    finish(behaviour, then)
    await client.complete()
    response = read_response(client.received)
    assert (response.status, response.error["code"]) == (502, "upstream_connect_error")
    assert response.header("x-chutes-autopilot-attempts") == "1"
    assert [seen.model for seen in scripted.requests] == ["b/B", "a/A", "a/A"]
    assert behaviour.sides[0] is not behaviour.sides[1]


class Endless:
    """A pull producer: the same bytes for ever, as fast as the gateway takes them."""

    def __init__(self, side: UpstreamSide, piece: bytes) -> None:
        self.side = side
        self.piece = piece
        side.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        self.side.transport.write(self.piece)

    def stopProducing(self) -> None:
        """The gateway is gone."""


@pytest.mark.parametrize(
    "piece", [b"x" * 4096, b"X: y\r\n" * 700, b"HTTP/1.1 102 Processing\r\n\r\n"], ids=["line", "fields", "102"]
)
async def test_a_head_without_end_is_given_up(scripted: ScriptedUpstream, gateway: Gateway, piece: bytes) -> None:
    """However fast it comes: after 64 KiB, 256 fields or 16 informational responses the upstream is dropped."""

    def endless(side: UpstreamSide) -> None:
        side.transport.write(b"" if b"HTTP" in piece else OK)
        Endless(side, piece)

    scripted.scripts["a/A"] = endless
    response = await gateway.chat(DIRECT)
    assert (response.status, response.error["code"]) == (502, "upstream_connect_error")
    await scripted.connections[-1].lost


@pytest.mark.parametrize(
    ("begun", "drop", "code"),
    [
        (OK, b"X: y\r\n", "upstream_header_timeout"),
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n", "upstream_header_timeout"),
        (CHUNKED + b"5;", b"x", "upstream_first_body_byte_timeout"),
    ],
    ids=["fields", "102", "chunk extension"],
)
async def test_a_head_that_drips_gets_no_time_for_its_drops(
    scripted: ScriptedUpstream, start_gateway: StartGateway, begun: bytes, drop: bytes, code: str
) -> None:
    """The deadlines count to the whole head and to the first byte of the body; nothing else that comes matters."""
    gateway = await start_gateway(UPSTREAM_FIRST_BODY_BYTE_TIMEOUT_MS="150")
    behaviour = scripted.scripts["a/A"] = Behaviour(begun)
    client = await gateway.connect()
    client.post(b'{"model":"a/A","stream":true}')
    while not (behaviour.sides and behaviour.sides[0].lost.called):
        for side in behaviour.sides:
            side.transport.write(drop)
        await deferLater(gateway.reactor, 0.02)
    await client.complete()
    response = read_response(client.received)
    assert (response.status, response.error["code"]) == (504, code)


async def test_only_end_to_end_headers_pass(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """What belongs to the upstream's connection stays there, also what Connection names, on however many lines; of the
    rest every line passes, those of one name in their order."""
    passing = [
        b"Content-Length: 2",
        b"Set-Cookie: b=2; Path=/",
        b"X-Two: 1",
        b"Set-Cookie: a=1",
        b"x-two: 2",
        b"Set-Cookie: b=2; Path=/",
        b"X-Empty: ",
    ]
    ending = [
        b"Connection: X-Hop, keep-alive",
        b"connection: x-other",
        b"X-Hop: 1",
        b"X-OTHER: 1",
        b"Keep-Alive: timeout=5",
        b"Proxy-Authenticate: Basic",
        b"Proxy-Authorization: Basic x",
        b"Proxy-Connection: keep-alive",
        b"TE: trailers",
        b"Trailer: X-T",
        b"Upgrade: h2c",
        b"X-Request-Id: theirs",
        b"X-Chutes-Autopilot-Selected: theirs",
        b"X-Chutes-Autopilot-Anything: theirs",
    ]
    scripted.scripts["a/A"] = respond(head(*ending[:3], *passing, *ending[3:]) + b"{}")
    client = await gateway.connect()
    client.post(DIRECT, b"X-Request-Id: ours")
    await client.complete()
    ours = [(b"x-chutes-autopilot-attempts", b"1"), (b"x-request-id", b"ours")]
    assert sorted(by_name(client.received), key=name_of) == sorted(
        [*by_name(b"\r\n".join([b"", *passing])), *ours], key=name_of
    )


def by_name(raw: bytes) -> list[tuple[bytes, bytes]]:
    """The header lines of a head: lower-case name, value."""
    lines = [line.partition(b":") for line in raw.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]]
    return [(name.lower(), value.strip()) for name, _, value in lines if name != b"Date"]


def name_of(header: tuple[bytes, bytes]) -> bytes:
    return header[0]


@pytest.mark.parametrize(
    ("named", "framing"),
    [
        (b"Transfer-Encoding", "length"),
        (b"Transfer-Encoding", "chunks"),
        (b"Content-Length", "chunks"),
        (b"Date", "length"),
    ],
)
async def test_no_header_can_be_talked_out_of_its_place(
    scripted: ScriptedUpstream, gateway: Gateway, named: bytes, framing: str
) -> None:
    """A Connection that names a header the gateway itself needs leaves the client with a whole, framed answer."""
    start = OK + b"Connection: " + named + b"\r\n"
    sized, chunked = b"Content-Length: 5\r\n\r\nwhole", b"Transfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n"
    scripted.scripts["a/A"] = respond(start + (sized if framing == "length" else chunked))
    client = await gateway.connect()
    client.post(DIRECT)
    await client.until(b"whole")
    await read_by_now(gateway)
    assert is_complete(client.received)
    assert read_response(client.received).body == b"whole"
    await next_connection(scripted, gateway, client)


async def test_cookies_of_one_client_never_reach_another(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """There is no cookie jar: neither the next client's answer nor any later request knows what was set."""
    scripted.scripts["a/A"] = answer(b"x", b"200 OK", b"Set-Cookie: session=alice; Path=/")
    assert (await gateway.chat(DIRECT)).header("set-cookie") == "session=alice; Path=/"
    scripted.scripts["a/A"] = answer(b"x")
    response = await gateway.chat(DIRECT)
    assert response.header("set-cookie") is None
    assert b"alice" not in scripted.requests[1].head


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer(scripted: ScriptedUpstream, gateway: Gateway, status: int) -> None:
    """Nothing is followed, also where the upstream points to itself."""
    location = scripted.url + "/v1/chat/completions"
    scripted.scripts["a/A"] = answer(b"there", b"%d Elsewhere" % status, b"Location: " + location.encode())
    response = await gateway.chat({"model": "a/A, b/B"})
    assert (response.status, response.header("location"), response.body) == (status, location, b"there")
    assert len(scripted.requests) == 1


@pytest.mark.parametrize("stray", [b"\r\n", b"x", SIZED + b"wrong", OK])
async def test_bytes_that_nobody_asked_for_close_an_idle_connection(
    scripted: ScriptedUpstream, gateway: Gateway, stray: bytes
) -> None:
    """An answer sent ahead of its request, or anything else behind an answer, meets no request at all."""
    behaviour = scripted.scripts["a/A"] = Behaviour(SIZED + b"whole")
    client = await asked(gateway, behaviour, "wait")
    await client.until(b"whole")
    (side,) = behaviour.sides
    side.transport.write(stray)
    await side.lost
    assert await next_connection(scripted, gateway, client) is not side


async def test_an_answer_that_comes_too_late_meets_nobody(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """The connection of an attempt that was given up is gone, with whatever its upstream still says on it."""
    gateway = await start_gateway(UPSTREAM_NONSTREAM_HEADER_TIMEOUT_MS="50")
    behaviour = scripted.scripts["a/A"] = Behaviour(b"")
    client = await gateway.connect()
    client.post(DIRECT)
    await client.complete()
    assert read_response(client.received).error["code"] == "upstream_header_timeout"
    (side,) = behaviour.sides
    side.transport.write(SIZED + b"wrong")
    assert await next_connection(scripted, gateway, client) is not side
    await side.lost


def gateway_side(client: Any) -> Server:
    """The gateway's end of a client's connection."""
    from twisted.internet import reactor

    own = client.transport.getHost()
    (side,) = [s for s in reactor.getReaders() if isinstance(s, Server) and s.getPeer() == own]  # type: ignore[attr-defined]
    return side


async def test_a_connection_that_is_paused_at_its_end_is_not_used_again(
    scripted: ScriptedUpstream, gateway: Gateway
) -> None:
    """The read that holds an answer's end is the one that a client who does not read makes too much: the client gets
    the whole answer when it reads on, and the next request another connection, as nobody reads from this one."""
    behaviour = scripted.scripts["a/A"] = Behaviour(CHUNKED)
    client = await asked(gateway, behaviour, "wait")
    (side,) = behaviour.sides
    side.transport.write(chunk(b"one"))
    await client.until(b"one")
    client.transport.pauseProducing()
    sent = 3
    while not 20_000 < unsent_bytes(gateway_side(client)) < 60_000:  # what the kernel takes, and a little more
        side.transport.write(chunk(b"x" * 32_000))
        sent += 32_000
        await read_by_now(gateway)
    side.transport.write(chunk(b"y" * 48_000) + LAST_CHUNK)
    await side.lost
    client.transport.resumeProducing()
    await client.until(b"y\r\n" + LAST_CHUNK)
    assert len(read_response(client.received).body) == sent + 48_000
    assert await next_connection(scripted, gateway, client) is not side


async def test_a_connection_whose_client_left_while_it_was_paused_is_not_used_again(
    scripted: ScriptedUpstream, gateway: Gateway
) -> None:
    """Half an answer is still on its way there: the next request goes elsewhere."""
    behaviour = scripted.scripts["a/A"] = Behaviour(OK + b"Content-Length: 100000000\r\n\r\nbegun")
    client = await asked(gateway, behaviour, "wait")
    await client.until(b"begun")
    client.transport.pauseProducing()
    (side,) = behaviour.sides
    Endless(side, b"x" * 65536)
    while unsent_bytes(gateway_side(client)) < 65536:
        await read_by_now(gateway)
    client.transport.abortConnection()
    await side.lost
    assert await next_connection(scripted, gateway, await gateway.connect()) is not side
