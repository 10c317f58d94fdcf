"""The models explorer put together: settings become its cache, history, merged truth, routes and streams."""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from random import random
from tempfile import TemporaryDirectory
from time import time
from typing import TYPE_CHECKING, Any, Protocol

import attrs
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool

from chutes_autopilot.control.periodic import PeriodicRefresh
from chutes_autopilot.control.refresh import BodyListener
from chutes_autopilot.control.snapshots import SnapshotHolder
from chutes_autopilot.control_composition import FetchWhole
from chutes_autopilot.demo.past import SimulatedPast
from chutes_autopilot.demo.world import SimulatedWorld
from chutes_autopilot.explorer.cache_names import is_known
from chutes_autopilot.explorer.changes import Change
from chutes_autopilot.explorer.webhook_config import WebhookConfigError, WebhookEndpoint, parse_webhooks
from chutes_autopilot.explorer_live.budget import BudgetedFetch
from chutes_autopilot.explorer_live.decided import Decided
from chutes_autopilot.explorer_live.listing import ListingRefresh
from chutes_autopilot.explorer_live.live import Live
from chutes_autopilot.explorer_live.live_topics import live_topics
from chutes_autopilot.explorer_live.measured import Health, Measurements
from chutes_autopilot.explorer_live.minutes import MinuteByMinute
from chutes_autopilot.explorer_live.proxied import ProxiedJson
from chutes_autopilot.explorer_live.published import Published
from chutes_autopilot.explorer_live.recorder import Recorder
from chutes_autopilot.explorer_live.shared_answers import SharedAnswers
from chutes_autopilot.explorer_live.sources import Sources
from chutes_autopilot.explorer_live.truth import Truth
from chutes_autopilot.explorer_live.webhook_connections import LookUps
from chutes_autopilot.explorer_live.webhook_sending import WebhookSender
from chutes_autopilot.explorer_live.webhooks import MAX_AT_ONCE, Webhooks
from chutes_autopilot.observe.metrics import Metrics
from chutes_autopilot.policy.client_address import TrustedProxies
from chutes_autopilot.policy.decision import RecentDecisions
from chutes_autopilot.policy.model_field import base_of
from chutes_autopilot.settings import Settings, SettingsError
from chutes_autopilot.storage.disk_cache import DiskCache, InThread
from chutes_autopilot.storage.history import HistoryStore
from chutes_autopilot.storage.watch_file import WatchFile
from chutes_autopilot.storage.webhook_queue import WebhookQueue
from chutes_autopilot.web.explorer.feed import Feed
from chutes_autopilot.web.explorer.pages import ExplorerPages
from chutes_autopilot.web.explorer.parts import ExplorerParts
from chutes_autopilot.web.explorer.states import Freshness
from chutes_autopilot.web.explorer.static_files import StaticFiles
from chutes_autopilot.web.explorer.streams import StreamRoutes

if TYPE_CHECKING:
    from chutes_autopilot.shared_composition import Sharing


MEGABYTE = 1024 * 1024


@attrs.define(eq=False)
class Explorer:
    """What the explorer adds to the service, and where it is told what happens there.

    :param parts: for mount_explorer.
    :param listener: for the refreshes of the catalog and of the feed, whose answers it reads too.
    :param measurements: to be told of each request that is over.
    :param truth: its ``change_listeners`` hear what happened to models.
    """

    parts: ExplorerParts
    listener: BodyListener
    measurements: Measurements
    truth: Truth


class Rules(Protocol):
    """What of the rules of routing counts here."""

    @property
    def trusted_proxies(self) -> TrustedProxies | None: ...


class Routing(Protocol):
    """What requests leave where they are routed: relay.chat.ChatRelay, or what its workers told a parent."""

    @property
    def health(self) -> Health: ...
    @property
    def decisions(self) -> RecentDecisions[Any]: ...
    @property
    def rules(self) -> Rules: ...


def build_explorer(
    settings: Settings,
    reactor: Any,
    snapshots: SnapshotHolder,
    fetch: FetchWhole,
    service: MultiService,
    draining: Callable[[], bool],
    metrics: Metrics,
    trust_root: Any,
    relays: Sequence[Routing],
    sharing: "Sharing | None" = None,
    *,
    demo: SimulatedWorld | None = None,
) -> Explorer:
    """The explorer, switched on; what it needs to run is made a part of ``service``.

    :param fetch: asks the platform.
    :param relays: what requests are routed by; all keep the same decisions.
    :param draining: whether the service is about to stop: nobody may go on to follow it then.
    :param sharing: what replicas share; None where they do not.
    :param demo: what is simulated, if it is: nothing of it is kept, and it begins with a past of its own.
    """
    in_thread = partial(deferToThreadPool, reactor, reactor.getThreadPool())
    now = reactor.seconds  # Unix time, as the snapshots' is
    directory = Path(settings.cache_dir) if demo is None else _demo_directory(service)
    shared = None if sharing is None else SharedAnswers(sharing.bodies, settings.cache_duration, now)
    documents = _documents(settings, reactor, directory, fetch, in_thread, shared)
    history = HistoryStore(
        reactor, directory if demo is None else None, settings.explorer_history_max_mb * MEGABYTE, in_thread
    )
    sources = Sources(in_thread, show_private=settings.explorer_show_private)
    lists = (settings.chutes_api_base_url, settings.models_url, str(settings.explorer_show_private))
    file = None if demo is not None else WatchFile(directory, lists, in_thread)
    truth = Truth(sources, settings.merge_fuzzy, in_thread, now, file)
    recorder = Recorder(history)
    minutes = MinuteByMinute(recorder, history, truth, sources, snapshots, reactor, now)
    listed = partial(_listed, snapshots)
    measurements = Measurements(listed, recorder.failed_over, [relay.health for relay in relays], now)
    decided = Decided(relays[0].decisions, listed)
    topics = live_topics(snapshots, measurements, truth, sources, decided)
    live = Live(reactor, topics, settings.explorer_max_streams, draining)
    has_key, show_private = settings.chutes_api_key is not None, settings.explorer_show_private
    published = Published(documents, settings.chutes_api_base_url, has_key, show_private, now, in_thread)
    listing = ListingRefresh(published, sources, reactor, now)
    refresh = PeriodicRefresh(listing.refresh_until_known, settings.cache_duration, reactor, random)
    past = [] if demo is None else [SimulatedPast(demo, history)]
    kept = InTurn()
    for each in (history, *past, truth, minutes):
        each.setServiceParent(kept)
    for part in (documents, kept, live, refresh):
        part.setServiceParent(service)
    webhooks = None
    if demo is None:  # what is simulated is nobody's news
        webhooks = _webhooks(settings, reactor, directory, in_thread, metrics, trust_root, sharing)
        if webhooks is not None:
            webhooks.setServiceParent(service)
            truth.change_listeners.append(webhooks.changed)
    feed = Feed(lambda: truth.changes_seen, truth.recent, now())
    parts = ExplorerParts(
        truth=lambda: truth.current,
        snapshots=snapshots,
        documents=documents,
        published=published,
        history=history,
        pages=_pages(
            snapshots,
            sources,
            truth,
            minutes,
            measurements,
            decided,
            now,
            in_thread,
            partial(deferLater, reactor, 0),
            lambda: relays[0].rules.trusted_proxies,
            simulated=demo is not None,
        ),
        in_thread=in_thread,
        now=now,
        chutes_api_base_url=settings.chutes_api_base_url,
        models_url=settings.models_url,
        api_key_configured=has_key,
        admin_token=settings.admin_token,
        cors_origins=settings.explorer_cors_origins,
        show_private=show_private,
        refresh_sources=partial(listing.refresh, anew=True),
        measured=measurements.measured,
        recent_failovers=measurements.failovers,
        dead_letters=webhooks,
        streams=StreamRoutes(live, feed, settings.explorer_cors_origins),
    )
    return Explorer(parts, sources, measurements, truth)


def _webhooks(
    settings: Settings,
    reactor: Any,
    directory: Path,
    in_thread: InThread,
    metrics: Metrics,
    trust_root: Any,
    sharing: "Sharing | None",
) -> Webhooks | None:
    endpoints = read_webhooks(settings.webhooks_file)
    if not endpoints:
        return None
    queue = WebhookQueue(reactor, directory, in_thread)
    now = time  # receivers go by the clock
    sender = WebhookSender(reactor, trust_root, now, MAX_AT_ONCE, LookUps(reactor).look_up)
    attempts = metrics.counter("webhook_attempts", "Webhook attempts by outcome.", "outcome")
    metrics.gauge("webhooks_waiting", "Webhook messages that wait to be delivered.", lambda: queue.waiting)
    metrics.gauge("webhooks_dead", "Webhook messages that were given up and are kept.", lambda: queue.dead)
    return Webhooks(
        endpoints,
        queue,
        sender,
        reactor,
        reactor.seconds,
        random,
        _all_claimed if sharing is None else sharing.changes.claim,
        attempts,
        None if sharing is None else sharing.changes.give_back,
    )


async def _all_claimed(changes: Sequence[Change]) -> Sequence[tuple[Change, str]]:
    return [(change, "msg_" + secrets.token_hex(12)) for change in changes]


def read_webhooks(path: str | None) -> tuple[WebhookEndpoint, ...]:
    """The receivers in WEBHOOKS_FILE.

    :raises SettingsError: names the entry and the member at fault, never a secret.
    """
    if path is None:
        return ()
    try:
        return parse_webhooks(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SettingsError((f"WEBHOOKS_FILE: cannot read the file: {reason}",)) from None
    except WebhookConfigError as error:
        raise SettingsError(tuple(f"WEBHOOKS_FILE: {fault}" for fault in error.faults)) from None


class InTurn(MultiService):
    """Its parts stop one after the other, the last first: each has those before it until its own end."""

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stopped())

    async def _stopped(self) -> None:
        for part in reversed(list(self)):
            await DeferredList([maybeDeferred(part.stopService)])


class _Removed(Service):
    """A directory that is removed when the service stops."""

    def __init__(self, directory: TemporaryDirectory[str]) -> None:
        self._directory = directory

    def stopService(self) -> None:
        super().stopService()
        self._directory.cleanup()


def _demo_directory(service: MultiService) -> Path:
    directory = TemporaryDirectory(prefix="chutes-autopilot-demo-", ignore_cleanup_errors=True)
    _Removed(directory).setServiceParent(service)
    return Path(directory.name)


def _documents(
    settings: Settings,
    reactor: Any,
    directory: Path,
    fetch: FetchWhole,
    in_thread: InThread,
    shared: SharedAnswers | None,
) -> ProxiedJson:
    cache = DiskCache(directory, in_thread, known=is_known)
    budgeted = BudgetedFetch(fetch, reactor.seconds)
    asked, asked_for_visitors, asked_anew = (
        (fetch, budgeted, fetch)
        if shared is None
        else (partial(shared.fetch, fetch), partial(shared.fetch, budgeted), partial(shared.fetch_anew, fetch))
    )
    return ProxiedJson(
        cache,
        asked,
        settings.cache_duration,
        reactor.seconds,
        in_thread,
        settings.chutes_api_key,
        asked_for_visitors,
        asked_anew,
    )


def _listed(snapshots: SnapshotHolder, model: str) -> str | None:
    """The catalog's name that a sent one stands for."""
    catalog = snapshots.current.catalog
    if catalog is None:
        return None
    base = base_of(model, catalog.ids)
    return base if base in catalog.ids else None


def _pages(
    snapshots: SnapshotHolder,
    sources: Sources,
    truth: Truth,
    minutes: MinuteByMinute,
    measurements: Measurements,
    decided: Decided,
    now: Callable[[], float],
    in_thread: InThread,
    pause: Callable[[], Awaitable[object]],
    trusted: Callable[[], TrustedProxies | None],
    *,
    simulated: bool,
) -> ExplorerPages:
    def freshness() -> Sequence[Freshness]:
        return [
            Freshness(
                each.source,
                None if each.fetched_at is None else max(0.0, now() - each.fetched_at),
                each.state,
                each.trouble,
            )
            for each in sources.all()
        ]

    return ExplorerPages(
        truth=lambda: None if truth.current is None else truth.current.merged,
        ranking=lambda: snapshots.current,
        sparklines=lambda: minutes.sparklines,
        freshness=freshness,
        changes=truth.recent,
        now=now,
        in_thread=in_thread,
        pause=pause,
        files=StaticFiles.load(),
        measured=measurements.measured,
        failovers=measurements.failovers,
        picks=decided.picks,
        totals=decided.totals,
        trusted=trusted,
        simulated=simulated,
    )
