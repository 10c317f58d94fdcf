"""Why a model stands where it does, in one sentence."""

from typing import Any

import pytest

from chutes_autopilot.explorer.reasons import score_parts, sentence
from chutes_autopilot.policy.catalog import parse_catalog
from chutes_autopilot.policy.ranking import Ranked, rank
from chutes_autopilot.policy.utilization import UtilizationRow


def ranked(model: str, score: float, **known: Any) -> Ranked:
    usual = {"active_instance_count": 1, "utilization": 0.5, "rate_limit": 0.0, "scale_bonus": 0.0}
    tied = {"utilization_current": 0.5, "rate_limit_ratio_5m": 0.0, "name": model, "chute_id": None}
    return Ranked(model=model, score=score, **{**usual, **tied, **known})


def test_the_parts_add_up_to_the_score() -> None:
    """What is shown as parts is what was ranked by."""
    catalog = parse_catalog(b'{"data": [{"id": "a"}, {"id": "b"}]}')
    rows = (
        UtilizationRow("a", None, 8, True, 3, 0.1, 0.2, 0.3, 0.4, 0.1, 0.0, 0.9),
        UtilizationRow("b", None, 3, False, None, None, None),
    )
    for candidate in rank(rows, catalog):
        assert score_parts(candidate).total == pytest.approx(candidate.score)


def test_the_first_is_told_how_far_ahead_it_is_and_the_others_how_far_behind() -> None:
    """Load, room and refusals are named where they count."""
    first = ranked("a", 3.25, active_instance_count=40, utilization=0.9, scale_bonus=0.05, rate_limit=0.01)
    ranking = (first, ranked("b", 0.5))
    assert sentence(ranking, 0) == (
        "40 active instances at 90% load leave 4.00 idle; room to grow adds 0.05; refusals (1%) cost 0.80; "
        "2.75 ahead of the next."
    )
    assert sentence(ranking, 1) == "1 active instance at 50% load leaves 0.50 idle; none refused; 2.75 behind number 1."


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"active_instance_count": 2}, "which has more instances"),
        ({"utilization_current": 0.4}, "which is less busy now"),
        ({"rate_limit_ratio_5m": -0.1}, "which refused fewer requests"),
        ({}, "so their names decide"),
    ],
)
def test_equals_are_told_what_decides(known: dict[str, float], said: str) -> None:
    """The tie breaks are those of the ranking, in its order."""
    assert f"as good as number 1, {said}." in sentence((ranked("a", 1.0, **known), ranked("b", 1.0)), 1)


def test_the_only_candidate_is_called_that() -> None:
    """There is nothing to compare it with."""
    assert sentence((ranked("a", 1.0),), 0).endswith("; it is the only candidate.")
