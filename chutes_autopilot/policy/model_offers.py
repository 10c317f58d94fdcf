"""What each model of the catalog can do and costs, as far as its record says; what it does not say is unknown."""

from bisect import bisect_left
from collections.abc import Mapping
from math import inf
from types import MappingProxyType
from typing import Any

import msgspec
from attrs import field, frozen

from chutes_autopilot.policy.catalog import Catalog
from chutes_autopilot.policy.feed_json import SLICE, Sliced, finish, read_record
from chutes_autopilot.policy.request_needs import FEATURES, INPUTS, Need

BYTES_PER_TOKEN = 4
"""What a token of the request's text takes up in it, about; English prose has somewhat more, most else less."""
SURE_BYTES_PER_TOKEN = 12
"""What a token takes up at most, unless a text is made of blanks: what is too long even so, is too long."""

_LARGEST = 10**9


class Offer(msgspec.Struct, frozen=True, gc=False):
    """What the catalog says of a model.

    :param lacks: of INPUTS and FEATURES what it surely has not.
    :param has: of INPUTS and FEATURES what it surely has.
    :param context: tokens served, or at least an upper bound of them; None is unknown.
    :param context_served: the same, but None where there is only an upper bound.
    :param max_output: tokens of the longest answer; None is unknown.
    :param output_price: USD per million tokens; None is unknown.
    :param confidential: runs in a TEE; None is unknown.
    """

    lacks: frozenset[str] = frozenset()
    has: frozenset[str] = frozenset()
    context: int | None = None
    context_served: int | None = None
    max_output: int | None = None
    output_price: float | None = None
    confidential: bool | None = None


UNKNOWN = Offer()
"""What is known of a model that the catalog has not."""


@frozen
class Offers:
    """What all models of one catalog offer."""

    by_model: Mapping[str, Offer] = field(factory=lambda: MappingProxyType({}))
    _contexts: list[int] = field(init=False, eq=False, repr=False)
    _outputs: list[int] = field(init=False, eq=False, repr=False)

    _least_context: float = field(init=False, eq=False, repr=False)
    _least_output: float = field(init=False, eq=False, repr=False)

    @_contexts.default
    def _distinct_contexts(self) -> list[int]:
        return sorted({offer.context for offer in self.by_model.values() if offer.context is not None})

    @_outputs.default
    def _distinct_outputs(self) -> list[int]:
        return sorted({offer.max_output for offer in self.by_model.values() if offer.max_output is not None})

    @_least_context.default
    def _shortest_context(self) -> float:
        return min(self._contexts, default=inf)

    @_least_output.default
    def _briefest_output(self) -> float:
        return min(self._outputs, default=inf)

    def of(self, model: str) -> Offer:
        """What a model offers; UNKNOWN for one that is not in the catalog."""
        return self.by_model.get(model, UNKNOWN)

    def key(self, need: Need) -> tuple[object, ...] | None:
        """Equal for needs that get the same verdicts of all these models; None where every model can serve it.

        It lets a plan be kept for many requests, although no two are of one length.
        """
        answer = need.max_tokens
        if (
            not (need.requires or need.media)
            and answer <= self._least_output
            and need.text_bytes // BYTES_PER_TOKEN + answer <= self._least_context
        ):
            return None  # nearly every time
        too_short = bisect_left(self._contexts, need.tokens(BYTES_PER_TOKEN))
        too_brief = bisect_left(self._outputs, answer)
        surely_too_short = bisect_left(self._contexts, need.tokens(SURE_BYTES_PER_TOKEN))
        return need.requires, too_short, surely_too_short, too_brief


class _Record(msgspec.Struct, gc=False):
    context_length: Any = None
    max_model_len: Any = None
    max_output_length: Any = None
    input_modalities: Any = None
    supported_features: Any = None
    confidential_compute: Any = None
    pricing: Any = None
    price: Any = None


_RECORD = msgspec.json.Decoder(_Record)
_SPELLINGS = {"structured_output": "structured_outputs"}


def read_offer(raw: bytes) -> Offer:
    """What one record of the catalog offers; a value of an unexpected type is unknown."""
    record = read_record(raw, _RECORD)
    if record is None:
        return UNKNOWN
    inputs, features = _names(record.input_modalities), _names(record.supported_features)
    lacks: set[str] = set()
    has: set[str] = set()
    if inputs is not None:
        has |= inputs.intersection(INPUTS)
        lacks |= set(INPUTS) - inputs
    if features is not None:
        features = {_SPELLINGS.get(name, name) for name in features}
        if "structured_outputs" in features:
            features.add("json_mode")  # any object is an answer to the widest schema
        has |= features.intersection(FEATURES)
        lacks |= set(FEATURES) - features
    served, bound = _count(record.context_length), _count(record.max_model_len)
    return Offer(
        frozenset(lacks),
        frozenset(has),
        min(served or _LARGEST, bound or _LARGEST) if served or bound else None,
        served,
        _count(record.max_output_length),
        _output_price(record),
        record.confidential_compute if isinstance(record.confidential_compute, bool) else None,
    )


def offers_in_slices(catalog: Catalog | None) -> Sliced[Offers]:
    """What the models of a catalog offer."""
    by_model: dict[str, Offer] = {}
    for number, entry in enumerate(catalog.entries if catalog is not None else ()):
        if number % SLICE == SLICE - 1:
            yield
        by_model[entry.id] = read_offer(entry.raw)
    return Offers(MappingProxyType(by_model))


def offers_of(catalog: Catalog | None) -> Offers:
    """offers_in_slices in one go."""
    return finish(offers_in_slices(catalog))


def _names(value: Any) -> set[str] | None:
    if not isinstance(value, list) or not value:
        return None
    return {item.lower() for item in value if isinstance(item, str)}


def _count(value: Any) -> int | None:
    # type() and not isinstance(), for True is an int
    return int(value) if type(value) in (int, float) and 1 <= value <= _LARGEST else None


def _output_price(record: _Record) -> float | None:
    price = _member(record.pricing, "completion")
    if price is None:
        price = _member(_member(record.price, "output"), "usd")
    return float(price) if type(price) in (int, float) and 0 <= price <= _LARGEST else None


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None
