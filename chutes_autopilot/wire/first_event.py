"""Whether a stream has begun to answer: until it has, another model can still take its place.

The head of a stream says 200 before anything is known: then there may be nothing but comments and an empty first delta,
an error object, or no event at all. Only text, a tool call or a finish is an answer.
"""

import re
from typing import Any, Literal

import msgspec

from chutes_autopilot.wire.event_stream import EventParser, EventTooLarge

MAX_EVENTS = 64
"""How many events are looked at; a stream that goes on after them is believed."""
MAX_BYTES = 256 * 1024
"""How many bytes are held back meanwhile."""

EventKind = Literal["text", "tool_call", "finish", "error", "done", "role", "usage", "other"]
"""What one event is. ``role``: a delta without content. ``usage``: no choices but token counts. ``other``: a chunk
without choices, or no chunk at all."""

Beginning = Literal["text", "tool_call", "finish", "unclear", "error", "empty"]
"""How a stream began. ``unclear``: nothing of that in the first MAX_EVENTS or MAX_BYTES, which is believed. ``error``:
an error instead of an answer. ``empty``: it ended without one."""

ANSWERS: frozenset[Beginning] = frozenset(("text", "tool_call", "finish", "unclear"))
"""The beginnings that commit; the others fail over."""

_ANSWER_KINDS: dict[EventKind, Beginning] = {"text": "text", "tool_call": "tool_call", "finish": "finish"}
_DONE = b"[DONE]"
_BARE_ERROR = re.compile(rb'(?:\A|[\r\n])[ \t]*(\{\s*"(?:error|detail)"\s*:[^\r\n]*)')


class _Delta(msgspec.Struct, gc=False):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    audio: Any = None
    tool_calls: Any = None
    function_call: Any = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    message: _Delta | None = None
    text: Any = None
    finish_reason: Any = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw(b"")
    error: Any = None
    object: Any = None
    detail: Any = None


_CHUNK = msgspec.json.Decoder(_Chunk)


def event_kind(data: bytes) -> EventKind:
    """What an event of a chat (or completions) stream is, by its data."""
    if data.startswith(_DONE):
        return "done"
    try:
        chunk = _CHUNK.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "other"
    if chunk.error or chunk.object == "error":
        return "error"
    if not chunk.choices:
        if chunk.detail:
            return "error"
        return "usage" if bytes(chunk.usage) not in (b"", b"null") else "other"
    finished = False
    for choice in chunk.choices:
        delta = choice.delta or choice.message
        if choice.text or (delta is not None and _has_text(delta)):
            return "text"
        if delta is not None and (delta.tool_calls or delta.function_call):
            return "tool_call"
        finished = finished or bool(choice.finish_reason)
    return "finish" if finished else "role"


def _has_text(delta: _Delta) -> bool:
    return bool(delta.content or delta.reasoning_content or delta.reasoning or delta.refusal or delta.audio)


class FirstEvent:
    """Reads the beginning of one stream and holds its bytes back until it is judged.

    :ivar error: the JSON of the error, where there is one.
    :ivar events: how many events were looked at.
    """

    __slots__ = ("_held", "_held_bytes", "_judged", "_parser", "error", "events")

    def __init__(self) -> None:
        self._parser = EventParser(max_event_bytes=MAX_BYTES)
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._judged: Beginning | None = None
        self.error = b""
        self.events = 0

    @property
    def comments(self) -> int:
        """How many comments came, which are no events: servers send them while they wait."""
        return self._parser.comments

    def feed(self, data: bytes) -> Beginning | None:
        """Take the next bytes; how the stream began, None where that cannot be told yet."""
        self._held.append(data)
        self._held_bytes += len(data)
        if self._judged is not None:
            return self._judged
        try:
            events = self._parser.feed(data)
        except EventTooLarge as large:
            self._judged = self._look(large.events) or "unclear"
            return self._judged
        self._judged = self._look(events)
        if self._judged is None and (self.events >= MAX_EVENTS or self._held_bytes >= MAX_BYTES):
            self._judged = "unclear"
        return self._judged

    def end(self) -> Beginning:
        """The stream ended; how it began."""
        if self._judged is None:
            try:
                self._judged = self._look(self._parser.end())
            except EventTooLarge:
                self._judged = "unclear"
        if self._judged is None:
            # the platform's own errors stand bare between the events, where no client's parser sees them
            bare = _BARE_ERROR.search(b"".join(self._held))
            self.error = bare[1] if bare else b""
            self._judged = "error" if bare else "empty"
        return self._judged

    def take(self) -> bytes:
        """All bytes since the last call, to be sent to the client once the stream is believed."""
        held = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        return held

    def _look(self, events: list[bytes]) -> Beginning | None:
        for data in events:
            kind = event_kind(data)
            self.events += 1
            if kind in _ANSWER_KINDS:
                return _ANSWER_KINDS[kind]
            if kind == "error":
                self.error = data
                return "error"
            if kind == "done":
                return "empty"
            if self.events >= MAX_EVENTS:
                return "unclear"
        return None


def judge_answer(body: bytes) -> Beginning:
    """The same of a 2xx that did not stream, by its whole body: what is no JSON object is not ours to judge."""
    if not body.strip():
        return "empty"
    kind = event_kind(body)
    if kind == "error":
        return "error"
    return _ANSWER_KINDS.get(kind, "unclear")
