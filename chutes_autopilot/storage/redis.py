"""State that replicas share, in Redis. Needs the extra ``redis``: import it only where Redis is used."""

from collections.abc import Callable

from attrs import define
from twisted.internet.defer import Deferred
from zope.interface import implementer

from chutes_autopilot.e2ee.replay import REPEAT, check_outlived, replay_detected
from chutes_autopilot.errors import ApiError, e2ee_error
from chutes_autopilot.interfaces import IReplayClaims
from chutes_autopilot.storage.redis_connection import CLAIMS, RedisConnection, RedisUnavailable


@implementer(IReplayClaims)
@define(eq=False)
class RedisClaims:
    """Nonces claimed once among all replicas that share one Redis, which must be 6.2 or later.

    There is no other store to fall back on: where Redis does not say that a claim is kept, it is refused.

    :param now: Unix time, seconds.
    :param kept_longer: seconds for which claims are kept beyond their expiry. They outlive the service that made them:
        the next one may believe older requests.
    """

    _redis: RedisConnection
    _now: Callable[[], float]
    _kept_longer: int

    def claim(self, name: str, expiry: int) -> Deferred[None]:
        """See IReplayClaims. After a failure Redis may have kept the claim all the same."""
        return Deferred.fromCoroutine(self._claim(name, expiry))

    async def _claim(self, name: str, expiry: int) -> None:
        expiry += self._kept_longer
        try:
            answer = await self._redis.command("SET", f"{CLAIMS}{name}", "1", "NX", "EXAT", expiry)
        except RedisUnavailable:
            raise _unavailable() from None
        if answer is None:
            raise replay_detected()
        if answer != "OK":
            raise _unavailable()
        check_outlived(expiry, self._now())  # Redis takes an end that is past, and keeps nothing


def _unavailable() -> ApiError:
    return e2ee_error(
        "e2ee_replay_unavailable",
        f"The store of used nonces does not answer. {REPEAT}",
        headers=((b"Retry-After", b"1"),),
    )
