"""One connection on its way: from waiting for room to the end of the handshake, under one deadline."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from chutes_autopilot.upstream.connection import UpstreamConnection

if TYPE_CHECKING:
    from chutes_autopilot.upstream.pool import Backend, ConnectionPool


class Opening:
    """Opens one connection for a pool; exactly one of ``opened`` and ``failed`` is called, unless `cancel` was.

    :ivar reason: why it failed.
    """

    def __init__(
        self,
        pool: "ConnectionPool",
        backend: "Backend",
        opened: Callable[[UpstreamConnection], None],
        failed: Callable[[], None],
    ) -> None:
        self.backend = backend
        self.reason: BaseException = ConnectError()
        self._pool = pool
        self._opened = opened
        self._failed = failed
        self._connected: list[UpstreamConnection] = []  # happy eyeballs may connect to two addresses
        self._connecting: Deferred[Any] | None = None
        self._deadline: IDelayedCall | None = None
        self._settled = False

    def start(self) -> None:
        """The deadline begins, whether or not there is room already."""
        self._deadline = self._pool.clock.callLater(self._pool.connect_timeout, self._late)

    def dial(self) -> None:
        """There is room: look the name up and connect."""
        factory = Factory.forProtocol(self._build)
        factory.noisy = False
        try:
            connecting = self._pool.endpoint_for(self.backend).connect(factory)
        except Exception as error:  # noqa: BLE001 - whatever an endpoint refuses is a connection that was not made
            self.reason = error
            self.fail()
            return
        self._connecting = connecting.addErrback(self._refused)

    def cancel(self) -> None:
        """Give up without a word to anybody."""
        if self._settle():
            self._drop()

    def fail(self) -> None:
        """Give up and say so, unless it is settled already."""
        if self._settle():
            self._drop()
            self._failed()

    def _build(self) -> UpstreamConnection:
        pool, backend = self._pool, self.backend
        return UpstreamConnection(
            secure=backend.secure,
            made=self._made,
            opened=self._usable,
            idle=partial(pool.released, backend),
            lost=self._gone,
        )

    def _made(self, connection: UpstreamConnection) -> None:
        self._connected.append(connection)
        self._pool.made(connection, self)

    def _settle(self) -> bool:
        """Whether this is the first of usable, failed and cancelled."""
        if self._settled:
            return False
        self._settled = True
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._pool.settled(self)
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
        self._connecting = self._deadline = None
        opened(connection)

    def _gone(self, connection: UpstreamConnection) -> None:
        self._pool.lost(connection)
        if connection in self._connected:
            self._connected.remove(connection)
            if not self._connected:
                self.fail()

    def _late(self) -> None:
        self.reason = ConnectTimeout()
        self.fail()

    def _refused(self, failure: Failure) -> None:
        failure.trap(Exception, CancelledError)
        if not self._settled:
            self.reason = failure.value or self.reason
            self.fail()

    def _drop(self) -> None:
        for connection in self._connected:
            connection.abort()
        if self._connecting is not None:
            self._connecting.cancel()
