"""Nonces claimed by this process, gone with it."""

from collections.abc import Callable
from heapq import heappop, heappush

from attrs import define, field
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from chutes_autopilot.e2ee.replay import REPEAT, check_outlived, replay_detected
from chutes_autopilot.errors import ApiError, e2ee_error
from chutes_autopilot.interfaces import IReplayClaims

DROPPED_AT_ONCE = 100


@implementer(IReplayClaims)
@define(eq=False)
class MemoryClaims:
    """Keeps every claim until its end and refuses new ones when full: to forget one early would allow a replay.

    Right for one process only. A claim costs some 200 bytes.

    :param max_entries: how many claims are kept at once; may be changed at any time.
    :param now: Unix time, seconds.
    """

    max_entries: int
    _now: Callable[[], float]
    _expiries: dict[str, int] = field(init=False, factory=dict)
    _by_expiry: list[tuple[int, str]] = field(init=False, factory=list)

    def claim(self, name: str, expiry: int) -> Deferred[None]:
        """See IReplayClaims; fails with e2ee_replay_cache_full in place of e2ee_replay_unavailable."""
        try:
            self._claim(name, expiry)
        except ApiError as error:
            return fail(error)
        return succeed(None)

    def _claim(self, name: str, expiry: int) -> None:
        now = self._now()
        check_outlived(expiry, now)
        self._drop_expired(now)
        if self._expiries.get(name, -1) >= now:
            raise replay_detected()
        if len(self._expiries) >= self.max_entries:
            until_room = int(self._by_expiry[0][0] - now) + 1 if self._by_expiry else 1
            raise e2ee_error(
                "e2ee_replay_cache_full",
                f"No further nonce can be remembered now. Later: {REPEAT}",
                headers=((b"Retry-After", b"%d" % until_room),),
            )
        self._expiries[name] = expiry
        heappush(self._by_expiry, (expiry, name))

    def _drop_expired(self, now: float) -> None:
        # Not all at once, which could hold the reactor: more go with each claim than come.
        for _ in range(DROPPED_AT_ONCE):
            if not self._by_expiry or self._by_expiry[0][0] >= now:
                break
            expiry, name = heappop(self._by_expiry)
            if self._expiries[name] == expiry:  # else it was claimed again before its turn came
                del self._expiries[name]

    def __len__(self) -> int:
        return len(self._expiries)
