"""The history's database: made, checked, set aside where it is damaged, and kept small. Everything here blocks.

The space of what was deleted goes back to the file system in small steps (``auto_vacuum=INCREMENTAL``), never by
rewriting the file.
"""

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any

from chutes_autopilot.storage.history_rows import MEASURES
from chutes_autopilot.storage.history_writing import DAY, HOUR

SCHEMA_VERSION = 1
APPLICATION_ID = 0x43415048
WAL_BYTES = 4 * 1024 * 1024
TRIM_ROUNDS = 20

_SCHEMA = f"""
CREATE TABLE chute (
    id INTEGER PRIMARY KEY, chute_id TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
    first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL
);
CREATE TABLE minute (
    chute INTEGER NOT NULL, at INTEGER NOT NULL, {", ".join(MEASURES)}, PRIMARY KEY (chute, at)
) WITHOUT ROWID;
CREATE TABLE hour (
    chute INTEGER NOT NULL, at INTEGER NOT NULL,
    {", ".join(f"{measure}, {measure}_least, {measure}_greatest" for measure in MEASURES)},
    PRIMARY KEY (chute, at)
) WITHOUT ROWID;
CREATE TABLE change (
    id INTEGER PRIMARY KEY, at INTEGER NOT NULL, kind TEXT NOT NULL, chute_id TEXT, name TEXT NOT NULL, detail TEXT
);
CREATE TABLE failover (
    at INTEGER NOT NULL, model TEXT NOT NULL, reason TEXT NOT NULL, next_model TEXT NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (at, model, reason, next_model)
) WITHOUT ROWID;
CREATE TABLE progress (rolled_up INTEGER NOT NULL);
INSERT INTO progress VALUES (0);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""  # noqa: S608 - names of our own


class NotOurs(Exception):
    """A database that some other program, or another version of this one, has made."""


def prepare(path: Path) -> str | None:
    """Make the file, readable by its owner alone, and find out whether it is a sound one of ours.

    One that is not is set aside, in the place of the one that was before; then this says why.

    :raises OSError, ValueError, sqlite3.OperationalError: no file can be had here.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "rb") as file:
        os.fchmod(file.fileno(), 0o600)
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            _check(connection)
    except NotOurs as fault:
        reason = str(fault)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        reason = "it is damaged"
    else:
        return None
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{aside(path)}{suffix}")
    os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    return reason


def aside(path: Path) -> Path:
    """Where a file goes that cannot be used."""
    return path.with_name(f"{path.name}.set-aside")


def _check(connection: sqlite3.Connection) -> None:
    def pragma(name: str) -> Any:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    if pragma("page_count") == 0:
        return
    if pragma("application_id") != APPLICATION_ID:
        raise NotOurs("it was not made by this program")
    if (version := pragma("user_version")) != SCHEMA_VERSION:
        raise NotOurs(f"it is of version {version}, and this program knows version {SCHEMA_VERSION}")
    if pragma("quick_check(1)") != "ok":
        raise sqlite3.DatabaseError


def configure(connection: sqlite3.Connection) -> None:
    """Make a new connection ready, and the tables where there are none yet."""
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # counts only before the first table
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        if connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
            connection.executescript(f"BEGIN;{_SCHEMA}COMMIT;")
    except BaseException:
        connection.close()
        raise


def checkpoint(connection: Any) -> None:
    """Bring what is in the write-ahead log into the file, and empty the log."""
    connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def trim(connection: Any, max_bytes: int) -> None:
    """Make the database no larger than allowed: the oldest minutes go first, then hours, then the rest."""
    cursor = connection.cursor()

    def size() -> int:
        (pages,) = cursor.execute("PRAGMA page_count").fetchone()
        (page_size,) = cursor.execute("PRAGMA page_size").fetchone()
        return int(pages * page_size)

    limit = max(max_bytes - WAL_BYTES, max_bytes // 2)
    for _ in range(TRIM_ROUNDS):
        if size() <= limit:
            return
        if not any(_drop_oldest(cursor, table, unit) for table, unit in (("minute", HOUR), ("hour", DAY))):
            cursor.execute("DELETE FROM failover WHERE at <= (SELECT (min(at) + max(at)) / 2 FROM failover)")
            cursor.execute("DELETE FROM change WHERE id <= (SELECT (min(id) + max(id)) / 2 FROM change)")
        cursor.execute("DELETE FROM chute WHERE id NOT IN (SELECT chute FROM minute UNION SELECT chute FROM hour)")
        connection.commit()
        cursor.executescript("PRAGMA incremental_vacuum")  # execute() would give back one page only
        checkpoint(connection)


def _drop_oldest(cursor: Any, table: str, unit: int) -> bool:
    """Delete the oldest tenth of a table, never its newest; False where there is nothing to delete."""
    oldest, newest = cursor.execute(f"SELECT min(at), max(at) FROM {table}").fetchone()  # noqa: S608
    if oldest == newest:
        return False
    cursor.execute(f"DELETE FROM {table} WHERE at < ?", (min(newest, oldest + max(unit, (newest - oldest) // 10)),))  # noqa: S608
    return True
