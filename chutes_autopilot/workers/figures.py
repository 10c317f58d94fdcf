"""What several workers have measured of the same models, as one."""

import json
from collections.abc import Sequence
from typing import Any

_ADDED = ("successes", "failures")
_HIGHEST = ("first_token_p95_ms", "cooling_ms")


def recent_of_all(answers: Sequence[bytes], count: int) -> bytes:
    """The last requests of all workers, newest first, and how each model fares.

    :param answers: what ChatRelay.recent gave in each worker, as JSON.
    """
    told = [json.loads(answer) for answer in answers]
    decisions = sorted((each for one in told for each in one["decisions"]), key=_received, reverse=True)
    models = sorted({model for one in told for model in one["health"]})
    health = {model: _one([one["health"][model] for one in told if model in one["health"]]) for model in models}
    return json.dumps({"decisions": decisions[:count], "health": health}).encode()


def _received(decision: dict[str, Any]) -> float:
    return float(decision["received"])


def _one(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts added up, the worst percentile and cooldown; averages weighted by the successes behind them."""
    if len(figures) == 1:
        return figures[0]
    merged: dict[str, Any] = {}
    for name, first in figures[0].items():
        values = [each[name] for each in figures if each[name] is not None]
        if name in _ADDED:
            merged[name] = sum(values)
        elif name in _HIGHEST:
            merged[name] = max(values, default=None)
        elif isinstance(first, bool):
            merged[name] = any(values)
        else:
            merged[name] = _mean([(each[name], each["successes"]) for each in figures if each[name] is not None])
    return merged


def _mean(weighted: Sequence[tuple[float, int]]) -> float | None:
    if not weighted:
        return None
    weights = [max(1, weight) for _, weight in weighted]
    return round(sum(value * weight for (value, _), weight in zip(weighted, weights, strict=True)) / sum(weights), 3)
