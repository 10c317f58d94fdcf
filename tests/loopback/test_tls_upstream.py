"""TLS to the upstream: an own certificate authority, names, handshakes and goodbyes."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from loopback_peers import ScriptedUpstream, StartGateway, UpstreamSide, is_complete, reset, respond
from OpenSSL.SSL import TLS_METHOD
from pytest_twisted import blockon
from twisted.internet.defer import gatherResults, maybeDeferred
from twisted.internet.protocol import Factory
from twisted.internet.ssl import DefaultOpenSSLContextFactory

AUTHORITY = trustme.CA()


@frozen
class TlsFront:
    """The scripted upstream behind TLS."""

    port: int
    ca_file: str


@pytest.fixture
def listen(scripted: ScriptedUpstream, tmp_path: Path) -> Iterator[Callable[[bytes, bytes], TlsFront]]:
    """Puts the scripted upstream behind a key and a certificate, both PEM."""
    from twisted.internet import reactor

    ports = []

    def start(key: bytes, certificate: bytes) -> TlsFront:
        (tmp_path / "key.pem").write_bytes(key)
        (tmp_path / "cert.pem").write_bytes(certificate)
        context = DefaultOpenSSLContextFactory(str(tmp_path / "key.pem"), str(tmp_path / "cert.pem"), TLS_METHOD)
        factory = Factory.forProtocol(lambda: UpstreamSide(scripted))
        factory.noisy = False
        ports.append(reactor.listenSSL(0, factory, context, interface="127.0.0.1"))
        AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
        return TlsFront(ports[-1].getHost().port, str(tmp_path / "ca.pem"))

    yield start
    blockon(gatherResults([maybeDeferred(port.stopListening) for port in ports]))
    for side in scripted.connections:
        if not side.lost.called:
            side.transport.abortConnection()
    blockon(gatherResults([side.lost for side in scripted.connections]))


def issued(name: str = "localhost", authority: trustme.CA = AUTHORITY, **options: Any) -> tuple[bytes, bytes]:
    """Key and certificate."""
    leaf = authority.issue_cert(name, **options)
    return leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes()


def self_signed() -> tuple[bytes, bytes]:
    """Key and certificate for ``localhost``, of nobody's but its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, certificate.public_bytes(Encoding.PEM)


@pytest.fixture
def tls(listen: Callable[[bytes, bytes], TlsFront]) -> TlsFront:
    return listen(*issued())


async def test_an_upstream_of_an_own_authority_is_trusted_by_ssl_cert_file(
    scripted: ScriptedUpstream, tls: TlsFront, start_gateway: StartGateway
) -> None:
    """Requests pass over TLS, failover included, and the connection is kept for the next one."""
    gateway = await start_gateway(**trusting(tls))
    scripted.scripts["a/A"] = reset
    response = await gateway.chat({"model": "chutesai/AutoPilot"})
    assert (response.status, response.body) == (200, b'{"from":"b/B"}')
    connections = len(scripted.connections)
    assert (await gateway.chat({"model": "b/B"})).status == 200
    assert len(scripted.connections) == connections


def trusting(front: TlsFront, host: str = "localhost") -> dict[str, str]:
    """The settings of a gateway that knows the authority."""
    return {"BACKEND_BASE_URL": f"https://{host}:{front.port}", "SSL_CERT_FILE": front.ca_file}


NOW, DAY = datetime.now(UTC), timedelta(days=1)
REFUSED = {
    "of an unknown authority": issued(authority=trustme.CA()),
    "self-signed": self_signed(),
    "of another name": issued("other.example"),
    "of a name that cannot be read": issued("*.localhost"),
    "expired": issued(not_before=NOW - 2 * DAY, not_after=NOW - DAY),
    "not valid yet": issued(not_before=NOW + DAY, not_after=NOW + 2 * DAY),
}


@pytest.mark.parametrize("certificate", REFUSED.values(), ids=REFUSED)
async def test_a_certificate_that_proves_nothing_is_refused(
    scripted: ScriptedUpstream,
    listen: Callable[[bytes, bytes], TlsFront],
    start_gateway: StartGateway,
    certificate: tuple[bytes, bytes],
) -> None:
    """Each candidate is a failed connection, and no byte of a request goes to who cannot prove who it is."""
    front = listen(*certificate)
    gateway = await start_gateway(**trusting(front))
    feeds = len(scripted.connections)
    response = await gateway.chat({"model": "chutesai/AutoPilot"})
    assert (response.status, response.error["code"]) == (502, "upstream_connect_error")
    assert response.header("x-chutes-autopilot-attempts") == "3"
    sides = scripted.connections[feeds:]  # one for each attempt, and perhaps those that were opened ahead
    assert len(sides) >= 3
    assert ({side.buffer for side in sides}, scripted.requests) == ({b""}, [])
    await gatherResults([side.lost for side in sides])


async def test_an_address_is_no_name(scripted: ScriptedUpstream, tls: TlsFront, start_gateway: StartGateway) -> None:
    """A certificate for the host's name does not speak for its address."""
    gateway = await start_gateway(**trusting(tls, "127.0.0.1"))
    response = await gateway.chat({"model": "a/A"})
    assert (response.status, response.error["code"]) == (502, "upstream_connect_error")
    assert not scripted.requests


@pytest.mark.parametrize("goodbye", [True, False], ids=["said goodbye", "cut off"])
async def test_a_body_until_the_close_needs_the_goodbye_of_tls(
    scripted: ScriptedUpstream, tls: TlsFront, start_gateway: StartGateway, goodbye: bool
) -> None:
    """Anybody on the way can close a TCP connection; only the upstream can end the TLS in it. Without that the client
    sees a cut."""
    gateway = await start_gateway(**trusting(tls))
    scripted.scripts["a/A"] = respond(b"HTTP/1.0 200 OK\r\n\r\nall of it?")
    client = await gateway.connect()
    client.post(b'{"model":"a/A"}')
    await client.until(b"all of it?")
    tls_transport = scripted.connections[-1].transport
    (tls_transport if goodbye else tls_transport.transport).loseConnection()
    await (client.complete() if goodbye else client.closed)
    assert is_complete(client.received) is goodbye
    assert (await gateway.metrics())["streams_cut_total"] == (0 if goodbye else 1)


async def test_a_handshake_that_hangs_is_a_connect_error(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """The connect deadline counts to the end of the handshake: a port that is open proves nothing."""
    plain = scripted.url.replace("http://127.0.0.1", "https://localhost")
    gateway = await start_gateway(BACKEND_BASE_URL=plain, UPSTREAM_CONNECT_TIMEOUT_MS="50")
    response = await gateway.chat({"model": "a/A"})
    assert (response.status, response.error["code"]) == (502, "upstream_connect_error")
