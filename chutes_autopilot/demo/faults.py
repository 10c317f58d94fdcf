"""Faults on demand, so that a failover can be seen, tested and measured without waiting for a real one."""

from collections.abc import Collection
from enum import StrEnum

from attrs import define, evolve, field, frozen

ANY_MODEL = "*"
FAULT_LIMIT = 256
"""Faults that may wait on a board at once."""
SLOW_GAP = 1.0
"""Seconds between two events of a slow stream, unless the fault says otherwise."""


class FaultKind(StrEnum):
    """What goes wrong, each as the platform or the network in front of it does it."""

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


@frozen
class Fault:
    """One fault that waits for requests.

    :param model: a chute name, or ``*`` for any.
    :param requests: how many requests it still takes; None until cleared.
    :param gap: seconds between two events; only the slow fault heeds it.
    """

    kind: FaultKind
    model: str = ANY_MODEL
    requests: int | None = None
    gap: float = SLOW_GAP


@define(eq=False)
class FaultBoard:
    """The faults that are due, bounded, asked once by each chat request.

    A request takes, of the faults of its own model first and of ``*`` after that, the counted ones in the order in
    which they were added, and where there is none the standing one (``requests`` None). A new standing fault takes the
    place of the model's former one.

    :param models: the names that may be given; a fault for any other could never happen.
    """

    models: Collection[str]
    _waiting: list[Fault] = field(factory=list, init=False)

    def add(self, kind: str, model: str = ANY_MODEL, requests: int | None = None, gap: float = SLOW_GAP) -> Fault:
        """Put up a fault.

        :raises ValueError: naming what was got and what is allowed.
        """
        if kind not in list(FaultKind):
            raise ValueError(f"fault {kind!r} is none of: {', '.join(FaultKind)}")
        if model != ANY_MODEL and model not in self.models:
            raise ValueError(f'model {model!r} is neither "*" nor a name of GET /v1/models')
        if requests is not None and requests < 1:
            raise ValueError(f"requests is {requests}, allowed are whole numbers from 1, and null until cleared")
        if not 0 < gap <= 3600:
            raise ValueError(f"a gap of {gap} s is not in the range above 0 up to 3600 s")
        fault = Fault(FaultKind(kind), model, requests, gap)
        if requests is None:
            self._waiting = [f for f in self._waiting if f.model != model or f.requests is not None]
        if len(self._waiting) >= FAULT_LIMIT:
            raise ValueError(f"{FAULT_LIMIT} faults wait already; clear them first")
        self._waiting.append(fault)
        return fault

    def clear(self) -> None:
        """Take all faults back; requests already at fault stay so."""
        self._waiting.clear()

    def waiting(self) -> tuple[Fault, ...]:
        """The faults still due, in the order in which they were added."""
        return tuple(self._waiting)

    def take(self, model: str) -> Fault | None:
        """The fault that befalls a request for this model now, or None."""
        for name in (model, ANY_MODEL):
            due = [fault for fault in self._waiting if fault.model == name]
            if due:
                fault = min(due, key=lambda fault: fault.requests is None)  # counted before standing, oldest first
                if fault.requests is not None:
                    self._count_down(fault, fault.requests - 1)
                return fault
        return None

    def _count_down(self, fault: Fault, left: int) -> None:
        place = self._waiting.index(fault)
        self._waiting[place : place + 1] = [evolve(fault, requests=left)] if left else []
