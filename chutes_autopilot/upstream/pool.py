"""Keep-alive connections to upstreams: opened under one deadline, reused last-in first-out, bounded.

Not `twisted.web.client.HTTPConnectionPool`: that one keeps two connections a host, hides when a connection is
made and when a request was sent, and may pool a connection that is paused or being torn down.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any
from urllib.parse import urlsplit

import attrs
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

from chutes_autopilot.upstream.connection import UpstreamConnection
from chutes_autopilot.upstream.tls import TLSEndpoint

ATTEMPT_DELAY = 0.1
"""Seconds between two addresses of a name, and until the last refusal is reported (RFC 8305 section 5 allows 0.1)."""


@attrs.frozen
class Backend:
    """Where requests go: an origin and the path prefix in front of every target (no slash at its end)."""

    secure: bool
    hostname: str
    port: int
    prefix: bytes = b""
    host_header: bytes = attrs.field(init=False, eq=False)
    """The Host field: the default port of the scheme is left out, IPv6 is bracketed (RFC 9110 section 7.2)."""

    @host_header.default
    def _host_header(self) -> bytes:
        name = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return (name if self.port == (443 if self.secure else 80) else f"{name}:{self.port}").encode()


def backend_from_url(url: str) -> Backend:
    """The backend of an http or https URL that the settings have already checked."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    return Backend(secure, parts.hostname or "", parts.port or (443 if secure else 80), parts.path.rstrip("/").encode())


def endpoints_for(reactor: IReactorTime, trust_root: Any) -> Callable[[Backend], IStreamClientEndpoint]:
    """How a backend is reached: happy eyeballs over its addresses, certificate and name checked under TLS."""

    @cache  # a TLS context reads the whole certificate store: once a backend, not once a connection
    def endpoint(backend: Backend) -> IStreamClientEndpoint:
        plain: IStreamClientEndpoint
        if isIPAddress(backend.hostname):
            plain = TCP4ClientEndpoint(reactor, backend.hostname, backend.port)
        elif isIPv6Address(backend.hostname):
            plain = TCP6ClientEndpoint(reactor, backend.hostname, backend.port)
        else:
            plain = HostnameEndpoint(reactor, backend.hostname, backend.port, attemptDelay=ATTEMPT_DELAY)
        if not backend.secure:
            return plain
        options = optionsForClientTLS(backend.hostname, trustRoot=trust_root, acceptableProtocols=[b"http/1.1"])
        return TLSEndpoint(options, plain)

    return endpoint


@attrs.define(eq=False)
class ConnectionPool:
    """All connections to upstreams; a connection is either in use by one request or idle here.

    :param connect_timeout: seconds from the name look-up to the end of the handshake.
    :param idle_timeout: seconds an idle connection is kept; shorter than what servers usually allow, so that
        few requests meet a connection the upstream is just closing.
    :param max_idle: idle connections kept; the oldest are closed first.
    """

    clock: IReactorTime
    endpoint_for: Callable[[Backend], IStreamClientEndpoint]
    connect_timeout: float
    idle_timeout: float = 30.0
    max_idle: int = 256
    _idle: list[tuple[UpstreamConnection, Backend, float]] = attrs.field(factory=list, init=False)
    _open: set[UpstreamConnection] = attrs.field(factory=set, init=False)
    _sweep: IDelayedCall | None = attrs.field(default=None, init=False)
    _openings: set["_Opening"] = attrs.field(factory=set, init=False)
    _closed: Deferred[None] | None = attrs.field(default=None, init=False)

    def take_idle(self, backend: Backend) -> UpstreamConnection | None:
        """The most recently used idle connection to ``backend``, which is then the caller's."""
        idle = self._idle
        if idle and idle[-1][1] is backend:
            return idle.pop()[0]
        for index in range(len(idle) - 1, -1, -1):
            connection, its_backend, _ = idle[index]
            if its_backend == backend:
                del idle[index]
                return connection
        return None

    def connect(
        self, backend: Backend, opened: Callable[[UpstreamConnection], None], failed: Callable[[], None]
    ) -> Callable[[], None]:
        """Open a connection; exactly one of ``opened`` and ``failed`` is called, unless the result is called first.

        The result cancels: neither is called any more and what was begun is closed.
        """
        opening = _Opening(self, backend, opened, failed)
        if self._closed is None:
            opening.start()
        else:
            failed()
        return opening.cancel

    @property
    def idle_count(self) -> int:
        """How many connections wait for a request."""
        return len(self._idle)

    def close(self) -> Deferred[None]:
        """Abort every connection, also those in use and those being opened; fires when the last one is gone."""
        closed = self._closed = Deferred()
        self._idle.clear()
        self._stop_sweeping()
        for opening in list(self._openings):
            opening.fail()
        for connection in list(self._open):
            connection.close()
        if not self._open and not closed.called:
            closed.callback(None)
        return closed

    def opening(self, opening: "_Opening") -> None:
        """A connection is being opened."""
        self._openings.add(opening)

    def opening_settled(self, opening: "_Opening") -> None:
        """It was opened, failed or was called off."""
        self._openings.discard(opening)

    def made(self, connection: UpstreamConnection) -> None:
        """A transport is connected; the pool answers for it until `lost`."""
        self._open.add(connection)

    def released(self, backend: Backend, connection: UpstreamConnection) -> None:
        """A connection ended a response cleanly and can carry another request."""
        if self._closed is not None:
            connection.abort()
            return
        self._idle.append((connection, backend, self.clock.seconds() + self.idle_timeout))
        if len(self._idle) > self.max_idle:
            self._idle.pop(0)[0].abort()
        if self._sweep is None:
            self._sweep = self.clock.callLater(self.idle_timeout, self._close_expired)

    def lost(self, connection: UpstreamConnection) -> None:
        """A connection is gone."""
        self._open.discard(connection)
        self._idle = [entry for entry in self._idle if entry[0] is not connection]
        if not self._idle:
            self._stop_sweeping()
        if self._closed is not None and not self._open and not self._closed.called:
            self._closed.callback(None)

    def _stop_sweeping(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _close_expired(self) -> None:
        self._sweep = None
        now = self.clock.seconds()
        expired = [entry for entry in self._idle if entry[2] <= now]
        self._idle = [entry for entry in self._idle if entry[2] > now]
        for connection, _, _ in expired:
            connection.abort()
        if self._idle:
            self._sweep = self.clock.callLater(self._idle[0][2] - now, self._close_expired)


class _Opening:
    """One connection on its way from the name look-up to the end of the handshake, under one deadline."""

    def __init__(
        self,
        pool: ConnectionPool,
        backend: Backend,
        opened: Callable[[UpstreamConnection], None],
        failed: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._backend = backend
        self._opened = opened
        self._failed = failed
        self._connected: list[UpstreamConnection] = []  # happy eyeballs may connect to two addresses
        self._connecting: Deferred[Any] | None = None
        self._deadline: IDelayedCall | None = None
        self._settled = False

    def start(self) -> None:
        self._pool.opening(self)
        self._deadline = self._pool.clock.callLater(self._pool.connect_timeout, self.fail)
        factory = Factory.forProtocol(self._build)
        factory.noisy = False
        try:
            connecting = self._pool.endpoint_for(self._backend).connect(factory)
        except Exception:  # noqa: BLE001 - whatever an endpoint refuses is a connection that was not made
            self.fail()
            return
        self._connecting = connecting.addErrback(self._refused)

    def cancel(self) -> None:
        """Give up without a word to anybody."""
        if self._settle():
            self._drop()

    def _build(self) -> UpstreamConnection:
        return UpstreamConnection(
            secure=self._backend.secure,
            made=self._made,
            opened=self._usable,
            idle=partial(self._pool.released, self._backend),
            lost=self._gone,
        )

    def _made(self, connection: UpstreamConnection) -> None:
        self._connected.append(connection)
        self._pool.made(connection)

    def _settle(self) -> bool:
        """Whether this is the first of usable, failed and cancelled."""
        if self._settled:
            return False
        self._settled = True
        self._pool.opening_settled(self)
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        return True

    def _usable(self, connection: UpstreamConnection) -> None:
        if not self._settle():
            connection.abort()
            return
        self._connected.remove(connection)
        for slower in self._connected:
            slower.abort()
        opened = self._opened
        # this object lives as long as its connection: it must not keep the first request alive with it
        del self._opened, self._failed
        opened(connection)

    def _gone(self, connection: UpstreamConnection) -> None:
        self._pool.lost(connection)
        if connection in self._connected:
            self._connected.remove(connection)
            if not self._connected:
                self.fail()

    def _refused(self, failure: Failure) -> None:
        failure.trap(Exception, CancelledError)
        self.fail()

    def fail(self) -> None:
        """Give up and say so, unless it is settled already."""
        if self._settle():
            self._drop()
            self._failed()

    def _drop(self) -> None:
        for connection in self._connected:
            connection.abort()
        if self._connecting is not None:
            self._connecting.cancel()
