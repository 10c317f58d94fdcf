"""By which address a client without a credential is known when there may be proxies in front; it admits nobody."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

TrustedProxies = tuple[IPv4Network | IPv6Network, ...]
"""The networks whose X-Forwarded-For is believed."""

_MAPPED = IPv6Network("::ffff:0:0/96")


def parse_cidrs(text: str) -> TrustedProxies:
    """Read TRUSTED_PROXY_CIDRS: networks or single addresses between commas or white space.

    :raises ValueError: names the faulty part.
    """
    return tuple(_network(part) for part in text.replace(",", " ").split())


def client_address(peer: str, forwarded_for: Sequence[bytes], trusted: TrustedProxies | None) -> str:
    """The client's address without port and zone, an IPv4-mapped IPv6 address as IPv4.

    :param peer: the connection's other end; what is no IP address (a unix socket) is returned as it is, never trusted.
    :param forwarded_for: the values of all X-Forwarded-For headers in order; only the left-most address is looked at,
        and the peer is taken where that is none (blank, ``unknown``, garbage).
    :param trusted: None where no proxy is trusted.
    """
    address = _parse(peer)
    if address is None:
        return peer
    if forwarded_for and is_trusted(peer, trusted):
        leftmost = forwarded_for[0].partition(b",")[0].decode("latin-1")
        return str(_parse(_without_port(leftmost.strip(" \t"))) or address)
    return str(address)


def is_trusted(peer: str, trusted: TrustedProxies | None) -> bool:
    """Whether the connection's other end is a proxy that is believed; what is no IP address never is."""
    address = _parse(peer) if trusted else None
    return address is not None and any(address in network for network in trusted or ())


def _network(part: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(part)
    except ValueError as error:
        raise ValueError(f"{part!r} is no network in CIDR notation such as 10.0.0.0/8 or fd00::/8: {error}") from error
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        # peers of this form are compared as IPv4, so it would never match
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def _without_port(text: str) -> str:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        well_formed = bool(bracket) and ":" in host and (not port or (port[0] == ":" and _is_port(port[1:])))
        return host if well_formed else ""
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host if _is_port(port) else ""
    return text


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535
