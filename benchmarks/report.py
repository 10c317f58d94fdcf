"""What comes out: facts about the machine, a table for people, JSON for programs."""

import os
import platform
import ssl
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

from processes import output_of
from rounds import Rounds, number
from scenarios import BUSY, SCENARIOS
from targets import ROOT, Target

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
                spread = f"[{number(min(values))} - {number(max(values))}]"
                lines.append(_COLUMNS.format("", name, target, number(median(values)), spread, *ratios).rstrip())
                name = ""
    return "\n".join(lines)


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


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
