"""What the API's refusal of a sealed request means and what to do about it: one table, read top down.

The API uses the nonce up before anything else, so no answer leaves it usable. A refusal is told by its status and by
words of its ``detail``; the text itself goes nowhere, for errors of a model server may quote the request.
"""

from typing import Literal, get_args

import msgspec
from attrs import frozen

from chutes_autopilot.e2ee.chute import ProtocolFault

MAX_ERROR_BYTES = 65536
"""So much of a refusal's body is read."""

INSTANCE_QUARANTINE = 30.0
TAMPERING_QUARANTINE = 300.0
CHUTE_OUT = 60.0
"""Seconds: an instance that failed, an instance whose answer was refused, a chute that cannot answer."""

RefusalCode = Literal[
    "nonce_rejected",
    "upstream_auth",
    "upstream_quota",
    "instance_full",
    "rate_limited",
    "instance_gone",
    "chute_gone",
    "chute_disabled",
    "stream_only",
    "protocol",
    "request_refused",
    "instance_failed",
]
SessionCode = Literal["discovery_limited", "discovery_failed", "no_instances", "no_verdict"]
OtherCode = Literal["bad_instance", "connection_lost", "internal_error"]
CODES: tuple[str, ...] = tuple(
    code for codes in (RefusalCode, SessionCode, ProtocolFault, OtherCode) for code in get_args(codes)
)
"""Every reason for which the transport refuses, skips or cuts something: a closed set, for logs, metrics, receipts."""

Then = Literal["same_chute", "next_instance", "next_candidate", "stop"]
"""``same_chute``: any instance, once in a request. ``next_instance``: another one of the chute, then another candidate.
``next_candidate``: another model. ``stop``: the client gets the answer."""

Drop = Literal["nothing", "answer", "instance", "pool"]
"""Which nonces are worthless now: none but the one used, those of the same discovery answer, those of the instance, all
of the chute."""

Answer = Literal["auth", "quota", "rate_limit", "request", "protocol", "no_session", "failed"]
"""What the client is told, should it come to that: 502 chutes_upstream_auth, 503 chutes_upstream_quota, 429, 400,
502 chutes_e2ee_protocol, 503 chutes_e2ee_no_session, 502 upstream_first_body_byte_error."""


@frozen
class Refusal:
    """One row of the table.

    :param only_once: another instance is tried once in a request, whatever else is allowed.
    :param quarantine: seconds during which the instance is not chosen.
    :param chute_out: seconds during which the chute is no candidate.
    """

    code: RefusalCode
    then: Then
    answer: Answer
    drop: Drop = "nothing"
    only_once: bool = False
    quarantine: float = 0.0
    chute_out: float = 0.0
    refresh_catalog: bool = False
    stream_only: bool = False


_ANY = ""
_NONCE = Refusal("nonce_rejected", "same_chute", "no_session", drop="answer")
_AUTH = Refusal("upstream_auth", "stop", "auth")
_QUOTA_429 = Refusal("upstream_quota", "stop", "rate_limit")
_GONE = Refusal("instance_gone", "next_instance", "no_session", drop="instance")
_CHUTE_GONE = Refusal("chute_gone", "next_candidate", "no_session", drop="pool", refresh_catalog=True)
_OUR_FAULT = Refusal("protocol", "stop", "protocol")
_FAILED = Refusal("instance_failed", "next_instance", "failed", only_once=True, quarantine=INSTANCE_QUARANTINE)

TABLE: tuple[tuple[int, str, Refusal], ...] = (
    (403, "nonce", _NONCE),
    (403, _ANY, _AUTH),
    (401, _ANY, _AUTH),
    (402, _ANY, Refusal("upstream_quota", "stop", "quota")),
    (429, "quota", _QUOTA_429),
    (429, "balance", _QUOTA_429),
    (429, "maximum capacity", Refusal("instance_full", "stop", "rate_limit")),
    (429, _ANY, Refusal("rate_limited", "stop", "rate_limit")),
    (404, "instance not found", _GONE),
    (410, _ANY, _GONE),
    (404, "chute not found", _CHUTE_GONE),
    (404, _ANY, _FAILED),
    (503, "currently disabled", Refusal("chute_disabled", "next_candidate", "no_session", chute_out=CHUTE_OUT)),
    (400, "does not belong", Refusal("instance_gone", "next_instance", "no_session", drop="pool")),
    (
        400,
        "non-streaming e2e requests require",
        Refusal("stream_only", "next_instance", "no_session", stream_only=True),
    ),
    (400, "empty request body", _OUR_FAULT),
    (400, _ANY, Refusal("request_refused", "stop", "request")),
    (502, "key exchange", _GONE),
)
"""Status, words of the detail in lower case, meaning; the first row that fits counts."""


def judge(status: int, detail: str) -> Refusal:
    """The meaning of an answer whose status is not 200; any 5xx that is not in the table is the instance's failure."""
    lower = detail.lower()
    for row_status, words, refusal in TABLE:
        if row_status == status and words in lower:
            return refusal
    return _FAILED if status >= 500 else _OUR_FAULT


class _Body(msgspec.Struct):
    detail: str = ""


def detail_of(body: bytes) -> str:
    """The ``detail`` of an error's body; empty where there is none, as in what a model server wrote."""
    try:
        return msgspec.json.decode(body, type=_Body).detail
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
