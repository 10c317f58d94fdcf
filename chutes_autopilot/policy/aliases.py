"""Aliases that say what kind of model is wanted: ``chutesai/AutoPilot:tee:ctx>=128k:fast``.

Each part behind the alias narrows the ranked list or orders it; they combine in any order. A part is a promise: a model
of which the catalog does not say that it keeps it, is not chosen.

===========================  ==========================================================================================
part                         the models that remain
===========================  ==========================================================================================
``tee``                      run in a trusted execution environment (``confidential_compute``)
``tools``, ``vision``        take tools, take images
``ctx>=128k``                serve a context of at least so many tokens; ``k`` and ``m`` are 1000 and 1,000,000
``max$0.5``                  cost at most so many USD per million tokens of output
``fast``, ``latency``        all, those first that have been the fastest to their first token
``throughput``               all, those first that have sent the most tokens per second
===========================  ==========================================================================================
"""

import re
from collections.abc import Set
from decimal import Decimal
from typing import Literal

from attrs import evolve, frozen

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.model_offers import Offer

ALIASES = ("chutesai/AutoPilot", "chutesai-routing/AutoPilot")
"""The names that mean "the best live model now"; exact spelling."""

Order = Literal["", "fast", "throughput"]

EXAMPLES = ("tee", "tools", "vision", "ctx>=128k", "max$0.5", "fast", "throughput")
"""One of each part, for the list of models and for error messages."""

_THINKING = ":THINKING"
_CONTEXT = re.compile(r"ctx>=([0-9]{1,9})([km]?)")
_PRICE = re.compile(r"max\$([0-9]{1,6}(?:\.[0-9]{1,6})?)")
_UNITS = {"": 1, "k": 1000, "m": 1_000_000}
_PRICE_NOISE = 1e-6
"""By how much the platform's prices, sums of floats, may miss the price that is meant."""


@frozen
class Wanted:
    """Which models of the ranked list are wanted, and in which order.

    :param context: the least tokens of context; 0: any.
    :param max_price: the highest price in USD per million tokens of output; None: any.
    :param order: by own measurements; empty: as ranked.
    """

    tee: bool = False
    tools: bool = False
    vision: bool = False
    context: int = 0
    max_price: Decimal | None = None
    order: Order = ""

    @property
    def parts(self) -> str:
        """The canonical spelling, each part with its colon: equal for equal wishes, empty for none."""
        found = [name for name in ("tee", "tools", "vision") if getattr(self, name)]
        if self.context:
            found.append(f"ctx>={_amount(self.context)}")
        if self.max_price is not None:
            found.append(f"max${_plain(self.max_price)}")
        if self.order:
            found.append(self.order)
        return "".join(f":{part}" for part in found)

    @property
    def narrows(self) -> bool:
        """Whether there may be models that are not wanted."""
        return evolve(self, order="") != ANY

    def unmet(self, offer: Offer) -> str | None:
        """The first part that a model is not known to keep, as canonically spelled; None where it keeps all."""
        if self.tee and offer.confidential is not True:
            return "tee"
        if self.tools and "tools" not in offer.has:
            return "tools"
        if self.vision and "image" not in offer.has:
            return "vision"
        if self.context and (offer.context_served or 0) < self.context:
            return f"ctx>={_amount(self.context)}"
        if self.max_price is not None and not _affordable(offer.output_price, self.max_price):
            return f"max${_plain(self.max_price)}"
        return None

    def __and__(self, other: "Wanted") -> "Wanted":
        """What keeps both: the stricter of two limits. The order is the other's where it has one."""
        prices = [wanted.max_price for wanted in (self, other) if wanted.max_price is not None]
        return Wanted(
            self.tee or other.tee,
            self.tools or other.tools,
            self.vision or other.vision,
            max(self.context, other.context),
            min(prices, default=None),
            other.order or self.order,
        )


ANY = Wanted()
"""No wish at all: the bare alias."""


@frozen
class ComposedAlias:
    """The ranked list, narrowed; each of its models is sent with ``suffix`` (empty or ``:THINKING``)."""

    wanted: Wanted
    suffix: str = ""

    @property
    def name(self) -> str:
        """The canonical spelling."""
        return ALIASES[0] + self.wanted.parts + self.suffix


def read_composed_alias(model: str, known: Set[str]) -> ComposedAlias | None:
    """The alias that a ``model`` value, or one item of a list, spells; None where it is none, bare ones included.

    :param known: the catalog's names, which win.
    :raises ApiError: invalid_model, for an alias with a part that is none or two orders that exclude each other.
    """
    base = next((name for name in ALIASES if model.startswith(name + ":")), None)
    if base is None or model in known or model.removesuffix(_THINKING) in known:
        return None
    plain = model.removesuffix(_THINKING)
    suffix = model[len(plain) :]
    if plain == base:
        return None
    try:
        return ComposedAlias(read_parts(plain[len(base) :]), suffix)
    except ValueError as fault:
        raise ApiError("invalid_model", f"model: {fault}", param="model") from None


def read_parts(text: str) -> Wanted:
    """Read what stands behind an alias, ``:tee:fast``, in any case and order.

    :raises ValueError: names the faulty part and what is allowed.
    """
    wanted = ANY
    for part in text[1:].split(":"):
        read = _read_part(part.lower())
        if read is None:
            raise ValueError(f"{_quoted(part)} is no part of an alias; there are {', '.join(EXAMPLES)}, by colons")
        if read.order and wanted.order not in ("", read.order):
            raise ValueError(f"{wanted.order} and {read.order} are two different orders; give one")
        wanted &= read
    return wanted


def _read_part(part: str) -> Wanted | None:
    match part:
        case "tee":
            return Wanted(tee=True)
        case "tools":
            return Wanted(tools=True)
        case "vision":
            return Wanted(vision=True)
        case "fast" | "latency":
            return Wanted(order="fast")
        case "throughput":
            return Wanted(order="throughput")
    if found := _CONTEXT.fullmatch(part):
        tokens = int(found[1]) * _UNITS[found[2]]
        return evolve(ANY, context=tokens) if tokens else None
    if found := _PRICE.fullmatch(part):
        return evolve(ANY, max_price=Decimal(found[1]).normalize())
    return None


def _affordable(price: float | None, limit: Decimal) -> bool:
    return price is not None and price <= float(limit) + _PRICE_NOISE


def _amount(tokens: int) -> str:
    for unit in ("m", "k"):
        if tokens % _UNITS[unit] == 0:
            return f"{tokens // _UNITS[unit]}{unit}"
    return str(tokens)


def _plain(price: Decimal) -> str:
    return f"{price:f}"


def _quoted(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:37] + "...")
