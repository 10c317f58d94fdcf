"""Replay protection of version 2: which requests are of now, and the name under which a nonce is claimed once."""

import hashlib

from chutes_autopilot.errors import ApiError, e2ee_error

REPEAT = "Repeat the request with a new nonce and the current time."
"""What a client can do about every error of replay protection: nothing is ever given back."""


def check_window(ts: int, now: float, window: int, not_before: int | None) -> None:
    """Refuse a request whose time is too far from now, or from before claims were kept.

    :param ts: the request's timestamp, Unix seconds.
    :param now: Unix time, with its fraction: a claim must outlive every request that passes here.
    :param window: how far ``ts`` may be from ``now``, seconds, to either side.
    :param not_before: Unix second at which a store began that had lost all earlier claims; None where none are lost.
    :raises ApiError: e2ee_invalid_timestamp.
    """
    if abs(now - ts) > window or (not_before is not None and ts < not_before):
        raise _invalid_timestamp()


def claim_name(server_public: bytes, nonce: str) -> str:
    """What is claimed: neither the time is part of it, or ts + 1 would make an old nonce new, nor the client's key,
    or a recorder could replay under its own.

    :param server_public: the public key the request is sealed to, in normal form.
    :result: 64 hex digits.
    """
    return hashlib.sha256(server_public + b"\0" + nonce.encode()).hexdigest()


def claim_expiry(ts: int, window: int, skew: int) -> int:
    """Until when a claim must be kept, Unix seconds: as long as any request with this timestamp could pass.

    :param skew: seconds more, for clocks of replicas and of a shared store that differ.
    """
    return ts + window + skew


def check_outlived(expiry: int, now: float) -> None:
    """Refuse a claim that was made so late that it is not kept any more: a second one would not meet it.

    :raises ApiError: e2ee_invalid_timestamp.
    """
    if now > expiry:
        raise _invalid_timestamp()


def replay_detected() -> ApiError:
    """The answer to a nonce that is claimed already."""
    return e2ee_error("e2ee_replay_detected", f"The nonce was used before. {REPEAT}")


def _invalid_timestamp() -> ApiError:
    return e2ee_error("e2ee_invalid_timestamp", f"The timestamp is not of now. {REPEAT}")
