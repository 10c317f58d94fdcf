"""A scripted gateway, clients of it, and the local endpoint in front, all on loopback sockets of one reactor."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "e2ee"))  # for its factory of quotes

import pytest
from local_endpoint import Local
from pytest_twisted import blockon
from scripted_gateway import TOKEN, QuietSite, ScriptedGateway
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import deferLater
from twisted.internet.tcp import Client, Server

from chutes_autopilot.e2ee_client.gateway import Gateway, GatewayOptions
from chutes_autopilot.e2ee_client.local_site import LocalSite
from chutes_autopilot.e2ee_client.proxy import Proxy
from chutes_autopilot.e2ee_client.report import CheckedReport
from chutes_autopilot.e2ee_client.transport import build_agent


@pytest.fixture
def scripted() -> Iterator[ScriptedGateway]:
    from twisted.internet import reactor

    gateway = ScriptedGateway(time.time)
    gateway.port = reactor.listenTCP(0, QuietSite(gateway), interface="127.0.0.1")
    yield gateway
    blockon(maybeDeferred(gateway.port.stopListening))
    _close_connections(reactor)


@pytest.fixture
def connect(scripted: ScriptedGateway) -> Iterator[Callable[..., Gateway]]:
    """A client of the scripted gateway; ``connect(checked=..., algo=..., in_clear=...)``."""
    from twisted.internet import reactor

    pools = []

    def connect(
        checked: Callable[[CheckedReport], None] = lambda _: None,
        now: Callable[[], float] = time.time,
        base_url: str = "",
        **options: Any,
    ) -> Gateway:
        agent, pool = build_agent(reactor)
        pools.append(pool)
        return Gateway(reactor, agent, GatewayOptions(base_url or scripted.url, **options), now, checked)

    yield connect
    for pool in pools:
        blockon(pool.closeCachedConnections())
    _close_connections(reactor)


@pytest.fixture
def start_local(connect: Callable[..., Gateway]) -> Iterator[Callable[..., Local]]:
    """The local endpoint; ``start_local(authorization=..., algo=..., in_clear=...)``."""
    from twisted.internet import reactor

    ports = []

    def start(authorization: str | None = f"Bearer {TOKEN}", **options: Any) -> Local:
        reports: list[CheckedReport] = []
        gateway = connect(reports.append, **options)
        local = Local("", 0, gateway, [], [], reports)
        proxy = Proxy(gateway, authorization, local.records.append, local.lines.append)
        port = reactor.listenTCP(0, LocalSite(proxy, reactor), interface="127.0.0.1")
        ports.append(port)
        local.port = port.getHost().port
        local.url = f"http://127.0.0.1:{local.port}/v1"
        return local

    yield start
    for port in ports:
        blockon(maybeDeferred(port.stopListening))
    _close_connections(reactor)


@pytest.fixture
def local(start_local: Callable[..., Local]) -> Local:
    """The local endpoint with default options."""
    return start_local()


def _close_connections(reactor: Any) -> None:
    """Whatever a test left open; one that did nothing wrong leaves idle connections."""
    while sockets := [s for s in {*reactor.getReaders(), *reactor.getWriters()} if isinstance(s, Client | Server)]:
        for socket in sockets:
            socket.abortConnection()
        blockon(deferLater(reactor, 0.001))
    blockon(deferLater(reactor, 0))
