"""Which public keys we accept, and the forms they are written in: secp256k1 (``ecdsa``) and Ed25519 used as X25519.

Hex is the caller's business on the way in: the functions here take bytes.
"""

from hashlib import sha512
from typing import Literal

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from chutes_autopilot.e2ee.keccak import keccak256

Algo = Literal["ecdsa", "ed25519"]
"""The values of X-Signing-Algo."""

SECP256K1 = ec.SECP256K1()
SECP256K1_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141

_P25519 = 2**255 - 19
_TRIAL_KEY = X25519PrivateKey.from_private_bytes(bytes(32))  # any scalar shows a low-order point: clamping gives it 8


class InvalidKey(ValueError):
    """A key that is not one of its curve; the text is constant, so that no part of a key can get into it."""

    def __init__(self) -> None:
        super().__init__("not a valid key")


def x25519_from_ed25519_public(key: bytes) -> bytes:
    """Make a key for signatures fit for an exchange: the u of its y (RFC 7748, section 4.1).

    :param key: 32 bytes; the sign bit is dropped.
    :returns: 32 bytes. Low-order points pass: only an exchange shows them.
    :raises InvalidKey: another length, or y not below p.
    """
    y = int.from_bytes(key, "little") & (2**255 - 1)
    if len(key) != 32 or y >= _P25519:
        raise InvalidKey
    # pow(..., -1, p) is several times faster than pow(..., p - 2, p), but knows no inverse of zero
    u = (1 + y) * pow(1 - y, -1, _P25519) % _P25519 if y != 1 else 0
    return u.to_bytes(32, "little")


def x25519_from_ed25519_seed(seed: bytes) -> bytes:
    """The private side of x25519_from_ed25519_public (RFC 8032, section 5.1.5, steps 1 and 2).

    :raises InvalidKey: not 32 bytes.
    """
    if len(seed) != 32:
        raise InvalidKey
    scalar = bytearray(sha512(seed).digest()[:32])
    scalar[0] &= 248
    scalar[31] &= 127
    scalar[31] |= 64
    return bytes(scalar)


def ecdsa_private(scalar: bytes) -> ec.EllipticCurvePrivateKey:
    """The key object of a secp256k1 scalar; make it once, it is what an exchange spends most of its time on.

    :raises InvalidKey: not 32 bytes, or not in 1..n-1.
    """
    number = int.from_bytes(scalar, "big")
    if len(scalar) != 32 or not 0 < number < SECP256K1_ORDER:
        raise InvalidKey
    return ec.derive_private_key(number, SECP256K1)


def ecdsa_point(key: ec.EllipticCurvePublicKey) -> bytes:
    """The normal form of a key object: 65 bytes, ``04``, X, Y."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def public_key(algo: Algo, private: bytes) -> bytes:
    """The public key, in normal form, of a private one.

    :param private: 32 bytes: the scalar (ecdsa) or the seed (ed25519).
    :raises InvalidKey: another length, or a scalar out of range.
    """
    if algo == "ecdsa":
        return ecdsa_point(ecdsa_private(private).public_key())
    if len(private) != 32:
        raise InvalidKey
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def normal_form(algo: Algo, raw: bytes) -> bytes:
    """Accept a foreign public key in full, or not at all, before anything is sealed to it.

    :param raw: ecdsa: 64 bytes X, Y, or 65 with a leading ``04``; ed25519: 32 bytes.
    :returns: 65 bytes (``04``, X, Y), or the 32 bytes as they came.
    :raises InvalidKey: another length or encoding (compressed points too), a point off the curve, y not below p, or a
        low-order point.
    """
    if algo == "ecdsa":
        point = b"\x04" + raw if len(raw) == 64 else raw
        valid = _is_ecdsa_point(point)
    else:
        point = raw
        valid = _exchanges(x25519_from_ed25519_public(raw))
    if not valid:
        raise InvalidKey
    return point


def _is_ecdsa_point(point: bytes) -> bool:
    """Whether these are 65 bytes, ``04``, X, Y, of a point on secp256k1."""
    if len(point) != 65 or point[0] != 4:  # the loader would take compressed points too
        return False
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(SECP256K1, point)
    except ValueError:
        return False
    return True


def _exchanges(x25519_key: bytes) -> bool:
    try:
        _TRIAL_KEY.exchange(X25519PublicKey.from_public_bytes(x25519_key))
    except ValueError:  # the all-zero secret of a low-order point (RFC 7748, section 6.1)
        return False
    return True


def wire_hex(algo: Algo, normal: bytes) -> str:
    """A public key as reports and headers write it: 128 hex characters without the ``04``, or 64; lower case."""
    return normal[1:].hex() if algo == "ecdsa" else normal.hex()


def address_bytes(algo: Algo, normal: bytes) -> bytes:
    """What a quote binds of a public key: the 20 bytes of its Ethereum address, or all 32 of the key."""
    return keccak256(normal[1:])[12:] if algo == "ecdsa" else normal


def signing_address(algo: Algo, normal: bytes) -> str:
    """Who signed, as reports and signatures name it: the EIP-55 address, or the key in hex."""
    address = address_bytes(algo, normal).hex()
    if algo == "ed25519":
        return address
    checksum = keccak256(address.encode()).hex()
    return "0x" + "".join(c.upper() if int(n, 16) >= 8 else c for c, n in zip(address, checksum, strict=False))
