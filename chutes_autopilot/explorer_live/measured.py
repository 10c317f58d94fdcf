"""What this service itself sees of the models: requests, failures, their pace, who cools down, failovers.

It is told of every request that ends, so all it does then is a few additions; whoever wants to know more works for it.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Protocol

from attrs import define, evolve, field, frozen

from chutes_autopilot.explorer_live.counting import MAX_MODELS, OTHERS, SAMPLES, Plain, time_to_first_token
from chutes_autopilot.observe.record import AttemptRecord, RequestRecord
from chutes_autopilot.policy.resilience import HEDGE_LOST

MAX_FAILOVERS = 200
"""Failovers kept."""


class Health(Protocol):
    """By which requests are routed: policy.health.FleetHealth, or what workers told of theirs."""

    def figures(self, model: str, now: float) -> Mapping[str, Any] | None:
        """As ModelHealth.as_json gives it, durations in milliseconds; None where nothing was measured."""

    def cooling(self, now: float) -> frozenset[str]:
        """All models that are left alone now."""


@frozen
class Measured:
    """What was seen of one model since the start.

    :param requests: attempts that were sent to it, also to go on with another one's stream.
    :param failures: those that failed before the first byte; what was slower than another asked beside it did not.
    :param ttft: median of the last streams' times to the first token, in seconds; None before the first.
    :param ttft_p95: their 95th percentile; None while there are few.
    :param between_events: mean seconds from one event of a stream to the next.
    :param cooling_until: Unix time before which it is left alone after failures; None where it is not.
    :param probing: one request is finding out whether it works again.
    """

    requests: int = 0
    failures: int = 0
    ttft: float | None = None
    ttft_p95: float | None = None
    between_events: float | None = None
    tokens_per_second: float | None = None
    cooling_until: float | None = None
    probing: bool = False


@frozen
class Failover:
    """One attempt that failed before its first byte, and what took its place; it says nothing of who asked.

    :param at: Unix time.
    :param why: one of policy.failover's reasons.
    :param next_model: None where there was no other.
    """

    at: float
    model: str
    why: str
    next_model: str | None


AT_ONCE = 64
"""Requests that are counted together, at the latest when somebody asks."""


@define(eq=False)
class _Counts:
    requests: int = 0
    failures: int = 0
    ttfts: deque[float] = field(factory=lambda: deque(maxlen=SAMPLES))


class Measurements:
    """Counts finished requests by model.

    :param listed: the name in the catalog that a sent one stands for, or None: what clients make up is not shown.
    :param failed_over: told of each failover: model, reason, next model.
    :param healths: by which requests are routed; of several that know a model, the first one counts.
    :param now: Unix time, seconds.
    :ivar version: changes with anything that is counted.
    :ivar failovers_seen: failovers so far, those of `failovers` and older ones.
    """

    def __init__(
        self,
        listed: Callable[[str], str | None],
        failed_over: Callable[[str, str, str | None], object],
        healths: Sequence[Health] = (),
        now: Callable[[], float] = float,
    ) -> None:
        self.version = 0
        self.failovers_seen = 0
        self._listed = listed
        self._failed_over = failed_over
        self._healths = healths
        self._now = now
        self._models: dict[str, _Counts] = {}
        self._uncounted: list[RequestRecord] = []  # of which there is nothing more to tell
        self._failovers: deque[Failover] = deque(maxlen=MAX_FAILOVERS)

    def finished(self, record: RequestRecord) -> None:
        """Count a request that is over; called for every one."""
        attempts = record.attempts
        if not attempts:
            return
        self.version += 1
        if len(attempts) == 1 and attempts[0].failure is None and not record.continuations:
            self._uncounted.append(record)
            if len(self._uncounted) >= AT_ONCE:
                self._count()
            return
        self._count()
        tried = [*attempts, *record.continuations] if record.continuations else attempts
        for place, attempt in enumerate(tried):
            model = self._name(attempt.model)
            counts = self._counts(model)
            counts.requests += 1
            if attempt.failure is None or attempt.failure == HEDGE_LOST:
                continue
            counts.failures += 1
            after = tried[place + 1] if place + 1 < len(tried) else None
            if after is None or not _goes_on(attempt, after):
                next_model = None if after is None else self._name(after.model)
                self._moved_on(attempt.failed or record.received, model, attempt.failure, next_model)
        self._time(record)

    def _count(self) -> None:
        uncounted, self._uncounted = self._uncounted, []
        for record in uncounted:
            self._counts(self._name(record.attempts[0].model)).requests += 1
            if record.stream:
                self._time(record)

    def _time(self, record: RequestRecord) -> None:
        ttft = time_to_first_token(record)
        if ttft is not None:
            self._counts(self._name(record.attempts[-1].model)).ttfts.append(ttft)

    def add(self, plain: Plain) -> None:
        """Count what a Counting has come to."""
        self._count()
        for model, (requests, ttfts) in plain.items():
            counts = self._counts(self._name(model))
            counts.requests += requests
            counts.ttfts.extend(ttfts)
            self.version += requests

    def measured(self) -> dict[str, Measured]:
        """What was seen of each model, by its name."""
        self._count()
        now = self._now()
        return {model: self._measured(model, counts, now) for model, counts in self._models.items()}

    def stamp(self) -> object:
        """Equal as long as nothing of `measured` has changed, but for what grows too old."""
        now = self._now()
        return self.version, tuple(health.cooling(now) for health in self._healths)

    def _measured(self, model: str, counts: _Counts, now: float) -> Measured:
        seen = Measured(counts.requests, counts.failures, median(counts.ttfts) if counts.ttfts else None)
        known = next(filter(None, (health.figures(model, now) for health in self._healths)), None)
        if known is None:
            return seen
        left = _seconds(known["cooling_ms"])
        return evolve(
            seen,
            ttft_p95=_seconds(known["first_token_p95_ms"]),
            between_events=_seconds(known["between_events_ms"]),
            tokens_per_second=known["tokens_per_second"],
            cooling_until=now + left if left else None,
            probing=known["probing"],
        )

    def failovers(self) -> tuple[Failover, ...]:
        """The last failovers, the newest first."""
        return tuple(self._failovers)

    def _counts(self, model: str) -> _Counts:
        counts = self._models.get(model)
        if counts is None:
            counts = self._models[model] = _Counts()
        return counts

    def _name(self, model: str) -> str:
        if model in self._models:
            return model
        name = self._listed(model) or OTHERS
        return name if name in self._models or len(self._models) < MAX_MODELS else OTHERS

    def _moved_on(self, at: float, model: str, why: str, next_model: str | None) -> None:
        self._failovers.appendleft(Failover(at, model, why, next_model))
        self.failovers_seen += 1
        self._failed_over(model, why, next_model)


def _goes_on(attempt: AttemptRecord, after: AttemptRecord) -> bool:
    """Whether it was no failover: the same model was tried again, or one that was asked before goes on alone."""
    began_before = after.started is not None and attempt.started is not None and after.started < attempt.started
    return after.model == attempt.model or began_before


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
