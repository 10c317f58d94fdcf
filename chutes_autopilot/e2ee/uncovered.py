"""Requests whose answer would hold text that the protocol has no place to encrypt."""

import re
from collections.abc import Mapping

import msgspec

from chutes_autopilot.errors import e2ee_error

_NOTHING = re.compile(rb'null|false|""|\[\s*\]|\{\s*\}')
_ASKING = ("tools", "functions", "logprobs", "top_logprobs", "prompt_logprobs", "audio", "modalities")


def refuse_uncovered(members: Mapping[str, msgspec.Raw]) -> None:
    """Refuse a request that asks for what would have to come back in clear, or not at all.

    What cannot be read as a plain "no" counts as asking.

    :param members: of the request's body.
    :raises ApiError: e2ee_uncovered_field, with the member's name as ``param``.
    """
    for name in _ASKING:
        value = bytes(members.get(name, b"null"))
        if not _NOTHING.fullmatch(value) and _asks(name, value, members):
            raise e2ee_error(
                "e2ee_uncovered_field",
                "The request asks for an answer that cannot be encrypted; the service is set to refuse such requests.",
                param=name,
            )


def _asks(name: str, value: bytes, members: Mapping[str, msgspec.Raw]) -> bool:
    match name:
        case "tools":
            return bytes(members.get("tool_choice", b"")) != b'"none"'
        case "functions":
            return bytes(members.get("function_call", b"")) != b'"none"'
        case "top_logprobs" | "prompt_logprobs":
            try:
                return float(value) > 0
            except ValueError:
                return True
        case "modalities":
            try:
                return "audio" in msgspec.json.decode(value)
            except (msgspec.DecodeError, RecursionError, TypeError):
                return True
    return True
