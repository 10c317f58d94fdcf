"""The topics that the explorer tells of: the ranking, what is measured, failovers, changes, and freshness."""

from collections.abc import Mapping
from typing import Any

from chutes_autopilot.control.snapshots import Snapshots
from chutes_autopilot.explorer.reasons import score_parts, sentence
from chutes_autopilot.explorer_live.measured import Failover, Measurements
from chutes_autopilot.explorer_live.sources import Sources
from chutes_autopilot.explorer_live.topics import Json, Occurrences, Table, Topic, up_to
from chutes_autopilot.explorer_live.truth import Truth, utc_text
from chutes_autopilot.policy.ranking import Ranked

RANKING_ROWS = 200
"""Candidates that are told of, the best ones."""


def live_topics(snapshots: Snapshots, measurements: Measurements, truth: Truth, sources: Sources) -> tuple[Topic, ...]:
    """All topics, in the order in which a new subscriber hears of them.

    ==========  =========  =====================================================================================
    ranking     table      the router's snapshot: place, score with its parts, and why, by model
    measured    table      what this service itself saw of each model
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
        return {}, {
            model: {
                "model": model,
                "requests": each.requests,
                "failures": each.failures,
                "time_to_first_token": None if each.ttft is None else round(each.ttft, 4),
            }
            for model, each in measurements.measured().items()
        }

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
        Table("measured", lambda: measurements.version, measured),
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


def _failover(failover: Failover) -> Json:
    return {
        "at": utc_text(failover.at),
        "model": failover.model,
        "reason": failover.why,
        "next_model": failover.next_model,
    }
