"""The composition root: settings become objects, objects become one service. Only here the whole settings are known."""

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from random import random
from typing import TYPE_CHECKING, Any

import attrs
from klein.resource import KleinResource
from treq.client import HTTPClient
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.ssl import platformTrust

from chutes_autopilot.control.periodic import PeriodicRefresh
from chutes_autopilot.control.refresh import BodyListener, CatalogRefresh, UtilizationRefresh
from chutes_autopilot.control.snapshots import SnapshotBuilder, SnapshotHolder, readiness
from chutes_autopilot.demo.service import SimulatedChutesService, listen_simulator
from chutes_autopilot.demo.simulator import SimulatedChutes
from chutes_autopilot.demo.world import SimulatedWorld
from chutes_autopilot.descriptors import connection_limit
from chutes_autopilot.drain import DrainingService
from chutes_autopilot.edge.front import FrontSite
from chutes_autopilot.errors import ApiError
from chutes_autopilot.late_explorer import KeptAnswers, LateExplorer, is_loaded
from chutes_autopilot.listening import ListeningService
from chutes_autopilot.observe import events
from chutes_autopilot.observe.metrics import Metrics
from chutes_autopilot.policy.alias_file import NO_ALIASES
from chutes_autopilot.policy.cooldown import CooldownRules
from chutes_autopilot.policy.failover import Timeouts
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.policy.model_field import base_of
from chutes_autopilot.policy.resilience import Resilience
from chutes_autopilot.relay.chat import ChatRelay, RoutingRules
from chutes_autopilot.relay.endpoint import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES
from chutes_autopilot.relay.exchange import Limits
from chutes_autopilot.relay.traced import TracedRelay
from chutes_autopilot.relay.watch import Patience
from chutes_autopilot.settings import Settings
from chutes_autopilot.storage.memory import MemoryStickyStore
from chutes_autopilot.upstream.agent import control_plane_client
from chutes_autopilot.upstream.certificates import CertificateFile
from chutes_autopilot.upstream.chat import ChatAttempt
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.upstream.fetch import fetch_json_bytes
from chutes_autopilot.upstream.pool import Backend, ConnectionPool, backend_from_url, endpoints_for, open_limit
from chutes_autopilot.upstream.prewarming import PrewarmingService
from chutes_autopilot.web.body_room import BodyRoom
from chutes_autopilot.web.chat import ChatRoute
from chutes_autopilot.web.connections import ClientConnections
from chutes_autopilot.web.decisions import DecisionRoutes
from chutes_autopilot.web.explorer.places import starting, switched_off
from chutes_autopilot.web.models import ModelsRoute
from chutes_autopilot.web.operations import OperationsRoute
from chutes_autopilot.web.root import CHUTES_DISABLED, admit_to, build_admin_root, build_root, no_embeddings
from chutes_autopilot.web.site import ClientLimits, GatewayRequest, GatewaySite

if TYPE_CHECKING:
    from chutes_autopilot.e2ee_keys import KeyHolder
    from chutes_autopilot.shared_composition import Sharing
    from chutes_autopilot.web.explorer.parts import ExplorerParts

DEMO_FIRST_TOKEN = 0.15
DEMO_TOKEN_GAP = 0.02
"""Seconds: the pace of the demo mode's simulated answers."""

DEMO_REFRESH = 10.0
"""Seconds from one look at the simulated lists to the next, so that their changes show while somebody watches."""

LONGEST_COOLDOWN = 300.0
"""Seconds to which the time a failing model is left alone grows, unless COOLDOWN_MS begins longer."""

CATALOG_HASTE_SECONDS = 30.0
"""How long after the catalog came it is not asked for again, though something was not as it says."""

MAX_FEED_BYTES = 64 * 1024 * 1024
"""The largest catalog or utilization answer that is read."""


class GatewayService(DrainingService):
    """The running whole.

    :ivar apply: puts new settings into force for every request from now on; it heeds what can change while the
        service runs, reload.NEEDS_RESTART names the rest.
    :ivar keys: of the Chutes route; None where it is off.
    """

    apply: Callable[[Settings], None]
    keys: "KeyHolder | None" = None


@attrs.define(eq=False)
class _InForce:
    """The settings as they are now, for what reads them each time anew."""

    settings: Settings


def build(settings: Settings, reactor: Any, endpoints: tuple[str, ...], *, demo: bool = False) -> GatewayService:
    """The whole service for these settings, not yet started.

    :param reactor: provides TCP, TLS, name resolution and time.
    :param endpoints: Twisted server endpoint strings to listen on.
    :param demo: put a simulated Chutes, listening on loopback from now on, in the place of every upstream.
    """
    bodies = BodyRoom(_body_room(settings))
    connections = ClientConnections(connection_limit(settings.max_connections), bodies)
    service = GatewayService(connections, settings.shutdown_grace, reactor)
    attestation_root = world = None
    if demo:
        settings, simulator = _simulated(settings, reactor)
        simulator.setServiceParent(service)
        world = simulator.simulator.world
        if settings.chutes_attestation != "off":
            attestation_root = bytes.fromhex(simulator.simulator.chutes.attestation_root_sha256)
    trust_root = CertificateFile(settings.ssl_cert_file) if settings.ssl_cert_file else platformTrust()
    in_force = _InForce(settings)
    snapshots = SnapshotHolder()
    metrics = _metrics(reactor, snapshots, connections)
    endpoint_for = endpoints_for(reactor, trust_root)
    max_open = open_limit(settings.max_inflight_requests)
    pool = ConnectionPool(reactor, endpoint_for, settings.upstream_connect_timeout, max_open=max_open)
    backend = backend_from_url(settings.backend_base_url)  # made once: the pool knows it by identity first
    sticky = MemoryStickyStore(settings.sticky_ttl, settings.sticky_max_entries, reactor.seconds)
    deadlines = Deadlines(reactor)
    relay = _chat_relay(settings, reactor, service, snapshots, metrics, pool, backend, sticky, deadlines)
    sharing = None if demo else _sharing(settings, reactor, trust_root, metrics, sticky, relay, service)
    others = _other_relays(settings, reactor, relay, pool)
    routes = {each.endpoint.path: ChatRoute(each) for each in (relay, *others)}
    chat = routes[CHAT.path]
    models = ModelsRoute(snapshots, lambda: relay.rules.own_aliases)
    operations = OperationsRoute(
        _readiness(in_force, reactor, snapshots, connections), metrics, None if sharing is None else sharing.trouble
    )
    http_client = _http_client(settings, reactor, trust_root, service)
    chutes, chutes_relay = CHUTES_DISABLED, relay
    if settings.chutes_enabled:
        # imported where it is used: most of a start's time is imports
        from chutes_autopilot.chutes_composition import build_chutes

        parts = build_chutes(
            settings,
            reactor,
            relay,
            snapshots,
            pool,
            deadlines,
            http_client,
            trust_root,
            service,
            lambda: refreshes[0].hasten(CATALOG_HASTE_SECONDS),
            attestation_root,
            sharing,
        )
        chutes, service.keys, chutes_relay = parts.endpoints(), parts.keys, parts.route.relay
        chutes_relay.decisions, chutes_relay.recall = relay.decisions, relay.recall
    relays = (relay, chutes_relay, *others)
    if sharing is not None:
        sharing.share_cooldowns(_healths(relay, chutes_relay, others))
    admin = settings.admin_endpoint is not None

    def refused(request: GatewayRequest, error: ApiError) -> None:
        if request.path in routes:
            routes[request.path].body_refused(request, error)

    def public_root(explorer: "ExplorerParts | Callable[[], ApiError]") -> KleinResource:
        seen = explorer if callable(explorer) or not admin else attrs.evolve(explorer, admin_token=None)
        return build_root(
            chat,
            models,
            operations,
            chutes,
            seen,
            metrics_here=not admin,
            decisions=DecisionRoutes(relay, None if admin else settings.admin_token),
            relayed={EMBEDDINGS.path.decode(): no_embeddings}
            | {path.decode(): route.answer for path, route in routes.items() if route is not chat},
        )

    def admin_root(explorer: "ExplorerParts | Callable[[], ApiError]") -> KleinResource:
        return build_admin_root(operations, explorer, DecisionRoutes(relay, settings.admin_token))

    def open_explorer() -> None:
        from chutes_autopilot.explorer_composition import build_explorer

        explorer = build_explorer(
            settings,
            reactor,
            snapshots,
            http_client,
            service,
            lambda: connections.draining,
            metrics,
            trust_root,
            [relay] if chutes_relay is relay else [relay, chutes_relay],
            sharing,
            demo=world,
        )
        for each in relays:
            each.also_finished = explorer.finished
        answers.tell(explorer.listener)
        site.resource = public_root(explorer.parts)
        if admin_site is not None:
            admin_site.resource = admin_root(explorer.parts)

    answers = KeptAnswers()
    closed = starting if settings.explorer_enabled else switched_off
    site = FrontSite(relay, public_root(closed), reactor, _client_limits(settings), refused, connections, deadlines)
    site.admit = partial(admit_to, chutes)

    admin_site: GatewaySite | None = None
    if admin:
        limits = _client_limits(settings)
        admin_site = GatewaySite(admin_root(closed), reactor, limits, refused, connections, deadlines)

    def apply(new: Settings) -> None:
        in_force.settings = new
        connections.limit = connection_limit(new.max_connections)
        bodies.limit = _body_room(new)
        service.grace = new.shutdown_grace
        site.limits = _client_limits(new)
        rules = _routing_rules(new, relay.rules.client_key_secret)
        for each in relays:
            each.rules = rules
            each.health.apply(_cooldown_rules(new))
        sticky.ttl, sticky.max_entries = new.sticky_ttl, new.sticky_max_entries
        pool.connect_timeout = new.upstream_connect_timeout
        pool.max_open = open_limit(new.max_inflight_requests)

    service.apply = apply

    _Closing(deadlines.stop).setServiceParent(service)
    _Closing(pool.close).setServiceParent(service)
    PrewarmingService(reactor, lambda: pool.prewarm(backend)).setServiceParent(service)
    refreshes = _refreshes(in_force, reactor, snapshots, metrics, http_client, answers, sharing)
    for refresh in refreshes:
        refresh.setServiceParent(service)
    if settings.explorer_enabled and is_loaded():
        open_explorer()
    elif settings.explorer_enabled:
        LateExplorer(reactor, open_explorer).setServiceParent(service)
    if settings.admin_endpoint is not None and admin_site is not None:
        ListeningService(reactor, (settings.admin_endpoint,), admin_site, connections).setServiceParent(service)
    service.listening = ListeningService(reactor, endpoints, site, connections)
    service.listening.setServiceParent(service)
    return service


def _simulated(settings: Settings, reactor: Any) -> tuple[Settings, SimulatedChutesService]:
    """Settings whose every upstream is a simulated Chutes, and the service that runs it."""
    world = SimulatedWorld(reactor.seconds())
    simulator = SimulatedChutes(reactor, first_token=DEMO_FIRST_TOKEN, token_gap=DEMO_TOKEN_GAP, world=world)
    simulated = SimulatedChutesService(simulator, listen_simulator(reactor, simulator))
    url = simulated.base_url
    events.simulator_started(url)
    simulated_settings = attrs.evolve(
        settings,
        backend_base_url=url,
        models_url=url + "/v1/models",
        utilization_url=url + "/chutes/utilization",
        embeddings_base_url=url,
        chutes_enabled=True,
        chutes_base_url=url,
        chutes_api_base_url=url,
        chutes_api_key=settings.chutes_api_key or b"cpk_simulated",
        models_refresh=min(settings.models_refresh, DEMO_REFRESH),
        cache_duration=min(settings.cache_duration, DEMO_REFRESH),
    )
    return simulated_settings, simulated


class _Closing(Service):
    """Closes something when the service stops."""

    def __init__(self, close: Callable[[], Deferred[Any] | None]) -> None:
        self._close = close

    def stopService(self) -> Deferred[Any] | None:
        super().stopService()
        return self._close()


class _RefreshEvents:
    """Tells metrics and log how the refreshes go."""

    def __init__(self, metrics: Metrics) -> None:
        self.refreshed = metrics.refreshed
        self.state_changed = events.control_plane_changed


def _metrics(reactor: Any, snapshots: SnapshotHolder, connections: ClientConnections) -> Metrics:
    def known() -> frozenset[str]:
        catalog = snapshots.current.catalog
        return catalog.ids if catalog is not None else frozenset()

    def label(model: str) -> str:
        catalog = snapshots.current.catalog
        names: frozenset[str] = catalog.ids if catalog is not None else frozenset()
        if model in names:
            return model
        base = base_of(model, names)
        return base if base in names else "other"

    def milliseconds(age: float | None) -> float:
        return -1 if age is None else round(age * 1000)

    metrics = Metrics(label)
    metrics.gauge(
        "ready_snapshot_age_ms",
        "Age of the utilization feed; -1: none yet.",
        lambda: milliseconds(snapshots.current.feed_age(reactor.seconds())),
    )
    metrics.gauge(
        "ready_allowlist_age_ms",
        "Age of the catalog; -1: none yet.",
        lambda: milliseconds(snapshots.current.catalog_age(reactor.seconds())),
    )
    metrics.gauge("ready_candidates", "Models the alias can choose from.", lambda: len(snapshots.current.ranking))
    metrics.gauge("client_connections", "Open client connections.", lambda: len(connections))
    metrics.gauge(
        "buffered_request_bytes", "Bytes of request bodies over 16 KiB that are held.", lambda: connections.bodies.held
    )
    metrics.gauge("ready_allowlist_size", "Models in the catalog.", lambda: len(known()))
    return metrics


def _readiness(
    in_force: _InForce, reactor: Any, snapshots: SnapshotHolder, connections: ClientConnections
) -> Callable[[], str | None]:
    def reason() -> str | None:
        if connections.draining:
            return "draining"
        settings = in_force.settings
        return readiness(
            snapshots.current, reactor.seconds(), settings.readyz_max_snapshot_age, settings.readyz_max_allowlist_age
        )

    return reason


def _client_limits(settings: Settings) -> ClientLimits:
    return ClientLimits(
        max_request_bytes=settings.max_request_bytes,
        header_timeout=settings.client_header_timeout,
        body_timeout=settings.client_body_timeout,
        idle_timeout=settings.client_idle_timeout,
    )


def _body_room(settings: Settings) -> int:
    return max(settings.max_buffered_request_bytes, settings.max_request_bytes)  # one request always fits


def _routing_rules(settings: Settings, client_key_secret: bytes) -> RoutingRules:
    return RoutingRules(
        limits=Limits(
            max_attempts=settings.max_failover_attempts,
            timeouts=Timeouts(
                header=settings.upstream_header_timeout,
                first_byte=settings.upstream_first_body_byte_timeout,
                nonstream_header=settings.upstream_nonstream_header_timeout,
            ),
            request_deadline=settings.request_deadline,
            patience=Patience(settings.stream_idle_timeout, settings.client_write_stall_timeout),
            resilience=_resilience(settings),
            continue_streams=settings.stream_continue,
        ),
        max_inflight=settings.max_inflight_requests,
        max_list_items=settings.max_model_list_items,
        unknown_models=settings.unknown_models,
        failback=settings.sticky_failback,
        client_key_secret=client_key_secret,
        trusted_proxies=settings.trusted_proxy_cidrs if settings.trust_proxy_headers else None,
        own_aliases=settings.aliases_file.aliases if settings.aliases_file is not None else NO_ALIASES,
        require_tee=settings.autopilot_require_tee,
        ban_fuse=settings.ban_fuse,
        spread=settings.autopilot_spread,
        profile=settings.autopilot_profile,
    )


def _resilience(settings: Settings) -> Resilience | None:
    """What is added to the rules of failover; None where that is nothing, and costs nothing."""
    return (
        Resilience(
            first_event=settings.first_event_commit,
            first_event_timeout=settings.first_event_timeout,
            server_errors=settings.server_error_failover,
            same_model_retries=settings.same_model_retries,
            context_length=settings.context_length_failover,
            rate_limits=settings.rate_limit_retry,
            longest_wait=settings.retry_after_max,
            hedge=settings.hedge,
        )
        or None
    )


def _cooldown_rules(settings: Settings) -> CooldownRules:
    longest = max(LONGEST_COOLDOWN, settings.cooldown)
    return CooldownRules(settings.cooldown_failures, settings.cooldown, longest)


def _chat_relay(
    settings: Settings,
    reactor: Any,
    service: GatewayService,
    snapshots: SnapshotHolder,
    metrics: Metrics,
    pool: ConnectionPool,
    backend: Backend,
    sticky: MemoryStickyStore,
    deadlines: Deadlines,
) -> ChatRelay:
    make_relay: Callable[..., ChatRelay] = ChatRelay
    if settings.tracing_enabled:
        # the extra that it needs may be missing where it is off
        from chutes_autopilot.tracing_composition import build_tracing

        make_relay = partial(TracedRelay, begin_trace=build_tracing(settings, reactor, service))
    return make_relay(
        _routing_rules(settings, settings.client_key_secret or secrets.token_bytes(32)),
        snapshots,
        sticky,
        metrics,
        reactor,
        deadlines,
        lambda model, request, timeout, observer: ChatAttempt(pool, backend, deadlines, request, timeout, observer),
        FleetHealth(_cooldown_rules(settings)),
        settings.utilization_refresh,
    )


def _other_relays(settings: Settings, reactor: Any, relay: ChatRelay, pool: ConnectionPool) -> list[ChatRelay]:
    """What relays the endpoints beside chat, by the same rules and counted together with it.

    Completions are routed like chat. What the answers of the others say of a model is not held against it in chat,
    where it may work well: they have a health of their own. Of what EMBEDDINGS_BASE_URL serves there is no catalog and
    no ranking, and no prompt cache to come back to.
    """

    def health() -> FleetHealth:
        return FleetHealth(_cooldown_rules(settings))

    relays = [attrs.evolve(relay, endpoint=COMPLETIONS)]
    relays += [attrs.evolve(relay, endpoint=each, health=health()) for each in (RESPONSES, MESSAGES)]
    if settings.embeddings_base_url is not None:
        backend, deadlines = backend_from_url(settings.embeddings_base_url), relay.deadlines
        relays.append(
            attrs.evolve(
                relay,
                endpoint=EMBEDDINGS,
                snapshots=SnapshotHolder(),
                sticky=MemoryStickyStore(0, 0, reactor.seconds),
                recall=None,
                open_upstream=lambda _, request, timeout, observer: ChatAttempt(
                    pool, backend, deadlines, request, timeout, observer
                ),
                health=health(),
            )
        )
    return relays


def _healths(relay: ChatRelay, chutes_relay: ChatRelay, others: Sequence[ChatRelay]) -> dict[str, FleetHealth]:
    """What is measured apart, by a name of its own."""
    named = {"sealed": chutes_relay.health, **{each.endpoint.path.decode(): each.health for each in others}}
    return {"chat": relay.health, **{name: each for name, each in named.items() if each is not relay.health}}


def _sharing(
    settings: Settings,
    reactor: Any,
    trust_root: Any,
    metrics: Metrics,
    sticky: MemoryStickyStore,
    relay: ChatRelay,
    service: MultiService,
) -> "Sharing | None":
    """What the relay has in common with those of other replicas; None where there are none."""
    if not settings.shares:
        return None
    from chutes_autopilot.shared_composition import Sharing  # an extra: imported only where Redis is used

    sharing = Sharing(settings, reactor, trust_root, metrics, sticky)
    sharing.setServiceParent(service)
    relay.sticky, relay.recall, relay.decisions = sharing.sticky, sharing.sticky.recall, sharing.decisions
    return sharing


def _http_client(settings: Settings, reactor: Any, trust_root: Any, service: MultiService) -> HTTPClient:
    """What asks upstreams beside the traffic."""
    # a pool of its own: however many requests there are, what they are routed by stays fresh
    pool = ConnectionPool(reactor, endpoints_for(reactor, trust_root), settings.upstream_connect_timeout, max_open=64)
    _Closing(pool.close).setServiceParent(service)
    return control_plane_client(pool)


def _refreshes(
    in_force: _InForce,
    reactor: Any,
    snapshots: SnapshotHolder,
    metrics: Metrics,
    http_client: HTTPClient,
    listener: BodyListener,
    sharing: "Sharing | None",
) -> tuple[PeriodicRefresh, PeriodicRefresh]:
    settings = in_force.settings

    def fetch(source: str, url: str, interval: float) -> Callable[[], Any]:
        def asked() -> Any:
            timeout = in_force.settings.control_plane_timeout
            return fetch_json_bytes(http_client, url, clock=reactor, timeout=timeout, max_bytes=MAX_FEED_BYTES)

        return asked if sharing is None else sharing.fetch(source, url, asked, interval)

    builder = SnapshotBuilder(snapshots, reactor)
    told = _RefreshEvents(metrics)
    models_url, utilization_url = settings.models_url, settings.utilization_url
    fetch_catalog = fetch("catalog", models_url, settings.models_refresh)
    fetch_feed = fetch("utilization", utilization_url, settings.utilization_refresh)
    catalog = CatalogRefresh(fetch_catalog, builder, reactor, told, listener)
    utilization = UtilizationRefresh(fetch_feed, builder, reactor, told, listener)
    refreshes = (
        PeriodicRefresh(catalog.refresh_until_known, settings.models_refresh, reactor, random),
        PeriodicRefresh(utilization.refresh, settings.utilization_refresh, reactor, random),
    )
    if sharing is not None:
        sharing.refresh({"catalog": (models_url, refreshes[0]), "utilization": (utilization_url, refreshes[1])})
    return refreshes
