"""Asking the API for a chute's instances: what each answer means, and when not to ask again."""

from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Literal

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from chutes_autopilot.e2ee.chute_errors import CHUTE_OUT, detail_of
from chutes_autopilot.upstream.chute_e2ee.budget import DiscoveryBudget
from chutes_autopilot.upstream.chute_e2ee.listing import parse_listing
from chutes_autopilot.upstream.chute_e2ee.pools import Pools
from chutes_autopilot.upstream.fetch import FetchedAnswer, FetchError

FIRST_BACKOFF = 1.0
LAST_BACKOFF = 30.0
UNTIL_NEXT_CATALOG = float("inf")
_MEMORY = 512

ClosedCode = Literal[
    "discovery_limited",
    "discovery_failed",
    "no_instances",
    "no_verdict",
    "chute_gone",
    "chute_disabled",
    "upstream_auth",
]
SHUT: frozenset[ClosedCode] = frozenset({"chute_gone", "chute_disabled"})
"""Said of the chute itself: what is left of its nonces is of no use either."""

FetchListing = Callable[[str], Coroutine[Deferred[Any], Any, FetchedAnswer]]
"""Brings the API's answer about a chute, whatever its status; raises FetchError."""

Listed = Callable[[str, Iterable[tuple[str, str]]], None]
"""Told of every listing: the chute, and of each instance its id and its key's base64 text as it came."""


@frozen
class Closed:
    """A chute that is not asked about for a while.

    :param until: of the monotonic clock, or UNTIL_NEXT_CATALOG.
    """

    code: ClosedCode
    until: float


@define(eq=False)
class Discovery:
    """Makes single calls and remembers what came of them; when they are made is not its business.

    :param clock: tells the minutes that the API's limit is counted by.
    :param monotonic: the clock of all deadlines.
    :param margin: seconds that nonces are not used any more before they expire.
    :param counted: told the code of every call that brought nothing, and ``bad_instance`` for each that was malformed.
    :param listed: told of the instances before any of them is given a request.
    """

    _fetch: FetchListing
    _pools: Pools
    _budget: DiscoveryBudget
    _clock: IReactorTime
    _monotonic: Callable[[], float]
    margin: float
    _counted: Callable[[str], None]
    _listed: Listed
    _closed: OrderedDict[str, Closed] = field(factory=OrderedDict, init=False)
    _failures: OrderedDict[str, int] = field(factory=OrderedDict, init=False)

    async def ask(self, chute_id: str) -> Closed | None:
        """Fill the chute's pool; None where that worked, else why not. Only cancellation gets out."""
        asked_at = self._monotonic()
        try:
            answer = await self._fetch(chute_id)
        except FetchError:
            closed: Closed | None = self._backed_off(chute_id, "discovery_failed")
        else:
            closed = self._read(chute_id, answer, asked_at)
        if closed is None:
            self._failures.pop(chute_id, None)
            self._closed.pop(chute_id, None)
        else:
            self._counted(closed.code)
            if closed.code != "discovery_limited":
                self.close(chute_id, closed)
        return closed

    def closed(self, chute_id: str) -> Closed | None:
        """Why the chute is not asked about now, None where it may be."""
        closed = self._closed.get(chute_id)
        return closed if closed is not None and closed.until > self._monotonic() else None

    def close(self, chute_id: str, closed: Closed) -> None:
        """Do not ask about a chute for a while."""
        self._closed[chute_id] = closed
        self._closed.move_to_end(chute_id)
        if len(self._closed) > _MEMORY:
            self._closed.popitem(last=False)

    def chute_out(self, chute_id: str, seconds: float) -> None:
        """The API said of a request that the chute is disabled."""
        self.close(chute_id, Closed("chute_disabled", self._monotonic() + seconds))

    def chute_gone(self, chute_id: str) -> None:
        """The API said of a request that there is no such chute."""
        self.close(chute_id, Closed("chute_gone", UNTIL_NEXT_CATALOG))

    def catalog_refreshed(self) -> None:
        """Chutes that were unknown may be known now."""
        for chute_id, closed in list(self._closed.items()):
            if closed.until == UNTIL_NEXT_CATALOG:
                del self._closed[chute_id]

    def _read(self, chute_id: str, answer: FetchedAnswer, asked_at: float) -> Closed | None:
        if answer.status == 429:
            self._budget.limited(self._clock.seconds(), answer.retry_after)
            return Closed("discovery_limited", self._monotonic())
        self._budget.answered()
        if answer.status in (401, 403):
            return self._backed_off(chute_id, "upstream_auth")
        if answer.status == 404:
            if "chute not found" in detail_of(answer.body).lower():
                return Closed("chute_gone", UNTIL_NEXT_CATALOG)
            return Closed("no_instances", self._monotonic() + CHUTE_OUT)
        if answer.status != 200:
            return self._backed_off(chute_id, "discovery_failed")
        try:
            listing = parse_listing(answer.body)
        except ValueError:
            return self._backed_off(chute_id, "discovery_failed")
        for _ in range(min(listing.skipped, 64)):
            self._counted("bad_instance")
        if not listing.instances:
            return Closed("no_instances", self._monotonic() + CHUTE_OUT)
        self._pools.of(chute_id).merge(listing, asked_at, self.margin)
        self._listed(chute_id, [(instance.instance_id, instance.key_text) for instance, _ in listing.instances])
        return None

    def _backed_off(self, chute_id: str, code: ClosedCode) -> Closed:
        failures = self._failures.get(chute_id, 0)
        self._failures[chute_id] = failures + 1
        self._failures.move_to_end(chute_id)
        if len(self._failures) > _MEMORY:
            self._failures.popitem(last=False)
        return Closed(code, self._monotonic() + min(FIRST_BACKOFF * 2 ** min(failures, 10), LAST_BACKOFF))
