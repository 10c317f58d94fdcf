"""The attempts to continue one stream: made, recorded and judged as those of failover are."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import attrs

from chutes_autopilot.interfaces import IAttemptObserver, IUpstreamAttempt
from chutes_autopilot.observe.record import AttemptRecord, RequestRecord
from chutes_autopilot.policy.continuation import Prefill, Restart
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.policy.plan import Plan
from chutes_autopilot.policy.rate_limits import RateLimit
from chutes_autopilot.policy.resilience import FAULTS, HEDGE_LOST
from chutes_autopilot.relay.call import ChatCall
from chutes_autopilot.upstream.chat import UpstreamRequest
from chutes_autopilot.wire.body import ChatBody, Piece
from chutes_autopilot.wire.http1 import ResponseHead
from chutes_autopilot.wire.prefill import ContinuableBody, read_continuable
from chutes_autopilot.wire.sse import is_plain_event_stream

if TYPE_CHECKING:
    from chutes_autopilot.relay.exchange import OpenUpstream


@attrs.define(eq=False)
class Continuations:
    """What a pipe needs to continue its stream.

    :param call: as the client made it; held, like its body, for as long as the stream may be continued.
    :param body: as the client sent it.
    :param continuable: the same, read.
    :param header_timeout: seconds the head of each attempt may take.
    :param went_on: called with the model that goes on, and with when each model of this stream failed.
    :param counted: called once with what became of it: prefill, restart, failed, or impossible.
    :param rate_limited: counts a 429, and remembers a ban.
    :param left_out: candidates that were found unable to serve the request.
    :param stopping: whether the gateway cuts all streams, so that none goes on.
    """

    call: ChatCall
    body: ChatBody
    continuable: ContinuableBody
    plan: Plan
    record: RequestRecord
    max_attempts: int
    header_timeout: float
    health: FleetHealth
    now: Callable[[], float]
    open_upstream: "OpenUpstream"
    went_on: Callable[[str, Mapping[str, float]], None]
    counted: Callable[[str], None]
    stopping: Callable[[], bool]
    rate_limited: Callable[[RateLimit, AttemptRecord], None]
    left_out: tuple[str, ...] = ()
    _begun: float | None = attrs.field(default=None, init=False)
    _first_event: float | None = attrs.field(default=None, init=False)
    """When the attempt under way began to answer."""

    @property
    def attempts_left(self) -> int:
        """How many further attempts the request may make."""
        if self.stopping():
            return 0
        return self.max_attempts - len(self.record.attempts) - len(self.record.continuations)

    def candidates(self) -> tuple[str, ...]:
        """What has not answered or failed, models that cool down last."""
        out = {attempt.model for attempt in self.record.attempts if attempt.failure != HEDGE_LOST} | {*self.left_out}
        left, now = (model for model in self.plan.candidates if model not in out), self.now()
        return tuple(sorted(left, key=lambda model: self.health.is_cooling(self.plan.base(model), now)))

    def broke(self, fault: str) -> None:
        """The stream that was committed to is the one to be continued."""
        committed = self.record.attempts[-1]
        committed.detail, committed.failed = fault, self.now()

    def open(self, command: Prefill | Restart, text: str, observer: IAttemptObserver) -> IUpstreamAttempt:
        """An attempt, not yet started."""
        model, call = command.model, self.call
        self._begun, self._first_event = self.now(), None
        probe = self.health.started(self.plan.base(model), self._begun)
        if isinstance(command, Prefill):
            data: tuple[Piece, ...] = (self.continuable.prefilled(model, text),)
        else:
            data = self.body.with_model(model)
        how = "prefill" if isinstance(command, Prefill) else "restart"
        self.record.continuations = (*self.record.continuations, AttemptRecord(model, detail=how, probe=probe))
        request = UpstreamRequest(call.method, call.target, call.fields, data)
        return self.open_upstream(model, request, self.header_timeout, observer)

    def drop(self) -> None:
        """Hold the request no longer: nothing will be asked with it."""
        self.call.drop()
        self.body.drop()
        self.continuable = ContinuableBody({}, ())

    def answered(self, status: int) -> None:
        """The head of an attempt's answer came."""
        self.record.continuations[-1].status = status

    def limited(self, limit: RateLimit) -> None:
        """The answer is a 429."""
        self.rate_limited(limit, self.record.continuations[-1])

    def heard(self) -> None:
        """The attempt under way says something, if only what is to be repeated."""
        if self._first_event is None:
            self._first_event = self.now()

    def failed(self, reason: str) -> None:
        """The attempt under way failed, or its answer could not be used, or broke off as well."""
        attempt, now = self.record.continuations[-1], self.now()
        attempt.failure, attempt.failed = reason, now
        begun, self._begun = self._begun, None
        if begun is not None and reason in FAULTS:
            self.health.failed(self.plan.base(attempt.model), now, probe=attempt.probe)
        elif begun is not None:
            self.health.abandoned(self.plan.base(attempt.model), probe=attempt.probe)

    def goes_on(self) -> None:
        """What the attempt under way says goes to the client from now on."""
        attempt, now = self.record.continuations[-1], self.now()
        begun, self._begun = self._begun, None
        self.record.continued_by = attempt.model
        self.drop()
        heard = now if self._first_event is None else self._first_event
        self.health.succeeded(self.plan.base(attempt.model), None if begun is None else heard - begun, now)
        failed = (*self.record.attempts, *self.record.continuations[:-1])
        self.went_on(attempt.model, {a.model: a.failed for a in failed if a.failed is not None})
        self.counted(attempt.detail or "")

    def stop(self) -> None:
        """The request is over."""
        if self._begun is not None:
            self._begun = None
            attempt = self.record.continuations[-1]
            self.health.abandoned(self.plan.base(attempt.model), probe=attempt.probe)


def may_be_continued(call: ChatCall, body: ChatBody, plan: Plan, head: ResponseHead) -> ContinuableBody | None:
    """The request, read, where its answer may be continued by another model.

    An answer with a length cannot be added to, and a model asked for by its name alone has no other beside it.
    """
    if not call.continuable or not body.stream or plan.mode == "direct" or b"content-length" in head.index:
        return None
    return read_continuable(body.data) if is_plain_event_stream(head.status, head.index) else None
