"""Deadlines by the thousand: one delayed call for each duration in use, not one for each deadline.

Nearly every deadline is called off long before it passes. The reactor's own delayed calls are made for few, and
cost as much as relaying an event; here starting and cancelling are a few assignments each.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Deadline:
    """One deadline that has begun.

    Whoever has cancelled it forgets it: it is then given out anew. Cancelling one that has passed does no harm.
    """

    __slots__ = ("_queue", "expired", "expires", "waits")

    def __init__(self, queue: "_Queue") -> None:
        self._queue = queue
        self.expires = 0.0
        self.expired: Callable[[], None] | None = None
        """Called when it passes; None: it was called off, or has passed."""
        self.waits = False
        """Whether its queue will look at it."""

    def cancel(self) -> None:
        """It will not be told that it passed."""
        if self.expired is not None:
            self.expired = None
            self._queue.free.append(self)

    def restart(self, seconds: float) -> bool:
        """Begin anew; False where it has passed, or is of another duration."""
        queue = self._queue
        if queue.seconds != seconds or self.expired is None:
            return False
        self.expires = queue.now() + seconds
        return True


class Deadlines:
    """Starts deadlines.

    Each duration has a queue. A deadline takes its place in it once, stays there when it is called off or begun anew,
    and is given out again to the next who needs one: it is looked at when its first time is over, and then finds its
    new place. So a queue holds no more of them than there were at once, and is touched once in a duration rather than
    with each request.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._queues: dict[float, _Queue] = {}
        self.now: Callable[[], float] = clock.seconds
        """The clock's seconds."""

    def start(self, seconds: float, expired: Callable[[], None], now: float | None = None) -> Deadline:
        """Call ``expired`` in ``seconds`` from now, unless the result is cancelled before.

        :param now: the clock's seconds, where the caller has just read them.
        """
        queue = self._queues.get(seconds)
        if queue is None:
            queue = self._queues[seconds] = _Queue(self._clock, seconds)
        free = queue.free
        deadline = free.pop() if free else Deadline(queue)
        deadline.expires = (self.now() if now is None else now) + seconds
        deadline.expired = expired
        if not deadline.waits:
            queue.add(deadline)
        return deadline

    def stop(self) -> None:
        """Forget every deadline; for the end of the service."""
        for queue in self._queues.values():
            queue.stop()
        self._queues.clear()


class _Queue:
    """The deadlines of one duration, by the time at which each is looked at."""

    def __init__(self, clock: IReactorTime, seconds: float) -> None:
        self._clock = clock
        self.now = clock.seconds
        self.seconds = seconds
        self.free: list[Deadline] = []
        self._call: IDelayedCall | None = None
        self._places: list[tuple[float, int, Deadline]] = []
        self._number = count()

    def add(self, deadline: Deadline) -> None:
        """Look at a deadline when its time is over."""
        deadline.waits = True
        heappush(self._places, (deadline.expires, next(self._number), deadline))
        if self._call is None:
            self._call = self._clock.callLater(self.seconds, self._sweep)

    def stop(self) -> None:
        self._places.clear()
        if self._call is not None and self._call.active():
            self._call.cancel()
            self._call = None

    def _sweep(self) -> None:
        # _call is set meanwhile, so that a deadline started by one that passed makes no delayed call of its own
        now = self._clock.seconds()
        places = self._places
        try:
            while places and places[0][0] <= now:
                deadline = heappop(places)[2]
                deadline.waits = False
                expired = deadline.expired
                if expired is None:
                    continue
                if deadline.expires > now:
                    self.add(deadline)
                else:
                    deadline.expired = None
                    expired()
        finally:
            self._call = None
            if places:
                self._call = self._clock.callLater(max(0.0, places[0][0] - now), self._sweep)
