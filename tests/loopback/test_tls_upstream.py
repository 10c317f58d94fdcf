"""TLS to the upstream: an own certificate authority, names and handshakes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from attrs import frozen
from loopback_peers import ScriptedUpstream, StartGateway, UpstreamSide, reset
from OpenSSL.SSL import TLS_METHOD
from pytest_twisted import blockon
from twisted.internet.defer import gatherResults, maybeDeferred
from twisted.internet.protocol import Factory
from twisted.internet.ssl import DefaultOpenSSLContextFactory

AUTHORITY = trustme.CA()


@frozen
class TlsFront:
    """The scripted upstream behind TLS, for the name ``localhost`` only."""

    port: int
    ca_file: str


@pytest.fixture
def tls(scripted: ScriptedUpstream, tmp_path: Path) -> Iterator[TlsFront]:
    from twisted.internet import reactor

    certificate = AUTHORITY.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    context = DefaultOpenSSLContextFactory(str(tmp_path / "key.pem"), str(tmp_path / "cert.pem"), TLS_METHOD)
    factory = Factory.forProtocol(lambda: UpstreamSide(scripted))
    factory.noisy = False
    port = reactor.listenSSL(0, factory, context, interface="127.0.0.1")
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    yield TlsFront(port.getHost().port, str(tmp_path / "ca.pem"))
    blockon(maybeDeferred(port.stopListening))
    for side in scripted.connections:
        if not side.lost.called:
            side.transport.abortConnection()
    blockon(gatherResults([side.lost for side in scripted.connections]))


async def test_an_upstream_of_an_own_authority_is_trusted_by_ssl_cert_file(
    scripted: ScriptedUpstream, tls: TlsFront, start_gateway: StartGateway
) -> None:
    """Requests pass over TLS, failover included, and the connection is kept for the next one."""
    gateway = await start_gateway(BACKEND_BASE_URL=f"https://localhost:{tls.port}", SSL_CERT_FILE=tls.ca_file)
    scripted.scripts["a/A"] = reset
    response = await gateway.chat({"model": "chutesai/AutoPilot"})
    assert (response.status, response.body) == (200, b'{"from":"b/B"}')
    connections = len(scripted.connections)
    assert (await gateway.chat({"model": "b/B"})).status == 200
    assert len(scripted.connections) == connections


@pytest.mark.parametrize(("host", "trusted"), [("127.0.0.1", True), ("localhost", False)])
async def test_a_wrong_name_or_an_unknown_authority_is_refused(
    scripted: ScriptedUpstream, tls: TlsFront, start_gateway: StartGateway, host: str, trusted: bool
) -> None:
    """No byte of a request goes to an upstream that cannot prove who it is."""
    trust = {"SSL_CERT_FILE": tls.ca_file} if trusted else {}
    gateway = await start_gateway(BACKEND_BASE_URL=f"https://{host}:{tls.port}", **trust)
    response = await gateway.chat({"model": "a/A"})
    assert (response.status, response.error["code"]) == (502, "upstream_connect_error")
    assert not scripted.requests


async def test_a_handshake_that_hangs_is_a_connect_error(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """The connect deadline counts to the end of the handshake: a port that is open proves nothing."""
    plain = scripted.url.replace("http://127.0.0.1", "https://localhost")
    gateway = await start_gateway(BACKEND_BASE_URL=plain, UPSTREAM_CONNECT_TIMEOUT_MS="50")
    response = await gateway.chat({"model": "a/A"})
    assert (response.status, response.error["code"]) == (502, "upstream_connect_error")
