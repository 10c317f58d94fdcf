"""What several workers have measured of the same models, as one."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

_ADDED = ("successes", "failures")
_HIGHEST = ("first_token_p95_ms", "cooling_ms")


def recent_of_all(answers: Sequence[bytes], count: int) -> bytes:
    """The last requests of all workers, newest first, and how each model fares.

    :param answers: what ChatRelay.recent gave in each worker, as JSON.
    """
    told = [json.loads(answer) for answer in answers]
    decisions = sorted((each for one in told for each in one["decisions"]), key=_received, reverse=True)
    models = sorted({model for one in told for model in one["health"]})
    health = {model: merged([one["health"][model] for one in told if model in one["health"]]) for model in models}
    return json.dumps({"decisions": decisions[:count], "health": health}).encode()


def _received(decision: dict[str, Any]) -> float:
    return float(decision["received"])


def merged(figures: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Counts added up, the worst percentile and cooldown; averages weighted by the successes behind them."""
    if len(figures) == 1:
        return figures[0]
    one: dict[str, Any] = {}
    for name, first in figures[0].items():
        values = [each[name] for each in figures if each[name] is not None]
        if name in _ADDED:
            one[name] = sum(values)
        elif name in _HIGHEST:
            one[name] = max(values, default=None)
        elif isinstance(first, bool):
            one[name] = any(values)
        else:
            one[name] = _mean([(each[name], each["successes"]) for each in figures if each[name] is not None])
    return one


def _mean(weighted: Sequence[tuple[float, int]]) -> float | None:
    if not weighted:
        return None
    weights = [max(1, weight) for _, weight in weighted]
    return round(sum(value * weight for (value, _), weight in zip(weighted, weights, strict=True)) / sum(weights), 3)


@attrs.define(eq=False)
class ToldHealth:
    """How models fare by what all workers have told last (explorer_live.measured.Health)."""

    _told: dict[object, tuple[float, Mapping[str, Mapping[str, Any]]]] = attrs.field(factory=dict, init=False)

    def take(self, worker: object, health: Mapping[str, Mapping[str, Any]], now: float) -> None:
        """What a worker has measured by now, in the place of what it told before."""
        self._told[worker] = now, health

    def ended(self, worker: object) -> None:
        """A worker is gone, and what it had measured with it."""
        self._told.pop(worker, None)

    def figures(self, model: str, now: float) -> Mapping[str, Any] | None:
        """As of one FleetHealth, merged."""
        told = [
            {**health[model], "cooling_ms": max(0.0, health[model]["cooling_ms"] - (now - at) * 1000)}
            for at, health in self._told.values()
            if model in health
        ]
        return merged(told) if told else None

    def cooling(self, now: float) -> frozenset[str]:
        """All models that some worker leaves alone."""
        return frozenset(
            model
            for at, health in self._told.values()
            for model, seen in health.items()
            if seen["probing"] or seen["cooling_ms"] > (now - at) * 1000
        )
