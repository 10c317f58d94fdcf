"""Why a model stands where it does in the ranking: the parts of its score, and the same in one sentence."""

from collections.abc import Sequence

from attrs import frozen

from chutes_autopilot.policy.ranking import RATE_LIMIT_PENALTY, Ranked


@frozen
class ScoreParts:
    """What a score is made of, in idle instances: ``idle + room - refusals`` is the score.

    :param idle: active instances times their idle share.
    :param room: for instances that may still be started.
    :param refusals: taken off for requests refused; not negative.
    """

    idle: float
    room: float
    refusals: float

    @property
    def total(self) -> float:
        """The score."""
        return self.idle + self.room - self.refusals


def score_parts(ranked: Ranked) -> ScoreParts:
    """The parts of one candidate's score."""
    active = ranked.active_instance_count
    return ScoreParts(
        idle=active * max(0.0, 1 - ranked.utilization),
        room=ranked.scale_bonus,
        refusals=RATE_LIMIT_PENALTY * active * ranked.rate_limit,
    )


def sentence(ranking: Sequence[Ranked], place: int) -> str:
    """Why the candidate at ``place`` (from 0) stands there, and what sets it apart from the one before it."""
    ranked = ranking[place]
    parts = score_parts(ranked)
    leaves = "leaves" if ranked.active_instance_count == 1 else "leave"
    said = f"{_instances(ranked.active_instance_count)} at {_percent(ranked.utilization)} load {leaves} "
    said += f"{_amount(parts.idle)} idle"
    if parts.room:
        said += f"; room to grow adds {_amount(parts.room)}"
    if parts.refusals:
        said += f"; refusals ({_percent(ranked.rate_limit)}) cost {_amount(parts.refusals)}"
    else:
        said += "; none refused"
    return f"{said}; {_standing(ranking, place)}."


def _standing(ranking: Sequence[Ranked], place: int) -> str:
    if len(ranking) == 1:
        return "it is the only candidate"
    if place == 0:
        return f"{_amount(ranking[0].score - ranking[1].score)} ahead of the next"
    before, ranked = ranking[place - 1], ranking[place]
    behind = before.score - ranked.score
    if behind >= 0.005:
        return f"{_amount(behind)} behind number {place}"
    for mine, theirs, decides in (
        (ranked.active_instance_count, before.active_instance_count, "which has more instances"),
        (ranked.utilization_current, before.utilization_current, "which is less busy now"),
        (ranked.rate_limit_ratio_5m, before.rate_limit_ratio_5m, "which refused fewer requests"),
    ):
        if mine != theirs:
            return f"as good as number {place}, {decides}"
    return f"as good as number {place}, so their names decide"


def _instances(count: float) -> str:
    return "1 active instance" if count == 1 else f"{count:g} active instances"


def _percent(share: float) -> str:
    return "under 1%" if 0 < share < 0.005 else f"{share * 100:.0f}%"


def _amount(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
