"""What a stream of chat chunks has said so far, kept so that another model can go on with it."""

import json
from typing import Any

import msgspec

from chutes_autopilot.wire.event_stream import EventParser, EventTooLarge
from chutes_autopilot.wire.sse import EVENT_END

MAX_TEXT = 256 * 1024
"""Characters of text that are kept; of a longer answer nothing is."""
MAX_EVENT_BYTES = 256 * 1024

SERVER_ERROR = 500

_LF, _CR = b"\n\r"
"""As numbers: to look for bytes with ``in`` raises an error inside first, and takes many times as long."""

IDENTITY = ("id", "created", "model")
"""What is the same in all chunks of one completion."""


class Delta(msgspec.Struct, gc=False):
    """What one chunk adds; everything but ``content`` only to see whether it is there."""

    content: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    audio: Any = None
    tool_calls: Any = None
    function_call: Any = None

    @property
    def reasons(self) -> Any:
        """What is of the model's reasoning, if anything."""
        return self.reasoning_content or self.reasoning

    @property
    def foreign(self) -> Any:
        """What is more than text, if anything."""
        return self.tool_calls or self.function_call or self.refusal or self.audio


class Choice(msgspec.Struct, gc=False):
    """One choice of a chunk."""

    index: int = 0
    delta: Delta | None = None
    finish_reason: Any = None
    logprobs: Any = None


class Chunk(msgspec.Struct, gc=False):
    """One chunk."""

    choices: list[Choice] = []
    error: Any = None
    usage: msgspec.Raw = msgspec.Raw(b"")
    id: msgspec.Raw = msgspec.Raw(b"")
    created: msgspec.Raw = msgspec.Raw(b"")
    model: msgspec.Raw = msgspec.Raw(b"")


CHUNK = msgspec.json.Decoder(Chunk)
"""Raises msgspec.DecodeError for what is no such chunk."""


def whole_events(data: bytes) -> tuple[bytes, bytes]:
    """Cut bytes of a stream behind their last blank line: whole events, and the beginning of another."""
    if _CR not in data:
        end = data.rfind(b"\n\n") + 2
        return (data[:end], data[end:]) if end > 1 else (b"", data)
    # a CR at the end may be half of a line's end
    certain = data.removesuffix(b"\r")
    end = 0
    for found in EVENT_END.finditer(certain):
        end = found.end()
    return data[:end], data[end:]


class StreamText:
    """The text that a client has been sent, as far as it is one plain text.

    :ivar plain: whether nothing but text came, and not too much of it.
    :ivar faulty: whether an event is no JSON, or says that the model's engine failed; nothing behind it is read.
    :ivar finished: whether the answer had its ``finish_reason`` or ``[DONE]``.
    :ivar identity: the first chunk's values of IDENTITY, as they were spelled.
    :ivar usage: how many tokens the last chunk of the answer said there were so far, as JSON; the platform says it in
        every one.
    """

    __slots__ = ("_pieces", "_size", "faulty", "finished", "identity", "plain", "usage")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = 0
        self.plain = True
        self.faulty = False
        self.finished = False
        self.identity: dict[str, bytes] = {}
        self.usage = msgspec.Raw(b"")

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._pieces)

    def read(self, events: bytes) -> int:
        """Take the next events, each of them whole; how many of their bytes come before a fault, if there is one."""
        read = 0
        try:
            for event in _unified(events).split(b"\n\n"):
                if event.startswith(b"data: ") and _LF not in event:  # as all servers send them
                    self._take(event[6:])
                elif event:
                    for data in EventParser(max_event_bytes=MAX_EVENT_BYTES).feed(event + b"\n\n"):
                        self._take(data)
                if self.faulty:
                    break
                read += len(event) + 2
        except (EventTooLarge, msgspec.ValidationError, RecursionError):
            self.plain = False
        if self.faulty and _CR in events:
            self.plain = False  # nobody has counted the bytes as they came
        if not self.plain:
            self._pieces.clear()
        return read

    def _take(self, data: bytes) -> None:
        if data.startswith(b"[DONE]"):
            self.finished = True
            return
        try:
            chunk = CHUNK.decode(data)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._judge(data)
            return
        if not self.identity:
            values = {name: bytes(getattr(chunk, name)) for name in IDENTITY}
            self.identity = {name: value for name, value in values.items() if value}
        if chunk.error:
            self._judge_error(chunk.error)
            return
        if chunk.choices or bytes(chunk.usage):
            self.usage = chunk.usage
        for choice in chunk.choices:
            if choice.finish_reason:
                self.finished = True
            if choice.index or choice.logprobs:
                self.plain = False
            delta = choice.delta
            if delta is None:
                continue
            if delta.content:
                self._pieces.append(delta.content)
                self._size += len(delta.content)
            if delta.foreign or delta.reasons or self._size > MAX_TEXT:
                self.plain = False

    def _judge(self, data: bytes) -> None:
        """Tell JSON that is only unusual (escapes of lone surrogates) from what is none."""
        try:
            json.loads(data)
            self.plain = False
        except ValueError:
            self.faulty = True

    def _judge_error(self, error: Any) -> None:
        """Tell an engine that failed from a request that is at fault."""
        code = error.get("code") if isinstance(error, dict) else None
        if type(code) is int and code >= SERVER_ERROR:
            self.faulty = True
        else:
            self.plain = False


def _unified(events: bytes) -> bytes:
    """Whole events with one kind of line end."""
    return events.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if _CR in events else events
