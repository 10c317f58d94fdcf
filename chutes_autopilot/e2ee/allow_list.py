"""What may leave of a model's answer: the covered texts sealed, a few members of known shape, nothing else.

The output is built from a list of what is allowed: a member is copied because it is known to hold no text of the
answer, never because it is unknown. Both whole answers and the chunks of a stream are built here.
"""

import re
import secrets
from collections.abc import Mapping
from typing import Any, TypeGuard

from attrs import frozen

from chutes_autopilot.e2ee.fields import response_aad
from chutes_autopilot.e2ee.request_headers import SealedExchange, Uncovered

COVERED = ("content", "reasoning_content", "reasoning")
"""The members of a message that are encrypted."""

_NAME = re.compile(r"[a-z_]{1,64}")
_USAGE_NAME = re.compile(r"[a-z0-9_]{1,64}")
_TOKEN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_MODEL = re.compile(r"[ -{}~]{1,256}")
"""Printable ASCII without "|", which separates the parts of the associated data."""
_FINISH_REASON = re.compile(r"[a-z_]{1,32}")
_ROLE = re.compile(r"[a-z]{1,16}")

_CLEAR_IN_CHOICE = frozenset({"logprobs"})
_CLEAR_IN_MESSAGE = frozenset({"tool_calls", "function_call", "refusal", "audio"})
_NEVER: frozenset[str] = frozenset()

Members = Mapping[str, Any]


class SealFailed(Exception):
    """An answer that cannot be sealed; the text is a constant, for the answer may be in whatever went wrong.

    :ivar code: the error's code for the client.
    """

    code = "e2ee_encryption_failed"

    def __init__(self) -> None:
        super().__init__("the answer cannot be sealed")


@frozen(repr=False)
class SealContext:
    """What the answer to one encrypted request is sealed with.

    :param model: the request's, for an answer that names none.
    :param uncovered: what becomes of content that cannot be encrypted: only ``clear`` lets it pass.
    """

    exchange: SealedExchange
    model: str
    uncovered: Uncovered


@frozen(repr=False)
class AnswerSealer:
    """Seals the objects of one answer, all under the same ``id`` and ``model``.

    :param id: as emitted.
    :param model: as emitted.
    :param stream: whether the objects are chunks.
    """

    context: SealContext
    id: str
    model: str
    stream: bool

    @classmethod
    def for_answer(cls, answer: Members, context: SealContext, *, stream: bool) -> "AnswerSealer":
        """Take id and model from an answer, or its first chunk, where they can hold no text; else mint the one, and
        let the other be the request's."""
        id, model = answer.get("id"), answer.get("model")
        if not (isinstance(id, str) and _TOKEN.fullmatch(id)):
            id = "chatcmpl-" + secrets.token_hex(16)
        if not (isinstance(model, str) and _MODEL.fullmatch(model)):
            model = context.model
        return cls(context, id, model, stream)

    def seal(self, answer: Members) -> dict[str, Any]:
        """The object to emit; raises SealFailed if a covered member or the list of choices has another type."""
        choices = answer.get("choices")
        if not isinstance(choices, list):
            raise SealFailed
        kind = "chat.completion.chunk" if self.stream else "chat.completion"
        sealed: dict[str, Any] = {"id": self.id, "object": kind, "model": self.model}
        for name, value in answer.items():
            match name:
                case "id" | "object" | "model":
                    pass
                case "choices":
                    sealed[name] = [self._choice(position, choice) for position, choice in enumerate(choices)]
                case "created":
                    if _is_integer(value):
                        sealed[name] = value
                case "usage":
                    if value is None or isinstance(value, dict):
                        sealed[name] = value and _usage(value)
                case "system_fingerprint" | "service_tier":
                    if value is None or _matches(_TOKEN, value):
                        sealed[name] = value
                case _:
                    if _is_empty(name, value):
                        sealed[name] = value
        return sealed

    def _choice(self, position: int, choice: Any) -> dict[str, Any]:
        if not isinstance(choice, dict):
            raise SealFailed
        index = choice.get("index")
        place = index if self.stream and _is_integer(index) else position
        message = "delta" if self.stream else "message"
        clear = _CLEAR_IN_CHOICE if self.context.uncovered == "clear" else _NEVER
        sealed: dict[str, Any] = {}
        for name, value in choice.items():
            match name:
                case "index":
                    if _is_integer(value):
                        sealed[name] = value
                case "finish_reason":
                    if value is None or _matches(_FINISH_REASON, value):
                        sealed[name] = value
                case "stop_reason":  # a string is the caller's own stop text
                    if value is None or _is_integer(value):
                        sealed[name] = value
                case _ if name == message and isinstance(value, dict):
                    sealed[name] = self._message(place, value)
                case _:
                    if name in clear or _is_empty(name, value):
                        sealed[name] = value
        return sealed

    def _message(self, place: int, message: Members) -> dict[str, Any]:
        clear = _CLEAR_IN_MESSAGE if self.context.uncovered == "clear" else _NEVER
        sealed: dict[str, Any] = {}
        for name, value in message.items():
            if self.stream and value == "":
                continue
            if name in COVERED:
                sealed[name] = None if value is None else self._sealed(place, name, value)
            elif name == "role":
                if _matches(_ROLE, value):
                    sealed[name] = value
            elif name in clear or _is_empty(name, value):
                sealed[name] = value
        return sealed

    def _sealed(self, place: int, name: str, text: Any) -> str:
        if not isinstance(text, str):
            raise SealFailed
        exchange = self.context.exchange
        aad = b""
        if exchange.nonce is not None and exchange.timestamp is not None:
            aad = response_aad(exchange.algo, self.model, self.id, place, name, exchange.nonce, exchange.timestamp)
        return exchange.sealer.seal(text, aad)


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_empty(name: str, value: object) -> bool:
    """Whether a member says nothing; its name must not say anything either."""
    empty = value is None or value is False or (isinstance(value, str | list | dict) and not value)
    return empty and _NAME.fullmatch(name) is not None


def _usage(usage: Members) -> dict[str, Any]:
    """The numbers, nulls and objects of them; a name that could be text goes as well."""
    kept: dict[str, Any] = {}
    for name, value in usage.items():
        if not _USAGE_NAME.fullmatch(name):
            continue
        if isinstance(value, dict):
            kept[name] = _usage(value)
        elif value is None or isinstance(value, float) or _is_integer(value):
            kept[name] = value
    return kept
