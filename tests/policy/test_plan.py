"""Which models are tried, in what order."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.model_field import Alias, Direct, ModelField, PreferenceList
from chutes_autopilot.policy.plan import Plan, expanded, make_plan, mode_of

RANKED = ("r1", "r2", "r3", "r4")


def plan_of(asked: ModelField, ranked: Sequence[str], sticky: str | None, limit: int = 8) -> Plan:
    return make_plan(mode_of(asked), expanded(asked, lambda _: ranked), sticky, limit=limit)


def listed(*items: str) -> PreferenceList:
    """``*`` is the alias; what follows a colon is a suffix."""
    return PreferenceList(tuple(Alias(i[1:]) if i.startswith("*") else Direct(i, i.partition(":")[0]) for i in items))


@pytest.mark.parametrize(
    ("asked", "sticky", "mode", "preferred", "candidates"),
    [
        (Alias(), None, "alias", "r1 r2 r3 r4", "r1 r2 r3 r4"),
        (Alias(), "r3", "alias", "r1 r2 r3 r4", "r3 r1 r2 r4"),
        (Alias(), "gone", "alias", "r1 r2 r3 r4", "r1 r2 r3 r4"),
        (Alias(":T"), "r2", "alias", "r1:T r2:T r3:T r4:T", "r2:T r1:T r3:T r4:T"),
        (listed("b", "a"), None, "list", "b a", "b a"),
        (listed("b", "a"), "a", "list", "b a", "a b"),
        (listed("b", "a"), "r1", "list", "b a", "b a"),
        (listed("a", "*", "b"), None, "list", "a r1 r2 r3 r4 b", "a r1 r2 r3 r4 b"),
        (listed("r2", "*", "r1"), None, "list", "r2 r1 r3 r4", "r2 r1 r3 r4"),
        (listed("r2:L", "*:T", "b"), "r2", "list", "r2:L r1:T r3:T r4:T b", "r2:L r1:T r3:T r4:T b"),
        (listed("b", "*:T"), "r2", "list", "b r1:T r2:T r3:T r4:T", "r2:T b r1:T r3:T r4:T"),
        (listed("a:L", "a", "b"), None, "list", "a:L b", "a:L b"),
        (Direct("d:L", "d"), "r1", "direct", "d:L", "d:L"),
    ],
)
def test_the_order_of_attempts(
    asked: ModelField, sticky: str | None, mode: str, preferred: str, candidates: str
) -> None:
    """The alias follows the ranking, a list its own order; the sticky model goes first; no model comes twice."""
    plan = plan_of(asked, RANKED, sticky)
    assert (plan.mode, plan.preferred, plan.candidates) == (mode, tuple(preferred.split()), tuple(candidates.split()))


def test_every_entry_knows_its_base() -> None:
    """Entries with a suffix are remembered without it, also the one that stickiness pushed past the limit."""
    plan = plan_of(listed("a:latency", "*:THINKING"), RANKED, "r2", limit=1)
    assert (plan.candidates, plan.preferred) == (("r2:THINKING",), ("a:latency",))
    assert [plan.base(m) for m in ("r2:THINKING", "a:latency", "plain")] == ["r2", "a", "plain"]


@pytest.mark.parametrize("asked", [Alias(), listed("*"), listed("*", "*:T")])
def test_nothing_to_try_asks_for_patience(asked: ModelField) -> None:
    """An empty ranking is no_candidates with Retry-After, unless the client named models itself."""
    with pytest.raises(ApiError, match="no_candidates") as caught:
        plan_of(asked, (), "r1")
    assert (caught.value.status, caught.value.headers) == (503, ((b"Retry-After", b"1"),))


def test_named_models_need_no_ranking() -> None:
    """A list whose alias stands for nothing is tried without it."""
    assert plan_of(listed("*", "a"), (), None).candidates == ("a",)
    assert plan_of(Direct("a", "a"), (), None).candidates == ("a",)


@pytest.mark.parametrize(
    ("cooling", "sticky", "limit", "candidates", "last"),
    [
        ("b", None, 8, "a c d b", "b"),
        ("bd", "d", 8, "a c b d", "b d"),
        ("ab", "d", 8, "d c a b", "a b"),
        ("ab", "c", 3, "c d a", "a"),
        ("ab", None, 2, "c d", ""),
    ],
)
def test_what_cools_down_is_the_last_resort(
    cooling: str, sticky: str | None, limit: int, candidates: str, last: str
) -> None:
    """Behind all others, also where it is the client's own; the attempts allowed hold, the preferred order stands."""
    entries = [Direct(f"{name}:L", name) for name in "abcd"]
    plan = make_plan("list", entries, sticky, limit=limit, cooling=cooling)
    assert [plan.base(model) for model in plan.candidates] == candidates.split()
    assert plan.last_resort == {f"{name}:L" for name in last.split()}
    assert plan.preferred == make_plan("list", entries, None, limit=limit).candidates


NAMES = st.sampled_from("abcdef")
ITEMS = st.one_of(NAMES, st.builds("{}:L".format, NAMES), st.sampled_from(["*", "*:T"]))
ASKED = st.one_of(
    st.builds(Alias, st.sampled_from(["", ":T"])),
    st.lists(ITEMS, min_size=1, max_size=6, unique=True).map(lambda items: listed(*items)),
)


@given(
    asked=ASKED,
    ranked=st.lists(NAMES, unique=True),
    sticky=st.one_of(st.none(), NAMES),
    limit=st.integers(1, 8),
)
def test_stickiness_only_moves_one_model_to_the_front(asked, ranked, sticky, limit) -> None:  # type: ignore[no-untyped-def]
    """Bounded, without duplicates; without the sticky model both orders agree, and it is found behind the limit."""

    if not ranked and not (isinstance(asked, PreferenceList) and any(isinstance(i, Direct) for i in asked.items)):
        with pytest.raises(ApiError, match="no_candidates"):
            plan_of(asked, (), sticky, limit)
        return
    whole, bounded = plan_of(asked, ranked, None, 100), plan_of(asked, ranked, sticky, limit)
    assert whole.candidates == whole.preferred
    assert bounded.preferred == whole.preferred[:limit]
    assert len(bounded.candidates) == len(bounded.preferred)
    bases = [bounded.base(model) for model in bounded.candidates]
    assert len(set(bases)) == len(bases)
    order = list(whole.preferred)
    at = [whole.base(model) for model in order]
    if sticky in at:
        order.insert(0, order.pop(at.index(sticky)))
    assert list(bounded.candidates) == order[:limit]
