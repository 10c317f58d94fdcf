"""Why a model is not among the candidates: the other half of the ranking."""

from collections.abc import Sequence
from typing import Literal

from attrs import frozen

from chutes_autopilot.explorer.merge import Merged
from chutes_autopilot.explorer.provenance import MergedModel
from chutes_autopilot.explorer.records import UTILIZATION
from chutes_autopilot.policy.catalog import Catalog
from chutes_autopilot.policy.ranking import Ranked
from chutes_autopilot.policy.utilization import UtilizationRow, eligible_name, is_namesake, listed_model

ExclusionReason = Literal[
    "no_utilization", "no_active_instance", "not_listed", "namesake", "not_tee", "other_chute", "not_yet_ranked"
]

EXPLANATIONS: dict[ExclusionReason, str] = {
    "no_utilization": "The live feed has no row for it, so nobody knows how busy it is.",
    "no_active_instance": "None of its instances is active.",
    "not_listed": "The catalog of language models does not list it.",
    "namesake": "It has the name of a listed model, but it is another chute.",
    "not_tee": "There is no catalog of language models, and without one only names that end in -TEE are trusted.",
    "other_chute": "Another chute of the same model stands better, and it stands for both.",
    "not_yet_ranked": "It came with a newer feed than the one that was ranked last.",
}
"""What each reason means, for people."""


@frozen
class Excluded:
    """A model that the alias cannot choose."""

    name: str
    chute_id: str | None
    reason: ExclusionReason


def excluded(ranking: Sequence[Ranked], catalog: Catalog | None, merged: Merged | None) -> tuple[Excluded, ...]:
    """Every model of the catalog or the live feed that is not in the ranking, sorted by name.

    :param ranking: with its ``catalog`` from one snapshot of the router; ``merged`` may be a little older or newer.
    """
    ranked_models = {ranked.model for ranked in ranking}
    ranked_chutes = {ranked.chute_id for ranked in ranking if ranked.chute_id is not None}
    found: list[Excluded] = []
    rows = [_row(record) for record in (merged.records if merged else ()) if UTILIZATION in record.sources]
    for row in rows:
        if row.chute_id not in ranked_chutes:
            found.append(Excluded(row.name, row.chute_id, _reason(row, catalog, ranked_models)))
    spoken_for = {listed_model(row, catalog) for row in rows} if catalog else set()
    chutes = {row.chute_id for row in rows}
    for entry in catalog.entries if catalog else ():
        if entry.id not in ranked_models and entry.id not in spoken_for and entry.chute_id not in chutes:
            found.append(Excluded(entry.id, entry.chute_id, "no_utilization"))
    return tuple(sorted(found, key=lambda each: (each.name.casefold(), each.name, each.chute_id or "")))


def _row(record: MergedModel) -> UtilizationRow:
    name = record.said_by("name").get(UTILIZATION, record.name)
    return UtilizationRow(name, record.chute_id, record.fields["active_instance_count"])


def _reason(row: UtilizationRow, catalog: Catalog | None, ranked_models: set[str]) -> ExclusionReason:
    if not row.active_instance_count:
        return "no_active_instance"
    model = eligible_name(row, catalog)
    if model is None:
        if catalog is None or not catalog.ids:
            return "not_tee"
        return "namesake" if is_namesake(row, catalog) else "not_listed"
    return "other_chute" if model in ranked_models else "not_yet_ranked"
