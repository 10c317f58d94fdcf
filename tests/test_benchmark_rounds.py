"""What benchmarks/rounds.py makes of rounds."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from rounds import by_round
from scenarios import CPU_REQUEST


def test_rounds_are_compared_in_themselves() -> None:
    """A minute in which everything cost three times as much moves no ratio; a target that failed is not compared."""
    told = by_round(
        {"small": {CPU_REQUEST: {"nginx": [20.0, 60.0, 20.0], "autopilot": [50.0, 150.0, 50.0], "other": [1.0]}}}, None
    )
    assert [line.split() for line in told.splitlines()[2:]] == [
        ["nginx", "20.0", "1.000", "[1.000", "-", "1.000]"],
        ["autopilot", "50.0", "2.500", "[2.500", "-", "2.500]"],
    ]


def test_a_quiet_round_lies_between_two_quiet_measurings_of_the_first_target() -> None:
    """What the measured target itself took chooses no round."""
    told = by_round(
        {"small": {CPU_REQUEST: {"nginx": [20.0, 20.0, 21.0, 20.0, 20.0, 20.0], "autopilot": [9, 9, 9, 900, 40, 1.0]}}},
        20,
    )
    quiet = told.partition("of the 3 rounds between two in which nginx took at most 20")[2].splitlines()
    assert quiet[2].split()[:2] == ["autopilot", "40.0"]
