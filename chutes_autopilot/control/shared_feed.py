"""One replica asks the platform, the others read what it got."""

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from attrs import define, field
from twisted.internet.defer import Deferred

from chutes_autopilot.control.refresh import Fetched, NothingNewer
from chutes_autopilot.upstream.fetch import FetchError

FAILURES = 2
"""So many fetches in a row that fail or bring nothing usable make a replica leave the asking to another."""

PATIENCE = 2.5
"""Intervals for which a replica waits for whoever has the lock. A new holder is there by then, but for the worst of
cases. And as polls are up to 1.1 intervals apart, it has asked before what it has is 3.6 old: there is time for the
fetch before /readyz, which is to bear four, finds it stale."""


class Lock(Protocol):
    """Whether it is this replica that asks (storage.redis_lock)."""

    @property
    def held(self) -> bool: ...

    def resign(self) -> None: ...


class Body(Protocol):
    """An answer of the platform, and when it was fetched."""

    @property
    def body(self) -> bytes: ...

    @property
    def at(self) -> float: ...


class Bodies(Protocol):
    """Where answers are shared (storage.shared_bodies)."""

    def settled(self) -> Awaitable[None]: ...

    def get(self, name: str, newer_than: float = 0.0, /) -> Awaitable[Body | None]: ...

    def share(self, name: str, body: bytes, at: float, lifetime: float, /) -> None: ...


@define(eq=False)
class SharedFetch:
    """A fetch of the catalog or of the feed that asks the platform only where nobody else does.

    ::

        has the lock ───────────────────────▶ asks, and shares the answer once it was judged usable
        has not, the store has a newer one ─▶ takes that
        has not, its own is recent ─────────▶ NothingNewer
        has not, its own is old or missing ─▶ asks: whoever has the lock gets nothing, or there is no store

    Its own is the last one that was judged usable. Where that is old and the last one in the store was of no use, it
    asks first; while asking brings nothing either, it does the one and the other in turn.

    :param name: of the answer in the store.
    :param interval: seconds between two fetches.
    :param usable: whether there is a store now.
    """

    _fetch: Callable[[], Coroutine[Deferred[Any], Any, bytes]]
    _bodies: Bodies
    _lock: Lock
    _name: str
    _interval: float
    _usable: Callable[[], bool]
    _now: Callable[[], float]
    _latest: float = field(init=False, default=0.0)
    _read: float = field(init=False, default=0.0)
    _read_in_vain: bool = field(init=False, default=False)
    _failures: int = field(init=False, default=0)

    async def fetch(self) -> Fetched:
        """The newest answer; raises FetchError, and NothingNewer where the last one is still the newest.

        Whoever takes it says by its ``judged`` whether it could be used: only such a one is shared.
        """
        await self._bodies.settled()
        if not self._usable() or self._lock.held:
            return await self._asked()
        old = self._now() - self._latest >= PATIENCE * self._interval
        if not (old and self._read_in_vain):
            shared = await self._bodies.get(self._name, max(self._latest, self._read))
            if shared is not None and shared.at <= self._now() + self._interval:
                self._read = shared.at
                return Fetched(shared.body, shared.at, partial(self._judged_shared, shared.at))
        if not old:
            raise NothingNewer
        return await self._asked()

    async def _asked(self) -> Fetched:
        try:
            body = await self._fetch()
        except FetchError:
            self._failed()
            raise
        at = self._now()
        return Fetched(body, at, partial(self._judged, body, at))

    def _judged(self, body: bytes, at: float, usable: bool) -> None:
        if not usable:
            self._failed()
            return
        self._failures, self._latest, self._read_in_vain = 0, at, False
        self._bodies.share(self._name, body, at, 4 * self._interval)

    def _judged_shared(self, at: float, usable: bool) -> None:
        self._read_in_vain = not usable
        if usable:
            self._latest = at

    def _failed(self) -> None:
        self._failures, self._read_in_vain = self._failures + 1, False
        if self._failures >= FAILURES and self._lock.held:
            self._failures = 0
            self._lock.resign()
