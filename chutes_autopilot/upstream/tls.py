"""TLS to upstreams without a turn of the reactor, or an exception, for every write and every read.

Twisted's own TLS transport collects small writes until the reactor's next turn, queues what comes out of them for the
turn after that, and finds out that it has read everything by OpenSSL's saying so, which is an exception in Python.
"""

from typing import Any

from OpenSSL.SSL import Error, WantReadError, ZeroReturnError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.tcp import Connection
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from chutes_autopilot.upstream.direct import Write, best_write, queue

RECORD_BYTES = 16384
"""The most a TLS record may hold (RFC 8446 section 5.1)."""

_HEADER_BYTES = 5
_MOST_OVERHEAD = 512
"""More than header, padding and authentication add to a record."""


@implementer(IStreamClientEndpoint)
class TLSEndpoint:
    """Connects to where ``plain`` does, and speaks TLS there."""

    def __init__(self, options: IOpenSSLClientConnectionCreator, plain: IStreamClientEndpoint) -> None:
        self._options = options
        self._plain = plain

    def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
        """Fires with the protocol that ``factory`` made, before the handshake."""
        secured = TLSMemoryBIOFactory(self._options, True, factory)
        secured.protocol = DirectTLS
        connected: Deferred[Any] = self._plain.connect(secured)
        return connected.addCallback(lambda tls: tls.wrappedProtocol)


class Records:
    """Counts the TLS records that end in what is received: each gives `recv` bytes once at most."""

    __slots__ = ("_header", "_missing")

    def __init__(self) -> None:
        self._header = b""
        self._missing = 0

    def ended(self, data: bytes) -> int:
        """How many records end in the next bytes of the connection."""
        count, at, end = 0, self._missing, len(data)
        if at:
            if at > end:
                self._missing = at - end
                return 0
            count = 1
        elif self._header:
            kept, self._header = self._header, b""
            return self.ended(kept + data)
        while end - at >= _HEADER_BYTES:
            at += _HEADER_BYTES + (data[at + 3] << 8 | data[at + 4])
            if at <= end:
                count += 1
        self._missing = max(0, at - end)
        self._header = data[at:]
        return count


class DirectTLS(TLSMemoryBIOProtocol):
    """Twisted's TLS over a memory BIO, but that writes go out at once and reads end with the last record that came.

    The handshake, closing, errors and everything unusual stay Twisted's.
    """

    _send: Write = staticmethod(queue)

    def makeConnection(self, transport: Any) -> None:
        self._records = Records()
        self._send = best_write(transport)
        if isinstance(transport, Connection):
            transport.protocol = self  # not the endpoint's wrapper: one call less a read
        super().makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        ended = self._records.ended(data)
        if not self._handshakeDone or self._appSendBuffer or self._lostTLSConnection:
            super().dataReceived(data)
            return
        connection = self._tlsConnection
        connection.bio_write(data)
        pieces: list[bytes] = []
        more, broken = False, None
        try:
            for _ in range(ended):
                pieces.append(connection.recv(RECORD_BYTES))
        except (WantReadError, ZeroReturnError):
            more = True  # a record that was not the application's: an answer to it may have to be sent
        except Error:
            broken = Failure()
        if pieces and not self._aborted:
            self.wrappedProtocol.dataReceived(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if broken is not None:
            self._tlsShutdownFinished(broken)
        elif more:
            self._flushReceiveBIO()

    def _write(self, data: bytes) -> None:
        if not self._handshakeDone or self._appSendBuffer or self._lostTLSConnection:
            super()._write(data)
            return
        connection, at = self._tlsConnection, 0
        try:
            while at < len(data):
                at += connection.send(data[at : at + RECORD_BYTES])
        except Error:
            self._flushSendBIO()
            super()._write(data[at:])  # meets the same error, and knows what to do
        else:
            self._flushSendBIO(len(data) + (len(data) // RECORD_BYTES + 1) * _MOST_OVERHEAD)

    def _flushSendBIO(self, size: int = 2 * RECORD_BYTES) -> None:
        try:
            data = self._tlsConnection.bio_read(size)
        except WantReadError:
            return
        self._send(self.transport, data)
