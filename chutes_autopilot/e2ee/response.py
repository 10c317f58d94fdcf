"""The answer to an encrypted request where it is one JSON object; its headers; what stands in for upstream errors."""

import json
import re
from contextlib import suppress
from typing import Any

import msgspec

from chutes_autopilot.e2ee.allow_list import AnswerSealer, SealContext, SealFailed
from chutes_autopilot.e2ee.request_headers import E2EEPolicy, SealedExchange
from chutes_autopilot.errors import ApiError, e2ee_error
from chutes_autopilot.wire.headers import Header

_RETRY_AFTER = re.compile(rb"[0-9]{1,10}")
_KNOWN_CODES = (
    "context_length_exceeded",
    "rate_limit_exceeded",
    "model_not_found",
    "insufficient_quota",
    "invalid_request_error",
)
_WITHHELD = (
    "The upstream refused the request; its own words are withheld, for they may repeat the prompt. "
    "To try again, send a new nonce."
)


def seal_completion(body: bytes, ctx: SealContext) -> tuple[bytes, str]:
    """Seal a whole answer.

    :param body: the upstream's, complete and within the limit.
    :returns: compact ASCII JSON and the ``id`` in it.
    :raises SealFailed: whatever is wrong with it; nothing of it is in the exception.
    """
    with suppress(Exception):  # whatever it was, its text may be the answer's
        answer = msgspec.json.decode(body)
        sealer = AnswerSealer.for_answer(answer, ctx, stream=False)
        return compact_ascii(sealer.seal(answer)), sealer.id
    raise SealFailed


def compact_ascii(value: Any) -> bytes:
    """JSON without white space and without a byte that any client's line splitter could stumble over."""
    encoded = msgspec.json.encode(value)
    if encoded.isascii():
        return encoded
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def applied_headers(exchange: SealedExchange, policy: E2EEPolicy, stream: bool) -> list[Header]:
    """The headers of a sealed answer."""
    algo = exchange.algo.encode()
    headers = [
        (b"Content-Type", b"text/event-stream; charset=utf-8" if stream else b"application/json"),
        (b"Cache-Control", b"no-store"),
        (b"X-E2EE-Applied", b"true"),
        (b"X-E2EE-Version", b"%d" % exchange.version),
        (b"X-E2EE-Alg", algo),  # what documents say
        (b"X-E2EE-Algo", algo),  # what servers and clients use
        (b"X-E2EE-Uncovered", policy.uncovered.encode()),
    ]
    return [*headers, (b"X-Accel-Buffering", b"no")] if stream else headers


def plain_headers() -> list[Header]:
    """What every answer of the route has in which nothing is sealed: plain answers and all errors."""
    return [(b"X-E2EE-Applied", b"false")]


class UpstreamError(ApiError):
    """An upstream's error answer in words of our own, with its status.

    :param status: the upstream's; other than an error's it becomes 502.
    :param code: one of the few that clients act on, or ``upstream_{status}``.
    """

    def __init__(self, status: int, code: str, headers: tuple[Header, ...] = ()) -> None:
        Exception.__init__(self, code, _WITHHELD)  # no table has these codes
        self.code = code
        self.status = status if 400 <= status <= 599 else 502
        self.message = _WITHHELD
        self.param = None
        self.headers = headers
        self.type = "upstream_error"


def operator_error(status: int) -> ApiError | None:
    """The error for an upstream status that concerns the operator's key and not the client; None for any other.

    Plain answers need it as well.
    """
    if status in (401, 403):
        return e2ee_error("chutes_upstream_auth", "The upstream does not accept this service's key.")
    if status == 402:
        return e2ee_error("chutes_upstream_quota", "This service's account at the upstream has no quota left.")
    return None


def generic_upstream_error(status: int, body: bytes, retry_after: bytes | None) -> ApiError:
    """What a client with encryption is told of an upstream's error answer.

    :param body: the upstream's; only compared with the codes that clients know.
    :param retry_after: the upstream's Retry-After, passed where it is digits.
    """
    headers: tuple[Header, ...] = ()
    if retry_after is not None and _RETRY_AFTER.fullmatch(retry_after):
        headers = ((b"Retry-After", retry_after),)
    return operator_error(status) or UpstreamError(status, _known_code(body) or f"upstream_{status}", headers)


def _known_code(body: bytes) -> str | None:
    with suppress(Exception):
        error = msgspec.json.decode(body)["error"]
        return next((word for word in (error.get("code"), error.get("type")) if word in _KNOWN_CODES), None)
    return None
