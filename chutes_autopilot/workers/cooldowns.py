"""The failing models that workers of one machine know in common: each tells the parent, which tells the others."""

from collections.abc import Callable, Mapping
from functools import partial

from attrs import define, field

from chutes_autopilot.policy.cooldown import Cooldown
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.workers.messages import Cooling, Message, Probing

MAX_MODELS = 1000
"""Failing models that the parent remembers for a worker that begins, and probes."""


@define(eq=False)
class ToldCooldowns:
    """A worker's: what one finds failing all leave alone, and one request of all workers finds out when it is over.

    :param healths: by the names of what is measured apart.
    """

    _tell: Callable[[Message], None]
    _now: Callable[[], float]
    _healths: Mapping[str, FleetHealth]

    def __attrs_post_init__(self) -> None:
        for fleet, health in self._healths.items():
            health.told = partial(self._told, fleet)
            health.probed = partial(self._probed, fleet)

    def _told(self, fleet: str, model: str, cooldown: Cooldown) -> None:
        self._tell(Cooling(fleet, model, *cooldown.found))

    def _probed(self, fleet: str, model: str, began: bool) -> None:
        self._tell(Probing(fleet, model, began))

    def heard(self, message: Cooling | Probing) -> None:
        """Another worker has found something out, or is about to."""
        health = self._healths.get(message.fleet)
        if health is None:
            return
        if isinstance(message, Cooling):
            health.heard(message.model, message.until, message.times, self._now())
        else:
            health.heard_probe(message.model, message.began, self._now())


@define(eq=False)
class KnownCooldowns:
    """The parent's: for workers that begin, and in the place of those that end."""

    _cooling: dict[tuple[str, str], Cooling] = field(init=False, factory=dict)
    _probes: dict[tuple[str, str], object] = field(init=False, factory=dict)

    @property
    def all(self) -> list[Cooling]:
        """Every model that is failing, as it was told last."""
        return list(self._cooling.values())

    def take(self, worker: object, message: Cooling | Probing) -> None:
        """What a worker has told."""
        key = message.fleet, message.model
        self._probes.pop(key, None)
        if isinstance(message, Probing):
            if message.began and len(self._probes) < MAX_MODELS:
                self._probes[key] = worker
            return
        self._cooling.pop(key, None)
        if message.times:
            self._cooling[key] = message
        if len(self._cooling) > MAX_MODELS:
            del self._cooling[next(iter(self._cooling))]

    def ended(self, worker: object) -> list[Probing]:
        """The probes that a worker has taken along: somebody else may begin one."""
        lost = [key for key, whose in self._probes.items() if whose is worker]
        for key in lost:
            del self._probes[key]
        return [Probing(*key, began=False) for key in lost]
