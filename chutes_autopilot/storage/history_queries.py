"""What can be asked of the history's tables. Everything here blocks."""

from collections.abc import Collection
from typing import Any

import msgspec

from chutes_autopilot.storage.history_rows import MEASURES, CatalogChange, FailoverCount, Measure, Point, Resolution
from chutes_autopilot.storage.history_writing import HOUR

MAX_POINTS = 10_080
"""Most points of one series: the minutes of 7 days."""

_OF_MINUTES = f"""
SELECT at, {{measure}}, {{measure}}, {{measure}} FROM minute
WHERE chute = (SELECT id FROM chute WHERE chute_id = :chute) AND at >= :since AND at < :until AND {{measure}} NOT NULL
ORDER BY 1 DESC LIMIT {MAX_POINTS}
"""  # noqa: S608 - nothing of others' making

_OF_HOURS = f"""
SELECT at, {{measure}}, {{measure}}_least, {{measure}}_greatest FROM hour
WHERE chute = (SELECT id FROM chute WHERE chute_id = :chute) AND at >= :since AND at < :until
    AND at < (SELECT rolled_up FROM progress) AND {{measure}} NOT NULL
UNION ALL
SELECT at - at % {HOUR}, avg({{measure}}), min({{measure}}), max({{measure}}) FROM minute
WHERE chute = (SELECT id FROM chute WHERE chute_id = :chute) AND at >= :since AND at < :until
    AND at >= (SELECT rolled_up FROM progress) AND {{measure}} NOT NULL GROUP BY 1
ORDER BY 1 DESC LIMIT {MAX_POINTS}
"""  # noqa: S608 - nothing of others' making


def series(
    cursor: Any, chute_id: str, measure: Measure, since: float, until: float, resolution: Resolution
) -> tuple[Point, ...]:
    """One measure of one chute in time; the newest where there are more than MAX_POINTS.

    The hour that is not yet over is made of its minutes so far.
    """
    if measure not in MEASURES:
        raise ValueError("no measure of this name")
    query = (_OF_MINUTES if resolution == "minute" else _OF_HOURS).replace("{measure}", measure)
    cursor.execute(query, {"chute": chute_id, "since": since, "until": until})
    return tuple(Point(*row) for row in reversed(cursor.fetchall()))


def sparklines(
    cursor: Any, measure: Measure, since: int, until: int, points: int
) -> dict[str, tuple[float | None, ...]]:
    """The mean of one measure of all chutes in equal parts of a time, None where nothing is known."""
    if measure not in MEASURES:
        raise ValueError("no measure of this name")
    cursor.execute(
        f"SELECT chute_id, (at - :since) * :points / (:until - :since), avg({measure}) "  # noqa: S608
        "FROM chute CROSS JOIN minute ON minute.chute = chute.id AND at >= :since AND at < :until "
        f"WHERE {measure} NOT NULL GROUP BY chute.id, 2",
        {"since": since, "until": until, "points": points},
    )
    lines: dict[str, list[float | None]] = {}
    for chute_id, point, mean in cursor.fetchall():
        lines.setdefault(chute_id, [None] * points)[point] = mean
    return {chute_id: tuple(line) for chute_id, line in lines.items()}


def changes(
    cursor: Any, since: float, limit: int, kinds: Collection[str], chute_id: str | None
) -> tuple[CatalogChange, ...]:
    """What happened to models, the newest first.

    :param kinds: only these; none: all.
    :param chute_id: only of this chute.
    """
    marks = ", ".join("?" * len(kinds))
    cursor.execute(
        "SELECT at, kind, chute_id, name, detail FROM change WHERE at >= ?"  # noqa: S608
        + (f" AND kind IN ({marks})" if kinds else "")
        + (" AND chute_id = ?" if chute_id is not None else "")
        + " ORDER BY at DESC, id DESC LIMIT ?",
        (since, *kinds, *([] if chute_id is None else [chute_id]), limit),
    )
    return tuple(
        CatalogChange(at, kind, chute, name, None if detail is None else msgspec.json.decode(detail))
        for at, kind, chute, name, detail in cursor.fetchall()
    )


def failovers(cursor: Any, since: float, limit: int) -> tuple[FailoverCount, ...]:
    """Failovers by hour, the newest and most frequent first."""
    cursor.execute("SELECT * FROM failover WHERE at >= ? ORDER BY at DESC, count DESC LIMIT ?", (since, limit))
    return tuple(
        FailoverCount(at, model, reason, after or None, count) for at, model, reason, after, count in cursor.fetchall()
    )


def first_seen(cursor: Any) -> dict[str, int]:
    """When each chute that is still remembered was recorded for the first time: Unix time by chute_id."""
    return dict(cursor.execute("SELECT chute_id, first_seen FROM chute").fetchall())
