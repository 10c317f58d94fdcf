"""One refresh of the catalog or of the feed: fetched, parsed and believed, or the last known good kept."""

from abc import abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Literal, Protocol, get_args

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from chutes_autopilot.control.slices import in_slices
from chutes_autopilot.control.snapshots import SnapshotBuilder
from chutes_autopilot.observe import events
from chutes_autopilot.policy.catalog import parse_catalog_in_slices
from chutes_autopilot.policy.feed_json import FeedError
from chutes_autopilot.policy.utilization import parse_utilization_in_slices
from chutes_autopilot.upstream.fetch import FetchError, FetchReason

OUTCOMES = ("ok", *get_args(FetchReason), "empty", "unchanged")
"""How a refresh can end: a closed set, for metrics. ``empty`` is an empty list that is not yet believed, ``unchanged``
where another replica asks and has nothing newer yet."""

RETRY_SECONDS = 5.0
"""How soon a source is asked again that has not been known since the start."""

RefreshState = Literal["ready", "failed", "recovered"]


def _nobody_asks(_usable: bool) -> None:
    pass


@frozen
class Fetched:
    """A source's answer that did not come just now, or that somebody waits to hear of.

    :param at: when it came, in the clock's seconds.
    :param judged: told whether the answer could be used and is in force now.
    """

    body: bytes = field(repr=False)
    at: float
    judged: Callable[[bool], object] = field(default=_nobody_asks, eq=False, repr=False)


class NothingNewer(Exception):
    """What was fetched last is still the newest."""


class RefreshObserver(Protocol):
    """Who wants to know how the refreshes go: metrics and the log."""

    def refreshed(self, source: str, outcome: str, seconds: float) -> None:
        """A refresh has ended.

        :param source: ``catalog`` or ``utilization``.
        :param outcome: one of OUTCOMES.
        """

    def state_changed(self, source: str, state: RefreshState, detail: str) -> None:
        """A refresh ended unlike the one before it: worth a line in the log.

        :param state: ``ready`` (the first ever success), ``failed`` (or failing for another reason now) or
            ``recovered``.
        :param detail: counts or the reason, for people; holds no secret.
        """


class BodyListener(Protocol):
    """Who reads the same answers for a purpose of its own, once the routing has them; it must return soon."""

    def fetched(self, source: str, body: bytes, at: float) -> None:
        """An answer is in force.

        :param source: ``catalog`` or ``utilization``.
        :param at: when it came, in the clock's seconds.
        """

    def failed(self, source: str, reason: str) -> None:
        """There is no new answer, or it was not believed.

        :param reason: for people; holds no secret.
        """


@define(eq=False)
class _Refresh:
    """What both refreshes share: no failure gets out, and the observer hears of each end and each change.

    :param fetch: brings the source's answer; raises FetchError or NothingNewer.
    :param listener: told last, so that it delays no routing.
    """

    _fetch: Callable[[], Coroutine[Deferred[Any], Any, bytes | Fetched]]
    _snapshots: SnapshotBuilder
    _clock: IReactorTime
    _observer: RefreshObserver
    _listener: BodyListener | None = None
    _last_outcome: str | None = field(default=None, init=False)
    _ever_ok: bool = field(default=False, init=False)
    _empty_seen: bool = field(default=False, init=False)

    source: ClassVar[str]

    async def refresh(self) -> None:
        """Fetch once and take what came, or keep what there is. Only cancellation gets out."""
        started = self._clock.seconds()
        fetched = Fetched(b"", started)
        try:
            got = await self._fetch()
            fetched = got if isinstance(got, Fetched) else Fetched(got, self._clock.seconds())
            outcome, detail = "ok", await self._take(fetched.body, fetched.at)
            fetched.judged(True)
        except NothingNewer:
            self._observer.refreshed(self.source, "unchanged", max(0.0, self._clock.seconds() - started))
            return
        except (FetchError, FeedError) as error:
            outcome, detail = error.reason, f"{error.reason}: {error}"
            fetched.judged(False)
        self._observer.refreshed(self.source, outcome, max(0.0, self._clock.seconds() - started))
        if outcome != self._last_outcome:
            self._last_outcome = outcome
            self._observer.state_changed(self.source, self._state(outcome), detail)
        self._ever_ok = self._ever_ok or outcome == "ok"
        if self._listener is not None:
            try:
                if outcome == "ok":
                    self._listener.fetched(self.source, fetched.body, fetched.at)
                else:
                    self._listener.failed(self.source, detail)
            except Exception:  # noqa: BLE001 - reported; nothing that listens may end the refreshes
                events.failed_unexpectedly(Failure(), "passing a refresh on")

    async def refresh_until_known(self) -> None:
        """Fetch once; as long as nothing was ever known, again every RETRY_SECONDS."""
        await self.refresh()
        while not self._ever_ok:
            await deferLater(self._clock, RETRY_SECONDS)
            await self.refresh()

    def _state(self, outcome: str) -> RefreshState:
        if outcome != "ok":
            return "failed"
        return "recovered" if self._ever_ok else "ready"

    def _believe(self, count: int, last_count: int) -> None:
        """Raise FeedError for the first empty list where there was one that was not; a second one is believed."""
        doubtful = count == 0 and last_count > 0 and not self._empty_seen
        self._empty_seen = count == 0
        if doubtful:
            raise FeedError(f"an empty list after one of {last_count}, not believed until it comes again", "empty")

    @abstractmethod
    async def _take(self, body: bytes, fetched_at: float) -> str:
        """Parse the body and make it the current state; what it held, for people. Raises FeedError."""


@define(eq=False)
class CatalogRefresh(_Refresh):
    """Keeps the allowlist up to date."""

    source: ClassVar[str] = "catalog"

    async def _take(self, body: bytes, fetched_at: float) -> str:
        catalog = await in_slices(self._clock, parse_catalog_in_slices(body))
        last = self._snapshots.current.catalog
        self._believe(len(catalog.entries), len(last.entries) if last else 0)
        await self._snapshots.take_catalog(catalog, fetched_at)
        taken = f"{len(catalog.entries)} models, {catalog.skipped} records skipped"
        now = self._snapshots.current
        return taken if now.feed_fetched_at is None else f"{taken}, {len(now.ranking)} candidates"


@define(eq=False)
class UtilizationRefresh(_Refresh):
    """Keeps the ranking up to date."""

    source: ClassVar[str] = "utilization"

    async def _take(self, body: bytes, fetched_at: float) -> str:
        feed = await in_slices(self._clock, parse_utilization_in_slices(body))
        self._believe(len(feed.rows), self._snapshots.current.feed_rows)
        await self._snapshots.take_feed(feed, fetched_at)
        candidates = len(self._snapshots.current.ranking)
        return f"{len(feed.rows)} chutes, {feed.skipped} records skipped, {candidates} candidates"
