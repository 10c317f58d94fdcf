"""Faults on demand, so that a failover can be seen, tested and measured without waiting for a real one."""

from collections.abc import Collection
from enum import Enum, StrEnum, auto

from attrs import define, evolve, field, frozen

ANY_MODEL = "*"
FAULT_LIMIT = 256
"""Faults that may wait on a board at once."""
SLOW_GAP = 1.0
"""Seconds between two events of a slow stream, unless the fault says otherwise."""
MAX_AFTER = 1_000_000


class Occasion(Enum):
    """The requests that a fault can befall."""

    CHAT = auto()
    """In clear, streaming or not."""
    STREAM = auto()
    """Sealed, for a stream."""
    WHOLE = auto()
    """Sealed, for one whole answer."""
    DISCOVERY = auto()
    EVIDENCE = auto()


class FaultKind(StrEnum):
    """What goes wrong, each as the platform or the network in front of it does it.

    The first ones befall chat requests in clear and sealed ones alike.
    """

    NO_INSTANCES = "503"
    CAPACITY = "429"
    EDGE_LIMIT = "429_edge"
    NO_INFRASTRUCTURE = "500"
    BAD_AUTHORIZATION = "401"
    SILENT_HEAD = "silent_head"
    SILENT_BODY = "silent_body"
    EMPTY = "empty"
    CUT = "cut"
    CUT_BEFORE_BODY = "cut_before_body"
    SLOW = "slow"
    RESET = "reset"
    GARBAGE = "garbage"
    ERROR_TAIL = "error_tail"
    ERROR_EVENT_FIRST = "error_event_first"

    # sealed requests: refused
    NONCES_EXPIRED = "nonces_expired"
    FORBIDDEN = "forbidden"
    QUOTA = "quota"
    INSTANCE_FULL = "instance_full"
    INSTANCE_MISSING = "instance_missing"
    INSTANCE_INACTIVE = "instance_inactive"
    INSTANCE_MOVED = "instance_moved"
    CHUTE_MISSING = "chute_missing"
    CHUTE_DISABLED = "chute_disabled"
    STREAM_ONLY = "stream_only"
    UNPROCESSABLE = "unprocessable"
    CONTENT_REFUSED = "content_refused"
    KEY_EXCHANGE = "key_exchange"
    INSTANCE_FAILED = "instance_failed"
    RELAY_FAILED = "relay_failed"
    # sealed answers of both forms
    BAD_TAG = "bad_tag"
    SHORT_BLOB = "short_blob"
    INNER_GARBAGE = "inner_garbage"
    TINY_WRITES = "tiny_writes"
    # sealed streams
    STALL = "stall"
    RECORDS_SWAPPED = "records_swapped"
    RECORD_REPEATED = "record_repeated"
    RECORD_DROPPED = "record_dropped"
    RECORD_BEFORE_INIT = "record_before_init"
    TRUNCATED = "truncated"
    NO_INIT = "no_init"
    SECOND_INIT = "second_init"
    FORGED_USAGE = "forged_usage"
    CLEAR_ERROR = "clear_error"
    CLEAR_DONE = "clear_done"
    GARBAGE_LINE = "garbage_line"
    # sealed whole answers
    GZIP_BOMB = "gzip_bomb"
    GZIP_CUT = "gzip_cut"
    SECOND_GZIP_MEMBER = "second_gzip_member"
    JSON_ENVELOPE = "json_envelope"
    # discovery
    DISCOVERY_LIMITED = "discovery_429"
    DISCOVERY_FAILED = "discovery_500"
    DISCOVERY_SILENT = "discovery_silent"
    DISCOVERY_GARBAGE = "discovery_garbage"
    DISCOVERY_BAD_INSTANCE = "discovery_bad_instance"
    NO_LIVE_INSTANCES = "no_instances"
    KEY_CHANGE = "key_change"
    # evidence
    EVIDENCE_LIMITED = "evidence_429"
    EVIDENCE_TOO_OLD = "evidence_too_old"
    EVIDENCE_SILENT = "evidence_silent"
    EVIDENCE_FAILED = "evidence_failed"
    EVIDENCE_KEY = "evidence_key"
    EVIDENCE_NONCE = "evidence_nonce"
    EVIDENCE_CERTIFICATE = "evidence_certificate"
    EVIDENCE_DEBUG = "evidence_debug"
    EVIDENCE_MEASUREMENT = "evidence_measurement"
    EVIDENCE_SIGNATURE = "evidence_signature"
    EVIDENCE_ENCLAVE = "evidence_enclave"
    EVIDENCE_ROOT = "evidence_root"
    EVIDENCE_EXPIRED = "evidence_expired"
    # chat requests in clear alone
    CONTEXT_LENGTH = "context_length"
    CONTENT_FILTER = "content_filter"
    SLOW_START = "slow_start"
    MALFORMED_EVENT = "malformed_event"
    NO_DONE = "no_done"
    FROZEN = "frozen"
    PINGS = "pings"


def _from_to(first: FaultKind, last: FaultKind) -> frozenset[FaultKind]:
    kinds = list(FaultKind)
    return frozenset(kinds[kinds.index(first) : kinds.index(last) + 1])


_BOTH_FORMS = _from_to(FaultKind.NO_INSTANCES, FaultKind.TINY_WRITES) - {FaultKind.STREAM_ONLY}
BEFALLS = {
    Occasion.CHAT: _from_to(FaultKind.NO_INSTANCES, FaultKind.ERROR_EVENT_FIRST)
    | _from_to(FaultKind.CONTEXT_LENGTH, FaultKind.PINGS),
    Occasion.STREAM: _BOTH_FORMS | _from_to(FaultKind.STALL, FaultKind.GARBAGE_LINE),
    Occasion.WHOLE: _BOTH_FORMS | _from_to(FaultKind.GZIP_BOMB, FaultKind.JSON_ENVELOPE) | {FaultKind.STREAM_ONLY},
    Occasion.DISCOVERY: _from_to(FaultKind.DISCOVERY_LIMITED, FaultKind.KEY_CHANGE),
    Occasion.EVIDENCE: _from_to(FaultKind.EVIDENCE_LIMITED, FaultKind.EVIDENCE_EXPIRED),
}
"""What can befall what: a fault waits for a request that it fits."""
PLACED = (BEFALLS[Occasion.STREAM] - BEFALLS[Occasion.CHAT] - BEFALLS[Occasion.WHOLE]) - {
    FaultKind.NO_INIT,
    FaultKind.RECORD_BEFORE_INIT,
} | {FaultKind.BAD_TAG, FaultKind.INNER_GARBAGE}
"""The faults that strike at one event of a sealed stream, which may be asked for."""
PACED = frozenset({FaultKind.SLOW, FaultKind.SLOW_START, FaultKind.PINGS})
"""The faults that have a pace, which may be asked for."""


@frozen
class Fault:
    """One fault that waits for requests.

    :param model: a chute name, or ``*`` for any.
    :param requests: how many requests it still takes; None until cleared.
    :param gap: seconds; only the faults in PACED heed it: between two events, between two comments, and for the slow
        start until the first token.
    :param after: events of a sealed stream that come whole before it strikes; only the faults in PLACED heed it.
    """

    kind: FaultKind
    model: str = ANY_MODEL
    requests: int | None = None
    gap: float = SLOW_GAP
    after: int = 0

    def shares_an_occasion_with(self, other: "Fault") -> bool:
        """Whether there are requests that both can befall."""
        return any(self.kind in kinds and other.kind in kinds for kinds in BEFALLS.values())


@define(eq=False)
class FaultBoard:
    """The faults that are due, bounded, asked once by each request that a fault can befall.

    A request takes, of the faults of its own model first and of ``*`` after that, the counted ones in the order in
    which they were added, and where there is none the standing one (``requests`` None). A new standing fault takes the
    place of the model's former one, if there are requests that both can befall.

    :param models: the names that may be given; a fault for any other could never happen.
    """

    models: Collection[str]
    _waiting: list[Fault] = field(factory=list, init=False)

    def add(
        self,
        kind: str,
        model: str = ANY_MODEL,
        requests: int | None = None,
        gap: float = SLOW_GAP,
        after: int = 0,
    ) -> Fault:
        """Put up a fault.

        :raises ValueError: naming what was got and what is allowed.
        """
        if kind not in list(FaultKind):
            raise ValueError(f"fault {kind!r} is none of: {', '.join(FaultKind)}")
        if model != ANY_MODEL and model not in self.models:
            raise ValueError(f'model {model!r} is neither "*" nor a name of GET /v1/models or of an embedding chute')
        if requests is not None and requests < 1:
            raise ValueError(f"requests is {requests}, allowed are whole numbers from 1, and null until cleared")
        if not 0 < gap <= 3600:
            raise ValueError(f"a gap of {gap} s is not in the range above 0 up to 3600 s")
        if not 0 <= after <= MAX_AFTER:
            raise ValueError(f"after is {after}, allowed are whole numbers from 0 to {MAX_AFTER}")
        fault = Fault(FaultKind(kind), model, requests, gap, after)
        if requests is None:
            self._waiting = [
                other
                for other in self._waiting
                if other.model != model or other.requests is not None or not other.shares_an_occasion_with(fault)
            ]
        if len(self._waiting) >= FAULT_LIMIT:
            raise ValueError(f"{FAULT_LIMIT} faults wait already; clear them first")
        self._waiting.append(fault)
        return fault

    def clear(self, model: str | None = None) -> None:
        """Take all faults back, or those of one model; requests already at fault stay so."""
        self._waiting = [fault for fault in self._waiting if model is not None and fault.model != model]

    def waiting(self) -> tuple[Fault, ...]:
        """The faults still due, in the order in which they were added."""
        return tuple(self._waiting)

    def take(self, model: str, occasion: Occasion = Occasion.CHAT) -> Fault | None:
        """The fault that befalls such a request for this model now, or None."""
        for name in (model, ANY_MODEL):
            due = [fault for fault in self._waiting if fault.model == name and fault.kind in BEFALLS[occasion]]
            if due:
                fault = min(due, key=lambda fault: fault.requests is None)  # counted before standing, oldest first
                if fault.requests is not None:
                    self._count_down(fault, fault.requests - 1)
                return fault
        return None

    def _count_down(self, fault: Fault, left: int) -> None:
        place = self._waiting.index(fault)
        self._waiting[place : place + 1] = [evolve(fault, requests=left)] if left else []
