"""One process that is a worker, or a spare that may become one: how it is started, told, heard and ended."""

import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from chutes_autopilot.steady_time import time_begun
from chutes_autopilot.workers.channel import Channel
from chutes_autopilot.workers.messages import Drain, Draining, Message, ToParent

CHANNEL = 3
"""The descriptor at which a worker finds its channel; all others come over that."""

CHECKED_SECONDS = 2.0
"""How often workers are asked what they have counted: one that is killed takes no more than that along."""

STUCK_CHECKS = 30
"""So often in a row it may be found to have said nothing before it is killed. They are counted, as a clock would also
count the time for which the whole machine stood still."""

LAST_SECONDS = 3.0
"""How long one that ends in order may go on without its channel, for its last lines of the log, before it is killed."""

_CODE = (
    "import json, sys; sys.path[:], *given = json.loads(sys.argv[1]); "
    f"from chutes_autopilot.workers.__main__ import main; main({CHANNEL}, *given)"
)


def _ignore(_said: object) -> None:
    pass


@attrs.define(eq=False)
class WorkerProcess:
    """One process, from its start to its end.

    :ivar name: for the log.
    :ivar received: told of what it says.
    :ivar gone: told once how it ended.
    :ivar ended: fires after that.
    """

    _reactor: Any
    name: str = "a spare worker"
    received: Callable[[Any], None] = _ignore
    gone: Callable[[str], None] = _ignore
    ended: Deferred[None] = attrs.field(factory=Deferred, init=False)
    channel: Channel = attrs.field(init=False)
    transport: IProcessTransport | None = attrs.field(default=None, init=False)
    _silent: int = attrs.field(default=0, init=False)
    _ending: bool = attrs.field(default=False, init=False)
    _last_moment: IDelayedCall | None = attrs.field(default=None, init=False)
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self.channel = Channel(ToParent, self._reactor, self._says, self._lost)

    def tell(self, message: Message) -> None:
        """Tell it; nothing is done where it is gone."""
        self._ending = self._ending or isinstance(message, Drain)
        self.channel.send(message)

    def check(self) -> None:
        """Kill it where it has said nothing for too long; to be called whenever it is asked something, no oftener."""
        self._silent = 0 if self.channel.spoke else self._silent + 1
        self.channel.spoke = False
        if self._silent == STUCK_CHECKS:
            self._log.error("{name} answers nothing any more: it is killed", name=self.name)
            self.kill()

    def kill(self) -> None:
        """End it, whatever it does."""
        if self.transport is not None:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess("KILL")

    def process_ended(self, reason: Failure) -> None:
        """It is gone, as Twisted tells it."""
        self.transport = None
        if self._last_moment is not None and self._last_moment.active():
            self._last_moment.cancel()
        self.channel.close()
        self.gone("by itself" if reason.check(ProcessDone) else _how(reason.value))
        self.ended.callback(None)

    def _says(self, message: Any) -> None:
        self._ending = self._ending or isinstance(message, Draining)
        self.received(message)

    def _lost(self) -> None:
        """One that cannot be told anything any more is of no use, should it be alive at all; if it is about to end,
        its channel is merely the first to go."""
        if not self._ending:
            self.kill()
        elif self.transport is not None:
            self._last_moment = self._reactor.callLater(LAST_SECONDS, self.kill)


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


def start_process(reactor: Any, write: Callable[[str], object] | None, ahead: Sequence[str]) -> WorkerProcess:
    """Start one, which says Ready and then waits to be told what it is.

    :param write: takes its log lines; None: it writes to standard output itself.
    :param ahead: modules that it loads before that, beside those that every worker needs.
    :raises OSError: no process or no descriptor is left.
    """
    process = WorkerProcess(reactor)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        for each in (ours, theirs):
            each.setblocking(False)
        output: Any = 1 if write is None else "r"
        factory: Any = Factory.forProtocol(lambda: process.channel)
        factory.noisy = False
        reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
        process.transport = reactor.spawnProcess(
            _Process(process.process_ended, write),
            sys.executable,
            [sys.executable, "-c", _CODE, json.dumps([sys.path, list(ahead), time_begun(reactor)])],
            env=dict(os.environ),
            childFDs={0: 0, 1: output, 2: 2, CHANNEL: theirs.fileno()},
        )
    except OSError:
        process.channel.close()
        raise
    finally:
        ours.close()
        theirs.close()
    return process


def _how(error: Any) -> str:
    signal_number = getattr(error, "signal", None)
    return f"signal {signal_number}" if signal_number is not None else f"exit code {getattr(error, 'exitCode', '?')}"
