from random import Random
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from e2ee_by_the_book import P25519, N, P, ecdsa_public, ed25519_public

from chutes_autopilot.e2ee.curves import (
    Algo,
    InvalidKey,
    address_bytes,
    ecdsa_private,
    normal_form,
    public_key,
    signing_address,
    wire_hex,
    x25519_from_ed25519_public,
    x25519_from_ed25519_seed,
)

ALGOS: list[Algo] = ["ecdsa", "ed25519"]
POINT = ecdsa_public(bytes(31) + b"\x07")


def little(y: int) -> bytes:
    return y.to_bytes(32, "little")


BAD_ECDSA = {
    "empty": b"",
    "compressed": bytes([2 + POINT[64] % 2]) + POINT[1:33],
    "hybrid": bytes([6 + POINT[64] % 2]) + POINT[1:],
    "65 bytes, wrong first byte": b"\x05" + POINT[1:],
    "63 bytes": POINT[2:],
    "66 bytes": POINT + b"\x00",
    "off the curve": POINT[:64] + bytes([POINT[64] ^ 1]),
    "zeros": bytes(64),
    "infinity": b"\x00",
    "x = p + 1": b"\x04" + (P + 1).to_bytes(32, "big") + POINT[33:],
    "y not below p": POINT[:33] + b"\xff" * 32,
}
ORDER_8 = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
BAD_ED25519 = {
    "empty": b"",
    "31 bytes": little(5)[:31],
    "33 bytes": little(5) + b"\x00",
    "y = 0": little(0),
    "y = 0, sign": little(2**255),
    "y = 1": little(1),
    "y = 1, sign": little(1 + 2**255),
    "y = p - 1": little(P25519 - 1),
    "y = p": little(P25519),
    "y = p + 1": little(P25519 + 1),
    "y = p + 5": little(P25519 + 5),
    "y = 2^255 - 1": little(2**255 - 1),
    "y = p, sign": little(P25519 + 2**255),
    "all ones": b"\xff" * 32,
    "order 8": little(ORDER_8),
    "order 8, other": little(P25519 - ORDER_8),
}


@pytest.mark.parametrize("raw", BAD_ECDSA.values(), ids=BAD_ECDSA)
def test_a_bad_ecdsa_key_is_refused(raw: bytes) -> None:
    """Other lengths, other encodings and points off the curve are refused with a text that tells nothing."""
    with pytest.raises(InvalidKey, match=r"^not a valid key$") as caught:
        normal_form("ecdsa", raw)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("raw", BAD_ED25519.values(), ids=BAD_ED25519)
def test_a_bad_ed25519_key_is_refused(raw: bytes) -> None:
    """Other lengths, y that are not below p and points of low order are refused with a text that tells nothing."""
    with pytest.raises(InvalidKey, match=r"^not a valid key$") as caught:
        normal_form("ed25519", raw)
    assert caught.value.__context__ is None


def test_good_keys_have_one_normal_and_one_wire_form(vectors: dict[str, Any]) -> None:
    """Both encodings of an ecdsa key become the same 65 bytes, an ed25519 key stays; the wire form leads back."""
    for side in ("server", "client"):
        for algo in ALGOS:
            known = vectors["fixed"][side][algo]
            normal = normal_form(algo, bytes.fromhex(known["public"]))
            assert normal == public_key(algo, bytes.fromhex(known["private"]))
            assert len(normal) == (65 if algo == "ecdsa" else 32)
            assert normal_form(algo, normal) == normal
            assert wire_hex(algo, normal) == known["public"]


def test_public_keys_are_those_of_the_formulas() -> None:
    """Random private keys give the public keys that the curves' plain formulas give."""
    random = Random(4)
    for private in [random.randbytes(32) for _ in range(5)]:
        assert public_key("ecdsa", private) == ecdsa_public(private)
        assert public_key("ed25519", private) == ed25519_public(private)
        assert normal_form("ed25519", ed25519_public(private)) == ed25519_public(private)


def test_the_sign_bit_does_not_change_the_exchange_key(vectors: dict[str, Any]) -> None:
    """Ed25519 public keys with either sign bit, and their seeds, give the known X25519 keys, which belong together."""
    pairs = vectors["key_conversion"]
    assert {pair["sign_bit"] for pair in pairs} == {0, 1}
    for pair in pairs:
        public, seed = bytes.fromhex(pair["ed25519_public"]), bytes.fromhex(pair["ed25519_seed"])
        other_sign = public[:31] + bytes([public[31] ^ 0x80])
        private = x25519_from_ed25519_seed(seed)
        assert public_key("ed25519", seed) == public
        assert private.hex() == pair["x25519_private"]
        assert x25519_from_ed25519_public(public).hex() == pair["x25519_public"]
        assert x25519_from_ed25519_public(other_sign).hex() == pair["x25519_public"]
        made = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
        assert made.hex() == pair["x25519_public"]


def test_the_point_without_a_u_becomes_zero() -> None:
    """y = 1 converts to u = 0, which an exchange then refuses, and not to an arithmetic error."""
    assert x25519_from_ed25519_public(little(1)) == bytes(32)


@pytest.mark.parametrize("private", [b"", bytes(31), bytes(33)], ids=len)
def test_a_private_key_of_another_length_is_refused(private: bytes) -> None:
    """Only 32 bytes are a private key of either algo."""
    for algo in ALGOS:
        with pytest.raises(InvalidKey):
            public_key(algo, private)
    with pytest.raises(InvalidKey):
        x25519_from_ed25519_seed(private)


@pytest.mark.parametrize("scalar", [0, N, N + 1, 2**256 - 1])
def test_a_scalar_out_of_range_is_refused(scalar: int) -> None:
    """secp256k1 scalars are 1 to n - 1, both of which are accepted."""
    with pytest.raises(InvalidKey) as caught:
        ecdsa_private(scalar.to_bytes(32, "big"))
    assert str(scalar) not in repr(caught.value)
    assert public_key("ecdsa", (N - 1).to_bytes(32, "big"))[1:33] == public_key("ecdsa", bytes(31) + b"\x01")[1:33]


def test_addresses_are_those_of_the_vectors(vectors: dict[str, Any]) -> None:
    """The EIP-55 address and the bytes a quote binds are the known ones."""
    known, nonce = vectors["signature"], vectors["signature"]["report_data_nonce"]
    for algo in ALGOS:
        normal = normal_form(algo, bytes.fromhex(vectors["fixed"]["server"][algo]["public"]))
        assert signing_address(algo, normal) == known[f"signing_address_{algo}"]
        assert address_bytes(algo, normal).ljust(32, b"\x00").hex() + nonce == known[f"report_data_{algo}"]


def test_the_first_private_key_has_its_well_known_address() -> None:
    """Scalar 1 gives the address that every Ethereum library prints for it."""
    normal = public_key("ecdsa", bytes(31) + b"\x01")
    assert signing_address("ecdsa", normal) == "0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf"
