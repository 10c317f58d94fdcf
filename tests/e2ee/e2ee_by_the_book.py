"""Test data that owes nothing to the code under test: the field encryption once more, from the RFCs' formulas.

Slow and not constant in time; AES-GCM alone is the library's. ``fields`` makes as many sealed fields as are wanted.
"""

import hmac
from collections.abc import Iterator
from hashlib import sha256, sha512
from random import Random

from attrs import frozen
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

P = 2**256 - 2**32 - 977
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
G = (
    0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
    0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
)
P25519 = 2**255 - 19
TEXTS = ("", "plain", "Grüße 世界 \u2028\x85\x00", "[1, 2, 3]", '[{"type":"text","text":"x"}]', "long " * 3000)


@frozen
class Field:
    """A sealed text and all that is needed to open it, or to seal it again to the same bytes."""

    algo: str
    private: bytes
    public: bytes
    text: str
    aad: bytes
    ephemeral_private: bytes
    nonce: bytes
    sealed: str


def fields(seed: int, count: int) -> Iterator[Field]:
    """Fields of both algos in turn, the same for the same seed."""
    random = Random(seed)
    for i in range(count):
        algo = ("ecdsa", "ed25519")[i % 2]
        private, ephemeral, nonce = random.randbytes(32), random.randbytes(32), random.randbytes(12)
        text, aad = random.choice(TEXTS), random.choice([b"", random.randbytes(90)])
        public = ecdsa_public(private) if algo == "ecdsa" else ed25519_public(private)
        sealed = seal(algo, public, text, aad, ephemeral, nonce)
        yield Field(algo, private, public, text, aad, ephemeral, nonce, sealed)


def seal(algo: str, public: bytes, text: str, aad: bytes, ephemeral: bytes, nonce: bytes) -> str:
    if algo == "ecdsa":
        sent = ecdsa_public(ephemeral)
        point = int.from_bytes(public[1:33], "big"), int.from_bytes(public[33:], "big")
        secret = multiple(int.from_bytes(ephemeral, "big"), point)[0].to_bytes(32, "big")
    else:
        sent = x25519(ephemeral, (9).to_bytes(32, "little"))
        y = int.from_bytes(public, "little") % 2**255
        secret = x25519(ephemeral, ((1 + y) * pow(1 - y, -1, P25519) % P25519).to_bytes(32, "little"))
    pseudorandom = hmac.digest(bytes(32), secret, sha256)
    key = hmac.digest(pseudorandom, f"{algo}_encryption\x01".encode(), sha256)
    return (sent + nonce + AESGCM(key).encrypt(nonce, text.encode(), aad)).hex()


def ecdsa_public(private: bytes) -> bytes:
    x, y = multiple(int.from_bytes(private, "big"), G)
    return b"\x04" + x.to_bytes(32, "big") + y.to_bytes(32, "big")


def multiple(k: int, point: tuple[int, int]) -> tuple[int, int]:
    total = None
    for bit in bin(k)[2:]:
        if total is not None:
            total = added(total, total)
        if bit == "1":
            total = point if total is None else added(total, point)
    assert total is not None
    return total


def added(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """Neither negatives of each other nor infinity: random scalars do not meet them."""
    slope = 3 * a[0] * a[0] * pow(2 * a[1], -1, P) if a == b else (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def x25519(private: bytes, u: bytes) -> bytes:
    """RFC 7748, section 5."""
    k = int.from_bytes(clamped(private), "little")
    x1 = int.from_bytes(u, "little") % 2**255
    x2, z2, x3, z3 = 1, 0, x1, 1
    for bit in range(254, -1, -1):
        swap = k >> bit & 1
        if swap:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb, aa, bb = d * a, c * b, a * a, b * b
        x3, z3 = (da + cb) ** 2 % P25519, x1 * (da - cb) ** 2 % P25519
        x2, z2 = aa * bb % P25519, (aa - bb) * (aa + 121665 * (aa - bb)) % P25519
        if swap:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return (x2 * pow(z2, -1, P25519) % P25519).to_bytes(32, "little")


def ed25519_public(seed: bytes) -> bytes:
    """RFC 8032, section 5.1.5, with its affine addition (section 5.1.4 has the fast one)."""
    d = -121665 * pow(121666, -1, P25519)
    base_y = 4 * pow(5, -1, P25519) % P25519
    square = (base_y * base_y - 1) * pow(d * base_y * base_y + 1, -1, P25519)
    base_x = pow(square, (P25519 + 3) // 8, P25519)
    if (base_x * base_x - square) % P25519:
        base_x = base_x * pow(2, (P25519 - 1) // 4, P25519) % P25519
    base, total = (min(base_x, P25519 - base_x, key=lambda x: x & 1), base_y), (0, 1)
    for bit in bin(int.from_bytes(clamped(sha512(seed).digest()[:32]), "little"))[2:]:
        for other in (total, base) if bit == "1" else (total,):
            (x1, y1), (x2, y2) = total, other
            t = d * x1 * x2 * y1 * y2
            total = (
                (x1 * y2 + x2 * y1) * pow(1 + t, -1, P25519) % P25519,
                (y1 * y2 + x1 * x2) * pow(1 - t, -1, P25519) % P25519,
            )
    return (total[1] | (total[0] & 1) << 255).to_bytes(32, "little")


def clamped(private: bytes) -> bytes:
    return bytes([private[0] & 248, *private[1:31], private[31] & 127 | 64])
