"""``python benchmarks/fleet.py``: orders of candidates compared on a simulated fleet; see README.md here."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tree this file is in is what is measured

from fleet_model import ORDERS, Fleet, Result, Scenario
from svg import Panel, chart

LOADS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75)
LAGS = (0.0, 15.0, 60.0, 180.0, 600.0)
USUAL_LOAD = 0.25
USUAL_LAG = 15.0

Runs = dict[tuple[str, float, float], list[Result]]
"""Order, load and lag, to one result for each seed."""


def main() -> int:
    """Simulate, print a table, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many runs of each, seeds 1 to N, default 3")
    parser.add_argument("--minutes", type=float, default=15.0, help="simulated, after five of warming up, default 15")
    parser.add_argument("--loads", type=_numbers, default=LOADS, help="shares of the free capacity, by commas")
    parser.add_argument("--lags", type=_numbers, default=LAGS, help="seconds, by commas")
    parser.add_argument("--orders", type=lambda text: text.split(","), default=list(ORDERS), help=",".join(ORDERS))
    parser.add_argument("--resilient", action="store_true", help="a full model's 429 fails over")
    parser.add_argument("--images", type=Path, metavar="DIR", help="write fleet-load.svg and fleet-lag.svg there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    options = parser.parse_args()
    points = [*((load, USUAL_LAG) for load in options.loads), *((USUAL_LOAD, lag) for lag in options.lags)]
    runs: Runs = {}
    for load, lag in dict.fromkeys(points):
        for order in options.orders:
            seeds = range(1, options.seeds + 1)
            scenarios = [Scenario(order, load, lag, seed, options.minutes, options.resilient) for seed in seeds]
            runs[order, load, lag] = [Fleet(scenario).run() for scenario in scenarios]
            _say(f"{order}, load {load:.0%}, lag {lag:g} s")
    _say("")
    print("\n".join(table(runs)))
    if options.json:
        told = [
            {"order": order, "load": load, "lag": lag, "runs": [asdict(result) for result in results]}
            for (order, load, lag), results in runs.items()
        ]
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    if options.images:
        options.images.mkdir(parents=True, exist_ok=True)
        (options.images / "fleet-load.svg").write_text(by_load(runs, options.orders, options.loads))
        (options.images / "fleet-lag.svg").write_text(by_lag(runs, options.orders, options.lags))
    return 0


def table(runs: Runs) -> Iterator[str]:
    """Medians over the seeds."""
    yield f"{'load':>5} {'lag':>6}  {'order':<15} {'success':>8} {'p50':>6} {'p95':>6} {'attempts':>8} {'top share':>9}"
    for (order, load, lag), results in runs.items():

        def middle(name: str, results: Sequence[Result] = results) -> float:
            return median(getattr(result, name) for result in results)

        yield (
            f"{load:>5.0%} {lag:>4.0f} s  {order:<15} {middle('success'):>8.1%} {middle('first_token_p50'):>6.2f} "
            f"{middle('first_token_p95'):>6.2f} {middle('attempts'):>8.2f} {middle('top_share'):>9.0%}"
        )


def by_load(runs: Runs, orders: Sequence[str], loads: Sequence[float]) -> str:
    """The picture of growing load."""
    ticks = [(load, f"{load:.0%}") for load in loads]
    keys = {order: [(load, (order, load, USUAL_LAG)) for load in loads] for order in orders}
    title = f"load on the fleet, the feed {USUAL_LAG:g} s late"
    return _picture(runs, title, "load, as a share of the fleet's free capacity", ticks, keys)


def by_lag(runs: Runs, orders: Sequence[str], lags: Sequence[float]) -> str:
    """The picture of a feed that is later and later."""
    ticks = [(lag, f"{lag:g}") for lag in lags]
    keys = {order: [(lag, (order, USUAL_LOAD, lag)) for lag in lags] for order in orders}
    return _picture(runs, f"lag of the feed, at {USUAL_LOAD:.0%} load", "seconds that the feed is late", ticks, keys)


def _picture(
    runs: Runs,
    title: str,
    x_title: str,
    ticks: Sequence[tuple[float, str]],
    keys: dict[str, list[tuple[float, tuple[str, float, float]]]],
) -> str:
    def lines(name: str) -> dict[str, list[tuple[float, float, float, float]]]:
        found = {}
        for order, points in keys.items():
            values = [(x, sorted(getattr(result, name) for result in runs[key])) for x, key in points]
            found[order] = [(x, some[0], median(some), some[-1]) for x, some in values]
        return found

    late = lines("first_token_p95")
    highest = max(point[3] for points in late.values() for point in points)
    return chart(
        title,
        [
            Panel(f"answered requests: {title}", x_title, ticks, lines("success"), 0.0, 1.0, "{:.0%}"),
            Panel("first token, 95th percentile", x_title, ticks, late, 0.0, 5 * (1 + highest // 5), "{:g} s"),
        ],
    )


def _say(text: str) -> None:
    """Show progress where somebody looks."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
