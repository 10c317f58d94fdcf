"""What the explorer knows of each of the three sources: the last answer that could be read and was believed."""

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from attrs import define, evolve, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from chutes_autopilot.explorer.changes import shrunk
from chutes_autopilot.explorer.listing import Listing, read_listing
from chutes_autopilot.explorer.loads import Loads, read_loads
from chutes_autopilot.explorer.models import ModelList, read_models
from chutes_autopilot.explorer.records import CHUTES, SOURCES, UTILIZATION, V1, Source
from chutes_autopilot.observe import events
from chutes_autopilot.policy.feed_json import FeedError
from chutes_autopilot.storage.disk_cache import InThread

FEED_PAUSE = 12.0
"""Seconds between two answers of the live feed that are read here: the router reads every one of them."""

THREAD_BYTES = 16 * 1024
"""A larger answer, which takes a millisecond or more to read, is read in a thread."""

Records = Listing | ModelList | Loads
State = Literal["loading", "fresh", "stale", "down"]

_OF_REFRESH: Mapping[str, Source] = {"catalog": V1, "utilization": UTILIZATION}


@frozen
class SourceSnapshot:
    """One source as it is known.

    :param records: None where it was never had.
    :param fetched_at: when they came, Unix time.
    :param trouble: why the last attempt to renew them failed, for people; None where it did not.
    :param renewals: answers taken so far.
    """

    source: Source
    records: Records | None = None
    fetched_at: float | None = None
    trouble: str | None = None
    renewals: int = 0

    @property
    def state(self) -> State:
        """``loading``: neither had nor failed yet; ``stale``: of an older answer; ``down``: never had."""
        if self.records is None:
            return "loading" if self.trouble is None else "down"
        return "fresh" if self.trouble is None else "stale"


@define(eq=False)
class _Arrivals:
    """The answers of one source that are being read or wait for it, at most one of each."""

    reading: bool = False
    waiting: deque[tuple[bytes, float]] = field(factory=lambda: deque(maxlen=1))
    doubted_at: float | None = None


class Sources:
    """Reads answers and keeps of each source the last good one; what is wrong with a newer one is its `trouble`.

    An answer that has lost more than half of the records is held back until a second one says so too.

    :param in_thread: where answers are read.
    :param show_private: keep private chutes.
    :ivar changed: called whenever a source is no longer as it was.
    """

    def __init__(self, in_thread: InThread, *, show_private: bool = False) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._in_thread = in_thread
        self._readers: Mapping[Source, Callable[[bytes], Records]] = {
            CHUTES: partial(read_listing, show_private=show_private),
            V1: read_models,
            UTILIZATION: read_loads,
        }
        self._current = {source: SourceSnapshot(source) for source in SOURCES}
        self._arrivals = {source: _Arrivals() for source in SOURCES}

    def __getitem__(self, source: Source) -> SourceSnapshot:
        return self._current[source]

    def all(self) -> tuple[SourceSnapshot, ...]:
        """The three of them, in order of precedence."""
        return tuple(self._current.values())

    # control.refresh.BodyListener: what the router fetched is never fetched again

    def fetched(self, source: str, body: bytes, at: float) -> None:
        """The router has taken an answer of the catalog or of the feed; now it is read here too."""
        mine = _OF_REFRESH[source]
        known = self._current[mine]
        last = known.fetched_at
        if mine == UTILIZATION and known.trouble is None and last is not None and 0 <= at - last < FEED_PAUSE:
            return
        reading = Deferred.fromCoroutine(self.take(mine, body, at))
        reading.addErrback(lambda failure: events.failed_unexpectedly(failure, f"reading the {source}"))

    def failed(self, source: str, reason: str) -> None:
        """The router could not renew the catalog or the feed."""
        self.in_trouble(_OF_REFRESH[source], reason)

    def in_trouble(self, source: Source, reason: str) -> None:
        """A source could not be renewed."""
        if self._current[source].trouble != reason:
            self._replace(evolve(self._current[source], trouble=reason))

    async def take(self, source: Source, body: bytes, at: float) -> None:
        """Read an answer and believe it, or not; while another one is read, only the newest waits.

        :param at: when it was fetched, Unix time.
        """
        arrivals = self._arrivals[source]
        arrivals.waiting.append((body, at))
        del body
        if arrivals.reading:
            return
        arrivals.reading = True
        try:
            while arrivals.waiting:
                await self._read(source, *arrivals.waiting.popleft())
        finally:
            arrivals.reading = False

    async def _read(self, source: Source, body: bytes, at: float) -> None:
        try:
            reader = self._readers[source]
            records: Records = await self._in_thread(reader, body) if len(body) > THREAD_BYTES else reader(body)
        except FeedError as error:
            self.in_trouble(source, f"{error.reason}: {error}")
            return
        except CancelledError:
            raise
        except Exception:  # noqa: BLE001 - reported; the other sources go on
            events.failed_unexpectedly(Failure(), f"reading {source}")
            self.in_trouble(source, "the answer could not be read")
            return
        if self._is_believed(source, records, at):
            known = self._current[source]
            self._replace(SourceSnapshot(source, records, at, None, known.renewals + 1))
        else:
            self.in_trouble(
                source, "more than half of the records are gone, which is not believed until it is repeated"
            )

    def _is_believed(self, source: Source, records: Records, at: float) -> bool:
        arrivals, known = self._arrivals[source], self._current[source].records
        if known is None or not shrunk(_keys(known), frozenset(_keys(records))):
            arrivals.doubted_at = None
            return True
        if arrivals.doubted_at is None:
            arrivals.doubted_at = at
        if at - arrivals.doubted_at < 1:  # one answer that came by two ways is no second one
            return False
        arrivals.doubted_at = None
        return True

    def _replace(self, snapshot: SourceSnapshot) -> None:
        self._current[snapshot.source] = snapshot
        self.changed()


def _keys(records: Records) -> tuple[str, ...]:
    if isinstance(records, ModelList):
        return tuple(model.chute_id or model.name for model in records.items)
    return tuple(item.chute_id for item in records.items)
