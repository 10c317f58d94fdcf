"""Long computations without a thread and without holding up the traffic."""

from typing import TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from chutes_autopilot.policy.feed_json import Sliced

T = TypeVar("T")


async def in_slices(clock: IReactorTime, work: Sliced[T]) -> T:
    """Run a sliced computation with one turn of the reactor between two slices, and return its result.

    Cancelling stops it between two slices. (twisted.internet.task.Cooperator would run slices for 10 ms on end, and
    hand over neither result nor failure in the way ``await`` wants it.)
    """
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: T = done.value
            return result
        await deferLater(clock, 0)
