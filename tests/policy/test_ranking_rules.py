import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.policy.catalog import Catalog, CatalogEntry
from chutes_autopilot.policy.feed_json import SLICE
from chutes_autopilot.policy.ranking import Ranked, rank, rank_in_slices
from chutes_autopilot.policy.utilization import UtilizationRow


def row(name: str = "a-TEE", active: float = 10, **numbers: Any) -> UtilizationRow:
    return UtilizationRow(name, active_instance_count=active, **numbers)


def models(*rows: UtilizationRow, catalog: Catalog | None = None) -> list[str]:
    return [ranked.model for ranked in rank(rows, catalog)]


@pytest.mark.parametrize(
    ("numbers", "score"),
    [
        ({}, 0.0),
        ({"utilization_5m": 0.0}, 10.0),
        ({"utilization_current": 0.25}, 7.5),
        ({"utilization_5m": 0.5, "utilization_current": 0.0}, 5.0),
        ({"utilization_5m": 0.0, "utilization_15m": 1.0}, 6.0),
        ({"utilization_5m": 0.0, "utilization_1h": 1.0}, 9.0),
        ({"utilization_5m": 0.0, "utilization_15m": 1.0, "utilization_1h": 0.0}, 7.0),
        ({"utilization_5m": 1.5}, 0.0),
        ({"scalable": True}, 0.0),
        ({"scalable": True, "scale_allowance": 4}, 0.2),
        ({"scalable": True, "scale_allowance": 100}, 0.4),
        ({"scalable": False, "scale_allowance": 4}, 0.0),
        ({"rate_limit_ratio_5m": 0.5}, -10.0),
        ({"rate_limit_ratio_15m": 0.5}, -5.0),
        ({"rate_limit_ratio_1h": 0.5}, -2.5),
        ({"rate_limit_ratio_5m": 0.1, "rate_limit_ratio_15m": 0.4, "rate_limit_ratio_1h": 0.0}, -4.0),
        ({"rate_limit_ratio_5m": 0.1, "rate_limit_ratio_15m": 0.0, "rate_limit_ratio_1h": 0.8}, -4.0),
        ({"utilization_5m": 0.25, "rate_limit_ratio_5m": 0.1, "scalable": True, "scale_allowance": 2}, 5.6),
    ],
)
def test_the_score(numbers: dict[str, Any], score: float) -> None:
    """Idle instances, plus room to grow, minus refusals; what is missing is filled from the shorter span."""
    assert rank([row(**numbers)], None)[0].score == pytest.approx(score)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (row("z-TEE", 10, utilization_5m=0.5), row("a-TEE", 100, utilization_5m=0.99)),
        (row("z-TEE", 20, utilization_5m=0.75), row("a-TEE", 10, utilization_5m=0.5)),
        (row("z-TEE", utilization_5m=0.5, utilization_current=0.1), row("a-TEE", utilization_5m=0.5)),
        (row("z-TEE", utilization_5m=0.5), row("a-TEE", utilization_5m=0.5, utilization_current=0.6)),
        (
            row("z-TEE", rate_limit_ratio_5m=0.0, rate_limit_ratio_15m=0.5),
            row("a-TEE", rate_limit_ratio_5m=0.25, rate_limit_ratio_15m=0.5),
        ),
        (row("z-TEE"), row("a-TEE", rate_limit_ratio_1h=0.1)),
        (row("A-TEE"), row("a-TEE")),
    ],
    ids=["score", "instances", "current", "current-missing", "refusals", "refusals-missing", "name"],
)
def test_the_order(better: UtilizationRow, worse: UtilizationRow) -> None:
    """Score, then instances, then current use, then refusals, then name."""
    assert models(better, worse) == models(worse, better) == [better.name, worse.name]


def test_two_rows_of_one_model_keep_the_better_place() -> None:
    """Two chutes of one name, where the catalog does not say which it is, make one candidate, the better of the two."""
    catalog = Catalog((CatalogEntry("new", None, b""), CatalogEntry("other", "c2", b"")))
    old = UtilizationRow("new", "c1", 9, utilization_5m=0.0)
    new = UtilizationRow("new", "c3", 1, utilization_5m=0.0)
    other = UtilizationRow("other", "c2", 5, utilization_5m=0.0)
    ranking = rank([new, other, old], catalog)
    assert [(ranked.model, ranked.chute_id, ranked.score) for ranked in ranking] == [
        ("new", "c1", 9),
        ("other", "c2", 5),
    ]


def test_a_stranger_does_not_rank_a_model_by_taking_its_name() -> None:
    """The model has the place of its own chute, whatever that is called now; without one it has none."""
    catalog = Catalog((CatalogEntry("a", "c1", b""), CatalogEntry("b", "c2", b"")))
    renamed = UtilizationRow("a-old", "c1", 1, utilization_5m=0.0)
    strangers = [UtilizationRow(name, "c9", 100, utilization_5m=0.0) for name in "ab"]
    ranking = rank([*strangers, renamed], catalog)
    assert [(ranked.model, ranked.name, ranked.score) for ranked in ranking] == [("a", "a-old", 1)]


def test_a_place_explains_itself() -> None:
    """What made the score, and what breaks ties, stands in the result."""
    (ranked,) = rank([row(utilization_5m=0.5, rate_limit_ratio_5m=0.25, scalable=True, scale_allowance=2)], None)
    assert ranked == Ranked(
        "a-TEE", pytest.approx(0.1), 10, pytest.approx(0.5), 0.25, 0.1, 0.5, 0.25, name="a-TEE", chute_id=None
    )


NUMBER = st.none() | st.floats(0, 1e15) | st.integers(0, 10)
ROWS = st.lists(
    st.builds(
        UtilizationRow,
        name=st.sampled_from(["a-TEE", "b-TEE", "c-TEE", "d"]),
        active_instance_count=NUMBER,
        scalable=st.booleans(),
        scale_allowance=NUMBER,
        utilization_current=NUMBER,
        utilization_5m=NUMBER,
        rate_limit_ratio_5m=NUMBER,
        rate_limit_ratio_1h=NUMBER,
    )
)


@settings(deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_the_feed_does_not_matter(rows: list[UtilizationRow], shuffle: random.Random) -> None:
    """Any numbers rank, every eligible model once, and the same in whatever order the feed lists them."""
    expected = models(*rows)
    shuffle.shuffle(rows)
    assert models(*rows) == expected
    assert sorted(expected) == sorted({r.name for r in rows if r.active_instance_count and r.name != "d"})


def test_a_long_feed_ranks_in_slices() -> None:
    """Many rows rank with a pause after every slice, to the same order as all at once."""
    numbers = random.Random(1)
    rows = [row(f"{number}-TEE", numbers.randint(1, 9), utilization_5m=numbers.random()) for number in range(3 * SLICE)]
    work, pauses = rank_in_slices(rows, None), 0
    while True:
        try:
            next(work)
        except StopIteration as done:
            ranking: tuple[Ranked, ...] = done.value
            break
        pauses += 1
    assert pauses >= 3
    places = [
        (-r.score, -r.active_instance_count, r.utilization_current, r.rate_limit_ratio_5m, r.model) for r in ranking
    ]
    assert places == sorted(places)
    assert len(places) == 3 * SLICE
