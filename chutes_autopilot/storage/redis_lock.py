"""Who of all replicas does what only one should do. Needs the extra ``redis``: import it only where Redis is used.

A lock with an end: whoever has it renews it with every beat, whoever has not tries to get it. It is no proof: when the
store forgets, or a process stands still longer than the lock lives, two may believe for a moment that they have it. So
it is for work that may be done twice, only better not.
"""

import secrets
from collections.abc import Callable

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from chutes_autopilot.observe import events
from chutes_autopilot.policy.shared_values import PREFIX
from chutes_autopilot.storage.redis_connection import RedisConnection, RedisUnavailable

BEAT = 2.0
"""Seconds between two renewals; a lock lives for three of them."""

REST = 30.0
"""Seconds for which whoever gave the lock up does not try to get it again."""


@define(eq=False)
class SharedLock(Service):
    """One lock.

    :param name: what it is for; names no client.
    :param taken: called each time this replica gets it.
    :ivar held: whether this replica has it, as far as it is known: while Redis is away, whether it had it before.
    """

    _redis: RedisConnection
    _clock: IReactorTime
    name: str
    beat: float = BEAT
    taken: Callable[[], object] | None = None
    held: bool = field(init=False, default=False)
    _mine: bytes = field(init=False, factory=lambda: secrets.token_hex(8).encode(), repr=False)
    _resting_until: float = field(init=False, default=0.0)
    _loop: LoopingCall | None = field(init=False, default=None)
    _beating: Deferred[None] | None = field(init=False, default=None)

    @property
    def _key(self) -> str:
        return f"{PREFIX}lock:{self.name}"

    @property
    def _resting(self) -> bool:
        return self._clock.seconds() < self._resting_until

    def startService(self) -> None:
        super().startService()
        self._loop = LoopingCall(self._one_beat)
        self._loop.clock = self._clock
        self._loop.start(self.beat)

    def stopService(self) -> Deferred[None] | None:
        """Leave the lock to the others."""
        super().stopService()
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        return Deferred.fromCoroutine(self._release()) if self.held else None

    def connected(self) -> None:
        """Redis can be used again: see at once who has the lock."""
        if self.running:
            self._one_beat()

    def resign(self) -> None:
        """Leave the work to others for a while, because here it cannot be done."""
        self._resting_until = self._clock.seconds() + REST
        if self.held:
            releasing = Deferred.fromCoroutine(self._release())
            releasing.addErrback(lambda failure: events.failed_unexpectedly(failure, "giving a lock back"))

    def _one_beat(self) -> None:
        if self._beating is None and self._redis.usable:
            beating = Deferred.fromCoroutine(self._beat())
            if not beating.called:
                self._beating = beating
                beating.addBoth(self._beaten)

    def _beaten(self, _result: object) -> None:
        self._beating = None

    async def _beat(self) -> None:
        try:
            await self._try()
        except (RedisUnavailable, CancelledError):
            pass
        except Exception:  # noqa: BLE001 - reported; the next beat comes in its turn
            events.failed_unexpectedly(Failure(), "renewing a lock")

    async def _try(self) -> None:
        life = round(self.beat * 3000)
        if self._resting:
            return
        _, owner = await self._redis.pipeline(("SET", self._key, self._mine, "NX", "PX", life), ("GET", self._key))
        if owner == self._mine and (self._resting or not self.running):
            await self._release()  # it was given up while this was asked
            return
        had, self.held = self.held, owner == self._mine
        if self.held:
            if had:
                await self._redis.pipeline(("PEXPIRE", self._key, life))
            elif self.taken is not None:
                self.taken()

    async def _release(self) -> None:
        self.held = False
        try:
            (owner,) = await self._redis.pipeline(("GET", self._key))
            if owner == self._mine:
                await self._redis.pipeline(("DEL", self._key))
        except RedisUnavailable:
            pass  # it ends by itself
