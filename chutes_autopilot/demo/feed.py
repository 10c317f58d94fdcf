"""The simulated utilization feed: it moves, so that a demo shows the ranking at work, yet only with the given time."""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from chutes_autopilot.demo.catalog import SimulatedModel
from chutes_autopilot.demo.other_chutes import OTHER_CHUTES

PRIVATE_NAME = "[private chute]"
PRIVATE_CHUTES = 9
REQUESTS_PER_BUSY_INSTANCE = 300.0
"""Requests in five minutes that a fully busy instance answers."""


def utilization_rows(models: Sequence[SimulatedModel], now: float) -> list[dict[str, Any]]:
    """The answer of ``GET /chutes/utilization`` at the Unix time ``now``: 30 keys a row, busiest chute first.

    The same time gives the same rows. Shares move by at most a few hundredths a second, each chute in its own
    rhythm of 45 to 105 seconds, far enough for the ranking to change within a minute.
    """
    chutes = [(model.chute_id, model.name, model.instances, model.busy) for model in models]
    chutes += [(other.chute_id, other.name, other.instances, other.busy) for other in OTHER_CHUTES]
    chutes += [(_invented_id(f"private {i}"), PRIVATE_NAME, i * 3, 0.1 * i) for i in range(PRIVATE_CHUTES)]
    rows = [_row(place, *chute, now) for place, chute in enumerate(chutes)]
    return sorted(rows, key=_requests_in_the_last_hour, reverse=True)


def _requests_in_the_last_hour(row: dict[str, Any]) -> float:
    requests: float = row["total_requests_1h"]
    return requests


def _invented_id(name: str) -> str:
    return str(uuid5(NAMESPACE_OID, name))


def _row(place: int, chute_id: str, name: str, instances: int, busy: float, now: float) -> dict[str, Any]:
    period, phase = 45.0 + place * 7 % 61, place * 0.618

    def share(amplitude: float, slowness: float) -> float:
        if not instances:
            return 0.0
        return min(0.95, max(0.0, busy + amplitude * math.sin(math.tau * (now / (period * slowness) + phase))))

    # the longer the window, the calmer its average
    busy_now, busy_5m, busy_15m, busy_1h = share(0.3, 1), share(0.25, 1), share(0.1, 3), share(0.03, 10)
    limited_5m, limited_15m, limited_1h = (max(0.0, (busy - 0.8) * 1.5) for busy in (busy_5m, busy_15m, busy_1h))
    active = instances + (round(math.sin(math.tau * (now / (period * 3) + phase))) if instances > 2 else 0)
    crowded = busy_5m > 0.75
    target = math.ceil(instances * 1.3) if crowded else instances
    windows = {"5m": (1, busy_5m, limited_5m), "15m": (3, busy_15m, limited_15m), "1h": (12, busy_1h, limited_1h)}
    total = {w: instances * b * n * REQUESTS_PER_BUSY_INSTANCE for w, (n, b, _) in windows.items()}
    limited = {w: total[w] * ratio for w, (_, _, ratio) in windows.items()}
    return {
        "chute_id": chute_id,
        "name": name,
        "timestamp": datetime.fromtimestamp(now, UTC).replace(tzinfo=None).isoformat(timespec="microseconds"),
        "utilization_current": busy_now,
        # every number of the real feed may be null, so some of ours are
        "utilization_5m": None if place % 13 == 6 else busy_5m,
        "utilization_15m": busy_15m,
        "utilization_1h": busy_1h,
        "rate_limit_ratio_5m": limited_5m,
        "rate_limit_ratio_15m": limited_15m,
        "rate_limit_ratio_1h": None if place % 17 == 4 else limited_1h,
        **_keyed("total_requests", total.items()),
        **_keyed("completed_requests", ((window, total[window] - limited[window]) for window in windows)),
        **_keyed("rate_limited_requests", limited.items()),
        "instance_count": instances,
        "action_taken": "scale_up_candidate" if crowded else "no_action",
        "target_count": target,
        "effective_multiplier": None if place == 11 else 0.8 + place % 5,
        "total_instance_count": active + (place % 11 == 3),
        "active_instance_count": active,
        "scalable": active < target,
        "scale_allowance": max(0, target - active),
        "avg_busy_ratio": busy_1h,
        "total_invocations": total["1h"],
        "total_rate_limit_errors": limited["1h"],
    }


def _keyed(prefix: str, by_window: Iterable[tuple[str, float]]) -> dict[str, float]:
    return {f"{prefix}_{window}": value for window, value in by_window}
