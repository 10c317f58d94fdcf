"""Cooldowns that replicas share. Needs the extra ``redis``: import it only where Redis is used.

One hash holds all models that some replica found failing. It is read once for each connection and again whenever Redis
says that it changed, so nothing is asked on a request's way.
"""

from collections.abc import Callable, Coroutine
from math import ceil
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred

from chutes_autopilot.observe import events
from chutes_autopilot.policy.cooldown import Cooldown
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.policy.shared_values import (
    MAX_NAME,
    PREFIX,
    SharedCooldown,
    pack_cooldown,
    unpack_cooldown,
)
from chutes_autopilot.storage.redis_connection import RedisConnection, RedisUnavailable, Words

KEPT_SECONDS = 600
"""How long the hash outlives whatever can cool down since its last change: its end would lift all that do."""

MAX_MODELS = 1000
"""Cooling models that are read."""


@define(eq=False)
class SharedCooldowns:
    """Keeps one FleetHealth at what all replicas know.

    :param fleet: keeps deployments apart (policy.shared_values.fleet_of), and the transports of one.
    :param now: Unix time, the clock of the health.
    """

    _redis: RedisConnection
    _health: FleetHealth
    fleet: str
    _now: Callable[[], float]
    _unsent: dict[str, SharedCooldown] = field(init=False, factory=dict)
    _heard: frozenset[str] = field(init=False, default=frozenset())
    _sending: bool = field(init=False, default=False)
    _reading: bool = field(init=False, default=False)
    _read_again: bool = field(init=False, default=False)

    @property
    def _key(self) -> str:
        return f"{PREFIX}cooling:{self.fleet}"

    def told(self, model: str, cooldown: Cooldown) -> None:
        """This replica found a model failing, or working again (FleetHealth.told)."""
        if len(model) > MAX_NAME or not self._redis.usable:
            return  # what is found while Redis is away stays here
        self._unsent[model] = SharedCooldown(*cooldown.found)
        if not self._sending:
            self._sending = True
            _begin(self._send(), "sharing cooldowns")

    def changed(self, keys: list[bytes] | None) -> None:
        """Redis names what others have changed."""
        if keys is None or self._key.encode() in keys:
            self.connected()

    def connected(self) -> None:
        """Read what the others know."""
        self._read_again = True
        if not self._reading:
            self._reading = True
            _begin(self._read(), "reading cooldowns")

    async def _send(self) -> None:
        try:
            while self._unsent and self._redis.usable:
                unsent, self._unsent = self._unsent, {}
                commands: list[Words] = [
                    ("HSET", self._key, model, pack_cooldown(found)) if found.times else ("HDEL", self._key, model)
                    for model, found in unsent.items()
                ]
                life = ceil(self._health.rules.longest) + KEPT_SECONDS
                # the last one has Redis watch the hash, which writing does not
                answers = await self._redis.pipeline(*commands, ("EXPIRE", self._key, life), ("HGETALL", self._key))
                self._take(answers[-1])
        except RedisUnavailable:
            self._unsent.clear()
        finally:
            self._sending = False

    async def _read(self) -> None:
        try:
            while self._read_again:
                self._read_again = False
                (found,) = await self._redis.pipeline(("HGETALL", self._key))
                self._take(found)
        except RedisUnavailable:
            pass
        finally:
            self._reading = False

    def _take(self, found: object) -> None:
        """Make what Redis has the truth here, but for what is on its way there."""
        pairs = found if isinstance(found, list) else []
        now, cooling = self._now(), dict[str, SharedCooldown]()
        for name, data in zip(pairs[::2], pairs[1::2], strict=False):
            cooldown = unpack_cooldown(data)
            if cooldown is not None and len(name) <= MAX_NAME * 4 and len(cooling) < MAX_MODELS:
                cooling[name.decode("utf-8", "replace")] = cooldown
        for model in self._heard - cooling.keys() - self._unsent.keys():
            self._health.heard(model, 0.0, 0, now)
        for model in cooling.keys() - self._unsent.keys():
            self._health.heard(model, cooling[model].until, cooling[model].times, now)
        self._heard = frozenset(cooling)


def _begin(work: Coroutine[Deferred[Any], Any, None], what: str) -> None:
    Deferred.fromCoroutine(work).addErrback(lambda failure: events.failed_unexpectedly(failure, what))
