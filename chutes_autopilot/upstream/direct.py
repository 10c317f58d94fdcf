"""Send at once what one write can carry, instead of waiting for the reactor to find the socket writable."""

from typing import Any, Protocol

from twisted.internet.tcp import Connection


class Write(Protocol):
    """Gives bytes to a transport."""

    def __call__(self, transport: Any, data: bytes) -> None: ...


def send_now(transport: Any, data: bytes) -> None:
    """Write to a plain TCP transport, directly to the socket where nothing is waiting before it.

    Twisted's ``write`` only queues: the socket is registered, waited for, written to and unregistered again, four
    system calls about one. Where the transport's own buffer is empty the bytes may as well go out now; what the
    kernel does not take, and every error, is left to ``write``, so buffering, back-pressure and the report of a lost
    connection stay Twisted's. Not for TLS, whose bytes are not the socket's, and not for transports that are closing.
    """
    if (
        not transport.dataBuffer
        and not transport._tempDataBuffer
        and transport.connected
        and not transport.disconnecting
        and not transport._writeDisconnecting
        and not transport._writeDisconnected
    ):
        try:
            sent = transport.socket.send(data)
        except OSError:
            sent = 0
        if sent == len(data):
            return
        data = data[sent:]
    transport.write(data)


def queue(transport: Any, data: bytes) -> None:
    """Write in Twisted's own way."""
    transport.write(data)


def best_write(transport: Any) -> Write:
    """`send_now` where the transport is Twisted's own plain connection, else `queue`."""
    return send_now if isinstance(transport, Connection) and not transport.TLS else queue
