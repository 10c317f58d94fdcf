"""The merge report."""

import json

from explorer_samples import chute_json, chutes, listing_of, models, uuid

from chutes_autopilot.explorer.merge import merge
from chutes_autopilot.explorer.report import Freshness, merge_report


def test_the_whole_report() -> None:
    """All lists with their members, and the counts of each."""
    merged = merge(
        chutes((1, "a"), (2, "conflict"), (3, "org/redeployed-TEE"), (4, "o/twin-FP8"), (5, "o/twin-TEE")),
        models((1, "b"), (12, "conflict"), (13, "org/redeployed"), (None, "o/twin")),
        None,
    )
    report = merge_report(
        merged,
        generated_at="2026-01-02T03:04:05Z",
        snapshot="s1",
        freshness={"chutes": Freshness("2026-01-02T03:00:00Z", stale=True), "v1": Freshness("2026-01-02T03:04:00Z")},
    )
    assert json.loads(json.dumps(report)) == {
        "generated_at": "2026-01-02T03:04:05Z",
        "snapshot": "s1",
        "inputs": {
            "chutes": {"count": 5, "fetched_at": "2026-01-02T03:00:00Z", "stale": True},
            "v1": {"count": 4, "fetched_at": "2026-01-02T03:04:00Z", "stale": False},
            "utilization": {"count": 0, "fetched_at": None, "stale": False},
        },
        "matched": {"total": 1, "by_rule": {"chute_id": 1}},
        "only_in": {
            "chutes": [
                {"chute_id": uuid(2), "name": "conflict"},
                {"chute_id": uuid(4), "name": "o/twin-FP8"},
                {"chute_id": uuid(5), "name": "o/twin-TEE"},
                {"chute_id": uuid(3), "name": "org/redeployed-TEE"},
            ],
            "v1": [
                {"chute_id": uuid(12), "name": "conflict"},
                {"chute_id": None, "name": "o/twin"},
                {"chute_id": uuid(13), "name": "org/redeployed"},
            ],
            "utilization": [],
        },
        "id_conflicts": [
            {
                "rule": "name",
                "v1": {"chute_id": uuid(12), "name": "conflict"},
                "chutes": {"chute_id": uuid(2), "name": "conflict"},
            }
        ],
        "suggestions": [
            {
                "rule": "norm_org",
                "score": 100.0,
                "blocked_by": "chute_id",
                "v1": {"chute_id": uuid(13), "name": "org/redeployed"},
                "chutes": {"chute_id": uuid(3), "name": "org/redeployed-TEE"},
            }
        ],
        "ambiguous": [
            {
                "rule": "norm_org",
                "key": "o/twin",
                "v1": [{"chute_id": None, "name": "o/twin"}],
                "chutes": [{"chute_id": uuid(4), "name": "o/twin-FP8"}, {"chute_id": uuid(5), "name": "o/twin-TEE"}],
            }
        ],
        "field_conflicts": [
            {
                "chute_id": uuid(1),
                "name": "a",
                "field": "name",
                "values": {"chutes": "a", "v1": "b"},
                "delta_abs": None,
                "delta_pct": None,
            }
        ],
        "invalid": [],
        "invalid_fields": [],
        "counts": {
            "records": 8,
            "only_in_chutes": 4,
            "only_in_v1": 3,
            "only_in_utilization": 0,
            "id_conflicts": 1,
            "suggestions": 1,
            "ambiguous": 1,
            "field_conflicts": 1,
            "invalid": 0,
            "invalid_fields": 0,
            "fuzzy_pairs_skipped": 0,
        },
    }


def test_faults_are_reported_by_place() -> None:
    """Source, index and reason or field; never the value."""
    merged = merge(listing_of(chute_json(1, "a", tagline=5), chute_json(2, "")), None, None)
    report = merge_report(merged, generated_at="", snapshot="", freshness={})
    assert report["invalid"] == [{"source": "chutes", "index": 1, "reason": "bad_name"}]
    assert report["invalid_fields"] == [{"source": "chutes", "index": 0, "field": "tagline"}]
    assert (report["counts"]["invalid"], report["counts"]["invalid_fields"]) == (1, 1)
