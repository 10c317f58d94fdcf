"""The stream of another model made the rest of the one before it, so that a client sees one completion."""

from typing import Any, Literal

import msgspec

from chutes_autopilot.wire.event_stream import EventParser, EventTooLarge
from chutes_autopilot.wire.stream_text import CHUNK, IDENTITY, MAX_EVENT_BYTES, Chunk, StreamText

ECHO_CHARACTERS = 32
"""From this length on the text that was sent is taken for an echo where a prefilled answer begins with it."""

Progress = Literal["waiting", "going", "unlike", "failed"]
"""``waiting``: nothing to be sent yet. ``going``: it goes on where the text ended. ``unlike``: it says something else.
``failed``: it ended, or said that it failed, before it went on."""

_Members = dict[str, msgspec.Raw]
_MEMBERS = msgspec.json.Decoder(_Members)
_CHOICES = msgspec.json.Decoder(list[_Members])


class Usage(msgspec.Struct):
    """How many tokens a request and its answer so far have."""

    prompt_tokens: Any = None
    completion_tokens: Any = None


_OBJECT = msgspec.json.Decoder(_Members | None)
_USAGE = msgspec.json.Decoder(Usage | None)


class Splice:
    """Reads the later stream and gives the events to be sent behind the earlier one.

    Events keep what they say but for ``id``, ``created`` and ``model``, which become those of the earlier stream, and
    ``delta.role``, which the client has had. The ``usage`` of a prefilled answer counts what the earlier stream said of
    its own with it, and the prompt once. Comments end here. Nothing is given before there is text (or the end of
    the answer) that follows upon what was sent:

    - A prefilled answer goes on with its first text; where it echoes a long text, behind the echo.
    - A restarted one has to repeat all that was sent, and goes on behind it. What it reasons until then is left out.

    :ivar progress: how it stands.
    """

    __slots__ = ("_identity", "_matched", "_parser", "_restart", "_text", "_usage", "_watches", "progress")

    def __init__(self, sent: StreamText, *, restart: bool) -> None:
        self._parser = EventParser(max_event_bytes=MAX_EVENT_BYTES)
        self._identity = {name: msgspec.Raw(value) for name, value in sent.identity.items()}
        self._usage = Usage() if restart else _usage_of(sent.usage)
        self._text = sent.text
        self._restart = restart
        self._watches = restart or len(self._text) >= ECHO_CHARACTERS  # for its own beginning
        self._matched = 0
        self.progress: Progress = "waiting"

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes, of any number; the events to be sent now."""
        try:
            events = self._parser.feed(data)
        except EventTooLarge as large:
            return self._spliced(large.events) + self._broken()
        return self._spliced(events)

    def end(self) -> bytes:
        """The stream came to its end; the events to be sent yet."""
        try:
            rest = self._spliced(self._parser.end())
        except EventTooLarge:
            rest = b""
        return rest + self._broken() if self.progress == "waiting" else rest

    def _broken(self) -> bytes:
        self.progress = "failed"
        return b""

    def _spliced(self, events: list[bytes]) -> bytes:
        spliced = []
        for data in events:
            if self.progress == "waiting":
                spliced.append(self._begin(data))
            elif self.progress == "going":
                spliced.append(self._event(data))
        return b"".join(spliced)

    def _begin(self, data: bytes) -> bytes:
        """Look at an event that may be the first to go on."""
        if data.startswith(b"[DONE]"):
            return self._broken()
        try:
            chunk = CHUNK.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._broken()
        if chunk.error:
            return self._broken()
        if _foreign(chunk) or (not self._restart and _reasons(chunk)):
            self.progress = "unlike"
            return b""
        text, finished = _text(chunk), any(choice.finish_reason for choice in chunk.choices)
        if not text and not finished:
            return b""
        new = self._behind(text) if self._watches else text
        left = len(self._text) - self._matched if self._watches else 0
        if new is None or (left and finished):
            # it is neither a repetition nor the beginning of one
            if self._restart:
                self.progress = "unlike"
                return b""
            new = self._text[: self._matched] + ("" if new is not None else text)
        elif not new and not finished:
            return b""
        self.progress = "going"
        return self._event(data, new)

    def _behind(self, text: str) -> str | None:
        """What of some text is behind the repetition, which it may go on with; None where it differs from it."""
        expected = self._text[self._matched : self._matched + len(text)]
        if not text.startswith(expected):
            return None
        self._matched += len(expected)
        return text[len(expected) :]

    def _event(self, data: bytes, text: str | None = None) -> bytes:
        """An event as one of the earlier stream.

        :param text: in place of its own.
        """
        try:
            members = _MEMBERS.decode(data)
            for name in IDENTITY:
                if name in members and name in self._identity:
                    members[name] = self._identity[name]
            choices = members.get("choices")
            if choices is not None and (text is not None or b'"role"' in bytes(choices)):
                members["choices"] = msgspec.Raw(_with_text(choices, text))
            usage = members.get("usage")
            if usage is not None:
                members["usage"] = msgspec.Raw(_added(usage, self._usage))
            data = msgspec.json.encode(members)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # whatever it is, it is none of a completion's chunks
        return b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"


def _usage_of(value: msgspec.Raw) -> Usage:
    """What is said of it; nothing of what is no usage."""
    try:
        return _USAGE.decode(value) or Usage()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Usage()


def _added(value: msgspec.Raw, before: Usage) -> bytes:
    """What the client's answer used: its own prompt, and the tokens of both models, where all are known."""
    prompt, begun, rest = before.prompt_tokens, before.completion_tokens, _usage_of(value).completion_tokens
    if not (type(prompt) is int and type(begun) is int and type(rest) is int):
        return bytes(value)
    members: dict[str, Any] = dict(_OBJECT.decode(value) or {})
    members |= {"prompt_tokens": prompt, "completion_tokens": begun + rest, "total_tokens": prompt + begun + rest}
    return msgspec.json.encode(members)


def _foreign(chunk: Chunk) -> bool:
    """Whether it has anything but one plain text."""
    return any(
        choice.index or choice.logprobs or (choice.delta is not None and choice.delta.foreign)
        for choice in chunk.choices
    )


def _text(chunk: Chunk) -> str:
    return "".join(choice.delta.content or "" for choice in chunk.choices if choice.delta is not None)


def _reasons(chunk: Chunk) -> bool:
    return any(choice.delta is not None and choice.delta.reasons for choice in chunk.choices)


def _with_text(choices: msgspec.Raw, text: str | None) -> bytes:
    """Choices without a role, and with this text in the first of them."""
    changed: list[dict[str, Any]] = []
    for choice in _CHOICES.decode(choices):
        delta: dict[str, Any] = dict(_OBJECT.decode(choice.get("delta", b"null")) or {})
        delta.pop("role", None)
        if text is not None:
            delta["content"], text = text, ""
        changed.append({**choice, "delta": delta})
    return msgspec.json.encode(changed)
