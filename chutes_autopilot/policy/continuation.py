"""How a stream that broke off after its commit is continued by another model, and when that is given up.

A sans-io state machine beside `policy.failover`, which is over by then: no socket, no clock, no text.

===================================  ========================  =======================  ==================
event                                prefill under way         restart under way        going on
===================================  ========================  =======================  ==================
Declined (4xx but 429; other words)  Restart the same model    GiveUp                   GiveUp
Failed(retry=True)                   the next candidate        the next candidate       GiveUp
Failed(retry=False)                  GiveUp                    GiveUp                   GiveUp
GoesOn                               Relay                     Relay                    -
===================================  ========================  =======================  ==================

The next candidate gets a Prefill, or a Restart where no text had been sent. Where none is left, or no further attempt
allowed: GiveUp. So a client gets the text of two models at most.
"""

from types import MappingProxyType
from typing import Literal

import attrs

from chutes_autopilot.policy.failover import STATUS_503
from chutes_autopilot.policy.resilience import RATE_LIMITED, SERVER_ERROR, TOO_MANY_REQUESTS

REFUSED = "continuation_refused"
UNLIKE = "continuation_unlike"
"""Why an attempt to continue failed, beside the reasons of failover and of cut streams; used as metric labels."""

_REASONS = MappingProxyType({TOO_MANY_REQUESTS: RATE_LIMITED, 503: STATUS_503})


@attrs.frozen
class Declined:
    """The model refused the request, or its answer does not go on where the text ended."""


@attrs.frozen
class Failed:
    """The attempt failed before its text went on.

    :param retry: whether another model may be asked.
    """

    retry: bool = True


@attrs.frozen
class GoesOn:
    """The first of its text goes to the client."""


Event = Declined | Failed | GoesOn


@attrs.frozen
class Prefill:
    """Ask a model to go on behind the text that was sent."""

    model: str


@attrs.frozen
class Restart:
    """Ask a model the client's own request; its answer must repeat the text that was sent."""

    model: str


@attrs.frozen
class Relay:
    """Send on what this model says."""

    model: str


@attrs.frozen
class GiveUp:
    """End the stream as one that was cut short."""


Command = Prefill | Restart | Relay | GiveUp


@attrs.frozen
class Continuation:
    """One stream that broke off.

    :param left: the candidates that have not been tried, in order.
    :param attempts: how many more may be made.
    :param has_text: whether any text had been sent.
    """

    left: tuple[str, ...]
    attempts: int
    has_text: bool
    current: str = ""
    phase: Literal["prefill", "restart", "going"] = "prefill"


def begin(left: tuple[str, ...], attempts: int, *, has_text: bool) -> tuple[Continuation, Command]:
    """The first step, when a stream has broken off."""
    return _next(Continuation(left, attempts, has_text))


def step(state: Continuation, event: Event) -> tuple[Continuation, Command]:
    """The next state, and what to do."""
    match event:
        case _ if state.phase == "going":
            return state, GiveUp()
        case GoesOn():
            return attrs.evolve(state, phase="going"), Relay(state.current)
        case Declined() if state.phase == "prefill" and state.attempts > 0:
            return attrs.evolve(state, attempts=state.attempts - 1, phase="restart"), Restart(state.current)
        case Failed(retry=True):
            return _next(state)
    return state, GiveUp()


def _next(state: Continuation) -> tuple[Continuation, Command]:
    if not state.left or state.attempts <= 0:
        return state, GiveUp()
    model, *left = state.left
    state = attrs.evolve(
        state,
        left=tuple(left),
        attempts=state.attempts - 1,
        current=model,
        phase="prefill" if state.has_text else "restart",
    )
    return state, Prefill(model) if state.has_text else Restart(model)


def useless(status: int, *, banned: bool) -> tuple[str, Declined | Failed]:
    """Why an answer that is no stream cannot go on with one, and what follows.

    A 4xx speaks of the request, 429 and 5xx of the model.

    :param banned: it is the ban page, which further calls make worse.
    """
    if status < 400:
        return UNLIKE, Failed()
    if status < 500 and status != TOO_MANY_REQUESTS:
        return REFUSED, Declined()
    return _REASONS.get(status, SERVER_ERROR), Failed(retry=not banned)
