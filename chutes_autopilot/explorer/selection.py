"""The merged models that a query asks for, in its order."""

from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

from chutes_autopilot.explorer.prices import INPUT
from chutes_autopilot.explorer.provenance import MergedModel
from chutes_autopilot.explorer.query import DEFAULT_LIMIT, Query, SortKey
from chutes_autopilot.explorer.records import CHUTES

Predicate = Callable[[MergedModel], bool]

_ALL_OF = ("modality", "feature", "source")
_ANY_OF = ("kind", "template", "quantization", "owner", "conflict", "tee", "hot")
_SEARCHED = ("name", "slug", "owner", "tagline", "root")


@frozen
class Page:
    """A part of what a query found.

    :param total: how many it found.
    :param everything: how many models there are.
    """

    items: tuple[MergedModel, ...]
    total: int
    everything: int
    limit: int
    offset: int


def select(records: Sequence[MergedModel], query: Query) -> Page:
    """The part of the records that the query asks for, the first DEFAULT_LIMIT where it does not say how many."""
    found = ordered(matching(records, query), query.sort)
    limit = query.limit or DEFAULT_LIMIT
    return Page(tuple(found[query.offset : query.offset + limit]), len(found), len(records), limit, query.offset)


def matching(records: Sequence[MergedModel], query: Query) -> list[MergedModel]:
    """All records that pass every filter, in their own order."""
    filters = [passes for _, passes in predicates(query)]
    return [record for record in records if all(passes(record) for passes in filters)]


def ordered(records: Sequence[MergedModel], keys: Sequence[SortKey]) -> list[MergedModel]:
    """The records by these keys, those without a value last; equal ones stay as they stand."""
    result = list(records)
    for key in reversed(keys):
        known = [record for record in result if record.fields[key.field] is not None]
        missing = [record for record in result if record.fields[key.field] is None]
        known.sort(key=lambda record: _place(record.fields[key.field]), reverse=key.descending)
        result = known + missing
    return result


def _place(value: Any) -> Any:
    if isinstance(value, str):
        return value.casefold(), value
    return tuple(text.casefold() for text in value) if isinstance(value, tuple) else value


def values_of(record: MergedModel, parameter: str) -> tuple[str, ...]:
    """What a record has of one of the parameters of a query that compare values; nothing where it is unknown."""
    fields = record.fields
    match parameter:
        case "modality":
            return tuple(dict.fromkeys((*(fields["input_modalities"] or ()), *(fields["output_modalities"] or ()))))
        case "feature":
            return tuple(dict.fromkeys(fields["features"] or ()))
        case "source":
            return record.sources
        case "conflict":
            return ("true", *record.conflicts) if record.conflicts else ("false",)
        case "tee" | "hot":
            return ({True: "true", False: "false", None: "unknown"}[fields[parameter]],)
        case "template" if fields["template"] is None:
            return ("other",) if CHUTES in record.sources else ()
    value = fields[parameter]
    return () if value is None else (value,)


def predicates(query: Query) -> tuple[tuple[str, Predicate], ...]:
    """The filters that a query sets, by their parameters."""
    found: list[tuple[str, Predicate]] = []
    for name, every in (*((name, True) for name in _ALL_OF), *((name, False) for name in _ANY_OF)):
        wanted = getattr(query, name)
        if wanted:
            found.append((name, _compares(name, (wanted,) if isinstance(wanted, str) else wanted, every)))
    if query.q:
        found.append(("q", _searches(query.q)))
    if query.context_min is not None:
        found.append(("context_min", _at_least("context_length", query.context_min)))
    if query.price_max is not None:
        found.append(("price_max", _at_most(INPUT, query.price_max)))
    return tuple(found)


def _compares(parameter: str, wanted: Sequence[str], every: bool) -> Predicate:
    folded = frozenset(value.casefold() for value in wanted)

    def passes(record: MergedModel) -> bool:
        common = folded.intersection(value.casefold() for value in values_of(record, parameter))
        return len(common) == len(folded) if every else bool(common)

    return passes


def _searches(words: str) -> Predicate:
    wanted = words.casefold().split()

    def passes(record: MergedModel) -> bool:
        texts = [record.chute_id, *(record.fields[field] for field in _SEARCHED), *(record.fields["aliases"] or ())]
        text = "\n".join(text for text in texts if text).casefold()
        return all(word in text for word in wanted)

    return passes


def _at_least(field: str, bound: float) -> Predicate:
    return lambda record: record.fields[field] is not None and record.fields[field] >= bound


def _at_most(field: str, bound: float) -> Predicate:
    return lambda record: record.fields[field] is not None and record.fields[field] <= bound
