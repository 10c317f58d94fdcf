"""The background verifier: keeps verdicts on the instances' keys, and fails closed.

A request only ever asks what is known (`usable`, `chute_usable`). Everything else happens beside the traffic: for each
chute of which discovery named instances (`seen`) evidence is fetched with a fresh nonce, each instance's part is
judged, and the verdicts are renewed at half of their lifetime.

==================================  =================================================================
what happens                        what becomes of the instance
==================================  =================================================================
evidence stands                     verdict for CHUTES_ATTESTATION_TTL_SECONDS from when it was asked
evidence does not stand             verdict gone at once; refused until it shows another key
no evidence, collateral or list     verdict left alone until it expires; asked again, ever later
another key                         no verdict
neither discovery nor evidence      forgotten once its verdict has expired
names it for a TTL
==================================  =================================================================
"""

import secrets
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from attrs import define
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from chutes_autopilot.control.evidence_judge import EvidenceJudge
from chutes_autopilot.control.verdicts import Instance, Verdict, VerdictTable
from chutes_autopilot.e2ee.collateral import CollateralError
from chutes_autopilot.e2ee.evidence import InstanceEvidence
from chutes_autopilot.e2ee.measurements import MeasurementsError
from chutes_autopilot.e2ee.quote import QuoteRefused
from chutes_autopilot.observe import events
from chutes_autopilot.policy.catalog import Catalog
from chutes_autopilot.upstream.fetch import FetchError

TICK_SECONDS = 1.0

MIN_INTERVAL = 15.0
"""Seconds between the end of one question for a chute's evidence and the next, at the least."""

FIRST_RETRY, LAST_RETRY = 30.0, 600.0
"""Seconds until a chute or an instance that did not answer is asked again: doubled each time."""

FORGET_SECONDS = 86400.0
"""How long an instance is remembered that nobody names while its chute's evidence cannot be had."""

MAX_AT_ONCE = 4
"""Chutes whose evidence is fetched at the same time; each answer may take 32 MiB and minutes."""


class AttestationObserver(Protocol):
    """Who wants to know how the verification goes: metrics and the log."""

    def evidence_fetched(self, outcome: str, seconds: float) -> None:
        """A chute's evidence was asked for; ``ok`` or a fetch.FetchReason."""

    def evidence_checked(self, outcome: str) -> None:
        """One instance's evidence was looked at; ``verified``, one of quote.REFUSALS, or ``undecided``."""

    def verdict_changed(self, chute_id: str, instance_id: str, state: str, detail: str) -> None:
        """Worth a line in the log: ``verified`` for the first time (the level), or ``refused`` (one of REFUSALS)."""


class EvidenceFetch(Protocol):
    """Where evidence comes from: upstream.chute_e2ee.evidence.EvidenceSource."""

    async def evidence(self, chute_id: str, nonce: str) -> dict[str, InstanceEvidence]:
        """By instance id; raises FetchError."""


@define(eq=False)
class _Chute:
    """When a chute's evidence is next to be asked for, on the monotonic clock."""

    due: float
    not_before: float = 0.0
    failures: int = 0


class AttestationService(Service):
    """The verifier; works from startService to stopService.

    :param clock: delays; its time is not looked at.
    :param monotonic: counts the verdicts' lifetimes.
    :param new_nonce: 64 hexadecimal characters nobody can foresee.
    """

    def __init__(
        self,
        judge: EvidenceJudge,
        evidence: EvidenceFetch,
        clock: IReactorTime,
        monotonic: Callable[[], float],
        observer: AttestationObserver,
        new_nonce: Callable[[], str] = lambda: secrets.token_hex(32),
    ) -> None:
        self.table = VerdictTable(monotonic)
        self._judge = judge
        self._ttl = judge.rules.ttl
        self._evidence = evidence
        self._now = monotonic
        self._observer = observer
        self._new_nonce = new_nonce
        self._chutes: dict[str, _Chute] = {}
        self._running: dict[str, Deferred[None]] = {}
        self._loop = LoopingCall(self._tick)
        self._loop.clock = clock

    def seen(self, chute_id: str, instances: Iterable[tuple[str, str]]) -> None:
        """Discovery found these instances of a chute: (instance id, base64 text of its key exactly as it came)."""
        if self.table.seen(chute_id, instances):
            chute = self._chutes.setdefault(chute_id, _Chute(self._now()))
            chute.due = min(chute.due, max(self._now(), chute.not_before))

    def usable(self, instance_id: str, key_sha256: bytes) -> bool:
        """Whether the instance may be given a request sealed to the key whose raw 1184 bytes have this SHA-256."""
        return self.table.usable(instance_id, key_sha256)

    def verdict(self, instance_id: str, key_sha256: bytes) -> Verdict | None:
        """What is known of that key right now, for receipts; None: nothing."""
        return self.table.verdict(instance_id, key_sha256)

    def chute_usable(self, chute_id: str) -> bool:
        """Whether a chute has a usable instance, so that AutoPilot may choose it; takes constant time."""
        return self.table.chute_usable(chute_id)

    def verified_models(self, catalog: Catalog) -> frozenset[str]:
        """The models of the catalog whose chute has a usable instance."""
        return frozenset(
            entry.id for entry in catalog.entries if entry.chute_id is not None and self.chute_usable(entry.chute_id)
        )

    def startService(self) -> None:
        super().startService()
        self._loop.start(TICK_SECONDS, now=True)

    def stopService(self) -> Deferred[Any] | None:
        super().stopService()
        if self._loop.running:
            self._loop.stop()
        ending = list(self._running.values())
        for check in ending:
            check.cancel()
        return DeferredList(ending) if ending else None

    def _tick(self) -> None:
        now = self._now()
        self.table.forget_older(FORGET_SECONDS)
        known = set(self.table.chutes())
        for chute_id in [one for one in self._chutes if one not in known and one not in self._running]:
            del self._chutes[chute_id]
        due = sorted((chute.due, chute_id) for chute_id, chute in self._chutes.items() if chute.due <= now)
        for _, chute_id in due:
            if chute_id not in self._running and len(self._running) < MAX_AT_ONCE:
                self._start(chute_id)

    def _start(self, chute_id: str) -> None:
        check = Deferred.fromCoroutine(self._check_chute(chute_id, self._chutes[chute_id]))
        self._running[chute_id] = check

        def ended(result: object) -> None:
            del self._running[chute_id]
            if isinstance(result, Failure) and not result.check(CancelledError):
                events.failed_unexpectedly(result, "attestation")

        check.addBoth(ended)

    async def _check_chute(self, chute_id: str, chute: _Chute) -> None:
        """Ask once for a chute's evidence, judge it, and say when to ask again, whatever came of it."""
        begun = self._now()
        fetched = False
        try:
            nonce = self._new_nonce()
            # Judged is who had this key before the question and has it still: the quote of an instance that
            # restarted in between may be about either key.
            asked = [one for one in self.table.of(chute_id) if one.refused is None]
            answer = await self._fetched(chute_id, nonce)
            fetched = answer is not None
            for instance in asked:
                if answer is not None and self.table.known(instance):
                    await self._check_instance(instance, answer.get(instance.instance_id), nonce, begun)
        finally:
            chute.failures = 0 if fetched else chute.failures + 1
            chute.not_before = self._now() + (MIN_INTERVAL if fetched else _retry(chute.failures))
            wanted = (one.due for one in self.table.of(chute_id) if one.refused is None)
            chute.due = max(chute.not_before, min(wanted, default=float("inf")))

    async def _fetched(self, chute_id: str, nonce: str) -> dict[str, InstanceEvidence] | None:
        begun, outcome, answer = self._now(), "ok", None
        try:
            answer = await self._evidence.evidence(chute_id, nonce)
        except FetchError as error:
            outcome = error.reason
        self._observer.evidence_fetched(outcome, self._now() - begun)
        return answer

    async def _check_instance(
        self, instance: Instance, evidence: InstanceEvidence | None, nonce: str, asked_at: float
    ) -> None:
        instance.misses += 1  # until decided
        instance.due = self._now() + _retry(instance.misses)
        if evidence is None:
            if not instance.verified(self._now()) and self._now() - instance.seen_at > self._ttl:
                self.table.forget(instance)
            return
        instance.seen_at = self._now()
        first = instance.verdict is None
        try:
            verdict = await self._judge.judge(instance, evidence, nonce, asked_at)
        except QuoteRefused as error:
            self.table.refuse(instance, error.reason)
            self._observer.evidence_checked(error.reason)
            self._observer.verdict_changed(instance.chute_id, instance.instance_id, "refused", error.reason)
        except (FetchError, CollateralError, MeasurementsError):
            self._observer.evidence_checked("undecided")
        else:
            instance.misses, instance.due = 0, verdict.expires - self._ttl / 2
            self.table.accept(instance, verdict)
            self._observer.evidence_checked("verified")
            if first:
                self._observer.verdict_changed(instance.chute_id, instance.instance_id, "verified", verdict.level)


def _retry(failures: int) -> float:
    return min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(failures - 1, 8))
