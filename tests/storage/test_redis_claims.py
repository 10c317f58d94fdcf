"""Nonces claimed in a real Redis, which is shared, and may be late, wrong, full or gone."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from played_redis import PlayedRedis
from redis_process import UNLIKELY, RedisLog, RedisProcess
from twisted.internet.defer import Deferred
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from chutes_autopilot.errors import ApiError
from chutes_autopilot.interfaces import IReplayClaims
from chutes_autopilot.settings.redis_url import RedisServer
from chutes_autopilot.storage.redis import RedisClaims
from chutes_autopilot.storage.redis_connection import RedisConnection, redis_endpoint

UNAVAILABLE = f"503 e2ee_replay_unavailable {((b'Retry-After', b'1'),)}"
CONNECTED = "Redis is connected"
Connect = Callable[..., RedisConnection]
MakeRedis = Callable[..., RedisProcess]


def claims_in(connection: RedisConnection) -> RedisClaims:
    return RedisClaims(connection, time.time)


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


async def test_a_redis_that_refuses_means_503(redis: RedisProcess, connect: Connect, redis_log: RedisLog) -> None:
    """An error in the place of an answer is no claim; the log has it once, and that it is over."""
    connection = connect(redis)
    claims = claims_in(connection)
    await redis_log.said(CONNECTED)
    await connection.command("REPLICAOF", "127.0.0.1", "1")
    for _ in range(2):
        assert await code(claims.claim("nonce", soon())) == UNAVAILABLE
    await connection.command("REPLICAOF", "NO", "ONE")
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


def test_a_redis_that_is_always_late_is_away(redis_log: RedisLog) -> None:
    """It is not taken for usable because it lets us in: one outage, with growing pauses, until it answers in time."""
    clock = Clock()
    redis = PlayedRedis(clock, delay=0.4)
    connection = RedisConnection(clock, redis, RedisServer("h"), 0.25)  # type: ignore[arg-type]
    used: list[int] = []
    connection.connected.append(lambda: used.append(connection.epoch))
    connection.startService()
    clock.pump([0.05] * 600)
    assert (used, connection.usable, connection.fault) == ([], False, "timeout")
    assert 10 < len(redis.connections) < 20
    redis.delay = 0.2
    clock.pump([0.05] * 100)
    assert (used, connection.usable, connection.fault) == ([1], True, None)
    assert redis_log.lines == ["Redis cannot be used: timeout", CONNECTED]
    connection.stopService()
    clock.advance(1)
    assert clock.getDelayedCalls() == []
