"""Where webhooks may go: the public Internet only, in whatever way an address is written or wrapped."""

import ipaddress
import socket
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chutes_autopilot.explorer.addresses import read_host, refusal

V4 = st.integers(0, 2**32 - 1).map(IPv4Address)
V6 = st.integers(0, 2**128 - 1).map(IPv6Address)
GLOBAL_V6 = st.integers(0x2000 << 112, (0x4000 << 112) - 1).map(IPv6Address)
PRIVATE_V4 = st.one_of(
    *(
        st.integers(int(network[0]), int(network[-1])).map(IPv4Address)
        for network in map(ipaddress.ip_network, ("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16"))
    )
)


@pytest.mark.parametrize(
    ("what", "addresses"),
    [
        ("unspecified", "0.0.0.0 0.255.255.255 ::"),
        ("loopback", "127.0.0.1 127.255.255.254 ::1"),
        ("private", "10.0.0.0 172.16.0.1 172.31.255.255 192.168.1.1 fc00::1 fd00:ec2::254 fec0::1"),
        ("link-local", "169.254.169.254 fe80::1 febf::1"),
        ("shared among a carrier's customers", "100.64.0.1 100.100.100.200 100.127.255.255"),
        ("multicast", "224.0.0.1 239.255.255.255 ff02::1"),
        ("reserved", "192.0.0.192 240.0.0.1 255.255.255.255 192.31.196.1 2001:2::1 2001:20::1 4000::1 100::1 5f00::1"),
        ("for documentation", "192.0.2.1 198.51.100.1 203.0.113.1 2001:db8::1 3fff::1"),
        ("for benchmarks", "198.18.0.1 198.19.255.255"),
        ("a 6to4 relay", "192.88.99.1"),
        ("a cloud's own service", "168.63.129.16"),
        ("IPv4 inside IPv6", "::ffff:8.8.8.8 ::ffff:0:8.8.8.8 ::8.8.8.8"),
        ("IPv4 inside IPv6 (NAT64)", "64:ff9b::8.8.8.8 64:ff9b:1::1"),
        ("IPv4 inside IPv6 (Teredo)", "2001::1"),
        ("IPv4 inside IPv6 (6to4)", "2002:808:808::1"),
        ("of one link only", "fe80::1%eth0 2606:4700::1%1"),
        (None, "8.8.8.8 1.1.1.1 100.63.255.255 100.128.0.0 172.15.0.1 172.32.0.1 168.63.129.17 223.255.255.255"),
        (None, "2606:4700::1111 2a00:1450:4001:80b::200e 2001:4860:4860::8888 2003::1 3ffe::1"),
    ],
)
def test_each_range_is_known_by_what_it_is(what: str | None, addresses: str) -> None:
    """Its first and last members and those that attackers ask for."""
    assert {text: refusal(ipaddress.ip_address(text)) for text in addresses.split()} == dict.fromkeys(
        addresses.split(), what
    )


@given(V4 | V6 | GLOBAL_V6)
@example(IPv4Address("192.88.99.1"))
def test_nothing_passes_that_python_takes_for_not_global(address: IPv4Address | IPv6Address) -> None:
    """A second opinion, of other authors."""
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert refusal(address) is not None


@given(PRIVATE_V4, st.integers(0, 2**80 - 1))
def test_no_private_address_passes_inside_another(inner: IPv4Address, rest: int) -> None:
    """IPv4-mapped, -compatible, -translated, NAT64, 6to4 and Teredo."""
    value = int(inner)
    prefixes = [0, 0xFFFF << 32, 0xFFFF << 48, 0x64FF9B << 96, 0x64FF9B0001 << 80]
    wrapped = [IPv6Address(prefix | value) for prefix in prefixes]
    wrapped.append(IPv6Address(0x2002 << 112 | value << 80 | rest))
    wrapped.append(IPv6Address(0x20010000 << 96 | rest >> 16 << 32 | value ^ 0xFFFFFFFF))
    assert all(refusal(address) for address in wrapped)


@st.composite
def spellings(draw: st.DrawFn) -> tuple[IPv4Address, str]:
    """An IPv4 address in any of the ways of inet_aton: one to four parts, each decimal, octal or hexadecimal."""
    address = draw(V4)
    count = draw(st.integers(1, 4))
    octets = list(address.packed)
    parts = [*octets[: count - 1], int.from_bytes(octets[count - 1 :], "big")]
    formats = st.sampled_from(["{}", "0{:o}", "0x{:x}", "0X{:X}", "00{:o}", "0x0{:x}"])
    return address, ".".join(draw(formats).format(part) for part in parts)


@given(spellings(), st.sampled_from(["", ".", ".."]))
@example((IPv4Address("127.0.0.1"), "2130706433"), "")
@example((IPv4Address("127.0.0.1"), "0x7f.1"), "")
@example((IPv4Address("127.0.0.1"), "0177.0.0.1"), "")
@example((IPv4Address("127.0.0.1"), "127.1"), ".")
def test_an_ipv4_address_is_written_in_one_way(spelt: tuple[IPv4Address, str], dots: str) -> None:
    """All others are refused, although resolvers would understand them."""
    address, text = spelt
    assert socket.inet_aton(text) == address.packed
    if text == str(address) and not dots:
        assert read_host(text) == address
    else:
        with pytest.raises(ValueError, match="must write an IPv4 address as four decimal numbers"):
            read_host(text + dots)


@given(V6)
def test_an_ipv6_address_is_read_in_any_of_its_ways(address: IPv6Address) -> None:
    """It is in brackets, and means the same however it is shortened."""
    for text in (address.compressed, address.exploded, address.exploded.upper()):
        assert read_host(f"[{text}]") == address
    dotted = f"[::ffff:{IPv4Address(int(address) & 0xFFFFFFFF)}]"
    assert refusal(read_host(dotted)) == "IPv4 inside IPv6"  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["[]", "[::1", "::1", "[1.2.3.4]", "[fe80::1%1]", "[::1%25lo]", "[v1.x]", "[[::1]]"])
def test_other_brackets_are_refused(text: str) -> None:
    """Also those with a zone: it would be this machine's."""
    with pytest.raises(ValueError, match=r"^must have"):
        read_host(text)


@pytest.mark.parametrize("text", ["example.org", "xn--bcher-kva.example", "a_b.c-d.e", "1.2.3.example", "0x7f.example"])
def test_names_are_names(text: str) -> None:
    """In lower case; what they resolve to is another question."""
    assert read_host(text.upper()) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "a..b", ".a", "a.", "-a.b", "a-.b", "a b", "a%2eb", "a/b", "a@b", "a:b", "\u2460.example"),
        *("1.2.3.4.5", "256.1.1.1", "1.2.3.0x", "example.0x7f", "a.1", "\u0661.\u0662.\u0663.\u0664"),
        *("a" * 64, ".".join(["a" * 60] * 5)),
    ],
)
def test_other_hosts_are_refused(text: str) -> None:
    """What is neither a name nor an address, and what ends in a number and so would be taken for an address."""
    with pytest.raises(ValueError, match=r"^must "):
        read_host(text)
