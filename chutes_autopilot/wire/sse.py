"""Server-sent events as far as a relay must understand them: whether a stream of chat chunks came to its end.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from chutes_autopilot.errors import ApiError

WINDOW_BYTES = 2048
"""How much of a stream's end decides; the last chunk, the usage chunk and ``[DONE]`` have about 700 bytes."""

_BOM = b"\xef\xbb\xbf"
_LF, _CR = b"\n\r"
"""As numbers: to look for bytes with ``in`` raises an error inside first, and takes many times as long."""
_USUAL_END = b"\n\ndata: [DONE]\n\n"
EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
"""A line's end and the blank line behind it; a CR at the end of the bytes counts as a whole one."""
_DATA = re.compile(rb"(?:\A|[\r\n])data: ?([^\r\n]*)")
_DONE_LINE = re.compile(rb"(?:\A|[\r\n])data: ?\[DONE\]")
_BARE_ERROR_LINE = re.compile(rb'(?:\A|[\r\n])[ \t]*\{\s*"error"\s*:')
_BARE_ERROR = re.compile(rb'\{\s*"error"\s*:')
_FINISH = re.compile(rb'"finish_reason"\s*+:\s*+(?!null|"")')

_COMPLETION_TOKENS = re.compile(rb'"completion_tokens"\s*+:\s*+([0-9]{1,9})')

Verdict = Literal["done", "error", "finished", "error_tail", "unfinished"]
"""How far a stream came.

``done``: ``[DONE]`` came. ``error``: an event with an ``error`` came, which clients raise. ``finished``: a choice had
its ``finish_reason``, the ``[DONE]`` is missing. ``error_tail``: the platform's bare ``{"error": ...}`` came, which no
client sees. ``unfinished``: nothing of these.
"""


def is_plain_event_stream(status: int, index: Mapping[bytes, bytes]) -> bool:
    """Whether a response is a stream of events whose bytes can be read: a 2xx with a body and without a coding.

    :param index: its header values by lower-case name.
    """
    kind = index.get(b"content-type")
    if kind is None or kind == b"application/json":
        return False
    if not 200 <= status < 300 or status == 204 or b"content-encoding" in index:
        return False
    return kind.partition(b";")[0].strip().lower() == b"text/event-stream"


class StreamGuard:
    """Tells whether a chat stream ended where it should, from its last bytes alone.

    It sees every piece of every stream, so `feed` only keeps the last pieces, at most twice WINDOW_BYTES, and looks
    into them no further than their first bytes. Events are parsed once, by `verdict`. An event that is not followed
    by its blank line was never dispatched by the client's parser and counts for nothing, but for ``[DONE]``.
    """

    __slots__ = ("_kept", "_size", "_whole")

    def __init__(self) -> None:
        self._kept: list[bytes] = []
        self._size = 0
        self._whole = True  # what is kept is the whole stream

    def feed(self, data: bytes) -> bool:
        """Take the next piece, of any size; returns whether it has bytes of a data line, not only of comments."""
        alive = data.startswith(b"data:") or self._goes_on_with_data(data)
        self._kept.append(data)
        self._size += len(data)
        if self._size > 2 * WINDOW_BYTES:
            self._kept = [self._last(WINDOW_BYTES)]
            self._size = WINDOW_BYTES
            self._whole = False
        return alive

    def verdict(self) -> Verdict:
        """How far the stream came with the pieces so far."""
        window = b"".join(self._kept)
        if window.endswith(_USUAL_END):
            return "done"
        if self._whole:
            window = window.removeprefix(_BOM)
        *events, rest = EVENT_END.split(window) if _CR in window else window.split(b"\n\n")
        verdict: Verdict = "unfinished"
        if events and not self._whole:
            oldest = events.pop(0)  # its start is missing, so it cannot be parsed
            verdict = "finished" if _FINISH.search(oldest) else "unfinished"
        for event in events:
            match _said_by(b"\n".join(_DATA.findall(event))):
                case "done" | "error" as last:
                    return last
                case "finished" if verdict == "unfinished":
                    verdict = "finished"
            if b'"error"' in event and _BARE_ERROR_LINE.search(event):
                verdict = "error_tail"
        if _DONE_LINE.search(rest):
            return "done"
        return "error_tail" if _BARE_ERROR.search(rest) else verdict

    def error_event(self, error: ApiError) -> bytes:
        """An error as an event of its own, whatever came before it.

        The two line feeds end a line that was left open, and with it the event it belongs to.
        """
        return b"\n\ndata: " + error.body() + b"\n\n"

    def completion_tokens(self) -> int | None:
        """How many tokens the answer had, where its last events say so (``usage.completion_tokens``)."""
        found = _COMPLETION_TOKENS.findall(b"".join(self._kept))
        return int(found[-1]) if found else None

    def _last(self, size: int) -> bytes:
        newest = self._kept[-1]
        return newest[-size:] if len(newest) >= size else b"".join(self._kept)[-size:]

    def _goes_on_with_data(self, data: bytes) -> bool:
        """Whether a data line begins in these bytes, or was left open by the pieces before."""
        if b"\ndata:" in data or b"\rdata:" in data:
            return True
        newest = self._kept[-1] if self._kept else b""
        if newest.startswith(b"data:") and _LF not in newest and _CR not in newest:
            return True
        window = b"".join(self._kept)
        line_start = max(window.rfind(b"\n"), window.rfind(b"\r")) + 1
        if line_start == 0 and not self._whole:
            return True  # no comment is that long
        line = window[line_start:] + data
        if line_start == 0:
            line = line.removeprefix(_BOM)
        return line.startswith(b"data:")


def _said_by(data: bytes) -> Verdict:
    """What one event says of the stream's end."""
    if data.startswith(b"[DONE]"):
        return "done"
    try:
        chunk: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "unfinished"
    if not isinstance(chunk, dict):
        return "unfinished"
    if chunk.get("error"):
        return "error"
    choices = chunk.get("choices")
    if isinstance(choices, list) and any(isinstance(c, dict) and c.get("finish_reason") for c in choices):
        return "finished"
    return "unfinished"
