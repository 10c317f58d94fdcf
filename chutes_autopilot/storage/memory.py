"""State of one process, gone with it."""

from collections import OrderedDict
from collections.abc import Callable

from attrs import define, field
from zope.interface import implementer

from chutes_autopilot.interfaces import IStickyStore
from chutes_autopilot.policy.stickiness import StickyChoice


@implementer(IStickyStore)
@define(eq=False)
class MemoryStickyStore:
    """Remembers the clients used last; every operation takes constant time.

    An expired entry goes when it is asked for or when the bound pushes it out, so no timer is needed.

    :param ttl: seconds an entry lives after it was put; 0 switches the store off.
    :param max_entries: how many clients are remembered; the one not used for longest goes first; 0 is off too.
    :param now: the clock, in seconds.

    Both bounds may be changed at any time.
    """

    ttl: float
    max_entries: int
    _now: Callable[[], float]
    _entries: OrderedDict[bytes, tuple[float, StickyChoice]] = field(init=False, factory=OrderedDict)

    def get(self, key: bytes) -> StickyChoice | None:
        """The choice last put under this client key, None where there is none or it is too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        put_at, choice = entry
        if self._now() - put_at >= self.ttl:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return choice

    def put(self, key: bytes, choice: StickyChoice) -> None:
        """Remember a choice and start its time to live anew; push out the client not used for longest."""
        if self.ttl <= 0:
            return
        self._entries[key] = (self._now(), choice)
        self._entries.move_to_end(key)
        while len(self._entries) > self.max_entries:
            self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)
