"""The composition root: settings become objects, objects become one service. Only here the whole settings are known."""

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import attrs
from klein.resource import KleinResource
from twisted.application.service import MultiService

from chutes_autopilot.control.snapshots import SnapshotHolder
from chutes_autopilot.control_composition import (
    CATALOG_HASTE_SECONDS,
    Closing,
    InForce,
    body_room,
    build_control_pool,
    build_fetch,
    build_metrics,
    build_refreshes,
    client_limits,
    readiness_of,
    root_of,
    simulated,
    trust_root_of,
)
from chutes_autopilot.descriptors import connection_limit, enough_descriptors, raise_descriptor_limit
from chutes_autopilot.drain import DrainingService
from chutes_autopilot.edge.front import FrontSite
from chutes_autopilot.errors import ApiError
from chutes_autopilot.interfaces import IStickyStore
from chutes_autopilot.late_explorer import KeptAnswers, LateExplorer, is_loaded
from chutes_autopilot.listening import ListeningService
from chutes_autopilot.observe.metrics import Metrics
from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.policy.alias_file import NO_ALIASES
from chutes_autopilot.policy.cooldown import CooldownRules
from chutes_autopilot.policy.failover import Timeouts
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.policy.resilience import Resilience
from chutes_autopilot.relay.chat import ChatRelay, RoutingRules
from chutes_autopilot.relay.endpoint import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES
from chutes_autopilot.relay.exchange import Limits
from chutes_autopilot.relay.traced import TracedRelay
from chutes_autopilot.relay.watch import Patience
from chutes_autopilot.settings import Settings
from chutes_autopilot.storage.memory import MemoryStickyStore
from chutes_autopilot.storage.shared_memory import SharedStickyStore
from chutes_autopilot.upstream.agent import control_plane_client
from chutes_autopilot.upstream.chat import ChatAttempt
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.upstream.pool import Backend, ConnectionPool, backend_from_url, endpoints_for, open_limit
from chutes_autopilot.upstream.prewarming import PrewarmingService
from chutes_autopilot.web.body_room import BodyRoom
from chutes_autopilot.web.chat import ChatRoute
from chutes_autopilot.web.connections import ClientConnections
from chutes_autopilot.web.decisions import DecisionRoutes
from chutes_autopilot.web.explorer.places import starting, switched_off
from chutes_autopilot.web.forwarding import forward_to
from chutes_autopilot.web.models import ModelsRoute
from chutes_autopilot.web.operations import OperationsRoute
from chutes_autopilot.web.root import CHUTES_DISABLED, admit_to, build_admin_root, build_root, no_embeddings
from chutes_autopilot.web.site import GatewayRequest, GatewaySite

if TYPE_CHECKING:
    from chutes_autopilot.e2ee_keys import KeyHolder
    from chutes_autopilot.shared_composition import Sharing
    from chutes_autopilot.web.explorer.parts import ExplorerParts
    from chutes_autopilot.workers.link import ParentLink

LONGEST_COOLDOWN = 300.0
"""Seconds to which the time a failing model is left alone grows, unless COOLDOWN_MS begins longer."""


class GatewayService(DrainingService):
    """The running whole.

    :ivar apply: puts new settings into force for every request from now on; it heeds what can change while the
        service runs, reload.NEEDS_RESTART names the rest.
    :ivar log_requests: has another write the lines of requests, which otherwise are events of the log like all others.
    :ivar keys: of the Chutes route; None where it is off.
    """

    apply: Callable[[Settings], None]
    log_requests: Callable[[Callable[[RequestRecord], object]], None]
    keys: "KeyHolder | None" = None


def build(
    settings: Settings,
    reactor: Any,
    endpoints: tuple[str, ...],
    *,
    demo: bool = False,
    link: "ParentLink | None" = None,
) -> GatewayService:
    """The whole service for these settings, not yet started.

    :param reactor: provides TCP, TLS, name resolution and time.
    :param endpoints: Twisted server endpoint strings to listen on.
    :param demo: put a simulated Chutes, listening on loopback from now on, in the place of every upstream.
    :param link: of a worker, which relays and leaves to its parent (workers.parent) what one process does for all.
    """
    bodies = BodyRoom(body_room(settings))
    connections = ClientConnections(connection_limit(settings.max_connections), bodies)
    service = GatewayService(connections, settings.shutdown_grace, reactor)
    attestation_root = world = None
    if demo:
        settings, simulator = simulated(settings, reactor)
        simulator.setServiceParent(service)
        world = simulator.simulator.world
        attestation_root = root_of(simulator, settings)
    elif link is not None:
        attestation_root = link.begin.attestation_root
    trust_root = trust_root_of(settings)
    in_force = InForce(settings)
    snapshots = SnapshotHolder() if link is None else link.snapshots
    metrics = build_metrics(reactor, snapshots, connections, control_plane=link is None)
    endpoint_for = endpoints_for(reactor, trust_root)
    max_open = open_limit(settings.max_inflight_requests)
    pool = ConnectionPool(reactor, endpoint_for, settings.upstream_connect_timeout, max_open=max_open)
    backend = backend_from_url(settings.backend_base_url)  # made once: the pool knows it by identity first
    local = MemoryStickyStore(settings.sticky_ttl, settings.sticky_max_entries, reactor.seconds)
    sticky: MemoryStickyStore | SharedStickyStore = local
    shares = settings.shares if link is None else link.begin.shares
    if link is not None and not shares:  # else workers are like replicas
        sticky = link.sticky(settings)
    deadlines = Deadlines(reactor)
    relay = _chat_relay(settings, reactor, service, snapshots, metrics, pool, backend, sticky, deadlines)
    sharing = None if demo or not shares else _sharing(settings, reactor, trust_root, metrics, local, relay, service)
    if link is not None:
        link.relay, relay.fuse = relay, link.fuse()
        if settings.explorer_enabled:
            relay.also_finished = link.finished
    others = _other_relays(settings, reactor, relay, pool)
    routes = {each.endpoint.path: ChatRoute(each) for each in (relay, *others)}
    chat = routes[CHAT.path]
    models = ModelsRoute(snapshots, lambda: relay.rules.own_aliases)
    details = (*(() if link is None else (link.missing,)), *(() if sharing is None else (sharing.trouble,)))
    operations = OperationsRoute(readiness_of(in_force, reactor, snapshots, connections), metrics, details)
    control_pool = build_control_pool(settings, reactor, trust_root, service)
    http_client = control_plane_client(control_pool)
    fetch = build_fetch(in_force, reactor, http_client)
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
            fetch,
            trust_root,
            service,
            link.catalog_out_of_date if link is not None else lambda: refreshes[0].hasten(CATALOG_HASTE_SECONDS),
            attestation_root,
            sharing,
            link,
        )
        chutes, service.keys, chutes_relay = parts.endpoints(), parts.keys, parts.route.relay
        chutes_relay.decisions, chutes_relay.recall = relay.decisions, relay.recall
        chutes_relay.also_finished = relay.also_finished
    relays = (relay, chutes_relay, *others)
    if link is not None:
        link.share_cooldowns(_healths(relay, chutes_relay, others))
    if sharing is not None:
        sharing.share_cooldowns(_healths(relay, chutes_relay, others))
    admin = settings.admin_endpoint is not None

    relay_of = {each.endpoint.path: each for each in relays}

    def refused(request: GatewayRequest, error: ApiError) -> None:
        if request.path in relay_of:
            relay_of[request.path].refused(request.request_id, request.received_bytes, error)

    def abandoned(path: bytes, request_id: str, received: int) -> None:
        if path in relay_of:
            relay_of[path].abandoned(request_id, received)

    def public_root(explorer: "ExplorerParts | Callable[[], ApiError]") -> KleinResource:
        seen = explorer if callable(explorer) or not admin else attrs.evolve(explorer, admin_token=None)
        elsewhere = None if link is None else link.decision_elsewhere
        return build_root(
            chat,
            models,
            operations,
            chutes,
            seen,
            metrics_here=not admin,
            decisions=DecisionRoutes(relay, None if admin else settings.admin_token, elsewhere),
            relayed={EMBEDDINGS.path.decode(): no_embeddings}
            | {path.decode(): route.answer for path, route in routes.items() if route is not chat},
            forward=None if link is None else forward_to(link.open_line, lambda: relay.rules.trusted_proxies),
        )

    def admin_root(explorer: "ExplorerParts | Callable[[], ApiError]") -> KleinResource:
        return build_admin_root(operations, explorer, DecisionRoutes(relay, settings.admin_token))

    def open_explorer() -> None:
        from chutes_autopilot.explorer_composition import build_explorer

        explorer = build_explorer(
            settings,
            reactor,
            snapshots,
            fetch,
            service,
            lambda: connections.draining,
            metrics,
            trust_root,
            [relay] if chutes_relay.health is relay.health else [relay, chutes_relay],
            sharing,
            demo=world,
        )
        for each in relays:
            each.also_finished = explorer.measurements.finished
        answers.tell(explorer.listener)
        site.resource = public_root(explorer.parts)
        if admin_site is not None:
            admin_site.resource = admin_root(explorer.parts)

    answers = KeptAnswers()
    closed = starting if settings.explorer_enabled else switched_off
    site = FrontSite(relay, public_root(closed), reactor, client_limits(settings), refused, connections, deadlines)
    site.admit, site.abandoned = partial(admit_to, chutes), abandoned

    admin_site: GatewaySite | None = None
    if admin and link is None:
        limits = client_limits(settings)
        admin_site = GatewaySite(admin_root(closed), reactor, limits, refused, connections, deadlines)

    def apply(new: Settings) -> None:
        in_force.settings = new
        raise_descriptor_limit(enough_descriptors(new.max_connections, new.max_inflight_requests))
        connections.limit = connection_limit(new.max_connections)
        bodies.limit = body_room(new)
        service.grace = new.shutdown_grace
        for each_site in (site, admin_site):
            if each_site is not None:
                each_site.limits = client_limits(new)
        rules = _routing_rules(new, relay.rules.client_key_secret)
        if rules.trusted_proxies != relay.rules.trusted_proxies:
            connections.forget_clients()
        for each in relays:
            each.rules = rules
            each.health.apply(_cooldown_rules(new))
        sticky.ttl = new.sticky_ttl
        if link is None:  # else it needs a restart
            sticky.max_entries = new.sticky_max_entries
        for each_pool in (pool, control_pool):
            each_pool.connect_timeout = new.upstream_connect_timeout
        pool.max_open = open_limit(new.max_inflight_requests)

    def log_requests(write: Callable[[RequestRecord], object]) -> None:
        for each in relays:
            each.log_request = write

    def overdue() -> None:
        for each in relays:
            each.stop()

    service.apply, service.log_requests, service.overdue = apply, log_requests, overdue

    Closing(deadlines.stop).setServiceParent(service)
    Closing(pool.close).setServiceParent(service)
    PrewarmingService(reactor, lambda: pool.prewarm(backend)).setServiceParent(service)
    if link is None:
        refreshes = build_refreshes(in_force, reactor, snapshots, metrics, http_client, answers, sharing)
        for refresh in refreshes:
            refresh.setServiceParent(service)
        if settings.explorer_enabled and is_loaded():
            open_explorer()
        elif settings.explorer_enabled:
            LateExplorer(reactor, open_explorer).setServiceParent(service)
    if settings.admin_endpoint is not None and admin_site is not None:
        ListeningService(reactor, (settings.admin_endpoint,), admin_site, connections).setServiceParent(service)
    listens: Any = reactor if link is None else link.adopting
    service.listening = ListeningService(listens, endpoints, site, connections)
    service.listening.setServiceParent(service)
    return service


def _routing_rules(settings: Settings, client_key_secret: bytes) -> RoutingRules:
    return RoutingRules(
        limits=Limits(
            max_attempts=settings.max_failover_attempts,
            timeouts=Timeouts(
                header=settings.upstream_header_timeout,
                first_byte=settings.upstream_first_body_byte_timeout,
                nonstream_header=_unless_late(settings.upstream_nonstream_header_timeout, settings.request_deadline),
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


def _unless_late(timeout: float, request_deadline: float) -> float:
    """A deadline of an attempt, or none where that of its request, which began before it, passes first."""
    return timeout if timeout < request_deadline else inf


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
    sticky: IStickyStore,
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
) -> "Sharing":
    """What the relay has in common with those of other replicas."""
    from chutes_autopilot.shared_composition import Sharing  # an extra: imported only where Redis is used

    sharing = Sharing(settings, reactor, trust_root, metrics, sticky)
    sharing.setServiceParent(service)
    relay.sticky, relay.recall, relay.decisions = sharing.sticky, sharing.sticky.recall, sharing.decisions
    return sharing
