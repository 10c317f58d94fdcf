"""What one request tries: the steps from what it asks for to its order of attempts, each model left out by name."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import NoReturn, Protocol

from attrs import frozen

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.aliases import ANY, Order, Wanted
from chutes_autopilot.policy.capability import capable, verdict
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.policy.model_field import Alias, Direct, ModelField, PreferenceList
from chutes_autopilot.policy.model_offers import Offers
from chutes_autopilot.policy.plan import Plan, expanded, make_plan, mode_of, no_candidates, preferring
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


class Reach(Protocol):
    """Which models can be asked at this moment, where that takes more than an address."""

    def obstacle(self, model: str) -> str | None:
        """Why an attempt would be refused at once though it is not the request's fault; None where it would not be.

        :param model: as it is sent, with or without the platform's suffixes.
        """

    def at_hand(self, model: str) -> bool:
        """Whether an attempt could begin without waiting."""

    def passed_over(self, models: Mapping[str, str]) -> None:
        """A request was routed past these models, which its client named, each for its obstacle."""


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
    :param closed: base names of models left out because they cannot be asked now, by obstacle (Reach).
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
    closed: Mapping[str, str] = _NOTHING


@frozen
class Chooser:
    """Chooses for one request after another.

    :param known: the platform at this moment.
    :param limit: attempts a request may make, at least 1.
    :param require_tee: an alias stands for confidential models only (AUTOPILOT_REQUIRE_TEE).
    :param spare: what is behind the last attempt allowed may be tried in another's place (plan.make_plan).
    :param reach: which models can be asked; None: all.
    """

    known: Known
    health: FleetHealth
    limit: int
    require_tee: bool = False
    spare: bool = False
    reach: Reach | None = None

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
            if self.reach is not None and client.spread_by is None:
                names = self._at_hand_first(names, self.reach)
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
        closed = _NOTHING if self.reach is None else self._closed(entries, self.reach, client.sticky, now)
        whole = entries
        if closed:
            entries = tuple(entry for entry in entries if entry.base not in closed)
        if mode != "list":
            whole = entries
        available = self.health.filter([entry.base for entry in entries], now)
        sticky = None if order else client.sticky
        waits = bool(whole) and (whole[0].base in available.cooling or whole[0].base in closed)
        if client.gave_way and not (waits and not available.forced):
            sticky = None
        cooling = dict.fromkeys(available.cooling if not available.forced else (), "cooling")
        plan = make_plan(mode, entries, sticky, limit=self.limit, cooling=cooling, spare=self.spare)
        if whole is not entries:
            plan = preferring(plan, whole[: self.limit])
        sorted_by, tried = _sorted_by(asked), by_base(entries)
        return Choice(
            plan,
            {name: part for name, part in unwanted.items() if name not in tried},
            able.skipped,
            available.cooling,
            _named(asked, {**able.skipped, **closed, **cooling}),
            tuple(entry.base for entry in entries),
            sorted_by,
            self._measurements(entries, sorted_by, now) if sorted_by else MappingProxyType({}),
            lasting=not sorted_by and client.spread_by is None and self.reach is None,
            closed=closed,
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

    def _at_hand_first(self, names: tuple[str, ...], reach: Reach) -> tuple[str, ...]:
        """Ranked models, among those with the same score such first as need no waiting."""
        scores = {ranked.model: ranked.score for ranked in self.known.ranking}
        ordered: list[str] = []
        for _, equals in groupby(names, scores.get):
            group = list(equals)
            ordered += sorted(group, key=lambda name: not reach.at_hand(name)) if len(group) > 1 else group
        return tuple(ordered)

    def _closed(self, entries: Sequence[Direct], reach: Reach, sticky: str | None, now: float) -> Mapping[str, str]:
        """Of the entries that may be tried those that cannot be asked, by base name, unless that is all of them.

        It looks no further than there are attempts: an alias may stand for very many.
        """
        closed: dict[str, str] = {}
        found = 0
        for entry in entries:
            if found >= self.limit and entry.base != sticky:
                continue
            obstacle = reach.obstacle(entry.model)
            if obstacle is not None:
                closed[entry.base] = obstacle
            elif not self.health.is_cooling(entry.base, now):
                found += 1
        return closed if len(closed) < len(entries) else _NOTHING

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
