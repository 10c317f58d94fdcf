"""What the client is told when a sealed request got no answer, and the few answers of the API that are passed on."""

import json
import math
from typing import Literal

from chutes_autopilot.e2ee.chute_errors import Answer
from chutes_autopilot.errors import ApiError, e2ee_error
from chutes_autopilot.policy.failover import Refused
from chutes_autopilot.wire.headers import Header
from chutes_autopilot.wire.http1 import ResponseHead

MAX_RETRY_AFTER = 300.0

_FAILED = "Chutes failed before the first byte of the answer; try again."
_RELAYED = {
    "rate_limit": (
        429,
        b"Too Many Requests",
        "rate_limit_exceeded",
        "Chutes takes no more requests at the moment; try again later.",
    ),
    "request": (
        400,
        b"Bad Request",
        "upstream_400",
        "The model refused the request: it may be too long, or one of its parameters wrong.",
    ),
}
_ERRORS: dict[str, tuple[str, str]] = {
    "auth": ("chutes_upstream_auth", "Chutes refused this gateway's own key; its operator has to look at it."),
    "quota": ("chutes_upstream_quota", "This gateway's account at Chutes is used up; its operator has to look at it."),
    "protocol": ("chutes_e2ee_protocol", "Chutes did not accept how this gateway sealed the request."),
    "tampered": ("chutes_e2ee_protocol", "The answer was refused: it was not sealed as the model's instance would."),
    "no_session": (
        "chutes_e2ee_no_session",
        "No instance can take a sealed request at the moment; try again or choose another model.",
    ),
    "no_verdict": (
        "no_attested_candidate",
        "No instance of the model has a valid attestation at the moment; try again or choose another model.",
    ),
}


def refusal(answer: Answer | str, *, retry: bool, reason: str, retry_after: float = 1.0) -> Refused:
    """The end of an attempt without an answer.

    :param answer: an Answer, ``tampered`` or ``no_verdict``.
    :param retry: whether another candidate may be tried.
    :param reason: one of chute_errors.CODES.
    :param retry_after: seconds, for the answers that say when to come again.
    """
    if answer not in _ERRORS:
        return Refused(ApiError("upstream_first_body_byte_error", _FAILED), retry, reason)
    code, message = _ERRORS[answer]
    seconds = b"%d" % math.ceil(min(max(retry_after, 1.0), MAX_RETRY_AFTER))
    headers = ((b"Retry-After", seconds),) if answer in ("no_session", "no_verdict") else ()
    return Refused(e2ee_error(code, message, headers=headers), retry, reason)


def answer_head(content_type: bytes, length: int | None = None) -> ResponseHead:
    """The head of an answer that was opened: nothing of it is what the API sent."""
    size = () if length is None else ((b"Content-Length", b"%d" % length),)
    return ResponseHead(200, b"OK", ((b"Content-Type", content_type), *size))


def relayed_answer(
    answer: Literal["rate_limit", "request"], code: str, retry_after: bytes
) -> tuple[ResponseHead, bytes]:
    """An answer of the API that is the client's business, in words of our own, for its own ones may quote the request.

    :param code: one of chute_errors.CODES.
    :param retry_after: the value of the field, passed on where it is few digits.
    """
    status, reason, name, text = _RELAYED[answer]
    if code == "upstream_quota":
        name = "insufficient_quota"
    data = json.dumps({"error": {"message": text, "type": "upstream_error", "param": None, "code": name}}).encode()
    headers: tuple[Header, ...] = ((b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(data)))
    if retry_after.isdigit() and len(retry_after) < 7:
        headers = (*headers, (b"Retry-After", retry_after))
    return ResponseHead(status, reason, headers), data
