"""Streams whose events carry their type: whether a stream of the Responses or the Messages API came to its end.

Their last event may hold the whole answer, so it is not kept: a line's beginning and end tell its type. An event has it
in its ``event`` field, in its data, or in both; servers put the data's ``type`` first or last.
"""

import json
import re
from typing import Any

import msgspec

from chutes_autopilot.errors import ApiError
from chutes_autopilot.wire.sse import Verdict

RESPONSES_ENDS = frozenset({"response.completed", "response.failed", "response.incomplete"})
MESSAGES_ENDS = frozenset({"message_stop"})
"""The types after which nothing more is to come."""

KEPT_BYTES = 512
"""How much is kept of the beginning of a line, and of its end."""

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")
_TYPE_FIRST = re.compile(rb'\s*\{\s*"type"\s*:\s*"([a-z_.]{1,64})"')
_TYPE_LAST = re.compile(rb'"type"\s*:\s*"([a-z_.]{1,64})"\s*\}\s*\Z')


class _Event(msgspec.Struct, gc=False):
    type: Any = None
    error: Any = None


_EVENT = msgspec.json.Decoder(_Event)


class TypedStreamGuard:
    """Tells whether a stream ended where it should; what wire.sse.StreamGuard is for chunks of chat.

    An event that is not followed by its blank line was never dispatched by the client's parser and counts for nothing.

    :param ends: the types of events that end a stream.
    """

    __slots__ = ("_after_cr", "_ends", "_first", "_has_data", "_line", "_name", "_tail", "_type", "_verdict")

    def __init__(self, ends: frozenset[str]) -> None:
        self._ends = ends
        self._verdict: Verdict = "unfinished"
        self._first = True  # the stream's first line, the only one that may begin with a byte order mark
        self._after_cr = False  # the last piece ended with a CR; an LF that follows belongs to it
        self._line = b""  # how the open line begins
        self._tail = b""  # how it ends, where it is longer
        self._name = self._type = ""  # of the event that is open, by its field and by its data
        self._has_data = False

    def feed(self, data: bytes) -> bool:
        """Take the next piece, of any size; returns whether it has bytes of a data line, not only of comments."""
        if data:
            after_cr, self._after_cr = self._after_cr, data.endswith(b"\r")
            if after_cr and data[:1] == b"\n":
                data = data[1:]
        *lines, rest = _LINE_END.split(data)
        alive = False
        for line in lines:
            self._extend(line)
            alive = self._line.startswith(b"data:") or alive
            self._end_line()
        self._extend(rest)
        return alive or (bool(rest) and self._line.startswith(b"data:"))

    def verdict(self) -> Verdict:
        """How far the stream came with the pieces so far."""
        return self._verdict

    def completion_tokens(self) -> None:
        """Not counted here: the paces of these streams are not compared with those of chat."""

    def error_event(self, error: ApiError) -> bytes:
        """An error as an event of its own, in a form that the clients of both APIs raise.

        The Responses API has code and message beside ``type``, the Messages API (and what OpenAI's own client looks
        for) has an object ``error``.
        """
        said = json.loads(error.body())["error"]
        data = {"type": "error", "code": error.code, "message": error.message, "param": error.param, "error": said}
        return b"\n\nevent: error\ndata: " + json.dumps(data).encode() + b"\n\n"

    def _extend(self, data: bytes) -> None:
        room = KEPT_BYTES - len(self._line)
        if room > 0:
            self._line += data[:room]
            data = data[room:]
        if data:
            self._tail = (self._tail + data[-KEPT_BYTES:])[-KEPT_BYTES:]

    def _end_line(self) -> None:
        line, tail = self._line, self._tail
        self._line = self._tail = b""
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        if not line:
            self._end_event()
        elif line.startswith(b"event:"):
            self._name = line[6:].strip().decode("latin-1")
        elif line.startswith(b"data:"):
            self._has_data = True
            if line.startswith((b"data: [DONE]", b"data:[DONE]")):
                self._verdict = "done"
            self._type = _type_of(line[5:], tail) or self._type

    def _end_event(self) -> None:
        if self._has_data and self._verdict == "unfinished":
            if self._name in self._ends or self._type in self._ends:
                self._verdict = "done"
            elif "error" in (self._name, self._type):
                self._verdict = "error"
        self._name = self._type = ""
        self._has_data = False


def _type_of(data: bytes, tail: bytes) -> str:
    """The ``type`` that an event's data names, "error" also where it has a member of that name; else empty.

    :param tail: how a line ends of which only the beginning and the end were kept.
    """
    if tail:
        found = _TYPE_FIRST.match(data) or _TYPE_LAST.search((data + tail)[-KEPT_BYTES:])
        return "" if found is None else found[1].decode()
    try:
        event = _EVENT.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    if event.error:
        return "error"
    return event.type if isinstance(event.type, str) else ""
