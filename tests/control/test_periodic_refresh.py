from collections.abc import Callable

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from chutes_autopilot.control.periodic import PeriodicRefresh


class Work:
    """Notes when each run starts and ends; ``wait`` makes the runs wait for it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.starts: list[float] = []
        self.cancelled = 0
        self.wait: Deferred[None] | None = None
        self.error: Exception | None = None

    async def __call__(self) -> None:
        self.starts.append(self.clock.seconds())
        if self.wait is not None:
            try:
                await self.wait
            except CancelledError:
                self.cancelled += 1
                raise
        if self.error is not None:
            raise self.error


def started(random: Callable[[], float] = lambda: 0.0) -> tuple[Clock, Work, PeriodicRefresh]:
    clock = Clock()
    work = Work(clock)
    return clock, work, PeriodicRefresh(work, 10.0, clock, random)


def test_it_runs_at_once_and_then_every_interval() -> None:
    """The first run comes with the start, the others by the interval."""
    clock, work, service = started()
    assert work.starts == []
    service.startService()
    clock.pump([5.0] * 5)
    assert work.starts == [0.0, 10.0, 20.0]
    service.stopService()


def test_the_interval_varies_by_a_tenth() -> None:
    """Two runs are 9 to 11 seconds apart where 10 were asked for, and the delays do not add up."""
    dice = iter([1.0, 0.0, 0.5, 1.0])
    clock, work, service = started(lambda: next(dice))
    service.startService()
    clock.pump([0.5] * 90)
    assert work.starts == [0.0, 11.0, 20.0, 30.5, 41.0]
    service.stopService()


def test_a_long_run_is_waited_for() -> None:
    """While one run lasts no other begins; the next keeps to the beat."""
    clock, work, service = started()
    work.wait = Deferred()
    service.startService()
    clock.pump([5.0] * 5)
    assert work.starts == [0.0]
    waited, work.wait = work.wait, None
    waited.callback(None)
    clock.pump([5.0] * 2)
    assert work.starts == [0.0, 30.0]
    service.stopService()


def test_a_failure_is_reported_and_the_next_run_comes(logged_errors: object) -> None:
    """An unforeseen error in one run does not end the service."""
    clock, work, service = started()
    work.error = ZeroDivisionError("unforeseen")
    service.startService()
    clock.advance(10.0)
    assert work.starts == [0.0, 10.0]
    assert len(logged_errors.flush(ZeroDivisionError)) == 2  # type: ignore[attr-defined]
    service.stopService()


def test_stopping_cancels_the_run_and_waits_for_its_end() -> None:
    """The run in flight is cancelled, stopService ends only when it has, and nothing is left scheduled."""
    clock, work, service = started()
    closing: Deferred[None] = Deferred()
    work.wait = Deferred(lambda _: None)
    work.wait.addErrback(lambda failure: closing.addCallback(lambda _: failure))
    service.startService()
    stopping = service.stopService()
    assert stopping is not None
    assert not stopping.called
    closing.callback(None)
    assert stopping.called
    assert work.cancelled == 1
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("advance", [0.0, 10.0], ids=["between runs", "in the delay"])
def test_stopping_outside_a_run_leaves_nothing(advance: float) -> None:
    """Stopped between two runs, or in the delay before one, the service does nothing more."""
    clock, work, service = started(lambda: 0.5)
    service.startService()
    clock.advance(advance)
    stopping = service.stopService()
    assert stopping is not None
    assert stopping.called
    assert clock.getDelayedCalls() == []
    assert work.starts == [0.0]


def test_it_starts_again_after_a_stop() -> None:
    """A service that was stopped starts as it did the first time; stopping a stopped one is nothing."""
    clock, work, service = started(lambda: 0.5)
    assert service.stopService() is None
    service.startService()
    service.stopService()
    assert service.stopService() is None
    clock.advance(3.0)
    service.startService()
    assert work.starts == [0.0, 3.0]
    service.stopService()


def test_a_hastened_run_comes_at_once_and_in_between() -> None:
    """It does not move the beat, and comes neither while a run is under way nor again within the time given."""
    clock, work, service = started()
    service.startService()
    clock.advance(4.0)
    service.hasten(5.0)
    assert work.starts == [0.0]
    clock.advance(2.0)
    service.hasten(5.0)
    assert work.starts == [0.0, 6.0]
    clock.advance(4.0)
    assert work.starts == [0.0, 6.0, 10.0]
    work.wait = Deferred()
    clock.advance(10.0)
    service.hasten(0.0)
    assert work.starts == [0.0, 6.0, 10.0, 20.0]
    service.stopService()
    assert not clock.getDelayedCalls()
