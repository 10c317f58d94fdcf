"""Rounds compared in themselves, where targets stay up and take turns (``--together``)."""

from collections.abc import Mapping, Sequence
from statistics import median, quantiles

from scenarios import CPU_EVENT, CPU_REQUEST

Rounds = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""Scenario, then measure, then target: a number for each round."""


def by_round(rounds: Rounds, quiet: float | None) -> str:
    """CPU times compared within each round, for rounds so short that the machine was the same for all targets.

    :param quiet: microseconds; only rounds count then that lie between two measurings of the first target of at most
        so much. What chooses them is the first target alone, so no other's own result does.
    """
    lines = []
    for scenario, measures in rounds.items():
        for measure in (name for name in measures if name in (CPU_REQUEST, CPU_EVENT)):
            by_target = measures[measure]
            first, reference = next(iter(by_target.items()))
            kept = list(range(len(reference)))
            lines += ["", f"{scenario}, {measure}, over {first} in the same round: median [half of the rounds]"]
            lines += _over(by_target, first, kept)
            if quiet is not None:
                kept = [n for n in kept[:-1] if max(reference[n], reference[n + 1]) <= quiet]
                lines += [f"of the {len(kept)} rounds between two in which {first} took at most {quiet:g}"]
                lines += _over(by_target, first, kept)
    return "\n".join(lines)


def _over(by_target: Mapping[str, Sequence[float]], first: str, kept: Sequence[int]) -> list[str]:
    if len(kept) < 2:
        return ["          too few"]
    lines = []
    for target, values in by_target.items():
        if len(values) == len(by_target[first]):  # else it has failed, and was measured no further
            low, middle, high = quantiles([values[n] / by_target[first][n] for n in kept], n=4)
            took = number(median(values[n] for n in kept))
            lines.append(f"          {target:<12} {took:>10}  {middle:.3f} [{low:.3f} - {high:.3f}]")
    return lines


def number(value: float) -> str:
    """A measurement as people read it: three digits, or as many as it has."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
