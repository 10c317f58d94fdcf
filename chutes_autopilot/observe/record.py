"""What happened to one chat request, from its arrival to the end of its answer: the source of log and metrics."""

from typing import Literal

import attrs

Outcome = Literal["complete", "refused", "cut", "client_gone"]

CLIENT_GONE_STATUS = 499
"""The status metrics and log show for a client that left before its answer was complete (nginx's convention)."""


@attrs.define(eq=False)
class AttemptRecord:
    """One attempt: the model sent, when it began, the status it got, and why it failed (policy.failover's names)."""

    model: str
    started: float
    status: int | None = None
    failure: str | None = None
    failed: float | None = None


@attrs.define(eq=False)
class RequestRecord:
    """One chat request. Times are the clock's seconds; None is what did not happen.

    It holds names, numbers and times only: never a body, token, key or address, nor a hash of one.
    """

    request_id: str
    received: float
    bytes_in: int = 0
    mode: str = "none"
    stream: bool = False
    candidates: tuple[str, ...] = ()
    attempts: list[AttemptRecord] = attrs.field(factory=list)
    selected: str | None = None
    status: int = 0
    error: str | None = None
    outcome: Outcome | None = None
    first_attempt: float | None = None
    first_byte: float | None = None
    ended: float | None = None
    bytes_out: int = 0

    @property
    def status_relayed(self) -> int:
        """The upstream's status, which the client may have left before it saw the whole answer of."""
        return self.attempts[-1].status or 0
