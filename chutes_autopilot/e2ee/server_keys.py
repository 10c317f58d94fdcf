"""The service's own keys: what is known of each, which of them count at a time, and the file they come from.

Several keys of one algo are active while one replaces another; the first of an algo is the current one. Private parts
are in no attribute that prints, compares or turns into a dictionary usefully: key objects of ``cryptography`` only.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import get_args

from attrs import field, frozen
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chutes_autopilot.e2ee.curves import (
    SECP256K1,
    Algo,
    InvalidKey,
    address_bytes,
    ecdsa_private,
    public_key,
    signing_address,
    wire_hex,
)
from chutes_autopilot.e2ee.fields import ServerOpener
from chutes_autopilot.e2ee.signing import sign_ecdsa_eip191, sign_ed25519

ALGOS: tuple[Algo, ...] = get_args(Algo)

_HEX32 = re.compile(r"[0-9a-fA-F]{64}")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MEMBERS = ("id", "ecdsa", "ed25519", "not_after")


class KeyFileError(ValueError):
    """A key file that cannot be used; the text names entry and member, never a value."""


@frozen
class ServerKey:
    """One key of the service; made by keys_from_secrets.

    :param id: its entry's name, for logs and lookups; an ecdsa and an ed25519 key share it.
    :param public: in normal form: 65 bytes (``04``, X, Y) or 32.
    :param not_after: the last Unix second at which it counts; None: no end.
    """

    id: str
    algo: Algo
    public: bytes
    not_after: int | None
    opener: ServerOpener = field(repr=False, eq=False)
    _signer: ec.EllipticCurvePrivateKey | Ed25519PrivateKey = field(repr=False, eq=False)
    address: str = field(init=False, repr=False, eq=False)
    """Signing address: EIP-55, or the key in hex."""

    @address.default
    def _address(self) -> str:
        return signing_address(self.algo, self.public)

    @property
    def wire_hex(self) -> str:
        """The public key as reports and X-Model-Pub-Key write it: 128 or 64 hex characters, lower case."""
        return wire_hex(self.algo, self.public)

    @property
    def address_bytes(self) -> bytes:
        """What a quote binds: 20 or 32 bytes."""
        return address_bytes(self.algo, self.public)

    def active(self, now: float) -> bool:
        """Whether it still counts at this Unix time."""
        return self.not_after is None or now <= self.not_after

    def sign(self, text: str) -> str:
        """The signature that /v1/signature and receipts give: EIP-191 (``0x``, 130 hex), or Ed25519 (128 hex)."""
        if isinstance(self._signer, Ed25519PrivateKey):
            return sign_ed25519(self._signer, text)
        return sign_ecdsa_eip191(self._signer, text)


@frozen
class ServerKeys:
    """All keys of the service at a time; replaced as a whole when they are read again.

    :param keys: of each algo at least one, the current one first; each key once.
    """

    keys: tuple[ServerKey, ...] = field()

    def __attrs_post_init__(self) -> None:
        if {key.algo for key in self.keys} != set(ALGOS) or len({key.public for key in self.keys}) != len(self.keys):
            raise ValueError("keys: each algo needs one, and none may be there twice")

    def find(self, algo: Algo, raw: bytes, now: float) -> ServerKey | None:
        """The active key a client named.

        :param raw: what X-Model-Pub-Key decodes to, of any length; ecdsa with or without the leading ``04``.
        """
        public = b"\x04" + raw if algo == "ecdsa" and len(raw) == 64 else raw
        return next((key for key in self.active(algo, now) if key.public == public), None)

    def current(self, algo: Algo) -> ServerKey:
        """The key that reports name first and plain answers are signed with."""
        return next(key for key in self.keys if key.algo == algo)

    def active(self, algo: Algo, now: float) -> tuple[ServerKey, ...]:
        """All keys of an algo that count at this Unix time, the current one first."""
        return tuple(key for key in self.keys if key.algo == algo and key.active(now))

    def by_address(self, algo: Algo, address: str, now: float) -> ServerKey | None:
        """The active key with this signing address, in any case."""
        return next((key for key in self.active(algo, now) if key.address.lower() == address.lower()), None)

    def by_id(self, algo: Algo, id: str, now: float) -> ServerKey | None:
        """The active key of this name: what a signature is made with long after the request was sealed to it."""
        return next((key for key in self.active(algo, now) if key.id == id), None)

    def identity(self) -> tuple[str, ...]:
        """The names of the keys, the current one first: all that a log may say of them."""
        return tuple(dict.fromkeys(key.id for key in self.keys))


def keys_from_secrets(
    id: str, ecdsa: bytes, ed25519_seed: bytes, not_after: int | None = None
) -> tuple[ServerKey, ServerKey]:
    """The two keys of one generation; join those of several for a ServerKeys, the current one first.

    :param ecdsa: the scalar, 32 bytes, 1..n-1.
    :param ed25519_seed: 32 bytes.
    :raises InvalidKey: one of them is no private key.
    """
    return _key(id, "ecdsa", ecdsa, not_after), _key(id, "ed25519", ed25519_seed, not_after)


def _key(id: str, algo: Algo, secret: bytes, not_after: int | None) -> ServerKey:
    public = public_key(algo, secret)
    signer = ecdsa_private(secret) if algo == "ecdsa" else Ed25519PrivateKey.from_private_bytes(secret)
    return ServerKey(id, algo, public, not_after, ServerOpener(algo, secret), signer)


def secrets_of(keys: ServerKeys) -> Iterator[tuple[str, bytes, bytes, int | None]]:
    """What keys_from_secrets made the keys of, one generation after the other; for another process of this service."""
    for id in keys.identity():
        ecdsa, ed25519 = (next(key for key in keys.keys if key.id == id and key.algo == algo) for algo in ALGOS)
        yield id, _secret(ecdsa), _secret(ed25519), ecdsa.not_after


def _secret(key: ServerKey) -> bytes:
    signer = key._signer
    if isinstance(signer, Ed25519PrivateKey):
        return signer.private_bytes_raw()
    return signer.private_numbers().private_value.to_bytes(32, "big")


def ephemeral_keys() -> ServerKeys:
    """Keys that live as long as this process: for a first try, and for one replica only."""
    return ServerKeys(keys_from_secrets("ephemeral", _random_scalar(), os.urandom(32)))


def read_key_file(data: bytes) -> ServerKeys:
    """The keys of a key file: ``{"version": 1, "keys": [{"id", "ecdsa", "ed25519", "not_after"}, ...]}``.

    The first entry is the current one. ``ecdsa`` is the scalar, ``ed25519`` the seed, 64 hex digits each;
    ``not_after`` is Unix seconds or null and may be absent. Who may read the file is the caller's business.

    :raises KeyFileError: naming entry (from 1) and member, and no value.
    """
    keys: list[ServerKey] = []
    for number, entry in enumerate(_entries(data), 1):
        try:
            keys.extend(_entry_keys(entry))
            if len({(key.algo, key.id) for key in keys}) != len(keys):
                raise KeyFileError("id: another entry has it too")
            for algo in ALGOS:
                if len({key.public for key in keys if key.algo == algo}) != number:
                    raise KeyFileError(f"{algo}: another entry has the same key")
        except KeyFileError as error:
            raise KeyFileError(f"entry {number}, {error}") from None
    return ServerKeys(tuple(keys))


def new_key_file(id: str, old: bytes | None = None, *, old_not_after: int | None = None) -> bytes:
    """A key file with a fresh current entry, in front of what an old file holds.

    :param id: the new entry's name, one that the old file does not have.
    :param old: the file to rotate.
    :param old_not_after: the end, in Unix seconds, of the old entries that have none yet; leave clients an hour.
    :raises KeyFileError: the old file cannot be used, or the name cannot.
    """
    entries: list[object] = [
        {"id": id, "ecdsa": _random_scalar().hex(), "ed25519": os.urandom(32).hex(), "not_after": None}
    ]
    if old is not None:
        read_key_file(old)
        for entry in _entries(old):
            end = entry.get("not_after")
            entries.append({**entry, "not_after": old_not_after if end is None else end})
    data = json.dumps({"version": 1, "keys": entries}, indent=2).encode() + b"\n"
    read_key_file(data)
    return data


def _entries(data: bytes) -> list[dict[str, object]]:
    document = _parsed(data)
    if not isinstance(document, dict):
        raise KeyFileError("not a JSON object in UTF-8 that has each member once")
    if type(document.get("version")) is not int or document["version"] != 1:
        raise KeyFileError("version: must be 1")
    entries = document.get("keys")
    if not isinstance(entries, list) or not entries:
        raise KeyFileError("keys: must be a list of at least one entry")
    if len(document) != 2:
        raise KeyFileError("there is a member other than version and keys")
    return entries


def _parsed(data: bytes) -> object:
    try:
        return json.loads(data.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError):  # both the decoder's and the parser's hold the text: neither may be chained
        return None


def _once(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    members: dict[str, object] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError
        members[name] = value
    return members


def _entry_keys(entry: object) -> tuple[ServerKey, ServerKey]:
    if not isinstance(entry, dict):
        raise KeyFileError("must be an object")
    if not entry.keys() <= set(_MEMBERS):  # not named: a pasted secret may stand where a name should
        raise KeyFileError(f"there is a member other than {', '.join(_MEMBERS)}")
    id, not_after = entry.get("id"), entry.get("not_after")
    if not isinstance(id, str) or not _ID.fullmatch(id):
        raise KeyFileError("id: must be 1 to 64 letters, digits, dots, underscores or hyphens")
    if not_after is not None and (type(not_after) is not int or not 0 < not_after < 10**12):
        raise KeyFileError("not_after: must be null or Unix seconds")
    pair = []
    for algo in ALGOS:
        secret = entry.get(algo)
        if not isinstance(secret, str) or not _HEX32.fullmatch(secret):
            raise KeyFileError(f"{algo}: must be 64 hexadecimal digits")
        pair.append(_key_or_none(id, algo, bytes.fromhex(secret), not_after))
    ecdsa, ed25519 = pair
    if ecdsa is None or ed25519 is None:
        raise KeyFileError("ecdsa: must be from 1 to the order of secp256k1 less 1")
    return ecdsa, ed25519


def _key_or_none(id: str, algo: Algo, secret: bytes, not_after: int | None) -> ServerKey | None:
    try:
        return _key(id, algo, secret, not_after)
    except InvalidKey:
        return None


def _random_scalar() -> bytes:
    return ec.generate_private_key(SECP256K1).private_numbers().private_value.to_bytes(32, "big")
