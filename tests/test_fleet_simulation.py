"""The simulated fleet of benchmarks/fleet.py: the same by seed, and right where the right answer is known."""

import sys
from pathlib import Path
from xml.etree import ElementTree

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from fleet import by_lag, by_load, table
from fleet_model import ORDERS, Fleet, Result, Scenario


def run(order: str, load: float = 0.3, **changes: float) -> Result:
    return Fleet(Scenario(order, load, **{"lag": 15.0, "seed": 1, "minutes": 2.0, **changes})).run()


def test_the_same_seed_gives_the_same_numbers() -> None:
    """And another seed others."""
    assert run("rendezvous") == run("rendezvous")
    assert run("rendezvous") != run("rendezvous", seed=2)


def test_an_idle_fleet_answers_everything() -> None:
    """With next to no load, no order fails or tries twice."""
    for order in ORDERS:
        result = run(order, 0.005)
        assert (result.success, result.attempts) == (1.0, 1.0)


def test_nobody_beats_the_oracle() -> None:
    """Under load, whoever knows the moment answers at least as many, and sooner than all who look at a feed."""
    results = {order: run(order) for order in ORDERS}
    best = results.pop("oracle")
    for result in results.values():
        assert result.success <= best.success
        assert result.first_token_p95 > best.first_token_p95


def test_one_order_for_everybody_makes_a_herd() -> None:
    """The default order gives one model more of a minute's requests than a spread order does, and answers fewer."""
    default, spread = run("default"), run("rendezvous")
    assert default.top_share > 2 * spread.top_share
    assert default.success < spread.success


def test_failing_over_from_full_models_takes_more_attempts() -> None:
    """In the resilient profile a 429 for want of room is not the end."""
    assert run("random", resilient=True).success > run("random").success
    assert run("random", resilient=True).attempts > run("random").attempts


def test_the_pictures_are_svg_with_a_line_for_each_order() -> None:
    """Both of them, whatever was run; the table has a line for each run."""
    result = Result(10, 0.9, 1.0, 2.0, 1.1, 0.3)
    runs = {(order, load, lag): [result] for order in ORDERS for load, lag in [(0.1, 15.0), (0.25, 15.0), (0.25, 60.0)]}
    for picture in (by_load(runs, ORDERS, (0.1, 0.25)), by_lag(runs, ORDERS, (15.0, 60.0))):
        root = ElementTree.fromstring(picture)  # noqa: S314 - made here
        texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
        assert set(ORDERS) <= set(texts)
        lines = [line.get("points", "") for line in root.iter("{http://www.w3.org/2000/svg}polyline")]
        assert all("nan" not in line for line in lines)
    assert len(list(table(runs))) == 1 + len(runs)
