"""One instance's evidence judged: against the list of measurements and the collateral of the moment.

An answer is a verdict, a refusal (QuoteRefused: the evidence does not stand) or no decision (FetchError,
CollateralError, MeasurementsError: what is needed to decide is not at hand, which is nobody's fault here).
"""

from collections.abc import Callable
from typing import Protocol

from attrs import define, field, frozen
from twisted.internet.defer import DeferredLock

from chutes_autopilot.control.verdicts import Instance, Verdict
from chutes_autopilot.e2ee.collateral import Collateral, Platform
from chutes_autopilot.e2ee.evidence import CheckedEvidence, InstanceEvidence, check_evidence
from chutes_autopilot.e2ee.measurements import Measurements, MeasurementsError, read_measurements
from chutes_autopilot.e2ee.quote import Level, QuoteRefused
from chutes_autopilot.e2ee.quote_chain import INTEL_ROOT_SPKI_SHA256
from chutes_autopilot.e2ee.tcb import TcbChecker
from chutes_autopilot.upstream.chute_e2ee.evidence import InThread
from chutes_autopilot.upstream.fetch import FetchError

MEASUREMENTS_AGE = 1800.0
"""Seconds after which the API's list of measurements is fetched again."""

MEASUREMENTS_RETRY = 30.0
"""Seconds in which it is not asked for again after a failure."""


class MeasurementSource(Protocol):
    """Who asserts measurements that nobody pinned: upstream.chute_e2ee.evidence.EvidenceSource."""

    async def measurements(self) -> bytes:
        """The API's list; raises FetchError."""


class CollateralKept(Protocol):
    """Where collateral comes from: upstream.chute_e2ee.collateral.CollateralSource."""

    async def collateral(self, platform: Platform) -> Collateral:
        """Valid now; raises FetchError."""


@frozen
class AttestationRules:
    """What is asked of an instance.

    :param level: not ``off``.
    :param ttl: seconds a verdict holds.
    :param pinned: the operator's measurements; None: the API's.
    :param tcb: for ``quote+tcb``, and for it alone.
    """

    level: Level
    ttl: float
    pinned: Measurements | None = None
    tcb: TcbChecker | None = None
    root_spki_sha256: bytes = INTEL_ROOT_SPKI_SHA256

    def __attrs_post_init__(self) -> None:
        if self.level == "off" or (self.level == "quote+tcb") != (self.tcb is not None):
            raise ValueError("level off needs no verifier, and quote+tcb alone needs a TcbChecker")


class EvidenceJudge:
    """Judges, with lists and collateral fetched as needed.

    :param collateral: for ``quote+tcb``, and for it alone.
    :param now: tells Unix time, by which certificates are judged.
    :param monotonic: tells the age of the list.
    :param in_thread: where signatures are checked.
    """

    def __init__(
        self,
        rules: AttestationRules,
        source: MeasurementSource,
        collateral: CollateralKept | None,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        in_thread: InThread,
    ) -> None:
        if (rules.tcb is None) != (collateral is None):
            raise ValueError("a TcbChecker needs collateral")
        self.rules = rules
        self._measurements = _MeasurementList(rules.pinned, source, monotonic)
        self._collateral = collateral
        self._now = now
        self._in_thread = in_thread

    async def judge(self, instance: Instance, evidence: InstanceEvidence, nonce: str, asked_at: float) -> Verdict:
        """The verdict for an instance whose evidence was asked for with ``nonce`` at this monotonic time.

        :raises QuoteRefused: the evidence does not stand.
        :raises FetchError, CollateralError, MeasurementsError: it cannot be decided now.
        """
        rules = self.rules
        measurements = await self._measurements.current() if rules.level != "binding" else None
        try:
            checked = await self._checked(instance, evidence, nonce, measurements)
        except QuoteRefused as error:
            # a new image is not to be refused for good because the API's list was read before it was rolled out
            if error.reason != "measurements" or not await self._measurements.renewed_since(asked_at):
                raise
            measurements = await self._measurements.current()
            checked = await self._checked(instance, evidence, nonce, measurements)
        return Verdict(
            level=rules.level,
            checked_at=self._now(),
            expires=asked_at + rules.ttl,
            evidence_sha256=checked.sha256,
            measurement=checked.measurement,
            measurements=measurements.source if measurements is not None else None,
            tcb_status=await self._tcb_status(checked.quote.raw),
        )

    async def _tcb_status(self, quote: bytes) -> str | None:
        if self.rules.tcb is None or self._collateral is None:
            return None
        platform = await self._in_thread(self.rules.tcb.platform_of, quote)
        collateral = await self._collateral.collateral(platform)
        status: str = await self._in_thread(self.rules.tcb.check, quote, collateral, self._now())
        return status

    async def _checked(
        self, instance: Instance, evidence: InstanceEvidence, nonce: str, measurements: Measurements | None
    ) -> CheckedEvidence:
        checked: CheckedEvidence = await self._in_thread(
            check_evidence,
            evidence,
            self.rules.level,
            nonce,
            instance.public_key,
            measurements,
            self._now(),
            self.rules.root_spki_sha256,
        )
        return checked


@define(eq=False)
class _MeasurementList:
    """The operator's list, or the API's with its age."""

    _pinned: Measurements | None
    _source: MeasurementSource
    _now: Callable[[], float]
    _fetched: Measurements | None = field(default=None, init=False)
    _fetched_at: float = field(default=0.0, init=False)
    _failed_at: float = field(default=float("-inf"), init=False)
    _turn: DeferredLock = field(factory=DeferredLock, init=False)

    async def current(self) -> Measurements:
        """The list to go by; raises FetchError or MeasurementsError where none was ever had."""
        if self._pinned is not None:
            return self._pinned
        async with self._turn:
            last = self._fetched
            if last is not None and self._now() - self._fetched_at < MEASUREMENTS_AGE:
                return last
            try:
                return await self._fetch()
            except (FetchError, MeasurementsError):
                if last is None:
                    raise
                return last

    async def renewed_since(self, moment: float) -> bool:
        """Whether the API's list was older than ``moment`` and has been fetched again.

        :raises FetchError, MeasurementsError: it could not be, so nothing can be said.
        """
        if self._pinned is not None:
            return False
        async with self._turn:
            if self._fetched_at >= moment:
                return False
            await self._fetch()
            return True

    async def _fetch(self) -> Measurements:
        begun = self._now()
        if begun - self._failed_at < MEASUREMENTS_RETRY:
            raise FetchError("network", "the measurements could not be fetched a moment ago")
        try:
            fetched = read_measurements(await self._source.measurements(), "api")
        except (FetchError, MeasurementsError):
            self._failed_at = begun
            raise
        self._fetched, self._fetched_at = fetched, begun
        return fetched
