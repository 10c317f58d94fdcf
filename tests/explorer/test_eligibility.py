"""Why a model is no candidate."""

import json

from explorer_samples import loads, uuid

from chutes_autopilot.explorer.eligibility import EXPLANATIONS, Excluded, excluded
from chutes_autopilot.explorer.loads import LoadRow
from chutes_autopilot.explorer.merge import merge
from chutes_autopilot.policy.catalog import Catalog, parse_catalog
from chutes_autopilot.policy.ranking import rank
from chutes_autopilot.policy.utilization import UtilizationRow


def catalog(*named: tuple[int | None, str]) -> Catalog:
    data = [{"id": name, "chute_id": None if number is None else uuid(number)} for number, name in named]
    return parse_catalog(json.dumps({"data": data}).encode())


def rows(*named: tuple[int, str, float]) -> tuple[UtilizationRow, ...]:
    return tuple(UtilizationRow(name, uuid(number), active) for number, name, active in named)


def load(number: int, name: str, active: float | None) -> LoadRow:
    return LoadRow(name, uuid(number), active_instance_count=active)


def test_every_model_that_is_no_candidate_has_its_reason() -> None:
    """The ranked ones are left out, also one that goes by another name in the feed."""
    listed = catalog((1, "ranked"), (2, "idle"), (3, "lost"), (4, "late"), (None, "twin"), (7, "renamed"), (10, "gone"))
    ranking = rank(rows((1, "ranked", 2.0), (5, "twin", 9.0), (7, "old name", 1.0)), listed)
    feed = loads(
        load(1, "ranked", 2),
        load(2, "idle", 0),
        load(4, "late", 1),
        load(5, "twin", 9),
        load(6, "twin", 1),
        load(7, "old name", 1),
        load(8, "Stranger", 3),
        load(9, "unknown", None),
        load(11, "gone", 3),
        load(12, "ranked", 3),
    )
    assert excluded(ranking, listed, merge(None, None, feed)) == (
        Excluded("gone", uuid(10), "no_utilization"),
        Excluded("gone", uuid(11), "namesake"),
        Excluded("idle", uuid(2), "no_active_instance"),
        Excluded("late", uuid(4), "not_yet_ranked"),
        Excluded("lost", uuid(3), "no_utilization"),
        Excluded("ranked", uuid(12), "namesake"),
        Excluded("Stranger", uuid(8), "not_listed"),
        Excluded("twin", uuid(6), "other_chute"),
        Excluded("unknown", uuid(9), "no_active_instance"),
    )


def test_without_a_catalog_only_the_name_can_be_trusted() -> None:
    """Then TEE is what counts; and without anything there is nothing to say."""
    feed = merge(None, None, loads(load(1, "a-TEE", 1), load(2, "b", 1)))
    ranking = rank(rows((1, "a-TEE", 1.0), (2, "b", 1.0)), None)
    assert excluded(ranking, None, feed) == (Excluded("b", uuid(2), "not_tee"),)
    assert excluded((), None, None) == ()
    assert all(each.endswith(".") for each in EXPLANATIONS.values())
