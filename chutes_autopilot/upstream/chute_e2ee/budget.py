"""How often the API may be asked for instances: few calls in each minute of the clock, shared by all chutes."""

from collections.abc import Callable

from attrs import frozen

MINUTE = 60.0
MAX_MINUTES = 4
MAX_RETRY_AFTER = 3600.0
_JITTER = 2.0


@frozen
class Turn:
    """Which of a minute's calls are this process's, where several on one machine share a limit.

    They take turns at every single call, and go on in the next minute where they stopped in the last: together they
    keep the limit, however many they are, and nobody has to ask anybody.

    :param number: of this process, from 0.
    :param of: how many there are.
    """

    number: int = 0
    of: int = 1

    def calls(self, minute: int, rpm: int) -> int:
        """How many calls of the minute are this process's.

        :param minute: of the clock.
        :param rpm: how many all together may make in one.
        """
        first = minute * rpm
        return (first + rpm - 1 - self.number) // self.of - (first - 1 - self.number) // self.of


ALONE = Turn()


class DiscoveryBudget:
    """Counts calls by minutes of the clock, as the API's limit does, and stands still after a 429.

    The limit is shared with everybody else who uses the API, so a 429 may come although the budget was kept.

    :param rpm: calls in one minute, of all that share the limit in turns.
    :param random: evenly distributed in [0, 1).
    :ivar most: the most calls that one minute has for this process.
    """

    def __init__(self, rpm: int, random: Callable[[], float], turn: Turn = ALONE) -> None:
        self.most = -(-rpm // turn.of)
        self._rpm = rpm
        self._turn = turn
        self._random = random
        self._minute = -1
        self._spent = 0
        self._refused = 0
        self._closed_until = 0.0

    def next_at(self, now: float) -> float:
        """The Unix time at which a call may be made; ``now`` where that is at once."""
        soonest = max(now, self._closed_until)
        minute = int(soonest // MINUTE)
        spent = self._spent if minute == self._minute else 0
        while self._turn.calls(minute, self._rpm) <= spent:
            minute, spent = minute + 1, 0
        return max(soonest, minute * MINUTE)

    def spend(self, now: float) -> None:
        """A call is made."""
        minute = int(now // MINUTE)
        if minute != self._minute:
            self._minute, self._spent = minute, 0
        self._spent += 1

    def limited(self, now: float, retry_after: float | None) -> None:
        """The API answered 429: no call before the next minute, then twice as many minutes, at most MAX_MINUTES."""
        minutes = min(2**self._refused, MAX_MINUTES)
        self._refused = min(self._refused + 1, MAX_MINUTES)
        until = (now // MINUTE + minutes) * MINUTE
        until = max(until, now + min(retry_after or 0.0, MAX_RETRY_AFTER))
        self._closed_until = max(self._closed_until, until + _JITTER * self._random())

    def answered(self) -> None:
        """The API answered something else: the next 429 counts as the first."""
        self._refused = 0
