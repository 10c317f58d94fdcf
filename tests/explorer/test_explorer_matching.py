"""Which records of the two catalogs are joined, reported, or left alone."""

from itertools import permutations

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.explorer import fuzzy as fuzzy_names
from chutes_autopilot.explorer.matching import Matching, match


@frozen
class Record:
    name: str
    chute_id: str | None = None


def v(*names: str) -> list[Record]:
    """Records of the catalog, ``id=name`` or just a name."""
    return [Record(name.rpartition("=")[2], name.rpartition("=")[0] or None) for name in names]


def told(found: Matching, v1: list[Record], chutes: list[Record]) -> dict[str, object]:
    """The whole result by names and ids in place of positions, in no order."""
    return {
        "pairs": {(p.rule, v1[p.v1], chutes[p.chutes]) for p in found.pairs},
        "id_conflicts": {(p.rule, v1[p.v1], chutes[p.chutes]) for p in found.id_conflicts},
        "suggestions": {(s.rule, s.score, s.blocked, v1[s.v1], chutes[s.chutes]) for s in found.suggestions},
        "ambiguous": {
            (a.rule, a.key, frozenset(v1[p] for p in a.v1), frozenset(chutes[p] for p in a.chutes))
            for a in found.ambiguous
        },
        "skipped": found.fuzzy_pairs_skipped,
    }


def rules(found: Matching) -> list[tuple[str, int, int]]:
    return [(pair.rule, pair.v1, pair.chutes) for pair in found.pairs]


@pytest.mark.parametrize(
    ("model", "chute", "rule"),
    [
        ("1=x/a", "1=other/b", "chute_id"),
        ("Org/Model-7B", "9=Org/Model-7B", "name"),
        ("Org/Model-7B", "9=org/model-7b", "casefold"),
        ("Org/Model-7B", "9=org/model-7b-TEE", "norm_org"),
        ("Org/Model-7B", "9=Other/Model_7B-FP8", "norm"),
        ("Org/Mo-del-7B", "9=Other/Model-7B", "joined"),
    ],
)
def test_each_rule_joins_what_the_earlier_ones_leave(model: str, chute: str, rule: str) -> None:
    """A record without id is joined by the first rule whose key is equal; ids join without any look at names."""
    assert rules(match(v(model), v(chute))) == [(rule, 0, 0)]


def test_equal_ids_win_over_names() -> None:
    """Two records that swapped names are joined by their ids."""
    found = match(v("1=a/x", "2=a/y"), v("1=a/y", "2=a/x"))
    assert sorted(rules(found)) == [("chute_id", 0, 0), ("chute_id", 1, 1)]
    assert not found.id_conflicts


@pytest.mark.parametrize(("chute", "rule"), [("2=Org/Model-7B", "name"), ("2=ORG/model-7b", "casefold")])
def test_one_name_with_two_ids_is_a_conflict(chute: str, rule: str) -> None:
    """Equal names never join records whose ids differ; they are reported."""
    found = match(v("1=Org/Model-7B"), v(chute))
    assert not found.pairs
    assert [pair.rule for pair in found.id_conflicts] == [rule]
    assert not found.suggestions


@pytest.mark.parametrize(
    ("chute", "rule", "score"),
    [
        ("2=Org/Model-7B-TEE", "norm_org", 100.0),
        ("2=Redeployed/Model-7B", "norm", 100.0),
        ("2=Redeployed/Mo-Del-7B", "joined", 70.6),
    ],
)
def test_a_redeployed_model_is_only_suggested(chute: str, rule: str, score: float) -> None:
    """Normal forms that are equal suggest a pair with two ids, and say that the ids stand against it."""
    found = match(v("1=Org/Model-7B"), v(chute))
    assert not found.pairs
    (suggestion,) = found.suggestions
    assert (suggestion.rule, suggestion.score, suggestion.blocked) == (rule, score, True)


def test_records_reported_by_one_rule_take_part_in_no_later_one() -> None:
    """A conflict of names is not suggested again by its normal form."""
    found = match(v("1=a/x-7b"), v("2=a/x-7b", "3=b/x-7b-TEE"))
    assert len(found.id_conflicts) == 1
    assert not found.suggestions
    assert not found.ambiguous


def test_records_without_id_among_others_with_ids() -> None:
    """Each record goes by what it has."""
    found = match(v("1=a/x", "b/y", "3=c/z"), v("9=b/y", "1=renamed", "4=c/z"))
    assert sorted(rules(found)) == [("chute_id", 0, 1), ("name", 1, 0)]
    assert [(pair.v1, pair.chutes) for pair in found.id_conflicts] == [(2, 2)]


def test_twins_are_ambiguous_and_told_once() -> None:
    """Two chutes with one normal form leave a record unjoined; coarser rules do not repeat that."""
    found = match(v("a/model-7b"), v("1=a/model-7b-FP8", "2=a/Model-7B-TEE"))
    assert not found.pairs
    assert [(a.rule, a.key, a.v1, a.chutes) for a in found.ambiguous] == [("norm_org", "a/model-7b", (0,), (0, 1))]
    assert not found.suggestions


def test_a_key_held_by_a_joined_record_counts_too() -> None:
    """The last record left over of a key is not joined by it as long as another one holds the key."""
    found = match(v("1=a/m-7b", "a/m-7b-FP8"), v("1=a/m-7b", "2=b/m-7b"))
    assert rules(found) == [("chute_id", 0, 0)]
    assert [(a.rule, a.v1, a.chutes) for a in found.ambiguous] == [("norm", (0, 1), (0, 1))]


def test_names_without_tokens_never_match_by_a_form() -> None:
    """Empty forms are no keys, and nothing is alike in names without a letter or number."""
    found = match(v("模型", "1=型模"), v("2=另一个", "3=TEE"))
    assert found == Matching()


FUZZY = (v("org/Zephyrion-Chat-7B"), v("5=org/Zephyrions-Chat-7B"))


def test_names_that_are_alike_are_suggested() -> None:
    """One letter apart, with equal numbers and variant words: a suggestion, no pair."""
    found = match(*FUZZY)
    assert not found.pairs
    (suggestion,) = found.suggestions
    assert (suggestion.rule, suggestion.blocked) == ("fuzzy", False)
    assert suggestion.score >= 90


def test_fuzzy_pairs_can_be_applied_or_switched_off() -> None:
    """Apply merges only where an id is missing; off does not look."""
    assert rules(match(*FUZZY, fuzzy="apply")) == [("fuzzy", 0, 0)]
    assert match(*FUZZY, fuzzy="off") == Matching()
    both = match(v("4=org/Zephyrion-Chat-7B"), FUZZY[1], fuzzy="apply")
    assert not both.pairs
    assert [(s.rule, s.blocked) for s in both.suggestions] == [("fuzzy", True)]


def test_a_number_changed_by_one_is_no_suggestion() -> None:
    """However alike the rest is."""
    assert match(v("org/Extraordinary-Model-71B"), v("5=org/Extraordinary-Model-72B")) == Matching()


def test_the_best_candidate_must_be_unique() -> None:
    """Two that are equally alike suggest nothing."""
    assert match(v("zephyrion-7b"), v("1=zephyriona-7b", "2=zephyrionb-7b")) == Matching()


def test_the_more_alike_pair_goes_first() -> None:
    """Where two records want one candidate, the better score has it."""
    found = match(v("abcdefghijklmnop", "abcdefghijklmnopqr"), v("1=abcdefghijklmnopq"))
    assert [(s.v1, s.chutes) for s in found.suggestions] == [(1, 0)]


def test_too_many_pairs_of_one_guard_are_counted_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block over the limit costs nothing; other blocks are not touched by it."""
    monkeypatch.setattr(fuzzy_names, "MAX_BLOCK_PAIRS", 3)
    v1 = v("zephyrion", "aurelianum", "org/Zephyrion-7B")
    found = match(v1, v("1=zephyrions", "2=aurelianums", "3=org/Zephyrions-7B"))
    assert found.fuzzy_pairs_skipped == 4
    assert [(s.v1, s.chutes) for s in found.suggestions] == [(2, 2)]


def test_long_names_do_not_buy_more_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block whose strings are too long in all is left out whole."""
    monkeypatch.setattr(fuzzy_names, "MAX_WORK", 100)
    assert match(v("zephyrion"), v("1=zephyrions")).fuzzy_pairs_skipped == 0
    assert match(v("zephyrion" * 2), v("1=zephyrions" + "zephyrion")).fuzzy_pairs_skipped == 1


# few different parts, so that every rule has something to find
parts = st.sampled_from(
    ["a", "A", "model", "Model", "mod-el", "7b", "8b", "TEE", "FP8", "chat", "zephyrion", "zephyrions"]
)
some_names = st.builds(
    lambda org, words: f"{org}/{'-'.join(words)}" if org else "-".join(words),
    st.sampled_from(["", "org", "Org", "other"]),
    st.lists(parts, min_size=1, max_size=3),
)
ids = st.integers(1, 8).map(str)


def sides(optional: bool) -> st.SearchStrategy[list[Record]]:
    record = st.builds(Record, some_names, st.one_of(st.none(), ids) if optional else ids)
    # ids are unique in a source; of records without, equal names cannot be told apart here
    return st.lists(record, max_size=7, unique_by=lambda r: r.chute_id or f"name {r.name}")


@given(sides(True), sides(False), st.sampled_from(["off", "suggest", "apply"]))
def test_every_record_is_in_one_pair_at_most(v1: list[Record], chutes: list[Record], mode: str) -> None:
    """The joining is one-to-one, and so are the reports about the rest."""
    found = match(v1, chutes, fuzzy=mode)  # type: ignore[arg-type]
    reported = [(p.v1, p.chutes) for p in (*found.pairs, *found.id_conflicts, *found.suggestions)]
    assert len({a for a, _ in reported}) == len({b for _, b in reported}) == len(reported)


@given(sides(True), sides(False), st.randoms(use_true_random=False))
def test_the_order_of_the_lists_makes_no_difference(v1: list[Record], chutes: list[Record], random: object) -> None:
    """Permuted lists give the same pairs and the same reports."""
    mixed_v1, mixed_chutes = list(v1), list(chutes)
    random.shuffle(mixed_v1)  # type: ignore[attr-defined]
    random.shuffle(mixed_chutes)  # type: ignore[attr-defined]
    for mode in ("suggest", "apply"):
        plain, mixed = match(v1, chutes, fuzzy=mode), match(mixed_v1, mixed_chutes, fuzzy=mode)  # type: ignore[arg-type]
        assert told(plain, v1, chutes) == told(mixed, mixed_v1, mixed_chutes)


@given(sides(True), sides(False))
def test_names_never_override_ids(v1: list[Record], chutes: list[Record]) -> None:
    """Every id in both lists is a pair, and no pair has two different ids."""
    found = match(v1, chutes, fuzzy="apply")
    shared = {r.chute_id for r in v1} & {r.chute_id for r in chutes}
    assert {v1[p.v1].chute_id for p in found.pairs if p.rule == "chute_id"} == shared
    for pair in found.pairs:
        mine, theirs = v1[pair.v1].chute_id, chutes[pair.chutes].chute_id
        assert mine == theirs if pair.rule == "chute_id" else mine is None


@given(sides(False))
def test_a_list_merged_with_itself_is_joined_by_ids_alone(records: list[Record]) -> None:
    """Every record finds itself, and nothing is left to report."""
    found = match(records, records)
    assert found == Matching(pairs=tuple(found.pairs))
    assert sorted(rules(found)) == [("chute_id", place, place) for place in range(len(records))]


def test_all_orders_of_a_tangle_give_one_result() -> None:
    """Fuzzy candidates that compete are given out the same way whatever comes first."""
    v1, chutes = v("zephyrion-7b", "zephyrio-7b", "zephyrionss-7b"), v("1=zephyrions-7b", "2=zephyrionx-7b")
    results = [told(match(order, chutes), list(order), chutes) for order in permutations(v1)]
    assert all(result == results[0] for result in results)
