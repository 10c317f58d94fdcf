"""The ranking with its reasons, from the very snapshot by which requests are routed; and what failed over."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from chutes_autopilot.control.snapshots import Snapshot
from chutes_autopilot.explorer.eligibility import EXPLANATIONS, excluded
from chutes_autopilot.explorer.merge import Merged
from chutes_autopilot.explorer.parameters import Parameters
from chutes_autopilot.explorer.reasons import score_parts, sentence
from chutes_autopilot.explorer_live.live_topics import measured_row
from chutes_autopilot.policy.ranking import Ranked
from chutes_autopilot.storage.history import HistoryUnavailable
from chutes_autopilot.web.explorer.answers import Prepared, PreparedAnswers, iso_time, send
from chutes_autopilot.web.explorer.errors import NOT_STORED
from chutes_autopilot.web.explorer.parts import ExplorerParts
from chutes_autopilot.web.site import GatewayRequest

DAY = 86_400
MAX_DAYS = 90
MAX_FAILOVERS = 1000


class RankingRoutes:
    """Answers from the router's current snapshot, and from what the service itself has seen."""

    def __init__(self, parts: ExplorerParts, prepared: PreparedAnswers) -> None:
        self._parts = parts
        self._prepared = prepared

    async def ranking(self, request: GatewayRequest) -> None:
        """GET /api/ranking: every candidate with the parts of its score, and why every other model is none."""
        Parameters.decoded(request.args).refuse_others(())
        snapshot, truth = self._parts.snapshots.current, self._parts.truth()
        merged = None if truth is None else truth.merged
        key = ("ranking", snapshot.id, None if truth is None else truth.id)
        send(request, await self._prepared.get(key, partial(_ranking, snapshot, merged)))

    async def failovers(self, request: GatewayRequest) -> None:
        """GET /api/failovers: counts by hour, model and reason, and what was measured; nothing of who asked.

        Without a history the counts by hour are null.
        """
        given = Parameters.decoded(request.args)
        given.refuse_others(("days", "limit"))
        since = self._parts.now() - DAY * (given.integer("days", 1, MAX_DAYS) or 1)
        limit = given.integer("limit", 1, MAX_FAILOVERS) or 100
        try:
            counted: Any = [
                {
                    "hour": iso_time(each.at),
                    "model": each.model,
                    "reason": each.reason,
                    "next_model": each.next_model,
                    "count": each.count,
                }
                for each in await self._parts.history.failovers(since, limit)
            ]
        except HistoryUnavailable:
            counted = None
        answer = {"since": iso_time(since), "by_hour": counted, "recent": self._recent(), "models": self._measured()}
        send(request, Prepared.of_json(answer), (NOT_STORED,))

    def _recent(self) -> list[dict[str, Any]]:
        return [
            {"at": iso_time(each.at), "model": each.model, "reason": each.why, "next_model": each.next_model}
            for each in self._parts.recent_failovers()
        ]

    def _measured(self) -> list[dict[str, Any]]:
        return [measured_row(model, measured) for model, measured in sorted(self._parts.measured().items())]


def _ranking(snapshot: Snapshot, merged: Merged | None) -> Prepared:
    ranking = snapshot.ranking
    answer = {
        "snapshot": snapshot.id,
        "feed_fetched_at": iso_time(snapshot.feed_fetched_at),
        "catalog_fetched_at": iso_time(snapshot.catalog_fetched_at),
        "candidates": [_candidate(ranking, place) for place in range(len(ranking))],
        "excluded": [
            {
                "name": each.name,
                "chute_id": each.chute_id,
                "eligible": False,
                "reason": each.reason,
                "why": EXPLANATIONS[each.reason],
            }
            for each in excluded(ranking, snapshot.catalog, merged)
        ],
    }
    return Prepared.of_json(answer)


def _candidate(ranking: Sequence[Ranked], place: int) -> dict[str, Any]:
    ranked = ranking[place]
    parts = score_parts(ranked)
    return {
        "place": place + 1,
        "model": ranked.model,
        "name": ranked.name,
        "chute_id": ranked.chute_id,
        "eligible": True,
        "score": ranked.score,
        "parts": {"idle": parts.idle, "room": parts.room, "refusals": parts.refusals},
        "active_instance_count": ranked.active_instance_count,
        "utilization": ranked.utilization,
        "utilization_current": ranked.utilization_current,
        "rate_limit": ranked.rate_limit,
        "rate_limit_ratio_5m": ranked.rate_limit_ratio_5m,
        "why": sentence(ranking, place),
    }
