"""Real sockets on loopback: gateways in front of an upstream that does what a test tells it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_peers import Gateway, ScriptedUpstream, StartGateway, UpstreamSide
from pytest_twisted import blockon
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.internet.tcp import Server

from chutes_autopilot.composition import build
from chutes_autopilot.settings import read_settings


@pytest.fixture
def scripted() -> Iterator[ScriptedUpstream]:
    from twisted.internet import reactor

    upstream = ScriptedUpstream()
    factory = Factory.forProtocol(lambda: UpstreamSide(upstream))
    factory.noisy = False
    upstream.port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    yield upstream
    blockon(maybeDeferred(upstream.port.stopListening))
    for side in upstream.connections:
        if not side.lost.called:
            side.transport.abortConnection()
    blockon(gatherResults([side.lost for side in upstream.connections]))


@pytest.fixture
def path() -> str:
    """Who reads ordinary chat requests: "front" (the front channel) or "reference" (twisted.web and Klein).

    A module whose tests must hold for both gives this fixture both parameters.
    """
    return "front"


@pytest.fixture
def start_gateway(scripted: ScriptedUpstream, path: str) -> Iterator[StartGateway]:
    """Starts gateways in front of the scripted upstream, with settings by their environment names."""
    from twisted.internet import reactor

    services, gateways = [], []

    async def start(*, ready: bool = True, **environ: str) -> Gateway:
        urls = {
            "BACKEND_BASE_URL": scripted.url,
            "MODELS_URL": scripted.url + "/v1/models",
            "UTILIZATION_URL": scripted.url + "/chutes/utilization",
        }
        settings = read_settings({**urls, **environ}, lambda path: Path(path).read_text())
        service = build(settings, reactor, ("tcp:0:interface=127.0.0.1",))
        before = set(reactor.getReaders())
        service.privilegedStartService()
        services.append(service)
        (port,) = set(reactor.getReaders()) - before
        service.startService()
        gateway = Gateway(reactor, port.getHost().port, path == "reference", service)
        gateways.append(gateway)
        while ready and (await gateway.get("/readyz")).status != 200:
            await deferLater(reactor, 0.001)
        return gateway

    yield start
    clients = [client for gateway in gateways for client in gateway.clients if not client.closed.called]
    for client in clients:
        client.transport.abortConnection()
    blockon(gatherResults([client.closed for client in clients]))
    ports = {gateway.port for gateway in gateways}
    for service in services:
        if service.running:
            blockon(service.stopService())
    while any(isinstance(s, Server) and s.getHost().port in ports for s in reactor.getReaders()):
        blockon(deferLater(reactor, 0.001))  # until the gateway has seen that its clients are gone
    blockon(deferLater(reactor, 0))


@pytest.fixture
def gateway(start_gateway: StartGateway) -> Gateway:
    """A ready gateway with the default settings."""
    started: Gateway = blockon(Deferred.fromCoroutine(start_gateway()))
    return started
