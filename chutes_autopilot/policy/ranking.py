"""Which live model is the best choice now: one score per candidate, one order over all of them."""

from collections.abc import Sequence
from heapq import merge

import msgspec

from chutes_autopilot.policy.catalog import Catalog
from chutes_autopilot.policy.feed_json import SLICE, Sliced, finish
from chutes_autopilot.policy.utilization import UtilizationRow, eligible_name

UTILIZATION_WEIGHTS = (0.6, 0.3, 0.1)
"""Weights of the busy share over 5 minutes, 15 minutes and 1 hour."""
RATE_LIMIT_WEIGHTS = (1.0, 0.5, 0.25)
"""Weights of the share of refused requests over the same spans; the worst counts."""
RATE_LIMIT_PENALTY = 2.0
"""What an instance that refuses everything costs, in idle instances."""
SCALE_BONUS = 0.05
"""What an instance that may still be started is worth, in idle instances."""
SCALE_BONUS_LIMIT = 8
"""How many instances still to be started count."""


class Ranked(msgspec.Struct, frozen=True, gc=False):
    """One candidate's place, with all that explains it; a msgspec Struct for the reason given below.

    :param model: the name to ask for; the catalog's.
    :param name: the name in the feed; another one where the chute was renamed.
    :param utilization: weighted busy share, 0 idle, 1 full.
    :param rate_limit: weighted share of refused requests.
    :param scale_bonus: what its room to grow added to the score.
    :param utilization_current: the busy share that breaks ties.
    :param rate_limit_ratio_5m: the refused share that breaks ties.
    """

    model: str
    score: float
    active_instance_count: float
    utilization: float
    rate_limit: float
    scale_bonus: float
    utilization_current: float
    rate_limit_ratio_5m: float
    name: str
    chute_id: str | None


def _known(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


# Sorted as it stands: -score, -instances, current busy share, refused share, model; then the row's number, so that
# nothing behind it is ever compared: weighted busy share, weighted refused share, scale bonus. Neither these tuples of
# numbers nor Ranked are walked by the garbage collector: with 50,000 of them its pauses would be the longest of all.
_Scored = tuple[float, float, float, float, str, int, float, float, float]


def _score(row: UtilizationRow, model: str, number: int) -> _Scored:
    active = row.active_instance_count or 0
    u5 = _known(row.utilization_5m, _known(row.utilization_current, 1.0))
    u15 = _known(row.utilization_15m, u5)
    u1h = _known(row.utilization_1h, u15)
    utilization = UTILIZATION_WEIGHTS[0] * u5 + UTILIZATION_WEIGHTS[1] * u15 + UTILIZATION_WEIGHTS[2] * u1h

    r5 = _known(row.rate_limit_ratio_5m, 0.0)
    r15 = _known(row.rate_limit_ratio_15m, r5)
    r1h = _known(row.rate_limit_ratio_1h, r15)
    rate_limit = max(RATE_LIMIT_WEIGHTS[0] * r5, RATE_LIMIT_WEIGHTS[1] * r15, RATE_LIMIT_WEIGHTS[2] * r1h)

    scale_bonus = min(row.scale_allowance or 0, SCALE_BONUS_LIMIT) * SCALE_BONUS if row.scalable else 0.0
    score = active * max(0.0, 1 - utilization) + scale_bonus - RATE_LIMIT_PENALTY * active * rate_limit
    current = _known(row.utilization_current, u5)
    return -score, -active, current, r5, model, number, utilization, rate_limit, scale_bonus


def _ranked(scored: _Scored, row: UtilizationRow) -> Ranked:
    score, active, current, r5, model, _, utilization, rate_limit, scale_bonus = scored
    return Ranked(
        model=model,
        score=-score,
        active_instance_count=-active,
        utilization=utilization,
        rate_limit=rate_limit,
        scale_bonus=scale_bonus,
        utilization_current=current,
        rate_limit_ratio_5m=r5,
        name=row.name,
        chute_id=row.chute_id,
    )


def rank_in_slices(rows: Sequence[UtilizationRow], catalog: Catalog | None) -> Sliced[tuple[Ranked, ...]]:
    """The candidates among the rows, best first: by score, more instances, less busy, fewer refusals, name.

    Where several rows stand for one model, the best placed one does.
    """
    # sorting 50,000 at once takes some 50 ms; sorted runs are merged one by one
    runs: list[list[_Scored]] = []
    for start in range(0, len(rows), SLICE):
        if start:
            yield
        run = []
        for number in range(start, min(start + SLICE, len(rows))):
            model = eligible_name(rows[number], catalog)
            if model is not None:
                run.append(_score(rows[number], model, number))
        run.sort()
        runs.append(run)
    best: dict[str, Ranked] = {}
    for place, scored in enumerate(merge(*runs)):
        if place % SLICE == 0 and len(runs) > 1:
            yield
        model = scored[4]
        if model not in best:
            best[model] = _ranked(scored, rows[scored[5]])
    return tuple(best.values())


def rank(rows: Sequence[UtilizationRow], catalog: Catalog | None) -> tuple[Ranked, ...]:
    """rank_in_slices in one go."""
    return finish(rank_in_slices(rows, catalog))
