"""The nonces at hand, each good for one request to one instance; pure, with the time given by the caller.

Whatever is taken is gone: the API uses a nonce up before it looks at anything else, so a nonce is never given back. It
is also never taken twice, should a listing name it again.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import Literal, TypeVar

from attrs import define, field, frozen

from chutes_autopilot.upstream.chute_e2ee.listing import Instance, Listing

MAX_CHUTES = 64
MAX_NONCES = 512
"""In one pool; those that expire first give way."""

LOW_LEVEL = 0.3
OLD_AGE = 45.0
USED_RECENTLY = 60.0
"""A pool is filled again at this share of what it had, or at this age, if it was used within these seconds."""

_SPENT_MEMORY = 1024
_QUARANTINE_MEMORY = 256

K = TypeVar("K")
V = TypeVar("V")

Shortage = Literal["empty", "blocked", "no_verdict"]
"""Why there is nothing to take: no nonces; only such of instances that may not be chosen now; or only such of instances
without a valid verdict."""

Usable = Callable[[str, bytes], bool]
"""Whether an instance may take requests: its id, the SHA-256 of its key."""


@frozen
class Session:
    """One request's way to an instance: a nonce that is nobody else's.

    :param answer: counts the listings of the chute; which one the nonce came with.
    """

    chute_id: str
    instance: Instance
    nonce: str = field(repr=False)
    answer: int


@define(eq=False)
class _Nonces:
    """One instance and what is left of its nonces: nonce, deadline, listing; in the order in which they came."""

    instance: Instance
    listed: int
    nonces: deque[tuple[str, float, int]] = field(factory=deque)
    in_flight: int = 0
    taken: int = 0
    stream_only: bool = False


class NoncePool:
    """The pool of one chute. Times are seconds of one monotonic clock.

    :param usable: the verdict on an instance; heeded at every take.
    """

    def __init__(self, chute_id: str, usable: Usable) -> None:
        self._chute_id = chute_id
        self._usable = usable
        self._instances: dict[str, _Nonces] = {}
        self._quarantined: OrderedDict[str, float] = OrderedDict()
        self._spent: OrderedDict[str, None] = OrderedDict()
        self._takes = 0
        self._answers = 0
        self._filled = 0
        self.filled_at = float("-inf")
        self.used_at = float("-inf")

    def merge(self, listing: Listing, asked_at: float, margin: float) -> None:
        """Add what a listing brought; older nonces stay good until their own deadline.

        :param asked_at: when the question was sent.
        :param margin: seconds before the end of their lifetime from which nonces are not used any more.
        """
        self._answers += 1
        deadline = asked_at + listing.lifetime - margin
        known = {nonce for held in self._instances.values() for nonce, _, _ in held.nonces}
        for instance, nonces in listing.instances:
            held = self._instances.get(instance.instance_id)
            if held is None or held.instance.key_sha256 != instance.key_sha256:  # it restarted: what it had is lost
                in_flight = held.in_flight if held is not None else 0
                held = self._instances[instance.instance_id] = _Nonces(instance, self._answers, in_flight=in_flight)
            held.listed = self._answers
            new = [nonce for nonce in nonces if nonce not in known and nonce not in self._spent]
            held.nonces.extend((nonce, deadline, self._answers) for nonce in new)
            known.update(new)
        self._forget_expired(asked_at)
        self._forget_surplus()
        self._filled, self.filled_at = self.level(asked_at), asked_at

    def take(self, now: float, *, stream: bool, exclude: AbstractSet[str] = frozenset()) -> Session | Shortage:
        """A nonce of the instance with the fewest requests in flight, among equals of the one not used for longest.

        :param stream: whether the request is one; some instances can do nothing else.
        :param exclude: ids of instances not to be chosen.
        """
        self.used_at = now
        self._forget_expired(now)
        verified = [held for held in self._instances.values() if self._verified(held)]
        live = [held for held in verified if held.nonces]
        if not live:
            return self._nothing_of(verified)
        free = [
            held
            for held in live
            if held.instance.instance_id not in exclude
            and (stream or not held.stream_only)
            and not self._is_quarantined(held, now)
        ]
        if not free:
            return "blocked"
        chosen = min(free, key=lambda held: (held.in_flight, held.taken))
        nonce, _, answer = chosen.nonces.popleft()
        self._takes += 1
        chosen.taken = self._takes
        chosen.in_flight += 1
        _remember(self._spent, nonce, None, _SPENT_MEMORY)
        return Session(self._chute_id, chosen.instance, nonce, answer)

    def can_take(self, now: float) -> bool:
        """Whether a stream would get a session now."""
        return any(
            self._verified(held) and not self._is_quarantined(held, now) and _live(held, now)
            for held in self._instances.values()
        )

    def shortage(self, now: float) -> Shortage | None:
        """Why a stream would get no session now; None where it would."""
        if self.can_take(now):
            return None
        verified = [held for held in self._instances.values() if self._verified(held)]
        return "blocked" if any(_live(held, now) for held in verified) else self._nothing_of(verified)

    def holds(self, now: float) -> bool:
        """Whether there are good nonces at all, be it of instances that may not be chosen."""
        return any(_live(held, now) for held in self._instances.values())

    def release(self, instance_id: str) -> None:
        """A request to an instance has ended."""
        held = self._instances.get(instance_id)
        if held is not None:
            held.in_flight = max(0, held.in_flight - 1)

    def quarantine(self, instance_id: str, until: float) -> None:
        """Do not choose an instance before this time."""
        _remember(
            self._quarantined, instance_id, max(until, self._quarantined.get(instance_id, until)), _QUARANTINE_MEMORY
        )

    def only_streams(self, instance_id: str) -> None:
        """An instance is too old for answers that are no streams."""
        if instance_id in self._instances:
            self._instances[instance_id].stream_only = True

    def drop_instance(self, instance_id: str) -> None:
        """An instance is gone, and its nonces with it."""
        self._instances.pop(instance_id, None)

    def drop_answer(self, answer: int) -> None:
        """The nonces of one listing are worthless."""
        for held in self._instances.values():
            held.nonces = deque(entry for entry in held.nonces if entry[2] != answer)

    def drop_all(self) -> None:
        """All nonces are worthless."""
        for held in self._instances.values():
            held.nonces.clear()

    def level(self, now: float) -> int:
        """How many nonces are good, of instances that may be chosen."""
        return sum(_live(held, now) for held in self._instances.values() if self._verified(held))

    def wants_refresh(self, now: float) -> bool:
        """Whether it is worth a listing before it is empty: low or old, and in use."""
        if now - self.used_at > USED_RECENTLY:
            return False
        low = self._filled > 0 and self.level(now) <= LOW_LEVEL * self._filled
        return low or now - self.filled_at >= OLD_AGE

    def instances(self) -> Iterator[Instance]:
        """The instances known, with or without nonces."""
        return (held.instance for held in self._instances.values())

    def _nothing_of(self, verified: list[_Nonces]) -> Shortage:
        return "no_verdict" if self._instances and not verified else "empty"

    def _verified(self, held: _Nonces) -> bool:
        return self._usable(held.instance.instance_id, held.instance.key_sha256)

    def _is_quarantined(self, held: _Nonces, now: float) -> bool:
        return self._quarantined.get(held.instance.instance_id, now) > now

    def _forget_expired(self, now: float) -> None:
        for name, held in list(self._instances.items()):
            while held.nonces and held.nonces[0][1] <= now:
                held.nonces.popleft()
            if not held.nonces and not held.in_flight and held.listed < self._answers:
                del self._instances[name]

    def _forget_surplus(self) -> None:
        surplus = sum(len(held.nonces) for held in self._instances.values()) - MAX_NONCES
        for _ in range(surplus):
            oldest = min((held for held in self._instances.values() if held.nonces), key=lambda h: h.nonces[0][1])
            oldest.nonces.popleft()


class Pools:
    """The pools by chute; at most MAX_CHUTES, the one not asked for longest gives way."""

    def __init__(self, usable: Usable) -> None:
        self._usable = usable
        self._pools: OrderedDict[str, NoncePool] = OrderedDict()

    def of(self, chute_id: str) -> NoncePool:
        """The pool of a chute, a new one where there is none."""
        pool = self._pools.get(chute_id)
        if pool is None:
            pool = NoncePool(chute_id, self._usable)
        _remember(self._pools, chute_id, pool, MAX_CHUTES)
        return pool

    def find(self, chute_id: str) -> NoncePool | None:
        """The pool of a chute, where there is one."""
        return self._pools.get(chute_id)

    def items(self) -> Iterator[tuple[str, NoncePool]]:
        """All pools."""
        return iter(tuple(self._pools.items()))


def _live(held: _Nonces, now: float) -> int:
    return sum(deadline > now for _, deadline, _ in held.nonces)


def _remember(memory: OrderedDict[K, V], key: K, value: V, limit: int) -> None:
    """Put an entry at the new end and let the oldest go where there are too many."""
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > limit:
        memory.popitem(last=False)
