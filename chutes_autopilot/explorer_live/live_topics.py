"""The topics that the explorer tells of: the ranking, what is measured, picks, failovers, changes, and freshness."""

from collections.abc import Mapping
from typing import Any

from chutes_autopilot.control.snapshots import Snapshots
from chutes_autopilot.explorer.picks import Pick
from chutes_autopilot.explorer.picks import sentence as sentence_of_pick
from chutes_autopilot.explorer.reasons import score_parts, sentence
from chutes_autopilot.explorer_live.decided import Decided
from chutes_autopilot.explorer_live.measured import Failover, Measured, Measurements
from chutes_autopilot.explorer_live.sources import Sources
from chutes_autopilot.explorer_live.topics import Json, Occurrences, Table, Topic, up_to
from chutes_autopilot.explorer_live.truth import Truth, utc_text
from chutes_autopilot.policy.ranking import Ranked

RANKING_ROWS = 200
"""Candidates that are told of, the best ones."""


BUSY = 2
"""What changes with every request is told of in every second look only."""

PICK_ROWS = 12
"""Requests that are told of, the last ones."""


def live_topics(
    snapshots: Snapshots, measurements: Measurements, truth: Truth, sources: Sources, decided: Decided
) -> tuple[Topic, ...]:
    """All topics, in the order in which a new subscriber hears of them.

    ==========  =========  =====================================================================================
    ranking     table      the router's snapshot: place, score with its parts, and why, by model
    measured    table      what this service itself saw of each model
    picks       table      the last requests: what was tried, what came of it and why, nothing of who asked
    failovers   occurring  attempts that failed before the first byte
    changes     occurring  what happened to models, as in explorer.changes
    freshness   table      state and time of each source
    ==========  =========  =====================================================================================
    """

    def ranking() -> tuple[Json, Mapping[str, Json]]:
        snapshot = snapshots.current
        shown = range(min(RANKING_ROWS, len(snapshot.ranking)))
        rows = (ranking_row(snapshot.ranking, place) for place in shown)
        return {"snapshot": snapshot.id, "candidates": len(snapshot.ranking)}, {row["model"]: row for row in rows}

    def measured() -> tuple[Json, Mapping[str, Json]]:
        return {}, {model: measured_row(model, each) for model, each in measurements.measured().items()}

    def picks() -> tuple[Json, Mapping[str, Json]]:
        return {"requests": decided.seen}, {str(pick.number): _pick(pick) for pick in decided.picks(PICK_ROWS)}

    def freshness() -> tuple[Json, Mapping[str, Json]]:
        return {"truth": None if truth.current is None else truth.current.id}, {
            each.source: {
                "source": each.source,
                "state": each.state,
                "fetched_at": utc_text(each.fetched_at),
                "reason": each.trouble,
            }
            for each in sources.all()
        }

    return (
        Table("ranking", lambda: snapshots.current.id, ranking),
        Table("measured", measurements.stamp, measured, BUSY),
        Table("picks", lambda: (decided.seen, measurements.version), picks, BUSY),
        Occurrences(
            "failovers",
            lambda: measurements.failovers_seen,
            lambda limit: up_to(limit, measurements.failovers(), _failover),
        ),
        Occurrences(
            "changes",
            lambda: truth.changes_seen,
            lambda limit: up_to(limit, truth.recent(limit), lambda c: c.as_json()),
        ),
        Table("freshness", lambda: (truth.current and truth.current.id, sources.all()), freshness),
    )


def ranking_row(ranking: tuple[Ranked, ...], place: int) -> dict[str, Any]:
    """One candidate as it is told of, rounded to what can be seen, so that noise is no change."""
    ranked = ranking[place]
    parts = score_parts(ranked)
    return {
        "place": place + 1,
        "model": ranked.model,
        "chute_id": ranked.chute_id,
        "score": round(ranked.score, 3),
        "parts": {"idle": round(parts.idle, 3), "room": round(parts.room, 3), "refusals": round(parts.refusals, 3)},
        "active_instance_count": ranked.active_instance_count,
        "utilization": round(ranked.utilization, 3),
        "rate_limit": round(ranked.rate_limit, 4),
        "why": sentence(ranking, place),
    }


def measured_row(model: str, measured: Measured) -> dict[str, Any]:
    """What was seen of one model, as it is told of; times in seconds."""
    return {
        "model": model,
        "requests": measured.requests,
        "failures": measured.failures,
        "time_to_first_token": _rounded(measured.ttft, 4),
        "time_to_first_token_p95": _rounded(measured.ttft_p95, 4),
        "time_between_events": _rounded(measured.between_events, 4),
        "tokens_per_second": _rounded(measured.tokens_per_second, 1),
        "cooling_until": utc_text(measured.cooling_until),
        "probing": measured.probing,
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _pick(pick: Pick) -> Json:
    decision = pick.decision
    shown = decision.as_json()
    return {
        "number": pick.number,
        "at": utc_text(decision.received),
        "mode": None if decision.reasons is None else decision.reasons.mode,
        "why": sentence_of_pick(decision),
        "attempts": [
            {name: each[name] for name in ("model", "status", "failure", "ended_ms", "probe")}
            for each in shown["attempts"]
        ],
        **{name: shown[name] for name in ("selected", "status", "error", "outcome", "first_byte_ms", "total_ms")},
    }


def _failover(failover: Failover) -> Json:
    return {
        "at": utc_text(failover.at),
        "model": failover.model,
        "reason": failover.why,
        "next_model": failover.next_model,
    }
