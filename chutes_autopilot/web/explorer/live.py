"""The ranking as it moves: who stands where and why, and how it fares here; the last picks, and what failed over."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from chutes_autopilot.explorer.eligibility import EXPLANATIONS, Excluded
from chutes_autopilot.explorer.picks import Pick, Totals, in_words
from chutes_autopilot.explorer.reasons import ScoreParts, score_parts, sentence
from chutes_autopilot.explorer_live.measured import Failover, Measured
from chutes_autopilot.policy.ranking import Ranked
from chutes_autopilot.web.explorer import figures
from chutes_autopilot.web.explorer.figures import UNKNOWN
from chutes_autopilot.web.explorer.links import to_panel
from chutes_autopilot.web.explorer.markup import Html, element, join
from chutes_autopilot.web.explorer.picks import picks_section

_SHOWN = 100
_KEPT_FAILOVERS = 40


NOT_MEASURED = Measured()


def live_tab(
    ranking: Sequence[Ranked],
    others: Sequence[Excluded],
    measured: Mapping[str, Measured],
    failovers: Sequence[Failover],
    picks: Sequence[Pick],
    totals: Totals,
    *,
    keys: Mapping[str, str],
    snapshot: int,
    age: float | None,
    streams: bool,
) -> Html:
    """Everything of the tab.

    :param others: the models that are no candidates.
    :param keys: by name, of the models that have a panel.
    :param snapshot: the id of the router's snapshot, the same that decisions name.
    :param age: seconds since the feed came that the ranking was made of.
    :param streams: whether updates come by themselves.
    """
    return element(
        "div",
        element(
            "section",
            element(
                "header",
                element("h1", "Live ranking", id="live-title"),
                _indicator(streams, snapshot, len(ranking), age),
            ),
            _ranking(ranking, others, measured, keys) if ranking else _no_candidates(),
            class_="ranking",
            aria_labelledby="live-title",
        ),
        element(
            "div",
            picks_section(picks, totals, keys),
            element(
                "section",
                element("h2", "Failovers", id="failovers-title"),
                _failovers(failovers, keys),
                class_="failovers",
                aria_labelledby="failovers-title",
            ),
            class_="beside",
        ),
        class_="live",
        id="live",
        data_stream="/api/events" if streams else None,
    )


def _indicator(streams: bool, snapshot: int, count: int, age: float | None) -> Html:
    return element(
        "p",
        element("span", class_=f"dot {'loading' if streams else 'disabled'}", id="stream-dot", aria_hidden="true"),
        element("span", "not connected" if streams else "updates are off", id="stream-state"),
        element(
            "span",
            f"{count} candidates, snapshot {snapshot}, ",
            "no feed yet" if age is None else (element("span", figures.age(age), data_age=f"{age:.0f}"), " old"),
            class_="dim",
        ),
        element("a", "Picks", href="#picks-title", class_="further"),
        element("a", "Failovers", href="#failovers-title", class_="further"),
        element("button", "Pause", type="button", id="pause", class_="scripted", aria_pressed="false")
        if streams
        else None,
        class_="indicator",
    )


def _no_candidates() -> Html:
    return element(
        "section",
        element("h2", "No model can be chosen now"),
        element("p", "The live feed has not come yet, or no listed model has an active instance. "
                     "Requests for the alias are refused until one has."),
        class_="state empty",
    )  # fmt: skip


def _ranking(
    ranking: Sequence[Ranked],
    others: Sequence[Excluded],
    measured: Mapping[str, Measured],
    keys: Mapping[str, str],
) -> Html:
    widest = max(max(parts.idle + parts.room, parts.refusals) for parts in map(score_parts, ranking))
    shown = ranking[:_SHOWN]
    table = element(
        "table",
        element("caption", "Candidates of the alias, best first", class_="sr"),
        element("thead", element("tr", _heads())),
        element("tbody", (_candidate(ranking, place, measured, widest) for place in range(len(shown))), id="ranks"),
        class_="ranks",
    )
    rest = len(ranking) - len(shown)
    more = element("p", f"and {rest} more; GET /api/ranking has all of them", class_="dim") if rest > 0 else None
    unranked = {name: own for name, own in measured.items() if name not in {ranked.model for ranked in ranking}}
    return element(
        "div",
        table,
        more,
        _measured_elsewhere(unranked, keys),
        _excluded(others),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label="Ranking",
    )


def _measured_elsewhere(unranked: Mapping[str, Measured], keys: Mapping[str, str]) -> Html | None:
    """How the models fare that were asked for by name and are no candidates now."""
    if not unranked:
        return None
    heads = (("Model", False), ("Here", True), ("TTFT", True), ("Pace", True))
    return element(
        "details",
        element("summary", "Asked through this service, no candidates now",
                element("span", str(len(unranked)), class_="count")),
        element(
            "table",
            element("thead", element("tr", (element("th", title, scope="col", class_="n" if number else None)
                                            for title, number in heads))),
            element("tbody", (element("tr", element("th", to_panel(name, keys.get(name)), _resting(own), scope="row"),
                                      _own_cells(own))
                              for name, own in sorted(unranked.items()))),
            class_="unranked",
        ),
        id="unranked",
        class_="excluded",
    )  # fmt: skip


def _resting(own: Measured) -> Html | None:
    """That a model is left alone after failures, and until when."""
    if own.probing:
        return element("span", "one request finds out whether it works again", class_="mark warn")
    if own.cooling_until is None:
        return None
    return element("span", "cools down until ", figures.clock(own.cooling_until), class_="mark warn")


def _own_cells(own: Measured) -> Html:
    """Requests and failures, time to the first token, pace; what is in the second lines is said in titles too."""
    failures = f"{own.failures:,} failed"
    return join(
        (
            element("td", f"{own.requests:,}" if own.requests else UNKNOWN,
                    element("span", failures, class_="limited under") if own.failures else None,
                    class_="n", data_label="Here"),
            element("td", UNKNOWN if own.ttft is None else f"{own.ttft:.2f} s",
                    element("span", f"{own.ttft_p95:.2f} s", class_="dim under", title="95th percentile")
                    if own.ttft_p95 is not None else None,
                    class_="n", data_label="TTFT"),
            element("td", UNKNOWN if own.tokens_per_second is None else f"{own.tokens_per_second:.0f}/s",
                    element("span", f"{own.between_events * 1000:.0f} ms", class_="dim under",
                            title="from one event of a stream to the next")
                    if own.between_events is not None else None,
                    class_="n", data_label="Pace"),
        )
    )  # fmt: skip


def _excluded(others: Sequence[Excluded]) -> Html | None:
    if not others:
        return None
    reasons = Counter(each.reason for each in others)
    return element(
        "details",
        element("summary", "Not candidates", element("span", str(len(others)), class_="count")),
        (
            element(
                "section",
                element("h3", EXPLANATIONS[reason], element("span", str(count), class_="count")),
                element("p", ", ".join(each.name for each in others if each.reason == reason), class_="dim"),
            )
            for reason, count in reasons.most_common()
        ),
        id="excluded",
        class_="excluded",
    )


def _heads() -> Iterator[Html]:
    for title, full, number in (
        ("#", "Place", True),
        ("Model and reason", None, False),
        ("Score", "Score in idle instances", True),
        ("Parts", "Parts of the score: idle, room to grow, refusals", False),
        ("Load", "Weighted load", True),
        ("Refused", "Weighted share of refused requests", True),
        ("Inst.", "Active instances", True),
        ("Here", "Requests through this service, and how many of them failed", True),
        ("TTFT", "Time to the first token through this service: the middle one, and the 95th percentile", True),
        ("Pace", "Tokens a second through this service, and the time between two events", True),
    ):
        yield element(
            "th",
            element("abbr", title, title=full) if full else title,
            scope="col",
            class_="n" if number else None,
        )


def _candidate(ranking: Sequence[Ranked], place: int, measured: Mapping[str, Measured], widest: float) -> Html:
    ranked = ranking[place]
    own = measured.get(ranked.model, NOT_MEASURED)
    parts = score_parts(ranked)
    owner, slash, base = ranked.model.rpartition("/")
    return element(
        "tr",
        element("td", str(place + 1), class_="n place"),
        element(
            "th",
            element("span", owner + slash, class_="org") if slash else None,
            to_panel(base, ranked.chute_id),
            _resting(own),
            element("span", sentence(ranking, place), class_="why"),
            scope="row",
        ),
        element("td", f"{ranked.score:.2f}", class_="n strong", data_label="Score"),
        element("td", _parts(parts, widest), class_="parts"),
        element("td", figures.percent(ranked.utilization), class_="n", data_label="Load"),
        element("td", _refused(ranked.rate_limit), class_="n", data_label="Refused"),
        element("td", f"{ranked.active_instance_count:g}", class_="n", data_label="Inst."),
        _own_cells(own),
        id=f"rank-{ranked.model}",
    )


def _parts(parts: ScoreParts, widest: float) -> tuple[Html, Html]:
    said = f"idle {parts.idle:.2f}"
    if parts.room:
        said += f" + room {parts.room:.2f}"
    if parts.refusals:
        said += f" − refused {parts.refusals:.2f}"  # noqa: RUF001
    return figures.score_bar(parts.idle, parts.room, parts.refusals, widest), element("span", said, class_="dim")


def _refused(share: float) -> Html:
    return element("span", figures.percent(share), class_="limited" if share >= 0.01 else "zero" if not share else None)


def _failovers(failovers: Sequence[Failover], keys: Mapping[str, str]) -> Html:
    if not failovers:
        return element("p", "None since this service started. An attempt that fails before its first byte is shown "
                            "here with the model that took its place.", class_="dim")  # fmt: skip
    return element(
        "ol",
        (
            element(
                "li",
                figures.clock(failover.at),
                to_panel(failover.model, keys.get(failover.model), class_="from", title=failover.model),
                element("span", in_words(failover.why), class_="mark warn"),
                element(
                    "span",
                    "→ ",
                    to_panel(failover.next_model, keys.get(failover.next_model), class_=None),
                    class_="next",
                    title=failover.next_model,
                )
                if failover.next_model
                else element("span", "no candidate left", class_="limited"),
            )
            for failover in failovers[:_KEPT_FAILOVERS]
        ),
        id="failovers",
        tabindex="0",
        aria_label="Failovers, newest first",
    )
