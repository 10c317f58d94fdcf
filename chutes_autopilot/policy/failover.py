"""When a request moves on to the next candidate, when it commits, and what it ends with otherwise.

A sans-io state machine: the relay feeds it what happened to the current attempt and carries out the one
command that comes back. It knows no socket and no clock.

=======================================================  ============  ============================================
event of the current attempt                             others left   it was the last one allowed
=======================================================  ============  ============================================
ConnectFailed (not made; lost or invalid before a head)  Try the next  Refuse upstream_connect_error
DeadlinePassed("connect")                                Try the next  Refuse upstream_connect_error
DeadlinePassed("header")                                 Try the next  Refuse upstream_header_timeout
Head(503)                                                Try the next  PassBack
Head(204), Head(any other status but 2xx)                PassBack      PassBack
Head(2xx)                                                AwaitBody     AwaitBody
FirstByte, Answer(2xx but 204)                           Commit        Commit
Answer(any other status)                                 as Head       as Head
DeadlinePassed("first_byte"), Ended (an empty 2xx)       Try the next  Refuse upstream_first_body_byte_timeout
Lost (after the head, before a byte)                     Try the next  Refuse upstream_first_body_byte_error
Refused(error, retry=True)                               Try the next  Refuse with that error
Refused(error, retry=False)                              Refuse ditto  Refuse with that error
=======================================================  ============  ============================================

`step` answers with the attempt's failure reason where it failed, so that metrics, the log and stickiness see
the same names. 429 has no row of its own on purpose: it is passed back at once.
"""

from typing import Literal

import attrs

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.plan import Plan

Phase = Literal["connect", "header", "first_byte"]

CONNECT_ERROR = "upstream_connect_error"
HEADER_TIMEOUT = "upstream_header_timeout"
FIRST_BYTE_TIMEOUT = "upstream_first_body_byte_timeout"
FIRST_BYTE_ERROR = "upstream_first_body_byte_error"
STATUS_503 = "upstream_503"

FAILURE_REASONS = (STATUS_503, CONNECT_ERROR, HEADER_TIMEOUT, FIRST_BYTE_TIMEOUT, FIRST_BYTE_ERROR)
"""Every reason for which an attempt moves on; a closed set, used as metric label."""

FAILOVER_STATUSES = frozenset({503})
"""The statuses that fail over; every other one is an answer and passes back."""

_MESSAGES = {
    CONNECT_ERROR: "The connection to Chutes failed before it answered; try again.",
    HEADER_TIMEOUT: "Chutes did not start to answer in time; try again or choose another model.",
    FIRST_BYTE_TIMEOUT: "Chutes sent no first byte of the answer in time; try again or choose another model.",
    FIRST_BYTE_ERROR: "Chutes closed the connection before the first byte of the answer; try again.",
}
_NOTHING = "Chutes ended its answer before the first byte of it; try again or choose another model."


@attrs.frozen
class Timeouts:
    """The configured deadlines of one attempt, in seconds.

    :param nonstream_header: inf: none.
    """

    header: float
    first_byte: float
    nonstream_header: float


@attrs.frozen
class ConnectFailed:
    """The attempt ended, but for a deadline, before the complete response head.

    :param repeated: the request had been sent twice by then: the first connection seemed to have been closed before.
    """

    repeated: bool = False


@attrs.frozen
class Head:
    """The complete head of the final response arrived."""

    status: int


@attrs.frozen
class Answer:
    """The complete response arrived at once, with a body."""

    status: int


@attrs.frozen
class FirstByte:
    """The first byte of the response body arrived."""


@attrs.frozen
class Ended:
    """The response ended cleanly without a body byte."""


@attrs.frozen
class Lost:
    """The response broke after its head and before a body byte."""


@attrs.frozen
class DeadlinePassed:
    """The attempt ran out of time in this phase."""

    phase: Phase


@attrs.frozen
class Refused:
    """The attempt ended with an error of our own, before a byte of an answer.

    :param error: what the client gets, unless another candidate answers.
    :param retry: whether another candidate may be tried.
    :param reason: the name under which metrics and the log count it.
    """

    error: ApiError
    retry: bool
    reason: str


Event = ConnectFailed | Head | Answer | FirstByte | Ended | Lost | DeadlinePassed | Refused


@attrs.frozen
class Try:
    """Start an attempt: the model to send, and how many seconds its head may take from the last request byte.

    :param fresh: on a new connection.
    """

    model: str
    header_timeout: float
    fresh: bool = False


@attrs.frozen
class AwaitBody:
    """Hold the head back, nothing goes to the client yet; the first body byte may take this many seconds."""

    timeout: float


@attrs.frozen
class Commit:
    """Write the held head and from now on relay: there is never a second attempt after this."""


COMMIT = Commit()


@attrs.frozen
class PassBack:
    """Commit to this answer although its body has not begun: it is not one that fails over."""


@attrs.frozen
class Refuse:
    """Give up and answer with an error of our own."""

    error: ApiError


Command = Try | AwaitBody | Commit | PassBack | Refuse


@attrs.frozen
class Failover:
    """One request between its plan and its commit boundary: what is tried next and under which deadlines.

    :param last_resort: candidates that are known to fail, behind all others.
    """

    candidates: tuple[str, ...]
    stream: bool
    timeouts: Timeouts
    attempts: int = 0
    last_resort: frozenset[str] = frozenset()

    @property
    def current(self) -> str:
        """The model of the attempt under way."""
        return self.candidates[self.attempts - 1]

    @property
    def exhausted(self) -> bool:
        """Whether the attempt under way is the last one allowed."""
        return self.attempts >= len(self.candidates)

    @property
    def hurried(self) -> bool:
        """Whether the attempt under way should soon give way, for the next candidate promises no less."""
        if self.attempts >= len(self.candidates):
            return False
        last = self.last_resort
        return not last or self.candidates[self.attempts] not in last or self.current in last


def begin(plan: Plan, *, stream: bool, timeouts: Timeouts, max_attempts: int) -> tuple[Failover, Try]:
    """The first attempt of a plan; at most ``max_attempts`` of its candidates are ever tried."""
    return advance(Failover(plan.candidates[:max_attempts], stream, timeouts, last_resort=plan.last_resort))


def step(state: Failover, event: Event) -> tuple[Failover, Command, str | None]:
    """The next state, what to do, and why the current attempt failed (one of FAILURE_REASONS), if it did."""
    match event:
        case Answer(status) if 200 <= status < 300 and status != 204:
            return state, COMMIT, None
        case Head(status) | Answer(status) if status in FAILOVER_STATUSES:
            if state.exhausted:
                return state, PassBack(), STATUS_503
            return *advance(state), STATUS_503
        case Head(status) | Answer(status):
            awaits = 200 <= status < 300 and status != 204
            return state, AwaitBody(state.timeouts.first_byte) if awaits else PassBack(), None
        case FirstByte():
            return state, COMMIT, None
        case Refused(error, retry, reason):
            return (state, Refuse(error), reason) if state.exhausted or not retry else (*advance(state), reason)
    reason = failure_reason(event)
    if state.exhausted:
        message = _NOTHING if isinstance(event, Ended) else _MESSAGES[reason]
        return state, Refuse(ApiError(reason, message)), reason
    return *advance(state), reason


def failure_reason(event: ConnectFailed | Ended | Lost | DeadlinePassed) -> str:
    """The name, one of FAILURE_REASONS, of an attempt that ended without an answer."""
    match event:
        case ConnectFailed() | DeadlinePassed("connect"):
            return CONNECT_ERROR
        case DeadlinePassed("header"):
            return HEADER_TIMEOUT
        case Lost():
            return FIRST_BYTE_ERROR
        case DeadlinePassed("first_byte") | Ended():
            return FIRST_BYTE_TIMEOUT
    raise AssertionError(event)


def advance(state: Failover) -> tuple[Failover, Try]:
    """Go on to the next candidate, which there must be."""
    state = Failover(state.candidates, state.stream, state.timeouts, state.attempts + 1, state.last_resort)
    return state, Try(state.current, _header_timeout(state))


def _header_timeout(state: Failover) -> float:
    """How long the current attempt may take to send its head.

    The short deadline makes failover possible, so it only holds while another candidate is left that is worth it.
    Chutes sends the head of a stream with the first token and that of a plain answer with the whole answer: a short
    deadline there would cut and repeat work that was going well.
    """
    if not state.stream:
        return state.timeouts.nonstream_header
    return state.timeouts.header if state.hurried else state.timeouts.first_byte
