"""One replica asks the platform, the others read what it got."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from attrs import define, field
from twisted.internet.defer import Deferred

from chutes_autopilot.control.refresh import Fetched, NothingNewer
from chutes_autopilot.upstream.fetch import FetchError

FAILURES = 2
"""So many fetches in a row that fail make a replica leave the asking to another."""

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

        has the lock ───────────────────────▶ asks, and shares the answer
        has not, the store has a newer one ─▶ takes that
        has not, its own is recent ─────────▶ NothingNewer
        has not, its own is old or missing ─▶ asks: whoever has the lock gets nothing, or there is no store

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
    _failures: int = field(init=False, default=0)

    async def fetch(self) -> Fetched:
        """The newest answer; raises FetchError, and NothingNewer where the last one is still the newest."""
        await self._bodies.settled()
        if not self._usable() or self._lock.held:
            return await self._asked()
        shared = await self._bodies.get(self._name, self._latest)
        if shared is not None and shared.at <= self._now() + self._interval:
            return self._took(Fetched(shared.body, shared.at))
        if self._now() - self._latest < PATIENCE * self._interval:
            raise NothingNewer
        return await self._asked()

    async def _asked(self) -> Fetched:
        try:
            fetched = self._took(Fetched(await self._fetch(), self._now()))
        except FetchError:
            self._failures += 1
            if self._failures >= FAILURES and self._lock.held:
                self._failures = 0
                self._lock.resign()
            raise
        self._failures = 0
        self._bodies.share(self._name, fetched.body, fetched.at, 4 * self._interval)
        return fetched

    def _took(self, fetched: Fetched) -> Fetched:
        self._latest = fetched.at
        return fetched
