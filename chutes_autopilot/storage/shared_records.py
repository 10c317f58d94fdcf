"""What a client may ask for afterwards, at whatever replica: decision records and signed exchanges.

Needs the extra ``redis``: import it only where Redis is used. Both are written together with whatever else waits, and
read only where this process does not have them.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from chutes_autopilot.observe import events
from chutes_autopilot.policy.shared_values import DIGEST_BYTES, MAX_RECORD_BYTES, PREFIX, owned_name
from chutes_autopilot.storage.redis_connection import RedisConnection, RedisUnavailable

KEPT_MINUTES = 60
"""How long a decision record is kept, and nearly how long a search for one looks back."""

MAX_BYTES_A_MINUTE = 1_500_000
"""Decision records and their reasons, of all replicas, that are kept of one minute; the rest stays with each."""

FIELD_BYTES = 100
"""What a field costs Redis beside its name and its value."""

BYTES_FIELD = b"bytes"
"""The field in which a minute's bytes are added up."""

MAX_SEARCHES = 16
"""Searches at once; further ones find nothing."""

BATCH = 200
MAX_WAITING = 2000
"""Signed exchanges that are written in one go, and that wait to be; the oldest is left out then."""


@define(eq=False)
class SharedRecords:
    """Decision records: a hash for each minute, its fields named so that only the request's client finds its own.

    :param naming: of policy.shared_values.naming_key.
    :param now: Unix time.
    """

    _redis: RedisConnection
    _naming: bytes
    _now: Callable[[], float]
    _full: int = field(init=False, default=-1)
    """The minute that takes no more."""
    _writing: bool = field(init=False, default=False)
    _searches: int = field(init=False, default=0)

    @property
    def takes(self) -> bool:
        """Whether it makes sense to write now."""
        return self._redis.usable and not self._writing and self._full != self.minute

    @property
    def minute(self) -> int:
        """The one that is written to."""
        return int(self._now() // 60)

    def _key(self, minute: int) -> str:
        return f"{PREFIX}decisions:{minute}"

    def name(self, request_id: str, owner: bytes) -> bytes:
        """A record's field."""
        return b"d" + owned_name(self._naming, owner, request_id)

    def put(self, records: Mapping[bytes, bytes], reasons: Mapping[bytes, bytes]) -> None:
        """Write records; not waited for.

        :param records: by `name`; each begins with the DIGEST_BYTES that name its reasons, or with as many zeros.
        :param reasons: those of them that this minute has not got yet, by what names them.
        """
        fields = {b"r" + name: data for name, data in reasons.items() if len(data) <= MAX_RECORD_BYTES}
        fields |= {name: data for name, data in records.items() if len(data) <= MAX_RECORD_BYTES}
        if fields:
            self._writing = True
            writing = Deferred.fromCoroutine(self._put([part for pair in fields.items() for part in pair]))
            writing.addErrback(lambda failure: events.failed_unexpectedly(failure, "sharing decisions"))

    async def _put(self, words: Sequence[bytes]) -> None:
        minute = self.minute
        key = self._key(minute)
        try:
            life = ("EXPIRE", key, (KEPT_MINUTES + 2) * 60)
            size = sum(map(len, words)) + len(words) // 2 * FIELD_BYTES
            # counted first, so that nothing is written that is not counted
            total, _ = await self._redis.pipeline(("HINCRBY", key, BYTES_FIELD, size), life)
            if isinstance(total, int) and total < MAX_BYTES_A_MINUTE:
                await self._redis.pipeline(("HSET", key, *words))
            else:
                self._full = minute
        except RedisUnavailable:
            pass  # they stay here
        finally:
            self._writing = False

    async def find(self, request_id: str, owner: bytes) -> tuple[bytes, bytes | None] | None:
        """A record and its reasons, packed; None where there is none, or Redis cannot be used."""
        if self._searches >= MAX_SEARCHES or not self._redis.usable:
            return None
        self._searches += 1
        try:
            return await self._find(self.name(request_id, owner))
        except RedisUnavailable:
            return None
        finally:
            self._searches -= 1

    async def _find(self, name: bytes) -> tuple[bytes, bytes | None] | None:
        keys = [self._key(minute) for minute in range(self.minute, self.minute - KEPT_MINUTES - 1, -1)]
        found = await self._redis.pipeline(*[("HGET", key, name) for key in keys])
        for key, data in zip(keys, found, strict=True):
            if isinstance(data, bytes) and DIGEST_BYTES < len(data) <= MAX_RECORD_BYTES:
                (reasons,) = await self._redis.pipeline(("HGET", key, b"r" + data[:DIGEST_BYTES]))
                return data[DIGEST_BYTES:], reasons if isinstance(reasons, bytes) else None
        return None


@define(eq=False)
class SharedExchanges:
    """Signed exchanges, each for the time a signature can be asked for; what this process made it has itself.

    :param naming: of policy.shared_values.naming_key.
    :param ttl: seconds; as the local store's.
    """

    _redis: RedisConnection
    _naming: bytes
    _ttl: float
    _clock: IReactorTime
    _unsent: OrderedDict[str, bytes] = field(init=False, factory=OrderedDict)
    _sending: bool = field(init=False, default=False)

    def _key(self, caller: bytes, chat_id: str) -> str:
        return f"{PREFIX}signed:{owned_name(self._naming, caller, chat_id).hex()}"

    def put(self, caller: bytes, chat_id: str, data: bytes) -> None:
        """Let the others have one; not waited for.

        :param caller: what web.client_auth knows the caller by.
        """
        if self._ttl <= 0 or not self._redis.usable:
            return
        self._unsent[self._key(caller, chat_id)] = data
        while len(self._unsent) > MAX_WAITING:
            self._unsent.popitem(last=False)
        if not self._sending:
            self._sending = True
            self._clock.callLater(0, self._begin_sending)  # with all that this turn of the reactor brings

    async def get(self, caller: bytes, chat_id: str) -> bytes | None:
        """What another replica put; None where there is nothing, or Redis cannot be used."""
        try:
            (data,) = await self._redis.pipeline(("GET", self._key(caller, chat_id)))
        except RedisUnavailable:
            return None
        return data if isinstance(data, bytes) else None

    def _begin_sending(self) -> None:
        sending = Deferred.fromCoroutine(self._send())
        sending.addErrback(lambda failure: events.failed_unexpectedly(failure, "sharing signed exchanges"))

    async def _send(self) -> None:
        life = max(1, round(self._ttl * 1000))
        try:
            while self._unsent:
                batch = [self._unsent.popitem(last=False) for _ in range(min(BATCH, len(self._unsent)))]
                await self._redis.pipeline(*[("SET", key, data, "PX", life) for key, data in batch])
        except RedisUnavailable:
            self._unsent.clear()  # they can be asked for here
        finally:
            self._sending = False
