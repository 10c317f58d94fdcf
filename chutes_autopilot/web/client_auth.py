"""Who may use the Chutes route: it spends the operator's key, so strangers are turned away before anything else."""

import hashlib
import hmac
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address

import attrs
from twisted.internet.interfaces import IAddress
from twisted.internet.tcp import Server
from twisted.protocols.tls import TLSMemoryBIOProtocol

from chutes_autopilot.errors import e2ee_error
from chutes_autopilot.policy.stickiness import bearer_token
from chutes_autopilot.web.site import GatewayRequest
from chutes_autopilot.wire.headers import Header

ANONYMOUS = hashlib.sha256(b"chutes-autopilot anonymous caller").digest()
"""Stands for every caller that was not asked for a token; no token has this hash."""

_BY_A_BROWSER_OR_PROXY = frozenset(
    {b"origin", b"forwarded", b"via", b"x-real-ip", b"true-client-ip", b"cf-connecting-ip"}
)


@attrs.frozen
class AccessRules:
    """What the operator sets of access.

    :param enabled: CHUTES_ENABLED.
    :param has_key: whether there is a CHUTES_API_KEY.
    :param tokens: the values of TOKEN. Where there are any, one of them is asked for, whatever else is set.
    :param allow_anonymous: CHUTES_ALLOW_ANONYMOUS: without tokens, serve everybody and not only this machine.
    """

    enabled: bool
    has_key: bool
    tokens: tuple[bytes, ...] = attrs.field(repr=False)
    allow_anonymous: bool


def authenticate(rules: AccessRules, headers: Iterable[Header], peer: str | None, *, spends_key: bool) -> bytes:
    """Admit a caller or raise the ApiError to answer with: chutes_disabled, chutes_misconfigured or invalid_api_key.

    :param headers: all of the request's, as received.
    :param peer: the IP address at the other end of a plain TCP or TLS connection; None for every other kind, and
        where something in between says what the address is.
    :param spends_key: whether the endpoint calls the platform with the operator's key.
    :returns: 32 bytes by which this caller is known again: SHA-256 of its token, or ANONYMOUS.
    """
    if not rules.enabled:
        raise e2ee_error("chutes_disabled", "Chutes route is disabled")
    if spends_key and not rules.has_key:
        raise e2ee_error("chutes_misconfigured", "CHUTES_API_KEY is not configured")
    headers = list(headers)
    if rules.tokens:
        return _by_token(rules.tokens, headers)
    if not (rules.allow_anonymous or _is_direct_from_loopback(headers, peer)):
        raise e2ee_error("chutes_misconfigured", "TOKEN is not configured")
    return ANONYMOUS


def authenticate_request(rules: AccessRules, request: GatewayRequest, *, spends_key: bool) -> bytes:
    """`authenticate` for a request that twisted.web has read."""
    headers = [(name, value) for name, values in request.requestHeaders.getAllRawHeaders() for value in values]
    return authenticate(
        rules,
        headers,
        None if request.channel is None else direct_peer(request.channel.transport),
        spends_key=spends_key,
    )


def direct_peer(transport: object) -> str | None:
    """The address a connection really comes from, None where it has none or somebody else says it.

    Only the transports of Twisted's own TCP sockets, perhaps with TLS on them, are known to tell the truth: the one
    of a haproxy endpoint repeats what it was told.
    """
    while isinstance(transport, TLSMemoryBIOProtocol):
        transport = transport.transport
    if not isinstance(transport, Server):
        return None
    peer: IAddress = transport.getPeer()
    return getattr(peer, "host", None)  # a UNIXAddress has no host


def _by_token(tokens: tuple[bytes, ...], headers: list[Header]) -> bytes:
    sent = _values(headers, b"authorization")
    token = bearer_token(sent[0]) if len(sent) == 1 else b""
    caller = hashlib.sha256(token).digest()
    # each one is compared, and hashes: neither the time it takes nor a length says how near a guess was
    right = [hmac.compare_digest(caller, hashlib.sha256(each).digest()) for each in tokens]
    if not token or not any(right):
        raise e2ee_error(
            "invalid_api_key",
            "Send Authorization: Bearer with a token of this service.",
            headers=((b"WWW-Authenticate", b"Bearer"),),
        )
    return caller


def _is_direct_from_loopback(headers: list[Header], peer: str | None) -> bool:
    """Whether a program on this machine asks by itself: no browser for some page, no proxy for somebody else."""
    for name, _ in headers:
        lower = name.lower()
        if lower in _BY_A_BROWSER_OR_PROXY or lower.startswith(b"x-forwarded-"):
            return False
    hosts = _values(headers, b"host")
    return peer is not None and _is_loopback(peer) and len(hosts) == 1 and _names_loopback(hosts[0])


def _names_loopback(host: bytes) -> bool:
    """Whether a Host header (RFC 9110 section 7.2) names this machine; a page that had its own name resolved to it
    (DNS rebinding) is found out by this."""
    text = host.strip().decode("latin-1").lower()
    if text.startswith("["):
        name, bracket, port = text[1:].partition("]")
        return bool(bracket) and _is_port(port) and ":" in name and _is_loopback(name)
    name, colon, port = text.partition(":")
    return _is_port(colon + port) and (name == "localhost" or _is_loopback(name))


def _is_port(text: str) -> bool:
    return not text or (text[0] == ":" and text[1:].isascii() and (text[1:].isdigit() or not text[1:]))


def _is_loopback(text: str) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def _values(headers: list[Header], wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name.lower() == wanted]
