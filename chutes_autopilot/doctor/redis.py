"""Whether Redis answers in time, keeps what it must keep, and has the same time."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.task import deferLater

from chutes_autopilot.doctor.findings import Finding, fail, ok, warn
from chutes_autopilot.settings import Settings

OLDEST = (6, 2)
"""The first Redis that knows SET with EXAT."""

_POLL_SECONDS = 0.05


async def check_redis(reactor: Any, settings: Settings, trust_root: Any, now: Callable[[], float]) -> list[Finding]:
    """Log in as the gateway does, and look at what it relies on.

    It waits for Redis without end: whoever calls sets a limit. Needs the extra ``redis``.
    """
    server = settings.redis_url
    if server is None:
        return []
    subject = f"{server.host}:{server.port}"
    from chutes_autopilot.storage.redis_connection import RedisConnection, RedisUnavailable, redis_endpoint

    connection = RedisConnection(reactor, redis_endpoint(reactor, server, trust_root), server, 5.0)
    connection.startService()
    try:
        while connection.fault == "never connected":
            await deferLater(reactor, _POLL_SECONDS)
        if connection.fault is not None:
            return [fail("redis", subject, connection.fault, _advice(connection.fault))]
        started = reactor.seconds()
        await connection.command("PING")
        seconds = reactor.seconds() - started
        return list(
            _judged(
                subject,
                seconds,
                settings,
                await _answer(connection, "INFO", "server"),
                await _answer(connection, "CONFIG", "GET", "maxmemory-policy"),
                await _answer(connection, "TIME"),
                now(),
            )
        )
    except RedisUnavailable as error:
        return [fail("redis", subject, error.reason, _advice(error.reason))]
    finally:
        await maybeDeferred(connection.stopService)


async def _answer(connection: Any, *words: str) -> Any:
    """None where this user may not ask for it."""
    from chutes_autopilot.storage.redis_connection import RedisRefusal

    try:
        return await connection.command(*words)
    except RedisRefusal:
        return None


def _advice(reason: str) -> str:
    if re.match("WRONGPASS|NOAUTH|NOPERM|ERR to AUTH", reason):
        return "check user and password in REDIS_URL (odd characters as %XX)"
    if re.match("READONLY|MASTERDOWN|MISCONF|NOREPLICAS", reason):
        return "REDIS_URL must lead to a primary that takes writes; until then encrypted requests get 503"
    if reason.startswith("TLS"):
        return "rediss:// speaks TLS, redis:// does not; SSL_CERT_FILE names a private authority"
    return "check that it runs, and host, port and firewall; until then encrypted requests get 503"


def _judged(
    subject: str, seconds: float, settings: Settings, info: Any, policy: Any, time: Any, now: float
) -> Iterator[Finding]:
    seen = f"answers in {seconds * 1000:.0f} ms"
    if seconds > settings.e2ee_redis_timeout / 2:
        yield warn("redis", subject, seen, "E2EE_REDIS_TIMEOUT_MS is near: use a nearer Redis, or allow more")
    else:
        yield ok("redis", subject, seen)
    found = re.search(rb"redis_version:(\d+)\.(\d+)", info) if isinstance(info, bytes) else None
    if found is None:
        yield warn("redis", "version", "not told", "it must be 6.2 or later")
    elif (int(found[1]), int(found[2])) < OLDEST:
        yield fail("redis", "version", f"{found[1].decode()}.{found[2].decode()}", "6.2 or later is needed")
    else:
        yield ok("redis", "version", f"{found[1].decode()}.{found[2].decode()}")
    if policy == [b"maxmemory-policy", b"noeviction"]:
        yield ok("redis", "maxmemory-policy", "noeviction")
    else:
        told = "not told" if not policy else "not noeviction"
        yield warn(
            "redis", "maxmemory-policy", told, "with another policy Redis may forget used nonces: set noeviction"
        )
    if isinstance(time, list) and time:
        offset = abs(int(time[0]) - now)
        if offset > settings.e2ee_replay_skew:
            advice = "set both clocks by NTP; E2EE_REPLAY_SKEW_SECONDS is what is allowed for"
            yield warn("redis", "clock", f"{offset:.0f} s away from this machine's", advice)
        else:
            yield ok("redis", "clock", f"within {max(1.0, offset):.0f} s")
