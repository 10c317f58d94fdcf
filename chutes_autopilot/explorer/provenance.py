"""One merged record: every field with its value, the source it is from, and what the other sources say."""

from collections.abc import Mapping
from typing import Any, Literal

import attrs
from attrs import frozen

from chutes_autopilot.explorer.conflicts import conflicts_of
from chutes_autopilot.explorer.kinds import TEMPLATE_MODALITIES, kind_of_chute, kind_of_modalities
from chutes_autopilot.explorer.listing import ListedChute
from chutes_autopilot.explorer.loads import LoadRow
from chutes_autopilot.explorer.matching import Rule
from chutes_autopilot.explorer.models import ModelRecord
from chutes_autopilot.explorer.prices import UNITS, blended, main_unit
from chutes_autopilot.explorer.records import CHUTES, SOURCES, UTILIZATION, V1, Source

Value = Any
"""A JSON value: string, number, boolean, or a tuple of strings."""

_APART = frozenset({"chute_id", "prices", "cords"})


def _plain_fields(record: type) -> tuple[str, ...]:
    return tuple(name for name in attrs.fields_dict(record) if name not in _APART)


_PLAIN: dict[Source, tuple[str, ...]] = {
    CHUTES: _plain_fields(ListedChute),
    V1: _plain_fields(ModelRecord),
    UTILIZATION: _plain_fields(LoadRow),
}

KIND = "kind"
ALIASES = "aliases"
FIRST_SEEN = "first_seen"
PRICE_UNIT = "price.unit"
BLENDED = "price.blended"

FIELDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            "name",
            ALIASES,
            KIND,
            FIRST_SEEN,
            *_PLAIN[CHUTES],
            *_PLAIN[V1],
            *UNITS,
            PRICE_UNIT,
            BLENDED,
            *_PLAIN[UTILIZATION],
        )
    )
)
"""Every field that a merged record has, in the order in which they are shown; one that nobody knows is None."""


Origin = Source | Literal["history"]
"""A source, or what was recorded here."""


@frozen
class Provenance:
    """Where a value is from.

    :param inferred: worked out here; the source says something else that implies it.
    :param others: every other source's value, equal or not.
    """

    source: Origin
    inferred: bool = False
    others: Mapping[Source, Value] = {}

    def as_json(self) -> dict[str, Any]:
        """As records show it."""
        mark = {"inferred": True} if self.inferred else {}
        return {"from": self.source, **mark, "others": {source: _json(value) for source, value in self.others.items()}}


@frozen
class MergedModel:
    """One model with all that the sources say about it.

    :param key: the chute id, or ``v1:`` and the name for a model without one.
    :param rule: how the two catalogs' records were found to be one; None where only one has it.
    :param v1_id: its name in the catalog of language models; ``chutes_name`` in the listing.
    :param sources: those that have it.
    :param fields: every one of FIELDS; None is unknown.
    :param provenance: of the fields that have a value.
    :param conflicts: fields on which the two catalogs disagree.
    """

    key: str
    chute_id: str | None
    rule: Rule | None
    v1_id: str | None
    chutes_name: str | None
    sources: tuple[Source, ...]
    fields: Mapping[str, Value]
    provenance: Mapping[str, Provenance]
    conflicts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name to show."""
        return str(self.fields["name"])

    def said_by(self, field: str) -> dict[Source, Value]:
        """What each source itself says about a field, in the order of precedence."""
        origin = self.provenance.get(field)
        if origin is None or origin.inferred:
            return {}
        own, others = self.fields[field], origin.others
        saying = (source for source in SOURCES if source == origin.source or source in others)
        return {source: own if source == origin.source else others[source] for source in saying}

    def as_json(self) -> dict[str, Any]:
        """The record as the API shows it."""
        return {
            "key": self.key,
            "chute_id": self.chute_id,
            "match": {"rule": self.rule, "v1_id": self.v1_id, "chutes_name": self.chutes_name},
            "sources": list(self.sources),
            "fields": {field: _json(value) for field, value in self.fields.items()},
            "provenance": {field: origin.as_json() for field, origin in self.provenance.items()},
        }


def _json(value: Value) -> Value:
    return list(value) if isinstance(value, tuple) else value


NOTHING_RECORDED: Mapping[str, str] = {}
_ALONE = {source: Provenance(source) for source in SOURCES}


def _values(source: Source, record: ListedChute | ModelRecord | LoadRow | None) -> dict[str, Value]:
    if record is None:
        return {}
    said = ((field, getattr(record, field)) for field in _PLAIN[source])
    known = {field: value for field, value in said if value is not None}
    if not isinstance(record, LoadRow):
        known.update(record.prices)
    return known


class _Draft:
    """Collects the fields of one record."""

    def __init__(self, said: Mapping[Source, Mapping[str, Value]]) -> None:
        self.fields: dict[str, Value] = dict.fromkeys(FIELDS)
        self.provenance: dict[str, Provenance] = {}
        by_field: dict[str, dict[Source, Value]] = {}
        for source in SOURCES:
            for field, value in said[source].items():
                by_field.setdefault(field, {})[source] = value
        for field, values in by_field.items():
            self._take(field, values)

    def _take(self, field: str, values: dict[Source, Value]) -> None:
        source = next(iter(values))
        if field == "tee":  # a conflict must not show as protected
            source = next((source for source, protected in values.items() if not protected), source)
        self.fields[field] = values.pop(source)
        self.provenance[field] = Provenance(source, others=values) if values else _ALONE[source]

    def infer(self, field: str, value: Value, source: Origin) -> None:
        """Set a field that no source states, unless one does."""
        if value is not None and field not in self.provenance:
            self.fields[field] = value
            self.provenance[field] = Provenance(source, inferred=True)


def _infer_kind(draft: _Draft, chute: ListedChute | None, model: ModelRecord | None) -> None:
    stated = kind_of_modalities(draft.fields["input_modalities"], draft.fields["output_modalities"])
    if stated is not None:
        draft.infer(KIND, stated, draft.provenance["output_modalities"].source)
    elif chute is not None:
        draft.infer(KIND, kind_of_chute(chute.template, chute.cords), CHUTES)
    elif model is not None:  # the catalog lists no other models
        draft.infer(KIND, kind_of_chute("vllm", ()), V1)


def merged_model(
    chute: ListedChute | None,
    model: ModelRecord | None,
    load: LoadRow | None,
    rule: Rule | None,
    first_recorded: Mapping[str, str] = NOTHING_RECORDED,
) -> MergedModel:
    """One record of what up to three sources say about one model; at least one of them does.

    :param first_recorded: see merge.
    """
    said = {CHUTES: _values(CHUTES, chute), V1: _values(V1, model), UTILIZATION: _values(UTILIZATION, load)}
    sources = tuple(source for source in SOURCES if said[source])
    ids = (record.chute_id for record in (chute, model, load) if record is not None)
    chute_id = next((chute_id for chute_id in ids if chute_id is not None), None)
    draft = _Draft(said)
    if chute is not None and chute.template in TEMPLATE_MODALITIES:
        inputs, outputs = TEMPLATE_MODALITIES[chute.template]
        draft.infer("input_modalities", inputs, CHUTES)
        draft.infer("output_modalities", outputs, CHUTES)
    _infer_kind(draft, chute, model)
    draft.infer(FIRST_SEEN, draft.fields["created_at"], CHUTES)
    draft.infer(FIRST_SEEN, first_recorded.get(chute_id or ""), "history")
    name = draft.fields["name"]
    names = draft.provenance["name"].others
    draft.fields[ALIASES] = tuple(sorted(set(names.values()) - {name}))
    if draft.fields[ALIASES]:
        draft.provenance[ALIASES] = Provenance(next(source for source, other in names.items() if other != name))
    prices = {field: draft.fields[field] for field in UNITS if field in draft.provenance}
    if prices:
        draft.infer(PRICE_UNIT, main_unit(prices), draft.provenance[next(iter(prices))].source)
        draft.infer(BLENDED, blended(prices), draft.provenance[next(iter(prices))].source)
    return MergedModel(
        key=chute_id or f"v1:{name}",
        chute_id=chute_id,
        rule=rule,
        v1_id=model.name if model else None,
        chutes_name=chute.name if chute else None,
        sources=sources,
        fields=draft.fields,
        provenance=draft.provenance,
        conflicts=tuple(conflict.field for conflict in conflicts_of(chute, model)) if chute and model else (),
    )
