"""One connection on its way: from waiting for room to the end of the handshake, under one deadline."""

from collections.abc import Callable
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
        self._factory = _Factory()
        self._settled = False

    def start(self) -> None:
        """The deadline begins, whether or not there is room already."""
        self._deadline = self._pool.clock.callLater(self._pool.connect_timeout, self._late)

    def dial(self) -> None:
        """There is room: look the name up and connect."""
        self._factory.opening = self
        try:
            connecting = self._pool.endpoint_for(self.backend).connect(self._factory)
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

    def _settle(self) -> bool:
        """Whether this is the first of usable, failed and cancelled."""
        if self._settled:
            return False
        self._settled = True
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._pool.settled(self)
        return True

    # what the connections report; of the one that is used only until it is

    def made(self, connection: UpstreamConnection) -> None:
        self._connected.append(connection)
        self._pool.made(connection, self)

    def opened(self, connection: UpstreamConnection) -> None:
        if not self._settle():
            connection.abort()
            return
        self._connected.remove(connection)
        for slower in self._connected:
            slower.abort()
        self._pool.hold(connection)
        self._factory.opening = None
        self._opened(connection)

    def idle(self, connection: UpstreamConnection) -> None:
        raise AssertionError("a connection without a request has none to end")

    def spoiled(self, connection: UpstreamConnection) -> None:
        pass  # it hears that it is lost, as of any that fails

    def lost(self, connection: UpstreamConnection) -> None:
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


class _Factory(Factory):
    """Lives as long as the connections, and knows who opened them only until one is usable."""

    noisy = False
    opening: Opening | None = None

    def buildProtocol(self, addr: Any) -> UpstreamConnection | None:
        """None where the connection comes too late."""
        return None if self.opening is None else UpstreamConnection(self.opening, secure=self.opening.backend.secure)
