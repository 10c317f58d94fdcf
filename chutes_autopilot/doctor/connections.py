"""Whether a host can be connected to, and what is wrong with its certificate, in words.

The gateway's own connections say only that the handshake failed. Here it is gone through without judging, and judged
afterwards; nothing is ever sent over such a connection.
"""

from datetime import UTC, datetime
from typing import Any

import attrs
from cryptography.x509 import Certificate
from OpenSSL.SSL import VERIFY_PEER, Connection
from service_identity.cryptography import extract_patterns
from service_identity.hazmat import DNS_ID, IPAddress_ID, ServiceID, verify_service_identity
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import connectProtocol, wrapClientTLS
from twisted.internet.interfaces import IHandshakeListener, IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.python.failure import Failure
from zope.interface import implementer

from chutes_autopilot.doctor.findings import Finding, fail, ok, warn
from chutes_autopilot.upstream.pool import Backend, endpoints_for

EXPIRES_SOON_DAYS = 7
"""Authorities that renew by themselves do so weeks before."""

_REASONS = {
    9: "the certificate is not valid yet",
    10: "the certificate has expired",
    18: "the certificate is signed by nobody but itself",
    19: "the chain ends in an authority that is not trusted here",
    20: "the authority is not trusted here, or a certificate between is missing",
    21: "the certificate was sent without its chain, and its authority is not trusted here",
    23: "the certificate was revoked",
}
"""OpenSSL's X509_V_ERR_*, those that are met."""

_UNTRUSTED = (
    "if a proxy or a private authority is in the way, name its PEM file in SSL_CERT_FILE; else install the system's "
    "certificates (package ca-certificates)"
)
_CLOCK = "check this machine's clock first; if it is right, only the host's operator can mend it"


@attrs.frozen
class Handshake:
    """What came of one TLS handshake.

    :param chain: the certificates that were sent, the host's own first.
    :param errors: OpenSSL's judgement of the chain, worst first as it was met; empty: trusted.
    """

    version: str
    chain: tuple[Certificate, ...]
    errors: tuple[int, ...]


@implementer(IOpenSSLClientConnectionCreator)
class Unjudged:
    """TLS that goes on whatever the certificate is like, and remembers what was wrong.

    :param trust_root: the authorities, None to trust anybody without a word.
    """

    def __init__(self, hostname: str, trust_root: Any) -> None:
        self._hostname = hostname
        self._options: Any = CertificateOptions(trustRoot=trust_root)
        self._judging = trust_root is not None
        self.errors: list[int] = []

    def clientConnectionForTLS(self, tlsProtocol: Any) -> Connection:
        connection = Connection(self._options.getContext(), None)
        connection.set_app_data(tlsProtocol)
        if not (isIPAddress(self._hostname) or isIPv6Address(self._hostname)):
            connection.set_tlsext_host_name(self._hostname.encode("idna"))
        if self._judging:
            connection.set_verify(VERIFY_PEER, self._judged)
        return connection

    def _judged(self, connection: Connection, certificate: Any, error: int, depth: int, trusted: int) -> bool:
        if error and error not in self.errors:
            self.errors.append(error)
        return True


@implementer(IHandshakeListener)
class _Watching(Protocol):
    """Ends the connection as soon as it is made, and the handshake done where there is one."""

    def __init__(self, tls: Unjudged | None) -> None:
        self._tls = tls
        self.done: Deferred[Handshake | None] = Deferred(lambda _: self._abort())

    def connectionMade(self) -> None:
        if self._tls is None:
            self._end(None)

    def handshakeCompleted(self) -> None:
        transport: Any = self.transport
        connection = transport.getHandle()
        chain = connection.get_peer_cert_chain(as_cryptography=True) or ()
        errors = tuple(self._tls.errors) if self._tls else ()
        self._end(Handshake(connection.get_protocol_version_name(), tuple(chain), errors))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.done.called:
            self.done.errback(reason)

    def _end(self, result: Handshake | None) -> None:
        self._abort()
        self.done.callback(result)

    def _abort(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()


async def check_connection(
    reactor: Any, host: str, port: int, secure: bool, trust_root: Any, now: float
) -> tuple[Finding, ...]:
    """Connect, shake hands, and judge the certificate by authority, name and time.

    :param now: Unix time.
    """
    subject = f"{host}:{port}"
    plain = endpoints_for(reactor, trust_root)(Backend(False, host, port))
    tls = Unjudged(host, trust_root) if secure else None
    watching = _Watching(tls)
    started = reactor.seconds()
    try:
        await connectProtocol(wrapClientTLS(tls, plain) if tls else plain, watching)
    except Exception as error:  # noqa: BLE001 - every failure of routes and sockets is one of the connection
        reason = type(error).__name__
        advice = "check firewall, routes and port; HTTPS_PROXY is not supported, connections are made directly"
        return (fail("connect", subject, f"no connection ({reason})", advice),)
    try:
        handshake = await watching.done
    except Exception as error:  # noqa: BLE001 - whatever ended the handshake
        advice = "see whether this is a TLS port, and whether something in between cuts TLS off"
        return (fail("tls", subject, f"the handshake failed ({type(error).__name__})", advice),)
    seen = f"connected in {(reactor.seconds() - started) * 1000:.0f} ms"
    if handshake is not None:
        return (ok("connect", subject, seen), judged(subject, host, handshake, now))
    if is_loopback(host):
        return (ok("connect", subject, f"{seen}, without TLS on this machine itself"),)
    advice = "use https: what is sent, keys and prompts above all, travels in the clear"
    return (warn("connect", subject, f"{seen}, without TLS", advice),)


def judged(subject: str, host: str, handshake: Handshake, now: float) -> Finding:
    """What a handshake says of the host's certificate."""
    if handshake.errors:
        error = handshake.errors[0]
        reason = _REASONS.get(error, f"OpenSSL refuses the certificate (error {error})")
        return fail("tls", subject, reason, _CLOCK if error in (9, 10) else _UNTRUSTED)
    service: ServiceID = IPAddress_ID(host) if isIPAddress(host) or isIPv6Address(host) else DNS_ID(host)
    try:
        verify_service_identity(extract_patterns(handshake.chain[0]), [service], [])
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is no proof
        advice = "see whether the name leads where it should (a captive portal? an old DNS entry?)"
        return fail("tls", subject, "the certificate is for another name", advice)
    last = min(certificate.not_valid_after_utc for certificate in handshake.chain)
    days = (last - datetime.fromtimestamp(now, UTC)).total_seconds() / 86_400
    seen = f"{handshake.version}, certificate valid for {days:.0f} more days"
    if days < EXPIRES_SOON_DAYS:
        return warn("tls", subject, seen, "its operator must renew it before then")
    return ok("tls", subject, seen)


def is_loopback(host: str) -> bool:
    """Whether what is sent there never leaves this machine."""
    return host in ("localhost", "::1") or (isIPAddress(host) and host.startswith("127."))
