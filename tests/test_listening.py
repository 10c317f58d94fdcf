"""The listening sockets: all are bound or the process does not start, and every one is told."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import CannotListenError, ConnectError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Port
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import formatEvent, globalLogPublisher

from chutes_autopilot.listening import ListeningService, check_endpoint
from chutes_autopilot.web.channel import GatewayChannel
from chutes_autopilot.web.connections import ClientConnections

LOOPBACK = "tcp:0:interface=127.0.0.1"


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("log_namespace") == "chutes_autopilot.listening.ListeningService":
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def listening_on(*endpoints: str) -> ListeningService:
    return ListeningService(reactor, endpoints, Factory.forProtocol(Protocol), ClientConnections(1))


async def test_every_port_stops_accepting_while_the_connections_are_full() -> None:
    """The operator's too, which has a service of its own."""
    connections = ClientConnections(1)
    services = [ListeningService(reactor, (LOOPBACK,), Factory.forProtocol(Protocol), connections) for _ in range(2)]
    for service in services:
        service.privilegedStartService()
        service.startService()
    accepting = [len([port for port in reactor.getReaders() if isinstance(port, Port)])]
    client = GatewayChannel()
    for happened in (connections.opened, connections.closed):
        happened(client)
        accepting.append(len([port for port in reactor.getReaders() if isinstance(port, Port)]))
    for service in services:
        await service.stopService()
    assert (accepting[0] - accepting[1], accepting[2] - accepting[1]) == (2, 2)


async def is_open(endpoint: str) -> bool:
    try:
        connected = await clientFromString(reactor, endpoint).connect(Factory.forProtocol(Protocol))
    except ConnectError:
        return False
    connected.transport.abortConnection()
    return True


async def test_every_endpoint_is_told_with_its_real_port(log: list[str], tmp_path: Path) -> None:
    """One line for each bound address says scheme, host and the port that was really taken."""
    pem = tmp_path / "server.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
    service = listening_on(
        LOOPBACK,
        f"ssl:0:privateKey={pem}:interface=127.0.0.1",
        r"tcp6:0:interface=\:\:1",
        f"unix:{tmp_path}/socket",
        f"haproxy:{LOOPBACK}",
    )
    service.privilegedStartService()
    service.startService()
    assert [re.sub(":[1-9][0-9]+$", ":PORT", line) for line in log] == [
        "listening on http://127.0.0.1:PORT",
        "listening on https://127.0.0.1:PORT",
        "listening on http://[::1]:PORT",
        f"listening on http+unix:{tmp_path}/socket",
        "listening on http://127.0.0.1:PORT",
    ]
    assert await is_open(f"tcp:127.0.0.1:{log[0].rpartition(':')[2]}")
    await service.stopService()
    assert not await is_open(f"tcp:127.0.0.1:{log[0].rpartition(':')[2]}")


async def test_a_taken_port_ends_the_start(log: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Where one address cannot be bound, the others are closed and the process ends with 1 and one line."""
    first = listening_on(LOOPBACK)
    first.privilegedStartService()
    taken = f"tcp:{log.pop().rpartition(':')[2]}:interface=127.0.0.1"
    with pytest.raises(SystemExit) as ended:
        listening_on(LOOPBACK, taken).privilegedStartService()
    assert ended.value.code == 1
    out, err = capfd.readouterr()
    assert (out, err) == ("", f"chutes-autopilot: cannot listen on '{taken}': Address already in use\n")
    assert log[1:] == [f"cannot listen on {taken}: Address already in use"]
    await first.stopService()
    assert not await is_open(f"tcp:127.0.0.1:{log[0].rpartition(':')[2]}")


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("unix:/nowhere/socket", "No such file or directory: /nowhere/socket.lock"),
        ("tcp:0:interface=192.0.2.1", "Cannot assign requested address"),
        ("ssl:0:privateKey=/nowhere/a.pem", "No such file or directory: /nowhere/a.pem"),
    ],
)
def test_why_an_endpoint_failed(capfd: pytest.CaptureFixture[str], endpoint: str, reason: str) -> None:
    """The line says in the system's words why nothing could listen there."""
    with pytest.raises(SystemExit):
        listening_on(endpoint).privilegedStartService()
    assert capfd.readouterr().err == f"chutes-autopilot: cannot listen on '{endpoint}': {reason}\n"


@pytest.fixture
def tls_directories(tmp_path: Path) -> Path:
    """Directories with a certificate in one file and its key in another, and such where something is missing."""
    ours, other = (trustme.CA().issue_cert("localhost") for _ in range(2))
    for name, key in {"whole": ours, "other_key": other, "no_key": None}.items():
        (tmp_path / name).mkdir()
        ours.cert_chain_pems[0].write_to_path(tmp_path / name / "cert.pem")
        if key:
            key.private_key_pem.write_to_path(tmp_path / name / "key.pem")
    (tmp_path / "empty").mkdir()
    return tmp_path


in_twisted = pytest.mark.filterwarnings("ignore:X509.get_.* is deprecated:DeprecationWarning")


@in_twisted
@pytest.mark.parametrize("endpoint", ["tls:{}/whole:port=0", "tls:{}/whole:8443", "haproxy:tls:{}/whole:port=0"])
def test_tls_takes_a_directory_with_a_certificate_and_its_key(tls_directories: Path, endpoint: str) -> None:
    """Such an endpoint passes the check."""
    check_endpoint(reactor, endpoint.format(tls_directories))


@in_twisted
@pytest.mark.parametrize(
    "endpoint",
    [
        "tls:/nowhere:port=0",
        "tls:{}/empty:port=0",
        "tls:{}/no_key:port=0",
        "tls:{}/other_key:port=0",
        "haproxy:tls:{}/empty:port=0",
        "tls:0:privateKey={}/whole/key.pem:certKey={}/whole/cert.pem",
    ],
)
def test_tls_without_a_certificate_is_refused(tls_directories: Path, endpoint: str) -> None:
    """It would listen and fail every client, so it is refused before the start, in one line that says how it goes."""
    endpoint = endpoint.replace("{}", str(tls_directories))
    with pytest.raises(ValueError, match="cannot use the endpoint") as refused:
        check_endpoint(reactor, endpoint)
    assert str(refused.value) == (
        f"cannot use the endpoint {endpoint!r}: "
        "tls: takes a directory that has certificates for host names, and their keys, in .pem files, "
        "as in tls:/dir:port=8443; for single files there is ssl:8443:privateKey=key.pem:certKey=cert.pem"
    )


class SlowEndpoint:
    """An endpoint that takes its time to listen, as some plugins' do."""

    def __init__(self) -> None:
        self.listening: list[Deferred[Any]] = []

    def listen(self, factory: object) -> Deferred[Any]:
        self.listening.append(Deferred())
        return self.listening[-1]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowEndpoint:
    endpoint = SlowEndpoint()
    monkeypatch.setattr("chutes_autopilot.listening.serverFromString", lambda reactor, text: endpoint)
    return endpoint


def test_an_endpoint_that_fails_later_ends_the_process(slow: SlowEndpoint, capfd: pytest.CaptureFixture[str]) -> None:
    """A service that finds out late that it has no listener stops, and its process exits with 1."""
    memory = MemoryReactorClock()
    ListeningService(memory, ("slow:", "slow:"), Factory(), ClientConnections(1)).privilegedStartService()
    for listening in slow.listening:
        listening.errback(CannotListenError("slow", 1, OSError(98, "Address already in use")))
    assert memory.triggers["after"]["shutdown"] == [(os._exit, (1,), {})]
    assert (memory.hasRun, memory.whenRunningHooks) == (False, [(memory.stop, (), {})])
    assert capfd.readouterr().err == 2 * "chutes-autopilot: cannot listen on 'slow:': Address already in use\n"


def test_a_service_that_stops_while_it_waits_for_a_port(slow: SlowEndpoint, capfd: pytest.CaptureFixture[str]) -> None:
    """A stop cancels what is not yet listening, and that is no failure."""
    memory = MemoryReactorClock()
    service = ListeningService(memory, ("slow:",), Factory(), ClientConnections(1))
    service.privilegedStartService()
    stopped = []
    service.stopService().addCallback(stopped.append)
    assert (stopped, slow.listening[0].called, memory.triggers) == ([[]], True, {})
    assert capfd.readouterr().err == ""
