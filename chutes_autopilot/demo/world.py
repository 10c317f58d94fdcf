"""How the demo's platform goes on: slowly, and the same way after each start.

========================  ============================================================================
before the start          a few prices were others, and one model was not there yet (see demo.past)
0:20                      a price falls
0:25                      a model comes, and another one goes
0:45                      a price rises
each 3 minutes after      one model's price falls by 15%, or is what it was
each 15 minutes           the model that went comes back, or goes again
========================  ============================================================================
"""

from attrs import evolve, frozen

from chutes_autopilot.demo.catalog import SimulatedModel, simulated_models

HOUR = 3600.0

NEWCOMER = SimulatedModel(
    "sample-ai/Zephyr-24B", "vllm", "fp8", 131_072, 0.04, 0.16, 5, 0.3, ("json_mode", "tools"), vision=True
)
COMES = 25.0
GUEST = "placeholder/Prairie-RP-70B"
GUEST_SPAN = 900.0
"""The model that comes and goes, and for how many seconds it does either."""

EARLY_PRICES = ((20.0, "placeholder/Ember-M2", 0.8), (45.0, "sample-ai/Fjord-120B-TEE", 1.25))
"""Seconds after the start, whose prices change, and by which factor."""

PRICE_STEP = 180.0
CHEAPER = 0.85

PAST_PRICES = (
    (2 * HOUR, "fictional/Dune-K2.5-TEE", 1.2),
    (9 * HOUR, "example-org/Cobalt-5-TEE", 0.9),
    (31 * HOUR, "demo-labs/Aurora-32B-TEE", 1.5),
    (77 * HOUR, "mockingbird/Lark-24B-Instruct", 0.7),
    (121 * HOUR, "placeholder/Juniper-Coder-480B-TEE", 1.25),
)
"""Seconds before the start, whose prices changed then, and what they were before as a share of what they are since."""

PAST_NEWCOMER = (50 * HOUR, "mockingbird/Heron-12B-it")
"""Seconds before the start, and which model came then."""


@frozen
class SimulatedWorld:
    """Which models there are at any time, and at which prices.

    :param begun: the start, Unix seconds.
    """

    begun: float
    base: tuple[SimulatedModel, ...] = simulated_models()

    def models(self, now: float) -> tuple[SimulatedModel, ...]:
        """The catalog at a Unix time."""
        since = now - self.begun
        there = [
            _priced(model, self._factor(place, model.name, since))
            for place, model in enumerate(self.base)
            if _is_there(model.name, since)
        ]
        return (*there, NEWCOMER) if since >= COMES else tuple(there)

    def ever(self) -> tuple[SimulatedModel, ...]:
        """All models that there are at some time."""
        return (*self.base, NEWCOMER)

    def _factor(self, place: int, name: str, since: float) -> float:
        factor = 1.0
        for at, changed, by in EARLY_PRICES:
            factor *= by if changed == name and since >= at else 1.0
        for ago, changed, was in PAST_PRICES:
            factor *= was if changed == name and since < -ago else 1.0
        # one model after the other, not in the order in which they are listed
        turns = (int(since // PRICE_STEP) - 1 - place * 7 % len(self.base)) // len(self.base) + 1
        return factor * (CHEAPER if since > 0 and turns % 2 else 1.0)


def _is_there(name: str, since: float) -> bool:
    if name == GUEST:
        return since < COMES or since // GUEST_SPAN % 2 == 1
    ago, newcomer = PAST_NEWCOMER
    return name != newcomer or since >= -ago


def _priced(model: SimulatedModel, factor: float) -> SimulatedModel:
    if factor == 1.0:
        return model
    return evolve(model, input_usd=round(model.input_usd * factor, 4), output_usd=round(model.output_usd * factor, 4))
