"""What one request tries: the steps from what it asks for to its order of attempts, each model left out by name."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn, Protocol

from attrs import frozen

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.aliases import ANY, Order, Wanted
from chutes_autopilot.policy.capability import capable, verdict
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.policy.model_field import Alias, Direct, ModelField, PreferenceList
from chutes_autopilot.policy.model_offers import Offers
from chutes_autopilot.policy.plan import Plan, expanded, make_plan, mode_of, no_candidates
from chutes_autopilot.policy.ranking import Ranked
from chutes_autopilot.policy.request_needs import Need
from chutes_autopilot.policy.spread import spread

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Known(Protocol):
    """What is known of the platform: control.snapshots.Snapshot."""

    @property
    def ranking(self) -> tuple[Ranked, ...]: ...
    @property
    def ranked_models(self) -> tuple[str, ...]: ...
    @property
    def offers(self) -> Offers: ...


@frozen
class Client:
    """What counts of the client whose request it is.

    :param sticky: base name of its remembered choice, to be tried first.
    :param gave_way: that choice is only to be tried first while the preferred model cools down.
    :param spread_by: its key, where it has an order of its own (AUTOPILOT_SPREAD); None: the ranking's.
    """

    sticky: str | None = None
    gave_way: bool = False
    spread_by: bytes | None = None


@frozen
class Choice:
    """What is tried, and what is not.

    :param unwanted: base names of ranked models left out, by part of the alias (policy.aliases).
    :param incapable: base names of models left out, by requirement (policy.capability.REQUIREMENTS).
    :param cooling: base names of candidates in their cooldown; they are tried behind all others.
    :param skipped: entries of the client's own list that are left out or put behind, by reason; empty for the alias.
    :param considered: base names of all that could be tried, further ones than the attempts allowed; empty for a direct
        model.
    :param order: the own measurement by which it is sorted, wholly or in part; empty for none.
    :param measured: what was measured then of the candidates, by base name: seconds, or tokens per second.
    :param lasting: whether it holds for every request of this kind until the snapshot or what cools down changes.
    """

    plan: Plan
    unwanted: Mapping[str, str] = _NOTHING
    incapable: Mapping[str, str] = _NOTHING
    cooling: tuple[str, ...] = ()
    skipped: Mapping[str, str] = _NOTHING
    considered: tuple[str, ...] = ()
    order: Order = ""
    measured: Mapping[str, float] = MappingProxyType({})
    lasting: bool = True


@frozen
class Chooser:
    """Chooses for one request after another.

    :param known: the platform at this moment.
    :param limit: attempts a request may make, at least 1.
    :param require_tee: an alias stands for confidential models only (AUTOPILOT_REQUIRE_TEE).
    :param spare: what is behind the last attempt allowed may be tried in another's place (plan.make_plan).
    """

    known: Known
    health: FleetHealth
    limit: int
    require_tee: bool = False
    spare: bool = False

    def choose(self, asked: ModelField, need: Need, client: Client, now: float) -> Choice:
        """The order of attempts of one request.

        :param need: what the request asks of a model; looked at for an alias and for lists.
        :raises ApiError: no_candidates; no_capable_candidate, where there are some and none can serve the request.
        """
        mode = mode_of(asked)
        if isinstance(asked, Direct):
            return Choice(make_plan(mode, (asked,), None, limit=self.limit))
        unwanted: dict[str, str] = {}
        known = self.known
        models = known.ranked_models if client.spread_by is None else spread(client.spread_by, known.ranking)

        def ranked(alias: Alias) -> Sequence[str]:
            names, left_out = self._wanted(models, alias.wanted)
            unwanted.update(left_out)
            return self._measured(names, alias.wanted.order, now)

        entries = expanded(asked, ranked)
        try:
            if not entries and unwanted:
                self._refuse(unwanted, asked)
            able = capable(need, (entry.base for entry in entries), self.known.offers, sure=mode == "list")
        except ApiError as error:
            offers = self.known.offers
            verdicts = {entry.base: verdict(need, offers.of(entry.base), sure=True) for entry in entries}
            error.left_out = unwanted, {name: lacks for name, lacks in verdicts.items() if lacks is not None}
            raise
        entries = _in_order(entries, able.models)
        order = asked.order if isinstance(asked, PreferenceList) else asked.wanted.order
        if isinstance(asked, PreferenceList) and order:
            entries = _in_order(entries, self._measured(able.models, order, now))
        available = self.health.filter([entry.base for entry in entries], now)
        sticky = None if order else client.sticky
        if client.gave_way and not (entries and entries[0].base in available.cooling and not available.forced):
            sticky = None
        cooling = dict.fromkeys(available.cooling if not available.forced else (), "cooling")
        plan = make_plan(mode, entries, sticky, limit=self.limit, cooling=cooling, spare=self.spare)
        sorted_by = _sorted_by(asked)
        return Choice(
            plan,
            {name: part for name, part in unwanted.items() if name not in by_base(entries)},
            able.skipped,
            available.cooling,
            _named(asked, {**able.skipped, **cooling}),
            tuple(entry.base for entry in entries),
            sorted_by,
            self._measurements(entries, sorted_by, now) if sorted_by else MappingProxyType({}),
            lasting=not sorted_by and client.spread_by is None,
        )

    def _wanted(self, models: tuple[str, ...], wanted: Wanted) -> tuple[tuple[str, ...], dict[str, str]]:
        """Of the ranked models those that are wanted, and the part that each of the others lacks."""
        if self.require_tee:
            wanted &= Wanted(tee=True)
        if wanted == ANY:
            return models, {}
        offers = self.known.offers
        missing = {name: wanted.unmet(offers.of(name)) for name in models}
        kept = tuple(name for name, part in missing.items() if part is None)
        return kept, {name: part for name, part in missing.items() if part is not None}

    def _measured(self, names: Sequence[str], order: Order, now: float) -> Sequence[str]:
        if order == "fast":
            return self.health.by_first_token(names, now)
        return self.health.by_throughput(names, now) if order == "throughput" else names

    def _measurements(self, entries: Sequence[Direct], order: Order, now: float) -> Mapping[str, float]:
        found = ((entry.base, self.health.measured(entry.base, order, now)) for entry in entries)
        return {name: value for name, value in found if value is not None}

    def _refuse(self, unwanted: Mapping[str, str], asked: Alias | PreferenceList) -> NoReturn:
        """There are models, and an alias wants none of them: the request's fault, unless the operator narrows it."""
        aliases = [asked] if isinstance(asked, Alias) else [item for item in asked.items if isinstance(item, Alias)]
        if not any(alias.wanted.narrows for alias in aliases):
            raise no_candidates("No confidential model is available at the moment")
        missing = ", ".join(sorted(set(unwanted.values())))
        raise ApiError("no_capable_candidate", f"No live model keeps all parts of the alias: {missing}.", param="model")


def by_base(entries: Sequence[Direct]) -> dict[str, Direct]:
    """The entries by the name under which they are remembered."""
    return {entry.base: entry for entry in entries}


def _in_order(entries: Sequence[Direct], bases: Sequence[str]) -> tuple[Direct, ...]:
    """Of the entries those with these base names, in their order."""
    found = by_base(entries)
    return tuple(found[base] for base in bases)


def _sorted_by(asked: Alias | PreferenceList) -> Order:
    """The measurement, which changes with every answer, that orders the list, or else the first such alias in it."""
    if isinstance(asked, Alias):
        return asked.wanted.order
    inside = (item.wanted.order for item in asked.items if isinstance(item, Alias) and item.wanted.order)
    return asked.order or next(inside, "")


def _named(asked: ModelField, left_out: Mapping[str, str]) -> Mapping[str, str]:
    """Of the models left out those that the client named, as it wrote them."""
    if not left_out or not isinstance(asked, PreferenceList):
        return _NOTHING
    named = (item for item in asked.items if isinstance(item, Direct))
    return {item.model: left_out[item.base] for item in named if item.base in left_out}
