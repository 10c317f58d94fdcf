"""How often the platform is asked for visitors: they choose what is asked for, and the operator's key pays for it."""

from collections.abc import Callable

from chutes_autopilot.explorer_live.proxied import Fetch, ProxyError
from chutes_autopilot.upstream.fetch import FetchedAnswer

BURST = 60
PER_SECOND = 1.0
"""Calls of the platform: so many at once, and so many in the long run. Answers from the cache cost none."""


class BudgetedFetch:
    """A fetch that is refused where there were too many: a token bucket over all visitors together.

    :param fetch: one call of the platform.
    :param now: seconds; may be set back, which refills nothing.
    """

    def __init__(
        self, fetch: Fetch, now: Callable[[], float], *, burst: float = BURST, per_second: float = PER_SECOND
    ) -> None:
        self._fetch = fetch
        self._now = now
        self._burst = burst
        self._per_second = per_second
        self._left = burst
        self._at = now()

    async def __call__(self, url: str, headers: tuple[tuple[str, str], ...]) -> FetchedAnswer:
        """One call; raises ProxyError (429) where the budget is spent, and what the fetch raises."""
        now = self._now()
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            wait = max(1, round((1 - self._left) / self._per_second))
            raise ProxyError(429, "too many calls of the platform", f"Ask again in {wait} seconds.", retry_after=wait)
        self._left -= 1
        return await self._fetch(url, headers)
