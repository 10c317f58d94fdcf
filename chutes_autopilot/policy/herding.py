"""How evenly an order of candidates spreads clients over models, and how often it makes them move."""

from collections import Counter
from collections.abc import Mapping, Sequence

import attrs

from chutes_autopilot.policy.ranking import Ranked


@attrs.frozen
class Herding:
    """What an order did over some time. Averages are over time, in which each ranking counts for as long as it held.

    :param rankings: how many there were.
    :param seconds: for how long in all.
    :param churn: of the clients, the share whose first pick a new ranking changed; average over the changes of ranking.
    :param first_share: the share of the clients whose first pick is the most picked model; 1: all of them the same.
    :param effective_models: so many equally picked models would be as uneven (1 / sum of squared shares).
    :param pressure: how many times its fair share of clients the first pick of the average client has; 1: clients are
        spread as free instances are. (Few clients on many models give a little more by chance.)
    :param shares: model to its share of all first picks, the largest first.
    """

    rankings: int
    seconds: float
    churn: float
    first_share: float
    effective_models: float
    pressure: float
    shares: Mapping[str, float]


@attrs.define(eq=False)
class HerdingMeter:
    """Sums up first picks, ranking by ranking."""

    _picks: Sequence[str] = ()
    _rankings: int = 0
    _seconds: float = 0.0
    _changes: float = 0.0
    _first_share: float = 0.0
    _effective: float = 0.0
    _pressure: float = 0.0
    _time_on: Counter[str] = attrs.field(factory=Counter)

    def add(self, ranking: Sequence[Ranked], picks: Sequence[str], seconds: float) -> None:
        """A ranking held for so long.

        :param picks: the first pick of each client, the same clients in the same order every time; not empty.
        """
        if self._picks:
            self._changes += sum(map(str.__ne__, self._picks, picks)) / len(picks)
        self._picks = picks
        self._rankings += 1
        self._seconds += seconds
        shares = {model: count / len(picks) for model, count in Counter(picks).items()}
        free = {ranked.model: ranked.active_instance_count * max(0.0, 1 - ranked.utilization) for ranked in ranking}
        all_free = sum(free.values())
        pressures = [share * share * all_free / free[model] for model, share in shares.items() if free.get(model)]
        self._first_share += seconds * max(shares.values())
        self._effective += seconds / sum(share * share for share in shares.values())
        self._pressure += seconds * sum(pressures)
        for model, share in shares.items():
            self._time_on[model] += seconds * share  # type: ignore[assignment]  # a Counter counts in floats as well

    def result(self) -> Herding:
        """What it came to; ZeroDivisionError before the first ranking."""
        return Herding(
            rankings=self._rankings,
            seconds=self._seconds,
            churn=self._changes / max(1, self._rankings - 1),
            first_share=self._first_share / self._seconds,
            effective_models=self._effective / self._seconds,
            pressure=self._pressure / self._seconds,
            shares={model: time / self._seconds for model, time in self._time_on.most_common()},
        )
