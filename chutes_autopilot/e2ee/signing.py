"""Signatures over a text that anyone can check: EIP-191 with the address recovered (ecdsa), or plain Ed25519.

``cryptography`` has neither the recovery bit nor the recovery of a key. Both need one sum of two points, u1*G + u2*P,
of which every part is public. The multiplications are left to the library: its ECDH gives the x of k*P, a second one
with k + 1 tells which of the two y belongs to it, and only the sum itself is done here. No private key ever becomes a
Python integer.
"""

import re
from binascii import unhexlify

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from chutes_autopilot.e2ee.curves import SECP256K1, SECP256K1_ORDER, Algo, normal_form, signing_address
from chutes_autopilot.e2ee.keccak import keccak256

_Point = tuple[int, int]

_N = SECP256K1_ORDER
_P = 2**256 - 2**32 - 977
_RFC6979 = ec.ECDSA(Prehashed(SHA256()), deterministic_signing=True)
_ECDSA_SIGNATURE = re.compile(r"0x[0-9a-fA-F]{130}")
_ED25519_SIGNATURE = re.compile(r"[0-9a-fA-F]{128}")


def sign_ecdsa_eip191(key: ec.EllipticCurvePrivateKey, text: str) -> str:
    """Sign as Ethereum wallets sign messages (EIP-191, version 0x45), the same signature each time (RFC 6979).

    :returns: ``0x``, r, s and v in lower-case hex, with s in the lower half and v 27 or 28.
    """
    digest = _eip191_digest(text)
    r, s = decode_dss_signature(key.sign(digest, _RFC6979))
    s = min(s, _N - s)
    own = key.public_key().public_numbers()
    inverse = pow(s, -1, _N)
    x, y = _sum(
        _base_multiple(int.from_bytes(digest, "big") * inverse % _N), _multiple(r * inverse % _N, (own.x, own.y))
    )
    if x != r:  # also where x is not below n, which nobody will ever see
        raise ArithmeticError("the signature does not lead back to its point")
    return f"0x{r:064x}{s:064x}{27 + (y & 1):02x}"


def sign_ed25519(key: Ed25519PrivateKey, text: str) -> str:
    """Sign the text's UTF-8 (RFC 8032); 128 hex characters."""
    return key.sign(text.encode()).hex()


def verify(algo: Algo, address_or_key: str | bytes, text: str, signature: str) -> bool:
    """Whether the holder of a key signed this text; False for whatever is malformed too.

    :param address_or_key: a signing address, or a public key in hex or as bytes; any case.
    :param signature: as sign_ecdsa_eip191 or sign_ed25519 writes it. Upper-half s is refused: it would be a second
        signature of the same text.
    """
    try:
        if algo == "ed25519":
            key = address_or_key if isinstance(address_or_key, bytes) else unhexlify(address_or_key)
            if not _ED25519_SIGNATURE.fullmatch(signature):
                return False
            Ed25519PublicKey.from_public_bytes(key).verify(unhexlify(signature), text.encode())
            return True
        if isinstance(address_or_key, bytes) or not address_or_key.startswith(("0x", "0X")):
            raw = address_or_key if isinstance(address_or_key, bytes) else unhexlify(address_or_key)
            address_or_key = signing_address(algo, normal_form(algo, raw))
        return recover_address(text, signature).lower() == address_or_key.lower()
    except (ValueError, InvalidSignature):
        return False


def recover_address(text: str, signature: str) -> str:
    """Whose EIP-191 signature this is: an address in EIP-55 form.

    Any well-formed signature gives some address: it proves nothing until it is compared with the expected one.

    :raises ValueError: malformed, out of range, or with s in the upper half.
    """
    if not _ECDSA_SIGNATURE.fullmatch(signature):
        raise ValueError("not 0x and 130 hexadecimal digits")
    r, s, v = int(signature[2:66], 16), int(signature[66:130], 16), int(signature[130:], 16)
    if not (0 < r < _N and 0 < s <= _N // 2 and v in (27, 28)):
        raise ValueError("r, s or v is out of range")
    digest = int.from_bytes(_eip191_digest(text), "big")
    inverse = pow(r, -1, _N)
    x, y = _sum(_base_multiple(-digest * inverse % _N), _multiple(s * inverse % _N, _lifted(r, v - 27)))
    return signing_address("ecdsa", b"\x04" + x.to_bytes(32, "big") + y.to_bytes(32, "big"))


def _eip191_digest(text: str) -> bytes:
    data = text.encode()
    return keccak256(b"\x19Ethereum Signed Message:\n%d%b" % (len(data), data))


def _base_multiple(k: int) -> _Point:
    numbers = ec.derive_private_key(k, SECP256K1).public_key().public_numbers()
    return numbers.x, numbers.y


def _multiple(k: int, point: _Point) -> _Point:
    """k*P from the x of k*P and of (k+1)*P."""
    x = _multiple_x(k, point)
    one, other = _lifted(x, 0), _lifted(x, 1)
    return one if _sum(one, point)[0] == _multiple_x(k + 1, point) else other


def _multiple_x(k: int, point: _Point) -> int:
    public = ec.EllipticCurvePublicNumbers(*point, SECP256K1).public_key()
    return int.from_bytes(ec.derive_private_key(k, SECP256K1).exchange(ec.ECDH(), public), "big")


def _lifted(x: int, odd: int) -> _Point:
    """The point with this x whose y is odd or even (SEC 1, section 2.3.4)."""
    square = (pow(x, 3, _P) + 7) % _P
    y = pow(square, (_P + 1) // 4, _P)
    if y * y % _P != square:
        raise ValueError("no point has this x")
    return x, y if y & 1 == odd else _P - y


def _sum(a: _Point, b: _Point) -> _Point:
    """Of points with different x; ValueError for equal ones (SEC 1, section 2.2.1, rule 4)."""
    slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, _P) % _P
    x = (slope * slope - a[0] - b[0]) % _P
    return x, (slope * (a[0] - x) - a[1]) % _P
