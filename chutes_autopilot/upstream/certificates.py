"""Whose certificate an upstream must show: one from a trusted authority, for exactly the name that was asked for."""

from collections.abc import Sequence
from typing import Any

import attrs
from OpenSSL.SSL import VERIFY_FAIL_IF_NO_PEER_CERT, VERIFY_PEER, Connection
from service_identity.hazmat import DNS_ID, IPAddress_ID, ServiceID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet._sslverify import IOpenSSLTrustRoot
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import optionsForClientTLS
from zope.interface import implementer


@implementer(IOpenSSLClientConnectionCreator)
class ClientTLS:
    """TLS to one host. Like Twisted's own, but that a certificate whose names cannot be read is refused.

    Twisted 26.10 takes such a one for any host: only a name that does not match ends the handshake there, and every
    other failure of the check is logged and then forgotten.

    :param trust_root: the authorities (IOpenSSLTrustRoot).
    :param protocols: offered by ALPN (RFC 7301).
    """

    def __init__(self, hostname: str, trust_root: Any, protocols: Sequence[bytes] = ()) -> None:
        self._options: Any = optionsForClientTLS(
            hostname, trustRoot=trust_root, acceptableProtocols=list(protocols) or None
        )
        is_address = isIPAddress(hostname) or isIPv6Address(hostname)
        self._service: ServiceID = IPAddress_ID(hostname) if is_address else DNS_ID(hostname)

    def clientConnectionForTLS(self, tlsProtocol: Any) -> Connection:
        connection: Connection = self._options.clientConnectionForTLS(tlsProtocol)
        connection.set_verify(VERIFY_PEER | VERIFY_FAIL_IF_NO_PEER_CERT, self._verified)
        return connection

    def _verified(self, _connection: Connection, certificate: Any, _error: int, depth: int, trusted: int) -> bool:
        """Called by OpenSSL for each certificate of the chain, the upstream's own at depth 0."""
        if depth or not trusted:
            return bool(trusted)
        try:
            verify_service_identity(extract_patterns(certificate), [self._service], [])
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it is no proof
            return False
        return True


@implementer(IOpenSSLTrustRoot)
@attrs.frozen
class CertificateFile:
    """The authorities in a PEM file, read by OpenSSL itself."""

    path: str

    def _addCACertsToContext(self, context: Any) -> None:
        context.load_verify_locations(self.path)
