"""The platform's JSON passed on to many visitors by few calls: cached, fetched once for all who wait, stale if need be.

::

    in memory and young ──────────────────────▶ HIT
    else, one flight for all who ask meanwhile:
      on disk and young, not asked afresh ────▶ HIT
      fetched ────────────────────────────────▶ MISS
        and fetched anew where somebody has joined meanwhile who wants the platform asked after that
      failed, an old answer is there ─────────▶ STALE
      failed ─────────────────────────────────▶ ProxyError
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

import attrs
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, gatherResults
from twisted.python.failure import Failure

from chutes_autopilot.explorer.readable import NotReadable, is_readable, repaired
from chutes_autopilot.observe import events
from chutes_autopilot.storage.cache_files import CachedJson, NotJson, count_items
from chutes_autopilot.storage.disk_cache import DiskCache, InThread
from chutes_autopilot.upstream.fetch import FetchedAnswer, FetchError

MAX_FETCHES = 4
"""Answers that are fetched at once: each may be many megabytes."""

MAX_FLIGHTS = 64
MAX_WAITING = 2000
"""Most answers that are being fetched or wait for their turn, and most visitors that wait for them."""

KEY_PAUSE = 600.0
"""Seconds for which a key that was refused is not sent again."""

UNREADABLE_PAUSE = 600.0
"""Seconds from one word in the log about records that are no JSON to the next."""

THREAD_BYTES = 256 * 1024
"""A larger answer is checked in a thread."""

Fetch = Callable[[str, tuple[tuple[str, str], ...]], Awaitable[FetchedAnswer]]
"""GET a URL with these headers; raises FetchError."""


class ProxyError(Exception):
    """There is no answer to pass on, not even an old one.

    :param status: 404, 502, 503 or 504.
    :param error: short, for people.
    :param message: what to do; holds nothing of the upstream's.
    :param retry_after: seconds, where asking again makes sense soon.
    """

    def __init__(self, status: int, error: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.message = message
        self.retry_after = retry_after


class PlatformRefuses(ProxyError):
    """The platform does not answer who asks for this without a key, and no old answer is there."""


@attrs.frozen
class ProxiedAnswer:
    """The platform's answer.

    :param outcome: HIT: from the cache; MISS: fetched just now; STALE: too old, because no newer could be had.
    :param age: whole seconds since it was fetched.
    :param body: exactly what the platform sent, white space around it left out; private chutes are still in it. In the
        place of a record that is no JSON stands null.
    :param items: how many records it holds, null among them.
    :param refused: it is STALE because the platform refuses who asks without a key.
    """

    outcome: Literal["MISS", "HIT", "STALE"]
    age: int
    body: bytes = attrs.field(repr=False)
    items: int
    refused: bool = False


@attrs.define(eq=False)
class _Flight:
    """One answer on its way.

    :ivar fresh: somebody who waits does not want it from the cache.
    :ivar anew: nor from another replica.
    :ivar fetch: how the platform is asked for whoever wanted it first.
    """

    fresh: bool
    anew: bool
    fetch: Fetch
    waiting: list[Deferred[ProxiedAnswer]] = attrs.field(factory=list)
    work: Deferred[None] | None = None


class ProxiedJson(Service):
    """Answers from the cache, or by one call of the platform for all who ask for the same thing at once.

    :param fetch: one bounded call of the platform, or what another replica was answered just now.
    :param fetch_for_visitors: the same for whoever may be anybody; may refuse with a ProxyError.
    :param fetch_anew: a call of the platform in any case.
    :param duration: seconds for which an answer counts as young.
    :param now: Unix time, seconds.
    :param api_key: CHUTES_API_KEY. Where the platform refuses it, that is reported and calls go on without it.
    """

    def __init__(
        self,
        cache: DiskCache,
        fetch: Fetch,
        duration: float,
        now: Callable[[], float],
        in_thread: InThread,
        api_key: bytes | None = None,
        fetch_for_visitors: Fetch | None = None,
        fetch_anew: Fetch | None = None,
    ) -> None:
        self.cache = cache
        self.duration = duration
        self._fetch = fetch
        self._fetch_for_visitors = fetch_for_visitors or fetch
        self._fetch_anew = fetch_anew or fetch
        self._now = now
        self._in_thread = in_thread
        self._key = None if api_key is None else api_key.decode("ascii")
        self._key_refused_at: float | None = None
        self._unreadable_at: float | None = None
        self._flights: dict[str, _Flight] = {}
        self._fetches = DeferredSemaphore(MAX_FETCHES)
        self._waiting = 0
        self._opening: Deferred[None] | None = None

    def startService(self) -> None:
        """Take over what earlier processes left in the cache."""
        super().startService()
        self._opening = Deferred.fromCoroutine(self.cache.open())
        self._opening.addErrback(lambda failure: events.failed_unexpectedly(failure, "opening the cache"))

    def stopService(self) -> Deferred[Any]:
        """Give up what is under way; who waits for it gets CancelledError."""
        super().stopService()
        flights = [flight.work for flight in self._flights.values() if flight.work is not None]
        for work in flights:
            work.cancel()
        return gatherResults([*flights, *([self._opening] if self._opening else [])])

    def is_young(self, document: CachedJson) -> bool:
        """Whether this is served without asking the platform; what comes from the future is not."""
        return 0 <= self._now() - document.fetched_at < self.duration

    async def get(
        self,
        name: str,
        url: str,
        *,
        with_key: bool = False,
        fresh: bool = False,
        anew: bool = False,
        may_be_missing: bool = False,
        visitor: bool = False,
    ) -> ProxiedAnswer:
        """The answer to a GET of this URL.

        :param name: of its cache file; whoever asks for the same name must ask for the same URL in the same way.
        :param with_key: send the operator's key, as long as there is one that the platform takes.
        :param fresh: fetch it even where the cache has a young one.
        :param anew: have the platform asked from now on, even where another replica has a young one. Who wants that
            while it is under way gets the same answer.
        :param may_be_missing: a 404 of the platform says that there is no such thing: no old answer takes its place.
        :param visitor: anybody may have asked, and so they neither have all calls of the platform nor keep the service
            itself from its own.
        :raises ProxyError: there is none.
        :raises ValueError: this is not the name of a cache file.
        """
        cached = self.cache.peek(name)
        fresh = fresh or anew
        if cached is not None and not fresh and self.is_young(cached):
            return self._answer("HIT", cached)
        flight = self._flights.get(name)
        if visitor and (self._waiting >= MAX_WAITING or (flight is None and len(self._flights) >= MAX_FLIGHTS)):
            raise ProxyError(503, "too many requests at once", "Ask again in a moment.", retry_after=1)
        waiting: Deferred[ProxiedAnswer] = Deferred()
        if flight is None:
            flight = _Flight(fresh, anew, self._fetch_for_visitors if visitor else self._fetch, [waiting])
            self._flights[name] = flight
            work = Deferred.fromCoroutine(self._fly(flight, name, url, with_key, may_be_missing))
            flight.work = work.addBoth(partial(self._landed, flight, name))
        else:
            flight.fresh = flight.fresh or fresh
            flight.anew = flight.anew or anew
            flight.waiting.append(waiting)
        self._waiting += 1
        try:
            return await waiting
        finally:
            self._waiting -= 1

    def _landed(self, flight: _Flight, name: str, result: ProxiedAnswer | Failure) -> None:
        del self._flights[name]
        if isinstance(result, Failure) and not result.check(ProxyError, CancelledError):
            events.failed_unexpectedly(result, "proxying the platform")
            result = Failure(ProxyError(502, "the answer could not be read", "Look into the log of this service."))
        for waiting in flight.waiting:
            if not waiting.called:  # else nobody waits for it any more
                waiting.callback(result)

    async def _fly(self, flight: _Flight, name: str, url: str, with_key: bool, may_be_missing: bool) -> ProxiedAnswer:
        async with self._fetches:
            begun_anew = flight.anew
            try:
                answer = await self._flown(flight, name, url, with_key, may_be_missing)
            except ProxyError:
                if flight.anew == begun_anew:
                    raise
            else:
                if flight.anew == begun_anew:
                    return answer
            return await self._flown(flight, name, url, with_key, may_be_missing)

    async def _flown(self, flight: _Flight, name: str, url: str, with_key: bool, may_be_missing: bool) -> ProxiedAnswer:
        fetch = self._fetch_anew if flight.anew else flight.fetch
        old = await self.cache.get(name)
        if old is not None and not flight.fresh and self.is_young(old):
            return self._answer("HIT", old)
        try:
            document = await self._fetched(fetch, url, with_key, may_be_missing)
        except ProxyError as error:
            if old is None or error.status == 404:
                raise
            return attrs.evolve(self._answer("STALE", old), refused=isinstance(error, PlatformRefuses))
        await self.cache.put(name, document)
        return self._answer("MISS", document)

    async def _fetched(self, fetch: Fetch, url: str, with_key: bool, may_be_missing: bool) -> CachedJson:
        try:
            answer = await self._asked(fetch, url, with_key)
        except FetchError as error:
            if error.reason == "timeout":
                raise ProxyError(504, "the platform did not answer in time", "Ask again in a moment.") from None
            raise ProxyError(502, "the platform cannot be reached", "Ask again in a moment.") from None
        match answer.status:
            case 200:
                return await self._checked(answer.body)
            case 401 | 403 if with_key:
                takes = "" if self._key is None else " to a key that the platform takes"
                raise ProxyError(503, "the platform refuses to answer", f"The operator must set CHUTES_API_KEY{takes}.")
            case 401 | 403:
                message = "Ask again in a moment."
                raise PlatformRefuses(502, f"the platform answered with status {answer.status}", message)
            case 404 if may_be_missing:
                raise ProxyError(404, "not found", "The platform has no chute of this id.")
            case 429:
                raise ProxyError(502, "the platform is asked too often", "Ask again in a minute.", retry_after=60)
        raise ProxyError(502, f"the platform answered with status {answer.status}", "Ask again in a moment.")

    async def _asked(self, fetch: Fetch, url: str, with_key: bool) -> FetchedAnswer:
        if with_key and self._key is not None and not self._key_rests():
            answer = await fetch(url, (("Authorization", f"Bearer {self._key}"),))
            if answer.status != 401:
                self._key_refused_at = None
                return answer
            if self._key_refused_at is None:
                events.chutes_key_refused()
            self._key_refused_at = self._now()
        return await fetch(url, ())

    def _key_rests(self) -> bool:
        # a bad key would make the platform refuse what it shows to everybody
        return self._key_refused_at is not None and 0 <= self._now() - self._key_refused_at < KEY_PAUSE

    async def _checked(self, body: bytes) -> CachedJson:
        try:
            read = _read(body) if len(body) < THREAD_BYTES else await self._in_thread(_read, body)
        except (NotJson, NotReadable):
            raise ProxyError(502, "the platform's answer is no JSON", "Ask again in a moment.") from None
        body, items, unreadable = read
        now = self._now()
        if unreadable and not (self._unreadable_at is not None and 0 <= now - self._unreadable_at < UNREADABLE_PAUSE):
            self._unreadable_at = now
            events.records_unreadable(unreadable, items)
        return CachedJson(now, body, items)

    def _answer(self, outcome: Literal["MISS", "HIT", "STALE"], document: CachedJson) -> ProxiedAnswer:
        return ProxiedAnswer(outcome, max(0, int(self._now() - document.fetched_at)), document.data, document.items)


def _read(body: bytes) -> tuple[bytes, int, int]:
    """What of an answer is passed on, how many records it holds, and how many of them are only null."""
    body, unreadable = body.strip(b" \t\r\n"), 0
    if not is_readable(body):
        body, unreadable = repaired(body)
    return body, count_items(body), unreadable
