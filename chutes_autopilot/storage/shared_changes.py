"""Which changes of models are still to be told by webhooks. Needs the extra ``redis``: import it only where it is used.

Each replica that sends webhooks notices each change, some minutes before or after the others. Redis knows of every
field what was told last, so whoever notices first tells it, and nobody else does; what changes back and then again is
news each time. Where Redis is away, each tells: all with the same id, as far as they see the change, and what came
before it, on one day.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from struct import Struct
from typing import Any

import msgspec
from attrs import define, evolve
from attrs import field as attribute
from twisted.internet.defer import Deferred

from chutes_autopilot.explorer.changes import Change, FieldChange
from chutes_autopilot.policy.shared_values import PREFIX, owned_name
from chutes_autopilot.storage.redis_connection import RedisConnection, RedisUnavailable, Words

KEPT_SECONDS = 86_400
"""How much later than the first another replica may notice a change."""

BATCH = 100
"""Fields in one go."""

MAX_TOLD_BYTES = 24

MAX_REMEMBERED = 4096
"""Messages of this process that can be given back, and fields of which it knows what became of them that day; some 300
bytes each."""

_AT = Struct(">d")


@define(eq=False)
class SharedChanges:
    """Claims changes.

    :param naming: of policy.shared_values.naming_key.
    :param fleet: keeps deployments apart (policy.shared_values.fleet_of).
    :param settled: a Deferred that fires once it is known whether Redis can be used, soon after the start.
    """

    _redis: RedisConnection
    _naming: bytes
    _fleet: str
    _settled: Callable[[], Deferred[None]]
    _former: OrderedDict[str, Mapping[str, tuple[bytes, bytes | None]]] = attribute(init=False, factory=OrderedDict)
    """By message: of each key what names the change that was claimed, and what it held before."""
    _seen: OrderedDict[str, tuple[int, bytes]] = attribute(init=False, factory=OrderedDict)
    """Of each key the day of the last change, and what stands for all of that day."""

    _untold: OrderedDict[str, float] = attribute(init=False, factory=OrderedDict)
    """When a key changed last of which Redis could not be told that."""

    async def claim(self, changes: Sequence[Change]) -> list[tuple[Change, str]]:
        """Those that no other replica has told, without the fields that one has, each with the id of its message."""
        await self._settled()
        parts = [(change, field) for change in changes for field in change.fields or (None,)]
        told: list[bytes | None] = []
        for start in range(0, len(parts), BATCH):
            told += await self._told(parts[start : start + BATCH])
        before, claimed = iter(told), list[tuple[Change, str]]()
        for change in changes:
            last = [(field, next(before)) for field in change.fields or (None,)]
            earlier = {field: self._saw(change, field) for field, _ in last}
            news = [(field, data) for field, data in last if not self._same(change, field, data)]
            if news:
                fields = tuple(field for field, _ in news if field is not None)
                message_id = self._id(change, news, earlier)
                claimed.append((evolve(change, fields=fields), message_id))
                self._remember(message_id, change, news)
        return claimed

    async def give_back(self, message_ids: Iterable[str]) -> None:
        """Let other replicas tell what was claimed for these messages, as far as they notice it from now on.

        Where somebody has claimed another change since, that one stays; but for one of the very moment between.
        """
        former = {key: held for message_id in message_ids for key, held in self._former.pop(message_id, {}).items()}
        keys = list(former)
        try:
            for start in range(0, len(keys), BATCH):
                batch = keys[start : start + BATCH]
                found = await self._redis.pipeline(*[("GET", key) for key in batch])
                # others that noticed the same have only set the time of it
                ours = [key for key, data in zip(batch, found, strict=True) if _begins(data, former[key][0])]
                if ours:
                    await self._redis.pipeline(*[self._restoring(key, former[key][1]) for key in ours])
        except RedisUnavailable:
            return  # what is noticed until Redis is back is told by each

    def _restoring(self, key: str, told: bytes | None) -> Words:
        return ("DEL", key) if told is None else ("SET", key, told, "EX", KEPT_SECONDS)

    def _remember(
        self, message_id: str, change: Change, news: Iterable[tuple[FieldChange | None, bytes | None]]
    ) -> None:
        held = {self._key(change, field): (self._name(change, field), told) for field, told in news}
        self._former[message_id] = {key: names for key, names in held.items() if key not in self._untold}
        while len(self._former) > MAX_REMEMBERED:
            self._former.popitem(last=False)

    async def _told(self, parts: Sequence[tuple[Change, FieldChange | None]]) -> list[bytes | None]:
        """What was told last of each field, which these are from now on; None where that is not known."""
        commands = [
            (
                "SET",
                self._key(change, field),
                self._name(change, field) + _AT.pack(change.at),
                "EX",
                KEPT_SECONDS,
                "GET",
            )
            for change, field in parts
        ]
        try:
            answers = await self._redis.pipeline(*commands)
        except RedisUnavailable:
            for change, field in parts:
                self._untold[self._key(change, field)] = change.at
            while len(self._untold) > MAX_REMEMBERED:
                self._untold.popitem(last=False)
            return [None] * len(parts)
        return [self._known(self._key(*part), data) for part, data in zip(parts, answers, strict=True)]

    def _known(self, key: str, data: Any) -> bytes | None:
        """What Redis says was told last, unless more has been told since, while it was away."""
        untold = self._untold.pop(key, None)
        if not isinstance(data, bytes) or len(data) != MAX_TOLD_BYTES:
            return None
        (at,) = _AT.unpack(data[-_AT.size :])
        return data if untold is None or at >= untold else None

    def _key(self, change: Change, field: FieldChange | None) -> str:
        kind = "" if field is None else field.field
        return f"{PREFIX}told:{self._fleet}:{owned_name(self._naming, change.key.encode(), kind).hex()}"

    def _name(self, change: Change, field: FieldChange | None) -> bytes:
        """What names a change of one field, or that a model came or went."""
        what = change.type if field is None else msgspec.json.encode(field.as_json()).decode()
        return owned_name(self._naming, change.key.encode(), what)

    def _same(self, change: Change, field: FieldChange | None, told: bytes | None) -> bool:
        return told is not None and told.startswith(self._name(change, field))

    def _saw(self, change: Change, field: FieldChange | None) -> bytes:
        """What stands for what this process saw of a field earlier that day; this change is the last from now on."""
        key, day = self._key(change, field), int(change.at // KEPT_SECONDS)
        last_day, earlier = self._seen.pop(key, (day, b""))
        if last_day != day:
            earlier = b""
        self._seen[key] = day, blake2b(self._name(change, field) + earlier, digest_size=16).digest()
        while len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        return earlier

    def _id(
        self,
        change: Change,
        news: Iterable[tuple[FieldChange | None, bytes | None]],
        earlier: Mapping[FieldChange | None, bytes],
    ) -> str:
        """The same wherever the change is told, but for one that came after another.

        :param earlier: by field, for those of which Redis does not say what was told last.
        """
        day = b"%d" % (change.at // KEPT_SECONDS)
        digest = blake2b(digest_size=12, key=self._naming)
        for field, told in news:
            digest.update(self._name(change, field) + (told or day + earlier[field]))
        return f"msg_{digest.hexdigest()}"


def _begins(data: Any, name: bytes) -> bool:
    return isinstance(data, bytes) and data.startswith(name)
