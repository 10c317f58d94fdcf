"""What happened to the models between two merged states: what is worth a line in the feed, or a webhook.

Said only once it is certain: the first state of a source tells nothing, a model that is missing for a moment was
never removed, a sudden loss of most models must be seen twice, and noise in prices is none of it.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal

from attrs import evolve, frozen

from chutes_autopilot.explorer.merge import Merged
from chutes_autopilot.explorer.prices import UNITS, differ
from chutes_autopilot.explorer.provenance import MergedModel, Value
from chutes_autopilot.explorer.records import CHUTES, V1, Source

ChangeType = Literal["model.added", "model.removed", "model.changed", "price.changed"]

WATCHED = ("name", "tee", "context_length", "max_output_length", "quantization", "root")
"""The fields other than prices that are worth telling about."""

PATIENCE = 3
"""States in a row in which a model must be missing before it counts as removed."""

_CATALOGS: tuple[Source, ...] = (CHUTES, V1)


@frozen
class FieldChange:
    """One field's value before and after; both are known.

    :param unit: of a price, see prices.UNITS.
    """

    field: str
    before: Value
    after: Value
    unit: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As the API shows it."""
        unit = {"unit": self.unit} if self.unit else {}
        return {"field": self.field, "before": self.before, "after": self.after, **unit}


@frozen
class Change:
    """Something that happened to one model.

    :param at: Unix seconds; when a removed model was first missing.
    """

    type: ChangeType
    at: float
    key: str
    chute_id: str | None
    name: str
    fields: tuple[FieldChange, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As the API shows it."""
        return {
            "type": self.type,
            "at": self.at,
            "key": self.key,
            "chute_id": self.chute_id,
            "name": self.name,
            "fields": [change.as_json() for change in self.fields],
        }


@frozen
class Known:
    """A model as it was last seen.

    :param shown: the last known value of each watched field; ``said`` what each source had said about it.
    :param missing: states in a row without it, since ``missing_since`` (Unix seconds).
    """

    chute_id: str | None
    name: str
    sources: frozenset[Source]
    shown: Mapping[str, Value]
    said: Mapping[str, Mapping[Source, Value]]
    missing: int = 0
    missing_since: float = 0.0


@frozen
class Watch:
    """All that must be remembered from state to state.

    :param sources: those that were there before, so that what is new in them is new.
    :param holding: the last state had lost most models and was not believed.
    """

    models: Mapping[str, Known] = {}
    sources: frozenset[Source] = frozenset()
    holding: bool = False


def shrunk(before: Collection[str], after: Collection[str]) -> bool:
    """Whether more than half of the keys are gone: perhaps true, but to be seen twice before it is believed."""
    remaining = after if isinstance(after, set | frozenset | Mapping) else set(after)
    return 2 * sum(key not in remaining for key in before) > len(before)


def _known(model: MergedModel, last: Known | None = None) -> Known:
    fields = [field for field in (*WATCHED, *UNITS) if field in model.provenance]
    shown = {field: model.fields[field] for field in fields}
    said: dict[str, Mapping[Source, Value]] = {field: model.said_by(field) for field in fields}
    if last is not None:
        shown = {**last.shown, **shown}
        said = {**last.said, **{field: {**last.said.get(field, {}), **said[field]} for field in fields}}
    catalogs = frozenset(source for source in model.sources if source in _CATALOGS)
    return Known(model.chute_id, model.name, catalogs, shown, said)


def _differ(field: str, before: Value, after: Value) -> bool:
    return differ(before, after) if field in UNITS else bool(before != after)


def field_changes(before: Known, after: MergedModel) -> tuple[FieldChange, ...]:
    """The fields that changed, among WATCHED and the prices (USD, with the tolerance of prices.differ).

    What became known or unknown did not change. Nor did what only another source says now: one source at least must
    have changed its own mind.
    """
    changes = []
    for field, old in before.shown.items():
        new = after.fields[field]
        if new is None or not _differ(field, old, new):
            continue
        said, says = before.said[field], after.said_by(field)
        if any(_differ(field, said[source], says[source]) for source in said.keys() & says.keys()):
            changes.append(FieldChange(field, old, new, UNITS.get(field)))
    return tuple(changes)


def _previous_key(model: MergedModel, known: Mapping[str, Known], current: Mapping[str, MergedModel]) -> str | None:
    """Under which key the model was known: another one where its id was missing until now."""
    if model.key in known:
        return model.key
    unnamed = f"v1:{model.v1_id}"
    return unnamed if unnamed in known and unnamed not in current else None


def observe(watch: Watch, merged: Merged, at: float, *, patience: int = PATIENCE) -> tuple[Watch, tuple[Change, ...]]:
    """The watch to go on with, and what happened since the last state, sorted by name.

    Pure: feed it every new merged state, in order, starting from ``Watch()``. Models that only the live feed knows are
    no models of a catalog and are not watched.

    :param at: when the state was put together, Unix seconds.
    :param patience: states in which a model must be missing before it counts as removed.
    """
    current = {key: model for key, model in merged.by_key.items() if any(s in _CATALOGS for s in model.sources)}
    present = {_previous_key(model, watch.models, current) for model in current.values()}
    expected = [
        key for key, known in watch.models.items() if not known.missing and known.sources <= merged.inputs.keys()
    ]
    if not watch.holding and shrunk(expected, {key for key in present if key is not None}):
        return evolve(watch, holding=True), ()

    models: dict[str, Known] = {}
    changes: list[Change] = []
    for key, model in current.items():
        previous = _previous_key(model, watch.models, current)
        if previous is None:
            models[key] = _known(model)
            if any(source in watch.sources for source in models[key].sources):
                changes.append(Change("model.added", at, key, model.chute_id, model.name))
            continue
        last = watch.models[previous]
        models[key] = _known(model, last)
        changes += _changes(last, model, at)
    for key, known in watch.models.items():
        if key in present:
            continue
        if not known.sources <= merged.inputs.keys():
            models[key] = known  # nobody was there who could tell
            continue
        gone = evolve(known, missing=known.missing + 1, missing_since=known.missing_since if known.missing else at)
        if gone.missing < patience:
            models[key] = gone
        else:
            changes.append(Change("model.removed", gone.missing_since, key, known.chute_id, known.name))
    changes.sort(key=lambda change: (change.name.casefold(), change.name, change.key, change.type))
    return Watch(models, watch.sources | merged.inputs.keys()), tuple(changes)


def _changes(last: Known, model: MergedModel, at: float) -> list[Change]:
    found = field_changes(last, model)
    prices = tuple(change for change in found if change.unit)
    others = tuple(change for change in found if not change.unit)
    kinds: tuple[tuple[ChangeType, tuple[FieldChange, ...]], ...] = (
        ("price.changed", prices),
        ("model.changed", others),
    )
    return [Change(kind, at, model.key, model.chute_id, model.name, fields) for kind, fields in kinds if fields]
