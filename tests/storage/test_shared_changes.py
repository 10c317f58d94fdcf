"""Of replicas that notice a change one tells it, whichever is first, in a real Redis."""

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from redis_process import RedisLog, RedisProcess
from twisted.internet.defer import Deferred, gatherResults, succeed

from chutes_autopilot.explorer.changes import Change, ChangeType, FieldChange
from chutes_autopilot.policy.shared_values import naming_key
from chutes_autopilot.storage import shared_changes
from chutes_autopilot.storage.redis_connection import RedisConnection, RedisUnavailable
from chutes_autopilot.storage.shared_changes import KEPT_SECONDS, SharedChanges

CONNECTED = "Redis is connected"
NOON = 1_800_057_600.0
Claimed = list[tuple[Change, str]]


def changes_of(redis: Any) -> SharedChanges:
    return SharedChanges(redis, naming_key(b"secret", b"change"), "fleet", lambda: succeed(None))


def model(kind: ChangeType, at: float = NOON, name: str = "m") -> Change:
    return Change(kind, at, f"v1:{name}", None, name)


def price(before: float, after: float, at: float = NOON, **fields: tuple[float, float]) -> Change:
    told = {"input": (before, after), **fields}
    named = tuple(FieldChange(f"price.{name}", *values, "usd_per_1m_tokens") for name, values in told.items())
    return Change("price.changed", at, "v1:m", None, "m", named)


async def one_by_one(*claims: Coroutine[Deferred[Any], Any, Claimed]) -> list[list[Change]]:
    return [[change for change, _ in await claim] for claim in claims]


async def test_whoever_notices_a_change_first_tells_it(
    redis: RedisProcess, connect: Callable[..., RedisConnection], redis_log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much later the others do, and each of those of one moment; what changes back and again is news, with an
    id of its own. The next day nothing is known of it any more."""
    monkeypatch.setattr(shared_changes, "BATCH", 2)
    ends = connect(redis), connect(redis)
    await redis_log.said(CONNECTED)
    await redis_log.said(CONNECTED)
    one, two = (changes_of(each) for each in ends)
    many = [model("model.added", name=f"m{number}") for number in range(5)]
    first, second = await gatherResults([Deferred.fromCoroutine(each.claim(many)) for each in (one, two)])
    assert sorted(change.name for change, _ in first + second) == ["m0", "m1", "m2", "m3", "m4"]
    came, gone, late = model("model.added"), model("model.removed"), model("model.added", NOON + 600)
    assert await one_by_one(two.claim([came]), one.claim([late]), one.claim([gone]), two.claim([gone])) == [
        [came],
        [],
        [gone],
        [],
    ]
    flips = [model(("model.added", "model.removed")[flip % 2], NOON + 60 * flip) for flip in range(4)]
    assert len({message_id for flip in flips for _, message_id in await one.claim([flip])}) == 4
    up, both = price(0.2, 0.3), price(0.2, 0.3, output=(1.0, 2.0))
    assert await one_by_one(one.claim([up]), two.claim([both]), two.claim([price(0.1, 0.3)])) == [
        [up],
        [Change("price.changed", NOON, "v1:m", None, "m", both.fields[1:])],
        [price(0.1, 0.3)],
    ]
    (key, *_) = await ends[0].command("KEYS", "autopilot:1:told:fleet:*")
    assert 0 < await ends[0].command("TTL", key) <= KEPT_SECONDS
    assert await ends[0].command("STRLEN", key) == shared_changes.MAX_TOLD_BYTES
    await ends[0].command("FLUSHDB")
    assert await one_by_one(two.claim([came])) == [[came]]


async def test_what_is_given_back_another_replica_may_tell(
    redis: RedisProcess, connect: Callable[..., RedisConnection], redis_log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same id, as what was told before counts again; not what another has claimed meanwhile."""
    monkeypatch.setattr(shared_changes, "BATCH", 2)
    ends = connect(redis), connect(redis)
    await redis_log.said(CONNECTED)
    await redis_log.said(CONNECTED)
    one, two, three = (changes_of(each) for each in (*ends, ends[1]))
    await one.claim([model("model.added")])
    many = [model("model.removed"), price(0.2, 0.3, output=(1.0, 2.0)), model("model.added", name="n")]
    claimed = await one.claim(many)
    assert await three.claim([price(0.2, 0.3, NOON + 30), many[2]]) == []
    other = model("model.removed", NOON + 60, name="n")
    await three.claim([other])
    await one.give_back(message_id for _, message_id in claimed)
    assert await two.claim(many[:2]) == claimed[:2]
    assert await one.claim([other, model("model.removed", NOON + 60)]) == []


class Away:
    """A Redis that is."""

    async def pipeline(self, *_commands: Any) -> list[Any]:
        raise RedisUnavailable("not connected", "connect")


async def test_without_redis_each_tells_with_the_same_id() -> None:
    """Its receiver knows it again; another change, or the same on another day, has another one."""
    one, two = changes_of(Away()), changes_of(Away())
    ids = {
        message_id
        for each, at in ((one, NOON), (two, NOON + 600))
        for _, message_id in await each.claim([model("model.added", at), price(1.0, 2.0, at)])
    }
    assert len(ids) == 2
    others = [model("model.removed"), model("model.added", NOON + KEPT_SECONDS), price(1.0, 3.0)]
    assert len(ids | {message_id for _, message_id in await one.claim(others)}) == 5
    other_secret = SharedChanges(Away(), naming_key(b"other", b"change"), "fleet", lambda: succeed(None))  # type: ignore[arg-type]
    flips = [model(("model.added", "model.removed")[flip % 2], NOON + 60 * flip, "flips") for flip in range(6)]
    flipped = [[message_id for flip in flips for _, message_id in await each.claim([flip])] for each in (one, two)]
    assert (flipped[0], len(set(flipped[0]))) == (flipped[1], 6)
    ((_, unguessed),) = await other_secret.claim([model("model.added")])
    assert unguessed not in ids


class Told:
    """A Redis that goes and comes."""

    def __init__(self) -> None:
        self.away = False
        self.held: dict[str, bytes] = {}

    async def pipeline(self, *commands: tuple[Any, ...]) -> list[Any]:
        if self.away:
            raise RedisUnavailable("not connected", "connect")
        before = [self.held.get(key) for _, key, *_ in commands]
        self.held |= {key: value for _, key, value, *_ in commands}
        return before


async def test_what_was_told_while_redis_was_away_counts_when_it_is_back() -> None:
    """What it knows from before is not taken for the last."""
    redis = Told()
    one, two = changes_of(redis), changes_of(redis)
    kinds: list[tuple[ChangeType, bool]] = [("model.removed", False), ("model.added", True), ("model.removed", False)]
    told = []
    for minute, (kind, redis.away) in enumerate(kinds):
        told.append([len(await each.claim([model(kind, NOON + 60 * minute)])) for each in (one, two)])
    assert told == [[1, 0], [1, 1], [1, 0]]


async def test_little_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the latest messages and fields."""
    monkeypatch.setattr(shared_changes, "MAX_REMEMBERED", 2)
    one = changes_of(Away())
    for number in range(5):
        await one.claim([model("model.added", name=f"m{number}")])
    assert (len(one._seen), len(one._untold), list(one._former.values())) == (2, 2, [{}, {}])
    here = changes_of(Told())
    for number in range(5):
        await here.claim([model("model.added", name=f"m{number}")])
    assert (len(here._seen), len(here._untold), len(here._former)) == (2, 0, 2)
