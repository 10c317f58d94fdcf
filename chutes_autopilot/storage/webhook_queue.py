"""Webhooks that still have to be delivered, and those that never could be: kept across restarts, in bounded numbers."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

from chutes_autopilot.observe import events
from chutes_autopilot.storage.disk_cache import InThread
from chutes_autopilot.storage.sqlite_database import Schema, SqliteDatabase

FILE_NAME = "webhooks.sqlite3"
MAX_WAITING = 1000
"""Deliveries to one endpoint that wait; of more, the oldest become dead letters."""

MAX_DEAD = 2000
"""Dead letters of all endpoints; of more, the oldest are forgotten."""

OVERFLOW = "too many were waiting"

SCHEMA = Schema(
    0x43415748,
    1,
    """
    CREATE TABLE delivery (
        id INTEGER PRIMARY KEY AUTOINCREMENT, message_id TEXT NOT NULL, endpoint TEXT NOT NULL, type TEXT NOT NULL,
        body BLOB NOT NULL, queued_at REAL NOT NULL, attempts INTEGER NOT NULL, due REAL NOT NULL
    );
    CREATE INDEX delivery_due ON delivery (endpoint, due);
    CREATE TABLE dead (
        id INTEGER PRIMARY KEY AUTOINCREMENT, message_id TEXT NOT NULL, endpoint TEXT NOT NULL, type TEXT NOT NULL,
        body BLOB NOT NULL, queued_at REAL NOT NULL, attempts INTEGER NOT NULL, died_at REAL NOT NULL,
        reason TEXT NOT NULL
    )
    """,
)


@frozen
class Message:
    """An event for one endpoint.

    :param message_id: the same for every attempt.
    :param endpoint: its name in the configuration; the file holds no URL and no secret.
    """

    message_id: str
    endpoint: str
    type: str
    body: bytes = field(repr=False)


@frozen
class Delivery:
    """A message that waits.

    :param id: its place in the queue.
    :param attempts: how many failed.
    :param due: when the next one is to be made, Unix seconds.
    """

    id: int
    message: Message
    attempts: int
    due: float


@frozen
class DeadLetter:
    """A message that was given up.

    :param number: by which it is sent again or forgotten.
    :param queued_at: Unix seconds, as is ``died_at``.
    :param reason: why, in words that hold no URL and nothing of the receiver's.
    """

    number: int
    message: Message
    queued_at: float
    attempts: int
    died_at: float
    reason: str


class WebhookQueue:
    """All of it in one small database, in memory where there is no directory.

    Every method but `open` and `close` may raise sqlite_database.DatabaseUnavailable, and then has done nothing.

    :param directory: CACHE_DIR; None: in memory.
    :param in_thread: where the file is made and checked.
    :ivar waiting: how many deliveries wait, and ``dead`` how many dead letters there are, as of the last change.
    """

    def __init__(
        self,
        reactor: Any,
        directory: Path | None,
        in_thread: InThread,
        *,
        max_waiting: int = MAX_WAITING,
        max_dead: int = MAX_DEAD,
    ) -> None:
        path = None if directory is None else directory / FILE_NAME
        self._database = SqliteDatabase(
            reactor, path, SCHEMA, in_thread, events.webhook_queue_unavailable, events.webhook_queue_set_aside
        )
        self._max_waiting = max_waiting
        self._max_dead = max_dead
        self.waiting = 0
        self.dead = 0

    async def open(self) -> None:
        """Take over what earlier processes left; what is asked meanwhile waits."""
        await self._database.open()

    async def close(self) -> None:
        """Close the file when what was asked before is done."""
        await self._database.close()

    async def add(self, messages: Sequence[Message], now: float) -> int:
        """Queue messages, due at once; returns how many older ones became dead letters to make room.

        :param now: Unix seconds.
        """
        return int(await self._change(_add, messages, now, self._max_waiting))

    async def take(
        self, now: float, rooms: Mapping[str, int], busy: Collection[int]
    ) -> tuple[tuple[Delivery, ...], float | None]:
        """The deliveries that are due, those that are due the longest first, and when the next one will be.

        They stay in the queue until `remove`, `retry` or `bury`.

        :param rooms: how many may be had for each endpoint; for others there are none.
        :param busy: the ones that are under way.
        """
        return await self._database.run(_take, now, rooms, busy)  # type: ignore[no-any-return]

    async def remove(self, delivery_id: int) -> None:
        """It was delivered."""
        await self._change(lambda cursor: cursor.execute("DELETE FROM delivery WHERE id = ?", (delivery_id,)).rowcount)

    async def retry(self, delivery_id: int, attempts: int, due: float) -> None:
        """An attempt failed and another one will be made."""
        statement = "UPDATE delivery SET attempts = ?, due = ? WHERE id = ?"
        await self._change(lambda cursor: cursor.execute(statement, (attempts, due, delivery_id)).rowcount)

    async def bury(self, delivery_id: int, attempts: int, reason: str, now: float) -> None:
        """The last attempt failed: it becomes a dead letter."""

        def bury(cursor: Any) -> int:
            cursor.execute("UPDATE delivery SET attempts = ? WHERE id = ?", (attempts, delivery_id))
            return _bury(cursor, "id = ?", (delivery_id,), reason, now)

        await self._change(bury)

    async def bury_all(self, endpoint: str, reason: str, now: float) -> int:
        """All that waits for an endpoint becomes dead letters; returns how many."""
        return int(await self._change(_bury, "endpoint = ?", (endpoint,), reason, now))

    async def retain(self, endpoints: Iterable[str], reason: str, now: float) -> int:
        """What waits for endpoints other than these becomes dead letters; returns how many."""
        names = tuple(endpoints)
        where = f"endpoint NOT IN ({', '.join('?' * len(names))})"
        return int(await self._change(_bury, where, names, reason, now))

    async def dead_letters(self, limit: int) -> tuple[DeadLetter, ...]:
        """What was given up, the latest first."""
        return await self._database.run(_dead_letters, limit)  # type: ignore[no-any-return]

    async def revive(self, number: int | None, endpoints: Collection[str], now: float) -> int:
        """Queue dead letters anew, due at once and as if never attempted; returns how many.

        Only for these endpoints, and never so many that others had to make room: the latest come first.

        :param number: of one; None: all.
        """
        return int(await self._change(_revive, number, tuple(endpoints), now, self._max_waiting))

    async def forget(self, number: int | None) -> int:
        """Forget one dead letter, or all; returns how many."""
        where, given = ("1", ()) if number is None else ("id = ?", (number,))
        statement = f"DELETE FROM dead WHERE {where}"  # noqa: S608 - words of ours
        return int(await self._change(lambda cursor: cursor.execute(statement, given).rowcount))

    async def _change(self, change: Callable[..., Any], *given: Any) -> Any:
        def interaction(cursor: Any) -> tuple[Any, int, int]:
            result = change(cursor, *given)
            cursor.execute("DELETE FROM dead WHERE id <= (SELECT max(id) FROM dead) - ?", (self._max_dead,))
            counts = cursor.execute("SELECT (SELECT count(*) FROM delivery), (SELECT count(*) FROM dead)").fetchone()
            return result, *counts

        result, self.waiting, self.dead = await self._database.run(interaction)
        return result


def _add(cursor: Any, messages: Sequence[Message], now: float, max_waiting: int) -> int:
    cursor.executemany(
        "INSERT INTO delivery (message_id, endpoint, type, body, queued_at, attempts, due) "
        "VALUES (?, ?, ?, ?, ?, 0, ?)",
        [(m.message_id, m.endpoint, m.type, m.body, now, now) for m in messages],
    )
    excess = "id IN (SELECT id FROM delivery WHERE endpoint = ? ORDER BY id DESC LIMIT -1 OFFSET ?)"
    endpoints = {message.endpoint for message in messages}
    return sum(_bury(cursor, excess, (endpoint, max_waiting), OVERFLOW, now) for endpoint in endpoints)


def _take(
    cursor: Any, now: float, rooms: Mapping[str, int], busy: Collection[int]
) -> tuple[tuple[Delivery, ...], float | None]:
    marks = ", ".join("?" * len(busy))
    rows: list[Any] = []
    later: list[float] = []
    for endpoint, room in rooms.items():
        rows += cursor.execute(
            "SELECT id, message_id, endpoint, type, body, attempts, due FROM delivery "  # noqa: S608 - marks only
            f"WHERE endpoint = ? AND due <= ? AND id NOT IN ({marks}) ORDER BY due, id LIMIT ?",
            (endpoint, now, *busy, room),
        ).fetchall()
        (due,) = cursor.execute(
            "SELECT min(due) FROM delivery WHERE endpoint = ? AND due > ?", (endpoint, now)
        ).fetchone()
        later += [] if due is None else [due]
    deliveries = [Delivery(row[0], Message(*row[1:5]), *row[5:]) for row in rows]
    return tuple(sorted(deliveries, key=lambda delivery: (delivery.due, delivery.id))), min(later, default=None)


def _bury(cursor: Any, where: str, given: tuple[Any, ...], reason: str, now: float) -> int:
    cursor.execute(
        "INSERT INTO dead (message_id, endpoint, type, body, queued_at, attempts, died_at, reason) "  # noqa: S608
        f"SELECT message_id, endpoint, type, body, queued_at, attempts, ?, ? FROM delivery WHERE {where} ORDER BY id",
        (now, reason, *given),
    )
    return int(cursor.execute(f"DELETE FROM delivery WHERE {where}", given).rowcount)  # noqa: S608


def _revive(cursor: Any, number: int | None, endpoints: tuple[str, ...], now: float, max_waiting: int) -> int:
    revived = 0
    for endpoint in endpoints:
        (waiting,) = cursor.execute("SELECT count(*) FROM delivery WHERE endpoint = ?", (endpoint,)).fetchone()
        chosen = cursor.execute(
            "SELECT id FROM dead WHERE endpoint = ? AND (? IS NULL OR id = ?) ORDER BY id DESC LIMIT ?",
            (endpoint, number, number, max(0, max_waiting - waiting)),
        ).fetchall()
        for (letter,) in reversed(chosen):
            cursor.execute(
                "INSERT INTO delivery (message_id, endpoint, type, body, queued_at, attempts, due) "
                "SELECT message_id, endpoint, type, body, queued_at, 0, ? FROM dead WHERE id = ?",
                (now, letter),
            )
            cursor.execute("DELETE FROM dead WHERE id = ?", (letter,))
        revived += len(chosen)
    return revived


def _dead_letters(cursor: Any, limit: int) -> tuple[DeadLetter, ...]:
    rows = cursor.execute(
        "SELECT id, message_id, endpoint, type, body, queued_at, attempts, died_at, reason FROM dead "
        "ORDER BY id DESC LIMIT ?",
        (limit,),
    ).fetchall()
    return tuple(DeadLetter(row[0], Message(*row[1:5]), *row[5:]) for row in rows)
