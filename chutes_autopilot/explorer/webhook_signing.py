"""Signatures of webhooks, so that whoever receives one knows who sent it and when.

Standard Webhooks 1.0.0, symmetric: three headers, and an HMAC-SHA256 over ``id.timestamp.body``.
"""

import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence

ID = "webhook-id"
TIMESTAMP = "webhook-timestamp"
SIGNATURE = "webhook-signature"

SECRET_PREFIX = "whsec_"  # noqa: S105 - what secrets begin with
SECRET_BYTES = (24, 64)

TOLERANCE = 300.0
"""Seconds by which the clocks of sender and receiver may differ."""


class InvalidSignature(Exception):
    """A message that must not be believed; its text says why and holds nothing of the message."""


def read_secret(text: str) -> bytes:
    """The key in a secret as people pass it on: ``whsec_`` and base64.

    :raises ValueError: says what is wrong, not with what.
    """
    least, most = SECRET_BYTES
    if not text.startswith(SECRET_PREFIX):
        raise ValueError(f"must begin with {SECRET_PREFIX}")
    try:
        key = b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not least <= len(key) <= most:
        raise ValueError(f"must be {SECRET_PREFIX} and the base64 of {least} to {most} random bytes")
    return key


def sign(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature of one message.

    :param timestamp: of this attempt to deliver it, Unix seconds.
    """
    content = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + b64encode(hmac.digest(key, content, hashlib.sha256)).decode()


def signed_headers(key: bytes, message_id: str, timestamp: int, body: bytes) -> tuple[tuple[str, str], ...]:
    """The three headers of one message."""
    return (
        (ID, message_id),
        (TIMESTAMP, str(timestamp)),
        (SIGNATURE, sign(key, message_id, timestamp, body)),
    )


def verify(
    keys: Sequence[bytes], headers: Mapping[str, str], body: bytes, now: float, *, tolerance: float = TOLERANCE
) -> str:
    """What a receiver does first with a message; returns its id, by which a repeated message is known.

    :param keys: any of them will do, so that a secret can be changed.
    :param headers: names in any case.
    :param body: exactly the bytes that came.
    :param now: Unix seconds.
    :raises InvalidSignature: it is not from whom it should be, or too old.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp, signatures = given[ID], given[TIMESTAMP], given[SIGNATURE]
    except KeyError as missing:
        raise InvalidSignature(f"there is no {missing.args[0]}") from None
    if not re.fullmatch("[0-9]{1,12}", timestamp):
        raise InvalidSignature(f"{TIMESTAMP} is no number of seconds")
    if abs(now - int(timestamp)) > tolerance:
        raise InvalidSignature(f"{TIMESTAMP} is too far from now")
    expected = [sign(key, message_id, int(timestamp), body).encode() for key in keys]
    shown = [signature.encode("utf-8", "replace") for signature in signatures.split(" ")]
    if not any(hmac.compare_digest(ours, theirs) for ours in expected for theirs in shown):
        raise InvalidSignature(f"no {SIGNATURE} fits")
    return message_id
