"""Decision records for other replicas: what is finished is packed and shared twice a second.

A record is little more than its numbers. The reasons, which are most of it, belong to a route: they are made once for
each, and all replicas name the same ones alike.
"""

from collections import deque
from collections.abc import Coroutine, Mapping
from typing import Any, Protocol

import attrs
import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from chutes_autopilot.observe import events
from chutes_autopilot.observe.record import AttemptRecord, Outcome, RequestRecord
from chutes_autopilot.policy.decision import MAX_ATTEMPTS, RecentDecisions
from chutes_autopilot.policy.reasons import MAX_NAME
from chutes_autopilot.policy.shared_values import DIGEST_BYTES, pack_reasons, unpack_reasons
from chutes_autopilot.relay.exchange import Route
from chutes_autopilot.relay.explain import Explained

PAUSE = 0.5
"""Seconds from a request's end, at most, until its record is shared."""

MAX_AT_ONCE = 50
"""Records shared in one go, and so 100 a second; of more requests the others are not told."""

MAX_REASONS = 5
"""New reasons made in one go: each takes some tenths of a millisecond."""

NO_REASONS = b"\0" * DIGEST_BYTES


class Records(Protocol):
    """Where they are shared (storage.shared_records)."""

    @property
    def takes(self) -> bool: ...

    @property
    def minute(self) -> int: ...

    def name(self, request_id: str, owner: bytes, /) -> bytes: ...

    def put(self, records: Mapping[bytes, bytes], reasons: Mapping[bytes, bytes], /) -> None: ...

    def find(
        self, request_id: str, owner: bytes, /
    ) -> Coroutine[Deferred[Any], Any, tuple[bytes, bytes | None] | None]: ...


class _Attempt(msgspec.Struct, array_like=True):
    model: str
    sent: str
    status: int | None
    failure: str | None
    failed: float | None
    detail: str | None
    started: float | None
    waited: float | None
    probe: bool


class _Record(msgspec.Struct, array_like=True):
    request_id: str
    received: float
    stream: bool
    attempts: list[_Attempt]
    continuations: list[_Attempt]
    omitted: int
    selected: str | None
    status: int
    error: str | None
    outcome: Outcome | None
    first_attempt: float | None
    first_byte: float | None
    ended: float | None
    endpoint: str
    profile: str
    continued_by: str | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode


@attrs.define(eq=False)
class SharedDecisions(RecentDecisions[Explained]):
    """The last decisions of this replica, told to the others once they are over.

    :param records: where.
    :param clock: for the pause between two looks at what is over; there is none while there is nothing to tell.
    """

    records: Records = attrs.field(kw_only=True)
    clock: IReactorTime = attrs.field(kw_only=True)
    _untold: deque[tuple[Explained, bytes]] = attrs.field(init=False, repr=False)
    _due: IDelayedCall | None = attrs.field(default=None, init=False)
    _stopped: bool = attrs.field(default=False, init=False)
    _minute: int = attrs.field(default=0, init=False)
    _reasons: dict[int, tuple[Route, bytes]] = attrs.field(factory=dict, init=False, repr=False)
    """By the identity of a route: itself, and what names its reasons, which this minute has."""

    @_untold.default
    def _empty(self) -> deque[tuple[Explained, bytes]]:
        return deque(maxlen=4 * self.limit)

    def keep(self, decision: Explained, owner: bytes) -> None:
        """Keep one more, and tell the others when it is over."""
        super().keep(decision, owner)
        self._untold.append((decision, owner))
        if self._due is None and not self._stopped:
            self._due = self.clock.callLater(PAUSE, self._tell)

    def stop(self) -> None:
        """Tell nothing more."""
        self._stopped = True
        if self._due is not None:
            self._due.cancel()
            self._due = None

    async def find_elsewhere(self, request_id: str, owner: bytes) -> dict[str, Any] | None:
        """What another replica told of a request of this owner's, as `Decision.as_json` gives it."""
        found = await self.records.find(request_id, owner)
        return None if found is None else unpack(request_id, *found)

    def _tell(self) -> None:
        self._due = None
        try:
            self._tell_some()
        except Exception:  # noqa: BLE001 - reported; what is told to others must not end anything here
            events.failed_unexpectedly(Failure(), "sharing decisions")
        if self._untold:
            self._due = self.clock.callLater(PAUSE, self._tell)

    def _tell_some(self) -> None:
        over = [each for each in self._untold if each[0].record.outcome is not None]
        open_ones = [each for each in self._untold if each[0].record.outcome is None]
        self._untold.clear()
        self._untold.extend(open_ones)
        if not over or not self.records.takes:
            return
        new: dict[bytes, bytes] = {}
        records = {}
        for explained, owner in over[-MAX_AT_ONCE:]:
            name = self.records.name(explained.record.request_id, owner)
            records[name] = self._reasons_of(explained.route, new) + pack(explained)
        self.records.put(records, new)

    def _reasons_of(self, route: Route | None, new: dict[bytes, bytes]) -> bytes:
        """What names a route's reasons; they are added to ``new`` where this minute has not got them yet."""
        if route is None or route.why is None:
            return NO_REASONS
        if self._minute != self.records.minute or len(self._reasons) >= self.limit:
            self._minute = self.records.minute
            self._reasons.clear()
        known = self._reasons.get(id(route))
        if known is not None:
            return known[1]
        if len(new) >= MAX_REASONS:
            return NO_REASONS
        why = route.why().as_json()
        del why["snapshot"]  # each replica counts its own
        name, data = pack_reasons(why)
        new[name] = data
        self._reasons[id(route)] = (route, name)
        return name


def pack(explained: Explained) -> bytes:
    """A finished request's record, without its reasons."""
    record, route = explained.record, explained.route
    # in the order of _Record and _Attempt, which are only read: to make them takes as long as all the rest
    attempts = [_fields(route, attempt) for attempt in record.attempts[:MAX_ATTEMPTS]]
    continuations = [_fields(route, attempt) for attempt in record.continuations[: MAX_ATTEMPTS - len(attempts)]]
    tried = len(record.attempts) + len(record.continuations)
    return _encode(
        (
            record.request_id[:MAX_NAME],
            record.received,
            record.stream,
            attempts,
            continuations,
            max(0, tried - MAX_ATTEMPTS),
            None if record.selected is None else _base(route, record.selected),
            record.status,
            record.error,
            record.outcome,
            record.first_attempt,
            record.first_byte,
            record.ended,
            record.endpoint,
            explained.profile,
            None if record.continued_by is None else _base(route, record.continued_by),
        )
    )


def _fields(route: Route | None, a: AttemptRecord) -> tuple[object, ...]:
    base = _base(route, a.model)
    return base, a.model[:MAX_NAME], a.status, a.failure, a.failed, a.detail, a.started, a.waited, a.probe > 0


def _base(route: Route | None, model: str) -> str:
    return (model if route is None else route.plan.base(model))[:MAX_NAME]


def unpack(request_id: str, data: bytes, reasons: bytes | None) -> dict[str, Any] | None:
    """The whole decision again, as `Decision.as_json` gives it; None where it is none, or another request's."""
    try:
        packed = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if packed.request_id != request_id[:MAX_NAME]:
        return None
    record = RequestRecord(
        request_id,
        packed.received,
        stream=packed.stream,
        attempts=[_attempt(a) for a in packed.attempts],
        continuations=[_attempt(a) for a in packed.continuations],
        selected=packed.selected,
        status=packed.status,
        error=packed.error,
        outcome=packed.outcome,
        first_attempt=packed.first_attempt,
        first_byte=packed.first_byte,
        ended=packed.ended,
        endpoint=packed.endpoint,
        continued_by=packed.continued_by,
    )
    decision = Explained(record, None, packed.profile).decision()
    tried = (*packed.attempts, *packed.continuations)
    views = [attrs.evolve(view, sent=a.sent) for view, a in zip(decision.attempts, tried, strict=True)]
    told = attrs.evolve(decision, attempts=tuple(views)).as_json()
    told["attempts_omitted"] = packed.omitted
    why = None if reasons is None else unpack_reasons(reasons)
    return told if why is None else {**why, **told}


def _attempt(a: _Attempt) -> AttemptRecord:
    return AttemptRecord(a.model, a.status, a.failure, a.failed, a.detail, a.started, a.waited, int(a.probe))
