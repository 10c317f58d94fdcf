"""Connections opened before anybody asks: what a request waits for here is above all a TLS handshake."""

from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime

AHEAD = 2
"""How many idle connections are wanted."""

PAUSE_SECONDS = 30.0
"""How long no connection is opened ahead after one failed, or was closed by the upstream before it was used."""


class Prewarming:
    """Opens connections ahead for one backend, in reply to demand only: it has no timer of its own.

    The pool says when there was demand: a request found no idle connection, or one that had carried a request grew
    too old. A connection that was opened ahead and not used is not replaced, so an idle service ends without any.

    :param open_ahead: opens one and keeps it idle; then one of its arguments is called, for success and failure.
    :param idle: how many idle connections there are.
    """

    def __init__(
        self,
        clock: IReactorTime,
        open_ahead: Callable[[Callable[[], None], Callable[[], None]], None],
        idle: Callable[[], int],
    ) -> None:
        self._clock = clock
        self._open_ahead = open_ahead
        self._idle = idle
        self._under_way = 0
        self._not_before = clock.seconds()

    def top_up(self) -> None:
        """Open what is missing, unless that has just failed."""
        if self._clock.seconds() >= self._not_before:
            missing = AHEAD - self._idle() - self._under_way
            self._under_way += max(0, missing)
            for _ in range(missing):
                self._open_ahead(self._opened, self._failed)

    def pause(self) -> None:
        """The upstream does not want it: wait before the next ones."""
        self._not_before = self._clock.seconds() + PAUSE_SECONDS

    def _opened(self) -> None:
        self._under_way -= 1

    def _failed(self) -> None:
        self._under_way -= 1
        self.pause()


class PrewarmingService(Service):
    """Opens the first connections ahead, when everything else has started.

    :param prewarm: begins it; `ConnectionPool.prewarm` for some backend.
    """

    def __init__(self, clock: IReactorTime, prewarm: Callable[[], None]) -> None:
        self._clock = clock
        self._prewarm = prewarm
        self._call: IDelayedCall | None = None

    def startService(self) -> None:
        super().startService()
        self._call = self._clock.callLater(0, self._prewarm)

    def stopService(self) -> None:
        super().stopService()
        if self._call is not None and self._call.active():
            self._call.cancel()
