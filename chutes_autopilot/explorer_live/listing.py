"""The listing of all chutes kept up to date, through the same cache from which visitors are served."""

from collections.abc import Callable

from attrs import define, field
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from chutes_autopilot.explorer.records import CHUTES
from chutes_autopilot.explorer_live.proxied import ProxyError
from chutes_autopilot.explorer_live.published import Published
from chutes_autopilot.explorer_live.sources import Sources

RETRY_SECONDS = 10.0
"""How soon the listing is asked for again as long as it was never had."""


@define(eq=False)
class ListingRefresh:
    """Fetches the listing for the merge; what a visitor or an earlier process fetched just now is as good.

    :param now: Unix time, seconds.
    """

    _published: Published
    _sources: Sources
    _clock: IReactorTime
    _now: Callable[[], float]
    _begun: bool = field(default=False, init=False)

    async def refresh(self, *, anew: bool = False) -> None:
        """Have the newest answer read, or an old one where there is nothing better. Only cancellation gets out.

        :param anew: the platform itself is to be asked, whatever other replicas have.
        """
        fresh, self._begun = self._begun, True
        try:
            answer = await self._published.whole(fresh=fresh, anew=anew)
        except ProxyError as error:
            self._sources.in_trouble(CHUTES, error.error)
            return
        if answer.outcome != "STALE" or self._sources[CHUTES].records is None:
            await self._sources.take(CHUTES, answer.body, self._now() - answer.age)
        if answer.outcome == "STALE":
            self._sources.in_trouble(CHUTES, "the platform gave no newer answer")

    async def refresh_until_known(self) -> None:
        """The same; as long as nothing was ever had, again every RETRY_SECONDS."""
        await self.refresh()
        while self._sources[CHUTES].records is None:
            await deferLater(self._clock, RETRY_SECONDS)
            await self.refresh()
