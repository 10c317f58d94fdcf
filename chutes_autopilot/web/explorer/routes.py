"""Every path of the explorer, and how what its routes raise becomes an answer."""

from collections.abc import Callable
from functools import partial
from inspect import iscoroutine
from typing import Any

import attrs
from klein import Klein
from twisted.internet.defer import Deferred

from chutes_autopilot.explorer.parameters import BadQuery
from chutes_autopilot.explorer_live.proxied import ProxyError
from chutes_autopilot.web.explorer.admin import AdminGate, RefreshRoute
from chutes_autopilot.web.explorer.answers import PreparedAnswers, allow_preflight, begin, send_error
from chutes_autopilot.web.explorer.catalog import CatalogRoutes
from chutes_autopilot.web.explorer.dead_letters import DeadLetterRoutes
from chutes_autopilot.web.explorer.documented import DocumentedRoutes
from chutes_autopilot.web.explorer.errors import ExplorerError, not_found
from chutes_autopilot.web.explorer.openapi import OpenApiRoute
from chutes_autopilot.web.explorer.parts import ExplorerParts
from chutes_autopilot.web.explorer.past import PastRoutes
from chutes_autopilot.web.explorer.ranking import RankingRoutes
from chutes_autopilot.web.site import GatewayRequest

Handler = Callable[..., Any]


@attrs.frozen
class Route:
    """One path.

    :param endpoint: its name within the app.
    :param is_api: whether its errors have the explorer's shape, and other sites' pages may perhaps read it.
    """

    path: str
    endpoint: str
    handle: Handler
    method: str = "GET"
    is_api: bool = True


def mount_explorer(app: Klein, parts: ExplorerParts) -> None:
    """Add the explorer's paths to the app."""
    for route in explorer_routes(parts):
        handle = _guarded(route.handle, parts.cors_origins) if route.is_api else route.handle
        app.route(route.path, methods=[route.method], endpoint=route.endpoint)(handle)
        if route.is_api and parts.cors_origins:
            preflight = _guarded(partial(_preflight, route.method), parts.cors_origins)
            app.route(route.path, methods=["OPTIONS"], endpoint=f"{route.endpoint}_preflight")(preflight)


def explorer_routes(parts: ExplorerParts) -> tuple[Route, ...]:
    """Every path of the explorer; those of the operator only where there is a token."""
    gate = AdminGate(parts.admin_token)
    prepared = PreparedAnswers(parts.in_thread)
    catalog = CatalogRoutes(parts, prepared)
    documented = DocumentedRoutes(parts, gate, prepared, catalog)
    ranking = RankingRoutes(parts, prepared)
    past = PastRoutes(parts, prepared)
    refresh = RefreshRoute(parts, gate)
    description = OpenApiRoute()
    streams, pages = parts.streams, parts.pages
    letters = DeadLetterRoutes(parts, gate)
    operator = (
        Route("/api/cache/refresh", "explorer_cache_refresh", refresh.refresh, method="POST"),
        Route("/api/webhooks/dead", "explorer_dead_letters", letters.index),
        Route("/api/webhooks/dead/<path:letter>/retry", "explorer_dead_retry", letters.retry, method="POST"),
        Route("/api/webhooks/dead/<path:letter>", "explorer_dead_forget", letters.forget, method="DELETE"),
    )
    return (
        Route("/api/models", "explorer_models", documented.models),
        Route("/api/models/v1/all", "explorer_v1_models", documented.v1_models),
        Route("/api/models/<path:chute_id>", "explorer_model", documented.one),
        Route("/api/cache/status", "explorer_cache_status", documented.status),
        *(() if parts.admin_token is None else operator),
        Route("/api/health", "explorer_health", documented.health),
        Route("/api/export/data", "explorer_export", documented.export),
        Route("/api/catalog", "explorer_catalog", catalog.index),
        Route("/api/catalog/count", "explorer_catalog_count", catalog.count),
        Route("/api/catalog/facets", "explorer_catalog_facets", catalog.facets),
        Route("/api/merge/report", "explorer_merge_report", catalog.report),
        Route("/api/ranking", "explorer_ranking", ranking.ranking),
        Route("/api/history/<path:chute_id>", "explorer_history", past.history),
        Route("/api/prices/changes", "explorer_price_changes", past.price_changes),
        Route("/api/failovers", "explorer_failovers", ranking.failovers),
        Route("/api/events", "explorer_events", _no_streams if streams is None else streams.events),
        Route("/api/ws", "explorer_websocket", _no_streams if streams is None else streams.websocket),
        Route("/feed.atom", "explorer_feed", _no_streams if streams is None else streams.feed),
        Route("/api/openapi.json", "explorer_openapi", description.description),
        Route("/", "explorer_page_models", pages.models, is_api=False),
        Route("/live", "explorer_page_live", pages.live, is_api=False),
        Route("/merge", "explorer_page_merge", pages.merge, is_api=False),
        Route("/changes", "explorer_page_changes", pages.changes_page, is_api=False),
        Route("/static/<path:name>", "explorer_static", pages.static, is_api=False),
    )


def _no_streams(_request: GatewayRequest) -> Any:
    raise not_found("There are no live updates here.")


def _preflight(method: str, request: GatewayRequest, **_segments: str) -> None:
    allow_preflight(request, method.encode())


def _guarded(handle: Handler, cors_origins: tuple[str, ...]) -> Handler:
    """The handler with its answer's headers set, and with its errors answered; ApiErrors and bugs go to the app's."""

    async def answer(request: GatewayRequest, **segments: str) -> Any:
        begin(request, cors_origins)
        try:
            result = handle(request, **segments)
            return await result if iscoroutine(result) or isinstance(result, Deferred) else result
        except BadQuery as fault:
            error = ExplorerError(400, f"invalid parameter {fault.parameter}", f"{fault.parameter} {fault.message}")
        except ProxyError as fault:
            headers = () if fault.retry_after is None else ((b"Retry-After", b"%d" % fault.retry_after),)
            error = ExplorerError(fault.status, fault.error, fault.message, headers)
        except ExplorerError as fault:
            error = fault
        send_error(request, error)
        return None

    return answer
