"""One truth from three sources: the listing, the catalog of language models and the live feed."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import attrs
from attrs import field, frozen

from chutes_autopilot.explorer.conflicts import FieldConflict, conflicts_of
from chutes_autopilot.explorer.listing import ListedChute, Listing
from chutes_autopilot.explorer.loads import Loads
from chutes_autopilot.explorer.matching import RULES, Fuzzy, Matching, Named, Rule, match
from chutes_autopilot.explorer.models import ModelList, ModelRecord
from chutes_autopilot.explorer.provenance import NOTHING_RECORDED, merged_model
from chutes_autopilot.explorer.provenance import MergedModel as MergedModel
from chutes_autopilot.explorer.records import CHUTES, UTILIZATION, V1, Invalid, InvalidField, Source


@frozen
class Ref:
    """A record by its id and name."""

    chute_id: str | None
    name: str

    def as_json(self) -> dict[str, Any]:
        """As the merge report shows it."""
        return {"chute_id": self.chute_id, "name": self.name}


@frozen
class IdConflict:
    """Two records of one name with two ids."""

    rule: Rule
    v1: Ref
    chutes: Ref

    def as_json(self) -> dict[str, Any]:
        """As the merge report shows it."""
        return attrs.asdict(self)


@frozen
class Suggested:
    """Two records that may be one model.

    :param blocked_by: ``chute_id`` where both have one and they differ.
    """

    rule: Rule
    score: float
    blocked_by: str | None
    v1: Ref
    chutes: Ref

    def as_json(self) -> dict[str, Any]:
        """As the merge report shows it."""
        return attrs.asdict(self)


@frozen
class Ambiguous:
    """A key that several records share, so that nothing is joined by it."""

    rule: Rule
    key: str
    v1: tuple[Ref, ...]
    chutes: tuple[Ref, ...]

    def as_json(self) -> dict[str, Any]:
        """As the merge report shows it."""
        sides = {"v1": [ref.as_json() for ref in self.v1], "chutes": [ref.as_json() for ref in self.chutes]}
        return {"rule": self.rule, "key": self.key, **sides}


@frozen
class Merged:
    """The merged models and how they came about. All sequences are sorted, by name where there is one.

    :param inputs: records that counted, of the sources that were there.
    :param by_rule: merged pairs by the rule that found them; rules without any are left out.
    :param only_in: records that no other catalog has; of the feed, those in neither catalog.
    """

    records: tuple[MergedModel, ...] = ()
    inputs: Mapping[Source, int] = {}
    by_rule: Mapping[Rule, int] = {}
    only_in: Mapping[Source, tuple[Ref, ...]] = {}
    id_conflicts: tuple[IdConflict, ...] = ()
    suggestions: tuple[Suggested, ...] = ()
    ambiguous: tuple[Ambiguous, ...] = ()
    field_conflicts: tuple[FieldConflict, ...] = ()
    invalid: tuple[Invalid, ...] = ()
    invalid_fields: tuple[InvalidField, ...] = ()
    fuzzy_pairs_skipped: int = 0
    by_key: Mapping[str, MergedModel] = field(init=False, eq=False, repr=False)
    """The records by their keys, which are distinct."""

    @by_key.default
    def _by_key(self) -> Mapping[str, MergedModel]:
        return MappingProxyType({record.key: record for record in self.records})


def _place(name: str, chute_id: str | None) -> tuple[str, str, str]:
    return name.casefold(), name, chute_id or ""


def _ref_place(ref: Ref) -> tuple[str, str, str]:
    return _place(ref.name, ref.chute_id)


def _model_place(model: ModelRecord) -> tuple[str, str, str]:
    # records without id and of one name can only be told apart by the rest of them
    return model.name, model.chute_id or "", repr(model) if model.chute_id is None else ""


def _ref(record: Named) -> Ref:
    return Ref(record.chute_id, record.name)


def _refs(records: Iterable[Named]) -> tuple[Ref, ...]:
    return tuple(sorted(map(_ref, records), key=_ref_place))


def _without_repeated_keys(records: Iterable[MergedModel]) -> Iterable[MergedModel]:
    # only models without id can share a key: several of one name
    used: set[str] = set()
    for record in records:
        key, number = record.key, 1
        while key in used:
            number += 1
            key = f"{record.key}#{number}"
        used.add(key)
        yield record if key == record.key else attrs.evolve(record, key=key)


def merge(
    chutes: Listing | None,
    v1: ModelList | None,
    utilization: Loads | None,
    *,
    fuzzy: Fuzzy = "suggest",
    first_recorded: Mapping[str, str] = NOTHING_RECORDED,
) -> Merged:
    """Merge what is there; a source that is None is one that was never had. Pure, and may run in a thread.

    :param fuzzy: what to do with names that are only alike.
    :param first_recorded: when the history here begins for each chute, in ISO 8601 by id: since then a model was seen
        of which the listing does not say when it was made.
    """
    listed = chutes.items if chutes else ()
    models = sorted(v1.items if v1 else (), key=_model_place)
    loads = {row.chute_id: row for row in (utilization.items if utilization else ())}
    found = match(models, listed, fuzzy=fuzzy)

    joined_models = {pair.v1 for pair in found.pairs}
    joined_chutes = {pair.chutes for pair in found.pairs}
    only_models = [model for place, model in enumerate(models) if place not in joined_models]
    only_chutes = [chute for place, chute in enumerate(listed) if place not in joined_chutes]
    known_ids = {chute.chute_id for chute in listed} | {model.chute_id for model in models}
    only_loads = [row for row in loads.values() if row.chute_id not in known_ids]

    merged = partial(merged_model, first_recorded=first_recorded)
    records = [
        merged(listed[pair.chutes], models[pair.v1], loads.get(listed[pair.chutes].chute_id), pair.rule)
        for pair in found.pairs
    ]
    records += [merged(chute, None, loads.get(chute.chute_id), None) for chute in only_chutes]
    records += [merged(None, model, loads.get(model.chute_id or ""), None) for model in only_models]
    records += [merged(None, None, row, None) for row in only_loads]
    records.sort(key=lambda record: _place(record.name, record.chute_id))

    given: dict[Source, Listing | ModelList | Loads | None] = {CHUTES: chutes, V1: v1, UTILIZATION: utilization}
    there = {source: read for source, read in given.items() if read is not None}
    counts = Counter(pair.rule for pair in found.pairs)
    conflicts = [conflict for pair in found.pairs for conflict in conflicts_of(listed[pair.chutes], models[pair.v1])]
    conflicts.sort(key=lambda conflict: (_place(conflict.name, conflict.chute_id), conflict.field))
    return Merged(
        records=tuple(_without_repeated_keys(records)),
        inputs={source: len(read.items) for source, read in there.items()},
        by_rule={rule: counts[rule] for rule in RULES if counts[rule]},
        only_in={CHUTES: _refs(only_chutes), V1: _refs(only_models), UTILIZATION: _refs(only_loads)},
        field_conflicts=tuple(conflicts),
        invalid=tuple(sorted((i for read in there.values() for i in read.invalid), key=lambda i: (i.source, i.index))),
        invalid_fields=tuple(
            sorted((i for read in there.values() for i in read.invalid_fields), key=lambda i: (i.source, i.index))
        ),
        fuzzy_pairs_skipped=found.fuzzy_pairs_skipped,
        **_reported(found, models, listed),
    )


def _reported(found: Matching, models: Sequence[ModelRecord], listed: Sequence[ListedChute]) -> dict[str, Any]:
    conflicts = [IdConflict(p.rule, _ref(models[p.v1]), _ref(listed[p.chutes])) for p in found.id_conflicts]
    suggestions = [
        Suggested(s.rule, s.score, "chute_id" if s.blocked else None, _ref(models[s.v1]), _ref(listed[s.chutes]))
        for s in found.suggestions
    ]
    ambiguous = [
        Ambiguous(a.rule, a.key, _refs(models[p] for p in a.v1), _refs(listed[p] for p in a.chutes))
        for a in found.ambiguous
    ]
    conflicts.sort(key=lambda c: (_ref_place(c.v1), _ref_place(c.chutes)))
    suggestions.sort(key=lambda s: (_ref_place(s.v1), _ref_place(s.chutes)))
    ambiguous.sort(key=lambda a: ([_ref_place(ref) for ref in a.v1], RULES.index(a.rule), a.key))
    return {"id_conflicts": tuple(conflicts), "suggestions": tuple(suggestions), "ambiguous": tuple(ambiguous)}
