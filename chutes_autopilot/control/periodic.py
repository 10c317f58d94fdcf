"""Work that is done again and again for as long as the service runs, whatever becomes of it each time."""

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

JITTER = 0.1
"""How far the time between two runs may differ from the interval, as a share of it."""


class PeriodicRefresh(Service):
    """Runs ``work`` at the start and then about every ``interval`` seconds, never twice at once.

    A run that takes longer than the interval is waited for. A run that fails is reported, and the next one comes in
    its turn. Stopping cancels the run in flight and waits for its end.

    :param interval: seconds.
    :param random: evenly distributed in [0, 1), such as ``random.random``.
    """

    _log = Logger()

    def __init__(
        self,
        work: Callable[[], Coroutine[Deferred[Any], Any, None]],
        interval: float,
        clock: IReactorTime,
        random: Callable[[], float],
    ) -> None:
        self._work = work
        self._interval = interval
        self._clock = clock
        self._random = random
        self._loop: LoopingCall | None = None
        self._loop_ended: Deferred[None] | None = None
        self._run: Deferred[None] | None = None
        self._extra: Deferred[None] | None = None
        self._working = False
        self._ended_at = 0.0

    def hasten(self, not_within: float) -> None:
        """Do the work once more now, as somebody knows that it is out of date.

        :param not_within: seconds since the last time in which that would be too much; a run under way is enough.
        """
        if self.running and not self._working and self._clock.seconds() - self._ended_at >= not_within:
            self._extra = Deferred.fromCoroutine(self._run_once(0.0))

    def startService(self) -> None:
        super().startService()
        self._run = None
        self._loop = LoopingCall(self._start_run)
        self._loop.clock = self._clock
        self._loop_ended = self._loop.start(self._interval, now=True).addCallback(lambda _: None)

    def stopService(self) -> Deferred[None] | None:
        super().stopService()
        if self._loop is None or not self._loop.running:
            return None
        self._loop.stop()
        for run in (self._run, self._extra):
            if run is not None:
                run.cancel()
        return self._loop_ended

    def _start_run(self) -> Deferred[None]:
        # The loop beats exactly, and every run but the first starts up to JITTER late: so the time between
        # two runs varies by that much to either side and the delays never add up. (Changing the loop's
        # interval would not do: it counts its beats from its start, by the interval of the moment.)
        delay = 0.0 if self._run is None else self._interval * JITTER * self._random()
        self._run = Deferred.fromCoroutine(self._run_once(delay))
        return self._run

    async def _run_once(self, delay: float) -> None:
        # nothing may get out of here: a LoopingCall ends for good at the first failure
        try:
            if delay:
                await deferLater(self._clock, delay)
            if self._working:
                return  # hastened a moment ago
            self._working = True
            try:
                await self._work()
            finally:
                self._working = False
                self._ended_at = self._clock.seconds()
        except CancelledError:
            pass  # by stopService, which waits for this end
        except Exception:  # noqa: BLE001 - reported, see above
            self._log.failure("A refresh failed unexpectedly; the next one comes in its turn")
