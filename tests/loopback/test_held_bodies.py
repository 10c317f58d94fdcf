"""How many bytes of request bodies all clients together may have the gateway hold, and that they are let go."""

import gc
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from loopback_peers import (
    CHUNKED,
    Gateway,
    RawClient,
    ScriptedUpstream,
    StartGateway,
    answer,
    chunk,
    read_response,
    respond,
    silent,
)
from sealing_client import AS_ALICE, CHAT
from sealing_client import settings as chutes_settings
from twisted.internet.task import deferLater

from chutes_autopilot.web.downstream import unsent_bytes

MIB = 1024 * 1024
LIMIT = {"MAX_BUFFERED_REQUEST_BYTES": str(MIB), "MAX_REQUEST_BYTES": str(MIB)}
SMALL = b'{"model":"b/B"}'


@pytest.fixture(params=["front", "reference", "chutes"])
def path(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both readers of requests, and on the Chutes route."""
    return str(request.param)


class Senders:
    """Clients that send large bodies, in whatever way the path under test is asked."""

    def __init__(self, gateway: Gateway, path: str) -> None:
        self.gateway = gateway
        self.target, headers = b"/v1/chat/completions", []
        if path == "chutes":
            self.target, headers = CHAT, [AS_ALICE]
        elif path == "reference":
            headers = [b"X-A: 1", b"X-A: 2"]
        self.lines = [b"POST %b HTTP/1.1" % self.target, b"Host: x", *headers]

    async def begin(self, length: int, sent: int) -> RawClient:
        """One that has sent so many bytes of a body of ``length``."""
        client = await self.gateway.connect()
        client.transport.write(self.request(length)[: sent - length or None])
        return client

    def request(self, length: int, model: bytes = b"a/A") -> bytes:
        body = b'{"model":"%b","stream":true,"x":"' % model
        body += b"x" * (length - len(body) - 2) + b'"}'
        return b"\r\n".join([*self.lines, b"Content-Length: %d" % length]) + b"\r\n\r\n" + body

    async def held(self, expected: int) -> None:
        """Wait until so many bytes are held; the test's own timeout is what fails."""
        while (await self.gateway.metrics())["buffered_request_bytes"] != expected:
            await deferLater(self.gateway.reactor, 0.001)


async def start(start_gateway: StartGateway, scripted: ScriptedUpstream, path: str, **environ: str) -> Senders:
    return Senders(await start_gateway(**chutes_settings(scripted.url), **environ), path)


async def test_the_request_that_crosses_the_limit_is_told_to_come_back(
    start_gateway: StartGateway, scripted: ScriptedUpstream, path: str
) -> None:
    """It gets 503 overloaded while it is still being sent, and its connection is closed without a reset; what others
    have begun goes on to its answer, small requests are not concerned, and in the end nothing counts as held."""
    scripted.scripts["a/A"] = silent
    senders = await start(start_gateway, scripted, path, **LIMIT)
    first = await senders.begin(900_000, 700_000)
    await senders.held(700_000)
    second = await senders.begin(900_000, 400_000)
    response = read_response(await second.until(b"}}"))
    assert (response.status, response.error["code"]) == (503, "overloaded")
    assert (response.header("retry-after"), response.header("connection")) == ("1", "close")
    second.transport.write(b"x" * 500_000)  # what a client sends that has not read the answer yet
    second.transport.loseConnection()
    await senders.held(700_000)
    assert (await senders.gateway.chat(SMALL)).status == 200
    first.transport.write(senders.request(900_000)[-200_000:])
    await scripted.when_asked(2)
    await senders.held(900_000)
    answer(b"{}")(scripted.connections[-1])
    assert (await first.until(b"\r\n\r\n{}")).startswith(b"HTTP/1.1 200 ")
    await senders.held(0)
    metrics = await senders.gateway.metrics()
    assert metrics["requests_active"] == 0
    assert metrics['requests_total{status="503"}'] == 1


async def test_clients_that_leave_hold_nothing(
    start_gateway: StartGateway, scripted: ScriptedUpstream, path: str
) -> None:
    """Neither while they send nor while they wait for the answer."""
    scripted.scripts["a/A"] = silent
    senders = await start(start_gateway, scripted, path, **LIMIT)
    sending, waiting = await senders.begin(500_000, 100_000), await senders.begin(300_000, 300_000)
    await senders.held(400_000)
    sending.transport.abortConnection()
    waiting.transport.abortConnection()
    await senders.held(0)


async def test_what_is_sent_ahead_counts(start_gateway: StartGateway, scripted: ScriptedUpstream, path: str) -> None:
    """Requests behind the one being answered are held too; those that cross the limit are dropped and get their 503
    behind the answer under way, those that do not are answered in their turn."""
    scripted.scripts["a/A"] = silent
    senders = await start(start_gateway, scripted, path, **LIMIT)
    patient, hasty = await senders.begin(100_000, 100_000), await senders.begin(100_000, 100_000)
    await scripted.when_asked(2)
    large = await senders.begin(900_000, 750_000)
    await senders.held(950_000)
    patient.transport.write(senders.request(60_000, b"b/B"))
    while (await senders.gateway.metrics())["buffered_request_bytes"] <= 1_010_000:  # its head counts as well
        await deferLater(senders.gateway.reactor, 0.001)
    hasty.transport.write(senders.request(900_000, b"b/B"))
    while unsent_bytes(hasty.transport):  # reading goes on, but nothing of it is held
        await deferLater(senders.gateway.reactor, 0.001)
    assert 1_010_000 < (await senders.gateway.metrics())["buffered_request_bytes"] < 1_011_000
    for side in scripted.connections[-2:]:
        answer(b"{}")(side)
    received = await hasty.until(b"}}")
    assert received.count(b"HTTP/1.1 ") == 2
    assert b'"code":"overloaded"' in received.replace(b" ", b"")
    assert (await patient.until(b'{"from":"b/B"}')).count(b"HTTP/1.1 200 ") == 2
    large.transport.abortConnection()
    await senders.held(0)


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


async def test_a_stream_does_not_hold_its_prompt(
    start_gateway: StartGateway, scripted: ScriptedUpstream, path: str, traced: None
) -> None:
    """When the answers of ten requests of 1 MB have begun, what they take together is less than one of them."""
    scripted.scripts["a/A"] = silent
    senders = await start(start_gateway, scripted, path)
    await senders.gateway.chat(SMALL)
    scripted.requests.clear()

    def memory() -> int:
        scripted.requests.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    before = memory()
    clients: list[Any] = [await senders.begin(MIB, MIB) for _ in range(10)]
    await scripted.when_asked(10)
    assert memory() - before > 10 * MIB
    await senders.held(10 * MIB)
    for side in [side for side in scripted.connections if not side.lost.called][-10:]:
        respond(CHUNKED.replace(b"application/json", b"text/event-stream") + chunk(b"data: begun\n\n"))(side)
    for client in clients:
        await client.until(b"data: begun")
    await senders.held(0)
    assert memory() - before < MIB


async def test_one_request_always_fits(start_gateway: StartGateway, scripted: ScriptedUpstream, path: str) -> None:
    """A limit below MAX_REQUEST_BYTES does not keep the largest request out."""
    limits = {"MAX_BUFFERED_REQUEST_BYTES": "1", "MAX_REQUEST_BYTES": "500000"}
    senders = await start(start_gateway, scripted, path, **limits)
    client = await senders.begin(500_000, 500_000)
    assert (await client.until(b'{"from":"a/A"}')).startswith(b"HTTP/1.1 200 ")
