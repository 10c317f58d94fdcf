"""The parent put together: settings become its control plane, its site, its explorer and its workers."""

import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
from klein.resource import KleinResource
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory

from chutes_autopilot.control.refresh import BodyListener
from chutes_autopilot.control.snapshots import SnapshotHolder
from chutes_autopilot.control_composition import (
    CATALOG_HASTE_SECONDS,
    Closing,
    InForce,
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
from chutes_autopilot.errors import ApiError
from chutes_autopilot.late_explorer import KeptAnswers, LateExplorer
from chutes_autopilot.listening import EndpointsOfWorkers, ListeningService, stop_as_failed
from chutes_autopilot.observe.metrics import CONTENT_TYPE, Metrics
from chutes_autopilot.settings import SETTINGS, Settings
from chutes_autopilot.storage.memory import MemoryStickyStore
from chutes_autopilot.storage.shared_memory import shared_memory
from chutes_autopilot.upstream.agent import control_plane_client
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.web.connections import ClientConnections
from chutes_autopilot.web.decisions import SHOWN, check_operator, send_json
from chutes_autopilot.web.explorer.places import starting, switched_off
from chutes_autopilot.web.forwarding import LineSite
from chutes_autopilot.web.operations import OperationsRoute
from chutes_autopilot.web.root import build_admin_root
from chutes_autopilot.web.site import GatewayRequest, GatewaySite
from chutes_autopilot.workers.figures import recent_of_all
from chutes_autopilot.workers.link import missing
from chutes_autopilot.workers.messages import Sources
from chutes_autopilot.workers.parent import Orders, ParentService, Sealing
from chutes_autopilot.workers.processes import start_process
from chutes_autopilot.workers.sockets import Binding
from chutes_autopilot.workers.supervision import Supervisor
from chutes_autopilot.workers.totals import ServiceTotals

if TYPE_CHECKING:
    from chutes_autopilot.shared_composition import Sharing
    from chutes_autopilot.web.explorer.parts import ExplorerParts

_NAMES = frozenset(setting.name for setting in SETTINGS)


@attrs.define(eq=False)
class _ServiceOperations(OperationsRoute):
    """The metrics of all workers in the place of one process's."""

    parent: ParentService = attrs.field(kw_only=True)

    def exposition(self, request: GatewayRequest) -> Deferred[None]:
        """All metrics of the service."""

        async def answer() -> None:
            request.answer(200, await self.parent.count(), CONTENT_TYPE)

        return Deferred.fromCoroutine(answer())


@attrs.frozen
class _ServiceDecisions:
    """The last requests of all workers."""

    parent: ParentService
    admin_token: bytes | None = attrs.field(repr=False)

    async def recent(self, request: GatewayRequest) -> None:
        """As of DecisionRoutes."""
        check_operator(request, self.admin_token)
        send_json(request, recent_of_all(await self.parent.recent(SHOWN), SHOWN))


@attrs.define(eq=False)
class _Told(BodyListener):
    """Tells the workers of each new snapshot, and then whoever else reads the answers."""

    parent: ParentService
    then: BodyListener

    def fetched(self, source: str, body: bytes, at: float) -> None:
        self.parent.snapshot_changed()
        self.then.fetched(source, body, at)

    def failed(self, source: str, reason: str) -> None:
        self.then.failed(source, reason)


def build_parent(
    settings: Settings,
    reactor: Any,
    endpoints: tuple[str, ...],
    sources: Callable[[], tuple[Mapping[str, str], Mapping[str, str]]],
    *,
    demo: bool = False,
    write: Callable[[str], object] | None = None,
    syslog: str | None = None,
) -> ParentService:
    """The whole service for WORKERS of more than one, not yet started; the workers are started with it.

    :param sources: what the settings in force were read from: variables, and texts of files by their paths.
    :param demo: see composition.build.
    :param write: takes the log lines of workers; None: they write to standard output themselves.
    :param syslog: the prefix with which workers log to syslog.
    """
    started = MultiService()
    attestation_root = world = None
    overrides: dict[str, str] = {}
    if demo:
        overrides = {"CHUTES_ENABLED": "true"} | (
            {} if settings.chutes_api_key else {"CHUTES_API_KEY": "cpk_simulated"}
        )
        settings, simulator = simulated(settings, reactor)
        simulator.setServiceParent(started)
        attestation_root, world = root_of(simulator, settings), simulator.simulator.world
        overrides |= {name: getattr(settings, name.lower()) for name in _SIMULATED}

    def for_workers() -> Sources:
        variables, files = sources()
        return Sources.of({n: v for n, v in variables.items() if n in _NAMES} | overrides, files)

    trust_root = trust_root_of(settings)
    in_force = InForce(settings)
    snapshots = SnapshotHolder()
    connections = ClientConnections(connection_limit(settings.max_connections))
    lines = ClientConnections(connection_limit(settings.max_connections))
    metrics = build_metrics(reactor, snapshots, connections)
    secret = settings.client_key_secret or secrets.token_bytes(32)
    orders = Orders(endpoints, for_workers(), secret, settings.shares and not demo, attestation_root, syslog)
    parent = ParentService(orders, reactor, connections, lines, snapshots, for_workers, settings.shutdown_grace)
    EndpointsOfWorkers(reactor, endpoints).setServiceParent(parent)
    started.setServiceParent(parent)
    binding = Binding(reactor, settings.workers)
    start = partial(start_process, reactor, write, _loaded_ahead(settings, orders))
    sticky = shared_memory(settings.sticky_max_entries)
    parent.supervisor = Supervisor(reactor, settings.workers, parent, start, sticky, binding.of)
    parent.supervisor.hopeless = partial(stop_as_failed, reactor)
    parent.totals = ServiceTotals(metrics)
    metrics.gauge("workers", "Worker processes that accept connections.", lambda: len(parent.supervisor.serving))
    restarts = metrics.counter("worker_restarts", "Worker processes that died or drained, and were replaced.", "worker")
    parent.supervisor.restarts = lambda number: restarts.update((str(number),))
    sharing = None if demo else _sharing(settings, reactor, trust_root, metrics, parent)
    deadlines = Deadlines(reactor)
    control_pool = build_control_pool(settings, reactor, trust_root, parent)
    http_client = control_plane_client(control_pool)
    if settings.chutes_enabled:
        parent.sealing = _sealing(settings, reactor, trust_root, metrics, parent, sharing)
        parent.sealing.keys.changed = parent.keys_changed

    feeds = readiness_of(in_force, reactor, snapshots, connections)

    def missing_workers() -> str | None:
        serving = len(parent.supervisor.serving)
        return missing(serving, settings.workers) if serving < settings.workers else None

    operations = _ServiceOperations(
        lambda: feeds() or (None if parent.supervisor.serving else "not_ready"),
        metrics,
        (missing_workers,) if sharing is None else (missing_workers, sharing.trouble),
        parent=parent,
    )
    admin = settings.admin_endpoint is not None

    def root(explorer: "ExplorerParts | Callable[[], ApiError]", *, operator: bool) -> KleinResource:
        seen = explorer if callable(explorer) or operator else attrs.evolve(explorer, admin_token=None)
        token = settings.admin_token if operator else None
        return build_admin_root(operations, seen, _ServiceDecisions(parent, token), metrics_here=operator)

    def site_of(kind: type[GatewaySite], accepted: ClientConnections, *, operator: bool) -> GatewaySite:
        limits = client_limits(settings)
        return kind(root(closed, operator=operator), reactor, limits, _nothing_more, accepted, deadlines)

    def open_explorer() -> None:
        from chutes_autopilot.explorer_composition import build_explorer

        explorer = build_explorer(
            settings,
            reactor,
            snapshots,
            build_fetch(in_force, reactor, http_client),
            parent,
            lambda: connections.draining,
            metrics,
            trust_root,
            (parent.routing,),
            sharing,
            demo=world,
        )
        parent.measurements = explorer.measurements
        answers.tell(explorer.listener)
        parent.site.resource = root(explorer.parts, operator=not admin)
        if admin_site is not None:
            admin_site.resource = root(explorer.parts, operator=True)

    answers = KeptAnswers()
    closed = starting if settings.explorer_enabled else switched_off
    parent.site = site_of(LineSite, lines, operator=not admin)
    admin_site = site_of(GatewaySite, connections, operator=True) if admin else None

    def changed(new: Settings) -> None:
        in_force.settings = new
        control_pool.connect_timeout = new.upstream_connect_timeout
        raise_descriptor_limit(enough_descriptors(new.max_connections, new.max_inflight_requests))
        connections.limit = lines.limit = connection_limit(new.max_connections)
        for site in (parent.site, admin_site):
            if site is not None:
                site.limits = client_limits(new)

    parent.changed_settings = changed
    Closing(deadlines.stop).setServiceParent(parent)
    refreshes = build_refreshes(in_force, reactor, snapshots, metrics, http_client, _Told(parent, answers), sharing)
    parent.catalog_out_of_date = lambda: refreshes[0].hasten(CATALOG_HASTE_SECONDS)
    for refresh in refreshes:
        refresh.setServiceParent(parent)
    if settings.explorer_enabled:
        LateExplorer(reactor, open_explorer).setServiceParent(parent)
    if settings.admin_endpoint is not None and admin_site is not None:
        ListeningService(reactor, (settings.admin_endpoint,), admin_site, connections).setServiceParent(parent)
    parent.listening = ListeningService(binding, endpoints, Factory(), ClientConnections(1))
    parent.listening.setServiceParent(parent)
    parent.supervisor.setServiceParent(parent)
    return parent


def _loaded_ahead(settings: Settings, orders: Orders) -> tuple[str, ...]:
    """What composition.build loads only where it is wanted, where it is."""
    wanted = {
        "chutes_autopilot.chutes_composition": settings.chutes_enabled,
        "chutes_autopilot.shared_composition": orders.shares,
        "chutes_autopilot.tracing_composition": settings.tracing_enabled,
        "chutes_autopilot.workers.sealing": settings.chutes_enabled,
    }
    return tuple(module for module, is_wanted in wanted.items() if is_wanted)


_SIMULATED = (
    "BACKEND_BASE_URL",
    "MODELS_URL",
    "UTILIZATION_URL",
    "EMBEDDINGS_BASE_URL",
    "CHUTES_BASE_URL",
    "CHUTES_API_BASE_URL",
)
"""The settings that the demo mode replaces."""


def _sharing(
    settings: Settings, reactor: Any, trust_root: Any, metrics: Metrics, service: MultiService
) -> "Sharing | None":
    """The parent's part of what replicas share: polls, documents, who tells the webhooks; None where nothing is."""
    if not settings.shares:
        return None
    from chutes_autopilot.shared_composition import Sharing  # an extra: imported only where Redis is used

    nobody = MemoryStickyStore(0, 0, reactor.seconds)  # clients are the workers' business
    sharing = Sharing(settings, reactor, trust_root, metrics, nobody)
    sharing.setServiceParent(service)
    return sharing


def _sealing(
    settings: Settings,
    reactor: Any,
    trust_root: Any,
    metrics: Metrics,
    service: MultiService,
    sharing: "Sharing | None",
) -> Sealing:
    from chutes_autopilot.chutes_composition import build_claims, build_keys, claims_begin
    from chutes_autopilot.upstream.dstack import DstackAgent

    agent = DstackAgent(reactor, settings.dstack_simulator_endpoint, settings.dstack_agent_timeout)
    keys = build_keys(settings, reactor, agent, service)
    claims = build_claims(settings, reactor, trust_root, metrics, service, sharing)
    return Sealing(keys, claims, claims_begin(settings, keys))


def _nothing_more(_request: GatewayRequest, _error: ApiError) -> None:
    """A request that was refused before all of it came is counted nowhere here: it is none for a chat."""
