"""One record per model, with the source of every field."""

import json
from typing import Any

import pytest
from explorer_samples import chutes, loads, models, uuid
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.explorer.listing import Cord, ListedChute, Listing
from chutes_autopilot.explorer.loads import LoadRow, Loads
from chutes_autopilot.explorer.merge import Merged, Ref, merge
from chutes_autopilot.explorer.models import ModelList, ModelRecord
from chutes_autopilot.explorer.provenance import FIELDS
from chutes_autopilot.explorer.records import Invalid, InvalidField


def pair(chute: dict[str, Any], model: dict[str, Any], load: dict[str, Any] | None = None) -> Merged:
    """Three records of one id, merged."""
    return merge(
        chutes(ListedChute(**{"name": "m", "chute_id": uuid(1), **chute})),
        models(ModelRecord(**{"name": "m", "chute_id": uuid(1), **model})),
        loads(LoadRow(**{"name": "m", "chute_id": uuid(1), **(load or {})})),
    )


def test_a_record_in_full() -> None:
    """The JSON form: key, match, sources, every field, and provenance of the known ones with the others' values."""
    merged = pair(
        {"name": "org/m-TEE", "prices": {"price.input": 0.1, "price.per_hour": 3}, "tagline": "fast"},
        {"name": "org/m", "prices": {"price.input": 0.2, "price.output": 0.5}, "output_modalities": ("text",)},
        {"name": "org/m", "utilization_current": 0.5},
    )
    (record,) = merged.records
    shown = json.loads(json.dumps(record.as_json()))
    assert {name: shown[name] for name in ("key", "chute_id", "match", "sources")} == {
        "key": uuid(1),
        "chute_id": uuid(1),
        "match": {"rule": "chute_id", "v1_id": "org/m", "chutes_name": "org/m-TEE"},
        "sources": ["chutes", "v1", "utilization"],
    }
    assert tuple(shown["fields"]) == FIELDS
    known = {field: value for field, value in shown["fields"].items() if value is not None}
    assert known == {
        "name": "org/m-TEE",
        "aliases": ["org/m"],
        "kind": "chat",
        "tagline": "fast",
        "output_modalities": ["text"],
        "price.input": 0.1,
        "price.output": 0.5,
        "price.per_hour": 3,
        "price.unit": "usd_per_1m_tokens",
        "price.blended": pytest.approx(0.2),
        "utilization_current": 0.5,
    }
    assert shown["provenance"] == {
        "name": {"from": "chutes", "others": {"v1": "org/m", "utilization": "org/m"}},
        "aliases": {"from": "v1", "others": {}},
        "kind": {"from": "v1", "inferred": True, "others": {}},
        "tagline": {"from": "chutes", "others": {}},
        "output_modalities": {"from": "v1", "others": {}},
        "price.input": {"from": "chutes", "others": {"v1": 0.2}},
        "price.output": {"from": "v1", "others": {}},
        "price.per_hour": {"from": "chutes", "others": {}},
        "price.unit": {"from": "chutes", "inferred": True, "others": {}},
        "price.blended": {"from": "chutes", "inferred": True, "others": {}},
        "utilization_current": {"from": "utilization", "others": {}},
    }
    assert record.conflicts == ("name", "price.input")


def test_others_are_listed_also_where_they_agree() -> None:
    """Provenance shows that two sources say the same."""
    provenance = pair({"tee": True}, {"tee": True}).records[0].as_json()["provenance"]
    assert provenance["tee"] == {"from": "chutes", "others": {"v1": True}}
    assert provenance["name"] == {"from": "chutes", "others": {"v1": "m", "utilization": "m"}}


@pytest.mark.parametrize(
    ("listed", "catalog", "tee", "source", "conflict"),
    [
        (True, True, True, "chutes", False),
        (True, False, False, "v1", True),
        (False, True, False, "chutes", True),
        (True, None, True, "chutes", False),
        (None, True, True, "v1", False),
        (None, None, None, None, False),
    ],
)
def test_a_model_is_protected_only_if_all_who_know_say_so(
    listed: bool | None, catalog: bool | None, tee: bool | None, source: str | None, conflict: bool
) -> None:
    """A conflict does not show as protected; unknown on both sides stays unknown."""
    merged = pair({"tee": listed}, {"tee": catalog})
    (record,) = merged.records
    assert record.fields["tee"] is tee
    assert (record.provenance["tee"].source if source else record.provenance.get("tee")) == source
    assert [c.field for c in merged.field_conflicts] == (["tee"] if conflict else [])


@pytest.mark.parametrize(
    ("chute", "inputs", "outputs", "kind"),
    [
        ({"template": "diffusion"}, ("text",), ("image",), "image"),
        ({"template": "tei"}, ("text",), ("embedding",), "embedding"),
        ({"template": "embedding"}, ("text",), ("embedding",), "embedding"),
        ({"template": "vllm"}, None, None, "chat"),
        ({"cords": (Cord("/speak", None, None, "audio/wav"),)}, None, None, "audio"),
        ({}, None, None, "other"),
    ],
)
def test_only_templates_infer_modalities(
    chute: dict[str, Any], inputs: tuple[str, ...] | None, outputs: tuple[str, ...] | None, kind: str
) -> None:
    """Diffusion and embedding templates imply them, marked as inferred; unknown stays unknown."""
    (record,) = merge(chutes(ListedChute("m", uuid(1), **chute)), None, None).records
    assert (record.fields["input_modalities"], record.fields["output_modalities"]) == (inputs, outputs)
    assert ("input_modalities" in record.provenance) is (inputs is not None)
    assert all(record.provenance[f].inferred for f in ("kind", "input_modalities") if f in record.provenance)
    assert record.fields["kind"] == kind


def test_what_a_source_states_is_not_inferred() -> None:
    """Stated modalities win over the template, and over its kind."""
    (record,) = pair(
        {"template": "diffusion"}, {"output_modalities": ("text",), "input_modalities": ("image",)}
    ).records
    assert record.fields["output_modalities"] == ("text",)
    assert not record.provenance["output_modalities"].inferred
    assert record.fields["kind"] == "vision"


def test_context_is_never_filled_from_the_engines_bound() -> None:
    """What is served stays unknown."""
    assert pair({}, {"max_model_len": 1048576}).records[0].fields["context_length"] is None


def test_no_price_is_none_and_free_is_zero() -> None:
    """A missing price is not shown as free, and a free one not as missing."""
    unknown, free = pair({}, {}), pair({"prices": {"price.input": 0, "price.output": 0}}, {})
    assert unknown.records[0].fields["price.input"] is unknown.records[0].fields["price.unit"] is None
    assert free.records[0].fields["price.input"] == free.records[0].fields["price.blended"] == 0


def test_every_record_is_in_the_result_once() -> None:
    """Joined pairs and whatever is left of each source; the feed joins by id alone, also a model without a chute."""
    merged = merge(
        chutes((1, "b"), (2, "only listed")),
        models((1, "a"), (3, "Only in the catalog"), (None, "no id")),
        loads((1, "x"), (3, "y"), (4, "no id")),
    )
    assert [(record.key, record.name, record.rule, record.sources) for record in merged.records] == [
        (uuid(1), "b", "chute_id", ("chutes", "v1", "utilization")),
        ("v1:no id", "no id", None, ("v1",)),
        (uuid(4), "no id", None, ("utilization",)),
        (uuid(3), "Only in the catalog", None, ("v1", "utilization")),
        (uuid(2), "only listed", None, ("chutes",)),
    ]
    assert merged.only_in == {
        "chutes": (Ref(uuid(2), "only listed"),),
        "v1": (Ref(None, "no id"), Ref(uuid(3), "Only in the catalog")),
        "utilization": (Ref(uuid(4), "no id"),),
    }
    assert merged.by_key[uuid(1)].fields["aliases"] == ("a", "x")
    assert merged.inputs == {"chutes": 2, "v1": 3, "utilization": 3}
    assert merged.by_rule == {"chute_id": 1}


def test_a_model_joined_by_name_takes_the_chutes_id() -> None:
    """Its utilization comes with it, and the rule is shown."""
    merged = merge(chutes((1, "org/m-TEE")), models((None, "org/m")), loads(LoadRow("m", uuid(1), target_count=3)))
    (record,) = merged.records
    assert (record.key, record.rule, record.v1_id, record.chutes_name) == (uuid(1), "norm_org", "org/m", "org/m-TEE")
    assert record.fields["target_count"] == 3


def test_models_of_one_name_and_no_id_have_distinct_keys() -> None:
    """Which is which is decided by their content and not by their order."""
    a, b = ModelRecord("m", root="a"), ModelRecord("m", root="b")
    for order in ((a, b), (b, a)):
        merged = merge(chutes(), models(*order, ModelRecord("m#2")), None)
        assert {record.key: record.fields["root"] for record in merged.records} == {
            "v1:m": "a",
            "v1:m#2": "b",
            "v1:m#2#2": None,
        }


@pytest.mark.parametrize(
    ("listed", "catalog", "conflict"),
    [(1.0, 1.00005, False), (1.0, 1.0002, True), (0.04, 0.03999999999999995, False), (0, 0.5, True), (None, 1, False)],
)
def test_prices_conflict_beyond_the_tolerance(listed: float | None, catalog: float, conflict: bool) -> None:
    """Noise is none, and a missing price contradicts nothing."""
    prices = {} if listed is None else {"price.output": listed}
    merged = pair({"prices": prices}, {"prices": {"price.output": catalog}})
    assert [c.field for c in merged.field_conflicts] == (["price.output"] if conflict else [])


def test_conflicts_say_by_how_much() -> None:
    """The difference is the listing's less the catalog's, in percent of the catalog's; none of zero."""
    dearer = pair({"prices": {"price.input": 0.3}}, {"prices": {"price.input": 0.2}}).field_conflicts[0]
    assert (dearer.delta_abs, dearer.delta_pct) == (pytest.approx(0.1), pytest.approx(50))
    from_free = pair({"prices": {"price.input": 0.3}}, {"prices": {"price.input": 0}}).field_conflicts[0]
    assert (from_free.delta_abs, from_free.delta_pct) == (0.3, None)
    renamed = pair({"name": "new"}, {"name": "old"}).field_conflicts[0]
    assert (renamed.field, renamed.chutes, renamed.v1, renamed.delta_abs) == ("name", "new", "old", None)


def test_faults_of_all_sources_are_sorted_by_source_and_place() -> None:
    """They travel through the merge."""
    merged = merge(
        Listing(invalid=(Invalid("chutes", 4, "bad_name"), Invalid("chutes", 2, "bad_name"))),
        ModelList(invalid_fields=(InvalidField("v1", 9, "b"), InvalidField("v1", 1, "a"))),
        Loads(invalid=(Invalid("utilization", 0, "bad_name"),)),
    )
    assert [(i.source, i.index) for i in merged.invalid] == [("chutes", 2), ("chutes", 4), ("utilization", 0)]
    assert [i.index for i in merged.invalid_fields] == [1, 9]


def test_nothing_merges_to_nothing() -> None:
    """Sources that were never had are told from empty ones."""
    assert merge(None, None, None).inputs == {}
    assert merge(chutes(), None, None) == Merged(
        inputs={"chutes": 0}, only_in={"chutes": (), "v1": (), "utilization": ()}
    )


names = st.sampled_from(["a/m-7b", "A/M-7B", "b/m-7b-TEE", "zephyrion", "zephyrions", "x"])
listings = st.lists(st.tuples(st.integers(1, 6), names), max_size=5, unique_by=lambda record: record[0])
catalogs = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(1, 6)), names),
    max_size=5,
    unique_by=lambda record: record[0] if record[0] is not None else record,
)


@given(listings, catalogs, listings, st.randoms(use_true_random=False))
def test_the_order_of_the_sources_makes_no_difference(
    chute: list[tuple[int, str]], model: list[tuple[int | None, str]], load: list[tuple[int, str]], random: Any
) -> None:
    """Permuted sources merge to the same result, in the same order."""
    straight = merge(chutes(*chute), models(*model), loads(*load))
    for source in (chute, model, load):
        random.shuffle(source)
    assert merge(chutes(*chute), models(*model), loads(*load)) == straight


@given(listings, catalogs, listings)
def test_no_record_is_lost_or_doubled(
    chute: list[tuple[int, str]], model: list[tuple[int | None, str]], load: list[tuple[int, str]]
) -> None:
    """As many records as there are, less one for each pair; all keys distinct."""
    merged = merge(chutes(*chute), models(*model), loads(*load), fuzzy="apply")
    assert len(merged.by_key) == len(merged.records)
    pairs = sum(merged.by_rule.values())
    assert len(merged.records) == len(chute) + len(model) - pairs + len(merged.only_in["utilization"])
    assert sum("utilization" in record.sources for record in merged.records) == len(load)
