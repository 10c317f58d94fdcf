"""Worker processes: started, heard, replaced when they die, and ended in order.

To load a worker's modules takes most of a second. So one process more than there are seats, the spare, has loaded them
and waits; whoever dies is followed by it at once, and another spare is started when everybody serves again. One
that drains by itself leaves its seat in the same way, and ends when its answers have.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import attrs
from twisted.application.service import Service
from twisted.internet.defer import DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from chutes_autopilot.workers.channel import encoded
from chutes_autopilot.workers.messages import (
    Begin,
    Drain,
    Draining,
    Go,
    Hurry,
    Lent,
    Message,
    Ready,
    Returned,
    Serving,
    Strength,
)
from chutes_autopilot.workers.processes import WorkerProcess

BACKOFF_FIRST = 0.5
BACKOFF_LONGEST = 30.0
"""A worker that died is replaced at once; one that dies again within LIVED_SECONDS after the first pause, which is then
doubled up to the second."""
LIVED_SECONDS = 60.0

HOPELESS = 3
"""So often every seat's worker must have died, before any has ever served, for the service to be given up."""


class Boss(Protocol):
    """What the workers serve: the parent's service."""

    def begin(self, number: int) -> Begin:
        """The first message for a worker."""

    def greetings(self) -> list[bytes]:
        """All else that a new worker must know, encoded."""

    def received(self, worker: WorkerProcess, message: Any) -> None:
        """What a worker says."""

    def ended(self, worker: WorkerProcess) -> None:
        """It is gone."""


@attrs.define(eq=False)
class Seat:
    """The place of one worker, whichever process takes it.

    :param number: from 1.
    :ivar lent_to: who accepts from its sockets while nobody serves here.
    :ivar pause: how long it stays empty where the next one dies soon.
    :ivar empty_since: when the last one died, until the next one serves.
    :ivar deaths: how many have died here.
    """

    number: int
    process: WorkerProcess | None = None
    serving: bool = False
    lent_to: WorkerProcess | None = None
    again: IDelayedCall | None = None
    pause: float = 0.0
    started_at: float = 0.0
    empty_since: float | None = None
    deaths: int = 0

    def tell(self, message: Message) -> None:
        """Tell whoever sits here."""
        if self.process is not None:
            self.process.tell(message)


class Supervisor(Service):
    """Keeps every seat taken, from the start of the service until `drain`.

    :param start: starts a process (workers.processes.start_process).
    :param sticky: the descriptor of the memory in which all workers remember clients.
    :param sockets: of a seat, by its index, the listening sockets in the order of the endpoints, to be sent; asked
        when they are bound. It raises OSError where no descriptor is left.
    :ivar spare: the process that takes the next empty seat.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        count: int,
        boss: Boss,
        start: Callable[[], WorkerProcess],
        sticky: int,
        sockets: Callable[[int], tuple[int, ...]],
    ) -> None:
        self._reactor = reactor
        self._boss = boss
        self._start_process = start
        self._sticky = sticky
        self._sockets = sockets
        self.seats = tuple(Seat(number) for number in range(1, count + 1))
        self.spare: WorkerProcess | None = None
        self.restarts: Callable[[int], None] = lambda _number: None
        """Told of each worker that is replaced."""
        self.hopeless: Callable[[], None] = lambda: None
        """Called where no worker has ever served and each has died HOPELESS times."""
        self._ever_served = False
        self._leaving: list[WorkerProcess] = []
        self._spare_again: IDelayedCall | None = None
        self._draining = False

    @property
    def serving(self) -> tuple[Seat, ...]:
        """The seats whose workers accept connections."""
        return tuple(seat for seat in self.seats if seat.serving)

    @property
    def workers(self) -> list[WorkerProcess]:
        """All there are, those too that do not serve yet or do no more."""
        return [seat.process for seat in self.seats if seat.process is not None] + self._leaving

    @property
    def answering(self) -> list[WorkerProcess]:
        """Those who serve or did."""
        return [seat.process for seat in self.serving if seat.process is not None] + self._leaving

    def startService(self) -> None:
        """Start all workers, as soon as the reactor runs: before, no end of a process would be noticed."""
        super().startService()
        self._reactor.callWhenRunning(self._start_all)

    def tell_all(self, encoded: bytes, but: WorkerProcess | None = None) -> None:
        """Tell every worker except one."""
        for worker in self.workers:
            if worker is not but:
                worker.channel.send_encoded(encoded)

    async def drain(self) -> None:
        """Have every worker end in order; done when the last one has."""
        self._draining = True
        for seat in self.seats:
            _cancel(seat.again)
            if seat.serving:
                seat.tell(Drain())
            elif seat.process is not None:
                seat.process.kill()
        _cancel(self._spare_again)
        if self.spare is not None:
            self.spare.kill()
        await DeferredList([each.ended for each in self._processes()])

    def hurry(self) -> None:
        """Have them wait no longer for answers in flight."""
        for worker in self.workers:
            worker.tell(Hurry())

    def kill(self) -> None:
        """End whoever is left."""
        for each in self._processes():
            each.kill()

    def _processes(self) -> list[WorkerProcess]:
        return self.workers + ([] if self.spare is None else [self.spare])

    def _start_all(self) -> None:
        for seat in self.seats:
            self._start(seat)

    def _start(self, seat: Seat) -> None:
        """Have the spare, or a new process, take a seat."""
        seat.again = None
        if self._draining or not self.running:
            return
        try:
            sockets = self._sockets(seat.number - 1)
            process, self.spare = self.spare or self._start_process(), None
        except OSError as error:  # no process or no descriptor is left
            self._log.error(
                "worker {number} cannot be started: {reason}; it is tried again in {pause} s",
                number=seat.number,
                reason=error.strerror,
                pause=BACKOFF_LONGEST,
            )
            seat.again = self._reactor.callLater(BACKOFF_LONGEST, self._start, seat)
            self._lend()
            return
        seat.process, seat.started_at = process, self._reactor.seconds()
        process.name = f"worker {seat.number}"
        process.received = partial(self._received, seat, process)
        process.gone = partial(self._ended, seat, process)
        process.channel.send_descriptors((self._sticky, *sockets), self._boss.begin(seat.number))
        for greeting in self._boss.greetings():
            process.channel.send_encoded(greeting)
        process.tell(Go())

    def _start_spare(self) -> None:
        self._spare_again = None
        if self._draining or self.spare is not None:
            return
        try:
            self.spare = process = self._start_process()
        except OSError as error:
            self._log.error("no spare worker can be started: {reason}", reason=error.strerror)
            self._start_spare_later()
            return
        process.received = self._spare_says
        process.gone = self._spare_ended

    def _start_spare_later(self) -> None:
        self._spare_again = self._reactor.callLater(BACKOFF_LONGEST, self._start_spare)

    def _spare_says(self, message: Any) -> None:
        if isinstance(message, Ready):
            self._log.info("a spare worker waits")

    def _spare_ended(self, how: str) -> None:
        self.spare = None
        if not self._draining:
            self._log.warn("the spare worker has ended ({how})", how=how)
            self._start_spare_later()

    def _received(self, seat: Seat, process: WorkerProcess, message: Any) -> None:
        match message:
            case Serving():
                self._serves(seat)
            case Draining():
                self._leaves(seat, process)
            case Ready():
                pass
            case _:
                self._boss.received(process, message)

    def _serves(self, seat: Seat) -> None:
        seat.serving = self._ever_served = True
        lender, seat.lent_to = seat.lent_to, None
        if lender is not None:
            lender.tell(Returned(seat.number))
        self._lend()
        if seat.empty_since is not None:
            seconds = round(self._reactor.seconds() - seat.empty_since, 3)
            seat.empty_since = None
            self._log.info("worker {number} is back after {seconds} s", number=seat.number, seconds=seconds)
        self._tell_strength()
        if len(self.serving) == len(self.seats) and self._spare_again is None:
            self._start_spare()

    def _leaves(self, seat: Seat, process: WorkerProcess) -> None:
        """It accepts no more, so somebody else has to at once; how long its answers take is not known.

        The next one is not started at once: where all are told to stop, the parent will hear of it as well.
        """
        if self._draining:
            return
        self._leaving.append(process)
        process.received = partial(self._boss.received, process)
        process.gone = partial(self._left, process)
        self._vacated(seat, "drains", BACKOFF_FIRST)

    def _left(self, process: WorkerProcess, _how: str) -> None:
        self._leaving.remove(process)
        self._boss.ended(process)
        self._log.info("{name}, which drained, has ended", name=process.name)

    def _ended(self, seat: Seat, process: WorkerProcess, how: str) -> None:
        seat.process = None  # nothing more is told to it
        self._boss.ended(process)
        seat.deaths += 1
        if not self._ever_served and not self._draining and all(each.deaths >= HOPELESS for each in self.seats):
            self._log.critical("no worker has ever served, the last one has ended ({how}): the service ends", how=how)
            self._draining = True
            self.hopeless()
            return
        self._vacated(seat, f"has ended ({how})")

    def _vacated(self, seat: Seat, why: str, least: float = 0.0) -> None:
        """Nobody serves in a seat any more: have others accept for it, and start the next one.

        :param least: seconds that it stays empty in any case.
        """
        served, seat.process, seat.serving = seat.serving, None, False
        if self._draining:
            return
        now = self._reactor.seconds()
        if seat.empty_since is None:
            seat.empty_since = now
        lived = now - seat.started_at >= LIVED_SECONDS
        pause = max(least, 0.0 if lived else seat.pause)
        seat.pause = min(BACKOFF_LONGEST, 2 * pause) if pause else BACKOFF_FIRST
        when = f"in {pause} s" if pause else "at once"
        self._log.warn("worker {number} {why}; it is started again {when}", number=seat.number, why=why, when=when)
        self.restarts(seat.number)
        if served:
            self._tell_strength()
        self._lend()
        if pause:
            seat.again = self._reactor.callLater(pause, self._start, seat)
        else:
            self._start(seat)

    def _tell_strength(self) -> None:
        self.tell_all(encoded(Strength(len(self.serving))))

    def _lend(self) -> None:
        """Have somebody who serves accept for every seat where nobody does; no connection waits for a restart."""
        serving = [seat.process for seat in self.serving if seat.process is not None]
        if not serving or self._draining:
            return
        for seat in self.seats:
            if seat.serving or seat.lent_to in serving:
                continue
            seat.lent_to = None
            try:
                sockets = self._sockets(seat.number - 1)
            except OSError as error:
                self._log.error(
                    "nobody accepts for worker {number}: {reason}", number=seat.number, reason=error.strerror
                )
                continue
            seat.lent_to = serving[0]
            serving[0].channel.send_descriptors(sockets, Lent(seat.number))


def _cancel(call: IDelayedCall | None) -> None:
    if call is not None and call.active():
        call.cancel()
