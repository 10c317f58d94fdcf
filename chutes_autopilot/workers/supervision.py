"""Worker processes: started, heard, started again when they die, and ended in order."""

import json
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, cast

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from chutes_autopilot.workers.channel import Channel
from chutes_autopilot.workers.messages import (
    Begin,
    Drain,
    Go,
    Hurry,
    Lent,
    Message,
    Returned,
    Serving,
    ToParent,
)

CHANNEL = 3
STICKY = 4
"""The descriptors at which a worker finds its channel and the shared memory; its listening sockets follow."""

AGAIN_SECONDS = 0.05
"""How soon a worker that died is started again."""
BACKOFF_FIRST = 0.5
BACKOFF_LONGEST = 30.0
"""How soon where it dies again within LIVED_SECONDS: the first pause, which is then doubled up to the second."""
LIVED_SECONDS = 60.0
STUCK_SECONDS = 60.0
"""How long a worker may take nothing of what it is told before it is killed."""

_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    f"from chutes_autopilot.workers.__main__ import main; main({CHANNEL})"
)


class Boss(Protocol):
    """What the workers serve: the parent's service."""

    def begin(self, number: int, sticky: int, descriptors: tuple[int, ...]) -> Begin:
        """The first message for a worker."""

    def greetings(self) -> list[bytes]:
        """All else that a new worker must know, encoded."""

    def received(self, seat: "Seat", message: Any) -> None:
        """What a worker says."""

    def ended(self, number: int) -> None:
        """A worker is gone."""


@attrs.define(eq=False)
class Seat:
    """The place of one worker, whichever process takes it.

    :param number: from 1.
    :ivar lent_to: who accepts from its sockets while nobody sits here.
    """

    number: int
    process: IProcessTransport | None = None
    channel: Channel | None = None
    serving: bool = False
    ended: Deferred[None] | None = None
    lent_to: "Seat | None" = None
    again: IDelayedCall | None = None
    stuck: IDelayedCall | None = None
    pause: float = 0.0
    started_at: float = 0.0

    def tell(self, message: Message) -> None:
        """Tell whoever sits here."""
        if self.channel is not None:
            self.channel.send(message)


class _Process(ProcessProtocol):
    """One process, as Twisted tells of it."""

    def __init__(self, ended: Callable[[Failure], None], write: Callable[[str], object] | None) -> None:
        self._ended = ended
        self._write = write
        self._line = b""

    def outReceived(self, data: bytes) -> None:
        """Log lines, where they do not go to standard output."""
        whole, newline, self._line = (self._line + data).rpartition(b"\n")
        if self._write is not None and newline:
            self._write((whole + newline).decode("utf-8", "backslashreplace"))

    def processEnded(self, reason: Failure) -> None:
        self._ended(reason)


class Supervisor(Service):
    """Keeps every seat taken, from the start of the service until `drain`.

    :param sticky: the descriptor of the memory in which all workers remember clients.
    :param sockets: of a seat, by its index, the listening sockets in the order of the endpoints; asked when they are
        bound.
    :param write: takes the log lines of workers; None: they write to standard output themselves.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        count: int,
        boss: Boss,
        sticky: int,
        sockets: Callable[[int], tuple[int, ...]],
        write: Callable[[str], object] | None,
    ) -> None:
        self._reactor = reactor
        self._boss = boss
        self._sticky = sticky
        self._sockets = sockets
        self._write = write
        self.seats = tuple(Seat(number) for number in range(1, count + 1))
        self.restarts: Callable[[int], None] = lambda _number: None
        """Told of each worker that is started again."""
        self._draining = False

    @property
    def serving(self) -> tuple[Seat, ...]:
        """The seats whose workers accept connections."""
        return tuple(seat for seat in self.seats if seat.serving)

    def startService(self) -> None:
        """Start all workers, as soon as the reactor runs: before, no end of a process would be noticed."""
        super().startService()
        self._reactor.callWhenRunning(self._start_all)

    def tell_all(self, encoded: bytes) -> None:
        """Tell every worker, those too that do not serve yet."""
        for seat in self.seats:
            if seat.channel is not None:
                seat.channel.send_encoded(encoded)

    async def ask_all(self, question: Callable[[int], Message], but: Seat | None = None) -> list[tuple[int, bytes]]:
        """Ask all who serve, except one; the number of each who has an answer, and the answer."""
        asked = [seat for seat in self.serving if seat is not but and seat.channel is not None]
        answers = await DeferredList([cast(Channel, seat.channel).ask(question) for seat in asked])
        told = zip(asked, answers, strict=True)
        return [(seat.number, answer) for seat, (_, answer) in told if answer is not None]

    async def drain(self) -> None:
        """Have every worker end in order; done when the last one has."""
        self._draining = True
        for seat in self.seats:
            if seat.again is not None and seat.again.active():
                seat.again.cancel()
            if seat.serving:
                seat.tell(Drain())
            else:
                self._kill(seat)
        await DeferredList([seat.ended for seat in self.seats if seat.ended is not None])

    def hurry(self) -> None:
        """Have them wait no longer for answers in flight."""
        for seat in self.seats:
            seat.tell(Hurry())

    def kill(self) -> None:
        """End whoever is left."""
        for seat in self.seats:
            self._kill(seat)

    def _kill(self, seat: Seat) -> None:
        if seat.process is not None:
            with suppress(ProcessExitedAlready):
                seat.process.signalProcess("KILL")

    def _start_all(self) -> None:
        for seat in self.seats:
            self._start(seat)

    def _start(self, seat: Seat) -> None:
        seat.again = None
        if self._draining or not self.running:
            return
        try:
            self._spawn(seat)
        except OSError as error:  # no process or no descriptor is left
            seat.ended = seat.channel = None
            self._log.error(
                "worker {number} cannot be started: {reason}; it is tried again in {pause} s",
                number=seat.number,
                reason=error.strerror,
                pause=BACKOFF_LONGEST,
            )
            seat.again = self._reactor.callLater(BACKOFF_LONGEST, self._start, seat)

    def _spawn(self, seat: Seat) -> None:
        seat.started_at = self._reactor.seconds()
        seat.ended = Deferred()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for each in (ours, theirs):
            each.setblocking(False)
        sockets = self._sockets(seat.number - 1)
        descriptors = tuple(range(STICKY + 1, STICKY + 1 + len(sockets)))
        output: Any = 1 if self._write is None else "r"
        inherited: dict[int, Any] = {0: 0, 1: output, 2: 2, CHANNEL: theirs.fileno(), STICKY: self._sticky}
        inherited |= dict(zip(descriptors, sockets, strict=True))
        seat.channel = channel = Channel(
            ToParent,
            self._reactor,
            lambda message: self._received(seat, channel, message),
            lambda: self._lost(seat, channel),
        )
        channel.full_changed = lambda full: self._full_changed(seat, full)
        factory: Any = Factory.forProtocol(lambda: channel)
        factory.noisy = False
        self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
        ours.close()
        arguments = [sys.executable, "-c", _CODE, json.dumps(sys.path)]
        protocol = _Process(lambda reason: self._ended(seat, reason), self._write)
        try:
            seat.process = self._reactor.spawnProcess(
                protocol, sys.executable, arguments, env=dict(os.environ), childFDs=inherited
            )
        finally:
            theirs.close()
        channel.send(self._boss.begin(seat.number, STICKY, descriptors))
        for encoded in self._boss.greetings():
            channel.send_encoded(encoded)
        channel.send(Go())

    def _received(self, seat: Seat, channel: Channel, message: Any) -> None:
        if seat.channel is not channel:
            return
        if isinstance(message, Serving):
            seat.serving = True
            lender, seat.lent_to = seat.lent_to, None
            if lender is not None:
                lender.tell(Returned(seat.number))
        else:
            self._boss.received(seat, message)

    def _lost(self, seat: Seat, channel: Channel) -> None:
        """A worker that cannot be told anything any more is of no use, should it be alive at all."""
        if seat.stuck is not None:
            seat.stuck.cancel()
            seat.stuck = None
        if seat.channel is channel:
            self._kill(seat)

    def _full_changed(self, seat: Seat, full: bool) -> None:
        if seat.stuck is not None:
            seat.stuck.cancel()
            seat.stuck = None
        if full:
            seat.stuck = self._reactor.callLater(STUCK_SECONDS, self._is_stuck, seat)

    def _is_stuck(self, seat: Seat) -> None:
        seat.stuck = None
        self._log.error("worker {number} hears nothing any more: it is killed", number=seat.number)
        self._kill(seat)

    def _ended(self, seat: Seat, reason: Failure) -> None:
        channel, seat.channel, seat.process, seat.serving = seat.channel, None, None, False
        if channel is not None:
            channel.close()
        self._boss.ended(seat.number)
        ended, seat.ended = seat.ended, None
        if ended is not None:
            ended.callback(None)
        if self._draining:
            return
        lived = self._reactor.seconds() - seat.started_at >= LIVED_SECONDS
        pause = AGAIN_SECONDS if lived or not seat.pause else seat.pause
        seat.pause = BACKOFF_FIRST if lived or not seat.pause else min(BACKOFF_LONGEST, 2 * seat.pause)
        how = "by itself" if reason.check(ProcessDone) else _how(reason.value)
        self._log.warn(
            "worker {number} has ended ({how}); it is started again in {pause} s",
            number=seat.number,
            how=how,
            pause=pause,
        )
        self.restarts(seat.number)
        for left in (seat, *(other for other in self.seats if other.lent_to is seat)):
            self._lend(left)
        seat.again = self._reactor.callLater(pause, self._start, seat)

    def _lend(self, seat: Seat) -> None:
        """Have another worker accept what would wait for this one's; nobody's connection waits for a restart."""
        seat.lent_to = next((other for other in self.serving if other is not seat), None)
        if seat.lent_to is not None and seat.lent_to.channel is not None:
            seat.lent_to.channel.send_descriptors(self._sockets(seat.number - 1), Lent(seat.number))


def _how(error: Any) -> str:
    signal_number = getattr(error, "signal", None)
    return f"signal {signal_number}" if signal_number is not None else f"exit code {getattr(error, 'exitCode', '?')}"
