"""The simulated utilization feed: it moves, so that a demo shows the ranking at work, yet only with the given time."""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_OID, uuid5
from zlib import crc32

from attrs import field, frozen

from chutes_autopilot.demo.catalog import SimulatedModel
from chutes_autopilot.demo.other_chutes import OTHER_CHUTES, OtherChute

PRIVATE_NAME = "[private chute]"
PRIVATE_CHUTES = 9
REQUESTS_PER_BUSY_INSTANCE = 300.0
"""Requests in five minutes that a fully busy instance answers."""

_WAVES = ((0.13, 43_200.0), (0.06, 9500.0), (0.04, 1500.0))
"""Of how busy a chute is: amplitudes, and the shortest periods in seconds."""

_NOISE, _NOISE_SECONDS = 0.05, 25.0
"""What single requests make of it: how far it goes at most to either side, and how long until it is another."""


@frozen
class SimulatedLoad:
    """How busy one chute is, at any time the same for the same chute.

    :param instances: on average; 0: it is cold.
    :param busy: average utilization.
    """

    chute_id: str
    name: str
    instances: int
    busy: float
    seed: int = field(init=False)

    @seed.default
    def _seed_of_the_chute(self) -> int:
        return crc32(self.chute_id.encode())

    def share(self, at: float) -> float:
        """Its utilization at a Unix time, 0..1."""
        if not self.instances:
            return 0.0
        share = self.busy + self._noise(at)
        for number, (amplitude, shortest) in enumerate(_WAVES):
            turns = at / (shortest * (1 + (self.seed >> 4 * number) % 97 / 97))
            share += amplitude * math.sin(math.tau * (turns + self.seed % (1009 + number) / 1009))
        return min(0.95, max(0.0, share))

    def active(self, at: float) -> int:
        """Its active instances."""
        turns = at / (7000.0 + self.seed % 6000) + self.seed % 101 / 101
        return self.instances + (round(math.sin(math.tau * turns)) if self.instances > 2 else 0)

    def _noise(self, at: float) -> float:
        step, within = divmod(at / _NOISE_SECONDS, 1.0)
        weight = within * within * (3 - 2 * within)
        return _NOISE * ((1 - weight) * self._random(step) + weight * self._random(step + 1))

    def _random(self, step: float) -> float:
        """Something in [-1, 1)."""
        return math.sin(step * 12.9898 + self.seed % 9973) * 43_758.5453 % 2 - 1


def simulated_loads(models: Sequence[SimulatedModel]) -> list[SimulatedLoad]:
    """Of all chutes there are, but for private ones."""
    chutes: list[SimulatedModel | OtherChute] = [*models, *OTHER_CHUTES]
    return [SimulatedLoad(chute.chute_id, chute.name, chute.instances, chute.busy) for chute in chutes]


def utilization_rows(models: Sequence[SimulatedModel], now: float) -> list[dict[str, Any]]:
    """The answer of ``GET /chutes/utilization`` at the Unix time ``now``: 30 keys a row, busiest chute first.

    The same time gives the same rows. Each chute has its own rhythm of a day, with smaller and shorter waves on top and
    the noise of single requests: a few hundredths in half a minute, so that some models of the ranking change places.
    """
    private = [SimulatedLoad(_invented_id(f"private {i}"), PRIVATE_NAME, i * 3, 0.1 * i) for i in range(PRIVATE_CHUTES)]
    rows = [_row(load, now) for load in (*simulated_loads(models), *private)]
    return sorted(rows, key=_requests_in_the_last_hour, reverse=True)


def _requests_in_the_last_hour(row: dict[str, Any]) -> float:
    requests: float = row["total_requests_1h"]
    return requests


def _invented_id(name: str) -> str:
    return str(uuid5(NAMESPACE_OID, name))


def _row(load: SimulatedLoad, now: float) -> dict[str, Any]:
    instances, seed, active = load.instances, load.seed, load.active(now)
    # what moves slowly is at the middle of a window about as it is on average
    busy_now, busy_5m, busy_15m = (sum(map(load.share, (now - ago, now - ago / 2))) / 2 for ago in (0, 300, 900))
    busy_1h = sum(load.share(now - ago) for ago in (450, 1350, 2250, 3150)) / 4
    limited_5m, limited_15m, limited_1h = (max(0.0, (busy - 0.8) * 1.5) for busy in (busy_5m, busy_15m, busy_1h))
    crowded = busy_5m > 0.75
    target = math.ceil(instances * 1.3) if crowded else instances
    windows = {"5m": (1, busy_5m, limited_5m), "15m": (3, busy_15m, limited_15m), "1h": (12, busy_1h, limited_1h)}
    total = {w: instances * b * n * REQUESTS_PER_BUSY_INSTANCE for w, (n, b, _) in windows.items()}
    limited = {w: total[w] * ratio for w, (_, _, ratio) in windows.items()}
    return {
        "chute_id": load.chute_id,
        "name": load.name,
        "timestamp": datetime.fromtimestamp(now, UTC).replace(tzinfo=None).isoformat(timespec="microseconds"),
        "utilization_current": busy_now,
        # every number of the real feed may be null, so some of ours are
        "utilization_5m": None if seed % 13 == 6 else busy_5m,
        "utilization_15m": busy_15m,
        "utilization_1h": busy_1h,
        "rate_limit_ratio_5m": limited_5m,
        "rate_limit_ratio_15m": limited_15m,
        "rate_limit_ratio_1h": None if seed % 17 == 4 else limited_1h,
        **_keyed("total_requests", total.items()),
        **_keyed("completed_requests", ((window, total[window] - limited[window]) for window in windows)),
        **_keyed("rate_limited_requests", limited.items()),
        "instance_count": instances,
        "action_taken": "scale_up_candidate" if crowded else "no_action",
        "target_count": target,
        "effective_multiplier": None if seed % 29 == 11 else 0.8 + seed % 5,
        "total_instance_count": active + (seed % 11 == 3),
        "active_instance_count": active,
        "scalable": active < target,
        "scale_allowance": max(0, target - active),
        "avg_busy_ratio": busy_1h,
        "total_invocations": total["1h"],
        "total_rate_limit_errors": limited["1h"],
    }


def _keyed(prefix: str, by_window: Iterable[tuple[str, float]]) -> dict[str, float]:
    return {f"{prefix}_{window}": value for window, value in by_window}
