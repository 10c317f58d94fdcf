"""One request carried out: its attempts until the commit boundary, and the hand-over to the pipe."""

from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from types import MappingProxyType
from typing import Literal, Protocol

import attrs
import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from chutes_autopilot.errors import ApiError, draining, internal_error
from chutes_autopilot.interfaces import IAttemptObserver, IDownstream, IUpstreamAttempt
from chutes_autopilot.observe import events
from chutes_autopilot.observe.record import CLIENT_GONE_STATUS, AttemptRecord, Outcome, RequestRecord
from chutes_autopilot.policy.client_address import TrustedProxies
from chutes_autopilot.policy.failover import (
    FAILURE_REASONS,
    Answer,
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
    Refused,
    Timeouts,
    Try,
    step,
)
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.policy.plan import Plan
from chutes_autopilot.policy.rate_limits import RateLimit
from chutes_autopilot.policy.reasons import Reasons
from chutes_autopilot.policy.resilience import Resilience, Resilient
from chutes_autopilot.policy.retry_shield import SHOULD_RETRY, BanFuse, no_retry_headers, without_wait
from chutes_autopilot.policy.stickiness import StickyChoice
from chutes_autopilot.relay.call import ChatCall, Client
from chutes_autopilot.relay.continuations import Continuations, may_be_continued
from chutes_autopilot.relay.continuing_pipe import ContinuingPipe
from chutes_autopilot.relay.endpoint import Endpoint
from chutes_autopilot.relay.limited import RATE_LIMITED, rate_limit_of
from chutes_autopilot.relay.pipe import Pipe
from chutes_autopilot.relay.watch import Patience
from chutes_autopilot.unshown import Unshown
from chutes_autopilot.upstream.chat import UpstreamRequest
from chutes_autopilot.upstream.deadlines import Deadline, Deadlines
from chutes_autopilot.wire.body import ChatBody
from chutes_autopilot.wire.headers import ATTEMPTS, EXPLAIN, REQUEST_ID, SELECTED, SKIPPED
from chutes_autopilot.wire.http1 import ResponseHead
from chutes_autopilot.wire.sse import is_plain_event_stream

OpenUpstream = Callable[[str, UpstreamRequest, float, IAttemptObserver], IUpstreamAttempt]
"""Makes an attempt, not yet started: the model, the request, seconds its head may take, who hears of it."""


GRACE_OVER = "shutdown_grace_over"
"""Why an answer was cut, in the record; a client of a stream is told what it is told of every stream that is cut."""

NONE_CLOSED: Mapping[str, str] = MappingProxyType({})

NO_CONTENT, INTERNAL, UNAVAILABLE = 204, 500, 503


@attrs.frozen
class Limits:
    """What bounds one request: its attempts, the deadlines of each, seconds until the commit boundary, and after it.

    :param resilience: further rules of failover; None: there are none.
    :param continue_streams: whether another model goes on with a stream that breaks off.
    """

    max_attempts: int
    timeouts: Timeouts
    request_deadline: float
    patience: Patience
    resilience: Resilience | None = None
    continue_streams: bool = False


@attrs.frozen
class Route:
    """What is tried for a ``model`` value, and failover's first step with it.

    :param skipped: the value of x-chutes-autopilot-skipped, empty where nothing is to be named.
    :param cooling: base names of the candidates that cooled down when it was made.
    :param lasting: whether it holds for later requests of the kind.
    :param why: gives the reasons for it.
    :param resilient: the same first step under further rules, where there are some (policy.resilience).
    :param closed: base names of models left out because they could not be asked, by obstacle.
    """

    plan: Plan
    state: Failover
    first: Try
    skipped: bytes = b""
    cooling: frozenset[str] = frozenset()
    lasting: bool = True
    why: Callable[[], Reasons] | None = None
    resilient: Resilient | None = None
    closed: Mapping[str, str] = NONE_CLOSED
    lines: dict[str, bytes] = attrs.field(factory=dict, init=False, eq=False, repr=False)
    """By model that answered a first attempt: the header lines of our own, as far as all such answers have them."""


class _Rules(Protocol):
    @property
    def limits(self) -> Limits: ...
    @property
    def client_key_secret(self) -> bytes: ...
    @property
    def trusted_proxies(self) -> TrustedProxies | None: ...


class Surroundings(Protocol):
    """What an exchange finds where it takes place: relay.chat.ChatRelay."""

    @property
    def rules(self) -> _Rules: ...
    @property
    def clock(self) -> IReactorTime: ...
    @property
    def deadlines(self) -> Deadlines: ...
    @property
    def health(self) -> FleetHealth: ...
    @property
    def fuse(self) -> BanFuse: ...
    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def stopping(self) -> bool: ...
    @property
    def waiting(self) -> set[Callable[[], object]]: ...

    def succeeded(self, exchange: "Exchange", model: str, failures: Mapping[str, float]) -> None:
        """A 2xx is committed."""

    def payer(self, client: Client) -> bytes:
        """Whose credential the upstream sees."""

    def rate_limited(self, exchange: "Exchange", limit: RateLimit, attempt: AttemptRecord) -> None:
        """A 429 was the end of an attempt."""

    def shield(self, exchange: "Exchange", head: ResponseHead, limit: RateLimit | None) -> bytes:
        """Header lines for an answer that is not to be asked for again at once."""

    def summary(self, exchange: "Exchange") -> bytes:
        """What was decided so far, for a header."""

    def wait(self, exchange: "Exchange") -> float:
        """Seconds after which another try makes sense, all candidates having failed."""

    def continued(self, outcome: str) -> None:
        """A stream broke off, and went on or could not."""

    def finished(self, record: RequestRecord) -> None:
        """The request is over, its record complete."""


NONE_FAILED: Mapping[str, float] = MappingProxyType({})

_OWN = ATTEMPTS + b": %d\r\n" + REQUEST_ID + b": "
_SELECTED = SELECTED + b": %b\r\n"


@implementer(IAttemptObserver)
class Exchange(Unshown, eq=False):
    """Feeds what happens to `policy.failover` and carries out its commands, for one request.

    :param key: under which the client's choice is remembered; None: it is not.
    :param previous: what was remembered.
    :param open_upstream: makes the attempts; may be replaced before the first one.
    :param ended: called once, when nothing more will be written and the request is counted: with the error of
        our own to answer with, or None when the answer was relayed, cut or abandoned.
    :param state: of failover, before its first step.
    """

    _relay: Surroundings
    _call: ChatCall
    _body: ChatBody
    route: Route
    key: bytes | None
    previous: StickyChoice | None
    _record: RequestRecord
    _downstream: IDownstream
    open_upstream: OpenUpstream
    _ended: Callable[[RequestRecord, ApiError | None], None]
    _state: Failover
    _attempt: IUpstreamAttempt | None = None
    _head: ResponseHead | None = None
    _pipe: Pipe | None = None
    _begun: float | None = None
    """When the attempt began whose model is still to be judged."""
    _deadline: Deadline | None = None
    _committed: bool = False

    @property
    def record(self) -> RequestRecord:
        """What happened so far."""
        return self._record

    @property
    def client(self) -> bytes:
        """Who the client is, whatever its session: the key of its credential."""
        rules = self._relay.rules
        return self._call.client.credential_key(rules.client_key_secret, rules.trusted_proxies)

    @property
    def payer(self) -> bytes:
        """Whose credential the upstream sees."""
        return self._relay.payer(self._call.client)

    @property
    def model(self) -> str:
        """The ``model`` value of the client."""
        return str(self._body.model)

    def start(self) -> None:
        """Begin the first attempt."""
        relay = self._relay
        self._record.first_attempt = now = relay.clock.seconds()
        self._deadline = relay.deadlines.start(relay.rules.limits.request_deadline, self._out_of_time, now)
        try:
            self._begun = now
            self._attempt = attempt = self._open(self.route.first, self, now)
            attempt.start()
        except Exception:  # noqa: BLE001 - reported
            self._failed_unexpectedly()

    def refuse(self, error: ApiError) -> None:
        """Answer with an error, in the place of a first attempt."""
        self._refuse(error)

    def client_gone(self) -> None:
        """The client left: the attempt under way is aborted, no other follows. Harmless when all is over."""
        if self._record.outcome is None:
            self._judged("abandoned")
            self._drop_attempt()
            self._record.status = CLIENT_GONE_STATUS
            self._finish("client_gone", None)

    # what the attempt reports, before the commit boundary

    def head(self, head: ResponseHead) -> None:
        self._head = head
        self._record.attempts[-1].status = head.status
        self._happened(Head(head.status))

    def body(self, data: bytes, framed: bytes = b"") -> None:
        self._record.first_byte = self._relay.clock.seconds()
        self._happened(FirstByte())
        if self._pipe is not None and self._record.outcome is None:
            self._pipe.body(data, framed)

    def end(self) -> None:
        self._happened(Ended())

    def failed(self, failure: ConnectFailed | Lost | DeadlinePassed | Refused) -> None:
        if not self._cut_short():
            self._happened(failure)

    def answer(self, head: ResponseHead, data: bytes) -> None:
        status = head.status
        self._head = head
        self._record.attempts[-1].status = status
        if not is_plain_event_stream(status, head.index):
            self._answered(status, data)
            return
        self._happened(Answer(status))
        if self._pipe is not None:  # the end of a stream has to be judged, which the pipe does
            self._pipe.body(data)
            if self._record.outcome is None and not self._pipe.moved_on:
                self._pipe.end()

    # the state machine's commands

    def _answered(self, status: int, data: bytes) -> None:
        """A whole answer that is no stream of events."""
        if not 200 <= status < 300 or status == NO_CONTENT:
            self._happened(Answer(status), data)
            return
        try:
            self._relay_whole(data)  # what `step` would say
        except Exception:  # noqa: BLE001 - reported
            self._failed_unexpectedly()

    def _happened(self, event: Event, data: bytes = b"") -> None:
        self._state, command, failure = step(self._state, event)
        if failure is not None:
            self._attempt_failed(failure, "failed" if failure in FAILURE_REASONS else "abandoned")
        try:
            if data and isinstance(command, Commit | PassBack):
                self._relay_whole(data)
            else:
                self._carry_out(command)
        except Exception:  # noqa: BLE001 - reported
            self._failed_unexpectedly()

    def _cut_short(self) -> bool:
        """Whether the gateway stops; then a request without an answer is over, and nobody else is tried."""
        if self._relay.stopping:
            self._judged("abandoned")
            self._drop_attempt()
            self._refuse(draining("This gateway stops, and has waited for an answer as long as it may; try again."))
        return self._relay.stopping

    def _attempt_failed(self, failure: str, end: Literal["failed", "abandoned"]) -> None:
        self._judged(end)
        self._record.attempts[-1].failure = failure
        self._record.attempts[-1].failed = self._relay.clock.seconds()

    def _carry_out(self, command: Command) -> None:
        match command:
            case Try():
                self._drop_attempt()
                self._try(command)
            case AwaitBody(timeout) if self._attempt is not None:
                self._attempt.expect_body(timeout)
            case Commit():
                self._relay_body()
            case PassBack():
                self._relay_body()
                self._downstream.write(b"")
            case Refuse(error):
                self._drop_attempt()
                self._refuse(error)

    def _try(self, command: Try) -> None:
        self._head = None
        self._begun = now = self._relay.clock.seconds()
        self._attempt = attempt = self._open(command, self, now)
        attempt.start()

    def _open(self, command: Try, observer: IAttemptObserver, now: float) -> IUpstreamAttempt:
        """An attempt, not yet started, and its record."""
        model, plan = command.model, self.route.plan
        attempt, health = AttemptRecord(model), self._relay.health
        if health.cooling_down:
            attempt.probe = health.started(plan.base(model), now)
        self._record.attempts.append(attempt)
        call, body = self._call, self._body
        data = (body.data,) if plan.mode == "direct" else body.with_model(model)
        request = UpstreamRequest(call.method, call.target, call.fields, data, command.fresh)
        return self.open_upstream(model, request, command.header_timeout, observer)

    def _commit(self, head: ResponseHead, limit: RateLimit | None) -> bytes:
        """Take the answer for the one that is relayed: failover is over. Returns the header lines of our own.

        :param limit: which 429 it is, as far as that is known yet.
        """
        record, relay, route, status = self._record, self._relay, self.route, head.status
        attempts = record.attempts
        tried = len(attempts)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        last = attempts[-1]
        model = last.model
        record.status = status
        record.selected = model
        now = relay.clock.seconds()
        if record.first_byte is None:
            record.first_byte = now
        self._judged("succeeded" if status < 400 else "abandoned" if status < INTERNAL else "failed", now)
        if 200 <= status < 300 and last.failure is None:  # else it is an error that says 200
            relay.succeeded(self, model, NONE_FAILED if tried == 1 else self._failures(model))
        self._committed = True
        own = route.lines.get(model) if tried == 1 else None
        if own is None:
            own = _OWN % tried
            if route.plan.mode != "direct":
                own = _SELECTED % model.encode() + own
            if tried == 1:
                route.lines[model] = own
        own += record.request_id.encode() + b"\r\n"
        if limit is not None or (status >= INTERNAL and self._gave_up(status)):
            own += relay.shield(self, head, limit)
        if self._call.client.explain:
            own += b"%b: %b\r\n" % (EXPLAIN, relay.summary(self))
        if relay.fuse.bans and (limit is None or limit.kind != "edge"):
            relay.fuse.answered(self.payer, record.received)
        if route.skipped and route.plan.mode != "direct":
            own += b"%b: %b\r\n" % (SKIPPED, route.skipped)
        return own

    def _gave_up(self, status: int) -> bool:
        """Whether this status of a server's error is what remains after every candidate."""
        return status == UNAVAILABLE and self.route.plan.mode != "direct"

    def _failures(self, _model: str) -> dict[str, float]:
        """The models that failed before this one answered, and when."""
        return {a.model: a.failed for a in self._record.attempts if a.failed is not None}

    def _relay_body(self, held: bytes = b"") -> None:
        """Write the held head; from here on the pipe is the attempt's observer.

        :param held: what has come of the body, which the caller writes.
        """
        head, attempt, relay = self._head, self._attempt, self._relay
        assert head is not None and attempt is not None  # noqa: S101, PT018 - a commit follows a head
        limit = rate_limit_of(head, held)
        own = self._commit(head, limit)
        limits = relay.rules.limits
        continuations = self._continuations(head, limits) if limits.continue_streams else None
        self._call.drop()  # sent for good: a stream may take minutes, and hold it all the while
        self._body.drop()
        if limit is None:
            self._head = None
        parts = attempt, self._downstream, head, relay.clock, relay.deadlines, limits.patience, self._relayed
        if continuations is None:
            self._pipe = Pipe(*parts, relay.endpoint.new_guard)
        else:
            self._pipe = ContinuingPipe(*parts, continuations)
        attempt.observer = self._pipe
        if head.status >= RATE_LIMITED and SHOULD_RETRY in own:
            head = _without_advice(head, own)
        self._downstream.start(head, own, self._pipe, keeps_body=continuations is not None)

    def _continuations(self, head: ResponseHead, limits: Limits) -> Continuations | None:
        """What it takes to continue this stream, where it can be."""
        call, body, plan, relay = self._call, self._body, self.route.plan, self._relay
        continuable = may_be_continued(call, body, plan, head) if relay.endpoint.continues else None
        if continuable is None:
            return None
        return Continuations(
            msgspec.structs.replace(call, body=b""),
            copy(body),
            continuable,
            plan,
            self._record,
            limits.max_attempts,
            limits.timeouts.header,
            relay.health,
            relay.clock.seconds,
            self.open_upstream,
            partial(relay.succeeded, self),
            relay.continued,
            lambda: relay.stopping,
            partial(relay.rate_limited, self),
            self._left_out(),
        )

    def _left_out(self) -> tuple[str, ...]:
        """Candidates that an answer has shown to be unable to serve the request."""
        return ()

    def _relay_whole(self, data: bytes) -> None:
        """Write an answer that is here from its head to its end."""
        head = self._head
        assert head is not None  # noqa: S101 - it came with the data
        limit = rate_limit_of(head, data) if head.status == RATE_LIMITED else None
        own = self._commit(head, limit)
        if limit is not None:
            self._relay.rate_limited(self, limit, self._record.attempts[-1])
        if head.status >= RATE_LIMITED and SHOULD_RETRY in own:
            head = _without_advice(head, own)
        self._downstream.answer(head, own, data)
        self._record.bytes_out = len(data)
        self._finish("complete", None)

    def _relayed(self, outcome: Outcome, fault: str | None) -> None:
        self._record.error = GRACE_OVER if outcome == "cut" and self._relay.stopping else fault
        if outcome == "client_gone":
            self._record.status = CLIENT_GONE_STATUS
        self._finish(outcome, None)

    def _out_of_time(self) -> None:
        self._deadline = None
        self._judged("failed")
        self._drop_attempt()
        self._refuse(
            ApiError(
                "deadline_exceeded", "No model began to answer within the time allowed for one request; try again."
            )
        )

    def _refuse(self, error: ApiError) -> None:
        error.headers += ((ATTEMPTS, b"%d" % len(self._record.attempts)),)
        if self.route.skipped:
            error.headers += ((SKIPPED, self.route.skipped),)
        if self.route.plan.mode != "direct" and error.status > INTERNAL and not self._relay.stopping:
            error.headers = without_wait(error.headers) + no_retry_headers(self._relay.wait(self))
        self._record.status = error.status
        self._record.error = error.code
        if self._call.client.explain:
            error.headers += ((EXPLAIN, self._relay.summary(self)),)
        self._finish("refused", error)

    def _failed_unexpectedly(self) -> None:
        """End the request, whatever it was that went wrong: an error where nothing was written yet, else a cut."""
        events.failed_unexpectedly(Failure(), "relaying a request")
        self._judged("abandoned")
        self._drop_attempt()
        if not self._committed and self._record.outcome is None:
            self._refuse(internal_error())
        else:
            self._record.error = "internal_error"
            self._downstream.abort()
            self._finish("cut", None)

    def _finish(self, outcome: Outcome, error: ApiError | None) -> None:
        record, relay = self._record, self._relay
        if record.outcome is not None:
            return
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        record.outcome = outcome
        record.ended = relay.clock.seconds()
        pipe = self._pipe
        if pipe is not None:
            pipe.stop()
            record.bytes_out = pipe.bytes_relayed
            self._measure(pipe)
            limit = None if self._head is None else rate_limit_of(self._head, pipe.beginning())
            if limit is not None:
                relay.rate_limited(self, limit, record.attempts[-1])
        # They know this exchange, or one another: such cycles would be left to the garbage collector, and with them
        # the bytes of the request.
        if self._attempt is not None:
            self._attempt.observer = None
        self._attempt = None
        if pipe is not None:
            self._pipe = None
        relay.finished(record)
        self._ended(record, error)

    def _measure(self, pipe: Pipe) -> None:
        """Take the pace of a stream, whose model has been judged by then."""
        record, pace = self._record, pipe.pace()
        if pace is not None and record.first_byte is not None and record.selected is not None:
            base, now = self.route.plan.base(record.selected), self._relay.clock.seconds()
            self._relay.health.streamed(base, pace.events, pace.tokens, pace.heard_at - record.first_byte, now)

    def _judged(self, end: Literal["succeeded", "failed", "abandoned"], now: float | None = None) -> None:
        """What the attempt under way says of its model, once for each.

        :param now: the clock's seconds, where they have just been read.
        """
        begun, self._begun = self._begun, None
        if begun is None:
            return
        health, route, record = self._relay.health, self.route, self._record
        attempt = record.attempts[-1]
        model = route.plan.bases.get(attempt.model, attempt.model)
        if now is None:
            now = self._relay.clock.seconds()
        if end == "succeeded":
            health.succeeded(model, now - begun if record.stream else None, now)
            if route.cooling and model in route.cooling:
                health.back(route.cooling, now)
        elif end == "failed":
            health.failed(model, now, probe=attempt.probe)
        else:
            health.abandoned(model, probe=attempt.probe)

    def _drop_attempt(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.abort()


def _without_advice(head: ResponseHead, own: bytes) -> ResponseHead:
    """An answer to which our own advice on retries was added, without what the upstream says of the same.

    :param own: the header lines of our own, which have SHOULD_RETRY.
    """
    headers = tuple(header for header in head.headers if header[0].lower() != SHOULD_RETRY)
    if b"\r\nRetry-After: " in own:
        headers = without_wait(headers)
    return ResponseHead(head.status, head.reason, headers)
