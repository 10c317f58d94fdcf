"""The orders in which candidates could be tried, by name, so that they can be compared on the same feeds.

What the gateway does is ``default``, or ``rendezvous`` with AUTOPILOT_SPREAD; the others are what these are measured
by.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType

from chutes_autopilot.policy.ranking import Ranked
from chutes_autopilot.policy.spread import spread

Order = Callable[[bytes, Sequence[Ranked]], Sequence[str]]
"""The candidates of a client (its key) in the order in which it tries them, from the ranking, best first."""


def default(client_key: bytes, ranking: Sequence[Ranked]) -> Sequence[str]:
    """As they are ranked, for every client the same."""
    return [ranked.model for ranked in ranking]


def least_utilized(client_key: bytes, ranking: Sequence[Ranked]) -> Sequence[str]:
    """The lowest busy share first, however few instances share it: for every client the same."""
    return [ranked.model for ranked in sorted(ranking, key=lambda ranked: (ranked.utilization_current, ranked.model))]


def random(client_key: bytes, ranking: Sequence[Ranked]) -> Sequence[str]:
    """Any order, blind to load and size; a client keeps its own."""

    def place(ranked: Ranked) -> bytes:
        return blake2b(ranked.model.encode("utf-8", "surrogatepass"), key=client_key, digest_size=16).digest()

    return [ranked.model for ranked in sorted(ranking, key=place)]


VARIANTS: Mapping[str, Order] = MappingProxyType(
    {"default": default, "rendezvous": spread, "least-utilized": least_utilized, "random": random}
)
