"""State that replicas share in a real Redis, each replica on a connection of its own."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from attrs import define, field
from played_redis import PlayedRedis
from redis_process import RedisLog, RedisProcess
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock, deferLater
from zope.interface.verify import verifyObject

from chutes_autopilot.explorer.changes import Change
from chutes_autopilot.interfaces import IStickyStore
from chutes_autopilot.policy.cooldown import CooldownRules
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.policy.shared_values import naming_key, pack_choice, sticky_key
from chutes_autopilot.policy.stickiness import StickyChoice
from chutes_autopilot.settings.redis_url import RedisServer
from chutes_autopilot.storage import redis_connection, shared_records
from chutes_autopilot.storage.memory import MemoryStickyStore
from chutes_autopilot.storage.redis import RedisClaims
from chutes_autopilot.storage.redis_connection import RedisConnection, RedisRefusal
from chutes_autopilot.storage.redis_lock import SharedLock
from chutes_autopilot.storage.shared_bodies import SharedBodies, SharedBody
from chutes_autopilot.storage.shared_changes import SharedChanges
from chutes_autopilot.storage.shared_cooldowns import SharedCooldowns
from chutes_autopilot.storage.shared_records import SharedExchanges, SharedRecords
from chutes_autopilot.storage.shared_sticky import NEVER, SharedStickyStore

CONNECTED = "Redis is connected"
NOW = 1_800_000_000.0
ALICE, BOB = b"a" * 32, b"b" * 32
A, B = StickyChoice("a/A"), StickyChoice("b/B", from_failover=True, preferred_failed_at=NOW)
NAMING = naming_key(b"secret", b"test")
Connect = Callable[..., RedisConnection]


class CountedConnection:
    """A connection as it is, and the commands that it got."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self.commands: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def pipeline(self, *commands: Any) -> Any:
        self.commands += [words[0] for words in commands]
        return self._connection.pipeline(*commands)


@define(eq=False)
class Replica:
    """A sticky store whose replica and connection a test can look at."""

    redis: CountedConnection
    local: MemoryStickyStore
    store: SharedStickyStore

    async def knows(self, key: bytes, choice: StickyChoice | None) -> None:
        """Wait until Redis watches a client's key for this replica, and its choice is this one."""
        await until(lambda: key in self.store._known)
        assert self.store.get(key) == choice

    async def recalls(self, key: bytes) -> StickyChoice | None:
        """What a request of this client gets."""
        recalling = self.store.recall(key, self.store.get(key) is not None)
        return self.store.get(key) if recalling is None else await recalling


async def until(holds: Callable[[], bool]) -> None:
    from twisted.internet import reactor

    while not holds():
        await deferLater(reactor, 0.001)


@pytest.fixture
def replica(redis: RedisProcess, connect: Connect) -> Callable[..., Replica]:
    """Makes replicas, not yet connected; ``changed`` goes to the store made last."""
    from twisted.internet import reactor

    def make(ttl: float = 100.0, max_entries: int = 10, **login: Any) -> Replica:
        local = MemoryStickyStore(ttl, max_entries, reactor.seconds)
        connection = CountedConnection(connect(redis, changed=lambda keys: store.changed(keys), **login))
        store = SharedStickyStore(local, connection, reactor)  # type: ignore[arg-type]
        connection.connected.append(store.connected)
        return Replica(connection, local, store)

    return make


async def test_a_choice_is_asked_for_once_and_kept_until_it_changes(
    replica: Callable[..., Replica], redis_log: RedisLog
) -> None:
    """A known client costs nothing; a changed choice is asked for again; that there is none is known as well."""
    one, two = replica(), replica()
    assert verifyObject(IStickyStore, one.store)
    await redis_log.said(CONNECTED)
    await redis_log.said(CONNECTED)
    assert await two.recalls(ALICE) is None
    assert await two.recalls(ALICE) is None
    assert two.redis.commands == ["GET"]
    one.store.put(ALICE, A)
    await one.knows(ALICE, A)
    await until(lambda: ALICE not in two.store._known)
    assert await two.recalls(ALICE) == A
    one.redis.commands.clear()
    two.redis.commands.clear()
    for each in (one, two) * 3:  # neither is told of what is no news
        each.store.put(ALICE, StickyChoice("a/A"))
        assert await each.recalls(ALICE) == A
    assert one.redis.commands + two.redis.commands == []
    two.store.put(ALICE, B)
    await until(lambda: ALICE not in one.store._known)
    one.store.put(ALICE, A)  # by a request that began before: it undoes nothing
    assert await one.recalls(ALICE) == B
    assert one.redis.commands == ["GET"]
    assert 0 < await one.redis.command("PTTL", sticky_key(ALICE)) <= 100_000


async def test_changes_are_heard_between_signs_of_life(
    replica: Callable[..., Replica], redis_log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis answers a PING on the connection by which it names changed keys, and neither is taken for the other."""
    monkeypatch.setattr(redis_connection, "PING_SECONDS", 0.001)
    one, two = replica(), replica()
    await redis_log.said(CONNECTED)
    await redis_log.said(CONNECTED)
    for choice in (A, B) * 20:
        one.store.put(ALICE, choice)
        await until(lambda: ALICE not in two.store._known)
        await one.knows(ALICE, choice)
        assert await two.recalls(ALICE) == choice
    stats = (await one.redis.command("INFO", "commandstats")).decode()
    assert int(re.search(r"cmdstat_ping:calls=(\d+)", stats)[1]) > 12, "4 are of logging in"
    assert (one.redis.epoch, two.redis.epoch) == (1, 1)


async def test_choices_of_one_moment_are_written_together(replica: Callable[..., Replica], redis_log: RedisLog) -> None:
    """In one go, and of one client the last one; two who wait for the same client ask once."""
    one, two = replica(), replica()
    await redis_log.said(CONNECTED)
    await redis_log.said(CONNECTED)
    one.store.put(ALICE, B)
    one.store.put(BOB, B)
    one.store.put(ALICE, A)
    await one.knows(ALICE, A)
    await one.knows(BOB, B)
    assert one.redis.commands == ["SET", "GET", "SET", "GET"]
    waiting = [two.store.recall(ALICE, False) for _ in range(3)]
    assert [await each for each in waiting if each is not None] == [A] * 3
    assert two.redis.commands == ["GET"]


async def test_what_was_chosen_without_redis_is_written_when_it_is_back(
    replica: Callable[..., Replica], redis: RedisProcess, redis_log: RedisLog
) -> None:
    """Until then each replica has its own; afterwards what it knew before is asked for anew."""
    one = replica()
    await redis_log.said(CONNECTED)
    one.store.put(BOB, A)
    await one.knows(BOB, A)
    redis.kill()
    await until(lambda: not one.redis.usable)
    assert one.store.recall(ALICE, False) is None
    one.store.put(ALICE, A)
    redis.start()
    two = replica()
    await redis_log.said(CONNECTED)
    await redis_log.said(CONNECTED)
    await one.knows(ALICE, A)
    assert await two.recalls(ALICE) == A
    assert await one.recalls(BOB) == A  # Redis has lost it: it is written again
    await one.knows(BOB, A)
    assert await two.recalls(BOB) == A


async def test_what_redis_has_may_be_anything(replica: Callable[..., Replica], redis_log: RedisLog) -> None:
    """A value that nobody of us wrote counts as none; a choice too long to be shared stays here."""
    one = replica()
    await redis_log.said(CONNECTED)
    await one.redis.command("SET", sticky_key(ALICE), b"[1]")
    assert await one.recalls(ALICE) is None
    assert one.store._known[ALICE] == NEVER
    one.store.put(BOB, StickyChoice("x" * 1000))
    one.store.put(ALICE, A)
    await one.knows(ALICE, A)
    assert BOB not in one.store._known
    assert await one.redis.command("EXISTS", sticky_key(BOB)) == 0


async def test_stickiness_needs_to_hear_of_changes(
    replica: Callable[..., Replica], redis: RedisProcess, connect: Connect, redis_log: RedisLog
) -> None:
    """Where Redis refuses to tell of them, nothing is asked and nothing is written, and the log says so; claims go on;
    what else is refused is said once."""
    operator = connect(redis)
    await redis_log.said(CONNECTED)
    rights = ["~*", "+set", "-client|tracking"]
    await operator.command("ACL", "SETUSER", "little", "on", ">word", *rights)
    one = replica(username="little", password="word")
    await redis_log.said("Redis refuses CLIENT TRACKING: stickiness stays in each process")
    await redis_log.said(CONNECTED)
    one.store.put(ALICE, A)
    assert one.store.recall(BOB, False) is None
    assert await RedisClaims(one.redis, lambda: NOW, 0).claim("nonce", int(NOW) + 100_000_000) is None  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(Exception, match="NOPERM to GET"):
            await one.redis.pipeline(("GET", "x"))
    assert one.redis.refusal == "NOPERM to GET"
    assert one.redis.fault is None
    assert redis_log.lines.count("Redis refuses what replicas share: NOPERM to GET") == 1


class SlowConnection:
    """A connection whose answers a test gives."""

    usable = tracking = True
    epoch = 1

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[Any, ...], Deferred[list[Any]]]] = []

    def pipeline(self, *commands: Any) -> Deferred[list[Any]]:
        answer: Deferred[list[Any]] = Deferred()
        self.asked.append((commands, answer))
        return answer


def test_a_choice_that_stays_is_written_again_before_its_end() -> None:
    """When a quarter of its time is over, and no sooner, however often its client comes."""
    clock, connection = Clock(), SlowConnection()
    store = SharedStickyStore(MemoryStickyStore(100.0, 10, clock.seconds), connection, clock)  # type: ignore[arg-type]
    store.put(ALICE, A)
    for _ in range(101):
        clock.advance(1)
        for commands, answer in connection.asked:
            if not answer.called:
                answer.callback(["OK", commands[0][2]])
        store.put(ALICE, A)
    assert [commands[0] for commands, _ in connection.asked] == [
        ("SET", sticky_key(ALICE), b'["a/A",false,0.0]', "PX", 100_000)
    ] * 4


def test_a_choice_that_a_demoted_primary_refused_is_written_at_the_new_one() -> None:
    """Also what was chosen while there was none to write to; but not what a full Redis has refused."""
    clock = Clock()
    redis, local = PlayedRedis(clock), MemoryStickyStore(100.0, 10, clock.seconds)
    where = cast(IStreamClientEndpoint, redis)
    connection = RedisConnection(clock, where, RedisServer("h"), 0.25, changed=lambda keys: store.changed(keys))
    store = SharedStickyStore(local, connection, clock)
    connection.connected.append(store.connected)
    connection.startService()

    def shared() -> list[bytes]:
        clock.pump([0.05] * 40)
        return sorted(redis.kept.keys() & {sticky_key(ALICE), sticky_key(BOB)})

    assert shared() == []
    redis.refuses["SET"] = "OOM command not allowed"
    store.put(BOB, A)
    assert shared() == []
    redis.refuses["SET"] = "READONLY You can't write against a read only replica"
    store.put(ALICE, A)
    assert (shared(), connection.usable) == ([], False)
    store.put(ALICE, B)
    redis.refuses.clear()
    assert shared() == [sticky_key(ALICE)]
    assert redis.kept[sticky_key(ALICE)] == pack_choice(B)
    redis.refuses["SET"] = "READONLY You can't write against a read only replica"
    store.put(ALICE, A)
    assert (shared(), connection.usable) == ([sticky_key(ALICE)], False)
    redis.refuses.clear()
    assert shared() == [sticky_key(ALICE)]
    assert redis.kept[sticky_key(ALICE)] == pack_choice(A)
    connection.stopService()
    clock.pump([0.05] * 20)
    assert clock.getDelayedCalls() == []


def test_an_older_answer_does_not_undo_a_choice() -> None:
    """What was asked for before a choice was made here says nothing against it; nor is a choice known that was changed
    by another while it was written, and what is written while one is under way is written after it."""
    clock, connection = Clock(), SlowConnection()
    store = SharedStickyStore(MemoryStickyStore(100.0, 10, clock.seconds), connection, clock)  # type: ignore[arg-type]
    assert store.recall(ALICE, False) is not None
    store.put(ALICE, A)
    clock.advance(0)
    (_, got), (written, done) = connection.asked
    got.callback([b'["b/B",false,0]'])
    assert store.get(ALICE) == A
    assert [words[0] for words in written] == ["SET", "GET"]
    store.put(ALICE, B)
    store.changed([sticky_key(ALICE)])
    done.callback(["OK", written[0][2]])
    assert ALICE not in store._known
    written, done = connection.asked[2]
    done.callback(["OK", written[0][2]])
    assert store._known.keys() == {ALICE}
    assert store.get(ALICE) == B
    assert len(connection.asked) == 3
    assert clock.getDelayedCalls() == []


async def test_the_rights_of_the_documents_are_enough(
    replica: Callable[..., Replica], redis: RedisProcess, connect: Connect, redis_log: RedisLog
) -> None:
    """A user with those alone can share everything, and nothing is warned about but the policy it may not see."""
    text = (Path(__file__).parent.parent.parent / "docs" / "scaling.md").read_text()
    told = re.search(r"The user of the URL needs\s+`(.+?)`", text, re.DOTALL)
    assert told is not None
    operator = connect(redis)
    await redis_log.said(CONNECTED)
    await operator.command("ACL", "SETUSER", "told", "on", ">word", "resetchannels", *told[1].split())
    redis_log.lines.clear()
    one, two = (replica(username="told", password="word", db=1) for _ in range(2))
    await until(lambda: redis_log.lines.count(CONNECTED) == 2)
    one.store.put(ALICE, A)
    await one.knows(ALICE, A)
    assert await two.recalls(ALICE) == A
    one.store.put(ALICE, B)
    await until(lambda: ALICE not in two.store._known)
    pool: Any = one.redis
    health, clock = FleetHealth(CooldownRules(1, 10.0, 300.0)), Clock()
    cooldowns = SharedCooldowns(pool, health, "fleet", clock.seconds)
    health.told = cooldowns.told
    health.failed("a/A", 0.0)
    health.succeeded("a/A", None, 0.0)
    await until(lambda: not cooldowns._sending)
    records = SharedRecords(pool, NAMING, clock.seconds)
    records.put({records.name("r", ALICE): b"x" * 20}, {})
    await until(lambda: not records._writing)
    assert await records.find("r", ALICE) is not None
    bodies = SharedBodies(pool, NAMING, lambda work, *given: at_once(work(*given)), 100, lambda: at_once(None))
    bodies.share("autopilot:1:feed:x", b"body", NOW, 20.0)
    await until_shared(bodies, "autopilot:1:feed:x")
    lock = SharedLock(pool, clock, "test")
    lock.startService()
    await until(lambda: lock.held)
    clock.advance(2)
    await maybeDeferred(lock.stopService)
    changes = SharedChanges(pool, NAMING, "fleet", lambda: at_once(None))
    change = Change("model.added", NOW, "v1:m", None, "m")
    assert [len(await changes.claim([change])) for _ in range(2)] == [1, 0]
    await RedisClaims(pool, lambda: NOW, 0).claim("nonce", int(NOW) + 100_000_000)
    assert pool.refusal is None
    assert [line for line in redis_log.lines if line.startswith("Redis refuses")] == []


async def until_shared(bodies: SharedBodies, name: str) -> None:
    while await bodies.get(name) is None:
        pass


async def test_a_late_answer_is_not_waited_for(
    replica: Callable[..., Replica], redis: RedisProcess, redis_log: RedisLog
) -> None:
    """The request gets what is known here; when the answer comes after all, later requests have it."""
    one, two = replica(), replica()
    await redis_log.said(CONNECTED)
    await redis_log.said(CONNECTED)
    one.store.put(ALICE, A)
    await one.knows(ALICE, A)
    redis.pause()
    assert await two.recalls(ALICE) is None
    redis.resume()
    await two.knows(ALICE, A)


async def test_no_more_is_kept_than_clients_are_remembered(
    replica: Callable[..., Replica], redis_log: RedisLog
) -> None:
    """Neither of what Redis watches nor of what waits to be written."""
    one = replica(max_entries=3)
    for number in range(10):
        one.store.put(b"%032d" % number, A)
    assert len(one.store._unsent) == 3
    await redis_log.said(CONNECTED)
    for number in range(10):
        await one.recalls(b"x%031d" % number)
    assert len(one.store._known) == 3


async def test_cooldowns_are_everybodys(redis: RedisProcess, connect: Connect, redis_log: RedisLog) -> None:
    """What one finds failing cools for all, at once for those who are there and from the start for those who come;
    longer with each failed probe, and it is over for all when it answers one of them."""
    clock = Clock()
    clock.advance(NOW)

    def join() -> tuple[FleetHealth, SharedCooldowns]:
        health = FleetHealth(CooldownRules(1, 10.0, 300.0))
        connection = connect(redis, changed=lambda keys: shared.changed(keys))
        shared = SharedCooldowns(connection, health, "fleet", clock.seconds)
        connection.connected.append(shared.connected)
        health.told = shared.told
        return health, shared

    (one, _), (two, _) = join(), join()
    await redis_log.said(CONNECTED)
    await redis_log.said(CONNECTED)
    one.failed("a/A", clock.seconds())
    await until(lambda: two.is_cooling("a/A", clock.seconds()))
    three, _ = join()
    await until(lambda: three.is_cooling("a/A", clock.seconds()))
    clock.advance(10)
    assert not two.is_cooling("a/A", clock.seconds())
    assert two.started("a/A", clock.seconds())
    two.failed("a/A", clock.seconds(), probe=True)
    await until(lambda: one.is_cooling("a/A", clock.seconds()))
    assert one.left(["a/A"], clock.seconds()) == 20
    two.succeeded("a/A", None, clock.seconds())
    await until(lambda: not one.is_cooling("a/A", clock.seconds()))
    await until(lambda: not three.is_cooling("a/A", clock.seconds()))


async def test_shared_cooldowns_outlive_the_longest(redis: RedisProcess, connect: Connect, redis_log: RedisLog) -> None:
    """Where Redis forgets the hash, all that cools down is lifted: a day's cooldown is still there when it ends."""
    health, pool = FleetHealth(CooldownRules(1, 86_400.0, 86_400.0)), connect(redis)
    shared = SharedCooldowns(pool, health, "fleet", lambda: NOW)
    health.told = shared.told
    await redis_log.said(CONNECTED)
    health.failed("a/A", NOW)
    await until(lambda: not shared._sending)
    assert await pool.command("TTL", "autopilot:1:cooling:fleet") > 86_400


@define(eq=False)
class Locks:
    """Locks of one name, in beats of a clock."""

    clock: Clock
    made: list[SharedLock] = field(factory=list)
    taken: list[int] = field(factory=list)

    def make(self, connection: RedisConnection) -> SharedLock:
        number = len(self.made)
        lock = SharedLock(connection, self.clock, "test", 2.0, lambda: self.taken.append(number))
        self.made.append(lock)
        return lock


async def test_one_holds_the_lock_and_leaves_it_to_another(
    redis: RedisProcess, connect: Connect, redis_log: RedisLog
) -> None:
    """At its stop, when it resigns, and when it renews it no more; each time the other is told at its next beat."""
    locks, ends = Locks(Clock()), [connect(redis), connect(redis)]
    await redis_log.said(CONNECTED)
    await redis_log.said(CONNECTED)
    one, two = (locks.make(each) for each in ends)
    one.startService()
    await until(lambda: one.held)
    two.startService()
    locks.clock.advance(2)
    assert 4000 < await ends[0].command("PTTL", "autopilot:1:lock:test") <= 6000
    assert (one.held, two.held, locks.taken) == (True, False, [0])
    one.resign()
    await until_beaten(locks, two)
    locks.clock.advance(2)
    await ends[0].command("PING")
    assert not one.held
    await maybeDeferred(two.stopService)
    locks.clock.advance(30)
    await until_beaten(locks, one)
    await ends[0].command("SET", "autopilot:1:lock:test", "somebody else")  # whoever had it stood still for too long
    locks.clock.advance(2)
    await until(lambda: not one.held)
    assert locks.taken == [0, 1, 0]
    await maybeDeferred(one.stopService)
    assert await ends[0].command("GET", "autopilot:1:lock:test") == b"somebody else"
    assert locks.clock.getDelayedCalls() == []


async def test_a_lock_given_up_while_it_is_asked_for_is_given_up(
    redis: RedisProcess, connect: Connect, redis_log: RedisLog
) -> None:
    """Whether it was held before or is got just then: nobody thinks to have what nobody renews, and another may."""
    locks, ends = Locks(Clock()), [connect(redis), connect(redis)]
    await redis_log.said(CONNECTED)
    await redis_log.said(CONNECTED)
    late, held = (locks.make(each) for each in ends)
    late.startService()
    late.resign()
    await until(lambda: late._beating is None)
    assert await ends[0].command("EXISTS", "autopilot:1:lock:test") == 0
    held.startService()
    await until(lambda: held.held)
    locks.clock.advance(2)
    assert held._beating is not None
    held.resign()
    await until(lambda: held._beating is None)
    assert not held.held
    assert await ends[0].command("EXISTS", "autopilot:1:lock:test") == 0
    for each in (late, held):
        await maybeDeferred(each.stopService)


async def until_beaten(locks: Locks, lock: SharedLock) -> None:
    """Let the clock go on until a lock is held; no longer than a lock lives."""
    from twisted.internet import reactor

    while not lock.held:
        locks.clock.advance(2)
        await deferLater(reactor, 0.005)


async def test_a_record_is_found_by_its_client_within_the_hour(
    redis: RedisProcess, connect: Connect, redis_log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reasons it names, under no name that tells of the client; a minute takes no more than it may."""
    connection, clock = connect(redis), Clock()
    clock.advance(NOW)
    await redis_log.said(CONNECTED)
    records = SharedRecords(connection, NAMING, clock.seconds)
    reasons = b"r" * 16

    async def put(name: bytes, data: bytes) -> None:
        records.put({name: data}, {reasons: b"why"})
        assert not records.takes
        await until(lambda: not records._writing)

    await put(records.name("r1", ALICE), reasons + b"record")
    clock.advance(3600)
    assert await records.find("r1", ALICE) == (b"record", b"why")
    assert await records.find("r1", BOB) is None
    clock.advance(60)
    assert await records.find("r1", ALICE) is None
    (key,) = await connection.command("KEYS", "*")
    assert ALICE not in b"".join(await connection.command("HKEYS", key))
    assert 3600 < await connection.command("TTL", key) <= 3720
    monkeypatch.setattr(shared_records, "MAX_BYTES_A_MINUTE", 1000)
    await put(records.name("r2", ALICE), bytes(16) + b"record")
    assert await records.find("r2", ALICE) == (b"record", None)
    assert records.takes
    await put(records.name("r3", ALICE), bytes(16) + b"r" * 500)
    assert not records.takes, "however few they are"
    assert await records.find("r3", ALICE) is None
    clock.advance(60)
    assert records.takes
    monkeypatch.setattr(shared_records, "MAX_SEARCHES", 0)
    assert await records.find("r2", ALICE) is None


async def test_no_record_is_written_that_is_not_counted() -> None:
    """As for a user of Redis that may not count."""
    asked = []

    class Refusing:
        usable = True

        async def pipeline(self, *commands: tuple[Any, ...]) -> list[Any]:
            asked.extend(words[0] for words in commands)
            raise RedisRefusal("NOPERM", "HINCRBY")

    records = SharedRecords(Refusing(), NAMING, lambda: NOW)  # type: ignore[arg-type]
    records.put({records.name("r", ALICE): bytes(16) + b"record"}, {})
    assert (asked, records.takes) == (["HINCRBY", "EXPIRE"], True)


async def test_a_signed_exchange_is_found_for_its_time(
    redis: RedisProcess, connect: Connect, redis_log: RedisLog
) -> None:
    """By its caller alone, and Redis forgets it by itself."""
    from twisted.internet import reactor

    connection = connect(redis)
    await redis_log.said(CONNECTED)
    exchanges = SharedExchanges(connection, NAMING, 50.0, reactor)
    exchanges.put(ALICE, "chat-1", b"one")
    exchanges.put(ALICE, "chat-2", b"two")
    await until(lambda: not exchanges._sending)
    assert await exchanges.get(ALICE, "chat-1") == b"one"
    assert await exchanges.get(BOB, "chat-1") is None
    for key in await connection.command("KEYS", "*"):
        assert 0 < await connection.command("PTTL", key) <= 50_000
        assert b"chat" not in key


async def test_an_answer_is_read_where_it_is_newer(redis: RedisProcess, connect: Connect, redis_log: RedisLog) -> None:
    """With its time, to those who asked with the same credential, which no key tells."""
    connection = connect(redis)
    await redis_log.said(CONNECTED)
    bodies = SharedBodies(connection, NAMING, lambda work, *given: at_once(work(*given)), 100, lambda: at_once(None))
    name = bodies.name("feed", "https://x/y", credential="Bearer cpk_secret")
    assert name != bodies.name("feed", "https://x/y")
    assert "secret" not in name
    bodies.share(name, b"body", NOW, 20.0)
    await until_shared(bodies, name)
    assert await bodies.get(name, NOW - 1) == SharedBody(b"body", NOW)
    assert await bodies.get(name, NOW) is None
    assert 0 < await connection.command("PTTL", name) <= 20_000
    await connection.command("HSET", name, "at", "9" * 5000)
    assert await bodies.get(name) is None


def at_once(result: Any) -> Deferred[Any]:
    done: Deferred[Any] = Deferred()
    done.callback(result)
    return done
