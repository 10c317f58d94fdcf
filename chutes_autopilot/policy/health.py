"""How each model has served this gateway lately: measured on its own traffic, known before the feed tells.

Times are the clock's seconds, handed in. Averages are exponentially weighted: a new value counts a fifth. What was
measured more than FRESH_SECONDS ago says nothing any more. At most so many models are remembered, the least recently
used forgotten first.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from chutes_autopilot.policy.aliases import Order
from chutes_autopilot.policy.cooldown import Cooldown, CooldownRules

WEIGHT = 0.2
"""What a new value counts in an average."""
FRESH_SECONDS = 900.0
"""How long a measurement is believed."""
SAMPLES = 100
"""How many times to the first token are kept for their 95th percentile."""
ENOUGH_SAMPLES = 20
"""How many of them make a percentile."""


_NONE: frozenset[str] = frozenset()


@attrs.define(eq=False)
class Average:
    """One exponentially weighted average; None before the first value."""

    value: float | None = None
    at: float = 0.0

    def add(self, value: float, now: float) -> None:
        """Take a new value; after a long silence it counts alone."""
        if self.value is None or now - self.at > FRESH_SECONDS:
            self.value = value
        else:
            self.value += WEIGHT * (value - self.value)
        self.at = now

    def fresh(self, now: float) -> float | None:
        """The average, None where it is too old."""
        return self.value if now - self.at <= FRESH_SECONDS else None


@attrs.define(eq=False)
class ModelHealth:
    """What was measured of one model; times in seconds."""

    cooldown: Cooldown
    first_token: Average = attrs.field(factory=Average)
    between_events: Average = attrs.field(factory=Average)
    tokens_per_second: Average = attrs.field(factory=Average)
    successes: int = 0
    failures: int = 0
    _samples: deque[float] = attrs.field(factory=lambda: deque(maxlen=SAMPLES), init=False)
    _percentile: float | None = attrs.field(default=None, init=False)

    def add_first_token(self, seconds: float, now: float) -> None:
        """Measure the time from the start of an attempt to its first token."""
        if now - self.first_token.at > FRESH_SECONDS:
            self._samples.clear()
        self.first_token.add(seconds, now)
        self._samples.append(seconds)
        self._percentile = None

    def slow_first_token(self, now: float) -> float | None:
        """The 95th percentile of the time to the first token; None where there are too few samples, or old ones."""
        if now - self.first_token.at > FRESH_SECONDS:
            return None
        if self._percentile is None and len(self._samples) >= ENOUGH_SAMPLES:
            ordered = sorted(self._samples)
            self._percentile = ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)]
        return self._percentile

    def as_json(self, now: float) -> dict[str, Any]:
        """What may be shown, durations in milliseconds."""
        return {
            "first_token_ms": _milliseconds(self.first_token.fresh(now)),
            "first_token_p95_ms": _milliseconds(self.slow_first_token(now)),
            "between_events_ms": _milliseconds(self.between_events.fresh(now)),
            "tokens_per_second": _rounded(self.tokens_per_second.fresh(now)),
            "successes": self.successes,
            "failures": self.failures,
            "cooling_ms": _milliseconds(self.cooldown.left(now)),
            "probing": self.cooldown.probing(now),
        }


@attrs.frozen
class Available:
    """The candidates that are tried first, and those that are put behind because they cool down, both in order.

    :param forced: all of them cool down, so all are tried in their own order.
    """

    candidates: tuple[str, ...]
    cooling: tuple[str, ...]
    forced: bool = False


@attrs.define(eq=False)
class FleetHealth:
    """Every model's health, by its base name."""

    rules: CooldownRules = attrs.field(factory=CooldownRules)
    max_models: int = 1000
    told: Callable[[str, Cooldown], object] | None = None
    """Told of a model that begins or goes on to cool down, or works again."""
    probed: Callable[[str, bool], object] | None = None
    """Told of a probe that begins (True), or ends without telling anything (False)."""
    _models: OrderedDict[str, ModelHealth] = attrs.field(factory=OrderedDict, init=False)
    cooling_down: set[str] = attrs.field(factory=set, init=False)
    """Models that failed too often and have not answered since; `cooling` says which are left alone now."""

    def started(self, model: str, now: float) -> int:
        """An attempt begins; the number of the probe where it is one that finds out if a model works again, else 0.

        Every started attempt ends with exactly one of `succeeded`, `failed`, `abandoned` and `outrun`.
        """
        if model not in self.cooling_down:
            return 0
        probe = self._of(model).cooldown.started(now)
        if probe and self.probed is not None:
            self.probed(model, True)
        return probe

    def succeeded(self, model: str, first_token: float | None, now: float) -> None:
        """A model answered.

        :param first_token: seconds from the start of the attempt to its first token; None where it did not stream.
        """
        models = self._models
        health = models.get(model)
        if health is None:
            health = self._of(model)
        else:
            models.move_to_end(model)
        health.successes += 1
        if health.cooldown.troubled:
            health.cooldown.succeeded()
        if model in self.cooling_down:
            self.cooling_down.discard(model)
            if self.told is not None:
                self.told(model, health.cooldown)
        if first_token is not None:
            health.add_first_token(max(0.0, first_token), now)

    def failed(self, model: str, now: float, *, probe: int = 0) -> bool:
        """An attempt failed through the model's or the platform's fault; whether the model cools down from now on.

        :param probe: what `started` said of that attempt.
        """
        health = self._of(model)
        health.failures += 1
        cools = health.cooldown.failed(now, probe=probe)
        if cools:
            self.cooling_down.add(model)
            if self.told is not None:
                self.told(model, health.cooldown)
        return cools

    def abandoned(self, model: str, *, probe: int = 0) -> None:
        """An attempt ended without telling anything of the model, for the client left or asked for the impossible.

        :param probe: what `started` said of that attempt.
        """
        if (
            probe
            and model in self.cooling_down
            and self._of(model).cooldown.abandoned(probe)
            and self.probed is not None
        ):
            self.probed(model, False)

    def outrun(self, model: str, seconds: float, now: float, *, probe: int = 0) -> None:
        """Another model, asked later, answered first: the first token takes so many seconds at least.

        :param probe: what `started` said of that attempt.
        """
        self.abandoned(model, probe=probe)
        self._of(model).add_first_token(max(0.0, seconds), now)

    def streamed(self, model: str, events: int, tokens: int | None, seconds: float, now: float) -> None:
        """A stream came to its end.

        :param events: how many it had.
        :param tokens: of the completion, as its usage says; None where it says nothing.
        :param seconds: from its first event to its last.
        """
        if events < 2 or seconds <= 0:
            return
        health = self._of(model)
        health.between_events.add(seconds / (events - 1), now)
        if tokens is not None and tokens > 1:
            health.tokens_per_second.add((tokens - 1) / seconds, now)

    def back(self, models: Iterable[str], now: float) -> None:
        """All of some models cooled down and yet one answered: the platform had failed, so all get their probe."""
        for name in self.cooling_down.intersection(models):
            self._models[name].cooldown.end_wait(now)
            if self.told is not None:
                self.told(name, self._models[name].cooldown)

    def heard(self, model: str, until: float, times: int, now: float) -> None:
        """Another replica found a model failing, or (0 times) working again; `told` is not told."""
        if not times:
            if model in self.cooling_down:
                self._models[model].cooldown.succeeded()
                self.cooling_down.discard(model)
        elif self.rules.failures and (until > now or model in self.cooling_down):
            # a clock that is wrong elsewhere must not take a model away here for long
            self._of(model).cooldown.heard(min(until, now + self.rules.longest), times)
            self.cooling_down.add(model)

    def heard_probe(self, model: str, began: bool, now: float) -> None:
        """Elsewhere one request finds out whether a model works again, or has ended without telling."""
        if model in self.cooling_down:
            cooldown = self._models[model].cooldown
            if began:
                cooldown.started(now)
            else:
                cooldown.abandoned()

    def apply(self, rules: CooldownRules) -> None:
        """Put other rules into force; what cools down goes on to do so, unless nothing is to any more."""
        self.rules = rules
        for health in self._models.values():
            health.cooldown.rules = rules
            if not rules.failures:
                health.cooldown.succeeded()
        if not rules.failures:
            self.cooling_down.clear()

    def figures(self, model: str, now: float) -> Mapping[str, Any] | None:
        """What may be shown of a model, None where nothing was measured."""
        health = self._models.get(model)
        return None if health is None else health.as_json(now)

    def cooling(self, now: float) -> frozenset[str]:
        """All models that should be left alone now."""
        if not self.cooling_down:
            return _NONE
        return frozenset(name for name in self.cooling_down if self.is_cooling(name, now))

    def filter(self, candidates: Sequence[str], now: float) -> Available:
        """Tell the models that cool down from the others, if there are any."""
        if not self.cooling_down:
            return Available(tuple(candidates), ())
        cooling = tuple(name for name in candidates if self.is_cooling(name, now))
        if not cooling or len(cooling) == len(candidates):
            return Available(tuple(candidates), cooling, forced=bool(cooling))
        return Available(tuple(name for name in candidates if name not in cooling), cooling)

    def is_cooling(self, model: str, now: float) -> bool:
        """Whether a model should be left alone now, if there is another."""
        return model in self.cooling_down and self._models[model].cooldown.open_at(now)

    def left(self, models: Iterable[str], now: float) -> float:
        """Seconds until the first of some models may be tried again; 0 where one may be, or there is none."""
        return min((self._models[m].cooldown.left(now) if m in self.cooling_down else 0.0 for m in models), default=0.0)

    def by_first_token(self, models: Iterable[str], now: float) -> tuple[str, ...]:
        """The models with the fastest first tokens first, then the unmeasured ones in their order."""
        return self._sorted(models, lambda name: self.measured(name, "fast", now))

    def by_throughput(self, models: Iterable[str], now: float) -> tuple[str, ...]:
        """The models with the most tokens per second first, then the unmeasured ones in their order."""

        def slowness(name: str) -> float | None:
            speed = self.measured(name, "throughput", now)
            return None if speed is None else -speed

        return self._sorted(models, slowness)

    def measured(self, model: str, order: Order, now: float) -> float | None:
        """What an order goes by: seconds to the first token, or tokens per second; None where it is not known."""
        health = self._models.get(model)
        if health is None or not order:
            return None
        return (health.first_token if order == "fast" else health.tokens_per_second).fresh(now)

    def slow_first_token(self, model: str, now: float) -> float | None:
        """The 95th percentile of a model's time to its first token, None where it is not known, or not lately."""
        health = self._models.get(model)
        return None if health is None else health.slow_first_token(now)

    def as_json(self, now: float) -> dict[str, dict[str, Any]]:
        """What may be shown of every model, by name."""
        return {name: health.as_json(now) for name, health in sorted(self._models.items())}

    def _sorted(self, models: Iterable[str], key: Callable[[str], float | None]) -> tuple[str, ...]:
        measured: list[tuple[float, str]] = []
        rest: list[str] = []
        for name in models:
            value = key(name)
            if value is None:
                rest.append(name)
            else:
                measured.append((value, name))
        measured.sort(key=lambda pair: pair[0])
        return (*[name for _, name in measured], *rest)

    def _of(self, model: str) -> ModelHealth:
        health = self._models.get(model)
        if health is not None:
            self._models.move_to_end(model)
            return health
        if len(self._models) >= self.max_models:
            forgotten, _ = self._models.popitem(last=False)
            self.cooling_down.discard(forgotten)
        health = self._models[model] = ModelHealth(Cooldown(self.rules))
        return health


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
