"""Open a sealed answer, and refuse one that is not what a sealed answer promises.

A covered field that does not open, or that never was sealed, is an error and never text: whoever sits in between
could have put it there. The same holds for an answer that does not say it was sealed, and for a stream without its end.
"""

import json
import re
from collections.abc import Sequence, Set
from typing import Any

import msgspec
from attrs import define, field

from chutes_autopilot.e2ee.allow_list import COVERED
from chutes_autopilot.e2ee.fields import FieldNotOpened
from chutes_autopilot.e2ee_client.coverage import ANSWER_WORDS, uncovered
from chutes_autopilot.e2ee_client.errors import AnswerRefused
from chutes_autopilot.e2ee_client.exchange import AnswerFields
from chutes_autopilot.wire.event_stream import EventParser, EventTooLarge

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""One sealed event; the service bounds what it seals to 1 MiB by default, and ciphertext is twice as long in hex."""

DONE = b"data: [DONE]\n\n"

_IDENTIFIER = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_CODE = re.compile(r"[a-z0-9_]{1,64}")
_IDENTIFIERS = ("object", "system_fingerprint", "service_tier")


def require_applied(applied: str | None) -> None:
    """Refuse an answer that does not say that it is encrypted.

    :param applied: the value of X-E2EE-Applied.
    """
    if applied is None or applied.strip().lower() != "true":
        raise AnswerRefused("e2ee_not_applied", "The gateway did not say that its answer is encrypted.")


def open_completion(body: bytes, fields: AnswerFields, in_clear: Set[str] = frozenset()) -> tuple[bytes, str]:
    """The clear JSON of an answer that came whole, and its id.

    :param in_clear: members that the answer may have in clear, ``tool_calls`` for example.
    """
    answer = _object(body)
    answer_id, model = _names(answer)
    for position, choice in enumerate(_choices(answer)):
        _open_choice(choice, "message", fields, model, answer_id, position, in_clear)
    _refuse_text(answer, _known_in(answer), in_clear)
    return _compact(answer), answer_id


@define(eq=False)
class StreamOpener:
    """Opens a stream of sealed events piece by piece; every piece may be of any size.

    ``feed`` and ``end`` give events to pass on, each ``data: `` with compact ASCII JSON, but for the last ``[DONE]``:
    whoever reads on writes it when the answer's body has ended, too. AnswerRefused has what was opened before in its
    `opened`.
    """

    _fields: AnswerFields
    _in_clear: Set[str] = frozenset()
    answer_id: str | None = field(default=None, init=False)
    """The stream's id, once an event has come; always there after ``end``."""
    done: bool = field(default=False, init=False)
    """Whether ``[DONE]`` has come; what follows it is ignored."""
    _model: str = field(default="", init=False)
    _parser: EventParser = field(factory=lambda: EventParser(max_event_bytes=MAX_EVENT_BYTES), init=False)

    def feed(self, data: bytes) -> bytes:
        """The events that these bytes complete, opened."""
        if self.done:
            return b""
        too_large = None
        try:
            events = self._parser.feed(data)
        except EventTooLarge as error:
            events, too_large = error.events, error
        opened = self._open(events)
        if too_large is not None and not self.done:
            raise _with(opened, AnswerRefused("e2ee_answer_malformed", "An event of the answer is too large."))
        return opened

    def end(self) -> bytes:
        """The body has ended cleanly: the last event, if one was left open; a stream that is not whole is refused."""
        opened = b"" if self.done else self._open(self._parser.end())
        if not self.done:
            text = "The answer ended before it was complete: what came is only a part of it."
            raise _with(opened, AnswerRefused("upstream_stream_truncated", text))
        if self.answer_id is None:
            raise _malformed("an end and nothing before it")
        return opened

    def _open(self, events: list[bytes]) -> bytes:
        opened = bytearray()
        for event in events:
            if event.strip() == b"[DONE]":
                self.done = True
                break
            try:
                opened += b"data: " + self._open_event(event) + b"\n\n"
            except AnswerRefused as refusal:
                raise _with(bytes(opened), refusal) from None
        return bytes(opened)

    def _open_event(self, event: bytes) -> bytes:
        chunk = _object(event)
        if chunk.get("error") is not None:
            raise _told_by(chunk["error"])
        answer_id, model = _names(chunk)
        if self.answer_id is None:
            self.answer_id, self._model = answer_id, model
        elif (answer_id, model) != (self.answer_id, self._model):
            raise _malformed("events of different answers in one stream")
        for position, choice in enumerate(_choices(chunk)):
            index = choice.get("index")
            place = index if isinstance(index, int) and not isinstance(index, bool) else position
            _open_choice(choice, "delta", self._fields, model, answer_id, place, self._in_clear)
        _refuse_text(chunk, _known_in(chunk), self._in_clear)
        return _compact(chunk)


def _open_choice(
    choice: dict[str, Any], part: str, fields: AnswerFields, model: str, answer_id: str, place: int, in_clear: Set[str]
) -> None:
    said = choice.get(part)
    if said is not None and not isinstance(said, dict):
        raise _malformed(f"a {part} that is no object")
    for name in COVERED:
        sealed = None if said is None else said.get(name)
        if said is None or sealed is None:
            continue
        if not isinstance(sealed, str):
            raise _in_clear(name)
        try:
            said[name] = fields.open(sealed, model, answer_id, place, name)
        except FieldNotOpened:
            text = f"A {name} of the answer was not encrypted for this exchange, or was changed on its way."
            raise AnswerRefused("e2ee_answer_not_opened", text) from None
    _refuse_text(said or {}, COVERED, in_clear)
    _refuse_text(choice, (part,), in_clear)


def _refuse_text(members: dict[str, Any], known: Sequence[str], in_clear: Set[str]) -> None:
    for name, value in members.items():
        if name not in known and uncovered(name, value, ANSWER_WORDS, in_clear):
            raise _in_clear(name)


def _known_in(answer: dict[str, Any]) -> tuple[str, ...]:
    short = (name for name in _IDENTIFIERS if isinstance(answer.get(name), str) and _IDENTIFIER.fullmatch(answer[name]))
    return ("id", "model", "choices", *short)


def _in_clear(name: str) -> AnswerRefused:
    # the name came from outside as well
    named = name if _CODE.fullmatch(name) else "a member"
    return AnswerRefused("e2ee_answer_in_clear", f"The encrypted answer has {named} in clear.")


def _told_by(error: object) -> AnswerRefused:
    """The gateway ended the stream with an error: its code is passed on, its text is not."""
    code = error.get("code") if isinstance(error, dict) else None
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        code = "upstream_error"
    return AnswerRefused(code, f"The gateway ended the answer with an error: {code}.")


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        raise _malformed("no JSON") from None
    if not isinstance(value, dict):
        raise _malformed("no JSON object")
    return value


def _names(answer: dict[str, Any]) -> tuple[str, str]:
    match answer:
        case {"id": str(answer_id), "model": str(model)} if _IDENTIFIER.fullmatch(answer_id):
            return answer_id, model
    raise _malformed("no id or model")


def _choices(answer: dict[str, Any]) -> list[dict[str, Any]]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise _malformed("no list of choices")
    return choices


def _malformed(what: str) -> AnswerRefused:
    return AnswerRefused("e2ee_answer_malformed", f"The gateway's answer cannot be read: it has {what}.")


def _with(opened: bytes, refusal: AnswerRefused) -> AnswerRefused:
    refusal.opened = opened
    return refusal


def _compact(value: object) -> bytes:
    # ASCII, so that no program that splits lines at U+2028 stumbles over what was opened
    return json.dumps(value, separators=(",", ":")).encode()
