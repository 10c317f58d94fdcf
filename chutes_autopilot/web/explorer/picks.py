"""The last requests on the Live tab: which model each got, why, and what was tried; nothing of who asked."""

from collections.abc import Iterator, Mapping, Sequence

from chutes_autopilot.explorer.picks import Pick, Totals, sentence, unanswered, went
from chutes_autopilot.policy.decision import AttemptView, Decision
from chutes_autopilot.policy.reasons import SORTED_BY, CandidateView, Reasons
from chutes_autopilot.web.explorer import figures
from chutes_autopilot.web.explorer.figures import UNKNOWN
from chutes_autopilot.web.explorer.links import to_panel
from chutes_autopilot.web.explorer.markup import Html, element

SHOWN = 20
_CANDIDATES = 12


def picks_section(picks: Sequence[Pick], totals: Totals, keys: Mapping[str, str]) -> Html:
    """The newest first.

    :param totals: of all that are remembered.
    :param keys: by name, of the models that have a panel.
    """
    return element(
        "section",
        element("h2", "Picks", element("span", _summed_up(totals), class_="dim") if totals.requests else None,
                id="picks-title"),
        element("ol", (_pick(pick, keys) for pick in picks), id="picks", tabindex="0", aria_label="Picks, newest first")
        if picks
        else element("p", "None since this service started. Each chat request is shown here with the model it got and "
                          "the reason.", class_="dim"),
        class_="picks",
        aria_labelledby="picks-title",
    )  # fmt: skip


def _summed_up(totals: Totals) -> str:
    """In parts that a line does not break."""
    ways = (
        (totals.at_once, "at once"),
        (totals.moved_on, "after a failover"),
        (totals.again, "at a further try"),
        (totals.hedged, "by a hedge"),
        (totals.failed, "failed"),
        (totals.refused, "refused"),
        (totals.left, "left"),
        (totals.under_way, "under way"),
    )
    said = (f"{count:,} {way}".replace(" ", "\xa0") for place, (count, way) in enumerate(ways) if count or place < 2)
    return f"last\xa0{totals.requests:,}: {', '.join(said)}"


def _pick(pick: Pick, keys: Mapping[str, str]) -> Html:
    decision = pick.decision
    why = decision.reasons
    return element(
        "li",
        figures.clock(decision.received),
        element(
            "p",
            to_panel(_model(decision), keys.get(decision.selected or "")),
            element("span", _seconds(decision), class_="n", title="until the first byte of the answer"),
        ),
        element("p", element("span", why.mode, class_="mark") if why is not None else None, sentence(decision),
                class_="why"),
        _attempts(decision.attempts, keys),
        None if why is None or why.mode == "direct" else _candidates(why, keys, f"pick-{pick.number}-candidates"),
        id=f"pick-{pick.number}",
    )  # fmt: skip


def _model(decision: Decision) -> Html:
    lacking = unanswered(decision.status, decision.outcome, decision.error)
    if decision.selected is not None:
        return element("span", decision.selected, class_="limited" if lacking == "failed" else None)
    if decision.outcome is None:
        return element("span", "under way", class_="dim")
    return element("span", "nobody", class_="limited" if lacking == "failed" else "dim")


def _seconds(decision: Decision) -> Html:
    return UNKNOWN if decision.first_byte is None else Html(f"{decision.first_byte:.2f} s")


def _attempts(attempts: Sequence[AttemptView], keys: Mapping[str, str]) -> Html | None:
    """What was tried, where the line above does not say it all."""
    if not any(each.failure or each.probe or each.followed == "continued" for each in attempts):
        return None
    begun = sorted(attempts, key=lambda each: each.started)
    return element("ul", (_attempt(attempt, keys) for attempt in begun), class_="attempts")


def _attempt(attempt: AttemptView, keys: Mapping[str, str]) -> Html:
    taken = None if attempt.ended is None else f"{max(0.0, attempt.ended - attempt.started):.2f}\xa0s"
    lost = attempt.followed == "continued" or (attempt.failure is not None and attempt.followed != "outrun")
    return element(
        "li",
        to_panel(attempt.model, keys.get(attempt.model), title=attempt.model),
        element("span", went(attempt), class_="mark warn" if lost else "mark"),
        element("span", "probe", class_="mark", title="finds out whether it works again") if attempt.probe else None,
        element("span", taken, class_="dim") if lost or attempt.failure else None,
        element("span", f"then a pause of {attempt.waited:.2f}\xa0s", class_="dim") if attempt.waited else None,
    )


def _candidates(why: Reasons, keys: Mapping[str, str], id: str) -> Html:
    rest = len(why.candidates) - _CANDIDATES + why.omitted
    return element(
        "details",
        element("summary", "Candidates", element("span", str(len(why.candidates) + why.omitted), class_="count")),
        element("ul", (_candidate(each, why, keys) for each in why.candidates[:_CANDIDATES])),
        element("p", f"and {rest} more", class_="dim") if rest > 0 else None,
        id=id,
    )


def _candidate(candidate: CandidateView, why: Reasons, keys: Mapping[str, str]) -> Html:
    return element(
        "li",
        element("span", UNKNOWN if candidate.place is None else str(candidate.place), class_="n place"),
        to_panel(candidate.model.rpartition("/")[2], keys.get(candidate.model), title=candidate.model),
        element("span", _verdict(candidate, why), class_=f"verdict {candidate.verdict}"),
        element("span", " ".join(_numbers(candidate, why)), class_="n"),
    )


def _verdict(candidate: CandidateView, why: Reasons) -> str:
    match candidate.verdict:
        case "planned":
            return f"try {why.planned.index(candidate.model) + 1}" if candidate.model in why.planned else "tried"
        case "cooling" if candidate.model in why.planned:
            return f"cools down, try {why.planned.index(candidate.model) + 1}"
        case "cooling":
            return "cools down"
        case "incapable":
            return f"no {candidate.reason}"
        case "unwanted":
            return f"not {candidate.reason}"
        case "closed":
            return "cannot be asked"
    return "candidate" if why.spread else "spare"


def _numbers(candidate: CandidateView, why: Reasons) -> Iterator[str]:
    if candidate.measured is not None:
        first_token = SORTED_BY.get(why.sorted_by) == "first_token"
        yield f"{candidate.measured:.2f} s" if first_token else f"{candidate.measured:.0f} tok/s"
    elif candidate.ranked is not None:
        yield f"{candidate.ranked.score:.2f}"
