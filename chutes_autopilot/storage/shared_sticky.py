"""Sticky choices that replicas share. Needs the extra ``redis``: import it only where Redis is used.

What a replica knows of a client it answers from memory, for as long as Redis would tell it of a change (client-side
caching: Redis remembers who has read a key and names it to them when it changes). So a client that stays costs Redis
nothing, and one that changes its replica a single GET::

    unknown ──GET──▶ known ──its key is named, or the connection is lost──▶ unknown
       ▲               └──put: unchanged, and not old────▶ known, nothing is sent
       └──evicted──────┴──put: changed, or old──▶ SET and GET, together with whatever else waits

The last choice written counts everywhere. While Redis cannot be used each replica goes by its own; what it chose
meanwhile is written when Redis is back.
"""

from collections import OrderedDict

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from chutes_autopilot.interfaces import IStickyStore
from chutes_autopilot.observe import events
from chutes_autopilot.policy.shared_values import client_of_sticky_key, pack_choice, sticky_key, unpack_choice
from chutes_autopilot.policy.stickiness import StickyChoice
from chutes_autopilot.storage.memory import MemoryStickyStore
from chutes_autopilot.storage.redis_connection import RedisConnection, RedisRefusal, RedisUnavailable, Words

RECALL_SECONDS = 0.075
"""How long a request waits for the choice of a client that is unknown here; then it goes on without."""

MAX_RECALLS = 1000
"""Clients that are asked for at once; those beyond are taken for new."""

BATCH = 200
"""Choices that are written in one go."""

RENEW_SHARE = 0.25
"""A choice that stays is written again after this share of its time to live."""

NEVER = float("-inf")


@define(eq=False)
class _Recall:
    """One GET under way, and who waits for it."""

    waiting: list[Deferred[StickyChoice | None]] = field(factory=list)
    stale: bool = False


@implementer(IStickyStore)
@define(eq=False)
class SharedStickyStore:
    """A MemoryStickyStore whose entries are those of all replicas.

    :param local: what this replica knows; its bounds count.
    :param clock: for deadlines, and the time to live.
    """

    local: MemoryStickyStore
    _redis: RedisConnection
    _clock: IReactorTime
    _known: OrderedDict[bytes, float] = field(init=False, factory=OrderedDict)
    """Clients whose key Redis watches for us -> when their choice was seen there; NEVER where there is none."""
    _unsent: OrderedDict[bytes, StickyChoice] = field(init=False, factory=OrderedDict)
    _sending: bool = field(init=False, default=False)
    _written: set[bytes] = field(init=False, factory=set)
    """Clients whose choice is on its way to Redis, and was not named since."""
    _recalls: dict[bytes, _Recall] = field(init=False, factory=dict)

    def get(self, key: bytes) -> StickyChoice | None:
        """What this replica knows."""
        return self.local.get(key)

    def put(self, key: bytes, choice: StickyChoice) -> None:
        """Remember a choice here at once, and tell the others where it is news to them."""
        local = self.local
        mine, seen = local.get(key), self._known.get(key)
        # Where it is unknown what the others have, it was known when the request began: one of them chose meanwhile,
        # and to write the old choice again would undo that.
        old = seen is not None and self._clock.seconds() - seen >= local.ttl * RENEW_SHARE
        if old or (mine is not choice and mine != choice):
            self._send(key, choice)
        local.put(key, choice)

    def recall(self, key: bytes, here: bool) -> Deferred[StickyChoice | None] | None:
        """Ask Redis for a client's choice; None where that is of no use, because what `get` gives is all there is.

        The Deferred never fails; it has the choice that `get` gives from then on, at the latest after RECALL_SECONDS.

        :param here: whether `get` gives one.
        """
        seen = self._known.get(key)
        if seen is not None and (here or seen == NEVER):
            return None
        redis = self._redis
        if not (redis.usable and redis.tracking) or self.local.ttl <= 0 or self.local.max_entries <= 0:
            return None
        recall = self._recalls.get(key)
        if recall is None:
            if len(self._recalls) >= MAX_RECALLS:
                return None
            recall = self._recalls[key] = _Recall()
            asking = Deferred.fromCoroutine(self._ask(key, recall))
            asking.addErrback(lambda failure: events.failed_unexpectedly(failure, "recalling a choice"))
        waiting: Deferred[StickyChoice | None] = Deferred()
        recall.waiting.append(waiting)
        late = self._clock.callLater(RECALL_SECONDS, self._answer, waiting, key)
        return waiting.addBoth(_stopped, late)

    def changed(self, keys: list[bytes] | None) -> None:
        """Redis names what others have changed, or what is gone."""
        if keys is None:
            self.forget()
            return
        for name in keys:
            key = client_of_sticky_key(name)
            if key is not None:
                self._known.pop(key, None)
                self._written.discard(key)
                if key in self._recalls:
                    self._recalls[key].stale = True

    def connected(self) -> None:
        """Redis can be used again: what it told before counts no more, and what waits is written."""
        self.forget()
        self._send_some()

    def forget(self) -> None:
        """Nothing is known any more of what the others do."""
        self._known.clear()
        self._written.clear()
        for recall in self._recalls.values():
            recall.stale = True

    async def _ask(self, key: bytes, recall: _Recall) -> None:
        try:
            (data,) = await self._redis.pipeline(("GET", sticky_key(key)))
        except RedisUnavailable:
            pass
        else:
            self._found(key, data, recall.stale)
        finally:
            del self._recalls[key]
            for waiting in recall.waiting:
                self._answer(waiting, key)

    def _answer(self, waiting: Deferred[StickyChoice | None], key: bytes) -> None:
        if not waiting.called:
            waiting.callback(self.local.get(key))

    def _found(self, key: bytes, data: object, stale: bool) -> None:
        """Take over what Redis has of a client, unless a newer choice is on its way there.

        :param stale: it has changed since; it counts for now, and is asked for again.
        """
        choice, mine = unpack_choice(data), self.local.get(key)
        if key in self._unsent or key in self._written:
            return
        if choice is None and mine is not None:
            self._send(key, mine)
            return
        if choice is not None and choice != mine:
            self.local.put(key, choice)
        if not stale:
            # when it was written is not known; should it end soon, Redis will say so
            self._know(key, NEVER if choice is None else self._clock.seconds())

    def _know(self, key: bytes, seen: float) -> None:
        self._known[key] = seen
        self._known.move_to_end(key)
        while len(self._known) > self.local.max_entries:
            self._known.popitem(last=False)

    def _send(self, key: bytes, choice: StickyChoice) -> None:
        if self.local.ttl <= 0 or (self._redis.usable and not self._redis.tracking):
            return
        self._unsent[key] = choice
        while len(self._unsent) > self.local.max_entries:
            self._unsent.popitem(last=False)
        self._send_some()

    def _send_some(self) -> None:
        if not self._sending and self._unsent and self._redis.usable and self._redis.tracking:
            self._sending = True
            # in the reactor's next turn, with all that this one brings
            self._clock.callLater(0, self._begin_sending)

    def _begin_sending(self) -> None:
        sending = Deferred.fromCoroutine(self._write())
        sending.addErrback(lambda failure: events.failed_unexpectedly(failure, "sharing choices"))

    async def _write(self) -> None:
        batch: list[tuple[bytes, StickyChoice]] = []
        try:
            while self._unsent and self._redis.usable:
                batch = [self._unsent.popitem(last=False) for _ in range(min(BATCH, len(self._unsent)))]
                await self._write_batch(batch)
        except RedisUnavailable as error:
            if not isinstance(error, RedisRefusal):  # what Redis refuses would be refused again
                for key, choice in batch:
                    self._unsent.setdefault(key, choice)
        finally:
            self._sending = False
            self._written.clear()

    async def _write_batch(self, batch: list[tuple[bytes, StickyChoice]]) -> None:
        lifetime = max(1, round(self.local.ttl * 1000))
        commands: list[Words] = []
        written = []
        for key, choice in batch:
            name, data = sticky_key(key), pack_choice(choice)
            if data is not None:
                written.append((key, data))
                # the GET has Redis watch the key, which writing does not
                commands += [("SET", name, data, "PX", lifetime), ("GET", name)]
        if not commands:
            return
        self._written = {key for key, _ in written}
        began = self._clock.seconds()
        answers = await self._redis.pipeline(*commands)
        for (key, data), there in zip(written, answers[1::2], strict=True):
            if there == data and key in self._written and key not in self._unsent:
                self._know(key, began)
        self._written.clear()


def _stopped(result: StickyChoice | Failure | None, late: IDelayedCall) -> StickyChoice | Failure | None:
    if late.active():
        late.cancel()
    return result
