"""What is written into the history's tables, once a minute. Everything here blocks.

Minutes are kept for 7 days and hours for 90: mean, least and greatest of what their minutes said.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from chutes_autopilot.storage.history_rows import MEASURES, CatalogChange, HistoryRow

MINUTE = 60
HOUR = 3600
DAY = 24 * HOUR
MINUTES_KEPT = 7 * DAY
HOURS_KEPT = 90 * DAY
"""Seconds. Changes and failovers are kept for as long as hours."""

MAX_CHANGES = 20_000
MAX_DETAIL_BYTES = 4 * 1024

_ROLL_UP = f"""
INSERT OR REPLACE INTO hour SELECT chute.id, minute.at - minute.at % {HOUR},
    {", ".join(f"avg({measure}), min({measure}), max({measure})" for measure in MEASURES)}
FROM chute CROSS JOIN minute ON minute.chute = chute.id AND minute.at >= ? AND minute.at < ? GROUP BY 1, 2
"""  # noqa: S608 - names of our own


def write_minute(
    cursor: Any,
    at: int,
    rows: Sequence[HistoryRow],
    changes: Iterable[CatalogChange],
    failovers: Mapping[tuple[str, str, str | None], int],
) -> None:
    """Write a minute; and when it is the first of an hour, roll the ones before it up and forget what is too old.

    :param at: any time within the minute.
    :param failovers: how often, by (model, reason, next model).
    """
    minute, hour = at - at % MINUTE, at - at % HOUR
    cursor.executemany(
        "INSERT INTO chute (chute_id, name, first_seen, last_seen) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (chute_id) DO UPDATE SET name = excluded.name, last_seen = excluded.last_seen",
        [(row.chute_id, row.name, minute, minute) for row in rows],
    )
    values = ", ".join("?" * len(MEASURES))
    cursor.executemany(
        f"INSERT OR REPLACE INTO minute SELECT id, ?, {values} FROM chute WHERE chute_id = ?",  # noqa: S608
        [(minute, *(getattr(row, measure) for measure in MEASURES), row.chute_id) for row in rows],
    )
    cursor.executemany(
        "INSERT INTO change (at, kind, chute_id, name, detail) VALUES (?, ?, ?, ?, ?)",
        [(change.at, change.kind, change.chute_id, change.name, _detail(change.detail)) for change in changes],
    )
    cursor.executemany(
        "INSERT INTO failover VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
        [(hour, model, reason, after or "", count) for (model, reason, after), count in failovers.items()],
    )
    (rolled_up,) = cursor.execute("SELECT rolled_up FROM progress").fetchone()
    if rolled_up == hour:
        return
    if rolled_up < hour:  # else the clock was set back, and the hours since will come again
        cursor.execute(_ROLL_UP, (rolled_up, hour))
    cursor.execute("UPDATE progress SET rolled_up = ?", (hour,))
    for table, kept in (("minute", MINUTES_KEPT), ("hour", HOURS_KEPT)):
        cursor.execute(f"DELETE FROM {table} WHERE chute IN (SELECT id FROM chute) AND at < ?", (at - kept,))  # noqa: S608
    cursor.execute("DELETE FROM chute WHERE last_seen < ?", (at - HOURS_KEPT,))
    cursor.execute("DELETE FROM failover WHERE at < ?", (at - HOURS_KEPT,))
    cursor.execute(
        "DELETE FROM change WHERE at < ? OR id <= (SELECT max(id) FROM change) - ?", (at - HOURS_KEPT, MAX_CHANGES)
    )


def _detail(detail: Any) -> str | None:
    text = msgspec.json.encode(detail)
    return text.decode() if detail is not None and len(text) <= MAX_DETAIL_BYTES else None
