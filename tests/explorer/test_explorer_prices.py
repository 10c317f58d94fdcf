"""Prices: units, noise and the blended price."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.explorer.prices import blended, differ, main_unit

amounts = st.floats(0, 1e6)


@pytest.mark.parametrize(
    ("a", "b", "different"),
    [
        (1.0, 1.00005, False),
        (1.0, 1.0002, True),
        (0.04, 0.03999999999999995, False),
        (0.0104, 0.010399999999999998, False),
        (0, 0.0000009, False),
        (0, 0.000002, True),
        (0, 0, False),
    ],
)
def test_noise_is_told_from_difference(a: float, b: float, different: bool) -> None:
    """One in ten thousand, or a millionth of a dollar, is noise."""
    assert differ(a, b) is differ(b, a) is different


@given(amounts, amounts)
def test_difference_is_symmetric(a: float, b: float) -> None:
    """Which amount comes first makes no difference, and none differs from itself."""
    assert differ(a, b) == differ(b, a)
    assert not differ(a, a)


def test_the_blended_price_needs_both_prices() -> None:
    """Three parts input to one part output; free stays free, unknown stays unknown."""
    assert blended({"price.input": 1, "price.output": 5}) == 2
    assert blended({"price.input": 0, "price.output": 0}) == 0
    assert blended({"price.input": 1}) is None
    assert blended({}) is None


@pytest.mark.parametrize(
    ("fields", "unit"),
    [
        (["price.per_hour", "price.output"], "usd_per_1m_tokens"),
        (["price.per_hour", "price.per_step"], "usd_per_step"),
        (["price.per_hour", "price.per_request"], "usd_per_request"),
        (["price.per_hour"], "usd_per_hour"),
        ([], None),
    ],
)
def test_the_main_unit_is_what_the_model_is_sold_by(fields: list[str], unit: str | None) -> None:
    """GPU time only where there is no other price."""
    assert main_unit(dict.fromkeys(fields, 0.5)) == unit
