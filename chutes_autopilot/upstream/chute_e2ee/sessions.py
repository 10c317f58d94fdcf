"""Sessions for requests: from the pool where there is one, else after a discovery that all who wait share."""

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from attrs import define
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from chutes_autopilot.observe import events
from chutes_autopilot.policy.failover import Refused
from chutes_autopilot.upstream.chute_e2ee.budget import DiscoveryBudget
from chutes_autopilot.upstream.chute_e2ee.discovery import SHUT, Closed, ClosedCode, Discovery
from chutes_autopilot.upstream.chute_e2ee.pools import OLD_AGE, USED_RECENTLY, Pools, Session, Shortage
from chutes_autopilot.upstream.chute_e2ee.refusals import refusal

REPEAT_AFTER = 10.0
"""Seconds for which a listing is not repeated only because none of its instances may be chosen."""


@define(eq=False)
class _Waiter:
    """One request that waits for a session.

    :param expires: Unix time.
    """

    stream: bool
    exclude: AbstractSet[str]
    expires: float
    got: Callable[[Session], None]
    refused: Callable[[Refused], None]
    late: IDelayedCall | None = None
    settled: bool = False

    def settle(self) -> bool:
        """Whether it still waited."""
        if self.settled:
            return False
        self.settled = True
        if self.late is not None and self.late.active():
            self.late.cancel()
        return True


class Sessions:
    """Gives each request a session of its own, and keeps the pools filled within the budget.

    One discovery runs for a chute at a time. Where the budget does not allow all that are wanted, those that requests
    wait for come first.

    :param monotonic: the clock of the pools.
    """

    def __init__(
        self,
        pools: Pools,
        discovery: Discovery,
        budget: DiscoveryBudget,
        clock: IReactorTime,
        monotonic: Callable[[], float],
    ) -> None:
        self._pools = pools
        self._discovery = discovery
        self._budget = budget
        self._clock = clock
        self._monotonic = monotonic
        self._waiters: dict[str, list[_Waiter]] = {}
        self._wanted: OrderedDict[str, float] = OrderedDict()  # chute -> until when, should nobody wait for it
        self._running: dict[str, Deferred[None] | None] = {}
        self._refreshes: dict[str, IDelayedCall] = {}
        self._next_run: IDelayedCall | None = None
        self._retired = False

    def acquire(
        self,
        chute_id: str,
        *,
        stream: bool,
        exclude: AbstractSet[str],
        wait: float,
        got: Callable[[Session], None],
        refused: Callable[[Refused], None],
    ) -> Callable[[], None]:
        """Exactly one of ``got`` and ``refused`` is called, perhaps at once, unless the result is called before.

        Whoever got a session releases it when the request has ended.

        :param exclude: ids of instances not wanted.
        :param wait: seconds to wait for a discovery.
        """
        shut = self._shut(chute_id)
        if shut is not None:
            refused(self._refusal(shut))
            return _nothing
        taken = self._pools.of(chute_id).take(self._monotonic(), stream=stream, exclude=exclude)
        if isinstance(taken, Session):
            self._refresh_where_due(chute_id)
            got(taken)
            return _nothing
        if taken == "no_verdict":
            self._refresh_where_due(chute_id)
        hopeless = self._hopeless(chute_id, taken, wait)
        if hopeless is not None:
            refused(self._refusal(hopeless))
            return _nothing
        waiter = _Waiter(stream, exclude, self._clock.seconds() + wait, got, refused)
        waiter.late = self._clock.callLater(wait, self._too_late, chute_id, waiter)
        self._waiters.setdefault(chute_id, []).append(waiter)
        self._want(chute_id)
        return lambda: self._left(chute_id, waiter)

    def release(self, session: Session) -> None:
        """The request of a session has ended."""
        pool = self._pools.find(session.chute_id)
        if pool is not None:
            pool.release(session.instance.instance_id)

    def available(self, chute_id: str) -> bool:
        """Whether a request would get a session without waiting."""
        pool = self._pools.find(chute_id)
        return pool is not None and pool.can_take(self._monotonic()) and self._shut(chute_id) is None

    def obstacle(self, chute_id: str, wait: float) -> ClosedCode | None:
        """Why `acquire` would refuse at once and another chute should be asked; None where it may give a session.

        :param wait: seconds a request would wait for a discovery.
        """
        pool, why = self._pools.find(chute_id), self._shut(chute_id)
        if why is None:
            shortage = "empty" if pool is None else pool.shortage(self._monotonic())
            why = None if shortage is None else self._hopeless(chute_id, shortage, wait)
        # a key that is refused is refused for all chutes: the client is to be told
        return None if why is None or why.code == "upstream_auth" else why.code

    def prefetch(self, chute_id: str) -> bool:
        """Fill the chute's pool, should the budget allow it soon, unless it has something; False where it cannot be.

        What was listed lately and may not be chosen, for want of a verdict say, is not better for being listed again.
        Nor is one more begun while half of a minute's calls are under way or wanted that nobody waits for: the rest of
        the minute is for requests.
        """
        if self._discovery.closed(chute_id) is not None:
            return False
        pool, now = self._pools.find(chute_id), self._monotonic()
        if pool is None or not (pool.can_take(now) or (pool.holds(now) and now - pool.filled_at < OLD_AGE)):
            ahead = sum(other not in self._waiters for other in (*self._running, *self._wanted))
            if ahead < (self._budget.most + 1) // 2:
                self._want(chute_id)
        return True

    def retire(self) -> None:
        """End what goes on; whoever waits is refused, and nothing is asked any more."""
        self._retired = True
        self._wanted.clear()
        for call in (*self._refreshes.values(), self._next_run):
            if call is not None and call.active():
                call.cancel()
        self._refreshes.clear()
        for running in list(self._running.values()):
            if running is not None:
                running.cancel()
        for chute_id, waiters in list(self._waiters.items()):
            del self._waiters[chute_id]
            for waiter in waiters:
                self._refuse(waiter, self._no_session("discovery_failed"))

    def _shut(self, chute_id: str) -> Closed | None:
        """Why the chute takes no requests whatever nonces there are, None where it does."""
        closed = self._discovery.closed(chute_id)
        return closed if closed is not None and closed.code in SHUT else None

    def _hopeless(self, chute_id: str, shortage: Shortage, wait: float) -> Closed | None:
        """Why waiting would not help, None where it may."""
        moment = self._monotonic()
        if shortage == "no_verdict":
            return Closed("no_verdict", moment + REPEAT_AFTER)
        closed = self._discovery.closed(chute_id)
        if closed is not None:
            return closed
        if shortage == "blocked" and moment - self._pools.of(chute_id).filled_at < REPEAT_AFTER:
            return Closed("no_instances", moment + REPEAT_AFTER)
        now = self._clock.seconds()
        if self._retired or (chute_id not in self._running and self._budget.next_at(now) > now + wait):
            return Closed("discovery_limited", moment)
        return None

    def _want(self, chute_id: str) -> None:
        if chute_id not in self._running and not self._retired:
            self._wanted[chute_id] = self._monotonic() + USED_RECENTLY
            self._run_wanted()

    def _run_wanted(self) -> None:
        """Begin the discoveries that the budget allows."""
        while (chute_id := self._most_wanted()) is not None:
            now = self._clock.seconds()
            at = self._budget.next_at(now)
            if at > now:
                if self._next_run is None or not self._next_run.active():
                    self._next_run = self._clock.callLater(at - now, self._run_wanted)
                return
            del self._wanted[chute_id]
            closed = self._discovery.closed(chute_id)
            if closed is not None:
                self._turn_away(chute_id, closed)
                continue
            self._budget.spend(now)
            self._running[chute_id] = None
            asking = Deferred.fromCoroutine(self._ask(chute_id))
            if not asking.called:
                self._running[chute_id] = asking

    def _most_wanted(self) -> str | None:
        now = self._monotonic()
        for chute_id, until in list(self._wanted.items()):
            if until <= now and chute_id not in self._waiters:
                del self._wanted[chute_id]
        waited_for = (chute_id for chute_id in self._wanted if chute_id in self._waiters)
        return next(waited_for, next(iter(self._wanted), None))

    async def _ask(self, chute_id: str) -> None:
        try:
            try:
                closed = await self._discovery.ask(chute_id)
            finally:
                del self._running[chute_id]
            if closed is None:
                self._plan_refresh(chute_id)
                self._serve(chute_id)
            else:
                self._turn_away(chute_id, closed)
        except CancelledError:
            return  # by retire
        except Exception:  # noqa: BLE001 - reported; whoever still waits is refused when its time is over
            events.failed_unexpectedly(Failure(), "asking for instances")
        self._run_wanted()

    def _serve(self, chute_id: str) -> None:
        """Give those who wait what there is now; the others wait for one more discovery, if that can help."""
        waiters = self._waiters.pop(chute_id, [])
        pool, served, left = self._pools.of(chute_id), False, []
        for waiter in waiters:
            if waiter.settled:
                continue
            taken = pool.take(self._monotonic(), stream=waiter.stream, exclude=waiter.exclude)
            if isinstance(taken, Session):
                served = True
                if waiter.settle():
                    waiter.got(taken)
            elif taken == "empty" and served:
                left.append(waiter)
            elif taken == "no_verdict":
                self._refuse(waiter, self._refusal(Closed("no_verdict", self._monotonic() + REPEAT_AFTER)))
            else:
                self._refuse(waiter, self._no_session("no_instances", REPEAT_AFTER))
        self._wait_on(chute_id, left)

    def _turn_away(self, chute_id: str, closed: Closed) -> None:
        waiters, left = self._waiters.pop(chute_id, []), []
        soonest = self._budget.next_at(self._clock.seconds())
        for waiter in waiters:
            if closed.code == "discovery_limited" and waiter.expires > soonest:
                left.append(waiter)
            else:
                self._refuse(waiter, self._refusal(closed))
        self._wait_on(chute_id, left)

    def _wait_on(self, chute_id: str, waiters: list[_Waiter]) -> None:
        if waiters := [waiter for waiter in waiters if not waiter.settled]:
            self._waiters[chute_id] = waiters + self._waiters.get(chute_id, [])
            self._want(chute_id)

    def _too_late(self, chute_id: str, waiter: _Waiter) -> None:
        code = "discovery_failed" if chute_id in self._running else "discovery_limited"
        self._forget(chute_id, waiter)
        self._refuse(waiter, self._no_session(code))

    def _left(self, chute_id: str, waiter: _Waiter) -> None:
        self._forget(chute_id, waiter)
        waiter.settle()

    def _forget(self, chute_id: str, waiter: _Waiter) -> None:
        waiters = self._waiters.get(chute_id, [])
        if waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[chute_id]

    def _refuse(self, waiter: _Waiter, why: Refused) -> None:
        if waiter.settle():
            waiter.refused(why)

    def _refusal(self, closed: Closed) -> Refused:
        if closed.code == "upstream_auth":
            return refusal("auth", retry=False, reason=closed.code)
        left = closed.until - self._monotonic()
        if closed.code == "no_verdict":
            return refusal("no_verdict", retry=True, reason=closed.code, retry_after=left)
        return self._no_session(closed.code, left)

    def _no_session(self, code: str, retry_after: float = 0.0) -> Refused:
        now = self._clock.seconds()
        return refusal(
            "no_session", retry=True, reason=code, retry_after=max(retry_after, self._budget.next_at(now) - now)
        )

    def _refresh_where_due(self, chute_id: str) -> None:
        pool = self._pools.find(chute_id)
        if pool is not None and pool.wants_refresh(self._monotonic()) and self._discovery.closed(chute_id) is None:
            self._want(chute_id)

    def _plan_refresh(self, chute_id: str) -> None:
        planned = self._refreshes.pop(chute_id, None)
        if planned is not None and planned.active():
            planned.cancel()
        if self._pools.find(chute_id) is not None and not self._retired:
            self._refreshes[chute_id] = self._clock.callLater(OLD_AGE, self._refresh_planned, chute_id)

    def _refresh_planned(self, chute_id: str) -> None:
        del self._refreshes[chute_id]
        self._refresh_where_due(chute_id)


def _nothing() -> None:
    """There is nothing to cancel."""
