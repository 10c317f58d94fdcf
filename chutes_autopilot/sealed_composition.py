"""The sealed transport put together: requests sealed for the instance, and the verifier of its evidence."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import random
from time import monotonic
from typing import Any

import attrs
from treq.client import HTTPClient
from twisted.application.service import MultiService, Service
from twisted.internet.task import LoopingCall

from chutes_autopilot.control.attestation import AttestationService
from chutes_autopilot.control.evidence_judge import AttestationRules, EvidenceJudge
from chutes_autopilot.control.snapshots import Snapshot, SnapshotHolder, Snapshots
from chutes_autopilot.e2ee.chute import require_mlkem
from chutes_autopilot.e2ee.quote_chain import INTEL_ROOT_SPKI_SHA256
from chutes_autopilot.e2ee.receipt import Attested
from chutes_autopilot.e2ee.tcb import TcbChecker, load_tcb_library
from chutes_autopilot.interfaces import IAttemptObserver, IUpstreamAttempt
from chutes_autopilot.observe import events
from chutes_autopilot.observe.metrics import Metrics
from chutes_autopilot.pinned_measurements import pinned_measurements
from chutes_autopilot.policy.model_field import base_of
from chutes_autopilot.settings import Settings
from chutes_autopilot.steady_time import unix_time_of
from chutes_autopilot.upstream.chat import UpstreamRequest
from chutes_autopilot.upstream.chute_e2ee.budget import Turn
from chutes_autopilot.upstream.chute_e2ee.collateral import CollateralSource
from chutes_autopilot.upstream.chute_e2ee.evidence import EvidenceSource
from chutes_autopilot.upstream.chute_e2ee.link import ChuteTerms, InThread
from chutes_autopilot.upstream.chute_e2ee.refusals import refusal
from chutes_autopilot.upstream.chute_e2ee.transport import ChuteTransport, RefusedAttempt, listings_from
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.upstream.pool import ConnectionPool

PREFETCHED = 3
"""Top-ranked models for which nonces are kept ready while the route is in use."""

IN_USE_SECONDS = 60.0
TICK_SECONDS = 5.0


@attrs.define(eq=False)
class SealedTransport:
    """Requests sealed to the instance.

    :param snapshots: what may be chosen from: with attestation, of the ranking the models that have a verified
        instance.
    :param known: the service's snapshots, the ranking whole.
    :param chute_of: the chute of a model as it is sent, with or without the platform's suffixes.
    """

    transport: ChuteTransport
    verifier: AttestationService | None
    snapshots: Snapshots
    known: Snapshots
    chute_of: Callable[[str], str | None]
    _last_use: float = attrs.field(default=float("-inf"), init=False)

    def open(
        self, model: str, request: UpstreamRequest, header_timeout: float, observer: IAttemptObserver
    ) -> IUpstreamAttempt:
        """See relay.exchange.OpenUpstream.

        A model without a verified instance is refused at once, and looked at for later where it may have evidence:
        that is never waited for.
        """
        self._last_use = monotonic()
        chute_id = self.chute_of(model)
        if self.verifier is not None and chute_id is not None and not self.verifier.chute_usable(chute_id):
            if may_be_attested(self.known.current, model):
                self.transport.prefetch([model])
            return RefusedAttempt(refusal("no_verdict", retry=True, reason="no_verdict", retry_after=5.0), observer)
        return self.transport.open(model, request, header_timeout, observer)

    def obstacle(self, model: str) -> str | None:
        """See policy.choice.Reach; what `open` would refuse at once."""
        chute_id = self.chute_of(model)
        if self.verifier is not None and chute_id is not None and not self.verifier.chute_usable(chute_id):
            return "no_verdict"
        return self.transport.obstacle(model)

    def at_hand(self, model: str) -> bool:
        """See policy.choice.Reach."""
        return self.transport.has_session(model)

    def passed_over(self, models: Mapping[str, str]) -> None:
        """Clients named models that had an obstacle: for want of a verdict alone they are looked at for later."""
        self._last_use = monotonic()
        known = self.known.current
        unseen = (name for name, why in models.items() if why == "no_verdict" and may_be_attested(known, name))
        self.transport.prefetch(unseen, PREFETCHED)

    def keep_ready(self) -> None:
        """Have sessions for the likeliest models, as long as somebody asks for answers.

        With attestation those are the verified ones; of the likeliest that may have evidence, whoever was not looked at
        yet is. While there is no verified instance, those come first, down to the end of the ranking.
        """
        in_use = monotonic() - self._last_use < IN_USE_SECONDS
        if self.verifier is None:
            if in_use:
                self.transport.prefetch(self.snapshots.current.ranked_models, PREFETCHED)
            return
        snapshot = self.known.current
        hopeful = [model for model in snapshot.ranked_models if may_be_attested(snapshot, model)]
        looked_at = frozenset(self.verifier.table.chutes())
        if self.verifier.table.counts()[1] == 0:
            hopeful.sort(key=lambda model: self.chute_of(model) in looked_at)
            self.transport.prefetch(hopeful, PREFETCHED)
        elif in_use:
            self.transport.prefetch(self.snapshots.current.ranked_models, PREFETCHED)
            unseen = [model for model in hopeful[:PREFETCHED] if self.chute_of(model) not in looked_at]
            self.transport.prefetch(unseen, PREFETCHED)


def may_be_attested(snapshot: Snapshot, model: str) -> bool:
    """Whether a model may run where there is evidence to be had: unless the catalog says that it does not.

    :param model: as it is sent, with or without the platform's suffixes.
    """
    name = model if snapshot.catalog is None else base_of(model, snapshot.catalog.ids)
    return snapshot.offers.of(name).confidential is not False


@attrs.define(eq=False)
class VerifiedSnapshots:
    """The service's snapshots, their ranking narrowed to models that have a verified instance.

    Where there is none at all, it keeps those that may have one some time, or else is whole, so that each attempt can
    say why it was refused.
    """

    holder: SnapshotHolder
    verified: Callable[[Snapshot], frozenset[str]]
    _last: tuple[Snapshot, frozenset[str], Snapshot] | None = attrs.field(default=None, init=False)

    @property
    def current(self) -> Snapshot:
        """The snapshot as it is now; the same object as long as nothing has changed."""
        snapshot = self.holder.current
        verified = self.verified(snapshot)
        if self._last is None or self._last[0] is not snapshot or self._last[1] != verified:
            ranking = tuple(ranked for ranked in snapshot.ranking if ranked.model in verified)
            ranking = ranking or tuple(each for each in snapshot.ranking if may_be_attested(snapshot, each.model))
            narrowed = attrs.evolve(snapshot, ranking=ranking) if ranking else snapshot
            self._last = snapshot, verified, narrowed
        return self._last[2]


class _Upkeep(Service):
    """Runs the transport's upkeep, and ends the transport with the service."""

    def __init__(self, sealed: SealedTransport, snapshots: SnapshotHolder, reactor: Any) -> None:
        self._sealed = sealed
        self._snapshots = snapshots
        self._catalog: object = None
        self._loop = LoopingCall(self._tick)
        self._loop.clock = reactor

    def startService(self) -> None:
        super().startService()
        self._loop.start(TICK_SECONDS, now=False).addErrback(events.failed_unexpectedly, "keeping sessions ready")

    def stopService(self) -> None:
        super().stopService()
        if self._loop.running:
            self._loop.stop()
        self._sealed.transport.retire()

    def _tick(self) -> None:
        catalog = self._snapshots.current.catalog
        if catalog is not self._catalog:
            self._catalog = catalog
            self._sealed.transport.catalog_refreshed()
        self._sealed.keep_ready()


class _Observer:
    """Tells metrics and log how the verification goes."""

    def __init__(self, metrics: Metrics) -> None:
        self._fetched = metrics.counter("evidence_fetched", "Questions for a chute's evidence, by outcome.", "outcome")
        self._checked = metrics.counter("evidence_checked", "Instances judged, by outcome.", "outcome")
        self.verdict_changed = events.verdict_changed

    def evidence_fetched(self, outcome: str, seconds: float) -> None:
        self._fetched[outcome] += 1

    def evidence_checked(self, outcome: str) -> None:
        self._checked[outcome] += 1


def build_sealed_transport(
    settings: Settings,
    reactor: Any,
    snapshots: SnapshotHolder,
    pool: ConnectionPool,
    deadlines: Deadlines,
    http_client: HTTPClient,
    metrics: Metrics,
    in_thread: InThread,
    service: MultiService,
    refresh_catalog: Callable[[], None],
    attestation_root: bytes | None,
    turn: Turn,
) -> SealedTransport:
    """The transport of CHUTES_TRANSPORT=e2ee; what it needs to run is made a part of ``service``.

    :param attestation_root: hash of the key of another root than Intel's, of the simulator's.
    :param turn: which of the look-ups of instances, and of the questions for evidence, are this process's.
    :raises SettingsError: the measurements cannot be read, or this Python cannot do ML-KEM.
    """
    require_mlkem()
    key = (settings.chutes_api_key or b"").decode("latin-1")
    refused = metrics.counter("chute_refusals", "What the sealed transport refused or met, by code.", "code")

    def counted(code: str) -> None:
        refused[code] += 1

    def chute_of(model: str) -> str | None:
        catalog = snapshots.current.catalog
        return None if catalog is None else catalog.chute_ids.get(model)

    def chute_of_sent(model: str) -> str | None:
        catalog = snapshots.current.catalog
        return None if catalog is None else catalog.chute_ids.get(base_of(model, catalog.ids))

    verifier = None
    if settings.chutes_attestation != "off":
        verifier = _verifier(settings, reactor, http_client, metrics, in_thread, key, attestation_root, turn)
        verifier.setServiceParent(service)
    terms = ChuteTerms(
        api_key=key,
        discovery_rpm=settings.chutes_e2ee_discovery_rpm,
        discovery_turn=turn,
        discovery_wait=settings.chutes_e2ee_discovery_wait,
        nonce_margin=settings.chutes_e2ee_nonce_margin,
        instance_429=settings.chutes_e2ee_instance_429,
        max_instance_tries=settings.chutes_e2ee_max_instance_tries,
        max_response_bytes=settings.chutes_e2ee_max_response_bytes,
        max_event_bytes=settings.chutes_e2ee_max_event_bytes,
        max_records=settings.chutes_e2ee_max_records,
    )
    build = partial(
        ChuteTransport,
        terms,
        settings.chutes_api_base_url,
        listings_from(http_client, settings.chutes_api_base_url, key, reactor),
        pool,
        deadlines,
        reactor,
        monotonic,
        random,
        in_thread,
        chute_of,
        counted=counted,
        refresh_catalog=refresh_catalog,
    )
    if verifier is None:
        sealed = SealedTransport(build(), None, snapshots, snapshots, chute_of_sent)
    else:
        narrowed = VerifiedSnapshots(snapshots, partial(_verified, verifier))
        transport = build(usable=verifier.usable, listed=verifier.seen, attested=partial(_attested, verifier))
        sealed = SealedTransport(transport, verifier, narrowed, snapshots, chute_of_sent)
    _Upkeep(sealed, snapshots, reactor).setServiceParent(service)
    return sealed


def _attested(verifier: AttestationService, instance_id: str, key_sha256: bytes) -> Attested | None:
    verdict = verifier.verdict(instance_id, key_sha256)
    return None if verdict is None else Attested(verdict.level, verdict.evidence_sha256)


def _verified(verifier: AttestationService, snapshot: Snapshot) -> frozenset[str]:
    return frozenset() if snapshot.catalog is None else verifier.verified_models(snapshot.catalog)


def _verifier(
    settings: Settings,
    reactor: Any,
    http_client: HTTPClient,
    metrics: Metrics,
    in_thread: InThread,
    key: str,
    attestation_root: bytes | None,
    turn: Turn,
) -> AttestationService:
    root, now = attestation_root or INTEL_ROOT_SPKI_SHA256, unix_time_of(reactor)
    evidence = EvidenceSource(http_client, settings.chutes_api_base_url, key, reactor, in_thread, random, turn=turn)
    collateral = tcb = None
    if settings.chutes_attestation == "quote+tcb":
        tcb = TcbChecker(load_tcb_library(), frozenset(settings.chutes_tdx_tcb_status))
        collateral = CollateralSource(
            http_client, settings.chutes_pccs_url or "", Path(settings.cache_dir), reactor, now, in_thread
        )
    rules = AttestationRules(
        settings.chutes_attestation, settings.chutes_attestation_ttl, pinned_measurements(settings), tcb, root
    )
    judge = EvidenceJudge(rules, evidence, collateral, now, monotonic, in_thread)
    return AttestationService(judge, evidence, reactor, monotonic, _Observer(metrics))
