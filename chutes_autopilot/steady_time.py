"""Time that goes on evenly, whatever is done to the machine's clock.

A reactor counts by that clock: where it is set back by an hour nothing that was to be done later is done for an hour,
no poll and no deadline, and every age stands still. So the reactor is given seconds that begin as Unix time and are
then counted by a clock that nobody can set. It is told where the two part: what these seconds date is then off.
"""

import time
from collections.abc import Callable
from typing import Any

LOOK_SECONDS = 10.0
"""How often the clock is looked at."""

STEP_SECONDS = 60.0
"""How far it must have been set to be told: what NTP corrects while a service runs is far less."""


def suspended() -> float:
    """Seconds for which this machine has been suspended since it began: the clock that nobody can set leaves them out.

    The same in all processes; 0 where the system does not tell.
    """
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def keep_steady(
    reactor: Any,
    told: Callable[[float], object],
    begun: float | None = None,
    *,
    unix_time: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
    suspended: Callable[[], float] = suspended,
) -> None:
    """Let a reactor's seconds go on evenly from now on, before anything takes note of what they were.

    :param told: how many seconds the machine's clock is ahead, below 0 behind, each time it was set.
    :param begun: `time_begun` of another process on this machine, whose seconds these are to be.
    """
    asleep = suspended()
    if begun is None:
        begun = unix_time() - monotonic() - asleep
    offset, last_told = begun + asleep, 0.0

    def seconds() -> float:
        return offset + monotonic()

    def look() -> None:
        nonlocal asleep, offset, last_told
        if (now_asleep := suspended()) - asleep > 1:  # less is the time between reading two clocks
            asleep, offset = now_asleep, begun + now_asleep
        ahead = unix_time() - seconds()
        if abs(ahead - last_told) >= STEP_SECONDS:
            last_told = ahead
            told(ahead)
        reactor.callLater(LOOK_SECONDS, look)

    reactor.seconds, reactor.time_begun, reactor.unix_time = seconds, begun, unix_time
    reactor.callLater(LOOK_SECONDS, look)


def unix_time_of(reactor: Any) -> Callable[[], float]:
    """Unix time as the machine's clock has it, for what is dated by others: certificates, and what they are good for.

    A reactor whose seconds are not kept steady tells it itself.
    """
    found: Callable[[], float] = getattr(reactor, "unix_time", reactor.seconds)
    return found


def time_begun(reactor: Any) -> float | None:
    """When this machine began by the seconds of a reactor, Unix time; None where they are not kept steady."""
    return getattr(reactor, "time_begun", None)
