"""Answers of the platform that one replica fetched and all may read. Needs the extra ``redis``."""

from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from typing import cast

from attrs import define, frozen
from twisted.internet.defer import Deferred

from chutes_autopilot.observe import events
from chutes_autopilot.policy.shared_values import PREFIX, owned_name, pack_body, unpack_body
from chutes_autopilot.storage.disk_cache import InThread
from chutes_autopilot.storage.redis_connection import RedisConnection, RedisUnavailable

MAX_DIGITS = 15
"""Of a time in milliseconds: further ones are never."""


@frozen
class SharedBody:
    """One answer.

    :param at: when it was fetched, Unix time.
    """

    body: bytes
    at: float


@define(eq=False)
class SharedBodies:
    """Keeps answers packed, each with the time it came at.

    :param naming: of policy.shared_values.naming_key.
    :param in_thread: where they are packed and unpacked.
    :param max_bytes: of an answer, unpacked.
    :param settled: a Deferred that fires once it is known whether Redis can be used, soon after the start.
    """

    redis: RedisConnection
    _naming: bytes
    _in_thread: InThread
    _max_bytes: int
    settled: Callable[[], Deferred[None]]

    def name(self, kind: str, url: str, *, credential: str = "") -> str:
        """Where an answer is, by what was asked for and with what credential, which it does not tell."""
        digest = blake2b(url.encode(), digest_size=12).hexdigest()
        owner = owned_name(self._naming, credential.encode(), url).hex() if credential else ""
        return f"{PREFIX}{kind}:{digest}{owner and ':'}{owner}"

    async def get(self, name: str, newer_than: float = 0.0) -> SharedBody | None:
        """An answer that came later than this; None where there is none, or Redis cannot be used."""
        await self.settled()
        try:
            (at,) = await self.redis.pipeline(("HGET", name, "at"))
            if not isinstance(at, bytes) or not at.isdigit() or len(at) > MAX_DIGITS or int(at) <= newer_than * 1000:
                return None
            (packed,) = await self.redis.pipeline(("HGET", name, "body"))
        except RedisUnavailable:
            return None
        found = cast(tuple[bytes, float] | None, await self._in_thread(unpack_body, packed, self._max_bytes))
        return None if found is None else SharedBody(*found)

    def share(self, name: str, body: bytes, at: float, lifetime: float) -> None:
        """Let the others have an answer; not waited for.

        :param lifetime: seconds after which Redis forgets it.
        """
        sharing = Deferred.fromCoroutine(self._share(name, body, at, lifetime))
        sharing.addErrback(lambda failure: events.failed_unexpectedly(failure, "sharing an answer"))

    async def _share(self, name: str, body: bytes, at: float, lifetime: float) -> None:
        if not self.redis.usable:
            return
        packed = cast(bytes | None, await self._in_thread(pack_body, body, at))
        if packed is None:
            return
        with suppress(RedisUnavailable):  # then each asks by itself
            await self.redis.pipeline(
                ("HSET", name, "at", int(at * 1000), "body", packed), ("PEXPIRE", name, max(1, round(lifetime * 1000)))
            )
