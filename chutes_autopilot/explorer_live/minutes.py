"""The history made minute by minute of what is known, and the little of it that pages need at hand."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from chutes_autopilot.control.snapshots import Snapshot, Snapshots
from chutes_autopilot.explorer import prices
from chutes_autopilot.explorer.changes import Change, FieldChange
from chutes_autopilot.explorer.merge import Merged, MergedModel
from chutes_autopilot.explorer.records import UTILIZATION
from chutes_autopilot.explorer_live.recorder import Recorder
from chutes_autopilot.explorer_live.sources import Sources
from chutes_autopilot.explorer_live.truth import RECENT_CHANGES, Truth
from chutes_autopilot.observe import events
from chutes_autopilot.storage.history import HistoryStore, HistoryUnavailable
from chutes_autopilot.storage.history_rows import CatalogChange, HistoryRow

MINUTE = 60.0
MOST_INSTANCES = 2**53
MAX_AGE = 120.0
"""Seconds after which what the live feed said is no measure of this minute any more; a gap is recorded."""

_DAY = 86_400

_PRICES = {
    "price_input": prices.INPUT,
    "price_output": prices.OUTPUT,
    "price_cached": prices.CACHED,
    "price_step": prices.PER_STEP,
    "price_request": prices.PER_REQUEST,
    "price_hour": prices.PER_HOUR,
}


class MinuteByMinute(Service):
    """Records each minute, as long as there is something to record, and hands changes on to the same history.

    Stopping records what there is of the last minute; the history must not stop before that is done.

    :param now: Unix time, seconds.
    :ivar sparklines: by chute id, see HistoryStore.sparklines; as of the last minute.
    """

    def __init__(
        self,
        recorder: Recorder,
        store: HistoryStore,
        truth: Truth,
        sources: Sources,
        snapshots: Snapshots,
        clock: IReactorTime,
        now: Callable[[], float],
    ) -> None:
        self.sparklines: Mapping[str, tuple[float | None, ...]] = {}
        self._recorder = recorder
        self._store = store
        self._truth = truth
        self._sources = sources
        self._snapshots = snapshots
        self._now = now
        self._loop = LoopingCall(self._start_minute)
        self._loop.clock = clock
        self._work: Deferred[None] | None = None
        truth.change_listeners.append(self._changed)

    def startService(self) -> None:
        super().startService()
        self._work = Deferred.fromCoroutine(self._guarded(self._remember()))
        self._loop.start(MINUTE, now=False)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        if self._loop.running:
            self._loop.stop()
        return Deferred.fromCoroutine(self._stopped())

    async def _stopped(self) -> None:
        if self._work is not None:
            await self._work  # what it has taken to write would be written twice if it were cut short
        # the platform's next answers will not tell these changes again: what was seen of the models is kept elsewhere
        await self._guarded(self._recorded())

    def _start_minute(self) -> Deferred[None]:
        self._work = Deferred.fromCoroutine(self._guarded(self._minute()))
        return self._work

    async def _guarded(self, work: Coroutine[Deferred[Any], Any, None]) -> None:
        try:
            await work
        except (CancelledError, HistoryUnavailable):
            pass  # the recorder says so in the log
        except Exception:  # noqa: BLE001 - reported; the next minute comes in its turn
            events.failed_unexpectedly(Failure(), "recording a minute")

    async def _remember(self) -> None:
        since = self._now() - 90 * _DAY
        kept = await self._store.changes(since, RECENT_CHANGES)
        self._truth.remember(change_of(each) for each in kept)
        await self._read_back()

    async def _minute(self) -> None:
        if self._truth.current is not None:
            await self._recorded()
            await self._read_back()

    async def _recorded(self) -> None:
        state, now = self._truth.current, self._now()
        rows: tuple[HistoryRow, ...] = ()
        if state is not None:
            feed_at = self._sources[UTILIZATION].fetched_at
            measured = feed_at is not None and now - feed_at < MAX_AGE
            rows = history_rows(state.merged, self._ranked(now), measured=measured)
        await self._recorder.record(now, rows)

    async def _read_back(self) -> None:
        self.sparklines = await self._store.sparklines(self._now())
        first = await self._store.first_seen()
        self._truth.first_recorded = {chute_id: _iso_seconds(at) for chute_id, at in first.items()}

    def _ranked(self, now: float) -> Snapshot | None:
        snapshot = self._snapshots.current
        age = snapshot.feed_age(now)
        return snapshot if age is not None and age < MAX_AGE else None

    def _changed(self, changes: Sequence[Change]) -> None:
        self._recorder.changed(map(recorded_change, changes))


def _iso_seconds(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")  # as the listing's times are read


def history_rows(merged: Merged, ranked: Snapshot | None, *, measured: bool) -> tuple[HistoryRow, ...]:
    """One row for each chute.

    :param ranked: the router's snapshot; None: it is too old.
    :param measured: whether what the live feed said is of this minute.
    """
    places = {}
    if ranked is not None:
        places = {each.chute_id: (place, each.score) for place, each in enumerate(ranked.ranking, 1) if each.chute_id}
    return tuple(_row(model, places.get(model.chute_id), measured) for model in merged.records if model.chute_id)


def _count(number: float | None) -> int | None:
    """A count as the database takes it; what is no count of instances would make it refuse the whole minute."""
    return None if number is None or number > MOST_INSTANCES else int(number)


def _row(model: MergedModel, place: tuple[int, float] | None, measured: bool) -> HistoryRow:
    fields = model.fields
    active, total = fields["active_instance_count"], fields["total_instance_count"]
    return HistoryRow(
        chute_id=model.chute_id or "",
        name=model.name,
        utilization=fields["utilization_current"] if measured else None,
        active_instances=_count(active) if measured else None,
        total_instances=_count(total) if measured else None,
        rank=None if place is None else place[0],
        score=None if place is None else place[1],
        **{column: fields[field] for column, field in _PRICES.items()},
    )


def recorded_change(change: Change) -> CatalogChange:
    """A change as the history keeps it."""
    detail = {"key": change.key, "fields": [field.as_json() for field in change.fields]}
    return CatalogChange(int(change.at), change.type, change.chute_id, change.name, detail)


def change_of(kept: CatalogChange) -> Change:
    """A change as it was before the history kept it."""
    detail = kept.detail if isinstance(kept.detail, dict) else {}
    fields = tuple(
        FieldChange(each["field"], each.get("before"), each.get("after"), each.get("unit"))
        for each in detail.get("fields", ())
    )
    kind: object = kept.kind
    return Change(kind, float(kept.at), detail.get("key") or kept.chute_id or "", kept.chute_id, kept.name, fields)  # type: ignore[arg-type]
