"""One text sealed to a public key: ``hex(ephemeral public key || nonce || AES-256-GCM ciphertext and tag)``.

Both directions and both versions are the same but for the associated data: empty in version 1, in version 2 what
request_aad and response_aad give. The AES key is HKDF-SHA256 of an ECDH secret. Whatever goes wrong is one error with
one text and no cause: the cause of a failed decryption is an oracle, and Unicode errors carry the text.
"""

import os
from binascii import unhexlify
from contextlib import suppress

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from chutes_autopilot.e2ee.curves import (
    SECP256K1,
    Algo,
    InvalidKey,
    ecdsa_point,
    ecdsa_private,
    x25519_from_ed25519_public,
    x25519_from_ed25519_seed,
)

_PrivateKey = ec.EllipticCurvePrivateKey | X25519PrivateKey

_NONCE_BYTES = 12
_TAG_BYTES = 16
_ECDH = ec.ECDH()
_SHA256 = SHA256()


class FieldNotOpened(ValueError):
    """A field that does not open, whatever the reason."""

    def __init__(self) -> None:
        super().__init__("the field does not open")


class FieldNotSealed(ValueError):
    """A text that is not Unicode (lone surrogates) and so has no ciphertext."""

    def __init__(self) -> None:
        super().__init__("the text has no UTF-8 form")


class ServerOpener:
    """Opens what was sealed to one private key, for as long as that key is in use; may be used by several threads.

    The key objects are made once: making them costs more than an exchange.

    :param private: 32 bytes: the scalar (ecdsa) or the Ed25519 seed (ed25519).
    :raises InvalidKey: not a private key of this algo.
    """

    __slots__ = ("_algo", "_ephemeral_bytes", "_private")

    def __init__(self, algo: Algo, private: bytes) -> None:
        self._algo = algo
        self._ephemeral_bytes = 65 if algo == "ecdsa" else 32
        self._private: _PrivateKey = (
            ecdsa_private(private)
            if algo == "ecdsa"
            else X25519PrivateKey.from_private_bytes(x25519_from_ed25519_seed(private))
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._algo}>"

    def open(self, field_hex: str, aad: bytes) -> str:
        """The text of a field.

        :param field_hex: in either case.
        :param aad: empty in version 1.
        :raises FieldNotOpened: for every failure, without a cause.
        """
        with suppress(ValueError, InvalidTag):  # ValueError: hex, point, low-order secret, UTF-8
            blob = unhexlify(field_hex)  # refuses white space, which bytes.fromhex takes
            start = self._ephemeral_bytes + _NONCE_BYTES
            if len(blob) >= start + _TAG_BYTES:
                cipher = self._cipher(blob[: self._ephemeral_bytes])
                return cipher.decrypt(blob[self._ephemeral_bytes : start], blob[start:], aad).decode()
        raise FieldNotOpened

    def _cipher(self, ephemeral: bytes) -> AESGCM:
        return _cipher(self._algo, _exchange(self._private, ephemeral))


class FieldOpener(ServerOpener):
    """Opens an answer on the client's side, where all fields have one ephemeral key: one exchange for all of them."""

    __slots__ = ("_last",)

    def __init__(self, algo: Algo, private: bytes) -> None:
        super().__init__(algo, private)
        self._last: tuple[bytes, AESGCM] | None = None

    def _cipher(self, ephemeral: bytes) -> AESGCM:
        last = self._last
        if last is None or last[0] != ephemeral:
            self._last = last = (ephemeral, super()._cipher(ephemeral))
        return last[1]


class FieldSealer:
    """Seals texts to a public key with one ephemeral key and one derived key.

    The service makes one per answer (a fresh GCM nonce per field keeps that safe far beyond any answer's length), a
    client one per field of its request. Making one is the trial exchange that proves the peer's key usable.

    :param public: the peer's key in normal form (curves.normal_form).
    :param ephemeral_private: 32 bytes: a secp256k1 scalar, or an X25519 (not Ed25519) private key; random if None.
    :raises InvalidKey: nothing can be sealed to this key.
    """

    __slots__ = ("_algo", "_cipher", "_ephemeral_hex")

    def __init__(self, algo: Algo, public: bytes, *, ephemeral_private: bytes | None = None) -> None:
        self._algo = algo
        peer = public if algo == "ecdsa" else x25519_from_ed25519_public(public)
        private, ephemeral = _ephemeral(algo, ephemeral_private)
        secret = None
        with suppress(ValueError):
            secret = _exchange(private, peer)
        if secret is None:
            raise InvalidKey
        self._ephemeral_hex = ephemeral.hex()
        self._cipher = _cipher(algo, secret)

    def __repr__(self) -> str:
        return f"<FieldSealer {self._algo}>"

    def seal(self, text: str, aad: bytes, *, nonce: bytes | None = None) -> str:
        """The field of a text, in lower-case hex.

        :param aad: empty in version 1.
        :param nonce: 12 bytes, random if None; never give the same one twice.
        :raises FieldNotSealed: the text has lone surrogates.
        """
        data = None
        with suppress(UnicodeEncodeError):
            data = text.encode()
        if data is None:
            raise FieldNotSealed
        if nonce is None:
            nonce = os.urandom(_NONCE_BYTES)
        return self._ephemeral_hex + (nonce + self._cipher.encrypt(nonce, data, aad)).hex()


def request_aad(algo: Algo, model: str, m: int, c: int | None, nonce: str, ts: int) -> bytes:
    """What ties a version 2 field of a request to its place.

    :param model: as in the request's body, before routing.
    :param m: position in ``messages``.
    :param c: position in a list ``content``; None where the content is a string.
    :param ts: X-E2EE-Timestamp, Unix seconds.
    """
    part = "-" if c is None else c
    return _aad(f"v2|req|algo={algo}|model={model}|m={m}|c={part}|n={nonce}|ts={ts}")


def response_aad(algo: Algo, model: str, id: str, choice: int, field: str, nonce: str, ts: int) -> bytes:
    """What ties a version 2 field of an answer to its place.

    :param model: as the answer states it, not the request.
    :param id: as the answer states it.
    :param choice: the position in ``choices``; in a stream the choice's ``index`` if that is an integer.
    :param field: ``content``, ``reasoning_content`` or ``reasoning``.
    :param nonce: the request's.
    :param ts: the request's.
    """
    return _aad(f"v2|resp|algo={algo}|model={model}|id={id}|choice={choice}|field={field}|n={nonce}|ts={ts}")


def _aad(text: str) -> bytes:
    # a model name with lone surrogates must fail as a field that does not open, not as an error of its own
    return text.encode("utf-8", "surrogatepass")


def _ephemeral(algo: Algo, pinned: bytes | None) -> tuple[_PrivateKey, bytes]:
    if algo == "ecdsa":
        scalar = ec.generate_private_key(SECP256K1) if pinned is None else ecdsa_private(pinned)
        return scalar, ecdsa_point(scalar.public_key())
    private = X25519PrivateKey.generate() if pinned is None else X25519PrivateKey.from_private_bytes(pinned)
    return private, private.public_key().public_bytes_raw()


def _exchange(private: _PrivateKey, public: bytes) -> bytes:
    """The ECDH secret; ValueError for a public key that is none, or of low order."""
    if isinstance(private, X25519PrivateKey):
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    if len(public) != 65 or public[0] != 4:  # the loader would take compressed points too
        raise InvalidKey
    return private.exchange(_ECDH, ec.EllipticCurvePublicKey.from_encoded_point(SECP256K1, public))


def _cipher(algo: Algo, secret: bytes) -> AESGCM:
    info = b"ecdsa_encryption" if algo == "ecdsa" else b"ed25519_encryption"
    return AESGCM(HKDF(_SHA256, 32, None, info).derive(secret))
