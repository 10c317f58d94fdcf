"""The Chutes route put together: settings become its keys, stores, transports and endpoints."""

import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from time import time
from typing import TYPE_CHECKING, Any

import attrs
from treq.client import HTTPClient
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from chutes_autopilot import __version__
from chutes_autopilot.control.snapshots import SnapshotHolder
from chutes_autopilot.control_composition import FetchWhole
from chutes_autopilot.e2ee.request_headers import E2EEPolicy
from chutes_autopilot.e2ee.server_keys import ServerKeys
from chutes_autopilot.e2ee_keys import KeyHolder, key_holder
from chutes_autopilot.interfaces import IReplayClaims
from chutes_autopilot.observe.metrics import Metrics
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.policy.model_field import base_of
from chutes_autopilot.relay.chat import ChatRelay
from chutes_autopilot.relay.endpoint import CHUTES
from chutes_autopilot.relay.exchange import OpenUpstream
from chutes_autopilot.relay.sealed_answer import SealingTerms
from chutes_autopilot.sealed_composition import build_sealed_transport
from chutes_autopilot.settings import Settings
from chutes_autopilot.settings.chutes import LONGEST_REPLAY_WINDOW
from chutes_autopilot.storage.claims import MemoryClaims
from chutes_autopilot.storage.expiring import ExpiringStore
from chutes_autopilot.upstream.chat import ChatAttempt
from chutes_autopilot.upstream.chute_e2ee.budget import ALONE, Turn
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.upstream.dstack import MAX_QUOTES, DstackAgent
from chutes_autopilot.upstream.fetch import FetchedAnswer
from chutes_autopilot.upstream.pool import ConnectionPool, backend_from_url
from chutes_autopilot.web.attestation import AttestationRoute
from chutes_autopilot.web.chutes import ChutesRoute, Encryption, upstream_fields
from chutes_autopilot.web.client_auth import AccessRules, authenticate_request
from chutes_autopilot.web.kept_answers import KeptAnswers
from chutes_autopilot.web.root import ChutesEndpoints
from chutes_autopilot.web.shared_answers import SharedAnswers
from chutes_autopilot.web.signatures import SignatureRoute, SignedExchange

if TYPE_CHECKING:
    from chutes_autopilot.shared_composition import Sharing
    from chutes_autopilot.workers.link import ParentLink

Elsewhere = Callable[[tuple[bytes, str]], Awaitable[SignedExchange | None]]

OPERATOR = hashlib.sha256(b"chutes-autopilot operator").digest()
"""Stands for the operator's API key, where clients are told apart; no client has this hash."""

AGENT = b"chutes-autopilot/" + __version__.encode()


@attrs.define(eq=False)
class ChutesParts:
    """What the Chutes route adds to the service."""

    route: ChutesRoute
    attestation: AttestationRoute
    signatures: SignatureRoute
    keys: KeyHolder

    def endpoints(self) -> ChutesEndpoints:
        """What answers its paths."""
        return ChutesEndpoints(
            self.route.chat,
            self.route.models,
            self.attestation.report,
            self.signatures.signature,
            self.signatures.receipt,
            self.route.authenticate,
        )


def build_chutes(
    settings: Settings,
    reactor: Any,
    relay: ChatRelay,
    snapshots: SnapshotHolder,
    pool: ConnectionPool,
    deadlines: Deadlines,
    http_client: HTTPClient,
    fetch: FetchWhole,
    trust_root: Any,
    service: MultiService,
    refresh_catalog: Callable[[], None],
    attestation_root: bytes | None = None,
    sharing: "Sharing | None" = None,
    link: "ParentLink | None" = None,
) -> ChutesParts:
    """The Chutes route, switched on; what it needs to run is made a part of ``service``.

    :param fetch: asks the platform for whole answers.
    :param refresh_catalog: called when the platform does not know what its catalog lists.
    :param attestation_root: hash of the key of another root than Intel's, of the simulator's.
    :param sharing: what replicas share; None where they share claims alone, if at all.
    :param link: of a worker, whose keys are handed down, and whose claims are made by its parent.
    :raises SettingsError: the key file or the file of measurements cannot be used.
    """
    in_thread = partial(deferToThreadPool, reactor, reactor.getThreadPool())
    workers = 1 if link is None else link.begin.workers
    agent = dstack_agent(settings, reactor, workers)
    keys = link.handed_keys() if link is not None else build_keys(settings, reactor, agent, service)
    access = AccessRules(
        settings.chutes_enabled, bool(settings.chutes_api_key), settings.token, settings.chutes_allow_anonymous
    )
    spends = partial(authenticate_request, access, spends_key=True)
    free = partial(authenticate_request, access, spends_key=False)
    answers: ExpiringStore[tuple[bytes, str], SignedExchange] = ExpiringStore(
        settings.chat_cache_expiration, settings.signature_max_entries, reactor.seconds
    )
    shared = None if sharing is None else SharedAnswers(answers, sharing.exchanges)

    if link is not None:
        link.answers = answers

    def current_keys() -> ServerKeys:
        return keys.current

    def chute_of(model: str) -> str | None:
        catalog = snapshots.current.catalog
        return None if catalog is None else catalog.chute_ids.get(base_of(model, catalog.ids))

    relay = attrs.evolve(relay, endpoint=CHUTES, key_of_the_operator=OPERATOR)
    transport = _tls_transport(settings, pool, deadlines)
    if settings.chutes_transport == "e2ee":
        sealed = build_sealed_transport(
            settings,
            reactor,
            snapshots,
            pool,
            deadlines,
            http_client,
            relay.metrics,
            in_thread,
            service,
            refresh_catalog,
            attestation_root,
            ALONE if link is None else Turn(link.begin.number - 1, link.begin.workers),
        )
        transport = sealed.open
        relay = attrs.evolve(relay, snapshots=sealed.snapshots, health=FleetHealth(relay.health.rules), reach=sealed)
    if link is not None:
        claims: IReplayClaims = link.claims(settings)
        not_before = link.begin.not_before
    else:
        claims = build_claims(settings, reactor, trust_root, relay.metrics, service, sharing)
        not_before = claims_begin(settings, keys)
    route = ChutesRoute(
        authenticate=spends,
        relay=relay,
        encryption=_encryption(settings, relay, keys, deadlines, in_thread, claims, not_before),
        open_upstream=transport,
        upstream_fields=upstream_fields(settings.chutes_api_key or b"", AGENT),
        fetch_models=_models(settings, fetch),
        kept=KeptAnswers(shared or answers, current_keys, time, chute_of),
        trust_request_hash=settings.e2ee_trust_request_hash,
    )
    return ChutesParts(
        route,
        AttestationRoute(free, current_keys, agent, settings.e2ee_attestation, settings.chutes_transport, time),
        SignatureRoute(free, current_keys, answers, time, _elsewhere(link, shared)),
        keys,
    )


def _elsewhere(link: "ParentLink | None", shared: SharedAnswers | None) -> Elsewhere | None:
    """Asks the other workers, then what replicas share."""
    if link is None:
        return None if shared is None else shared.elsewhere

    async def ask(key: tuple[bytes, str]) -> SignedExchange | None:
        found = await link.answer_elsewhere(key)
        if found is not None:
            return SignedExchange(**found)
        return None if shared is None else await shared.elsewhere(key)

    return ask


def dstack_agent(settings: Settings, reactor: Any, workers: int) -> DstackAgent:
    """Asks the machine's agent, in one of so many processes that do."""
    quotes = max(1, MAX_QUOTES // workers)
    return DstackAgent(reactor, settings.dstack_simulator_endpoint, settings.dstack_agent_timeout, quotes)


def build_keys(settings: Settings, reactor: Any, agent: DstackAgent, service: MultiService) -> KeyHolder:
    """The keys that the settings ask for, a part of ``service``."""
    keys = key_holder(
        settings.e2ee_key_source,
        settings.e2ee_key_file,
        agent,
        settings.e2ee_key_generation,
        settings.e2ee_previous_key_until,
        reactor,
        time,
    )
    keys.setServiceParent(service)
    return keys


def _encryption(
    settings: Settings,
    relay: ChatRelay,
    keys: KeyHolder,
    deadlines: Deadlines,
    in_thread: Callable[[Callable[[], Any]], Deferred[Any]],
    claims: IReplayClaims,
    not_before: int | None,
) -> Encryption:
    policy = E2EEPolicy(
        require=settings.e2ee_require,
        allow_v1=settings.e2ee_allow_v1,
        strict=settings.e2ee_strict,
        uncovered=settings.e2ee_uncovered_fields,
        max_fields=settings.e2ee_max_fields,
        window=settings.e2ee_replay_window,
        skew=settings.e2ee_replay_skew,
    )
    terms = SealingTerms(
        max_event_bytes=settings.e2ee_max_event_bytes,
        max_response_bytes=settings.e2ee_max_response_bytes,
        coalesce=settings.e2ee_stream_coalesce,
        first_byte=lambda: relay.rules.limits.timeouts.first_byte,
    )
    return Encryption(
        keys=lambda: keys.current,
        policy=policy,
        terms=terms,
        claims=claims,
        not_before=not_before,
        unix_time=time,
        deadlines=deadlines,
        in_thread=in_thread,
    )


def claims_begin(settings: Settings, keys: KeyHolder) -> int | None:
    """The Unix second, now, from which on requests are claimed; None where no claim is ever lost.

    Claims in memory are gone after a restart; where the keys are not, what came before it may be a replay.
    """
    return int(time()) if settings.redis_url is None and keys.persistent else None


def build_claims(
    settings: Settings,
    reactor: Any,
    trust_root: Any,
    metrics: Metrics,
    service: MultiService,
    sharing: "Sharing | None",
) -> IReplayClaims:
    """Where nonces are claimed: in Redis, or in this process."""
    if settings.redis_url is None:
        return MemoryClaims(settings.e2ee_replay_max_entries, time)
    # an extra: imported only where Redis is used
    from chutes_autopilot.shared_composition import connect
    from chutes_autopilot.storage.redis import RedisClaims

    kept_longer = LONGEST_REPLAY_WINDOW - settings.e2ee_replay_window
    if sharing is not None:
        return RedisClaims(sharing.redis, time, kept_longer)
    connection = connect(settings, reactor, trust_root, metrics, None)
    connection.setServiceParent(service)
    return RedisClaims(connection, time, kept_longer)


def _tls_transport(settings: Settings, pool: ConnectionPool, deadlines: Deadlines) -> OpenUpstream:
    backend = backend_from_url(settings.chutes_base_url)
    return lambda model, request, timeout, observer: ChatAttempt(pool, backend, deadlines, request, timeout, observer)


def _models(settings: Settings, fetch: FetchWhole) -> Callable[[], Awaitable[FetchedAnswer]]:
    url = settings.chutes_base_url.rstrip("/") + "/v1/models"
    key = (settings.chutes_api_key or b"").decode("latin-1")
    return partial(fetch, url, (("Authorization", f"Bearer {key}"), ("User-Agent", AGENT.decode())))
