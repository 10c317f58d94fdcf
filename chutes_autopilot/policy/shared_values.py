"""What replicas share, as keys and values of the store: versioned, bounded, and read with suspicion.

No key and no value holds a token, an address or an answer. A client is known there by a hash under CLIENT_KEY_SECRET
alone. Whatever is not exactly as it was written, or larger than it may be, counts as not there.
"""

import zlib
from collections.abc import Mapping
from hashlib import blake2b
from struct import Struct
from typing import Any, TypeVar

import msgspec
from attrs import frozen
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from chutes_autopilot.policy.stickiness import StickyChoice

PREFIX = "autopilot:1:"
"""Of every key; the number changes with the form of any value."""

MAX_NAME = 256
MAX_SIGNED_BYTES = 16 * 1024
MAX_RECORD_BYTES = 8 * 1024
MAX_REASONS_BYTES = 64 * 1024
"""Characters of a model's name, and bytes of a signed exchange, of a decision record and of its unpacked reasons."""

DIGEST_BYTES = 16
"""Of what names reasons."""

MAX_ZIPPED_BYTES = 8 * 1024 * 1024
"""The largest packed answer of the platform."""

_DOMAIN = b"chutes-autopilot shared v1 "

T = TypeVar("T")


def pack_reasons(reasons: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """What names the reasons of a route, the same on every replica that has the same ones, and the reasons."""
    data = zlib.compress(msgspec.json.encode(reasons), 1)
    return blake2b(data, digest_size=DIGEST_BYTES).digest(), data


def unpack_reasons(data: bytes) -> dict[str, Any] | None:
    """What pack_reasons made."""
    return _decoded(unzipped(data, MAX_REASONS_BYTES), _REASONS, MAX_REASONS_BYTES)


def fleet_of(*urls: str) -> str:
    """Keeps apart deployments that share a store and not their platform."""
    return blake2b("\n".join(urls).encode(), digest_size=6).hexdigest()


def sticky_key(client_key: bytes) -> bytes:
    """Where a client's choice is.

    :param client_key: policy.stickiness.client_key, 32 bytes.
    """
    return f"{PREFIX}sticky:{client_key.hex()}".encode()


def client_of_sticky_key(key: bytes) -> bytes | None:
    """The client key again; None where this is another kind of key."""
    head, _, digits = key.decode("latin-1").rpartition(":")
    if head + ":" != f"{PREFIX}sticky:" or len(digits) != 64:
        return None
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return None


def naming_key(secret: bytes, kind: bytes) -> bytes:
    """What `owned_name` needs for the names of one kind.

    :param secret: CLIENT_KEY_SECRET.
    """
    mac = HMAC(secret, SHA256())
    mac.update(_DOMAIN + kind)
    return mac.finalize()


def owned_name(key: bytes, owner: bytes, name: str) -> bytes:
    """What stands for something of an owner: 16 bytes, which nobody can make or check without the key.

    :param key: of naming_key.
    """
    named = len(owner).to_bytes(8, "big") + owner + name.encode("utf-8", "surrogatepass")
    return blake2b(named, key=key, digest_size=16).digest()


def pack_choice(choice: StickyChoice) -> bytes | None:
    """None where it is too large to be shared."""
    if len(choice.model) > MAX_NAME:
        return None
    return msgspec.json.encode((choice.model, choice.from_failover, choice.preferred_failed_at))


def unpack_choice(data: object) -> StickyChoice | None:
    """What pack_choice made."""
    parts = _decoded(data, _CHOICE, MAX_NAME * 6 + 64)
    return None if parts is None or len(parts[0]) > MAX_NAME else StickyChoice(*parts)


@frozen
class SharedCooldown:
    """A model that some replica found failing.

    :param until: Unix time at which it may be tried again.
    :param times: how often in a row it has cooled down.
    """

    until: float
    times: int


def pack_cooldown(cooldown: SharedCooldown) -> bytes:
    return msgspec.json.encode((cooldown.until, cooldown.times))


def unpack_cooldown(data: object) -> SharedCooldown | None:
    """What pack_cooldown made."""
    parts = _decoded(data, _COOLDOWN, 64)
    return None if parts is None or parts[1] < 1 else SharedCooldown(*parts)


def pack_signed(text: str, key_id: str, receipt: Mapping[str, Any] | None) -> bytes | None:
    """A signed exchange (web.signatures); None where it is too large."""
    data = msgspec.json.encode((text, key_id, receipt))
    return data if len(data) <= MAX_SIGNED_BYTES else None


def unpack_signed(data: object) -> tuple[str, str, dict[str, Any] | None] | None:
    """What pack_signed made."""
    return _decoded(data, _SIGNED, MAX_SIGNED_BYTES)


def pack_body(body: bytes, at: float) -> bytes | None:
    """An answer of the platform and when it came, Unix time; None where it is too large. Takes some milliseconds."""
    data = _AT.pack(at) + zlib.compress(body, 1)
    return data if len(data) <= MAX_ZIPPED_BYTES else None


def unpack_body(data: object, max_bytes: int) -> tuple[bytes, float] | None:
    """What pack_body made, if it is no larger than that."""
    if not isinstance(data, bytes) or not _AT.size < len(data) <= MAX_ZIPPED_BYTES:
        return None
    body = unzipped(data[_AT.size :], max_bytes)
    (at,) = _AT.unpack_from(data)
    return None if body is None or not 0 <= at < _NEVER else (body, at)


def unzipped(data: bytes, max_bytes: int) -> bytes | None:
    """The whole of a zlib stream; None where it is damaged, cut off or larger than that."""
    unzip = zlib.decompressobj()
    try:
        body = unzip.decompress(data, max_bytes + 1)
    except zlib.error:
        return None
    return body if unzip.eof and len(body) <= max_bytes else None


_AT = Struct(">d")
_NEVER = 1e12
_CHOICE = msgspec.json.Decoder(tuple[str, bool, float])
_COOLDOWN = msgspec.json.Decoder(tuple[float, int])
_REASONS = msgspec.json.Decoder(dict[str, Any])
_SIGNED = msgspec.json.Decoder(tuple[str, str, dict[str, Any] | None])


def _decoded(data: object, decoder: msgspec.json.Decoder[T], limit: int) -> T | None:
    if not isinstance(data, bytes) or len(data) > limit:
        return None
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
