"""A small SQLite database that outlives the process where there is a directory, and never takes the service down."""

import contextlib
import os
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from attrs import define, field, frozen
from twisted.enterprise.adbapi import ConnectionPool
from twisted.internet.defer import Deferred, DeferredLock

from chutes_autopilot.storage.disk_cache import InThread

MAX_PENDING = 64
"""Most interactions that wait for their turn."""


class DatabaseUnavailable(Exception):
    """The database cannot do this now.

    :param reason: for people; holds no path and nothing of what is stored.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@frozen
class Schema:
    """What makes a file one of ours.

    :param version: to be raised with every change of ``script``, which makes the tables.
    """

    application_id: int
    version: int
    script: str

    def create(self, connection: sqlite3.Connection) -> None:
        """Make the tables where there are none yet."""
        if connection.execute("PRAGMA user_version").fetchone()[0] != self.version:
            ours = f"PRAGMA application_id = {self.application_id}; PRAGMA user_version = {self.version};"
            connection.executescript(f"BEGIN;{self.script};{ours}COMMIT;")


@define(eq=False)
class SqliteDatabase:
    """One file, all of whose work is done in one thread of its own, in turn.

    Where the file cannot be had, the database is in memory and begins anew at each start. A file that is damaged,
    whenever that is found out, is set aside for a new one.

    :param path: None: in memory.
    :param in_thread: where the file is made and checked.
    :param unavailable: told once why the file cannot be had.
    :param set_aside: told why a file was set aside, and its new name.
    """

    _reactor: Any
    _path: Path | None
    _schema: Schema
    _in_thread: InThread
    _unavailable: Callable[[str], None]
    _set_aside: Callable[[str, str], None]
    _pool: ConnectionPool | None = field(default=None, init=False)
    _turn: DeferredLock = field(factory=DeferredLock, init=False)
    _pending: int = field(default=0, init=False)
    _said: bool = field(default=False, init=False)

    async def open(self) -> None:
        """Open the file; what is asked meanwhile waits."""
        async with self._turn:
            await self._open()

    async def close(self) -> None:
        """Close the file when what was asked before is done."""
        async with self._turn:
            await self._close()

    async def run(self, interaction: Callable[..., Any], *given: Any) -> Any:
        """What a function of a cursor returns; all that it writes is written, or nothing.

        Whoever gives up waiting stops nothing: the work ends in its own time.

        :raises DatabaseUnavailable: nothing was written.
        """
        if self._pending >= MAX_PENDING:
            raise DatabaseUnavailable("too much to do at once")
        self._pending += 1
        answer: Deferred[Any] = Deferred()

        def done(result: Any) -> None:
            self._pending -= 1
            if not answer.called:
                answer.callback(result)

        Deferred.fromCoroutine(self._in_turn(interaction, *given)).addBoth(done)
        return await answer

    async def _in_turn(self, interaction: Callable[..., Any], *given: Any) -> Any:
        async with self._turn:
            if self._pool is None:
                raise DatabaseUnavailable("it is closed")
            try:
                return await self._pool.runInteraction(interaction, *given)
            except sqlite3.Error as error:
                if type(error) is sqlite3.DatabaseError:  # SQLite's words for a file that is damaged or no database
                    await self._close()
                    await self._open()
                reason = getattr(error, "sqlite_errorname", type(error).__name__)
                raise DatabaseUnavailable(f"SQLite: {reason}") from None

    async def _open(self) -> None:
        database = ":memory:"
        if self._path is not None:
            try:
                reason = await self._in_thread(prepare, self._path, self._schema)
                database = str(self._path)
                if reason is not None:
                    self._set_aside(reason, aside(self._path).name)
            except (OSError, ValueError, sqlite3.Error) as error:
                if not self._said:
                    self._said = True
                    self._unavailable(getattr(error, "strerror", None) or type(error).__name__)
        self._pool = ConnectionPool(
            "sqlite3",
            database,
            check_same_thread=False,
            cp_min=1,
            cp_max=1,
            cp_openfun=partial(_configure, self._schema),
            cp_reactor=self._reactor,
        )

    async def _close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        with contextlib.suppress(sqlite3.Error):  # what stays in the log is read at the next start
            await pool.runWithConnection(_checkpoint)  # else closing would do it, in the reactor's thread
        pool.close()


def prepare(path: Path, schema: Schema) -> str | None:
    """Make the file, readable by its owner alone, and find out whether it is a sound one of ours. Blocks.

    One that is not is set aside, in the place of the one that was before; then this says why.

    :raises OSError, ValueError, sqlite3.OperationalError: no file can be had here.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "rb") as file:
        os.fchmod(file.fileno(), 0o600)
    reason = _fault(path, schema)
    if reason is not None:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{path}{suffix}", f"{aside(path)}{suffix}")
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    return reason


def aside(path: Path) -> Path:
    """Where a file goes that cannot be used."""
    return path.with_name(f"{path.name}.set-aside")


def _fault(path: Path, schema: Schema) -> str | None:
    def pragma(name: str) -> Any:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            if pragma("page_count") == 0:
                return None
            if pragma("application_id") != schema.application_id:
                return "it was not made by this program"
            if (version := pragma("user_version")) != schema.version:
                return f"it is of version {version}, and this program knows version {schema.version}"
            return None if pragma("quick_check(1)") == "ok" else "it is damaged"
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        return "it is damaged"


def _configure(schema: Schema, connection: sqlite3.Connection) -> None:
    """Make a new connection ready."""
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        schema.create(connection)
    except BaseException:
        connection.close()
        raise


def _checkpoint(connection: Any) -> None:
    connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
