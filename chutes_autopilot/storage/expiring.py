"""Things that can be asked for during a while after they were made, in this process."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from attrs import define, field

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@define(eq=False)
class ExpiringStore(Generic[K, V]):
    """Keeps values for some time and forgets the oldest when full; every operation takes constant time on average.

    An expired value goes when it is asked for or at a later put, so no timer is needed.

    :param ttl: seconds a value lives after it was put.
    :param max_entries: how many are kept; the one put longest ago goes first.
    :param now: the clock, in seconds.

    Both bounds may be changed at any time.
    """

    ttl: float
    max_entries: int
    _now: Callable[[], float]
    _entries: OrderedDict[K, tuple[float, V]] = field(init=False, factory=OrderedDict)

    def get(self, key: K) -> V | None:
        """The value last put under this key, None where there is none or it is too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        put_at, value = entry
        if self._now() - put_at >= self.ttl:
            del self._entries[key]
            return None
        return value

    def put(self, key: K, value: V) -> None:
        """Keep a value, in the place of an older one; its time begins now."""
        now = self._now()
        self._entries.pop(key, None)
        self._entries[key] = (now, value)
        while self._entries and (len(self._entries) > self.max_entries or self._oldest_put() <= now - self.ttl):
            self._entries.popitem(last=False)

    def _oldest_put(self) -> float:
        return next(iter(self._entries.values()))[0]

    def __len__(self) -> int:
        return len(self._entries)
