"""Every step from what a request asks for to what is tried for it."""

from types import MappingProxyType

import pytest
from attrs import frozen

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.choice import Choice, choose
from chutes_autopilot.policy.model_field import read_model_field
from chutes_autopilot.policy.model_offers import Offer, Offers
from chutes_autopilot.policy.request_needs import Need

ALIAS = "chutesai/AutoPilot"
IMAGE = Need(("image",))
ANYTHING = Need()
OFFERS = Offers(
    MappingProxyType(
        {
            "text": Offer(lacks=frozenset({"image"}), context=1000),
            "short": Offer(has=frozenset({"image"}), context=100),
            "long": Offer(has=frozenset({"image"}), context=10_000),
            "blank": Offer(),
        }
    )
)


@frozen
class World:
    """What is known of a platform with four models."""

    ranked_models: tuple[str, ...] = ("text", "short", "long")
    offers: Offers = OFFERS


def chosen(model: str, need: Need = ANYTHING, sticky: str | None = None, limit: int = 8) -> Choice:
    known = frozenset(OFFERS.by_model)
    asked = read_model_field(model, known, max_items=8, unknown="refuse")
    return choose(asked, need, World(), sticky, limit=limit)


@pytest.mark.parametrize(
    ("model", "need", "sticky", "candidates", "skipped"),
    [
        (ALIAS, ANYTHING, None, "text short long", {}),
        (ALIAS, IMAGE, None, "short long", {}),
        (ALIAS, IMAGE, "text", "short long", {}),
        (ALIAS, IMAGE, "long", "long short", {}),
        (ALIAS, Need(text_bytes=2000), None, "text long", {}),
        (ALIAS + ":THINKING", IMAGE, None, "short:THINKING long:THINKING", {}),
        ("long,text,short", IMAGE, None, "long short", {"text": "image"}),
        ("text:latency,blank", IMAGE, "text", "blank", {"text:latency": "image"}),
        ("short,text", Need(text_bytes=1100), None, "short text", {}),
        ("short,text", Need(text_bytes=2400), None, "text", {"short": "context"}),
        (f"text,{ALIAS}", IMAGE, None, "short long", {"text": "image"}),
        ("text", IMAGE, None, "text", {}),
    ],
)
def test_what_cannot_serve_the_request_is_left_out(
    model: str, need: Need, sticky: str | None, candidates: str, skipped: dict[str, str]
) -> None:
    """The alias goes by estimates, a list loses only impossible items and names them, one model is never judged."""
    choice = chosen(model, need, sticky)
    assert (choice.plan.candidates, dict(choice.skipped)) == (tuple(candidates.split()), skipped)


def test_the_attempts_allowed_are_counted_without_the_incapable() -> None:
    """A model that cannot serve a request does not use up one of its attempts."""
    assert chosen(ALIAS, IMAGE, limit=2).plan.candidates == ("short", "long")


def test_where_an_estimate_speaks_against_all_the_longest_come_first() -> None:
    """A guess refuses nobody."""
    assert chosen(ALIAS, Need(text_bytes=50_000)).plan.candidates == ("long",)
    with pytest.raises(ApiError, match="no_capable_candidate"):
        chosen(ALIAS, Need(text_bytes=500_000))


@pytest.mark.parametrize("model", [ALIAS, "text,short"])
def test_nothing_capable_is_the_requests_fault(model: str) -> None:
    """The answer names what none of the models has, and the member of the body that asks for it."""
    with pytest.raises(ApiError, match="no_capable_candidate") as caught:
        chosen(model, Need(("image",), text_bytes=10**7))
    assert caught.value.status == 400
    assert caught.value.param == "messages"
