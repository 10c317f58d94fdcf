"""Whose address counts when there may be proxies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.policy.client_address import client_address, parse_cidrs

TRUSTED = parse_cidrs("10.0.0.0/8, fd00::/8 192.0.2.7")


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ([b"203.0.113.9"], "203.0.113.9"),
        ([b" 203.0.113.9 , 10.0.0.2"], "203.0.113.9"),
        ([b"203.0.113.9", b"203.0.113.10"], "203.0.113.9"),
        ([b"203.0.113.9:567"], "203.0.113.9"),
        ([b"2001:DB8::0:1"], "2001:db8::1"),
        ([b"[2001:db8::1]"], "2001:db8::1"),
        ([b"[2001:db8::1]:567"], "2001:db8::1"),
        ([b"fe80::1%eth0"], "fe80::1"),
        ([b"[fe80::1%eth0]:567"], "fe80::1"),
        ([b"::ffff:203.0.113.9"], "203.0.113.9"),
        ([b"[::ffff:203.0.113.9]:567"], "203.0.113.9"),
        ([b"::1"], "::1"),
    ],
)
def test_the_left_most_address_of_a_trusted_proxy_counts(forwarded: list[bytes], address: str) -> None:
    """Ports, brackets and zones are taken off, and one address has one spelling."""
    assert client_address("10.1.2.3", forwarded, TRUSTED) == address


@pytest.mark.parametrize(
    "forwarded",
    [
        b"", b" ", b"unknown", b"_hidden", b", 203.0.113.9", b"203.0.113", b"203.0.113.9:", b"203.0.113.9:x",
        b"203.0.113.9:99999", b"203.0.113.9:\xb2", b"[203.0.113.9]:1", b"[::1", b"[::1]x", b"[::1]:", b"::1]",
        b"fe80::1%", b"203.0.113.9%eth0", b"\xff", b"1" * 5000, b"203.0.113.9:" + b"1" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_address_means_the_peer(forwarded: bytes) -> None:
    """Nothing further right is looked at: the left-most entry is the client or nobody is."""
    assert client_address("10.1.2.3", [forwarded, b"203.0.113.9"], TRUSTED) == "10.1.2.3"


@pytest.mark.parametrize(
    ("peer", "believed"),
    [
        ("10.255.0.1", True),
        ("192.0.2.7", True),
        ("::ffff:10.0.0.1", True),
        ("fd12::1%eth0", True),
        ("11.0.0.1", False),
        ("192.0.2.8", False),
        ("2001:db8::1", False),
    ],
)
def test_only_peers_inside_the_trusted_networks_are_believed(peer: str, believed: bool) -> None:
    """Membership is decided on the address without zone, an IPv4-mapped one as IPv4."""
    assert (client_address(peer, [b"203.0.113.9"], TRUSTED) == "203.0.113.9") is believed


@pytest.mark.parametrize("trusted", [None, ()])
def test_nobody_is_believed_where_no_proxy_is_trusted(trusted: tuple[()] | None) -> None:
    """Without trust the header is as if it were not there."""
    assert client_address("10.1.2.3", [b"203.0.113.9"], trusted) == "10.1.2.3"


def test_the_peer_has_one_spelling() -> None:
    """A dual-stack listener does not make a second client of an IPv4 one."""
    assert client_address("::ffff:192.0.2.1", [], None) == client_address("192.0.2.1", [], TRUSTED) == "192.0.2.1"


def test_a_peer_without_address_is_never_trusted() -> None:
    """A unix socket's path is returned as it is, even where every network is trusted."""
    everyone = parse_cidrs("0.0.0.0/0,::/0")
    assert client_address("/run/x.sock", [b"203.0.113.9"], everyone) == "/run/x.sock"
    assert client_address("", [b"203.0.113.9"], everyone) == ""


def test_networks_stand_between_commas_or_blanks() -> None:
    """Single addresses are networks of one; an IPv4-mapped network is the IPv4 network it means."""
    assert [str(n) for n in parse_cidrs(" 10.0.0.0/8,,fd00::/8\n192.0.2.7 ::ffff:172.16.0.0/108 ")] == [
        "10.0.0.0/8",
        "fd00::/8",
        "192.0.2.7/32",
        "172.16.0.0/12",
    ]
    assert parse_cidrs(" , ") == ()


@pytest.mark.parametrize("part", ["10.0.0.0/33", "10.0.0.1/8", "proxy.example", "10.0.0.0/8/8", "fd00::%eth0/8x"])
def test_a_faulty_network_is_named(part: str) -> None:
    """Host bits, impossible lengths and names are refused, and the message says which part it was."""
    with pytest.raises(ValueError, match=r"is no network in CIDR notation") as caught:
        parse_cidrs(f"192.0.2.0/24, {part}")
    assert repr(part) in str(caught.value)
    assert "192.0.2.0" not in str(caught.value)


@given(st.ip_addresses(), st.integers(0, 65535))
def test_any_address_is_read_in_any_form(address, port) -> None:  # type: ignore[no-untyped-def]
    """With and without port the same client is found."""
    shown = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    with_port = client_address("10.0.0.1", [shown.encode()], TRUSTED)
    assert with_port == client_address("10.0.0.1", [str(address).encode()], TRUSTED)
    assert with_port == client_address(str(address), [], None)


@given(st.one_of(st.binary(max_size=40), st.text("0123456789abf.:[]% ,", max_size=30).map(str.encode)))
def test_no_header_breaks_it(forwarded: bytes) -> None:
    """Whatever a client sends ends in one canonical address."""
    address = client_address("10.0.0.1", [forwarded], TRUSTED)
    assert client_address(address, [], None) == address
