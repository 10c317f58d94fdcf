"""Deadlines by the thousand: one delayed call for each duration in use, not one for each deadline.

Nearly every deadline is called off long before it passes. The reactor's own delayed calls are made for few, and
cost as much as relaying an event; here starting and cancelling are one dictionary operation each.
"""

from collections import OrderedDict
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Deadline:
    """One deadline that has begun; `cancel` calls it off, harmlessly also when it has passed."""

    __slots__ = ("_queue", "expired", "expires")

    def __init__(self, queue: "_Queue", expires: float, expired: Callable[[], None]) -> None:
        self._queue = queue
        self.expires = expires
        self.expired = expired

    def cancel(self) -> None:
        """It will not be told that it passed."""
        self._queue.waiting.pop(self, None)

    def restart(self, seconds: float) -> bool:
        """Begin anew; False where it has passed, was called off, or is of another duration."""
        queue = self._queue
        if queue.seconds != seconds or self not in queue.waiting:
            return False
        self.expires = queue.now() + seconds
        queue.waiting.move_to_end(self)
        return True


class Deadlines:
    """Starts deadlines.

    Each duration has a queue: within it, what began first passes first, so only the oldest needs a delayed call.
    That call stays when its deadline is called off and then finds the next one that is due.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._queues: dict[float, _Queue] = {}

    def now(self) -> float:
        """The clock's seconds."""
        return self._clock.seconds()

    def start(self, seconds: float, expired: Callable[[], None]) -> Deadline:
        """Call ``expired`` in ``seconds`` from now, unless the result is cancelled before."""
        queue = self._queues.get(seconds)
        if queue is None:
            queue = self._queues[seconds] = _Queue(self._clock, seconds)
        return queue.add(expired)

    def stop(self) -> None:
        """Forget every deadline; for the end of the service."""
        for queue in self._queues.values():
            queue.stop()
        self._queues.clear()


class _Queue:
    """The deadlines of one duration, oldest first."""

    def __init__(self, clock: IReactorTime, seconds: float) -> None:
        self._clock = clock
        self.now = clock.seconds
        self.seconds = seconds
        self._call: IDelayedCall | None = None
        self.waiting: OrderedDict[Deadline, None] = OrderedDict()

    def add(self, expired: Callable[[], None]) -> Deadline:
        deadline = Deadline(self, self.now() + self.seconds, expired)
        self.waiting[deadline] = None
        if self._call is None:
            self._call = self._clock.callLater(self.seconds, self._sweep)
        return deadline

    def stop(self) -> None:
        self.waiting.clear()
        if self._call is not None and self._call.active():
            self._call.cancel()
            self._call = None

    def _sweep(self) -> None:
        # _call is set meanwhile, so that a deadline started by one that passed makes no delayed call of its own
        now = self._clock.seconds()
        try:
            while self.waiting and (oldest := next(iter(self.waiting))).expires <= now:
                del self.waiting[oldest]
                oldest.expired()
        finally:
            self._call = None
            if self.waiting:
                due = next(iter(self.waiting)).expires - now
                self._call = self._clock.callLater(max(0.0, due), self._sweep)
