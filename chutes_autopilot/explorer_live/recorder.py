"""The history written minute by minute, whatever becomes of the disk."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from attrs import define, field

from chutes_autopilot.observe import events
from chutes_autopilot.storage.history import HistoryStore, HistoryUnavailable
from chutes_autopilot.storage.history_rows import CatalogChange, HistoryRow

MAX_ROWS = 10_000
MAX_CHANGES = 10_000
MAX_FAILOVER_KINDS = 1000
"""Most chutes of one minute, and most changes and kinds of failovers that wait to be written."""

OTHERS = "(others)"
"""Stands for the models of failovers when there are too many kinds."""


@define(eq=False)
class Recorder:
    """Gathers what happens between two minutes and writes it with the second, in one transaction.

    A minute that cannot be written is lost, which the log says once; changes and failovers wait for the next one.
    """

    _store: HistoryStore
    _changes: deque[CatalogChange] = field(init=False, factory=lambda: deque(maxlen=MAX_CHANGES))
    _failovers: Counter[tuple[str, str, str | None]] = field(init=False, factory=Counter)
    _writing: bool = field(init=False, default=False)
    _failing: bool = field(init=False, default=False)

    def changed(self, changes: Iterable[CatalogChange]) -> None:
        """Something happened to models."""
        self._changes.extend(changes)

    def failed_over(self, model: str, reason: str, next_model: str | None, count: int = 1) -> None:
        """A model failed a request before its first byte.

        :param reason: one of a closed set.
        :param next_model: which was asked next; None where there was no other.
        """
        kind = (model, reason, next_model)
        if kind not in self._failovers and len(self._failovers) >= MAX_FAILOVER_KINDS:
            kind = (OTHERS, reason, None)
        self._failovers[kind] += count

    async def record(self, at: float, rows: Sequence[HistoryRow]) -> None:
        """Write a minute; no failure gets out. While an earlier one is still being written, this one is dropped.

        :param at: Unix time.
        :param rows: one for each chute.
        """
        if self._writing:
            self._missed("an earlier minute is still being written")
            return
        changes, failovers = tuple(self._changes), dict(self._failovers)
        self._changes.clear()
        self._failovers.clear()
        self._writing = True
        try:
            await self._store.record(at, rows[:MAX_ROWS], changes, failovers)
        except BaseException as error:
            self._changes = deque((*changes, *self._changes), MAX_CHANGES)
            for kind, count in failovers.items():
                self.failed_over(*kind, count)
            if not isinstance(error, HistoryUnavailable):
                raise
            self._missed(error.reason)
        else:
            self._failing = False
        finally:
            self._writing = False

    def _missed(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            events.history_not_written(reason)
