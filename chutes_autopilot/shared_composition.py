"""What replicas share by Redis, put together. Needs the extra ``redis``: import it only where Redis is used."""

from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from functools import cached_property, partial
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool

from chutes_autopilot.control.periodic import PeriodicRefresh
from chutes_autopilot.control.refresh import Fetched
from chutes_autopilot.control.shared_feed import SharedFetch
from chutes_autopilot.observe.metrics import Metrics
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.policy.shared_values import fleet_of, naming_key
from chutes_autopilot.relay.shared_decisions import SharedDecisions
from chutes_autopilot.settings import Settings
from chutes_autopilot.storage.memory import MemoryStickyStore
from chutes_autopilot.storage.redis_connection import RedisConnection, redis_endpoint
from chutes_autopilot.storage.redis_lock import BEAT, SharedLock
from chutes_autopilot.storage.shared_bodies import SharedBodies
from chutes_autopilot.storage.shared_changes import SharedChanges
from chutes_autopilot.storage.shared_cooldowns import SharedCooldowns
from chutes_autopilot.storage.shared_records import SharedExchanges, SharedRecords
from chutes_autopilot.storage.shared_sticky import SharedStickyStore

MAX_BODY_BYTES = 64 * 1024 * 1024
"""The largest answer of the platform that is shared."""

SETTLED_SECONDS = 0.3
"""How long after the start the platform is not asked, because another replica may have, if Redis is not there by then.
"""

TAKEN_OVER_SECONDS = 2.0
"""Whoever begins to ask the platform for all does so at once, unless it has asked so lately."""


def connect(
    settings: Settings, reactor: Any, trust_root: Any, metrics: Metrics, changed: Callable[[Any], object] | None
) -> RedisConnection:
    """The connection to REDIS_URL, not yet started, and how it fares in the metrics.

    :param changed: see RedisConnection; None where it is for claims alone.
    """
    assert settings.redis_url is not None  # noqa: S101 - asked for only where there is one
    errors: Counter[str] = metrics.counter("redis_errors", "Commands to Redis and connections that failed.", "kind")
    endpoint = redis_endpoint(reactor, settings.redis_url, trust_root)
    connection = RedisConnection(
        reactor, endpoint, settings.redis_url, settings.e2ee_redis_timeout, changed=changed, errors=errors
    )
    metrics.gauge("redis_up", "Whether Redis can be used: 1 or 0.", lambda: float(connection.usable))
    return connection


class Sharing(MultiService):
    """What this replica shares; its parts stop before the connection does."""

    def __init__(
        self, settings: Settings, reactor: Any, trust_root: Any, metrics: Metrics, sticky: MemoryStickyStore
    ) -> None:
        super().__init__()
        assert settings.client_key_secret is not None  # noqa: S101 - nothing is shared without
        self._reactor = reactor
        naming = partial(naming_key, settings.client_key_secret)
        self._listeners: list[Callable[[list[bytes] | None], object]] = []
        self._unsettled: list[Deferred[None]] = []
        self._settling: IDelayedCall | None = None
        self._fleet = fleet_of(settings.backend_base_url, settings.models_url, settings.utilization_url)
        self.redis = redis = connect(settings, reactor, trust_root, metrics, self._changed)
        in_thread = partial(deferToThreadPool, reactor, reactor.getThreadPool())
        self.sticky = SharedStickyStore(sticky, redis, reactor)
        self._follow(self.sticky.changed, self.sticky.connected)
        self.decisions = SharedDecisions(
            records=SharedRecords(redis, naming(b"decision"), reactor.seconds), clock=reactor
        )
        self.exchanges = SharedExchanges(redis, naming(b"signed"), settings.chat_cache_expiration, reactor)
        self.bodies = SharedBodies(redis, naming(b"body"), in_thread, MAX_BODY_BYTES, self._settled)
        self.changes = SharedChanges(redis, naming(b"change"), self._fleet, self._settled)
        redis.connected.append(self._settle)

    def stopService(self) -> Deferred[None]:
        """Give back what is held, then close the connection."""
        self.decisions.stop()
        self._settle()
        stopping = maybeDeferred(super().stopService)
        return stopping.addCallback(lambda _: self.redis.stopService()).addCallback(lambda _: None)

    def startService(self) -> None:
        self._settling = self._reactor.callLater(SETTLED_SECONDS, self._settle)
        self.redis.startService()
        super().startService()

    @cached_property
    def polling(self) -> SharedLock:
        """Whoever holds it asks the platform for all; tried for only where there are refreshes."""
        lock = SharedLock(self.redis, self._reactor, f"polling:{self._fleet}", BEAT)
        self.redis.connected.append(lock.connected)
        lock.setServiceParent(self)
        return lock

    def share_cooldowns(self, healths: Mapping[str, FleetHealth]) -> None:
        """Let what fails at one replica be left alone by all.

        :param healths: by a name that keeps apart what is measured apart.
        """
        for name, health in healths.items():
            cooldowns = SharedCooldowns(self.redis, health, f"{name}:{self._fleet}", self._reactor.seconds)
            health.told = cooldowns.told
            self._follow(cooldowns.changed, cooldowns.connected)

    def fetch(
        self, source: str, url: str, fetch: Callable[[], Coroutine[Deferred[Any], Any, bytes]], interval: float
    ) -> Callable[[], Coroutine[Deferred[Any], Any, Fetched]]:
        """A fetch of a source that one replica makes for all."""
        name = self.bodies.name(source, url)
        lock, usable, now = self.polling, lambda: self.redis.usable, self._reactor.seconds
        return SharedFetch(fetch, self.bodies, lock, name, interval, usable, now).fetch

    def refresh(self, refreshes: dict[str, tuple[str, PeriodicRefresh]]) -> None:
        """Renew what others have renewed as soon as it is there, and all of it when this replica takes over.

        :param refreshes: by source, with its URL.
        """
        names = {self.bodies.name(source, url).encode(): each for source, (url, each) in refreshes.items()}

        def renewed(keys: list[bytes] | None) -> None:
            for key in keys or ():
                if key in names:
                    names[key].hasten(0.0)

        def take_over() -> None:
            for refresh in names.values():
                refresh.hasten(TAKEN_OVER_SECONDS)

        self._listeners.append(renewed)
        self.polling.taken = take_over

    def trouble(self) -> str | None:
        """What is wrong with Redis, for /readyz; None where nothing is."""
        trouble = self.redis.fault or self.redis.refusal
        return None if trouble is None else f"nothing is shared with other replicas: Redis: {trouble}"

    def _settled(self) -> Deferred[None]:
        settled: Deferred[None] = Deferred()
        if self._settling is None:
            settled.callback(None)
        else:
            self._unsettled.append(settled)
        return settled

    def _settle(self) -> None:
        settling, self._settling = self._settling, None
        if settling is not None and settling.active():
            settling.cancel()
        unsettled, self._unsettled = self._unsettled, []
        for each in unsettled:
            if not each.called:  # else nobody waits any more
                each.callback(None)

    def _follow(self, changed: Callable[[list[bytes] | None], object], connected: Callable[[], object]) -> None:
        self._listeners.append(changed)
        self.redis.connected.append(connected)

    def _changed(self, keys: list[bytes] | None) -> None:
        for listener in self._listeners:
            listener(keys)
