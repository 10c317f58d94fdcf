"""What the doctor says of a real Redis."""

import time
from collections.abc import Callable

import pytest
from redis_process import RedisProcess

from chutes_autopilot.doctor.redis import check_redis
from chutes_autopilot.settings import Settings, read_settings

MakeRedis = Callable[..., RedisProcess]


def settings_with(url: str) -> Settings:
    return read_settings({"REDIS_URL": url, "E2EE_REDIS_TIMEOUT_MS": "5000"}, lambda path: "")


async def test_a_redis_that_will_do(make_redis: MakeRedis, free_port: int) -> None:
    """It answers, is new enough, forgets nothing, and has the same time."""
    from twisted.internet import reactor

    make_redis("--port", str(free_port), "--bind", "127.0.0.1").start()
    settings = settings_with(f"redis://127.0.0.1:{free_port}")
    findings = await check_redis(reactor, settings, None, time.time)
    assert {finding.subject: finding.level for finding in findings} == {
        f"127.0.0.1:{free_port}": "ok",
        "version": "ok",
        "maxmemory-policy": "ok",
        "clock": "ok",
    }


async def test_a_redis_that_forgets_and_has_another_time(make_redis: MakeRedis, free_port: int) -> None:
    """Both are warnings, for both are only sometimes noticed."""
    from twisted.internet import reactor

    make_redis("--port", str(free_port), "--maxmemory-policy", "allkeys-lru").start()
    settings = settings_with(f"redis://127.0.0.1:{free_port}")
    findings = await check_redis(reactor, settings, None, lambda: time.time() + 3600)
    assert {finding.subject for finding in findings if finding.level == "warn"} == {"maxmemory-policy", "clock"}


@pytest.mark.parametrize(
    ("started", "url", "message", "advice"),
    [
        (True, "redis://:hunter2@127.0.0.1:{}", "WRONGPASS", "check user and password in REDIS_URL"),
        (False, "redis://127.0.0.1:{}", "Refused", "check that it runs"),
    ],
)
async def test_a_redis_that_cannot_be_used(
    make_redis: MakeRedis, free_port: int, started: bool, url: str, message: str, advice: str
) -> None:
    """The reason is told, the password is not."""
    from twisted.internet import reactor

    redis = make_redis("--port", str(free_port), "--requirepass", "another")
    if started:
        redis.start()
    (finding,) = await check_redis(reactor, settings_with(url.format(free_port)), None, time.time)
    assert (finding.level, message in finding.message, advice in finding.advice) == ("fail", True, True), finding
    assert "hunter2" not in repr(finding)


async def test_a_redis_that_takes_no_writes(make_redis: MakeRedis, free_port: int) -> None:
    """As a replica it answers everything else."""
    from twisted.internet import reactor

    make_redis("--port", str(free_port), "--replicaof", "127.0.0.1 1").start()
    (finding,) = await check_redis(reactor, settings_with(f"redis://127.0.0.1:{free_port}"), None, time.time)
    assert (finding.level, finding.message) == ("fail", "READONLY to SET")
    assert finding.advice.startswith("REDIS_URL must lead to a primary")
