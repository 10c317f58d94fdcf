"""How many models each further filter would leave, so that nobody has to try."""

from collections import Counter
from collections.abc import Mapping, Sequence

from chutes_autopilot.explorer.kinds import KINDS
from chutes_autopilot.explorer.provenance import MergedModel
from chutes_autopilot.explorer.query import Query
from chutes_autopilot.explorer.selection import predicates, values_of

FACETS = ("kind", "modality", "feature", "template", "quantization", "owner", "source", "conflict", "tee", "hot")
"""The parameters of a query whose values are counted."""

MAX_VALUES = 100
"""Values of one facet, the most frequent ones; the owners of chutes may be thousands."""


def facets(records: Sequence[MergedModel], query: Query) -> Mapping[str, Mapping[str, int]]:
    """By parameter, then by value: how many records pass all filters but that parameter's own and have the value.

    The most frequent value comes first; kinds are in their own order.
    """
    filters = predicates(query)
    counts: dict[str, Counter[str]] = {parameter: Counter() for parameter in FACETS}
    for record in records:
        failed = [parameter for parameter, passes in filters if not passes(record)]
        if len(failed) > 1:
            continue
        for parameter in FACETS:
            if not failed or failed == [parameter]:
                counts[parameter].update(values_of(record, parameter))
    return {parameter: _ordered(parameter, found) for parameter, found in counts.items()}


def _ordered(parameter: str, counts: Counter[str]) -> dict[str, int]:
    if parameter == "kind":
        return {kind: counts[kind] for kind in KINDS if counts[kind]}
    frequent = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return dict(frequent[:MAX_VALUES])
