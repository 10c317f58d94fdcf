"""The orderly stop: what was asked is answered, what cannot be answered in time is cut, and then everything ends."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.defer import TimeoutError as GraceOver
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from chutes_autopilot.listening import ListeningService
from chutes_autopilot.web.connections import ClientConnections

IDLE_SECONDS = 1.0
"""How long a stopping service keeps idle connections, for requests already on their way to it."""

FLUSH_SECONDS = 1.0
"""How long the last bytes of what was cut or answered at the very end may take to leave."""


class DrainingService(MultiService):
    """Stops its parts only when the clients have had their answers, or their time is over.

    The order of the end:

    1. `ClientConnections.draining`: /readyz says so, and every answer that begins from now on is its connection's
       last. The listening sockets close.
    2. Connections without a request stay open for IDLE_SECONDS, so that a request that is already on its way gets
       its answer and a load balancer may ask /readyz once more; then they are closed. So are those whose answer had
       begun before: nobody has been told that it is the last.
    3. Answers in flight end by themselves, `grace` seconds after the first step at the latest. Then `overdue` says so
       to whoever carries out the requests that are left, and those that are still being received are refused.
    4. The parts stop in reverse order. The upstream connections close with them, which cuts the answers left the
       way a dying upstream would.

    Until step 4 every other part works on: refreshes, the connections to upstreams, and a demo's simulator.

    :param connections: the clients'.
    :ivar listening: the part that closes first.
    :ivar grace: seconds.
    :ivar overdue: is called when nothing may take longer, before what is left is cut.
    :ivar at_last: is awaited when the last client is gone, where something is still to be sent away.
    """

    _log = Logger("chutes_autopilot.drain")
    listening: ListeningService
    overdue: Callable[[], None] | None = None
    at_last: Callable[[], Awaitable[None]] | None = None

    def __init__(self, connections: ClientConnections, grace: float, clock: IReactorTime) -> None:
        super().__init__()
        self.connections = connections
        self.grace = grace
        self._clock = clock
        self._hurried = False
        self._waiting: Deferred[None] | None = None

    def stopService(self) -> Deferred[None]:
        """Drain and stop; fires when all has ended."""
        return Deferred.fromCoroutine(self._drain())

    def hurry(self) -> None:
        """Wait no longer for answers in flight."""
        self._hurried = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def _drain(self) -> None:
        connections = self.connections
        connections.draining = True
        closed = self.listening.stopService()
        if len(connections):
            self._log.info("draining: {count} client connections are open", count=len(connections))
        idle = min(IDLE_SECONDS, self.grace)
        await self._until_gone(idle)
        connections.close_idle()
        if not self._hurried:
            await self._until_gone(self.grace - idle)
        if len(connections):
            self._log.warn("{count} client connections are cut: their time is over", count=len(connections))
        if self.overdue is not None:
            self.overdue()
        connections.refuse_unread()
        await DeferredList([closed, super().stopService()])
        await self._until_gone(FLUSH_SECONDS)
        connections.abort()
        await self._until_gone(FLUSH_SECONDS)
        if self.at_last is not None:
            await self.at_last()

    async def _until_gone(self, seconds: float) -> None:
        self._waiting = self.connections.gone().addTimeout(seconds, self._clock)
        with suppress(GraceOver, CancelledError):
            await self._waiting
        self._waiting = None
