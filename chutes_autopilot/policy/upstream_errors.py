"""What an error answer of the platform calls for in the resilient profile: another model, the same again, or nothing.

The platform reports full instances and broken ones under 500, and a prompt that is too long for one model under 400, so
the status alone does not say. The first rule that fits counts:

==============================================================  ==================  ==========
answer                                                          kind                move
==============================================================  ==================  ==========
400, 413, 422 whose text speaks of the length of the context    context_length      ``larger``
400, 403, 422 whose text speaks of filtered content             content_filter      ``final``
401, 403                                                        auth                ``final``
402                                                             payment             ``final``
429                                                             rate_limited        by policy.rate_limits
any other 4xx                                                   refused             ``final``
500 whose text says that no instance could be had               no_instance         ``next``
503                                                             unavailable         ``next``
500, 502, 504                                                   server_error,       ``again``
                                                                bad_gateway,
                                                                gateway_timeout
520 to 524                                                      edge_error          ``again``
anything else                                                   other               ``final``
==============================================================  ==================  ==========
"""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

import msgspec
from attrs import frozen

Move = Literal["final", "next", "larger", "again", "rate_limit"]
"""``final``: the answer is the client's. ``next``: another model. ``larger``: another model with a longer context.
``again``: the same model, then the next. ``rate_limit``: policy.rate_limits decides."""

Kind = Literal[
    "context_length",
    "content_filter",
    "auth",
    "payment",
    "rate_limited",
    "refused",
    "no_instance",
    "unavailable",
    "server_error",
    "bad_gateway",
    "gateway_timeout",
    "edge_error",
    "other",
]

READ_BYTES = 16 * 1024
"""How much of a body is needed to judge it."""

_MOVES: Mapping[Kind, Move] = MappingProxyType(
    {
        "context_length": "larger",
        "rate_limited": "rate_limit",
        "no_instance": "next",
        "unavailable": "next",
        "server_error": "again",
        "bad_gateway": "again",
        "gateway_timeout": "again",
        "edge_error": "again",
    }
)
_BY_STATUS: Mapping[int, Kind] = MappingProxyType(
    {
        401: "auth",
        402: "payment",
        403: "auth",
        429: "rate_limited",
        500: "server_error",
        502: "bad_gateway",
        503: "unavailable",
        504: "gateway_timeout",
        520: "edge_error",
        521: "edge_error",
        522: "edge_error",
        523: "edge_error",
        524: "edge_error",
    }
)
_CONTEXT = re.compile(
    r"context[_ ](?:length|window|size)|maximum (?:context|model|sequence|input) length|max_model_len"
    r"|(?:prompt|input|request)[^.]{0,80} (?:is )?(?:too long|longer than)|too many (?:input )?tokens",
    re.IGNORECASE,
)
_FILTERED = re.compile(
    r"content[_ -]?(?:filter|policy|management)|responsible_?ai|\bmoderation\b|flagged (?:as|by|for)", re.IGNORECASE
)
_NO_INSTANCE = re.compile(r"no infrastructure available|exhausted all available targets", re.IGNORECASE)
_TOKENS = re.compile(r"([0-9]{1,9}) (?:input )?tokens", re.IGNORECASE)
_MAX_DEPTH = 6
_MAX_TEXT = 2000
_ECHOED = ("input", "ctx")
"""Members in which a validation error repeats the request, which may speak of anything."""


@frozen
class UpstreamError:
    """One error answer.

    :param tokens: where the context was too short, the most tokens the text speaks of: what the request needs, at
        least; 0 where it names none.
    """

    kind: Kind
    tokens: int = 0

    @property
    def move(self) -> Move:
        """What follows in the resilient profile."""
        return _MOVES.get(self.kind, "final")


def read_upstream_error(status: int, body: bytes) -> UpstreamError:
    """What an error answer is; its text is looked at and not kept.

    :param body: its first READ_BYTES, JSON or not.
    """
    text = _text(body[:READ_BYTES])
    if status in (400, 413, 422) and _CONTEXT.search(text):
        return UpstreamError("context_length", max((int(n) for n in _TOKENS.findall(text)), default=0))
    if status in (400, 403, 422) and _FILTERED.search(text):
        return UpstreamError("content_filter")
    if status == 500 and _NO_INSTANCE.search(text):
        return UpstreamError("no_instance")
    return UpstreamError(_BY_STATUS.get(status) or ("refused" if 400 <= status < 500 else "other"))


def read_error_event(data: bytes) -> UpstreamError:
    """What an error inside a 200 is, by the status it names itself; where it names none, 500.

    :param data: a JSON object: an event's data or a whole body.
    """
    return read_upstream_error(_status(data), data)


class _Error(msgspec.Struct, gc=False):
    code: Any = None
    status: Any = None


class _Event(_Error, gc=False):
    error: Any = None
    detail: Any = None


_EVENT = msgspec.json.Decoder(_Event)


def _status(data: bytes) -> int:
    try:
        event = _EVENT.decode(data[:READ_BYTES])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 500
    for place in (event.error, event.detail, {"code": event.code, "status": event.status}):
        if isinstance(place, dict):
            for value in (place.get("code"), place.get("status")):
                code = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{3}", value) else value
                if type(code) is int and 400 <= code <= 599:
                    return code
    return 500


def _text(body: bytes) -> str:
    """All text of a JSON body in its order, or the body itself where it is none."""
    try:
        content: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode("utf-8", "replace")[:_MAX_TEXT]
    return " ".join(_strings(content, _MAX_DEPTH))[:_MAX_TEXT]


def _strings(value: object, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, dict):
        for name, item in value.items():
            if name not in _ECHOED:
                yield from _strings(item, depth - 1)
    elif depth and isinstance(value, list):
        for item in value:
            yield from _strings(item, depth - 1)
