"""Hand each ready descriptor to its transport without what Twisted does around every one.

Twisted makes a log context for each, which tells old log messages which transport was at work: nothing here reads it.
And a read, which is nearly all there ever is to do, passes through three functions and as many checks on its way from
the socket to the protocol. Between two looks at the sockets the main loop asks for delayed calls and for threads' calls
twice. Together that costs as much as the kernel's part of relaying a small request.

And what is sent meanwhile goes out at the end of the turn (upstream.direct).
"""

from collections.abc import Callable
from errno import EINTR, EWOULDBLOCK
from os import read
from typing import Any

from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.tcp import Client, Connection, Server
from twisted.python import log

from chutes_autopilot.upstream.direct import SENDS, Sends

_KNOWN = "twisted.internet.epollreactor.EPollReactor"
"""By its name, for it can be imported on Linux only."""

_READABLE = 1
"""EPOLLIN and nothing else."""

_LONGEST = 2147483
"""Seconds that may be waited for at once, as ReactorBase.timeout has it."""

_PLAIN = frozenset({Server, Client})
"""The transports whose doRead is that of Connection, but that each has one of its own until it is connected, and when
it was aborted. (To look for that in the dictionary of a connection would make it have one.)"""


def poll_plainly(reactor: Any) -> bool:
    """Make ``reactor`` do so from its next turn on; False, and nothing changes, where it is no epoll reactor.

    What a descriptor's events mean, and what becomes of exceptions, is as Twisted has it.
    """
    if f"{type(reactor).__module__}.{type(reactor).__name__}" != _KNOWN:
        return False
    sends = Sends()
    sends.turn = 0
    setattr(reactor, SENDS, sends)
    reactor.doIteration = _turn_of(reactor, sends)
    return True


def _turn_of(reactor: Any, sends: Sends) -> Callable[[float | None], None]:
    selectables, do_read_or_write, seconds = reactor._selectables, reactor._doReadOrWrite, reactor.seconds
    poll, read_bytes, flush = reactor._poller.poll, Connection.bufferSize, sends.flush

    def turn(timeout: float | None) -> None:
        while True:
            try:
                ready = poll(-1 if timeout is None else timeout, len(selectables))
            except OSError as error:
                if error.errno == EINTR:
                    return
                raise
            try:
                sends.gathering = True
                sends.turn += 1
                for descriptor, event in ready:
                    selectable = selectables.get(descriptor)
                    if selectable is None:
                        continue  # one before it in this turn has closed it
                    plain = type(selectable) in _PLAIN and selectable.connected and not selectable._aborting
                    if event != _READABLE or not plain:
                        flush()
                        do_read_or_write(selectable, descriptor, event)
                        continue
                    try:
                        data = read(descriptor, read_bytes)
                    except OSError as error:
                        if error.errno != EWOULDBLOCK:
                            flush()
                            reactor._disconnectSelectable(selectable, CONNECTION_LOST, True)
                        continue
                    if not data:
                        flush()
                        reactor._disconnectSelectable(selectable, CONNECTION_DONE, True)
                        continue
                    try:
                        selectable.protocol.dataReceived(data)
                    except BaseException as error:  # noqa: BLE001 - as in posixbase: it costs this transport alone
                        log.err()
                        flush()
                        reactor._disconnectSelectable(selectable, error, False)
            finally:
                sends.gathering = False
                flush()
            if reactor._newTimedCalls or reactor.threadCallQueue or reactor._justStopped or not reactor.running:
                return
            # Nothing else is to be done: to find that out again and again costs as much as relaying an event.
            pending = reactor._pendingTimedCalls
            timeout = min(_LONGEST, pending[0].time - seconds()) if pending else None
            if timeout is not None and timeout <= 0:
                return

    return turn
