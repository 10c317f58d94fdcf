"""What one request tries: the steps from what it asks for to its order of attempts, each model left out by name."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from attrs import frozen

from chutes_autopilot.policy.capability import Capable, capable
from chutes_autopilot.policy.model_field import Alias, Direct, ModelField, PreferenceList
from chutes_autopilot.policy.model_offers import Offers
from chutes_autopilot.policy.plan import Plan, expanded, make_plan, mode_of
from chutes_autopilot.policy.request_needs import Need

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Known(Protocol):
    """What is known of the platform: control.snapshots.Snapshot."""

    @property
    def ranked_models(self) -> tuple[str, ...]: ...
    @property
    def offers(self) -> Offers: ...


@frozen
class Choice:
    """What is tried, and what is not.

    :param incapable: base names of models left out, by requirement (policy.capability.REQUIREMENTS).
    :param skipped: entries of the client's own list that are left out, by reason; empty for the alias.
    """

    plan: Plan
    incapable: Mapping[str, str] = _NOTHING
    skipped: Mapping[str, str] = _NOTHING


def choose(asked: ModelField, need: Need, known: Known, sticky: str | None, *, limit: int) -> Choice:
    """The order of attempts of one request.

    :param need: what the request asks of a model; looked at for an alias and for lists.
    :param sticky: base name of the client's remembered choice, to be tried first.
    :param limit: attempts a request may make, at least 1.
    :raises ApiError: no_candidates; no_capable_candidate, where there are some and none can serve the request.
    """
    mode = mode_of(asked)
    if isinstance(asked, Direct):
        return Choice(make_plan(mode, (asked,), None, limit=limit))

    def ranked(_alias: Alias) -> Sequence[str]:
        return known.ranked_models

    entries = expanded(asked, ranked)
    able = capable(need, (entry.base for entry in entries), known.offers, sure=mode == "list")
    entries = _kept(entries, able)
    plan = make_plan(mode, entries, sticky, limit=limit)
    return Choice(plan, able.skipped, _named(asked, able.skipped))


def _kept(entries: tuple[Direct, ...], able: Capable) -> tuple[Direct, ...]:
    """The entries of the capable models, in their order."""
    by_base = {entry.base: entry for entry in entries}
    return tuple(by_base[base] for base in able.models)


def _named(asked: ModelField, left_out: Mapping[str, str]) -> Mapping[str, str]:
    """Of the models left out those that the client named, as it wrote them."""
    if not left_out or not isinstance(asked, PreferenceList):
        return _NOTHING
    named = (item for item in asked.items if isinstance(item, Direct))
    return {item.model: left_out[item.base] for item in named if item.base in left_out}
