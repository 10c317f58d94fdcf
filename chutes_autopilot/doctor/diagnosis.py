"""All checks together, within one limit of time: what takes too long is a finding of its own."""

import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import attrs
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, gatherResults
from twisted.internet.ssl import platformTrust
from twisted.python.failure import Failure

from chutes_autopilot.control_composition import MAX_FEED_BYTES
from chutes_autopilot.demo.service import SimulatedChutesService, listen_simulator
from chutes_autopilot.demo.simulator import SimulatedChutes
from chutes_autopilot.doctor.clock import DatedAgent, check_clock
from chutes_autopilot.doctor.connections import check_connection
from chutes_autopilot.doctor.feeds import check_age, check_feeds
from chutes_autopilot.doctor.findings import Finding, fail, ok
from chutes_autopilot.doctor.key import check_form, check_key
from chutes_autopilot.doctor.listeners import check_endpoint_free
from chutes_autopilot.doctor.machine import check_descriptors, check_key_file, check_settings, check_workers
from chutes_autopilot.doctor.names import LookUp, addresses_of, check_name
from chutes_autopilot.doctor.redis import check_redis
from chutes_autopilot.doctor.routing import check_models, check_rules
from chutes_autopilot.extras import missing_extras
from chutes_autopilot.settings import Settings
from chutes_autopilot.upstream.agent import PooledAgent
from chutes_autopilot.upstream.certificates import CertificateFile
from chutes_autopilot.upstream.pool import ConnectionPool, endpoints_for

Check = Coroutine[Deferred[Any], Any, Iterable[Finding]]

_LATE = "see whether the network here is slow, or give it longer with --timeout"


@attrs.define(eq=False)
class Diagnosis:
    """One examination of one configuration.

    :param endpoints: where the gateway would listen.
    :param key: the platform's key; None where none is given.
    :param limit: seconds for everything.
    :param now: Unix time.
    """

    _settings: Settings
    _endpoints: Sequence[str]
    _reactor: Any
    _key: bytes | None = attrs.field(repr=False)
    _limit: float
    _now: Callable[[], float] = time.time
    _look_up: LookUp = addresses_of
    _ends_at: float = attrs.field(init=False)

    @_ends_at.default
    def _end_of_the_limit(self) -> float:
        return float(self._reactor.seconds()) + self._limit

    async def findings(self, *, demo: bool = False) -> list[Finding]:
        """Look at everything.

        :param demo: put a simulated Chutes in the place of every upstream, as the gateway's demo mode does; the key
            is then not looked at.
        """
        found = [*check_settings(self._settings), *check_rules(self._settings)]
        if not demo:
            return [*found, *await self._examined(asks_key=True)]
        simulator = SimulatedChutes(self._reactor)
        service = SimulatedChutesService(simulator, listen_simulator(self._reactor, simulator))
        url = service.base_url
        self._settings = attrs.evolve(
            self._settings,
            backend_base_url=url,
            embeddings_base_url=url,
            models_url=f"{url}/v1/models",
            utilization_url=f"{url}/chutes/utilization",
            chutes_base_url=url,
            chutes_api_base_url=url,
        )
        try:
            return [*found, *await self._examined(asks_key=False)]
        finally:
            await service.stopService()

    async def _examined(self, *, asks_key: bool) -> list[Finding]:
        settings = self._settings
        found = [check_descriptors(settings), *check_workers(settings, self._endpoints)]
        found += check_key_file(settings, self._now())
        hosts = dict.fromkeys(host for host, _, _ in self._servers())
        names = await self._all([self._within(host, self._name(host), self._left / 2) for host in hosts])
        lost = {finding.subject for finding in names if finding.level == "fail"}
        trust_root = CertificateFile(settings.ssl_cert_file) if settings.ssl_cert_file else platformTrust()
        checks = [
            self._within(f"connection to {host}", self._connection(host, port, secure, trust_root))
            for host, port, secure in self._servers()
            if host not in lost
        ]
        feeds = {urlsplit(url).hostname for url in (settings.models_url, settings.utilization_url)}
        if not feeds & lost:
            checks.append(self._within("platform", self._platform(trust_root, asks_key=asks_key)))
        if (settings.chutes_enabled or settings.shares) and "REDIS_URL" not in dict(missing_extras(settings)):
            checks.append(self._within("Redis", check_redis(self._reactor, settings, trust_root, self._now)))
        checks += [self._within(endpoint, self._endpoint(endpoint)) for endpoint in self._endpoints]
        return [*found, *names, *await self._all(checks)]

    def _servers(self) -> list[tuple[str, int, bool]]:
        """Host, port and whether it is TLS, of every upstream that the settings use, and of the collector of traces."""
        settings = self._settings
        urls = [settings.backend_base_url, settings.models_url, settings.utilization_url, settings.chutes_api_base_url]
        urls.append(settings.embeddings_base_url or "")
        if settings.tracing_enabled:
            urls.append(settings.otel_exporter_otlp_endpoint)
        if settings.chutes_enabled:
            urls += [settings.chutes_base_url, settings.chutes_pccs_url or ""]
        servers: dict[tuple[str, int, bool], None] = {}
        for parts in map(urlsplit, filter(None, urls)):
            secure = parts.scheme == "https"
            servers[parts.hostname or "", parts.port or (443 if secure else 80), secure] = None
        return list(servers)

    async def _name(self, host: str) -> Iterable[Finding]:
        finding = await check_name(self._reactor, host, self._look_up)
        return () if finding is None else (finding,)

    async def _connection(self, host: str, port: int, secure: bool, trust_root: Any) -> Iterable[Finding]:
        return await check_connection(self._reactor, host, port, secure, trust_root, self._now())

    async def _endpoint(self, endpoint: str) -> Iterable[Finding]:
        return (await check_endpoint_free(self._reactor, endpoint),)

    async def _platform(self, trust_root: Any, *, asks_key: bool) -> Iterable[Finding]:
        """Feeds, key and clock: all that is asked for over the gateway's own connections."""
        settings, reactor = self._settings, self._reactor
        pool = ConnectionPool(reactor, endpoints_for(reactor, trust_root), settings.upstream_connect_timeout)
        agent = DatedAgent(PooledAgent(pool), self._now)
        http_client = HTTPClient(agent)
        timeout = min(settings.control_plane_timeout, max(0.1, self._left * 0.9))
        try:
            findings, feed = await check_feeds(
                http_client,
                settings.models_url,
                settings.utilization_url,
                reactor,
                timeout,
                MAX_FEED_BYTES,
                partial(check_models, settings),
            )
            key = self._key
            if not asks_key:
                findings.append(ok("key", "account", "not looked at: the simulated platform takes any"))
            elif key is None:
                findings.append(ok("key", "account", "none is given, and clients of the gateway bring their own"))
            else:
                findings.append(check_form(key))
                findings.append(await check_key(http_client, key, settings.chutes_api_base_url, reactor, timeout))
        finally:
            await pool.close()
        findings.append(check_clock(agent.offsets))
        if feed is not None:
            offset = sorted(agent.offsets)[len(agent.offsets) // 2] if agent.offsets else 0.0
            findings.append(check_age(feed, self._now() + offset))
        return findings

    @property
    def _left(self) -> float:
        return max(0.1, self._ends_at - float(self._reactor.seconds()))

    def _within(self, subject: str, check: Check, seconds: float | None = None) -> Deferred[Iterable[Finding]]:
        """The findings of a check, or that it did not end in time."""
        limit = self._left if seconds is None else seconds
        started = Deferred.fromCoroutine(check).addTimeout(limit, self._reactor)

        def late(failure: Failure) -> Iterable[Finding]:
            failure.trap(TimeoutError, CancelledError)
            return (fail("time", subject, f"no result within {limit:.1f} s", _LATE),)

        return started.addErrback(late)

    async def _all(self, checks: Iterable[Deferred[Iterable[Finding]]]) -> list[Finding]:
        results = await gatherResults(list(checks), consumeErrors=True)
        return [finding for findings in results for finding in findings]
