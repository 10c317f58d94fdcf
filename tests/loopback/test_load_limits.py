"""More than the gateway will take: what waits, what is refused, and that nothing of it stays behind."""

import gc
import os
import sys
from random import Random
from types import FunctionType, MethodType
from typing import Any

import pytest
from loopback_peers import (
    CHUNKED,
    Gateway,
    RawClient,
    Script,
    ScriptedUpstream,
    StartGateway,
    UpstreamSide,
    answer,
    chunk,
    read_response,
    reset,
    respond,
    silent,
)
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.tcp import Connection

from chutes_autopilot.relay.exchange import Exchange
from chutes_autopilot.upstream.connection import UpstreamConnection
from chutes_autopilot.web.site import GatewayChannel

DIRECT = b'{"model":"a/A"}'
SOAK_ROUNDS = int(os.environ.get("SOAK_ROUNDS", "20"))
"""Twenty requests each; a longer soak is asked for by the environment: 1000 take a minute or two."""

PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("headers", [(), (b"X-A: 1", b"X-A: 2")], ids=["ordinary", "reference"])
async def test_a_request_too_many_is_told_to_come_back(
    start_gateway: StartGateway, scripted: ScriptedUpstream, headers: tuple[bytes, ...]
) -> None:
    """Over MAX_INFLIGHT_REQUESTS a chat request is 503 overloaded, counted; when one has ended the next is taken."""
    gateway = await start_gateway(MAX_INFLIGHT_REQUESTS="1")
    scripted.scripts["a/A"] = silent
    first = await gateway.connect()
    first.post(DIRECT)
    await scripted.when_asked(1)
    refused = await gateway.chat(DIRECT, *headers)
    assert (refused.status, refused.error["code"], refused.header("retry-after")) == (503, "overloaded", "1")
    answer(b"{}")(scripted.connections[-1])
    await first.until(b"\r\n\r\n{}")
    del scripted.scripts["a/A"]
    assert (await gateway.chat(DIRECT, *headers)).status == 200
    assert len(scripted.requests) == 2
    metrics = await gateway.metrics()
    assert (metrics['requests_total{status="503"}'], metrics["requests_active"]) == (1, 0)


async def probes(gateway: Gateway, count: int) -> list[RawClient]:
    """Clients that have all asked for /healthz."""
    clients = [await gateway.connect() for _ in range(count)]
    for client in clients:
        client.transport.write(PROBE)
    return clients


def served(clients: list[RawClient]) -> list[RawClient]:
    return [client for client in clients if client.received.endswith(b"\r\n\r\nok")]


async def test_a_connection_too_many_waits_for_its_turn(start_gateway: StartGateway) -> None:
    """Over MAX_CONNECTIONS clients wait unharmed, those connected are served, and each that leaves lets one in."""
    gateway = await start_gateway(MAX_CONNECTIONS="3")
    clients = await probes(gateway, 10)
    while len(served(clients)) < 3:
        await deferLater(gateway.reactor, 0.001)
    for client in served(clients) * 2:
        client.received = b""
        client.transport.write(PROBE)
        await client.until(b"\r\n\r\nok")
    connected, waiting = served(clients), [client for client in clients if client not in served(clients)]
    assert (len(connected), {client.received for client in waiting}) == (3, {b""})
    for client in connected:
        client.transport.loseConnection()
    while waiting:
        (done,) = await gatherResults([waiting.pop(0).until(b"\r\n\r\nok")])
        assert read_response(done).status == 200
        connected.append(clients[len(connected)])
        connected[-1].transport.loseConnection()
    assert len(served(clients)) == 10


def cut_short(side: UpstreamSide) -> None:
    side.transport.write(CHUNKED + chunk(b"half"))
    side.transport.loseConnection()


def head_only(side: UpstreamSide) -> None:
    side.transport.write(CHUNKED)


FAULTS: tuple[Script, ...] = (
    answer(b"whole"),
    respond(CHUNKED + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"),
    answer(b"busy", b"503 Service Unavailable"),
    answer(b"slow down", b"429 Too Many Requests"),
    answer(b"gone", b"404 Not Found", b"Connection: close"),
    respond(b"rubbish\r\n\r\n"),
    respond(b"", close=True),
    reset,
    silent,
    head_only,
    cut_short,
)


def alive() -> dict[str, int]:
    """How many of the objects that a request needs are still in memory."""
    gc.collect()
    kinds = (Exchange, UpstreamConnection, GatewayChannel)
    found = [type(thing) for thing in gc.get_objects() if isinstance(thing, kinds)]
    return {kind.__name__: found.count(kind) for kind in found}


@pytest.mark.wait(10 + SOAK_ROUNDS)
async def test_faults_and_clients_that_leave_leave_nothing_behind(
    start_gateway: StartGateway, scripted: ScriptedUpstream
) -> None:
    """After 400 requests and more with random faults and disconnects no socket, descriptor, object or timer is left
    that was not there before; the queues of deadlines keep one timer for each kind of deadline, however many requests
    there were. Python holds as many blocks of memory as after the first quarter, but for a few."""
    gateway = await start_gateway(
        UPSTREAM_HEADER_TIMEOUT_MS="40",
        UPSTREAM_FIRST_BODY_BYTE_TIMEOUT_MS="80",
        UPSTREAM_NONSTREAM_HEADER_TIMEOUT_MS="80",
        UTILIZATION_REFRESH_MS="60000",
    )
    reactor: Any = gateway.reactor
    random = Random(20)

    def forget() -> None:
        """What the peers keep of all that is over."""
        scripted.connections = [side for side in scripted.connections if not side.lost.called]
        for kept in (scripted.requests, scripted.heads, gateway.clients):
            kept.clear()

    async def quiet() -> tuple[int, int, int]:
        """Sockets, timers other than the queues', descriptors, once every client and upstream connection is gone."""
        for side in scripted.connections:
            if not side.lost.called:
                side.transport.abortConnection()
        while any(isinstance(reader, Connection) for reader in reactor.getReaders()):
            await deferLater(reactor, 0.01)
        while alive():
            await deferLater(reactor, 0.01)
        timers = [
            call.func.__name__ for call in reactor.getDelayedCalls() if isinstance(call.func, FunctionType | MethodType)
        ]
        assert timers.count("_sweep") < 10
        forget()
        gc.collect()
        own = len(reactor.getDelayedCalls()) - timers.count("_sweep")
        return len(reactor.getReaders()), own, len(os.listdir("/dev/fd"))

    async def one_request() -> None:
        client = await gateway.connect()
        model = random.choice(["chutesai/AutoPilot", "a/A", "b/B,c/C"])
        body = b'{"model":"%s","stream":%s}' % (model.encode(), random.choice([b"true", b"false"]))
        client.post(body, b"Connection: close", *random.choice([(), (b"X-A: 1", b"X-A: 2")]))
        leaves = random.random()
        if leaves < 0.4:
            await deferLater(reactor, leaves / 10)
            random.choice([client.transport.abortConnection, client.transport.loseConnection])()
        await client.closed

    before = await quiet()
    blocks = 0
    for done in range(SOAK_ROUNDS):
        if done == SOAK_ROUNDS // 4:
            await quiet()
            blocks = sys.getallocatedblocks()
        scripted.scripts = {name: random.choice(FAULTS) for name in scripted.names}
        await gatherResults([Deferred.fromCoroutine(one_request()) for _ in range(20)])
        forget()
    after = await quiet()
    assert all(left <= right for left, right in zip(after, before, strict=True)), (before, after)
    assert sys.getallocatedblocks() - blocks < 20000  # the ring of decision records is still filling
    metrics = await gateway.metrics()
    assert metrics["requests_active"] == 0
    assert sum(count for name, count in metrics.items() if name.startswith("requests_total")) > SOAK_ROUNDS * 15
