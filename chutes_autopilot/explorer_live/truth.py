"""The one merged state that everything of the explorer shows, and what happened since the one before it."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from attrs import evolve, field, frozen
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from chutes_autopilot.explorer.changes import Change, Watch, observe
from chutes_autopilot.explorer.listing import Listing
from chutes_autopilot.explorer.loads import Loads
from chutes_autopilot.explorer.matching import Fuzzy
from chutes_autopilot.explorer.merge import Merged, merge
from chutes_autopilot.explorer.models import ModelList
from chutes_autopilot.explorer.records import CHUTES, UTILIZATION, V1, Source
from chutes_autopilot.explorer.report import Freshness
from chutes_autopilot.explorer_live.sources import Sources, SourceSnapshot
from chutes_autopilot.observe import events
from chutes_autopilot.storage.disk_cache import InThread
from chutes_autopilot.storage.watch_file import WatchFile

RECENT_CHANGES = 500
"""Changes kept in memory."""

THREAD_RECORDS = 40
"""More records than these, some milliseconds of work, are merged in a thread."""

_CATALOGS: tuple[Source, ...] = (CHUTES, V1)


@frozen
class TruthState:
    """One merged state, immutable.

    :param id: changes with anything below; no other process gives the same one.
    :param generated_at: Unix time.
    :param freshness: how old each source is.
    """

    id: str
    merged: Merged
    generated_at: float
    freshness: Mapping[Source, Freshness]


@frozen
class _Observed:
    """What the changes are told from: the watch, and by source the renewals it has seen."""

    watch: Watch = field(factory=Watch)
    renewals: Mapping[Source, int] = {}


class Truth(Service):
    """Merges the sources anew each time one of them has changed; while it does so, what else comes waits together.

    Changes are looked for once every catalog that can be had was renewed, so that the states in which a model is
    missing are answers of its catalog and not the other one's.

    :param in_thread: where long merges are done.
    :param now: Unix time, seconds.
    :param file: where what was seen of the models outlives the process; None: each start sees them for the first time.
    :ivar first_recorded: see `explorer.merge.merge`; counts from the next merge on.
    :ivar current: None before the first source has come.
    :ivar listeners: called with each new state.
    :ivar change_listeners: called with what happened, where something did.
    """

    def __init__(
        self,
        sources: Sources,
        fuzzy: Fuzzy,
        in_thread: InThread,
        now: Callable[[], float],
        file: WatchFile | None = None,
    ) -> None:
        self.current: TruthState | None = None
        self.listeners: list[Callable[[TruthState], object]] = []
        self.change_listeners: list[Callable[[Sequence[Change]], object]] = []
        self.first_recorded: Mapping[str, str] = {}
        self.changes_seen = 0
        """Changes so far, those of `recent` and older ones."""
        self._recent: deque[Change] = deque(maxlen=RECENT_CHANGES)
        self._sources = sources
        self._fuzzy: Fuzzy = fuzzy
        self._in_thread = in_thread
        self._now = now
        self._begun_at = now()
        self._number = 0
        self._file = file
        self._observed: _Observed | None = None
        self._merged_from: tuple[object, ...] = ()
        self._due = False
        self._working: Deferred[None] | None = None

    def startService(self) -> None:
        super().startService()
        self._sources.changed = self._renew
        self._renew()

    def stopService(self) -> Deferred[None] | None:
        super().stopService()
        self._sources.changed = lambda: None
        self._due = False
        if self._working is not None:
            self._working.cancel()
        return self._working

    def recent(self, limit: int) -> tuple[Change, ...]:
        """Up to so many changes, the newest first."""
        return tuple(list(self._recent)[:limit])

    def remember(self, changes: Iterable[Change]) -> None:
        """Take over what earlier processes saw, the newest first."""
        for change in changes:
            if len(self._recent) == RECENT_CHANGES:
                break
            self._recent.append(change)
            self.changes_seen += 1

    def _renew(self) -> None:
        self._due = True
        if self._working is None and self.running:
            working = Deferred.fromCoroutine(self._work())
            if not working.called:
                self._working = working
                working.addBoth(self._worked)

    def _worked(self, _result: object) -> None:
        self._working = None

    async def _work(self) -> None:
        try:
            while self._due:
                self._due = False
                await self._renewed()
        except CancelledError:
            pass  # by stopService
        except Exception:  # noqa: BLE001 - reported; the last state stays until the next change
            events.failed_unexpectedly(Failure(), "merging the sources")

    async def _renewed(self) -> None:
        given = {snapshot.source: snapshot for snapshot in self._sources.all()}
        if all(snapshot.records is None for snapshot in given.values()):
            return
        records = tuple(snapshot.records for snapshot in given.values())
        observed = self._observed
        if observed is None:
            observed = _Observed() if self._file is None else _Observed(await self._file.load())
        changes: tuple[Change, ...] = ()
        if self.current is not None and all(map(_is, records, self._merged_from)):
            merged = self.current.merged
        else:
            work = partial(_merged_and_observed, given, self._fuzzy, observed, self._now(), self.first_recorded)
            size = sum(len(each.items) for each in records if each is not None)
            merged, self._observed, changes = await self._in_thread(work) if size > THREAD_RECORDS else work()
            self._merged_from = records
        self._number += 1
        self.current = TruthState(
            f"{int(self._begun_at):x}-{self._number}",
            merged,
            self._now(),
            {source: _freshness(snapshot) for source, snapshot in given.items()},
        )
        for change in changes:
            self._recent.appendleft(change)
        self.changes_seen += len(changes)
        _tell(self.listeners, self.current)
        if changes:
            _tell(self.change_listeners, changes)
        if self._file is not None and self._observed is not None and self._observed is not observed:
            # after it was told: what is not kept is told again, and not never
            await self._file.save(self._observed.watch, self._now())


def _is(one: object, other: object) -> bool:
    return one is other


def _tell(listeners: Iterable[Callable[[Any], object]], what: Any) -> None:
    for listener in listeners:
        try:
            listener(what)
        except Exception:  # noqa: BLE001 - reported; the others are told all the same
            events.failed_unexpectedly(Failure(), "telling of a new merged state")


def _merged_and_observed(
    given: Mapping[Source, SourceSnapshot],
    fuzzy: Fuzzy,
    observed: _Observed,
    at: float,
    first_recorded: Mapping[str, str],
) -> tuple[Merged, _Observed, tuple[Change, ...]]:
    """Merge, and look for changes where it is time to; runs in a thread."""
    chutes, v1, loads = given[CHUTES].records, given[V1].records, given[UTILIZATION].records
    merged = merge(
        chutes if isinstance(chutes, Listing) else None,
        v1 if isinstance(v1, ModelList) else None,
        loads if isinstance(loads, Loads) else None,
        fuzzy=fuzzy,
        first_recorded=first_recorded,
    )
    renewed = {
        source
        for source in _CATALOGS
        if given[source].records is not None and given[source].renewals != observed.renewals.get(source, 0)
    }
    awaited = {source for source in _CATALOGS if given[source].state == "fresh"} - renewed
    if not renewed or awaited:
        return merged, observed, ()
    # a catalog that has not been renewed cannot tell what is still missing from it
    told = evolve(
        merged,
        inputs={source: n for source, n in merged.inputs.items() if source not in _CATALOGS or source in renewed},
    )
    watch, changes = observe(observed.watch, told, at)
    renewals = {**observed.renewals, **{source: given[source].renewals for source in renewed}}
    return merged, _Observed(watch, renewals), changes


def _freshness(snapshot: SourceSnapshot) -> Freshness:
    return Freshness(utc_text(snapshot.fetched_at), snapshot.trouble is not None)


def utc_text(at: float | None) -> str | None:
    """A Unix time as the API writes it: ISO 8601 in UTC with milliseconds."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
