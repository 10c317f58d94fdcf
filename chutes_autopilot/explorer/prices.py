"""Prices with their true unit: what may be compared with what, and when two amounts are one and the same.

All amounts are USD. TAO is never read, for its rate moves by the minute. Missing is missing, and 0 is free.
"""

from collections.abc import Mapping

INPUT = "price.input"
OUTPUT = "price.output"
CACHED = "price.input_cache_read"
PER_STEP = "price.per_step"
PER_REQUEST = "price.per_request"
PER_HOUR = "price.per_hour"
HOURLY_MIN = "price.per_hour_min"
HOURLY_MAX = "price.per_hour_max"

TOKEN_PRICES = (INPUT, OUTPUT, CACHED)
"""The ones that both catalogs have."""

UNITS: Mapping[str, str] = {
    INPUT: "usd_per_1m_tokens",
    OUTPUT: "usd_per_1m_tokens",
    CACHED: "usd_per_1m_tokens",
    PER_STEP: "usd_per_step",
    PER_REQUEST: "usd_per_request",
    PER_HOUR: "usd_per_hour",
    HOURLY_MIN: "usd_per_hour",
    HOURLY_MAX: "usd_per_hour",
}
"""Field to unit. Per hour is GPU time; all chutes have it, and for some it is the only price."""

ABSOLUTE_TOLERANCE = 1e-6
RELATIVE_TOLERANCE = 1e-4
BLEND = (3, 1)
"""Input to output tokens of the blended price; a common mix of chats."""


def differ(a: float, b: float) -> bool:
    """Whether two amounts are really two: the platform's floats are noisy."""
    return abs(a - b) > max(ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE * max(a, b))


def blended(prices: Mapping[str, float]) -> float | None:
    """USD per 1M tokens at three input tokens per output token; None unless both prices are known."""
    if INPUT not in prices or OUTPUT not in prices:
        return None
    parts = BLEND[0] * prices[INPUT] + BLEND[1] * prices[OUTPUT]
    return parts / sum(BLEND)


def main_unit(prices: Mapping[str, float]) -> str | None:
    """The unit in which a model is mainly sold: by tokens, steps or requests; by GPU time where there is no other."""
    return next((unit for field, unit in UNITS.items() if field in prices), None)
