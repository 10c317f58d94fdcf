"""What was decided for one request and why, so that a choice can be explained afterwards.

It holds no prompt, no answer, no key, no address, nor a hash of one.
"""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, Generic, Literal, Protocol, TypeVar
from urllib.parse import quote

import attrs

from chutes_autopilot.policy.reasons import MAX_NAME, SORTED_BY, Reasons

MAX_ATTEMPTS = 16
"""How many attempts are told of."""
MAX_SUMMARY_BYTES = 1024
MAX_DECISIONS = 500
"""How many are kept."""

Followed = Literal["committed", "next", "again", "continued", "outrun", "gave_up", "client_left"]
"""What came after an attempt; ``again``: the same model; ``continued``: its stream was, by another model; ``outrun``:
another one, begun beside it, answered first."""


@attrs.frozen
class AttemptView:
    """One attempt; times in seconds since the request's arrival.

    :param model: its base name.
    :param sent: what was asked of the platform, where that is another name.
    :param failure: why it failed, one of the closed sets of reasons; None where it did not.
    :param detail: what kind of 429 or of error it was, where that was told apart.
    :param probe: it found out whether a cooling model works again.
    :param waited: seconds for which nothing was tried after it.
    """

    model: str
    started: float
    ended: float | None = None
    status: int | None = None
    failure: str | None = None
    followed: Followed | None = None
    detail: str | None = None
    probe: bool = False
    sent: str | None = None
    waited: float | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it, times in milliseconds."""
        return {
            "model": self.model[:MAX_NAME],
            "sent": (self.sent or self.model)[:MAX_NAME],
            "started_ms": _milliseconds(self.started),
            "ended_ms": _milliseconds(self.ended),
            "status": self.status,
            "failure": self.failure,
            "detail": self.detail,
            "probe": self.probe,
            "waited_ms": _milliseconds(self.waited),
            "followed": self.followed,
        }


@attrs.frozen
class Decision:
    """One request from its route to its end; times in seconds since its arrival.

    :param received: Unix seconds.
    :param selected: base name of the model whose answer the client got, None where it was our own error or none.
    :param first_byte: when the answer began.
    :param error: the code of our own error, where the client got one.
    :param outcome: complete, refused, cut or client_gone; None while it is under way.
    """

    request_id: str
    received: float
    stream: bool
    profile: str
    reasons: Reasons | None
    attempts: tuple[AttemptView, ...] = ()
    selected: str | None = None
    status: int = 0
    first_byte: float | None = None
    ended: float | None = None
    error: str | None = None
    outcome: str | None = None
    endpoint: str = "chat"

    def missing(self) -> tuple[str, ...]:
        """What a finished request's record still lacks; empty where it explains everything."""
        return tuple(self._gaps())

    def _gaps(self) -> Iterator[str]:
        if self.outcome is None or self.ended is None:
            yield "the end"
        if self.reasons is None:
            if self.error is None and self.outcome != "client_gone":
                yield "the reasons"
            return
        for number, attempt in enumerate(self.attempts, 1):
            if attempt.followed is None or attempt.ended is None:
                yield f"the end of attempt {number}"
            elif attempt.status is None and attempt.failure is None and attempt.followed != "client_left":
                yield f"the outcome of attempt {number}"
        committed = [attempt.model for attempt in self.attempts if attempt.followed in ("committed", "continued")]
        if self.selected is not None and self.selected not in committed:
            yield "the commit"
        if self.selected is None and self.error is None and self.outcome != "client_gone":
            yield "the error"
        told = {candidate.model for candidate in self.reasons.candidates}
        yield from (f"the verdict on {name}" for name in self.reasons.planned if name not in told)

    def as_json(self) -> dict[str, Any]:
        """All of it, times in milliseconds."""
        return {
            "request_id": self.request_id[:MAX_NAME],
            "received": round(self.received, 3),
            "endpoint": self.endpoint,
            "stream": self.stream,
            "profile": self.profile,
            **(self.reasons.as_json() if self.reasons is not None else {}),
            "attempts": [attempt.as_json() for attempt in self.attempts[:MAX_ATTEMPTS]],
            "attempts_omitted": max(0, len(self.attempts) - MAX_ATTEMPTS),
            "selected": None if self.selected is None else self.selected[:MAX_NAME],
            "status": self.status,
            "first_byte_ms": _milliseconds(self.first_byte),
            "total_ms": _milliseconds(self.ended),
            "error": self.error,
            "outcome": self.outcome,
        }

    def summary(self) -> bytes:
        """The same for a response header: ``key=value`` by semicolons, ASCII, names percent-encoded, at most 1 KiB.

        What was passed over may be many: it comes last, and where its names have no room their number stands there.
        """
        parts = [] if self.selected is None else [(f"selected={_safe(self.selected)}", "")]
        if self.reasons is not None:
            parts += ((part, "") for part in self._summed_up(self.reasons))
        tried = ",".join(f"{_safe(a.model)}:{a.failure or a.status or 'open'}" for a in self.attempts)
        parts.append((f"attempts={tried}", f"attempts={len(self.attempts)}"))
        if self.reasons is not None:
            parts += _passed_over(self.reasons)
        kept, room = [], MAX_SUMMARY_BYTES
        for whole, short in parts:
            part = whole if len(whole) + 2 <= room else short
            if part and len(part) + 2 <= room:
                room -= len(part) + 2
                kept.append(part)
        return "; ".join(kept).encode()

    def _summed_up(self, why: Reasons) -> Iterator[str]:
        yield f"mode={why.mode}"
        chosen = next((c for c in why.candidates if c.model == self.selected), None)
        if chosen is not None and chosen.ranked is not None:
            yield f"place={chosen.place}"
            yield f"score={chosen.ranked.score:.2f}"
        if why.sorted_by:
            yield f"sorted={SORTED_BY[why.sorted_by]}"
        if why.sticky is not None:
            yield f"sticky={why.sticky_effect}"


def _passed_over(why: Reasons) -> Iterator[tuple[str, str]]:
    """What was left out, by verdict: with names, and as a number; at last how many more there is no record of."""
    any_found = False
    for verdict in ("incapable", "unwanted", "closed", "cooling"):
        found = [c for c in why.candidates if c.verdict == verdict]
        if found:
            any_found = True
            names = (_safe(c.model) + (f":{c.reason}" if verdict != "cooling" else "") for c in found)
            yield f"{verdict}={','.join(names)}", f"{verdict}={len(found)}"
    if any_found and why.omitted:
        yield f"omitted={why.omitted}", ""


class Named(Protocol):
    """A decision, or what one can be made of."""

    @property
    def request_id(self) -> str: ...


Kept = TypeVar("Kept", bound=Named)


@attrs.define(eq=False)
class RecentDecisions(Generic[Kept]):
    """The last decisions, each to be found by the client whose request it was.

    :param limit: how many are kept.
    :ivar seen: how many there were.
    """

    limit: int = MAX_DECISIONS
    seen: int = attrs.field(default=0, init=False)
    _kept: deque[tuple[bytes, Kept]] = attrs.field(init=False, repr=False)

    @_kept.default
    def _nothing_yet(self) -> deque[tuple[bytes, Kept]]:
        return deque(maxlen=self.limit)

    def keep(self, decision: Kept, owner: bytes) -> None:
        """Keep one more; of two with the same id and owner the newer is found.

        Each request is kept, and hardly one of them asked for: it is finding that may take its time.
        """
        self.seen += 1
        self._kept.appendleft((owner, decision))

    def find(self, request_id: str, owner: bytes) -> Kept | None:
        """The decision on a request of this owner's; None for any other, as if it did not exist.

        :param owner: the client's key.
        """
        found = (kept for whose, kept in self._kept if kept.request_id == request_id and whose == owner)
        return next(found, None)

    async def find_elsewhere(self, request_id: str, owner: bytes) -> dict[str, Any] | None:
        """The same where other replicas are asked, as JSON; here there are none."""
        return None

    def newest(self, count: int) -> list[Kept]:
        """The last ones, newest first, for the operator."""
        return [decision for _, decision in islice(self._kept, count)]


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(max(0.0, seconds) * 1000, 3)


def _safe(name: str) -> str:
    return quote(name[:MAX_NAME], safe="/:.@-_")
