"""What the fleet was like: a bounded history in SQLite, which outlives the process where there is a directory."""

import contextlib
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.enterprise.adbapi import ConnectionPool
from twisted.internet.defer import Deferred, DeferredLock

from chutes_autopilot.observe import events
from chutes_autopilot.storage import history_file, history_queries
from chutes_autopilot.storage.disk_cache import InThread
from chutes_autopilot.storage.history_rows import (
    CatalogChange,
    FailoverCount,
    HistoryRow,
    Measure,
    Point,
    Resolution,
)
from chutes_autopilot.storage.history_writing import DAY, MINUTE, write_minute
from chutes_autopilot.storage.sqlite_database import aside, prepare

FILE_NAME = "history.sqlite3"
MAX_PENDING = 64
"""Most questions that are asked of the history at once."""

MAX_MEMORY_BYTES = 64 * 1024 * 1024
"""How large a history without a file may grow."""

SPARKLINE_SECONDS = DAY
SPARKLINE_POINTS = 48


class HistoryUnavailable(Exception):
    """The history cannot do this now.

    :param reason: for people; holds no path.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class HistoryStore(Service):
    """Minutes of 7 days, hours and events of 90, in one file; all work is done in one thread of its own, in turn.

    Every method that asks may raise HistoryUnavailable. What is asked before the file is open waits for that. Whoever
    gives up waiting stops nothing: the work ends in its own time.

    Where the file cannot be had, which the log says once, the history is in memory and begins anew at each start. A
    file that is damaged, whenever that is found out, is set aside for a new one.

    :param directory: CACHE_DIR; None: in memory.
    :param max_bytes: how large the file may grow, its log included.
    :param in_thread: where the file is made and checked.
    """

    def __init__(self, reactor: Any, directory: Path | None, max_bytes: int, in_thread: InThread) -> None:
        self._reactor = reactor
        self._path = None if directory is None else directory / FILE_NAME
        self._max_bytes = max_bytes
        self._in_thread = in_thread
        self._pool: ConnectionPool | None = None
        self._in_memory = True
        self._turn = DeferredLock()
        self._pending = 0
        self._said = False
        self._sparklines: tuple[int, dict[str, tuple[float | None, ...]]] | None = None

    def startService(self) -> None:
        """Begin to open the file."""
        super().startService()
        opening: Deferred[None] = Deferred.fromCoroutine(self._opened())
        opening.addErrback(lambda failure: events.failed_unexpectedly(failure, "opening the history"))

    def stopService(self) -> Deferred[None]:
        """Close the file when what is being done is done; what waits for its turn is refused."""
        super().stopService()
        return Deferred.fromCoroutine(self._closed())

    async def record(
        self,
        at: float,
        rows: Sequence[HistoryRow],
        changes: Iterable[CatalogChange] = (),
        failovers: Mapping[tuple[str, str, str | None], int] | None = None,
    ) -> None:
        """Write a minute, all of it or nothing, and keep to the bounds. What is there of this minute is replaced.

        :param at: Unix time, any within the minute.
        :param failovers: how often since the last record, by (model, reason, next model).
        """
        self._pending += 1
        try:
            await self._asked(lambda pool: pool.runInteraction(write_minute, int(at), rows, changes, failovers or {}))
            self._sparklines = None
            await self._asked(lambda pool: pool.runWithConnection(history_file.trim, self._bound()))
        finally:
            self._pending -= 1

    async def fill(self, minutes: Iterable[tuple[int, Sequence[HistoryRow]]], changes: Iterable[CatalogChange]) -> None:
        """Write many minutes at once, the oldest first, and the changes; what is asked meanwhile waits.

        :param minutes: Unix time and rows; gone through in the history's thread.
        """

        def write(cursor: Any) -> None:
            earlier = tuple(changes)
            for at, rows in minutes:
                write_minute(cursor, at, rows, earlier, {})
                earlier = ()

        await self._asked(lambda pool: pool.runInteraction(write))

    async def series(
        self, chute_id: str, measure: Measure, since: float, until: float, resolution: Resolution
    ) -> tuple[Point, ...]:
        """One measure of one chute from ``since`` to before ``until``, by time; a gap is unknown.

        :raises ValueError: there is no such measure.
        """
        return await self._ask(history_queries.series, chute_id, measure, since, until, resolution)  # type: ignore[no-any-return]

    async def sparklines(self, now: float) -> dict[str, tuple[float | None, ...]]:
        """The utilization of every chute in the last 24 hours, by chute_id: means of 48 half hours, None where unknown.

        Between two records the answer stays the same.
        """
        until = int(now) - int(now) % MINUTE + MINUTE
        if self._sparklines is None or self._sparklines[0] != until:
            since = until - SPARKLINE_SECONDS
            lines = await self._ask(history_queries.sparklines, "utilization", since, until, SPARKLINE_POINTS)
            self._sparklines = (until, lines)
        return self._sparklines[1]

    async def changes(
        self, since: float, limit: int, *, kinds: Collection[str] = (), chute_id: str | None = None
    ) -> tuple[CatalogChange, ...]:
        """What happened to models, the newest first; of these kinds only, and of this chute only, where given."""
        return await self._ask(history_queries.changes, since, limit, tuple(kinds), chute_id)  # type: ignore[no-any-return]

    async def failovers(self, since: float, limit: int) -> tuple[FailoverCount, ...]:
        """Failovers by hour, the newest and most frequent first."""
        return await self._ask(history_queries.failovers, since, limit)  # type: ignore[no-any-return]

    async def first_seen(self) -> dict[str, int]:
        """When each chute was recorded for the first time: Unix time by chute_id."""
        return await self._ask(history_queries.first_seen)  # type: ignore[no-any-return]

    async def _ask(self, question: Callable[..., Any], *given: Any) -> Any:
        if self._pending >= MAX_PENDING:
            raise HistoryUnavailable("too many questions at once")
        self._pending += 1

        def answered(result: Any) -> Any:
            self._pending -= 1
            return result

        work = Deferred.fromCoroutine(self._asked(lambda pool: pool.runInteraction(question, *given)))
        work.addBoth(answered)
        return await _detached(work)

    async def _asked(self, ask: Callable[[ConnectionPool], Deferred[Any]]) -> Any:
        async with self._turn:
            if self._pool is None or not self.running:
                raise HistoryUnavailable("the history is closed")
            try:
                return await ask(self._pool)
            except sqlite3.Error as error:
                if type(error) is sqlite3.DatabaseError:  # SQLite's words for a file that is damaged or no database
                    await self._close()
                    await self._open()
                raise HistoryUnavailable(
                    f"SQLite: {getattr(error, 'sqlite_errorname', type(error).__name__)}"
                ) from None

    async def _open(self) -> None:
        database = ":memory:"
        if self._path is not None:
            try:
                reason = await self._in_thread(prepare, self._path, history_file.SCHEMA)
                database = str(self._path)
                if reason is not None:
                    events.history_set_aside(reason, aside(self._path).name)
            except (OSError, ValueError, sqlite3.Error) as error:
                self._say(error)
        self._in_memory = database == ":memory:"
        self._pool = ConnectionPool(
            "sqlite3",
            database,
            check_same_thread=False,
            cp_min=1,
            cp_max=1,
            cp_openfun=history_file.configure,
            cp_reactor=self._reactor,
        )

    def _bound(self) -> int:
        return min(self._max_bytes, MAX_MEMORY_BYTES) if self._in_memory else self._max_bytes

    async def _opened(self) -> None:
        async with self._turn:
            await self._open()

    async def _closed(self) -> None:
        async with self._turn:
            await self._close()

    async def _close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        with contextlib.suppress(sqlite3.Error):  # what stays in the log is read at the next start
            await pool.runWithConnection(history_file.checkpoint)  # else closing would do it, in the reactor's thread
        pool.close()

    def _say(self, error: Exception) -> None:
        if not self._said:
            self._said = True
            events.history_unavailable(getattr(error, "strerror", None) or type(error).__name__)


def _detached(work: Deferred[Any]) -> Deferred[Any]:
    """The result of work that goes on though whoever waits for it gives up."""
    answer: Deferred[Any] = Deferred()
    work.addBoth(lambda result: None if answer.called else answer.callback(result))
    return answer
