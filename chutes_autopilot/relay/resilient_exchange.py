"""One request under the rules of policy.resilience: waits, tries of the same model, and a second attempt beside a slow
one."""

from collections.abc import Callable
from math import inf
from typing import Any, Literal

import attrs
from twisted.internet.interfaces import IDelayedCall

from chutes_autopilot.errors import ApiError
from chutes_autopilot.interfaces import IAttemptObserver, IUpstreamAttempt
from chutes_autopilot.observe.record import AttemptRecord, Outcome
from chutes_autopilot.policy.capability import skipped_header
from chutes_autopilot.policy.failover import (
    Answer,
    AwaitBody,
    Command,
    Commit,
    ConnectFailed,
    DeadlinePassed,
    Ended,
    Event,
    FirstByte,
    Head,
    Lost,
    PassBack,
    Refused,
    Try,
)
from chutes_autopilot.policy.hedging import HedgeBudget
from chutes_autopilot.policy.resilience import (
    FAULTS,
    HEDGE_LOST,
    SERVER_ERRORS,
    DropOut,
    ErrorAnswer,
    Resilient,
    Wait,
    first_event,
    hedge,
    race,
    reason_of,
    step,
)
from chutes_autopilot.relay.exchange import Exchange
from chutes_autopilot.relay.judge import Judge, Judged
from chutes_autopilot.relay.limited import rate_limit_of
from chutes_autopilot.wire.http1 import ResponseHead
from chutes_autopilot.wire.sse import is_plain_event_stream


@attrs.define(eq=False)
class _Side:
    """One of two attempts under way, while the exchange's own is the other one."""

    attempt: IUpstreamAttempt
    judge: Judge
    record: AttemptRecord
    begun: float | None


class ResilientExchange(Exchange, kw_only=True):
    """An exchange whose answers are judged before they are committed to.

    Each attempt reports to a Judge. While two are under way, the exchange's own is the later one, and ``_earlier`` the
    other; as soon as one of them answers or is over, there is one again, whose record is the last.

    :param resilient: where its failover stands.
    :param random: gives numbers from 0 to below 1.
    :param hedges: what bounds second attempts; None: there are none.
    """

    resilient: Resilient
    random: Callable[[], float]
    hedges: HedgeBudget | None = None
    _judge: Judge | None = None
    _earlier: _Side | None = None
    _wait: IDelayedCall | None = None
    _waiting_since: float = 0.0
    _hedging: IDelayedCall | None = None

    # what the judges report

    def judge_head(self, judge: Judge, head: ResponseHead) -> None:
        if not self._raced(judge, head, Head(head.status)):
            self.head(head)

    def judge_body(self, judge: Judge, data: bytes, framed: bytes) -> None:
        if not self._raced(judge, judge.answered, FirstByte(), data):
            self.body(data, framed)

    def judge_end(self, judge: Judge) -> None:
        if not self._raced(judge, judge.answered, Ended()):
            self.end()

    def judge_answer(self, judge: Judge, head: ResponseHead, data: bytes) -> None:
        if not self._raced(judge, head, Answer(head.status), data, over=True):
            self.answer(head, data)

    def judge_failed(self, judge: Judge, failure: ConnectFailed | Lost | DeadlinePassed | Refused) -> None:
        if self._cut_short():
            return
        if not self._raced(judge, judge.answered, failure):
            self.failed(failure)

    def judged(self, judge: Judge, head: ResponseHead, event: Judged, held: bytes, *, over: bool) -> None:
        if self._raced(judge, head, event, held, over=over):
            return
        self._head = head
        self._record.attempts[-1].status = head.status
        skipped = len(self.resilient.skipped)
        command, failure = self._step(event)
        try:
            if isinstance(command, Try | Wait):  # else it is counted with the answer
                self._count(event, self._record.attempts[-1])
            if failure is not None:
                self._ended_by(failure, command)
            self._name_skipped(self.resilient.skipped[skipped:])
            if isinstance(command, Commit | PassBack):
                self._take(held, over=over)
            else:
                self._carry_out(command)
        except Exception:  # noqa: BLE001 - reported
            self._failed_unexpectedly()

    # the state machine's commands

    def _answered(self, status: int, data: bytes) -> None:
        self._happened(Answer(status), data)

    def _happened(self, event: Event, data: bytes = b"") -> None:
        command, failure = self._step(event)
        try:
            if failure is not None:
                self._ended_by(failure, command)
            if data and isinstance(command, Commit | PassBack):
                self._relay_whole(data)
            else:
                self._carry_out(command)
        except Exception:  # noqa: BLE001 - reported
            self._failed_unexpectedly()

    def _step(self, event: Event | Judged) -> tuple[Command | Wait, str | None]:
        state, command, failure = step(self.resilient, event, self._seconds_left())
        self._become(state)
        return command, failure

    def _seconds_left(self) -> float:
        return inf if self._deadline is None else self._deadline.expires - self._relay.clock.seconds()

    def _become(self, state: Resilient) -> None:
        # the exchange's own state stays what it says: whoever goes on after the commit finds there who is left
        self.resilient, self._state = state, state.failover

    def _ended_by(self, failure: str, command: Command | Wait) -> None:
        # the tries of one model count as one: only the last of them says anything of its health
        final = failure in FAULTS and not isinstance(command, Wait)
        self._attempt_failed(failure, "failed" if final else "abandoned")

    def _count(self, event: Event | Judged, record: AttemptRecord) -> None:
        """A 429 that is not relayed counts as one all the same."""
        if isinstance(event, ErrorAnswer) and event.limit is not None:
            self._relay.rate_limited(self, event.limit, record)

    def _name_skipped(self, models: tuple[str, ...]) -> None:
        """Say which candidates were left out; the items of a list in a header too."""
        self._record.too_long_for += models
        if models and self.route.plan.mode == "list":
            named = (self.route.skipped, skipped_header(dict.fromkeys(models, "context")))
            self.route = attrs.evolve(self.route, skipped=b", ".join(filter(None, named)))

    def _carry_out(self, command: Command | Wait) -> None:
        match command:
            case Wait(shortest, longest, then):
                self._drop_attempt()
                clock = self._relay.clock
                self._waiting_since = clock.seconds()
                seconds = shortest + (longest - shortest) * self.random()
                self._wait = clock.callLater(seconds, self._waited, then)
                self._relay.waiting.add(self._cut_short)  # no attempt is under way that a stop could end
            case AwaitBody(timeout) if self._judge is not None and self._judge.expect(timeout):
                pass
            case _:
                super()._carry_out(command)

    def _waited(self, then: Try) -> None:
        self._wait = None
        self._relay.waiting.discard(self._cut_short)
        self._record.attempts[-1].waited = self._relay.clock.seconds() - self._waiting_since
        try:
            self._try(then)
        except Exception:  # noqa: BLE001 - reported
            self._failed_unexpectedly()

    def _take(self, held: bytes, *, over: bool) -> None:
        """Commit to an answer of which so much has come."""
        head = self._head
        assert head is not None  # noqa: S101 - it was judged
        if over and held and not is_plain_event_stream(head.status, head.index):
            self._relay_whole(held)
            return
        self._relay_body(held)
        pipe = self._pipe
        if held and pipe is not None:
            pipe.body(held)
        elif pipe is not None:
            self._downstream.write(b"")
        if over and self._record.outcome is None and pipe is not None and not pipe.moved_on:
            pipe.end()

    def _commit(self, head: ResponseHead, limit: Any) -> bytes:
        self._call_off_hedging()
        if self._judge is not None:
            self._judge.leave()
            self._judge = None
        return super()._commit(head, limit)

    def _gave_up(self, status: int) -> bool:
        if status in SERVER_ERRORS:
            return self.resilient.rules.server_errors and self.route.plan.mode != "direct"
        return super()._gave_up(status)

    def _failures(self, model: str) -> dict[str, float]:
        if model == self.route.plan.candidates[0]:
            return {}  # it was tried again, or was quicker after all
        failures = super()._failures(model)
        failures.pop(model, None)
        last = max(failures.values(), default=0.0)
        return {**dict.fromkeys(self.resilient.skipped, last), **failures} if failures else failures

    def _left_out(self) -> tuple[str, ...]:
        return self.resilient.skipped

    def _open(self, command: Try, observer: IAttemptObserver, now: float) -> IUpstreamAttempt:
        self._call_off_hedging()
        rules = self.resilient.rules
        chunks = self._relay.endpoint.chunks
        self._judge = judge = Judge(self, rules, self._relay.deadlines, chunks=chunks)
        attempt = super()._open(command, judge, now)
        self._record.attempts[-1].started = now
        if rules.hedge and self._earlier is None and len(self._record.attempts) == 1:
            self._may_hedge(command.model)
        return attempt

    def _drop_attempt(self) -> None:
        super()._drop_attempt()
        self._call_off_hedging()
        if self._judge is not None:
            self._judge.leave()
            self._judge = None

    def _finish(self, outcome: Outcome, error: ApiError | None) -> None:
        if self._record.outcome is None:
            if self._wait is not None:
                self._wait.cancel()
                self._wait = None
                self._relay.waiting.discard(self._cut_short)
                self._record.attempts[-1].waited = self._relay.clock.seconds() - self._waiting_since
            self._call_off_hedging()
            self._leave_earlier("abandoned")
            if self._judge is not None:
                self._judge.leave()
                self._judge = None
        super()._finish(outcome, error)

    def _out_of_time(self) -> None:
        self._leave_earlier("failed")
        super()._out_of_time()

    # a second attempt beside a slow one

    def _may_hedge(self, model: str) -> None:
        """Look again when the first event is later than nearly all of the model's were."""
        relay, hedges = self._relay, self.hedges
        if hedges is None or not self._record.stream:
            return
        hedges.earn()
        slow = relay.health.slow_first_token(self.route.plan.base(model), relay.clock.seconds())
        if slow is not None:
            self._hedging = relay.clock.callLater(slow, self._hedge)

    def _hedge(self) -> None:
        self._hedging = None
        attempt, judge, hedges = self._attempt, self._judge, self.hedges
        assert attempt is not None and judge is not None and hedges is not None  # noqa: S101, PT018 - else called off
        started = hedge(self.resilient)
        if started is None or not hedges.spend():
            return
        state, command = started
        self._become(state)
        self._earlier = _Side(attempt, judge, self._record.attempts[-1], self._begun)
        try:
            self._try(command)
        except Exception:  # noqa: BLE001 - reported
            self._failed_unexpectedly()

    def _call_off_hedging(self) -> None:
        if self._hedging is not None:
            self._hedging.cancel()
            self._hedging = None

    def _raced(
        self,
        judge: Judge,
        head: ResponseHead | None,
        event: Event | Judged,
        data: bytes = b"",
        *,
        over: bool = False,
    ) -> bool:
        """Deal with what one of two attempts reports; False where there is only one."""
        earlier = self._earlier
        if earlier is None:
            return False
        own = judge is earlier.judge
        attempt, record = (earlier.attempt, earlier.record) if own else (self._attempt, self._record.attempts[-1])
        if head is not None:
            record.status = head.status
        try:
            state, command = race(self.resilient, "earlier" if own else "later", event)
            self._become(state)
            if isinstance(command, AwaitBody):
                if not judge.expect(command.timeout) and attempt is not None:
                    attempt.expect_body(command.timeout)
                return True
            if isinstance(command, DropOut):
                limit = rate_limit_of(head, data) if isinstance(event, Head | Answer) and head is not None else None
                if limit is not None:
                    self._relay.rate_limited(self, limit, record)
                self._count(event, record)
                self._one_left("later" if own else "earlier", reason_of(event))
                if not self.resilient.failover.hurried:  # it is the last one now
                    self._give_time(first_event(self.resilient).timeout)
            else:
                self._one_left("earlier" if own else "later", HEDGE_LOST)
                self._head = head
                self._take(data, over=over)
        except Exception:  # noqa: BLE001 - reported
            self._failed_unexpectedly()
        return True

    def _give_time(self, seconds: float) -> None:
        """The attempt under way has so long from now, for its head or else for its first event."""
        judge, attempt = self._judge, self._attempt
        if judge is not None and attempt is not None and not judge.expect(seconds):
            attempt.expect_body(seconds)

    def _one_left(self, which: str, reason: str | None) -> None:
        """Of two attempts leave one, and go on with the other as the only one."""
        earlier, self._earlier = self._earlier, None
        later, judge = self._attempt, self._judge
        assert earlier is not None and later is not None and judge is not None  # noqa: S101, PT018 - there are two
        if which == "later":
            self._head = judge.answered
            self._leave(earlier, reason)
            return
        self._head = earlier.judge.answered
        attempts = self._record.attempts
        # begun: None, for so short a time says nothing of how fast it is
        self._leave(_Side(later, judge, attempts[-1], None), reason)
        self._attempt, self._judge, self._begun = earlier.attempt, earlier.judge, earlier.begun
        attempts.remove(earlier.record)
        attempts.append(earlier.record)  # the one that goes on is the last

    def _leave(self, side: _Side, reason: str | None) -> None:
        """End one of two attempts."""
        side.judge.leave()
        side.attempt.abort()
        record, now, health = side.record, self._relay.clock.seconds(), self._relay.health
        record.failure, record.failed = reason, now
        model = self.route.plan.base(record.model)
        if reason in FAULTS:
            health.failed(model, now, probe=record.probe)
        elif reason == HEDGE_LOST and side.begun is not None:
            health.outrun(model, now - side.begun, now, probe=record.probe)
        else:
            health.abandoned(model, probe=record.probe)

    def _leave_earlier(self, end: Literal["failed", "abandoned"]) -> None:
        """The request is over while two attempts are under way: the earlier one ends as the other does."""
        side, self._earlier = self._earlier, None
        if side is None:
            return
        side.judge.leave()
        side.attempt.abort()
        health, model = self._relay.health, self.route.plan.base(side.record.model)
        if end == "failed":
            health.failed(model, self._relay.clock.seconds(), probe=side.record.probe)
        else:
            health.abandoned(model, probe=side.record.probe)
