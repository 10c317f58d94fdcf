"""Streams that end too early, fall silent or are not read: what the client and the upstream see of it."""

import json
from typing import Any

import pytest
from loopback_peers import (
    Gateway,
    RawClient,
    ScriptedUpstream,
    StartGateway,
    UpstreamSide,
    chunk,
    read_response,
    respond,
)
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.tcp import Server

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = STREAM + b"Transfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
EVENT = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
TAIL = b'{"error":"Unhandled exception during response stream: x"}'
ASKED = b'{"model":"a/A","stream":true}'


@pytest.fixture(params=["front", "reference"])
def path(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both readers of requests."""
    return str(request.param)


async def asked(gateway: Gateway) -> RawClient:
    client = await gateway.connect()
    client.post(ASKED)
    return client


def cut_error(client: RawClient, relayed: bytes) -> dict[str, Any]:
    """The error event behind what was relayed, in an answer that has no end."""
    assert not client.received.endswith(LAST_CHUNK)
    body = read_response(client.received).body
    assert body.startswith(relayed + b"\n\ndata: ")
    assert body.endswith(b"}}\n\n")
    error: dict[str, Any] = json.loads(body[len(relayed) + 8 :])["error"]
    return error


@pytest.mark.parametrize(
    ("end", "relayed", "close"),
    [
        (LAST_CHUNK, EVENT, False),
        (chunk(TAIL) + LAST_CHUNK, EVENT + TAIL, False),
        (b"", EVENT, True),
        (b"ff\r\ndata: {", EVENT + b"data: {", True),
        (b"nonsense\r\n", EVENT, False),
    ],
    ids=["clean end", "error tail", "lost between chunks", "lost in a chunk", "invalid bytes"],
)
async def test_a_truncated_stream_ends_with_an_error_event_and_a_cut(
    scripted: ScriptedUpstream, gateway: Gateway, end: bytes, relayed: bytes, close: bool
) -> None:
    """However the upstream ended it: the bytes as they came, then the error, and no end of the answer."""
    scripted.scripts["a/A"] = respond(CHUNKED + chunk(EVENT) + end, close=close)
    client = await asked(gateway)
    assert await client.closed is ConnectionDone
    assert cut_error(client, relayed)["code"] == "upstream_stream_truncated"
    metrics = await gateway.metrics()
    assert (metrics["streams_cut_total"], metrics["requests_active"]) == (1, 0)


@pytest.mark.parametrize("size", [1, 400_000])
async def test_a_client_of_http_1_0_gets_all_of_it_and_a_reset(
    scripted: ScriptedUpstream, gateway: Gateway, size: int
) -> None:
    """Its answer ends with the connection, so only a reset shows the cut; and that must not overtake what was sent."""
    said = EVENT.replace(b'"a"', b'"%b"' % (b"a" * size))
    scripted.scripts["a/A"] = respond(CHUNKED + chunk(said), close=True)
    client = await gateway.connect()
    client.transport.pauseProducing()
    client.post(ASKED, version=b"1.0")
    await scripted.when_asked(1)
    await scripted.connections[-1].lost
    client.transport.resumeProducing()
    assert await client.closed is ConnectionLost
    assert cut_error(client, said)["code"] == "upstream_stream_truncated"


async def test_a_client_of_http_1_0_that_sends_no_more_gets_the_reset_too(
    scripted: ScriptedUpstream, gateway: Gateway
) -> None:
    """An orderly close would be the end of a whole answer."""
    scripted.scripts["a/A"] = respond(CHUNKED + chunk(EVENT), close=True)
    client = await gateway.connect()
    client.post(ASKED, version=b"1.0")
    await client.until(b"}}\n\n")
    client.transport.loseWriteConnection()
    assert await client.closed is ConnectionLost


async def test_a_whole_stream_passes_byte_for_byte(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """Nothing is added, and the client's connection carries the next request."""
    body = EVENT + b": ping\r\n\r\n" + EVENT + b"data: [DONE]\n\n"
    scripted.scripts["a/A"] = respond(CHUNKED + b"".join(chunk(body[i : i + 9]) for i in range(0, 180, 9)) + LAST_CHUNK)
    client = await asked(gateway)
    first = await client.until(LAST_CHUNK)
    assert read_response(first).body == body
    client.post(ASKED)
    await client.until(LAST_CHUNK, 2)
    assert (await gateway.metrics())["streams_cut_total"] == 0


async def test_a_truncated_stream_with_a_length_stays_short_of_it(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """The client waits for a byte that never comes, and sees the connection close instead."""
    scripted.scripts["a/A"] = respond(STREAM + b"Content-Length: %d\r\n\r\n" % len(EVENT) + EVENT)
    client = await asked(gateway)
    await client.closed
    assert client.received.endswith(b"\r\n\r\n" + EVENT[:-1])


async def test_a_stream_that_only_pings_is_ended(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """After STREAM_IDLE_TIMEOUT_MS without a data event the client has its error and the upstream is dropped."""
    gateway = await start_gateway(STREAM_IDLE_TIMEOUT_MS="200")

    def ping(side: UpstreamSide) -> None:
        from twisted.internet.task import LoopingCall

        side.transport.write(CHUNKED + chunk(EVENT))
        pings = LoopingCall(lambda: side.transport.write(chunk(b": ping\n\n")))
        pings.start(0.05)
        side.lost.addBoth(lambda _: pings.stop())

    scripted.scripts["a/A"] = ping
    client = await asked(gateway)
    assert await client.closed is ConnectionDone
    assert b": ping\n\n" in client.received
    assert b'"code": "upstream_stream_truncated"' in client.received
    assert not client.received.endswith(LAST_CHUNK)
    await scripted.connections[-1].lost


class Flood:
    """A pull producer: as many large events as the gateway takes."""

    def __init__(self, side: UpstreamSide, events: int) -> None:
        self.side = side
        self.left = events
        side.transport.write(CHUNKED)
        side.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        self.left -= 1
        self.side.transport.write(chunk(b"data: " + b"x" * 65536 + b"\n\n"))
        if not self.left:
            self.side.transport.write(chunk(b"data: [DONE]\n\n") + LAST_CHUNK)
            self.side.transport.unregisterProducer()

    def stopProducing(self) -> None:
        """The gateway is gone; nothing is kept."""


async def test_a_client_that_reads_nothing_is_reset(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """After CLIENT_WRITE_STALL_TIMEOUT_MS its connection and the upstream's are closed; it counts as 499."""
    gateway = await start_gateway(CLIENT_WRITE_STALL_TIMEOUT_MS="200", STREAM_IDLE_TIMEOUT_MS="100")
    scripted.scripts["a/A"] = lambda side: Flood(side, 4096)
    client = await asked(gateway)
    client.keep = 1000
    await client.until(b"xxxx")
    client.transport.pauseProducing()
    await scripted.connections[-1].lost
    client.transport.resumeProducing()
    assert await client.closed is ConnectionLost
    metrics = await gateway.metrics()
    assert metrics['requests_total{status="499"}'] == 1
    assert (metrics["streams_cut_total"], metrics["requests_active"]) == (0, 0)


async def test_an_end_that_comes_while_the_client_is_paused_follows(
    scripted: ScriptedUpstream, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is complete once the client has taken what was before its end; then the next request is read."""
    monkeypatch.setattr(Server, "bufferSize", 1)
    scripted.scripts["a/A"] = respond(CHUNKED + chunk(EVENT) + chunk(b"data: [DONE]\n\n") + LAST_CHUNK)
    client = await asked(gateway)
    await client.until(LAST_CHUNK)
    client.post(ASKED)
    await client.until(LAST_CHUNK, 2)
    assert client.received.count(EVENT + b"data: [DONE]\n\n") == 2
