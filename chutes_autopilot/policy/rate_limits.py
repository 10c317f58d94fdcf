"""Which of the platform's 429s an answer is: they look alike to a client and call for opposite things.

=============  =======================================================  ==============================================
kind           how it is told                                           what follows in the resilient profile
=============  =======================================================  ==============================================
``edge``       a page of HTML, not the API's JSON                       passed on at once; each further call makes the
                                                                        ban longer
``capacity``   JSON, detail "Infrastructure is at maximum capacity,     tried again at once or after Retry-After,
               try again later", or the same of one instance            then another model
``account``    JSON, detail "Free models limit reached for today..."    passed on at once
               or "Invalid free model..."
``engine``     JSON, detail is an object whose code is 429              as capacity
``unknown``    anything else                                            JSON with a short Retry-After: tried again
                                                                        after it, then another model; else passed on
=============  =======================================================  ==============================================

The standard profile passes all of them on. The body goes to the client unchanged in any case.
"""

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import msgspec
from attrs import frozen

Kind = Literal["edge", "capacity", "account", "engine", "unknown"]

KINDS: tuple[Kind, ...] = ("edge", "capacity", "account", "engine", "unknown")
"""A closed set, used as metric label."""

READ_BYTES = 16 * 1024
"""How much of a body is needed to judge it; the platform's have some hundred bytes."""

SENTENCES: Mapping[Kind, str] = {
    "edge": "the platform's edge refuses this client before the API sees it: it may be banned, and calling on makes "
    "the ban longer",
    "capacity": "the model is at maximum capacity; another one may answer",
    "account": "the account has used up its free requests, or may not use this model for free",
    "engine": "the model's engine refuses more requests",
    "unknown": "the platform refuses this request for now and does not say why",
}
"""What each kind means, for the log."""

_CAPACITY = (
    "Infrastructure is at maximum capacity, try again later",
    "Instance is at maximum capacity, try again later",
)
_ACCOUNT = ("Free models limit reached for today", "Invalid free model")


@frozen
class RateLimit:
    """One 429.

    :param retry_after: seconds after which the platform wants to be asked again, None where it does not say.
    :param json: whether the body is the API's.
    """

    kind: Kind
    retry_after: float | None = None
    json: bool = False

    def wait(self, longest: float) -> float | None:
        """Seconds to wait before the same model is asked again, or None where it is not to be.

        :param longest: RETRY_AFTER_MAX_MS, in seconds.
        """
        if not self.moves_on(longest):
            return None
        if self.retry_after is None:
            return 0.0
        return self.retry_after if self.retry_after <= longest else None

    def moves_on(self, longest: float) -> bool:
        """Whether another model may be asked, after the wait or in place of it."""
        if self.kind in ("capacity", "engine"):
            return True
        return self.kind == "unknown" and self.json and self.retry_after is not None and self.retry_after <= longest


def read_rate_limit(index: Mapping[bytes, bytes], body: bytes, now: float) -> RateLimit:
    """Tell what kind of 429 an answer is.

    :param index: its header values by lower-case name.
    :param body: its first READ_BYTES.
    :param now: Unix seconds, for a Retry-After that is a date.
    """
    retry_after = retry_after_seconds(index.get(b"retry-after"), now)
    start = body[:READ_BYTES].lstrip()
    if index.get(b"content-type", b"").partition(b";")[0].strip().lower() == b"text/html" or start[:1] == b"<":
        return RateLimit("edge", retry_after)
    try:
        content: Any = msgspec.json.decode(body[:READ_BYTES])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return RateLimit("unknown", retry_after)
    detail = content.get("detail") if isinstance(content, dict) else None
    return RateLimit(_kind(detail), retry_after, json=True)


def retry_after_seconds(value: bytes | None, now: float) -> float | None:
    """The seconds of a Retry-After field (RFC 9110 section 10.2.3), None where it is absent or malformed.

    :param now: Unix seconds; a date in the past means 0.
    """
    text = (value or b"").strip().decode("latin-1")
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError, OSError):
        return None


def _kind(detail: object) -> Kind:
    if isinstance(detail, str):
        if detail in _CAPACITY:
            return "capacity"
        return "account" if detail.startswith(_ACCOUNT) else "unknown"
    if isinstance(detail, dict):
        code = detail.get("code")
        return "engine" if type(code) is int and code == 429 else "unknown"
    return "unknown"
