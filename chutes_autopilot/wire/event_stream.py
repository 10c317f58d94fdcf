"""Server-sent events, read whole: for whoever has to change what an event says, not only to pass it on.

It works on bytes and never on decoded text, so that only CR LF, LF and CR end a line and never U+2028, U+0085 or their
like. The format: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
"""

from collections.abc import Iterable

_BOM = b"\xef\xbb\xbf"
_LF, _CR = b"\n\r"
"""As numbers: to look for bytes with ``in`` raises an error inside first, and takes many times as long."""
_DATA = b"data:"
_BEFORE_VALUE = len(_BOM) + len(_DATA) + 1


class EventTooLarge(ValueError):
    """An event over the limit; its text is a constant, for the event may hold anything.

    :param events: the events that were complete before it in the same piece.
    """

    def __init__(self, events: list[bytes]) -> None:
        super().__init__("an event is larger than the limit")
        self.events = events


class EventParser:
    """Takes a stream in pieces of any size and gives the data of each event.

    Fields other than ``data`` are discarded. What is kept is one unfinished line and the data lines of one unfinished
    event, both bounded. A CR at the end of a piece waits for the next byte, which may belong to it.

    :param max_event_bytes: the longest data of one event; an unfinished line of any kind is bounded by it as well.
    """

    __slots__ = ("_data", "_data_bytes", "_first", "_held_cr", "_limit", "_open", "_open_bytes", "comments")

    def __init__(self, *, max_event_bytes: int) -> None:
        self._limit = max_event_bytes
        self._open: list[bytes] = []  # the pieces of the unfinished line, joined once it ends
        self._open_bytes = 0
        self._held_cr = False
        self._first = True  # the stream's first line, the only one that may begin with a byte order mark
        self._data: list[bytes] = []
        self._data_bytes = -1  # of the lines in _data with the line feeds between them
        self.comments = 0
        """Comments seen; servers send them to keep a connection alive."""

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that these bytes complete, lines joined with LF; raises EventTooLarge."""
        if _LF in data or _CR in data or self._held_cr:
            text = b"".join((*self._open, b"\r" if self._held_cr else b"", data))
            self._held_cr = text.endswith(b"\r")
            if _CR in text:
                text = text.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            *lines, data = text.split(b"\n")
            self._open.clear()
            self._open_bytes = 0
            events = self._read(lines)
        else:
            events = []
        if data:
            self._open.append(data)
            self._open_bytes += len(data)
            if self._open_bytes > self._limit + _BEFORE_VALUE:
                raise EventTooLarge(events)
        return events

    def end(self) -> list[bytes]:
        """The event that the body's clean end completes, if there is one, also where its last line was left open."""
        return self._read([b"".join(self._open), b""])

    def _read(self, lines: Iterable[bytes]) -> list[bytes]:
        events: list[bytes] = []
        for line in lines:
            if self._first:
                self._first = False
                line = line.removeprefix(_BOM)
            if line.startswith(_DATA) or line == b"data":
                value = line[6:] if line.startswith(b" ", 5) else line[5:]
                self._data_bytes += 1 + len(value)
                if self._data_bytes > self._limit:
                    raise EventTooLarge(events)
                self._data.append(value)
            elif not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data.clear()
                    self._data_bytes = -1
            elif line.startswith(b":"):
                self.comments += 1
        return events
