"""What else fails over, and what is tried again, where the operator asks for more than policy.failover's rules.

A state machine around that one, just as free of sockets and clocks: whatever has no row here is decided there. Each row
holds where its setting is on. "The next" is the next candidate within MAX_FAILOVER_ATTEMPTS, which counts every try;
where there is none the answer is the client's.

=================================================  ====================================================================
event of the current attempt                       command
=================================================  ====================================================================
ConnectFailed, Lost                                Wait for a moment, then Try the same model, so many times; then as
                                                   policy.failover says
Head(500, 502, 504, 520 to 524), ErrorAnswer       the same, then Try the next, or PassBack
of that move
ErrorAnswer that no instance could be had          Try the next, or PassBack
ErrorAnswer "context length"                       Try the next with a larger context, or PassBack
ErrorAnswer 429, policy.rate_limits allows it      Wait, then Try the same model, once; then Try the next, or PassBack
ErrorAnswer, anything else                         PassBack
Head(2xx)                                          AwaitBody, for the first event
FirstByte: the first meaningful event              Commit
DeadlinePassed: it is silent                       Try the next, or Refuse; never the same model
Ended: a stream without an answer in it            the same
=================================================  ====================================================================

An error inside a 200 is judged like an error answer, and committed to where that would be passed back.

`hedge` starts a second attempt beside a slow one; from then on `race` decides until one of them is left.
"""

from collections.abc import Callable, Mapping
from math import inf
from typing import Literal

import attrs

from chutes_autopilot.policy import failover
from chutes_autopilot.policy.failover import (
    COMMIT,
    FAILOVER_STATUSES,
    FAILURE_REASONS,
    STATUS_503,
    Answer,
    AwaitBody,
    Command,
    Commit,
    ConnectFailed,
    Event,
    Failover,
    FirstByte,
    Head,
    Lost,
    PassBack,
    Refused,
    Timeouts,
    Try,
    advance,
    failure_reason,
)
from chutes_autopilot.policy.plan import Plan
from chutes_autopilot.policy.rate_limits import RateLimit
from chutes_autopilot.policy.upstream_errors import UpstreamError

SERVER_ERRORS = frozenset({500, 502, 504, *range(520, 525)})
"""The statuses that SERVER_ERROR_FAILOVER adds to policy.failover's."""
TOO_MANY_REQUESTS = 429
JITTER = (0.2, 0.8)
"""The least and the most seconds before the same model is tried again, where nobody said when."""

MAX_SKIPPED = 32
"""How many of the candidates that one refusal passes over are named."""

SERVER_ERROR = "upstream_server_error"
ERROR_EVENT = "upstream_error_event"
RATE_LIMITED = "upstream_429"
CONTEXT_LENGTH = "upstream_context_length"
HEDGE_LOST = "hedge_lost"

FAULTS = frozenset({*FAILURE_REASONS, SERVER_ERROR, ERROR_EVENT})
"""The reasons that are the model's or the platform's fault; the others say nothing of its health."""
REASONS = (*FAILURE_REASONS, SERVER_ERROR, ERROR_EVENT, RATE_LIMITED, CONTEXT_LENGTH, HEDGE_LOST)
"""Every reason for which an attempt ends without being the answer; a closed set, used as metric label."""


@attrs.frozen
class Resilience:
    """What the operator adds to policy.failover's rules; times in seconds.

    :param first_event: commit to the first meaningful event of a stream (FIRST_EVENT_COMMIT).
    :param first_event_timeout: how long it may take from the head while another candidate is left.
    :param server_errors: SERVER_ERRORS fail over (SERVER_ERROR_FAILOVER).
    :param same_model_retries: how often a model is tried again before the next (SAME_MODEL_RETRIES).
    :param context_length: a request too long for a model goes on to a larger one (CONTEXT_LENGTH_FAILOVER).
    :param rate_limits: a 429 of a full model is tried again (RATE_LIMIT_RETRY).
    :param longest_wait: RETRY_AFTER_MAX_MS.
    :param hedge: HEDGE.
    """

    first_event: bool = False
    first_event_timeout: float = 10.0
    server_errors: bool = False
    same_model_retries: int = 0
    context_length: bool = False
    rate_limits: bool = False
    longest_wait: float = 5.0
    hedge: bool = False

    def __bool__(self) -> bool:
        """Whether anything is added at all."""
        return bool(
            self.first_event
            or self.server_errors
            or self.same_model_retries
            or self.context_length
            or self.rate_limits
            or self.hedge
        )


@attrs.frozen
class ErrorAnswer:
    """An error answer has been read as far as is needed to judge it; with a 2xx: an error event in place of an answer.

    :param limit: what kind of 429 it is, where it is one.
    """

    status: int
    error: UpstreamError
    limit: RateLimit | None = None


@attrs.frozen
class Wait:
    """Let some time pass, no attempt being under way, then carry out the next command."""

    shortest: float
    longest: float
    then: Try


@attrs.frozen
class DropOut:
    """This one of two attempts is over; the other goes on as if it were the only one."""


DROP_OUT = DropOut()

Happening = Event | ErrorAnswer
Step = tuple["Resilient", Command | Wait, str | None]


@attrs.frozen
class Resilient:
    """One request between its plan and its commit boundary.

    :param failover: its candidates are all tries made and planned: a model that is tried again stands there again.
    :param max_attempts: tries of any kind.
    :param contexts: candidate, spare ones too -> tokens of its context, where they are known.
    :param spare: further candidates, behind the last attempt allowed, for a request that is too long for others.
    :param retries: how often the current model has been tried again.
    :param waited: whether its 429 has been answered by another try.
    :param skipped: candidates that were left out because their context is no larger.
    :param racing: the model of the earlier one of two attempts under way.
    :param survivor: the model of the attempt that is left of two.
    """

    failover: Failover
    rules: Resilience
    max_attempts: int
    contexts: Mapping[str, int] = attrs.field(factory=dict)
    spare: tuple[str, ...] = ()
    retries: int = 0
    waited: bool = False
    skipped: tuple[str, ...] = ()
    racing: str | None = None
    survivor: str | None = None

    @property
    def current(self) -> str:
        """The model of the attempt under way; of two, of the later one."""
        return self.survivor or self.failover.current

    @property
    def attempts(self) -> int:
        """Tries made so far."""
        return self.failover.attempts


def begin(
    plan: Plan,
    *,
    stream: bool,
    timeouts: Timeouts,
    max_attempts: int,
    rules: Resilience,
    context_of: Callable[[str], int | None],
) -> tuple[Resilient, Try]:
    """The first attempt of a plan.

    :param context_of: gives the tokens of a model's context by its base name, None where they are unknown.
    """
    state, first = failover.begin(plan, stream=stream, timeouts=timeouts, max_attempts=max_attempts)
    spare = plan.spare if rules.context_length else ()
    known = ((model, context_of(plan.base(model))) for model in (*state.candidates, *spare))
    contexts = {model: tokens for model, tokens in known if tokens is not None}
    return Resilient(state, rules, max_attempts, contexts, spare), first


def step(state: Resilient, event: Happening, left: float = inf) -> Step:
    """The next state, what to do, and why the current attempt failed (one of REASONS, or the attempt's own).

    :param left: seconds the request has; a wait that might outlast them is not begun.
    """
    taken = _step(state, event)
    if isinstance(taken[1], Wait) and taken[1].longest >= left:
        return _step(attrs.evolve(state, retries=state.rules.same_model_retries, waited=True), event)
    return taken


def _step(state: Resilient, event: Happening) -> Step:
    rules, inner = state.rules, state.failover
    match event:
        case ErrorAnswer():
            return _judged(state, event)
        case Head(status) | Answer(status) if status in SERVER_ERRORS and rules.server_errors:
            return _again(state, SERVER_ERROR, PassBack())
        case ConnectFailed() | Lost():
            if isinstance(event, ConnectFailed) and event.repeated:
                state = attrs.evolve(state, retries=state.retries + 1)  # that was a try
            if _may_repeat(state):
                again = attrs.evolve(state, retries=state.retries + 1)
                return _repeated(again, JITTER, failure_reason(event), fresh=True)
    inner, command, reason = failover.step(inner, event)
    if isinstance(command, Try):
        return _moved(state, inner), command, reason
    if isinstance(command, AwaitBody):
        command = first_event(state)
    return state, command, reason


def first_event(state: Resilient) -> AwaitBody:
    """How long the first event of an answer may take whose head is here."""
    inner, rules = state.failover, state.rules
    hurried = rules.first_event and inner.stream and inner.hurried
    return AwaitBody(rules.first_event_timeout if hurried else inner.timeouts.first_byte)


def _judged(state: Resilient, event: ErrorAnswer) -> Step:
    """What an error that was read calls for."""
    rules = state.rules
    inside = 200 <= event.status < 300
    final: Commit | PassBack = COMMIT if inside else PassBack()
    limit = event.limit
    match event.error.move:
        case "again" if inside or rules.server_errors:
            return _again(state, ERROR_EVENT if inside else SERVER_ERROR, final)
        case "next" if inside or rules.server_errors:
            return _next(state, ERROR_EVENT if inside else SERVER_ERROR, final)
        case "larger" if rules.context_length:
            return _larger(state, event.error.tokens, final)
        case "rate_limit" if rules.rate_limits and limit is not None and limit.moves_on(rules.longest_wait):
            wait = limit.wait(rules.longest_wait)
            if wait is None or state.waited or state.attempts >= state.max_attempts:
                return _next(state, RATE_LIMITED, final)
            return _repeated(attrs.evolve(state, waited=True), (wait, wait) if wait else JITTER, RATE_LIMITED)
    return state, final, None


def _may_repeat(state: Resilient) -> bool:
    return state.retries < state.rules.same_model_retries and state.attempts < state.max_attempts


def _again(state: Resilient, reason: str, final: Command) -> Step:
    """The same model again, as often as is allowed, then the next."""
    if not _may_repeat(state):
        return _next(state, reason, final)
    return _repeated(attrs.evolve(state, retries=state.retries + 1), JITTER, reason)


def _repeated(state: Resilient, wait: tuple[float, float], reason: str, *, fresh: bool = False) -> Step:
    """Try the same model once more: it is put into the order again, before those that are left.

    :param fresh: on a new connection, for the last one was lost.
    """
    inner = state.failover
    done = inner.candidates[: inner.attempts]
    order = (*done, inner.current, *inner.candidates[inner.attempts :])
    most = state.max_attempts
    spare = (*order[most:], *state.spare) if state.rules.context_length else ()
    inner, then = advance(attrs.evolve(inner, candidates=order[:most]))
    if fresh:
        then = attrs.evolve(then, fresh=True)
    return attrs.evolve(state, failover=inner, spare=spare), Wait(*wait, then), reason


def _next(state: Resilient, reason: str, final: Command) -> Step:
    if state.failover.exhausted:
        return state, final, reason
    inner, command = advance(state.failover)
    return _moved(state, inner), command, reason


def _moved(state: Resilient, inner: Failover) -> Resilient:
    """The state after going on to another model."""
    return attrs.evolve(state, failover=inner, retries=0, waited=False, survivor=None)


def _larger(state: Resilient, tokens: int, final: Command) -> Step:
    """The next candidate whose context is larger, or unknown; spare ones take the places of the others.

    :param tokens: what the request needs at least.
    """
    inner, places = state.failover, state.max_attempts - state.attempts
    least = max(tokens, state.contexts.get(state.current, 0) + 1)
    left = (*inner.candidates[inner.attempts :], *state.spare) if places > 0 else ()
    able = [model for model in left if state.contexts.get(model, least) >= least]
    if not able:
        return state, final, None
    taken, spare = able[:places], tuple(able[places:])
    before = left[: left.index(taken[-1]) + 1] if spare else left
    too_small = [model for model in before if state.contexts.get(model, least) < least]
    inner, command = advance(attrs.evolve(inner, candidates=(*inner.candidates[: inner.attempts], *taken)))
    skipped = (*state.skipped, *too_small[:MAX_SKIPPED])
    return attrs.evolve(_moved(state, inner), skipped=skipped, spare=spare), command, CONTEXT_LENGTH


def hedge(state: Resilient) -> tuple[Resilient, Try] | None:
    """Start the next candidate beside the attempt under way; None where none is worth it, or there are two already.

    Neither of the two is tried again: the one that is left goes on to the next.
    """
    if state.racing is not None or not state.failover.hurried:
        return None
    inner, command = advance(state.failover)
    spent = state.rules.same_model_retries
    raced = attrs.evolve(state, failover=inner, retries=spent, waited=True, racing=state.current, survivor=None)
    return raced, command


def race(state: Resilient, which: Literal["earlier", "later"], event: Happening) -> tuple[Resilient, Command | DropOut]:
    """What one of two attempts under way reports: the first to answer wins, whatever else ends it leaves the other."""
    earlier, later = state.racing, state.failover.current
    own, other = (earlier, later) if which == "earlier" else (later, earlier)
    match event:
        case FirstByte():
            return attrs.evolve(state, racing=None, survivor=own), COMMIT
        case Answer(status) if 200 <= status < 300:
            return attrs.evolve(state, racing=None, survivor=own), COMMIT if status != 204 else PassBack()
        case Head(status) if 200 <= status < 300:
            if status == 204:
                return attrs.evolve(state, racing=None, survivor=own), PassBack()
            return state, first_event(state)
    if _passed_on_at_once(state, event):  # the other one may answer yet, but nobody else is asked
        inner = state.failover
        asked = attrs.evolve(inner, candidates=inner.candidates[: inner.attempts])
        state = attrs.evolve(state, failover=asked, spare=())
    return attrs.evolve(state, racing=None, survivor=other), DROP_OUT


def _passed_on_at_once(state: Resilient, event: Happening) -> bool:
    """Whether it is a 429 that alone would have been the client's answer."""
    rules = state.rules
    match event:
        case Head(status) | Answer(status):
            return status == TOO_MANY_REQUESTS
        case ErrorAnswer(limit=limit, error=error):
            may_move = rules.rate_limits and limit is not None and limit.moves_on(rules.longest_wait)
            return error.move == "rate_limit" and not may_move
    return False


def reason_of(event: Happening) -> str | None:
    """Why an attempt that dropped out did so; None where only its status says."""
    match event:
        case Refused(_, _, reason):
            return reason
        case ErrorAnswer(status, error, _):
            by_move = {"larger": CONTEXT_LENGTH, "rate_limit": RATE_LIMITED, "final": None}
            return by_move.get(error.move, ERROR_EVENT if 200 <= status < 300 else SERVER_ERROR)
        case Head(status) | Answer(status):
            if status in FAILOVER_STATUSES:
                return STATUS_503
            return SERVER_ERROR if status in SERVER_ERRORS else None
        case FirstByte():
            return None
    return failure_reason(event)
