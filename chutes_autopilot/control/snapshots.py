"""What the service knows of the platform at one moment, and how the next moment takes its place.

A request reads ``holder.current`` once and keeps it; the router, the model list, readiness and the pages that explain
a choice all look at the same object.
"""

from typing import Any, Protocol

from attrs import define, evolve, field, frozen
from twisted.internet.defer import DeferredLock
from twisted.internet.interfaces import IReactorTime

from chutes_autopilot.control.slices import in_slices
from chutes_autopilot.policy.catalog import Catalog
from chutes_autopilot.policy.model_offers import Offers, offers_in_slices
from chutes_autopilot.policy.ranking import Ranked, rank_in_slices
from chutes_autopilot.policy.utilization import UtilizationFeed, UtilizationRow


@frozen
class Snapshot:
    """The last known good of everything, consistent in itself.

    :param id: counts the snapshots of this process; 0 is the empty one it starts with.
    :param catalog: None until the first one has come.
    :param catalog_fetched_at: when the catalog was last fetched, in the clock's seconds; None until then.
    :param feed_fetched_at: the same of the feed.
    :param ranking: the candidates, best first.
    :param feed_rows: named chutes in the feed.
    :param feed_skipped: malformed records in the feed.
    :param offers: what the models of the catalog can do.
    """

    id: int = 0
    catalog: Catalog | None = None
    catalog_fetched_at: float | None = None
    feed_fetched_at: float | None = None
    ranking: tuple[Ranked, ...] = ()
    feed_rows: int = 0
    feed_skipped: int = 0
    offers: Offers = field(factory=Offers, eq=False, repr=False)
    ranked_models: tuple[str, ...] = field(init=False, eq=False, repr=False)
    """The names of the candidates, best first."""

    @ranked_models.default
    def _ranked_models(self) -> tuple[str, ...]:
        return tuple(ranked.model for ranked in self.ranking)

    def catalog_age(self, now: float) -> float | None:
        """Seconds since the catalog was fetched, or None; never below 0, for the wall clock may be set back."""
        return None if self.catalog_fetched_at is None else max(0.0, now - self.catalog_fetched_at)

    def feed_age(self, now: float) -> float | None:
        """Seconds since the feed was fetched, or None; never below 0."""
        return None if self.feed_fetched_at is None else max(0.0, now - self.feed_fetched_at)


def readiness(snapshot: Snapshot, now: float, max_snapshot_age: float, max_allowlist_age: float) -> str | None:
    """The first reason why the service should get no traffic, as an error code, or None where there is none.

    It is advice to whoever balances the load: a stale snapshot still routes.

    :param max_snapshot_age: of the feed, in seconds.
    :param max_allowlist_age: of the catalog, in seconds.
    """
    catalog_age, feed_age = snapshot.catalog_age(now), snapshot.feed_age(now)
    if snapshot.catalog is None or catalog_age is None:
        return "missing_allowlist"
    if not snapshot.catalog.ids:
        return "allowlist_empty"
    if catalog_age > max_allowlist_age:
        return "stale_allowlist"
    if feed_age is None or not snapshot.ranking:
        return "not_ready"
    if feed_age > max_snapshot_age:
        return "stale_snapshot"
    return None


class Snapshots(Protocol):
    """Where the current snapshot is found; `SnapshotHolder`, or a view of one."""

    @property
    def current(self) -> Snapshot:
        """The snapshot as it is now."""


@define(eq=False)
class SnapshotHolder:
    """Where the current snapshot is found; replaced whole, never changed."""

    current: Snapshot = field(factory=Snapshot)


@define(eq=False)
class SnapshotBuilder:
    """Makes the next snapshot out of a new catalog or a new feed and the rest of the last one.

    Ranking takes several turns of the reactor, in which the other source may bring something too. So they take turns:
    each ranks with what was newest when its turn came, nothing older can overwrite anything newer, and what is
    cancelled on the way leaves no trace.
    """

    _holder: SnapshotHolder
    _clock: IReactorTime
    _rows: tuple[UtilizationRow, ...] = field(default=(), init=False)
    _turn: DeferredLock = field(factory=DeferredLock, init=False)

    @property
    def current(self) -> Snapshot:
        """The snapshot as it is now."""
        return self._holder.current

    async def take_catalog(self, catalog: Catalog, fetched_at: float) -> None:
        """Make a new catalog the current one and rank the last feed again by it."""
        async with self._turn:
            offers = await in_slices(self._clock, offers_in_slices(catalog))
            await self._swap(self._rows, catalog=catalog, catalog_fetched_at=fetched_at, offers=offers)

    async def take_feed(self, feed: UtilizationFeed, fetched_at: float) -> None:
        """Rank a new feed by the current catalog."""
        async with self._turn:
            await self._swap(feed.rows, feed_fetched_at=fetched_at, feed_rows=len(feed.rows), feed_skipped=feed.skipped)

    async def _swap(self, rows: tuple[UtilizationRow, ...], **changes: Any) -> None:
        last = self._holder.current
        following = evolve(last, id=last.id + 1, **changes)
        ranking = await in_slices(self._clock, rank_in_slices(rows, following.catalog))
        self._rows = rows
        self._holder.current = evolve(following, ranking=ranking)
