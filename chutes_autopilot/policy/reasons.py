"""Why a route is what it is: what became of each candidate, and what a remembered choice did; names and numbers only.

It is made once for a route and shared by all its requests.
"""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import attrs

from chutes_autopilot.policy.aliases import Order
from chutes_autopilot.policy.ranking import Ranked

MAX_CANDIDATES = 32
"""How many candidates are told of; the planned ones come first."""
MAX_NAME = 256
"""Characters of the longest name that is kept."""

Verdict = Literal["planned", "spare", "incapable", "unwanted", "closed", "cooling"]
"""``planned``: in the order of attempts. ``spare``: as good, but behind the last attempt allowed; a request too long
for others may be tried on it all the same. ``incapable``, ``unwanted``: left out, the reason says which requirement or
which part of the alias. ``closed``: left out because it cannot be asked now, the reason is the obstacle. ``cooling``:
after failures put behind all others, where it is one of the planned, or put up with for want of others."""

StickyEffect = Literal["none", "first", "gave_way", "incapable", "unwanted", "closed", "cooling", "sorted", "gone"]
"""What a remembered choice did. ``first``: it is tried first. ``gave_way``: the preferred order is tried again.
``sorted``: the client asked for a measured order, which goes before it. ``gone``: it is no candidate any more. Else it
is left out for that reason."""


SORTED_BY: Mapping[Order, str] = MappingProxyType({"fast": "first_token", "throughput": "tokens_per_second"})
"""What an order goes by, as it is told."""


@attrs.frozen
class CandidateView:
    """One model: its place in the ranking (1 is best; None where it is not ranked), and what became of it.

    :param measured: what it was sorted by, Reasons.sorted_by: seconds, or tokens per second; None where unknown.
    """

    model: str
    verdict: Verdict
    reason: str | None = None
    place: int | None = None
    ranked: Ranked | None = None
    measured: float | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it, the score in its parts."""
        found: dict[str, Any] = {"model": self.model, "verdict": self.verdict}
        if self.reason is not None:
            found["reason"] = self.reason
        if self.measured is not None:
            found["measured"] = round(self.measured, 4)
        if self.ranked is not None:
            ranked = self.ranked
            found |= {"place": self.place, "score": round(ranked.score, 4)}
            found["parts"] = {
                "active_instances": ranked.active_instance_count,
                "utilization": round(ranked.utilization, 4),
                "rate_limit": round(ranked.rate_limit, 4),
                "scale_bonus": round(ranked.scale_bonus, 4),
            }
        return found


@attrs.frozen
class Reasons:
    """Why a route is what it is.

    :param asked: the ``model`` value as it was understood.
    :param planned: base names in the order of attempts.
    :param omitted: further candidates that are not told of.
    :param sticky: base name of the client's remembered choice.
    :param needs: names of policy.capability.REQUIREMENTS.
    :param snapshot: the id of the snapshot that was looked at.
    :param sorted_by: the own measurement that the order goes by; empty where it is the ranking's or the client's.
    """

    asked: str
    mode: str
    planned: tuple[str, ...]
    candidates: tuple[CandidateView, ...]
    omitted: int = 0
    sticky: str | None = None
    sticky_effect: StickyEffect = "none"
    spread: bool = False
    needs: tuple[str, ...] = ()
    snapshot: int = 0
    sorted_by: Order = ""

    def without(self, names: Collection[str]) -> "Reasons":
        """The same where an answer has shown of some models that the request is too long for them."""
        candidates = (
            attrs.evolve(each, verdict="incapable", reason="context")
            if each.model in names and each.verdict in ("planned", "spare")
            else each
            for each in self.candidates
        )
        return attrs.evolve(self, candidates=tuple(candidates)) if names else self

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "asked": self.asked,
            "mode": self.mode,
            "needs": list(self.needs),
            "spread": self.spread,
            "snapshot": self.snapshot,
            "sticky": {"model": self.sticky, "effect": self.sticky_effect},
            "order": list(self.planned),
            "sorted_by": SORTED_BY.get(self.sorted_by),
            "candidates": [candidate.as_json() for candidate in self.candidates],
            "omitted": self.omitted,
        }


def reasons(
    *,
    asked: str,
    mode: str,
    planned: Sequence[str],
    ranking: Sequence[Ranked],
    considered: Sequence[str],
    incapable: Mapping[str, str],
    unwanted: Mapping[str, str],
    cooling: Collection[str],
    sticky: str | None = None,
    gave_way: bool = False,
    spread: bool = False,
    needs: tuple[str, ...] = (),
    snapshot: int = 0,
    sorted_by: Order = "",
    measured: Mapping[str, float] = MappingProxyType({}),
    closed: Mapping[str, str] = MappingProxyType({}),
) -> Reasons:
    """Put together what the steps of routing found; all names are base names.

    :param planned: what is tried, in that order.
    :param ranking: of the snapshot, best first.
    :param considered: all that could have been tried, were more attempts allowed.
    :param incapable: left out, by requirement.
    :param unwanted: left out, by part of the alias.
    :param cooling: in their cooldown; one that is planned all the same is told of as cooling.
    :param measured: what `sorted_by` goes by.
    :param gave_way: the sticky choice was not taken because the preferred order is tried again.
    :param closed: left out, by obstacle.
    """
    places = {ranked.model: (place, ranked) for place, ranked in enumerate(ranking, 1)}
    names = dict.fromkeys([*planned, *incapable, *unwanted, *closed, *cooling, *considered])

    def view(name: str) -> CandidateView:
        verdict: Verdict = "planned" if name in planned else "spare"
        reason = None
        if name in unwanted:
            verdict, reason = "unwanted", unwanted[name]
        elif name in incapable:
            verdict, reason = "incapable", incapable[name]
        elif name in closed:
            verdict, reason = "closed", closed[name]
        elif name in cooling:
            verdict, reason = "cooling", "failed repeatedly"
        place, ranked = places.get(name, (None, None))
        return CandidateView(name[:MAX_NAME], verdict, reason, place, ranked, measured.get(name))

    shown = tuple(view(name) for name, _ in zip(names, range(MAX_CANDIDATES), strict=False))
    return Reasons(
        asked[:MAX_NAME],
        mode,
        tuple(name[:MAX_NAME] for name in planned[:MAX_CANDIDATES]),
        shown,
        len(names) - len(shown),
        None if sticky is None else sticky[:MAX_NAME],
        _sticky_effect(sticky, gave_way, planned, incapable, unwanted, closed, cooling, considered),
        spread,
        needs,
        snapshot,
        sorted_by,
    )


def _sticky_effect(
    sticky: str | None,
    gave_way: bool,
    planned: Sequence[str],
    incapable: Collection[str],
    unwanted: Collection[str],
    closed: Collection[str],
    cooling: Collection[str],
    considered: Collection[str],
) -> StickyEffect:
    if sticky is None:
        return "none"
    if planned and planned[0] == sticky:
        return "first"
    if gave_way:
        return "gave_way"
    if sticky in unwanted:
        return "unwanted"
    if sticky in incapable:
        return "incapable"
    if sticky in closed:
        return "closed"
    if sticky in cooling:
        return "cooling"
    # whatever else is a candidate would have come first
    return "sorted" if sticky in considered else "gone"
