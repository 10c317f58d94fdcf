"""Nonces claimed in a real Redis, which is shared, and may be late, wrong, full or gone."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trustme
from attrs import define, field
from played_redis import PlayedRedis
from redis_process import UNLIKELY, RedisLog, RedisProcess
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from chutes_autopilot.chutes_composition import build_claims
from chutes_autopilot.e2ee.replay import claim_expiry
from chutes_autopilot.errors import ApiError
from chutes_autopilot.interfaces import IReplayClaims
from chutes_autopilot.settings import read_settings
from chutes_autopilot.settings.redis_url import RedisServer
from chutes_autopilot.storage.redis import RedisClaims
from chutes_autopilot.storage.redis_connection import UNFIT, Changed, RedisConnection, Words, redis_endpoint

UNAVAILABLE = f"503 e2ee_replay_unavailable {((b'Retry-After', b'1'),)}"
CONNECTED = "Redis is connected"
Connect = Callable[..., RedisConnection]
MakeRedis = Callable[..., RedisProcess]


def claims_in(connection: RedisConnection, kept_longer: int = 0) -> RedisClaims:
    return RedisClaims(connection, time.time, kept_longer)


def soon() -> int:
    return int(time.time()) + 100


async def code(claiming: Deferred[None]) -> str | None:
    """What a claim failed with; None: it was made."""
    try:
        await claiming
    except ApiError as error:
        return error.code if error.status == 400 else f"{error.status} {error.code} {error.headers}"
    return None


async def test_a_nonce_is_claimed_once_among_all(redis: RedisProcess, connect: Connect, redis_log: RedisLog) -> None:
    """What one service claimed, another cannot, with whatever timestamp; Redis forgets it at its end by itself."""
    mine, other = connect(redis), connect(redis)
    await redis_log.said(CONNECTED)
    await redis_log.said(CONNECTED)
    expiry = soon()
    assert verifyObject(IReplayClaims, claims_in(mine))
    assert await code(claims_in(mine).claim("nonce", expiry)) is None
    assert await code(claims_in(other).claim("nonce", expiry)) == "e2ee_replay_detected"
    assert await code(claims_in(other).claim("nonce", expiry + 1)) == "e2ee_replay_detected"
    assert await code(claims_in(mine).claim("nonce", expiry)) == "e2ee_replay_detected"
    assert await code(claims_in(other).claim("another", expiry)) is None
    assert 90_000 < await mine.command("PTTL", "e2ee:claim:nonce") <= 100_000


async def test_claims_of_an_earlier_start_are_heeded_however_the_window_grew(
    redis: RedisProcess, connect: Connect, redis_log: RedisLog
) -> None:
    """They are kept for so long that no window which may be set makes their requests pass again."""
    connection = connect(redis)
    await redis_log.said(CONNECTED)
    assert await code(claims_in(connection, 3300).claim("nonce", soon())) is None
    assert 3_390_000 < await connection.command("PTTL", "e2ee:claim:nonce") <= 3_400_000


async def test_one_of_many_at_the_same_time_wins(redis: RedisProcess, connect: Connect, redis_log: RedisLog) -> None:
    """Of claims that are under way together, exactly one is made."""
    services = [claims_in(connect(redis)) for _ in range(2)]
    await redis_log.said(CONNECTED)
    await redis_log.said(CONNECTED)
    under_way = [services[number % 2].claim("nonce", soon()) for number in range(20)]
    outcomes = [await code(claiming) for claiming in under_way]
    assert (outcomes.count(None), outcomes.count("e2ee_replay_detected")) == (1, 19)


async def test_a_claim_whose_end_is_past_is_refused(redis: RedisProcess, connect: Connect, redis_log: RedisLog) -> None:
    """Redis would keep nothing of it, and so it could be made again."""
    claims = claims_in(connect(redis))
    await redis_log.said(CONNECTED)
    assert await code(claims.claim("nonce", soon() - 200)) == "e2ee_invalid_timestamp"


async def test_a_killed_redis_means_503_until_it_is_back(
    redis: RedisProcess, connect: Connect, redis_log: RedisLog
) -> None:
    """Without Redis no claim is made, from memory neither; when it is there again, so are claims, with no restart."""
    claims = claims_in(connect(redis))
    await redis_log.said(CONNECTED)
    redis.kill()
    assert await code(claims.claim("nonce", soon())) == UNAVAILABLE
    assert await code(claims.claim("nonce", soon())) == UNAVAILABLE
    redis.start()
    await redis_log.said(CONNECTED)
    assert await code(claims.claim("nonce", soon())) is None


async def test_redis_may_come_later(make_redis: MakeRedis, connect: Connect, redis_log: RedisLog) -> None:
    """The service starts without Redis, says so once, and finds it when it comes."""
    redis = make_redis()
    claims = claims_in(connect(redis))
    assert await code(claims.claim("nonce", soon())) == UNAVAILABLE
    missing = "Redis cannot be used: ConnectError"
    await redis_log.said(missing)
    redis.start()
    await redis_log.said(CONNECTED)
    assert await code(claims.claim("nonce", soon())) is None
    assert redis_log.lines == [missing, CONNECTED]


async def test_a_late_redis_means_503_in_time(redis: RedisProcess, connect: Connect, redis_log: RedisLog) -> None:
    """Who waits is answered when the time is over, who comes then at once; afterwards Redis is used again."""
    connection = connect(redis)
    claims = claims_in(connection)
    await redis_log.said(CONNECTED)
    connection.timeout = 0.05
    redis.pause()
    began = time.monotonic()
    under_way = [claims.claim(name, soon()) for name in "abc"]
    assert [await code(claiming) for claiming in under_way] == [UNAVAILABLE] * 3
    assert await code(claims.claim("d", soon())) == UNAVAILABLE
    assert 0.05 <= time.monotonic() - began < 2
    await redis_log.said("Redis cannot be used: timeout")
    connection.timeout = UNLIKELY
    redis.resume()
    await redis_log.said(CONNECTED)
    assert await code(claims.claim("e", soon())) is None


async def test_a_wrong_password_is_told_without_it(
    make_redis: MakeRedis, connect: Connect, redis_log: RedisLog
) -> None:
    """Claims get 503, and the log says why in Redis's word, without user or password; none at all is told too."""
    redis = make_redis("--requirepass", "right")
    redis.start()
    wrong = claims_in(connect(redis, username="somebody", password="hunter2"))
    await redis_log.said("Redis cannot be used: WRONGPASS to AUTH")
    assert await code(wrong.claim("nonce", soon())) == UNAVAILABLE
    connect(redis)
    await redis_log.said("Redis cannot be used: NOAUTH to PING")
    right = claims_in(connect(redis, password="right", db=3))
    await redis_log.said(CONNECTED)
    assert await code(right.claim("nonce", soon())) is None
    text = "\n".join(redis_log.lines)
    assert not any(secret in text for secret in ("hunter2", "somebody", "right"))


async def test_a_user_who_may_do_little_is_enough(redis: RedisProcess, connect: Connect, redis_log: RedisLog) -> None:
    """SET on our keys is all that is needed; what cannot be looked at is warned about."""
    operator = connect(redis)
    await redis_log.said(CONNECTED)
    await operator.command("ACL", "SETUSER", "autopilot", "on", ">pass word", "~e2ee:claim:*", "+set")
    claims = claims_in(connect(redis, username="autopilot", password="pass word"))
    await redis_log.said("Redis does not tell its maxmemory-policy, which must be noeviction")
    await redis_log.said(CONNECTED)
    assert await code(claims.claim("nonce", soon())) is None


async def test_a_redis_that_evicts_is_warned_about(
    make_redis: MakeRedis, connect: Connect, redis_log: RedisLog
) -> None:
    """Claims have an end, so a policy that evicts such keys would forget them."""
    redis = make_redis("--maxmemory-policy", "volatile-lru")
    redis.start()
    connect(redis)
    await redis_log.said("Redis may forget what it must keep: its maxmemory-policy is not noeviction")
    await redis_log.said(CONNECTED)


async def test_a_demoted_primary_is_left_for_the_new_one(
    redis: RedisProcess, make_redis: MakeRedis, connect: Connect, redis_log: RedisLog
) -> None:
    """Its refusal is no claim and ends the connection, so that the name is looked up anew."""
    from twisted.internet import reactor

    promoted = make_redis()
    promoted.start()
    leads_to = redis.path

    class Name:
        def connect(self, factory: Any) -> Deferred[Any]:
            return UNIXClientEndpoint(reactor, leads_to).connect(factory)

    connection = connect(redis, endpoint=Name())
    claims = claims_in(connection)
    await redis_log.said(CONNECTED)
    await connection.command("REPLICAOF", "127.0.0.1", "1")
    leads_to = promoted.path
    assert await code(claims.claim("nonce", soon())) == UNAVAILABLE
    await redis_log.said(CONNECTED)
    assert await code(claims.claim("nonce", soon())) is None
    assert redis_log.lines == [CONNECTED, "Redis cannot be used: READONLY to SET", CONNECTED]


async def test_databases_are_apart(redis: RedisProcess, connect: Connect, redis_log: RedisLog) -> None:
    """The database of the URL is the one that is used."""
    for db in (0, 5):
        claims = claims_in(connect(redis, db=db))
        await redis_log.said(CONNECTED)
        assert await code(claims.claim("nonce", soon())) is None


async def test_stopping_waits_for_nothing_but_the_socket(
    redis: RedisProcess, connect: Connect, redis_log: RedisLog
) -> None:
    """A connection can be stopped while it is used, and while Redis keeps it waiting for its login."""
    used = connect(redis)
    await redis_log.said(CONNECTED)
    redis.pause()
    claiming = claims_in(used).claim("nonce", soon())
    connect(redis)  # Redis accepts nothing any more; the fixture stops it
    await used.stopService()
    assert await code(claiming) == UNAVAILABLE
    assert await code(claims_in(used).claim("other", soon())) == UNAVAILABLE


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_redis_by_tcp(
    make_redis: MakeRedis, connect: Connect, redis_log: RedisLog, free_port: int, host: str
) -> None:
    """Host and port of the URL lead to Redis."""
    from twisted.internet import reactor

    redis = make_redis("--port", str(free_port), "--bind", "127.0.0.1")
    redis.start()
    connection = connect(redis, endpoint=redis_endpoint(reactor, RedisServer(host, free_port), None))
    await redis_log.said(CONNECTED)
    assert await code(claims_in(connection).claim("nonce", soon())) is None


async def test_tls_checks_who_answers(
    make_redis: MakeRedis, connect: Connect, redis_log: RedisLog, free_port: int, tmp_path: Path
) -> None:
    """A Redis of an unknown authority or another name is not used; the right one is."""
    from twisted.internet import reactor

    authority, unknown = trustme.CA(), trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    files = {"cert": "cert.pem", "key": "key.pem", "ca-cert": "ca.pem"}
    options = [word for name, file in files.items() for word in (f"--tls-{name}-file", str(tmp_path / file))]
    redis = make_redis("--tls-port", str(free_port), "--bind", "127.0.0.1", "--tls-auth-clients", "no", *options)
    try:
        redis.start()
    except RuntimeError as error:
        pytest.skip(f"this redis-server has no TLS: {error}")

    def reach(host: str, ca: trustme.CA) -> RedisConnection:
        trust_root = trustRootFromCertificates([Certificate.loadPEM(ca.cert_pem.bytes())])
        server = RedisServer(host, free_port, tls=True)
        return connect(redis, endpoint=redis_endpoint(reactor, server, trust_root))

    for host, ca, reason in (
        ("127.0.0.1", unknown, "TLS or certificate"),
        ("localhost", authority, "TLS or certificate"),
    ):
        refused = reach(host, ca)
        await redis_log.said(f"Redis cannot be used: {reason}")
        assert await code(claims_in(refused).claim("nonce", soon())) == UNAVAILABLE
        await refused.stopService()
    claims = claims_in(reach("127.0.0.1", authority))
    await redis_log.said(CONNECTED)
    assert await code(claims.claim("nonce", soon())) is None


async def test_a_login_without_end_is_given_up(redis: RedisProcess, connect: Connect, redis_log: RedisLog) -> None:
    """A Redis that takes the connection and says nothing is tried again."""
    redis.pause()
    connect(redis, login_timeout=0.05)
    await redis_log.said("Redis cannot be used: timeout")
    redis.resume()
    await redis_log.said(CONNECTED)


def test_pauses_between_attempts_grow() -> None:
    """Where nobody listens, attempts come at growing intervals of at most two seconds, for ever."""
    clock = Clock()
    attempts: list[float] = []

    class Nowhere:
        def connect(self, factory: object) -> Deferred[None]:
            attempts.append(clock.seconds())
            failing: Deferred[None] = Deferred()
            failing.errback(ConnectionRefusedError())
            return failing

    connection = RedisConnection(clock, Nowhere(), RedisServer("h"), 1.0)
    connection.startService()
    clock.pump([0.01] * 1000)
    assert attempts == pytest.approx([0, 0.1, 0.3, 0.7, 1.5, 3.1, 5.1, 7.1, 9.1], abs=0.1)
    connection.stopService()
    assert clock.getDelayedCalls() == []


@define(eq=False)
class Played:
    """A connection to a Redis that is played, started, and what a test looks at."""

    timeout: float = 0.25
    clock: Clock = field(factory=Clock)
    changed: Changed | None = None
    used: list[int] = field(factory=list)
    errors: Counter[str] = field(factory=Counter)
    redis: PlayedRedis = field(init=False)
    connection: RedisConnection = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.redis = PlayedRedis(self.clock)
        where, server = cast(IStreamClientEndpoint, self.redis), RedisServer("h")
        self.connection = RedisConnection(
            self.clock, where, server, self.timeout, changed=self.changed, errors=self.errors
        )
        self.connection.connected.append(lambda: self.used.append(self.connection.epoch))

    def go_on(self, seconds: float) -> None:
        self.clock.pump([0.05] * round(seconds / 0.05))

    def ask(self, *commands: Words) -> Any:
        """What comes of a pipeline."""
        outcome: list[Any] = []
        self.connection.pipeline(*commands).addBoth(outcome.append)
        self.go_on(0.5)
        return outcome[0].value.reason if isinstance(outcome[0], Failure) else outcome[0]


@pytest.fixture
def played(request: pytest.FixtureRequest) -> Iterator[Played]:
    """Not yet started; with two connections where that is the parameter."""
    told = (lambda keys: None) if getattr(request, "param", 1) == 2 else None
    played = Played(changed=told)
    yield played
    played.connection.stopService()
    played.go_on(1)
    assert played.clock.getDelayedCalls() == []


def test_a_redis_that_is_always_late_is_away(played: Played, redis_log: RedisLog) -> None:
    """It is not taken for usable because it lets us in: one outage, with growing pauses, until it answers in time."""
    played.redis.delay = 0.4
    played.connection.startService()
    played.go_on(30)
    assert (played.used, played.connection.usable, played.connection.fault) == ([], False, "timeout")
    assert 10 < len(played.redis.connections) < 20
    played.redis.delay = 0.2
    played.go_on(5)
    assert (played.used, played.connection.usable, played.connection.fault) == ([1], True, None)
    assert redis_log.lines == ["Redis cannot be used: timeout", CONNECTED]


@pytest.mark.parametrize("word", sorted(UNFIT))
def test_a_redis_that_takes_no_writes_is_away(played: Played, redis_log: RedisLog, word: str) -> None:
    """However readily it lets us in: one outage, with growing pauses, until it takes one."""
    played.connection.startService()
    played.go_on(1)
    played.redis.refuses["SET"] = f"{word} something"
    assert played.ask(("GET", "x"), ("SET", "x", "1")) == f"{word} to SET"
    assert played.connection.fault == f"{word} to SET"
    played.go_on(30)
    assert (played.used, played.connection.usable, played.connection.fault) == ([1], False, f"{word} to SET")
    assert 10 < len(played.redis.connections) < 25
    assert played.errors == {"refused": len(played.redis.connections)}
    played.redis.refuses.clear()
    played.go_on(5)
    assert (played.used, played.connection.fault) == ([1, 2], None)
    assert redis_log.lines == [CONNECTED, f"Redis cannot be used: {word} to SET", CONNECTED]


def test_a_refusal_is_told_until_such_a_command_is_taken(played: Played, redis_log: RedisLog) -> None:
    """What a full Redis still takes says nothing against it; whatever needs memory and is taken does."""
    played.connection.startService()
    played.redis.refuses["SET"] = played.redis.refuses["HSET"] = "OOM command not allowed"
    played.redis.refuses["HGET"] = "NOPERM this user"
    played.go_on(1)
    assert played.ask(("SET", "x", "1")) == "OOM to SET"
    assert played.ask(("HSET", "x", "y", "1")) == "OOM to HSET"
    assert played.ask(("GET", "x"), ("PEXPIRE", "x", 1)) == [None, "OK"]
    assert (played.connection.refusal, played.connection.fault) == ("OOM to SET", None)
    del played.redis.refuses["SET"]
    assert played.ask(("SET", "x", "1")) == ["OK"]
    assert played.connection.refusal is None
    assert played.ask(("HGET", "x", "y")) == "NOPERM to HGET"
    assert played.ask(("SET", "x", "1")) == ["OK"]
    assert played.connection.refusal == "NOPERM to HGET"
    assert (played.used, played.errors) == ([1], {"refused": 3})
    assert redis_log.lines == [CONNECTED, "Redis refuses what replicas share: OOM to SET"]


@pytest.mark.parametrize(("played", "silent"), [(1, 0), (2, 0), (2, 1)], indirect=["played"])
def test_a_connection_that_something_has_dropped_silently_is_noticed(
    played: Played, redis_log: RedisLog, silent: int
) -> None:
    """Though nothing else is asked by it, as by the one on which Redis names what changes: both are made anew."""
    played.connection.startService()
    played.go_on(100)
    assert played.used == [1], "a Redis that gives a sign of life is kept"
    first = tuple(played.redis.connections)
    first[silent].silent = True
    played.go_on(16)
    assert played.used == [1, 2]
    assert [each.connected for each in played.redis.connections] == [False] * len(first) + [True] * len(first)
    assert played.connection.tracking == (len(first) == 2)
    assert played.errors == {"timeout": 1}
    assert redis_log.lines == [CONNECTED, "Redis cannot be used: timeout", CONNECTED]


@pytest.mark.parametrize("window", [30, 300, 3600])
async def test_every_claim_is_kept_for_the_longest_window_there_may_be(window: int) -> None:
    """Whatever this service believes: an hour and the skew from the request's time."""
    commands: list[tuple[object, ...]] = []

    async def command(*words: object) -> str:
        commands.append(words)
        return "OK"

    sharing: Any = SimpleNamespace(redis=SimpleNamespace(command=command))
    environ = {"REDIS_URL": "redis://redis.example", "E2EE_REPLAY_WINDOW_SECONDS": str(window)}
    none: Any = None
    claims = build_claims(read_settings(environ, str), none, none, none, none, sharing)
    ts = int(time.time())
    assert await code(claims.claim("nonce", claim_expiry(ts, window, 30))) is None
    assert commands == [("SET", "e2ee:claim:nonce", "1", "NX", "EXAT", ts + 3600 + 30)]
