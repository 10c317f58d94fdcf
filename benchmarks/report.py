"""What comes out: facts about the machine, a table for people, JSON for programs."""

import os
import platform
import ssl
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

from processes import output_of
from scenarios import BUSY, CPU_EVENT, CPU_REQUEST, SCENARIOS
from targets import ROOT, Target

Rounds = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""Scenario, then measure, then target: a number for each round."""

_REFERENCES = ("nginx", "vllm-router")
_COLUMNS = "{:<9} {:<16} {:<12} {:>10} {:<23} {:>8} {:>14}"


def machine_facts(targets: Sequence[Target]) -> dict[str, str]:
    """What the numbers depend on."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    return {
        "cpu": f"{cpu}, {len(os.sched_getaffinity(0))} cores usable",
        "load before": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_version()}, Twisted {version('Twisted')}, {ssl.OPENSSL_VERSION}",
        "commit": output_of("git", "-C", str(ROOT), "describe", "--always", "--dirty") or "unknown",
        **{target.name: target.version for target in targets if target.version},
    }


def table(rounds: Rounds) -> str:
    """A line for each measure of each target: median, smallest and largest round, ratios of medians."""
    lines = [_COLUMNS.format("scenario", "measure", "target", "median", "[min - max]", "/ nginx", "/ vllm-router")]
    for scenario, measures in rounds.items():
        lines += ["", f"{scenario}: {SCENARIOS[scenario].title}"]
        for measure, by_target in measures.items():
            name = measure
            for target, values in by_target.items():
                ratios = [_ratio(median(values), by_target.get(reference), measure) for reference in _REFERENCES]
                spread = f"[{_number(min(values))} - {_number(max(values))}]"
                lines.append(_COLUMNS.format("", name, target, _number(median(values)), spread, *ratios).rstrip())
                name = ""
    return "\n".join(lines)


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
            took = _number(median(values[n] for n in kept))
            lines.append(f"          {target:<12} {took:>10}  {middle:.3f} [{low:.3f} - {high:.3f}]")
    return lines


def as_json(facts: Mapping[str, str], rounds: Rounds, failures: Sequence[str]) -> dict[str, object]:
    """Everything, every round included."""
    medians = {
        scenario: {name: {target: median(values) for target, values in by.items()} for name, by in measures.items()}
        for scenario, measures in rounds.items()
    }
    return {"machine": facts, "medians": medians, "rounds": rounds, "failures": failures}


def _ratio(value: float, reference: Sequence[float] | None, measure: str) -> str:
    if not reference or measure == BUSY or measure.startswith("direct") or median(reference) <= 0:
        return ""
    return f"{value / median(reference):.2f}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
