"""Kinds of endpoints besides TCP: a client that speaks as they want is served."""

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trustme
from loopback_peers import RawClient, Response, ScriptedUpstream, read_response
from pytest_twisted import blockon
from twisted.internet.defer import gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates

from chutes_autopilot.composition import GatewayService, build
from chutes_autopilot.settings import read_settings

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
AUTHORITY = trustme.CA()


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A directory with a certificate for ``localhost`` in one file and its key in another."""
    certificate = AUTHORITY.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    return tmp_path


Ask = Callable[..., Awaitable[Response]]


@pytest.fixture
def ask(scripted: ScriptedUpstream) -> Iterator[Ask]:
    """Starts a gateway on an endpoint, and sends it bytes, perhaps in TLS."""
    from twisted.internet import reactor

    services: list[GatewayService] = []

    async def ask(endpoint: str, request: bytes, *, tls: bool) -> Response:
        environ = {"BACKEND_BASE_URL": scripted.url, "MODELS_URL": scripted.url, "UTILIZATION_URL": scripted.url}
        service = build(read_settings(environ, lambda path: Path(path).read_text()), reactor, (endpoint,))
        before = set(reactor.getReaders())
        service.privilegedStartService()
        services.append(service)
        (port,) = set(reactor.getReaders()) - before
        client_endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        if tls:
            trusted = trustRootFromCertificates([Certificate.loadPEM(AUTHORITY.cert_pem.bytes())])
            client_endpoint = wrapClientTLS(optionsForClientTLS("localhost", trustRoot=trusted), client_endpoint)
        client = await connectProtocol(client_endpoint, RawClient())
        client.transport.write(request)
        await client.closed
        return read_response(client.received)

    yield ask
    blockon(gatherResults([service.stopService() for service in services]))


@pytest.mark.filterwarnings("ignore:X509.get_.* is deprecated:DeprecationWarning")  # in Twisted's own tls: endpoint
@pytest.mark.parametrize(
    "endpoint",
    [
        "tls:{path}:port=0:interface=127.0.0.1",
        "ssl:0:privateKey={path}/key.pem:certKey={path}/cert.pem:interface=127.0.0.1",
    ],
)
async def test_tls_clients_are_served(ask: Ask, certificates: Path, endpoint: str) -> None:
    """A client that checks the certificate gets its answer over TLS."""
    response = await ask(endpoint.format(path=certificates), HEALTH, tls=True)
    assert (response.status, response.body) == (200, b"ok")


async def test_a_proxy_may_announce_the_client(ask: Ask) -> None:
    """Behind haproxy: a request that follows a PROXY line is served."""
    line = b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\n"
    response = await ask("haproxy:tcp:0:interface=127.0.0.1", line + HEALTH, tls=False)
    assert (response.status, response.body) == (200, b"ok")
