"""What happened to one request, from its arrival to the end of its answer: the source of log and metrics."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

Outcome = Literal["complete", "refused", "cut", "client_gone"]

CLIENT_GONE_STATUS = 499
"""The status metrics and log show for a client that left before its answer was complete (nginx's convention)."""


class AttemptRecord(msgspec.Struct, eq=False, gc=False):
    """One attempt: the model sent, the status it got, and why it failed (policy.failover's names) and when.

    :param detail: of which kind a 429 is (policy.rate_limits), how a stream broke off that was continued, and how that
        was tried: prefill or restart.
    :param started: when it began, where that was not at once after the one before.
    :param waited: seconds for which nothing was tried after it.
    :param probe: it found out whether a cooling model works again, as policy.cooldown counts such attempts; else 0.
    """

    model: str
    status: int | None = None
    failure: str | None = None
    failed: float | None = None
    detail: str | None = None
    started: float | None = None
    waited: float | None = None
    probe: int = 0

    def __str__(self) -> str:
        """Its model and what became of it, in few words."""
        waited = "" if self.waited is None else f"+waited_ms:{self.waited * 1000:.0f}"
        return f"{self.model}={self.failure or self.status or 'open'}{waited}"


class RequestRecord(msgspec.Struct, eq=False, gc=False):
    """One request of an endpoint (relay.endpoint). Times are the clock's seconds; None is what did not happen.

    It holds names, numbers and times only: never a body, token, key or address, nor a hash of one.
    """

    request_id: str
    received: float
    bytes_in: int = 0
    mode: str = "none"
    stream: bool = False
    candidates: tuple[str, ...] = ()
    attempts: list[AttemptRecord] = []
    selected: str | None = None
    status: int = 0
    error: str | None = None
    outcome: Outcome | None = None
    first_attempt: float | None = None
    first_byte: float | None = None
    ended: float | None = None
    bytes_out: int = 0
    endpoint: str = "chat"
    continuations: Sequence[AttemptRecord] = ()
    """The attempts to continue the stream that was committed to, the last of ``attempts``."""
    too_long_for: tuple[str, ...] = ()
    """Candidates left out because another one's answer said how long the request is."""
    continued_by: str | None = None
    """The model whose text went on behind that of the selected one: that of the last of ``continuations``."""

    def fields(self) -> dict[str, Any]:
        """What the log says of the request, by name; durations in milliseconds."""
        return {
            "request_id": self.request_id,
            "endpoint": self.endpoint,
            "status": self.status,
            "outcome": self.outcome,
            "mode": self.mode,
            "stream": self.stream,
            "error": self.error,
            "selected": self.selected,
            "candidates": self.candidates,
            "attempts": _as_text(self.attempts),
            "continuations": _as_text(self.continuations),
            "first_byte_ms": self._milliseconds(self.first_byte),
            "total_ms": self._milliseconds(self.ended),
            "overhead_ms": self._milliseconds(self.first_attempt),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }

    def __str__(self) -> str:
        """The same in one line."""
        received, first_byte, ended, begun = self.received, self.first_byte, self.ended, self.first_attempt
        return (
            f"request id={self.request_id}{self.common()}"
            f"{'-' if first_byte is None else f'{max(0.0, first_byte - received) * 1000:.3f}'} "
            f"total_ms={'-' if ended is None else f'{max(0.0, ended - received) * 1000:.3f}'} "
            f"overhead_ms={'-' if begun is None else f'{max(0.0, begun - received) * 1000:.3f}'} "
            f"bytes_in={self.bytes_in} bytes_out={self.bytes_out}"
            + (f" continuations={','.join(_as_text(self.continuations))}" if self.continuations else "")
        )

    def common(self) -> str:
        """The part of that line which many requests have in common: from the id to the first of the times."""
        return (
            f" endpoint={self.endpoint} status={self.status} outcome={self.outcome} "
            f"mode={self.mode} stream={'yes' if self.stream else 'no'} error={self.error or '-'} "
            f"selected={self.selected or '-'} candidates={','.join(self.candidates) or '-'} "
            f"attempts={','.join(_as_text(self.attempts)) or '-'} first_byte_ms="
        )

    def _milliseconds(self, end: float | None) -> float | None:
        return None if end is None else round(max(0.0, end - self.received) * 1000, 3)


def _as_text(attempts: Sequence[AttemptRecord]) -> list[str]:
    return [f"{a.model}={a.failure or a.status or 'open'}" if a.waited is None else str(a) for a in attempts]
