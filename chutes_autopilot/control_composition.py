"""The control plane put together: what polls the platform, what is known of it, and what tells how that goes.

It is the same in the one process of a plain service and in the parent of several workers.
"""

from collections.abc import Awaitable, Callable
from random import random
from typing import TYPE_CHECKING, Any

import attrs
from treq.client import HTTPClient
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.ssl import platformTrust

from chutes_autopilot.control.periodic import PeriodicRefresh
from chutes_autopilot.control.refresh import BodyListener, CatalogRefresh, UtilizationRefresh
from chutes_autopilot.control.snapshots import SnapshotBuilder, SnapshotHolder, readiness
from chutes_autopilot.observe import events
from chutes_autopilot.observe.metrics import Metrics
from chutes_autopilot.policy.model_field import base_of
from chutes_autopilot.settings import Settings
from chutes_autopilot.upstream.certificates import CertificateFile
from chutes_autopilot.upstream.fetch import FetchedAnswer, fetch_answer, fetch_json_bytes
from chutes_autopilot.upstream.pool import ConnectionPool, endpoints_for
from chutes_autopilot.web.connections import ClientConnections
from chutes_autopilot.web.site import ClientLimits

if TYPE_CHECKING:
    from chutes_autopilot.demo.service import SimulatedChutesService
    from chutes_autopilot.shared_composition import Sharing

DEMO_FIRST_TOKEN = 0.15
DEMO_TOKEN_GAP = 0.02
"""Seconds: the pace of the demo mode's simulated answers."""

DEMO_REFRESH = 10.0
"""Seconds from one look at the simulated lists to the next, so that their changes show while somebody watches."""

CATALOG_HASTE_SECONDS = 30.0
"""How long after the catalog came it is not asked for again, though something was not as it says."""

MAX_FEED_BYTES = 64 * 1024 * 1024
"""The largest answer that is read of what is asked beside the traffic."""

FetchWhole = Callable[[str, tuple[tuple[str, str], ...]], Awaitable[FetchedAnswer]]
"""Asks a URL with these headers; raises FetchError."""


@attrs.define(eq=False)
class InForce:
    """The settings as they are now, for what reads them each time anew."""

    settings: Settings


def trust_root_of(settings: Settings) -> Any:
    """What upstream certificates are checked against."""
    return CertificateFile(settings.ssl_cert_file) if settings.ssl_cert_file else platformTrust()


def simulated(settings: Settings, reactor: Any) -> tuple[Settings, "SimulatedChutesService"]:
    """Settings whose every upstream is a simulated Chutes, and the service that runs it."""
    # imported where it is used: most of a start's time is imports
    from chutes_autopilot.demo.service import SimulatedChutesService, listen_simulator
    from chutes_autopilot.demo.simulator import SimulatedChutes
    from chutes_autopilot.demo.world import SimulatedWorld

    world = SimulatedWorld(reactor.seconds())
    simulator = SimulatedChutes(reactor, first_token=DEMO_FIRST_TOKEN, token_gap=DEMO_TOKEN_GAP, world=world)
    service = SimulatedChutesService(simulator, listen_simulator(reactor, simulator))
    url = service.base_url
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
    return simulated_settings, service


def root_of(simulator: "SimulatedChutesService", settings: Settings) -> bytes | None:
    """Hash of the key of the root that the simulator's evidence is signed with; None where nothing is attested."""
    if settings.chutes_attestation == "off":
        return None
    return bytes.fromhex(simulator.simulator.chutes.attestation_root_sha256)


class Closing(Service):
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


def build_metrics(
    reactor: Any, snapshots: SnapshotHolder, connections: ClientConnections, *, control_plane: bool = True
) -> Metrics:
    """The metrics of one process.

    :param control_plane: whether those of the control plane are this process's to tell.
    """

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
    metrics.gauge("client_connections", "Open client connections.", lambda: len(connections))
    metrics.gauge(
        "buffered_request_bytes", "Bytes of request bodies over 16 KiB that are held.", lambda: connections.bodies.held
    )
    if not control_plane:
        return metrics
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
    metrics.gauge("ready_allowlist_size", "Models in the catalog.", lambda: len(known()))
    return metrics


def readiness_of(
    in_force: InForce, reactor: Any, snapshots: SnapshotHolder, connections: ClientConnections
) -> Callable[[], str | None]:
    """Tells why the service should get no traffic: an error code, None where it should."""

    def reason() -> str | None:
        if connections.draining:
            return "draining"
        settings = in_force.settings
        return readiness(
            snapshots.current, reactor.seconds(), settings.readyz_max_snapshot_age, settings.readyz_max_allowlist_age
        )

    return reason


def client_limits(settings: Settings) -> ClientLimits:
    """What a client may take."""
    return ClientLimits(
        max_request_bytes=settings.max_request_bytes,
        header_timeout=settings.client_header_timeout,
        body_timeout=settings.client_body_timeout,
        idle_timeout=settings.client_idle_timeout,
    )


def body_room(settings: Settings) -> int:
    """Bytes of request bodies that all clients together may have held."""
    return max(settings.max_buffered_request_bytes, settings.max_request_bytes)  # one request always fits


def build_control_pool(settings: Settings, reactor: Any, trust_root: Any, service: MultiService) -> ConnectionPool:
    """Connections for what is asked of upstreams beside the traffic."""
    # a pool of its own: however many requests there are, what they are routed by stays fresh
    pool = ConnectionPool(reactor, endpoints_for(reactor, trust_root), settings.upstream_connect_timeout, max_open=64)
    Closing(pool.close).setServiceParent(service)
    return pool


def build_fetch(in_force: InForce, reactor: Any, http_client: HTTPClient) -> FetchWhole:
    """Brings whole answers of any status, of MAX_FEED_BYTES at most, in the time that the settings in force allow."""

    def fetch(url: str, headers: tuple[tuple[str, str], ...]) -> Awaitable[FetchedAnswer]:
        timeout = in_force.settings.control_plane_timeout
        return fetch_answer(http_client, url, clock=reactor, timeout=timeout, max_bytes=MAX_FEED_BYTES, headers=headers)

    return fetch


def build_refreshes(
    in_force: InForce,
    reactor: Any,
    snapshots: SnapshotHolder,
    metrics: Metrics,
    http_client: HTTPClient,
    listener: BodyListener,
    sharing: "Sharing | None",
) -> tuple[PeriodicRefresh, PeriodicRefresh]:
    """What keeps the snapshot fresh: the catalog's refresh, and the feed's.

    :param listener: reads the same answers.
    :param sharing: lets one replica ask for all; None where nothing is shared.
    """
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
