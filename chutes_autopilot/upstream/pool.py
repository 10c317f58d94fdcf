"""Keep-alive connections to upstreams: opened under one deadline, reused last-in first-out, bounded.

Not `twisted.web.client.HTTPConnectionPool`: that one keeps two connections a host, hides when a connection is
made and when a request was sent, and may pool a connection that is paused or being torn down.
"""

import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any
from urllib.parse import urlsplit

import attrs
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint

from chutes_autopilot.upstream.certificates import ClientTLS
from chutes_autopilot.upstream.connection import UpstreamConnection
from chutes_autopilot.upstream.opening import Opening
from chutes_autopilot.upstream.prewarming import Prewarming
from chutes_autopilot.upstream.resolver import NO_TIMEOUT, RememberedHost
from chutes_autopilot.upstream.tls import TLSEndpoint

ATTEMPT_DELAY = 0.1
"""Seconds between two addresses of a name, and until the last refusal is reported (RFC 8305 section 5 allows 0.1)."""

MAX_IDLE = 256
"""Idle connections kept to all backends together."""


def open_limit(max_inflight: int) -> int:
    """How many connections a pool may have open for so many requests at once.

    Each request uses one at a time; the rest are idle ones and those on their way to or from use.
    """
    return max_inflight + MAX_IDLE


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
            plain = TCP4ClientEndpoint(reactor, backend.hostname, backend.port, NO_TIMEOUT)
        elif isIPv6Address(backend.hostname):
            plain = TCP6ClientEndpoint(reactor, backend.hostname, backend.port, NO_TIMEOUT)
        else:
            plain = RememberedHost(reactor, backend.hostname, backend.port, ATTEMPT_DELAY)
        if not backend.secure:
            return plain
        return TLSEndpoint(ClientTLS(backend.hostname, trust_root, [b"http/1.1"]), plain)

    return endpoint


class _Origin:
    """The usable connections to one backend."""

    __slots__ = ("backend", "idle_until", "pool", "prewarming")

    def __init__(self, pool: "ConnectionPool", backend: Backend) -> None:
        self.pool = pool
        self.backend = backend
        self.idle_until: list[tuple[UpstreamConnection, float]] = []  # the soonest first
        self.prewarming: Prewarming | None = None

    def made(self, connection: UpstreamConnection) -> None:
        raise AssertionError("it was made before it was usable")

    opened = made

    def idle(self, connection: UpstreamConnection) -> None:
        self.pool.released(self, connection)

    def spoiled(self, connection: UpstreamConnection) -> None:
        self.pool.withdraw(self, connection)

    def lost(self, connection: UpstreamConnection) -> None:
        self.pool.lost(connection)


@attrs.define(eq=False)
class ConnectionPool:
    """All connections to upstreams; a connection is either in use by one request or idle here.

    Each backend has a stack of its own: the connection used last is used next. Backends come from the settings, so
    they are few, and are never forgotten.

    Where ``max_open`` connections are open, whoever wants another one waits for room within the connect deadline;
    idle ones are closed to make it, and none is kept meanwhile.

    :param connect_timeout: seconds from the wish for a connection to the end of the handshake.
    :param idle_timeout: seconds an idle connection is kept; shorter than what servers usually allow, so that
        few requests meet a connection the upstream is just closing.
    :param max_idle: idle connections kept to all backends together; the oldest are closed first.
    :param max_open: connections to all backends together, those being opened included.
    """

    clock: IReactorTime
    endpoint_for: Callable[[Backend], IStreamClientEndpoint]
    connect_timeout: float
    idle_timeout: float = 30.0
    max_idle: int = MAX_IDLE
    max_open: int = sys.maxsize
    idle_count: int = attrs.field(default=0, init=False)
    _origins: list[_Origin] = attrs.field(factory=list, init=False)
    _open: dict[UpstreamConnection, _Origin] = attrs.field(factory=dict, init=False)
    _openings: set[Opening] = attrs.field(factory=set, init=False)
    _dialling: set[Opening] = attrs.field(factory=set, init=False)  # without a connection so far
    _waiting: dict[Opening, None] = attrs.field(factory=dict, init=False)  # for room, the longest first
    _sweep: IDelayedCall | None = attrs.field(default=None, init=False)
    _closed: Deferred[None] | None = attrs.field(default=None, init=False)

    def take_idle(self, backend: Backend) -> UpstreamConnection | None:
        """The most recently used idle connection to ``backend``, which is then the caller's."""
        for origin in self._origins:
            if origin.backend is backend or origin.backend == backend:
                if not origin.idle_until:
                    return None
                self.idle_count -= 1
                return origin.idle_until.pop()[0]
        return None

    def connect(
        self, backend: Backend, opened: Callable[[UpstreamConnection], None], failed: Callable[[], None]
    ) -> Callable[[], None]:
        """Open a connection; exactly one of ``opened`` and ``failed`` is called, unless the result is called first.

        The result cancels: neither is called any more and what was begun is closed.
        """
        return self.begin(backend, opened, failed).cancel

    def begin(
        self, backend: Backend, opened: Callable[[UpstreamConnection], None], failed: Callable[[], None]
    ) -> Opening:
        """The same for whoever wants to know why it failed."""
        opening = Opening(self, backend, opened, failed)
        if self._closed is not None:
            failed()
            return opening
        self._start(opening)
        prewarming = self._origin(backend).prewarming
        if prewarming is not None:
            prewarming.top_up()
        return opening

    def prewarm(self, backend: Backend) -> None:
        """Open connections to ``backend`` ahead, now and whenever there is demand; see `Prewarming`.

        Only where there is a handshake to be saved: without TLS nothing is opened ahead.
        """
        origin = self._origin(backend)
        if backend.secure and origin.prewarming is None:
            origin.prewarming = Prewarming(
                self.clock, partial(self._open_ahead, backend), lambda: len(origin.idle_until)
            )
            origin.prewarming.top_up()

    def close(self) -> Deferred[None]:
        """Abort every connection, also those in use and those being opened; fires when the last one is gone."""
        closed = self._closed = Deferred()
        for origin in self._origins:
            origin.idle_until.clear()
        self.idle_count = 0
        self._stop_sweeping()
        for opening in list(self._openings):
            opening.fail()
        for connection in list(self._open):
            connection.close()
        if not self._open and not closed.called:
            closed.callback(None)
        return closed

    def made(self, connection: UpstreamConnection, opening: Opening) -> None:
        """A transport is connected; the pool answers for it until `lost`."""
        self._dialling.discard(opening)
        self._open[connection] = self._origin(opening.backend)

    def settled(self, opening: Opening) -> None:
        """It was opened, failed or was called off."""
        self._openings.discard(opening)
        self._dialling.discard(opening)
        self._waiting.pop(opening, None)
        self._dial_waiting()

    def hold(self, connection: UpstreamConnection) -> None:
        """A connection can carry requests: from now on the pool alone answers for it."""
        connection.holder = self._open[connection]

    def released(self, origin: _Origin, connection: UpstreamConnection) -> None:
        """A connection ended a response cleanly and can carry another request."""
        if self._closed is not None or self._waiting:
            connection.abort()
            return
        origin.idle_until.append((connection, self.clock.seconds() + self.idle_timeout))
        self.idle_count = idle_count = self.idle_count + 1
        if idle_count > self.max_idle:
            self._close_oldest()
        if self._sweep is None:
            self._sweep = self.clock.callLater(self.idle_timeout, self._close_expired)

    def withdraw(self, origin: _Origin, connection: UpstreamConnection) -> bool:
        """Give a connection to nobody any more; whether it was idle."""
        for index, (idle, _) in enumerate(origin.idle_until):
            if idle is connection:
                del origin.idle_until[index]
                self.idle_count -= 1
                return True
        return False

    def lost(self, connection: UpstreamConnection) -> None:
        """A connection is gone."""
        origin = self._open.pop(connection)
        if self.withdraw(origin, connection) and connection.silent and origin.prewarming is not None:
            origin.prewarming.pause()
        if not self.idle_count:
            self._stop_sweeping()
        self._dial_waiting()
        if self._closed is not None and not self._open and not self._closed.called:
            self._closed.callback(None)

    def _origin(self, backend: Backend) -> _Origin:
        for origin in self._origins:
            if origin.backend is backend or origin.backend == backend:
                return origin
        origin = _Origin(self, backend)
        self._origins.append(origin)
        return origin

    def _start(self, opening: Opening) -> None:
        self._openings.add(opening)
        self._waiting[opening] = None
        opening.start()
        self._dial_waiting()
        if opening in self._waiting and self.idle_count:
            self._close_oldest()

    def _dial_waiting(self) -> None:
        while self._waiting and self._closed is None and self._has_room:
            opening = next(iter(self._waiting))
            del self._waiting[opening]
            self._dialling.add(opening)
            opening.dial()

    @property
    def _has_room(self) -> bool:
        return len(self._open) + len(self._dialling) < self.max_open

    def _open_ahead(self, backend: Backend, opened: Callable[[], None], failed: Callable[[], None]) -> None:
        def keep(connection: UpstreamConnection) -> None:
            opened()
            connection.holder.idle(connection)

        if self._has_room and not self._waiting:
            self._start(Opening(self, backend, keep, failed))
        else:
            failed()

    def _close_oldest(self) -> None:
        origin = min(
            (origin for origin in self._origins if origin.idle_until), key=lambda origin: origin.idle_until[0][1]
        )
        self.idle_count -= 1
        origin.idle_until.pop(0)[0].abort()

    def _stop_sweeping(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _close_expired(self) -> None:
        self._sweep = None
        now = self.clock.seconds()
        for origin in self._origins:
            expired = [connection for connection, until in origin.idle_until if until <= now]
            del origin.idle_until[: len(expired)]
            self.idle_count -= len(expired)
            for connection in expired:
                connection.abort()
            if origin.prewarming is not None and not all(connection.silent for connection in expired):
                origin.prewarming.top_up()
        if self.idle_count and self._sweep is None:
            first = min(origin.idle_until[0][1] for origin in self._origins if origin.idle_until)
            self._sweep = self.clock.callLater(first - now, self._close_expired)
