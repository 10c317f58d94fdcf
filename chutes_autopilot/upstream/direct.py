"""Send at once what one write can carry, instead of waiting for the reactor to find the socket writable.

And what is sent in one turn of the reactor together, at its end. A peer that waits is woken by the first byte, which
takes the kernel longer than sending does; while it is awake, the next ones find it so.
"""

from array import array
from contextlib import suppress
from fcntl import ioctl
from math import nan
from socket import MSG_DONTWAIT, MSG_PEEK
from termios import TIOCOUTQ
from typing import Any, Protocol

from twisted.internet.tcp import Connection
from twisted.logger import Logger

_log = Logger()

TOGETHER = 32
"""Sends that wait for one another at most, so that none waits long."""


class Write(Protocol):
    """Gives bytes to a transport."""

    def __call__(self, transport: Any, data: bytes) -> None: ...


class Sends:
    """What goes to plain TCP transports, gathered while a turn of the reactor lasts.

    Twisted's ``write`` only queues: the socket is registered, waited for, written to and unregistered again, four
    system calls about one. Where the transport's own buffer is empty the bytes may as well go out now, or when the turn
    is over; until then they are in that buffer, so whatever else is done to the transport finds them in their order.
    What the kernel does not take, and every error, is left to ``write``, so buffering, back-pressure and the report of
    a lost connection stay Twisted's. Not for TLS, whose bytes are not the socket's, and not for transports that are
    closing.
    """

    def __init__(self) -> None:
        self.gathering = False
        """Whether a turn is under way, which ends with `flush`."""
        self.turn = nan
        """Its number, or that of the last one. Where nobody counts them it is equal to none.

        What a turn finds to be readable was there before anything that is sent in it.
        """
        self._waiting: list[Any] = []
        self.write: Write = self.send
        """`send`, made once for all who write so."""

    def send(self, transport: Any, data: bytes) -> None:
        """Write to a transport, for which nothing waits as a rule."""
        if transport.dataBuffer or transport._tempDataBuffer:
            transport.write(data)
        elif self.gathering:
            transport._tempDataBuffer.append(data)
            transport._tempDataLen += len(data)
            waiting = self._waiting
            waiting.append(transport)
            if len(waiting) >= TOGETHER:
                self.flush()
        elif transport.disconnecting or transport._writeDisconnecting or transport._writeDisconnected:
            transport.write(data)
        elif transport.connected and not transport._aborting:
            _send(transport, data)

    def flush(self) -> None:
        """Send what was gathered."""
        waiting = self._waiting
        if not waiting:
            return
        self._waiting = []
        for transport in waiting:
            try:
                buffered = transport._tempDataBuffer
                if (
                    len(buffered) != 1
                    or transport.dataBuffer
                    or not transport.connected
                    or transport.disconnecting
                    or transport._aborting
                ):
                    _flush(transport)
                    continue
                data = buffered.pop()  # nearly always; what follows is `_send`, without its call
                transport._tempDataLen = 0
                try:
                    sent = transport.socket.send(data)
                except OSError:
                    sent = 0
                if sent < len(data):
                    transport.write(data[sent:])
            except Exception:  # noqa: BLE001 - it costs this transport alone, as in a turn
                _log.failure("sending to a connection")
                transport.abortConnection()


def _flush(transport: Any) -> None:
    buffered = transport._tempDataBuffer
    if transport._aborting:
        buffered.clear()
        return
    if transport.dataBuffer or not buffered:
        return  # the reactor writes it, or has done so
    if transport.disconnecting or (transport._writeDisconnecting and not transport._writeDisconnected):
        if transport.connected:
            transport.startWriting()  # closes when all is written
        return
    data = buffered[0] if len(buffered) == 1 else b"".join(buffered)
    buffered.clear()
    transport._tempDataLen = 0
    if transport.connected and not transport._writeDisconnected:
        _send(transport, data)


def _send(transport: Any, data: bytes) -> None:
    """Give the kernel what it takes, and the rest to the transport."""
    try:
        sent = transport.socket.send(data)
    except OSError:
        sent = 0
    if sent < len(data):
        transport.write(data[sent:])


def queue(transport: Any, data: bytes) -> None:
    """Write in Twisted's own way."""
    transport.write(data)


def best_write(transport: Any) -> Write:
    """That of `Sends` where the transport is Twisted's own plain connection, else `queue`.

    The sends are its reactor's, where that gathers them (polling).
    """
    if not isinstance(transport, Connection) or transport.TLS:
        return queue
    return sends_to(transport).write


def sends_to(transport: Any) -> Sends:
    """What gathers the sends of a transport's reactor, or gathers none."""
    sends: Sends = getattr(getattr(transport, "reactor", None), SENDS, None) or Sends()
    return sends


def is_readable(transport: Any) -> bool:
    """Whether the kernel has something for a transport of Twisted's, or its end, that was not read yet."""
    if not isinstance(transport, Connection):
        return False
    try:
        transport.socket.recv(1, MSG_PEEK | MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        pass  # it is broken, which the next look at it tells
    return True


def unsent_bytes(transport: Any) -> int:
    """What a transport of Twisted's has yet to give to the kernel; a TLS transport answers for the one below it."""
    return len(transport.dataBuffer) - int(transport.offset) + int(transport._tempDataLen)


def untaken_bytes(transport: Any) -> int:
    """What was written to a transport of Twisted's and has not arrived, as far as its system tells."""
    waiting = array("i", [0])
    with suppress(OSError):
        ioctl(transport.socket, TIOCOUTQ, waiting)
    return unsent_bytes(transport) + waiting[0]


SENDS = "chutes_autopilot_sends"
"""The reactor's attribute that has them."""
