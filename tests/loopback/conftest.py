"""Real sockets on loopback: gateways in front of an upstream that does what a test tells it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chain_peers import MODELS, START, Chain, ClockedReactor, StartChain, Tap
from loopback_peers import Gateway, ScriptedUpstream, StartGateway, UpstreamSide
from pytest_twisted import blockon
from sealing_client import settings as chutes_settings
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock, deferLater
from twisted.internet.tcp import Client, Server

from chutes_autopilot.composition import build
from chutes_autopilot.demo.catalog import SimulatedModel
from chutes_autopilot.demo.service import SimulatedChutesService, listen_simulator
from chutes_autopilot.demo.simulator import SimulatedChutes
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
            "EXPLORER_ENABLED": "false",  # it asks upstreams of its own, and takes its time to start
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


@pytest.fixture
def start_chain(monkeypatch: pytest.MonkeyPatch) -> Iterator[StartChain]:
    """Starts the double-sealed chain, with settings by their environment names, under a clock that stands still."""
    from twisted.internet import reactor

    stopping, gateways = [], []

    async def start(
        models: tuple[SimulatedModel, ...] = MODELS, tap: Callable[[int], Tap] | None = None, **environ: str
    ) -> Chain:
        clock = Clock()
        clock.advance(START)
        simulator = SimulatedChutes(clock, models=models)
        port = listen_simulator(reactor, simulator)
        platform = SimulatedChutesService(simulator, port)
        platform.startService()
        stopping.append(platform.stopService)
        url = platform.base_url
        if tap is not None:
            tapped = reactor.listenTCP(0, tap(port.getHost().port), interface="127.0.0.1")
            stopping.append(tapped.stopListening)
            url = f"http://127.0.0.1:{tapped.getHost().port}"
        monkeypatch.setattr("chutes_autopilot.sealed_composition.monotonic", clock.seconds)
        if "CHUTES_ATTESTATION" in environ:
            root = bytes.fromhex(simulator.chutes.attestation_root_sha256)
            monkeypatch.setattr("chutes_autopilot.sealed_composition.INTEL_ROOT_SPKI_SHA256", root)
        urls = {"MODELS_URL": f"{url}/v1/models", "UTILIZATION_URL": f"{url}/chutes/utilization"}
        sealed = {"CHUTES_TRANSPORT": "e2ee", "CHUTES_API_BASE_URL": url, "CHUTES_E2EE_DISCOVERY_RPM": "10"}
        settings = read_settings(
            {"BACKEND_BASE_URL": url, **urls, **chutes_settings(url), **sealed, **environ},
            lambda path: Path(path).read_text(),
        )
        service = build(settings, ClockedReactor(reactor, clock), ("tcp:0:interface=127.0.0.1",))
        before = set(reactor.getReaders())
        service.privilegedStartService()
        (listening,) = set(reactor.getReaders()) - before
        service.startService()
        stopping.append(service.stopService)
        gateway = Gateway(reactor, listening.getHost().port, service=service)
        while (await gateway.get("/readyz")).status != 200:
            clock.advance(0)  # work in slices goes on
        gateways.append(gateway)
        return Chain(reactor, clock, platform, gateway)

    yield start
    for client in (client for gateway in gateways for client in gateway.clients if not client.closed.called):
        client.transport.abortConnection()  # a service that stands still in time would wait for its streams
        blockon(client.closed)
    for stop in reversed(stopping):
        blockon(maybeDeferred(stop))
    while left := [s for s in {*reactor.getReaders(), *reactor.getWriters()} if isinstance(s, Client | Server)]:
        for socket in left:
            socket.abortConnection()
        blockon(deferLater(reactor, 0.001))
    blockon(deferLater(reactor, 0))
