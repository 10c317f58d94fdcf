"""One request carried out: its attempts until the commit boundary, and the hand-over to the pipe."""

from collections.abc import Callable, Mapping
from typing import Protocol

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from chutes_autopilot.errors import ApiError, internal_error
from chutes_autopilot.interfaces import IAttemptObserver, IDownstream, IUpstreamAttempt
from chutes_autopilot.observe import events
from chutes_autopilot.observe.record import CLIENT_GONE_STATUS, AttemptRecord, Outcome, RequestRecord
from chutes_autopilot.policy.failover import (
    AwaitBody,
    Command,
    Commit,
    ConnectFailed,
    DeadlinePassed,
    Ended,
    Event,
    Failover,
    FirstByte,
    Head,
    Lost,
    PassBack,
    Refuse,
    Timeouts,
    Try,
    begin,
    step,
)
from chutes_autopilot.policy.plan import Plan
from chutes_autopilot.relay.pipe import Pipe
from chutes_autopilot.relay.watch import Patience
from chutes_autopilot.upstream.deadlines import Deadline, Deadlines
from chutes_autopilot.wire.headers import ATTEMPTS, REQUEST_ID, SELECTED, Header, downstream_response_headers
from chutes_autopilot.wire.http1 import ResponseHead


@attrs.frozen
class Limits:
    """What bounds one request: its attempts, the deadlines of each, seconds until the commit boundary, and after it."""

    max_attempts: int
    timeouts: Timeouts
    request_deadline: float
    patience: Patience


class OpenAttempt(Protocol):
    """Makes the attempt, not yet started, that sends the request to ``model``."""

    def __call__(self, model: str, header_timeout: float, observer: IAttemptObserver) -> IUpstreamAttempt: ...


@implementer(IAttemptObserver)
class Exchange:
    """Feeds what happens to `policy.failover` and carries out its commands, for one request.

    :param succeeded: called when a 2xx is committed, with the model and the time each failed model failed.
    :param ended: called once, when nothing more will be written: with the error of our own to answer with, or
        None when the answer was relayed, cut or abandoned. The record is complete by then.
    """

    def __init__(
        self,
        plan: Plan,
        limits: Limits,
        record: RequestRecord,
        downstream: IDownstream,
        clock: IReactorTime,
        deadlines: Deadlines,
        open_attempt: OpenAttempt,
        succeeded: Callable[[str, Mapping[str, float]], None],
        ended: Callable[[ApiError | None], None],
    ) -> None:
        self._plan = plan
        self._limits = limits
        self._record = record
        self._downstream = downstream
        self._clock = clock
        self._deadlines = deadlines
        self._open_attempt = open_attempt
        self._succeeded = succeeded
        self._ended = ended
        self._state: Failover | None = None
        self._attempt: IUpstreamAttempt | None = None
        self._head: ResponseHead | None = None
        self._pipe: Pipe | None = None
        self._deadline: Deadline | None = None

    def start(self) -> None:
        """Begin the first attempt."""
        self._deadline = self._deadlines.start(self._limits.request_deadline, self._out_of_time)
        self._record.first_attempt = self._clock.seconds()
        self._state, command = begin(
            self._plan,
            stream=self._record.stream,
            timeouts=self._limits.timeouts,
            max_attempts=self._limits.max_attempts,
        )
        try:
            self._try(command)
        except Exception:  # noqa: BLE001 - reported
            self._failed_unexpectedly()

    def client_gone(self) -> None:
        """The client left: the attempt under way is aborted, no other follows. Harmless when all is over."""
        if self._record.outcome is None:
            self._drop_attempt()
            self._record.status = CLIENT_GONE_STATUS
            self._finish("client_gone", None)

    # what the attempt reports, before the commit boundary

    def head(self, head: ResponseHead) -> None:
        self._head = head
        self._record.attempts[-1].status = head.status
        self._happened(Head(head.status))

    def body(self, data: bytes) -> None:
        self._record.first_byte = self._clock.seconds()
        self._happened(FirstByte())
        if self._pipe is not None and self._record.outcome is None:
            self._pipe.body(data)

    def end(self) -> None:
        self._happened(Ended())

    def failed(self, failure: ConnectFailed | Lost | DeadlinePassed) -> None:
        self._happened(failure)

    # the state machine's commands

    def _happened(self, event: Event) -> None:
        assert self._state is not None  # noqa: S101 - no attempt reports before start()
        self._state, command, failure = step(self._state, event)
        if failure is not None:
            self._record.attempts[-1].failure = failure
            self._record.attempts[-1].failed = self._clock.seconds()
        try:
            self._carry_out(command)
        except Exception:  # noqa: BLE001 - reported
            self._failed_unexpectedly()

    def _carry_out(self, command: Command) -> None:
        match command:
            case Try():
                self._drop_attempt()
                self._try(command)
            case AwaitBody(timeout) if self._attempt is not None:
                self._attempt.expect_body(timeout)
            case Commit():
                self._commit()
            case PassBack():
                self._commit()
                self._downstream.write(b"")
            case Refuse(error):
                self._drop_attempt()
                self._refuse(error)

    def _try(self, command: Try) -> None:
        self._head = None
        self._record.attempts.append(AttemptRecord(command.model, self._clock.seconds()))
        self._attempt = self._open_attempt(command.model, command.header_timeout, self)
        self._attempt.start()

    def _commit(self) -> None:
        """Write the held head; from here on the pipe is the attempt's observer and failover is over."""
        head, attempt, record = self._head, self._attempt, self._record
        assert head is not None and attempt is not None  # noqa: S101, PT018 - a commit follows a head
        self._stop_deadline()
        model = record.attempts[-1].model
        record.status = head.status
        record.selected = model
        if record.first_byte is None:  # an answer that passes back before its body
            record.first_byte = self._clock.seconds()
        if 200 <= head.status < 300:
            self._succeeded(model, {a.model: a.failed for a in record.attempts if a.failed is not None})
        self._pipe = Pipe(
            attempt, self._downstream, head, self._clock, self._deadlines, self._limits.patience, self._relayed
        )
        attempt.observer = self._pipe
        headers = downstream_response_headers(head.headers, head.names, self._own_headers(model))
        self._downstream.start(head.status, head.reason, headers, self._pipe)

    def _own_headers(self, model: str) -> list[Header]:
        own = [(ATTEMPTS, b"%d" % len(self._record.attempts)), (REQUEST_ID, self._record.request_id.encode())]
        return own if self._plan.mode == "direct" else [(SELECTED, model.encode()), *own]

    def _relayed(self, outcome: Outcome, fault: str | None) -> None:
        self._record.error = fault
        if outcome == "client_gone":
            self._record.status = CLIENT_GONE_STATUS
        self._finish(outcome, None)

    def _out_of_time(self) -> None:
        self._deadline = None
        self._drop_attempt()
        self._refuse(
            ApiError(
                "deadline_exceeded", "No model began to answer within the time allowed for one request; try again."
            )
        )

    def _refuse(self, error: ApiError) -> None:
        error.headers += ((ATTEMPTS, b"%d" % len(self._record.attempts)),)
        self._record.status = error.status
        self._record.error = error.code
        self._finish("refused", error)

    def _failed_unexpectedly(self) -> None:
        """End the request, whatever it was that went wrong: an error where nothing was written yet, else a cut."""
        events.failed_unexpectedly(Failure(), "relaying a request")
        self._drop_attempt()
        if self._pipe is None and self._record.outcome is None:
            self._refuse(internal_error())
        else:
            self._record.error = "internal_error"
            self._downstream.abort()
            self._finish("cut", None)

    def _finish(self, outcome: Outcome, error: ApiError | None) -> None:
        if self._record.outcome is not None:
            return
        self._stop_deadline()
        self._record.outcome = outcome
        self._record.ended = self._clock.seconds()
        if self._pipe is not None:
            self._pipe.stop()
            self._record.bytes_out = self._pipe.bytes_relayed
        self._ended(error)

    def _drop_attempt(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.abort()

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
