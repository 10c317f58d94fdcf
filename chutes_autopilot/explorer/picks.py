"""Why requests went where they went, as anybody may read it: of who asked, and for what, nothing is left."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from attrs import evolve, frozen

from chutes_autopilot.policy.decision import AttemptView, Decision
from chutes_autopilot.policy.reasons import SORTED_BY, CandidateView, Reasons

OTHERS = "(others)"
"""Stands for models that are not in the catalog: what clients make up is not shown."""

_LEFT_OUT = ("incapable", "unwanted", "closed", "cooling")
_ANSWERS = ("committed", "continued")


@frozen
class Pick:
    """One request.

    :param number: tells it apart; later ones have greater numbers.
    :param decision: see `without_client`.
    """

    number: int
    decision: Decision


@frozen
class Totals:
    """How the last requests went: each counts in `requests` and in one of the others.

    :param at_once: answered by the model that was tried first, at its first try.
    :param again: by the same model, at a further try.
    :param moved_on: by another one, after the first had failed.
    :param hedged: by another one, asked beside the first, which was slow.
    :param failed: see `unanswered`, as ``refused``.
    :param left: their clients left before a model answered.
    :param under_way: no model answered yet.
    """

    requests: int = 0
    at_once: int = 0
    again: int = 0
    moved_on: int = 0
    hedged: int = 0
    failed: int = 0
    refused: int = 0
    left: int = 0
    under_way: int = 0


def unanswered(status: int, outcome: str | None, error: str | None) -> Literal["failed", "refused"] | None:
    """Why a client got no answer that is of use to it; None where it did, left, or still waits.

    ``failed``: for what went wrong upstream or here, a lack of capacity (429) included; ``refused``: for what it sent,
    or because it is banned, as the log says too.
    """
    if outcome is None or outcome == "client_gone":
        return None
    if error == "upstream_ban" or (400 <= status < 500 and status != 429):
        return "refused"
    return "failed" if status >= 400 or outcome != "complete" else None


def without_client(decision: Decision, listed: Callable[[str], str | None]) -> Decision:
    """The same without its id, the `model` value that was sent, its moment within a second, and its remembered choice.

    An order of the client's own (AUTOPILOT_SPREAD) would tell its requests from those of others, so it goes too.

    :param listed: the catalog's name that a name stands for; None: it is none of the catalog's.
    """

    def known(model: str) -> str:
        return listed(model) or OTHERS

    return evolve(
        decision,
        request_id="",
        received=float(math.floor(decision.received)),
        reasons=None if decision.reasons is None else _without_client(decision.reasons, known),
        attempts=tuple(evolve(attempt, model=known(attempt.model), sent=None) for attempt in decision.attempts),
        selected=None if decision.selected is None else known(decision.selected),
    )


def _without_client(why: Reasons, known: Callable[[str], str]) -> Reasons:
    candidates: Iterable[CandidateView] = (evolve(each, model=known(each.model)) for each in why.candidates)
    if why.spread:
        hidden = (evolve(each, verdict="spare") if each.verdict == "planned" else each for each in candidates)
        candidates = sorted(hidden, key=lambda each: (each.place is None, each.place or 0))
    planned = () if why.spread else tuple(map(known, why.planned))
    return evolve(why, asked="", sticky=None, planned=planned, candidates=tuple(candidates))


def sentence(decision: Decision) -> str:
    """Why the model that was tried first was, and what came of it."""
    why = decision.reasons
    if why is None:
        if decision.outcome == "client_gone":
            return "Its client left before a model was chosen."
        return f"Refused before a model was chosen: {decision.error or 'not yet decided'}."
    passed = _passed_over(why)
    return f"{_first(why)}{f' ({passed})' if passed else ''} {_came_of_it(decision)}."


def _first(why: Reasons) -> str:
    if why.mode == "direct":
        return "The model that was named"
    if why.sticky_effect == "first":
        return "Its client's last choice"
    if why.sorted_by:
        return f"The best by measured {SORTED_BY[why.sorted_by].replace('_', ' ')}"
    if why.spread:
        return "The first in its client's own order"
    if why.mode == "list":
        return "The first of the list that was sent"
    place = _place_of_first(why)
    return "The first of the candidates" if place is None else f"Number {place} of the ranking"


def _place_of_first(why: Reasons) -> int | None:
    first = why.planned[0] if why.planned else None
    return next((each.place for each in why.candidates if each.model == first), None)


def _passed_over(why: Reasons) -> str:
    """What was left out or put behind that would have come first; of another order than the ranking's, all of it."""
    place = _place_of_first(why) if why.mode == "alias" and not (why.sorted_by or why.spread) else None
    if why.mode == "direct":
        return ""
    all_cool = next((each.verdict for each in why.candidates if each.model in why.planned[:1]), None) == "cooling"
    left_out = Counter(
        "cooling down" if each.verdict == "cooling" else f"no {each.reason}" if each.verdict == "incapable" else
        f"not {each.reason}"
        for each in why.candidates
        if each.verdict in _LEFT_OUT
        and (each.model not in why.planned or (each.verdict == "cooling" and not all_cool))
        and (place is None or (each.place is not None and each.place < place))
    )  # fmt: skip
    if not left_out:
        return ""
    return "passed over: " + ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())


def _came_of_it(decision: Decision) -> str:
    if decision.selected is None:
        if decision.outcome == "client_gone":
            return "came first; the client left"
        return _is_tried(decision) if decision.outcome is None else f"came first; none answered: {decision.error}"
    answered = "answers" if decision.outcome is None else "answered"
    if decision.outcome != "client_gone" and not 200 <= decision.status < 300:  # then the status is none of the model's
        answered += f" {decision.status}"
    end = {"cut": ", and the answer was cut", "client_gone": ", and the client left"}.get(decision.outcome or "", "")
    if any(attempt.followed == "continued" for attempt in decision.attempts):
        end = f", and another model went on with what broke off{end}"
    return _way_to(answered, decision) + end


def _way_to(answered: str, decision: Decision) -> str:
    *others, last = _until_it_answered(decision.attempts)
    earlier = [attempt for attempt in others if attempt.started <= last.started]
    if any(attempt.followed == "outrun" for attempt in earlier):
        return f"came first and was slow; this one, asked beside it, {answered}"
    if len(earlier) < len(others):
        return f"{answered}; it was slow, and another was asked beside it in vain"
    if not earlier:
        return answered
    if all(attempt.followed == "again" for attempt in earlier):
        return f"{answered} at try {len(earlier) + 1}"
    return f"came first; {_after(earlier)} this one {answered}"


def _until_it_answered(attempts: Sequence[AttemptView]) -> Sequence[AttemptView]:
    """Without those to go on with an answer that broke off."""
    answers = (place for place, attempt in enumerate(attempts, 1) if attempt.followed in _ANSWERS)
    return attempts[: next(answers, len(attempts))]


def _is_tried(decision: Decision) -> str:
    failed = [attempt for attempt in decision.attempts if attempt.failure is not None]
    if not failed:
        return "is asked"
    again = all(attempt.followed == "again" for attempt in failed)
    return f"came first; {_after(failed)} {'it is asked again' if again else 'another is asked'}"


def _after(failed: Sequence[AttemptView]) -> str:
    return "after one failure" if len(failed) == 1 else f"after {len(failed)} failures"


def went(attempt: AttemptView) -> str:
    """What came of one attempt, in a word or two."""
    if attempt.followed == "outrun":
        return "slower"
    if attempt.failure is not None:
        return in_words(attempt.failure)
    if attempt.followed == "continued":
        return "broke off"
    if attempt.detail in ("prefill", "restart"):
        return "went on"
    return str(attempt.status) if attempt.status is not None else "under way"


def in_words(reason: str) -> str:
    """A reason why an attempt failed, as people read it."""
    return reason.removeprefix("upstream_").replace("_", " ")
