"""The catalog of language models and the live feed, read leniently."""

import json
from typing import Any

import pytest
from explorer_samples import uuid

from chutes_autopilot.explorer.loads import LoadRow, read_loads
from chutes_autopilot.explorer.models import ModelRecord, read_models
from chutes_autopilot.policy.feed_json import FeedError


def catalog(*records: Any) -> bytes:
    return json.dumps({"object": "list", "data": records}).encode()


def test_a_whole_model_is_read() -> None:
    """Every member finds its field; the answer's own time, the engine's permissions and TAO are left out."""
    body = catalog(
        {
            "id": "org/m-TEE",
            "chute_id": uuid(1),
            "root": "weights",
            "created": 1771393340,
            "owned_by": "sglang",
            "max_model_len": 1048576,
            "context_length": 96000,
            "max_output_length": 65536,
            "quantization": "fp8",
            "input_modalities": ["text", "image"],
            "output_modalities": ["text"],
            "supported_features": ["tools", "structured_output", "structured_outputs"],
            "supported_sampling_parameters": ["seed"],
            "confidential_compute": True,
            "price": {"input": {"usd": 5, "tao": 1}},
            "pricing": {"prompt": 0.1, "completion": 0.4, "input_cache_read": None},
            "permission": [],
        }
    )
    assert read_models(body).items == (
        ModelRecord(
            "org/m-TEE",
            uuid(1),
            root="weights",
            engine="sglang",
            max_model_len=1048576,
            context_length=96000,
            max_output_length=65536,
            quantization="fp8",
            input_modalities=("text", "image"),
            output_modalities=("text",),
            features=("tools", "structured_outputs"),
            sampling=("seed",),
            tee=True,
            prices={"price.input": 0.1, "price.output": 0.4},
        ),
    )


def test_what_is_missing_stays_unknown() -> None:
    """Context is not filled from the engine's upper bound, modalities not from habit."""
    (model,) = read_models(catalog({"id": "m", "max_model_len": 4096})).items
    assert model == ModelRecord("m", max_model_len=4096)


def test_a_model_may_lack_its_id_but_not_have_a_wrong_one() -> None:
    """Absent and null are an old shape; anything else that is no UUID drops the record, a second use too."""
    models = read_models(
        catalog(
            {"id": "a"},
            {"id": "a", "chute_id": None},
            {"id": "b", "chute_id": ""},
            {"id": "c", "chute_id": uuid(1).upper()},
            {"id": "d", "chute_id": uuid(1)},
            {"id": None, "chute_id": uuid(2)},
        )
    )
    assert [(model.name, model.chute_id) for model in models.items] == [("a", None), ("a", None), ("c", uuid(1))]
    assert [(bad.index, bad.reason) for bad in models.invalid] == [
        (2, "bad_chute_id"),
        (4, "duplicate_chute_id"),
        (5, "bad_name"),
    ]


def test_wrong_values_are_noted_by_their_path() -> None:
    """Digits in a string are no number; overrides of the platform may replace almost any key."""
    models = read_models(
        catalog(
            {"id": "a"},
            {
                "id": "b",
                "context_length": "131072",
                "supported_features": {"tools": True},
                "confidential_compute": "yes",
                "pricing": {"prompt": "0.1", "completion": 1},
            },
        )
    )
    assert [(bad.source, bad.index, bad.field) for bad in models.invalid_fields] == [
        ("v1", 1, "context_length"),
        ("v1", 1, "supported_features"),
        ("v1", 1, "confidential_compute"),
        ("v1", 1, "pricing.prompt"),
    ]
    assert models.items[1] == ModelRecord("b", prices={"price.output": 1})


def test_a_record_that_is_no_json_costs_only_itself() -> None:
    """The walk through the list does not decode."""
    models = read_models(b'{"data": [{"id": "a", "x": tru}, {"id": "b"}]}')
    assert [model.name for model in models.items] == ["b"]
    assert [(bad.index, bad.reason) for bad in models.invalid] == [(0, "bad_name")]


@pytest.mark.parametrize("body", [b"[]", b'{"data": [{}]}', b"<html>"])
def test_what_is_no_catalog_is_refused(body: bytes) -> None:
    """The last good catalog stays in place."""
    with pytest.raises(FeedError):
        read_models(body)


def test_the_feed_keeps_all_numbers_and_nothing_of_private_chutes() -> None:
    """Counts are extrapolated and so not whole; private rows do not even count as read."""
    private = {"chute_id": "broken", "name": "[private chute]", "utilization_current": "x"}
    row = {
        "chute_id": uuid(1),
        "name": "a",
        "timestamp": "2026-02-18T05:48:08.568123",
        "utilization_current": 0.25,
        "total_requests_5m": 11616.25,
        "active_instance_count": 40,
        "effective_multiplier": None,
        "scalable": False,
        "action_taken": "no_action",
    }
    loads = read_loads(json.dumps([private, row, {**row, "chute_id": "x"}, private]).encode())
    assert loads.items == (
        LoadRow(
            "a",
            uuid(1),
            measured_at="2026-02-18T05:48:08.568123Z",
            utilization_current=0.25,
            total_requests_5m=11616.25,
            active_instance_count=40,
            scalable=False,
            action_taken="no_action",
        ),
    )
    assert [(bad.source, bad.index, bad.reason) for bad in loads.invalid] == [("utilization", 2, "bad_chute_id")]
    assert not loads.invalid_fields


def test_every_number_of_the_feed_may_be_missing_or_wrong() -> None:
    """Each wrong one is noted, and the row stays."""
    row = {"chute_id": uuid(1), "name": "a", "utilization_5m": "0.5", "target_count": None, "scalable": 1}
    loads = read_loads(json.dumps([row]).encode())
    assert loads.items == (LoadRow("a", uuid(1)),)
    assert {bad.field for bad in loads.invalid_fields} == {"utilization_5m", "scalable"}
