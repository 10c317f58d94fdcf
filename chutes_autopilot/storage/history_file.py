"""The history's database: its tables, and how it is kept small. Everything here blocks.

The space of what was deleted goes back to the file system in small steps (``auto_vacuum=INCREMENTAL``), never by
rewriting the file.
"""

import sqlite3
from typing import Any

from chutes_autopilot.storage.history_rows import MEASURES
from chutes_autopilot.storage.history_writing import DAY, HOUR
from chutes_autopilot.storage.sqlite_database import Schema

WAL_BYTES = 4 * 1024 * 1024
TRIM_ROUNDS = 20

_TABLES = f"""
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
"""  # noqa: S608 - names of our own

SCHEMA = Schema(0x43415048, 1, _TABLES)


def configure(connection: sqlite3.Connection) -> None:
    """Make a new connection ready, and the tables where there are none yet."""
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # counts only before the first table
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        SCHEMA.create(connection)
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
