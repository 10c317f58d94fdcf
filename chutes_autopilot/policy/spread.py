"""Why not every client is sent to the same first model: each gets an order of its own, by chance but always the same.

Weighted rendezvous hashing. Each pair of client and model has a hash; read as a waiting time with the model's weight as
its rate, -ln(hash) / weight, the shortest wait is first. So a model is first for its share of all weights, a client
keeps its order for as long as the scores stay, and a score that rises or falls moves only clients to or away from that
one model. Nothing is shared: replicas with the same key secret and the same feed give the same order.
"""

from collections.abc import Iterable
from hashlib import blake2b
from math import log

from chutes_autopilot.policy.ranking import Ranked

_TWO_64 = 2.0**64
_HALF = 0.5


def spread(client_key: bytes, ranking: Iterable[Ranked]) -> tuple[str, ...]:
    """The candidates in one client's order; those without free capacity (no positive score) last, as they are ranked.

    :param client_key: what policy.stickiness.client_key gave, at most 64 bytes.
    :param ranking: best first.
    """
    waits: list[tuple[float, str]] = []
    full: list[str] = []
    for ranked in ranking:
        if ranked.score > 0:
            digest = blake2b(ranked.model.encode("utf-8", "surrogatepass"), key=client_key, digest_size=8).digest()
            # the half keeps it off 0 and 1, where there is no logarithm and no difference
            waits.append((-log((int.from_bytes(digest, "big") + _HALF) / _TWO_64) / ranked.score, ranked.model))
        else:
            full.append(ranked.model)
    waits.sort()
    return (*[model for _, model in waits], *full)
