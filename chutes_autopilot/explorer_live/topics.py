"""What subscribers follow, each topic in one bounded memory that all of them share: none has a queue of its own.

A subscriber is a number per topic, the version it has seen. Asked for what it misses, a topic answers with one message:
only what changed where that leads there, else all there is.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import msgspec
from attrs import define, field, frozen

Json = dict[str, Any]


@frozen
class Message:
    """One message, encoded once for all who get it.

    :param id: distinct within the process.
    :param data: JSON.
    """

    topic: str
    id: str
    data: bytes = field(repr=False)

    @cached_property
    def sse(self) -> bytes:
        """As a server-sent event (WHATWG HTML, section 9.2); JSON has no line ends of its own."""
        return b"event: %b\nid: %b\ndata: %b\n\n" % (self.topic.encode(), self.id.encode(), self.data)

    @cached_property
    def text(self) -> str:
        """As a WebSocket message: ``{"event", "id", "data"}``."""
        head = f'{{"event":"{self.topic}","id":"{self.id}","data":'
        return head + self.data.decode() + "}"


@frozen
class Bundle:
    """What a subscriber is sent in one go, joined once for all who get the same."""

    messages: tuple[Message, ...]

    @cached_property
    def sse(self) -> bytes:
        """As server-sent events."""
        return b"".join(message.sse for message in self.messages)

    @cached_property
    def chunk(self) -> bytes:
        """The same as one chunk of a body (RFC 9112, section 7.1)."""
        return b"%x\r\n%b\r\n" % (len(self.sse), self.sse)


class Topic(Protocol):
    """Something that subscribers follow."""

    name: str

    @property
    def version(self) -> int:
        """Counts the changes; 0: there was nothing yet."""

    def update(self, *, at_once: bool = False) -> None:
        """Look whether there is something new.

        :param at_once: also where it would be looked for later only, to spare those who follow.
        """

    def message_after(self, seen: int) -> Message | None:
        """What leads from the version seen to the current one; from 0: everything. None where there is nothing."""


@define(eq=False)
class Table:
    """Rows by key, of which the current state counts: ``{"full", ..., "rows": [...], "gone": [keys]}``.

    :param stamp: equal as long as nothing can have changed, and cheap to get.
    :param read: members of the message's own, and the rows by key.
    :param every: look at each so many updates only, where something changes with every request.
    """

    name: str
    _stamp: Callable[[], object]
    _read: Callable[[], tuple[Json, Mapping[str, Json]]]
    _every: int = 1
    _updates: int = field(default=0, init=False)
    version: int = field(default=0, init=False)
    _stamp_read: object = field(default=None, init=False)
    _head: Json = field(factory=dict, init=False)
    _rows: Mapping[str, Json] = field(factory=dict, init=False)
    _full: Message | None = field(default=None, init=False)
    _delta: Message | None = field(default=None, init=False)

    def update(self, *, at_once: bool = False) -> None:
        """Read the rows anew where they may have changed."""
        self._updates += 1
        if self.version and self._updates % self._every and not at_once:
            return
        stamp = self._stamp()
        if self.version and stamp == self._stamp_read:
            return
        head, rows = self._read()
        self._stamp_read = stamp
        if self.version and rows == self._rows and head == self._head:
            return
        changed = [row for key, row in rows.items() if self._rows.get(key) != row]
        gone = [key for key in self._rows if key not in rows]
        self.version += 1
        self._head, self._rows, self._full = head, rows, None
        self._delta = self._message({"full": False, **head, "rows": changed, "gone": gone})

    def message_after(self, seen: int) -> Message | None:
        """The delta for who has seen the version before this one, else the full table."""
        if seen == self.version:
            return None
        if seen == self.version - 1 and seen > 0:
            return self._delta
        if self._full is None:
            self._full = self._message({"full": True, **self._head, "rows": list(self._rows.values()), "gone": []})
        return self._full

    def _message(self, data: Json) -> Message:
        return Message(self.name, f"{self.name}-{self.version}", msgspec.json.encode(data))


@define(eq=False)
class Occurrences:
    """Things that happen, each of which counts: ``{"full", "items": [oldest first]}``, the last ones only.

    :param count: how many happened so far.
    :param recent: up to so many of the last, the newest first.
    :param limit: most items of a message; who has missed more gets the last ones, as ``full``.
    """

    name: str
    _count: Callable[[], int]
    _recent: Callable[[int], Sequence[Json]]
    _limit: int = 50
    version: int = field(default=0, init=False)
    _items: Sequence[Json] = field(default=(), init=False)
    _made: deque[tuple[int, Message]] = field(factory=lambda: deque(maxlen=8), init=False)

    def update(self, *, at_once: bool = False) -> None:
        """See what happened."""
        version = self._count() + 1  # so that nobody who has seen none is taken for one who is new
        if version != self.version:
            self.version = version
            self._items = self._recent(self._limit)
            self._made.clear()

    def message_after(self, seen: int) -> Message | None:
        """What happened since; for who is new, the last things that did."""
        if seen == self.version:
            return None
        for made_after, message in self._made:
            if made_after == seen:
                return message
        missed = self.version - seen
        full = seen == 0 or missed > self._limit
        items = list(reversed(self._items if full else self._items[:missed]))
        message = Message(self.name, f"{self.name}-{self.version}", msgspec.json.encode({"full": full, "items": items}))
        self._made.append((seen, message))
        return message


def up_to(limit: int, items: Iterable[Any], as_json: Callable[[Any], Json]) -> tuple[Json, ...]:
    """The first items as JSON."""
    return tuple(as_json(item) for _, item in zip(range(limit), items, strict=False))
