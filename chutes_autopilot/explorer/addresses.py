"""Where a webhook may be sent: to the public Internet and nowhere else, however an address is written.

A URL of others must never become a request to this machine, its network, or its cloud's own services. Two rules:

- An address is written in one way: IPv4 as four decimal numbers, IPv6 in brackets without a zone. The many other
  ways that resolvers understand (``2130706433``, ``0x7f.1``, ``0177.0.0.1``, ``127.1``, a dot at the end) are refused.
- Whatever a name resolves to is judged as an address, immediately before it is connected to.
"""

import re
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network

IPAddress = IPv4Address | IPv6Address

_IPV4 = tuple(
    (IPv4Network(network), what)
    for network, what in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared among a carrier's customers"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "for documentation"),
        ("192.31.196.0/24", "reserved"),
        ("192.52.193.0/24", "reserved"),
        ("192.88.99.0/24", "a 6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "reserved"),
        ("198.18.0.0/15", "for benchmarks"),
        ("198.51.100.0/24", "for documentation"),
        ("203.0.113.0/24", "for documentation"),
        ("168.63.129.16/32", "a cloud's own service"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
"""RFC 6890 and its registry; and Azure's agent, the one metadata service at an address that looks public."""

_IPV6 = tuple(
    (IPv6Network(network), what)
    for network, what in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::ffff:0:0/96", "IPv4 inside IPv6"),
        ("::ffff:0:0:0/96", "IPv4 inside IPv6"),
        ("::/96", "IPv4 inside IPv6"),
        ("64:ff9b::/96", "IPv4 inside IPv6 (NAT64)"),
        ("64:ff9b:1::/48", "IPv4 inside IPv6 (NAT64)"),
        ("2001::/32", "IPv4 inside IPv6 (Teredo)"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "for documentation"),
        ("2002::/16", "IPv4 inside IPv6 (6to4)"),
        ("2620:4f:8000::/48", "reserved"),
        ("3fff::/20", "for documentation"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "private"),
        ("ff00::/8", "multicast"),
    )
)
_GLOBAL_IPV6 = IPv6Network("2000::/3")
"""All that is given out to networks so far (RFC 4291); the rest of IPv6 is refused even where nothing is known of it.

What cannot be known: a network's own prefix for NAT64 (RFC 6052) looks like any other address.
"""

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A last label like this makes a host an IPv4 address, well written or not (WHATWG URL, "ends in a number")."""


def refusal(address: IPAddress) -> str | None:
    """What an address is that may not be connected to; None for one that may be."""
    if isinstance(address, IPv4Address):
        return next((what for network, what in _IPV4 if address in network), None)
    if address.scope_id is not None:
        return "of one link only"
    what = next((what for network, what in _IPV6 if address in network), None)
    return what if what or address in _GLOBAL_IPV6 else "reserved"


def read_host(text: str) -> IPAddress | str:
    """The host of a URL, an IPv6 address in brackets: an address, or a name in lower case.

    :raises ValueError: it is neither, or an address written in another than the usual way.
    """
    host = text.lower()
    if host.startswith("[") and host.endswith("]"):
        return _ipv6(host[1:-1])
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        try:
            return IPv4Address(host)
        except AddressValueError:
            raise ValueError("must write an IPv4 address as four decimal numbers") from None
    if host.endswith("."):
        raise ValueError("must have a host without a dot at its end")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, host.split("."))):
        raise ValueError("must have a valid host")
    return host


def _ipv6(text: str) -> IPv6Address:
    try:
        address = IPv6Address(text)
    except AddressValueError:
        raise ValueError("must have a valid IPv6 address in its brackets") from None
    if address.scope_id is not None:
        raise ValueError("must have an IPv6 address without a zone")
    return address
