"""What the API says of a chute's instances: keys and nonces, believed only where they have the right form."""

import re
from hashlib import sha256
from typing import Any

import msgspec
from attrs import field, frozen

from chutes_autopilot.e2ee.chute import load_public_key

MAX_LISTING_BYTES = 1024 * 1024
MAX_INSTANCES = 64
MAX_NONCES_EACH = 64
DEFAULT_LIFETIME = 55.0
"""Seconds a nonce is good for, where the answer does not say."""

_INSTANCE_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_NONCE = re.compile(r"[A-Za-z0-9_-]{8,128}")


@frozen
class Instance:
    """One process of a chute, as it is known by its key.

    :param key_text: the public key, base64, exactly as it was listed.
    :param key_sha256: of the key's bytes.
    """

    instance_id: str
    key_text: str = field(repr=False)
    key_sha256: bytes = field(repr=False)


@frozen
class Listing:
    """One answer about a chute.

    :param instances: each with its nonces; ids distinct.
    :param lifetime: seconds from the question for which the nonces are good.
    :param skipped: instances left out: malformed, repeated, or beyond MAX_INSTANCES.
    """

    instances: tuple[tuple[Instance, tuple[str, ...]], ...]
    lifetime: float
    skipped: int


class _Answer(msgspec.Struct):
    instances: list[Any]
    nonce_expires_in: Any = None


_ANSWER = msgspec.json.Decoder(_Answer)


def parse_listing(body: bytes) -> Listing:
    """Read the answer of ``/e2e/instances/{chute_id}``. Raises ValueError where it is none at all."""
    try:
        answer = _ANSWER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("no listing of instances") from None
    found: dict[str, tuple[Instance, tuple[str, ...]]] = {}
    for entry in answer.instances[:MAX_INSTANCES]:
        read = _instance(entry)
        if read is not None:
            found.setdefault(read[0].instance_id, read)
    return Listing(tuple(found.values()), _lifetime(answer.nonce_expires_in), len(answer.instances) - len(found))


def _instance(entry: Any) -> tuple[Instance, tuple[str, ...]] | None:
    if not isinstance(entry, dict):
        return None
    name, key_text, nonces = entry.get("instance_id"), entry.get("e2e_pubkey"), entry.get("nonces")
    if not isinstance(name, str) or _INSTANCE_ID.fullmatch(name) is None or not isinstance(key_text, str):
        return None
    if not isinstance(nonces, list) or not all(isinstance(n, str) and _NONCE.fullmatch(n) for n in nonces):
        return None
    try:
        raw = load_public_key(key_text).public_bytes_raw()
    except ValueError:
        return None
    return Instance(name, key_text, sha256(raw).digest()), tuple(dict.fromkeys(nonces[:MAX_NONCES_EACH]))


def _lifetime(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return DEFAULT_LIFETIME
    return min(60.0, max(1.0, float(value)))
