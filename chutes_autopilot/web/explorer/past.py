"""What was: the history of one chute, and the price changes of all."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from chutes_autopilot.explorer.parameters import BadQuery, Parameters
from chutes_autopilot.explorer.records import canonical_chute_id
from chutes_autopilot.storage.history import HistoryUnavailable
from chutes_autopilot.storage.history_rows import MEASURES, CatalogChange, Measure, Point, Resolution
from chutes_autopilot.web.explorer.answers import Prepared, PreparedAnswers, iso_time, send
from chutes_autopilot.web.explorer.errors import ExplorerError, not_found
from chutes_autopilot.web.explorer.parts import ExplorerParts
from chutes_autopilot.web.site import GatewayRequest

DAY = 86_400
SPANS: Mapping[str, int] = {"24h": DAY, "7d": 7 * DAY, "90d": 90 * DAY}
RESOLUTIONS: tuple[Resolution, ...] = ("minute", "hour")
MAX_CHANGES = 1000
MAX_DAYS = 90

_MINUTE = 60


class PastRoutes:
    """Answers from the history, each of them once a minute at most."""

    def __init__(self, parts: ExplorerParts, prepared: PreparedAnswers) -> None:
        self._parts = parts
        self._prepared = prepared

    async def history(self, request: GatewayRequest, chute_id: str) -> None:
        """GET /api/history/{chute_id}: its measures in time, all at the same moments, null where one is unknown."""
        canonical = canonical_chute_id(chute_id)
        if canonical is None:
            raise not_found("Ask for a chute by its id, a UUID.")
        given = Parameters.decoded(request.args)
        given.refuse_others(("span", "resolution", "measures"))
        span = given.word("span", tuple(SPANS)) or "24h"
        resolution = given.word("resolution", RESOLUTIONS) or ("minute" if span == "24h" else "hour")
        if resolution == "minute" and SPANS[span] > SPANS["7d"]:
            raise BadQuery("resolution", "must be hour for this span: minutes are kept for 7 days.")
        measures = given.words("measures", MEASURES) or MEASURES
        minute = int(self._parts.now() // _MINUTE)

        async def made() -> Prepared:
            until = (minute + 1) * _MINUTE
            since = until - SPANS[span]
            series = {
                measure: await self._parts.history.series(
                    canonical, cast(Measure, measure), since, until, cast(Resolution, resolution)
                )
                for measure in measures
            }
            aligned: dict[str, Any] = await self._parts.in_thread(_aligned, series, resolution)
            head = {"chute_id": canonical, "since": since, "until": until, "resolution": resolution}
            prepared: Prepared = await self._parts.in_thread(Prepared.of_json, {**head, **aligned})
            return prepared

        key = ("history", canonical, span, resolution, measures, minute)
        send(request, await _asked(self._prepared.get_by(key, made)))

    async def price_changes(self, request: GatewayRequest) -> None:
        """GET /api/prices/changes: what became cheaper or dearer, the newest first; USD only, noise left out."""
        given = Parameters.decoded(request.args)
        given.refuse_others(("days", "limit", "chute_id"))
        days = given.integer("days", 1, MAX_DAYS) or MAX_DAYS
        limit = given.integer("limit", 1, MAX_CHANGES) or 100
        asked_id = given.text("chute_id", longest=64)
        chute_id = canonical_chute_id(asked_id)
        if asked_id is not None and chute_id is None:
            raise BadQuery("chute_id", "must be a UUID.")
        minute = int(self._parts.now() // _MINUTE)

        async def made() -> Prepared:
            since = minute * _MINUTE - days * DAY
            changes = await self._parts.history.changes(since, limit, kinds=("price.changed",), chute_id=chute_id)
            return Prepared.of_json({"since": iso_time(since), "changes": [_change(each) for each in changes]})

        key = ("price changes", days, limit, chute_id, minute)
        send(request, await _asked(self._prepared.get_by(key, made)))


async def _asked(asking: Any) -> Prepared:
    try:
        return cast(Prepared, await asking)
    except HistoryUnavailable as unavailable:
        raise ExplorerError(
            503, "no history now", f"Ask again in a moment: {unavailable.reason}.", ((b"Retry-After", b"5"),)
        ) from None


def _aligned(series: Mapping[str, Sequence[Point]], resolution: str) -> dict[str, Any]:
    """One list of moments and, in step with it, lists of values; an hour also has its least and greatest one."""
    moments = sorted({point.at for points in series.values() for point in points})
    wanted = ("mean",) if resolution == "minute" else ("mean", "least", "greatest")
    columns = {}
    for measure, points in series.items():
        by_moment = {point.at: point for point in points}
        columns[measure] = {
            name: [getattr(by_moment[at], name) if at in by_moment else None for at in moments] for name in wanted
        }
    return {"at": moments, "series": columns}


def _change(change: CatalogChange) -> dict[str, Any]:
    """As explorer.changes gives one; what the history kept beside may be a list of fields, or hold one."""
    detail = change.detail
    fields = detail.get("fields", []) if isinstance(detail, dict) else detail
    return {
        "type": change.kind,
        "at": iso_time(change.at),
        "chute_id": change.chute_id,
        "name": change.name,
        "fields": fields or [],
    }
