"""The merge report: how the sources were joined, and all that did not fit, as plain data.

Names in it come from strangers; whoever shows them escapes them.
"""

from collections.abc import Mapping
from typing import Any

import attrs
from attrs import frozen

from chutes_autopilot.explorer.merge import Merged
from chutes_autopilot.explorer.records import SOURCES, Source


@frozen
class Freshness:
    """How old a source's records are.

    :param fetched_at: ISO 8601, or None where the source was never had.
    :param stale: the last attempt to renew them failed.
    """

    fetched_at: str | None
    stale: bool = False


def merge_report(
    merged: Merged, *, generated_at: str, snapshot: str, freshness: Mapping[Source, Freshness]
) -> dict[str, Any]:
    """The answer of /api/merge/report, JSON-able.

    :param generated_at: ISO 8601.
    :param snapshot: the id of this merged state.
    """
    unknown = Freshness(None)
    only_in = {source: [ref.as_json() for ref in merged.only_in.get(source, ())] for source in SOURCES}
    lists: dict[str, list[dict[str, Any]]] = {
        "id_conflicts": [conflict.as_json() for conflict in merged.id_conflicts],
        "suggestions": [suggestion.as_json() for suggestion in merged.suggestions],
        "ambiguous": [ambiguous.as_json() for ambiguous in merged.ambiguous],
        "field_conflicts": [conflict.as_json() for conflict in merged.field_conflicts],
        "invalid": [invalid.as_json() for invalid in merged.invalid],
        "invalid_fields": [invalid.as_json() for invalid in merged.invalid_fields],
    }
    return {
        "generated_at": generated_at,
        "snapshot": snapshot,
        "inputs": {
            source: {"count": merged.inputs.get(source, 0), **attrs.asdict(freshness.get(source, unknown))}
            for source in SOURCES
        },
        "matched": {"total": sum(merged.by_rule.values()), "by_rule": dict(merged.by_rule)},
        "only_in": only_in,
        **lists,
        "counts": {
            "records": len(merged.records),
            **{f"only_in_{source}": len(refs) for source, refs in only_in.items()},
            **{name: len(entries) for name, entries in lists.items()},
            "fuzzy_pairs_skipped": merged.fuzzy_pairs_skipped,
        },
    }
