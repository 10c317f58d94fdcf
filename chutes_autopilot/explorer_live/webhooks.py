"""Webhooks: whoever asked for it is told what happened to models, again and again until it is heard.

::

    change ──▶ queue ──▶ attempt ──▶ 2xx: removed
                 ▲          ├──────▶ 410: the endpoint is disabled, all that waits for it is dead
                 └──────────┴──────▶ else: later again; after the last attempt a dead letter

A message may come twice, as when the service is stopped while it is being answered; its id tells.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from chutes_autopilot.explorer.changes import Change
from chutes_autopilot.explorer.webhook_config import WebhookEndpoint
from chutes_autopilot.explorer.webhook_events import event_of
from chutes_autopilot.explorer_live.webhook_sending import SendFailed
from chutes_autopilot.observe import events
from chutes_autopilot.storage.sqlite_database import DatabaseUnavailable
from chutes_autopilot.storage.webhook_queue import (
    MAX_DEAD,
    OVERFLOW,
    DeadLetter,
    Delivery,
    Message,
    WebhookQueue,
)

RETRY_DELAYS = (5.0, 60.0, 300.0, 1800.0, 7200.0, 28_800.0, 86_400.0)
"""Seconds from a failed attempt to the next one; after one more the message is given up."""

JITTER = 0.1
"""How far a delay may differ to either side, as a share of it."""

MAX_AT_ONCE = 8
MAX_AT_ONCE_PER_ENDPOINT = 2

PAUSE = 60.0
"""Seconds after which a queue that failed is tried again, and the longest that nothing is looked for in it."""


class Sender(Protocol):
    """What makes an attempt; see webhook_sending.WebhookSender."""

    async def send(self, endpoint: WebhookEndpoint, message_id: str, body: bytes) -> int:
        """The status of the answer; raises SendFailed."""

    def close(self) -> Deferred[None]:
        """Cut everything off."""


Claim = Callable[[Sequence[Change]], Awaitable[Sequence[tuple[Change, str]]]]
GiveBack = Callable[[Sequence[str]], Awaitable[None]]


class Webhooks(Service):
    """Queues messages and delivers them, a few at once, for as long as it takes.

    :param now: Unix time, seconds; what is written into the queue.
    :param random: evenly distributed in [0, 1).
    :param claim: of changes those that are to be told by this process, each with the id of its message: unguessable,
        without dots, the same where another process tells the same change.
    :param give_back: lets other processes tell what was claimed for messages with these ids.
    :param attempts: counts attempts by outcome: ``delivered``, ``failed``, ``dead``, ``gone``.
    """

    def __init__(
        self,
        endpoints: Sequence[WebhookEndpoint],
        queue: WebhookQueue,
        sender: Sender,
        clock: IReactorTime,
        now: Callable[[], float],
        random: Callable[[], float],
        claim: Claim,
        attempts: Counter[str],
        give_back: GiveBack | None = None,
    ) -> None:
        self._endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self._queue = queue
        self._sender = sender
        self._clock = clock
        self._now = now
        self._random = random
        self._claim = claim
        self._give_back = give_back
        self._attempts = attempts
        self._flights: dict[int, str] = {}  # the endpoints of the deliveries that are under way
        self._failing: set[str] = set()
        self._gone: set[str] = set()
        self._queue_failing = False
        self._working: set[Deferred[None]] = set()
        self._telling: set[Deferred[None]] = set()  # those of them that would lose what they have claimed
        self._nap: Deferred[None] | None = None
        self._woken = False

    def startService(self) -> None:
        """Take up what earlier processes left, and whatever comes."""
        super().startService()
        self._begin(self._deliver_all(), "delivering webhooks")

    def stopService(self) -> Deferred[None]:
        """Give up what is being delivered, which counts as not attempted, and keep all that waits or happened."""
        super().stopService()
        return Deferred.fromCoroutine(self._stopped())

    def changed(self, changes: Iterable[Change]) -> None:
        """Something happened to models."""
        wanted = {
            kind for endpoint in self._endpoints.values() if endpoint.name not in self._gone for kind in endpoint.events
        }
        told = [change for change in changes if change.type in wanted]
        if told and self.running:
            telling = self._begin(self._tell(told), "queueing webhooks")
            self._telling.add(telling)
            telling.addBoth(lambda _: self._telling.discard(telling))

    @property
    def waiting(self) -> int:
        """Messages that are still to be delivered."""
        return self._queue.waiting

    async def dead_letters(self) -> tuple[DeadLetter, ...]:
        """All that was given up and is kept, the latest first; raises DatabaseUnavailable, as the two below do."""
        return await self._queue.dead_letters(MAX_DEAD)

    async def retry(self, number: int | None) -> int:
        """Try a dead letter again, or all of them, from the first attempt on; returns how many.

        Not those of endpoints that are not configured any more or have answered 410.
        """
        count = await self._queue.revive(number, self._endpoints.keys() - self._gone, self._now())
        self._wake()
        return count

    async def forget(self, number: int | None) -> int:
        """Drop a dead letter, or all of them; returns how many."""
        return await self._queue.forget(number)

    async def _tell(self, changes: Sequence[Change]) -> None:
        claimed = await self._claim(changes)
        messages = list(self._messages(claimed))
        if not messages:
            return
        try:
            dropped = await self._queue.add(messages, self._now())
        except DatabaseUnavailable as error:
            events.webhook_events_lost(len(messages), error.reason)
            if self._give_back is not None:
                await self._give_back([message_id for _, message_id in claimed])
            return
        if dropped:
            self._attempts["dead"] += dropped
            events.webhooks_given_up(dropped, OVERFLOW)
        self._wake()

    def _messages(self, claimed: Iterable[tuple[Change, str]]) -> Iterable[Message]:
        for change, message_id in claimed:
            event = event_of(change)
            if event is None:
                continue
            for endpoint in self._endpoints.values():
                if event.type in endpoint.events and endpoint.name not in self._gone:
                    yield Message(message_id, endpoint.name, event.type, event.body)

    async def _deliver_all(self) -> None:
        await self._queue.open()
        reason = "the endpoint is not configured any more"
        dropped = await self._surely(lambda: self._queue.retain(self._endpoints, reason, self._now()))
        if dropped:
            events.webhooks_given_up(dropped, reason)
        while True:
            self._woken = False
            await self._sleep(await self._start_due())

    async def _start_due(self) -> float:
        """Begin to deliver what is due and may be; returns the seconds until more is."""
        flying = Counter(self._flights.values())
        room = MAX_AT_ONCE - len(self._flights)
        rooms = {
            name: min(room, MAX_AT_ONCE_PER_ENDPOINT - flying[name]) for name in self._endpoints.keys() - self._gone
        }
        try:
            due, next_due = await self._queue.take(self._now(), rooms, tuple(self._flights))
        except DatabaseUnavailable as error:
            self._say_failing(error)
            return PAUSE
        self._queue_failing = False
        for delivery in due[:room]:
            if delivery.message.endpoint not in self._gone:
                self._flights[delivery.id] = delivery.message.endpoint
                self._begin(self._deliver(delivery), "delivering a webhook")
        return PAUSE if next_due is None else min(PAUSE, max(0.0, next_due - self._now()))

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            endpoint = self._endpoints[delivery.message.endpoint]
            try:
                status = await self._sender.send(endpoint, delivery.message.message_id, delivery.message.body)
            except SendFailed as failed:
                await self._failed(delivery, failed.reason)
            except CancelledError:
                raise
            except Exception:  # noqa: BLE001 - else it would be tried again at once, for ever
                events.failed_unexpectedly(Failure(), "sending a webhook")
                await self._failed(delivery, "an error of this service")
            else:
                await self._answered(delivery, status)
        finally:
            del self._flights[delivery.id]
            self._wake()

    async def _answered(self, delivery: Delivery, status: int) -> None:
        name = delivery.message.endpoint
        if 200 <= status <= 299:
            self._attempts["delivered"] += 1
            if name in self._failing:
                self._failing.discard(name)
                events.webhook_recovered(name)
            await self._surely(lambda: self._queue.remove(delivery.id))
        elif status == 410:
            self._attempts["gone"] += 1
            if name not in self._gone:
                self._gone.add(name)
                reason = "the endpoint answered 410"
                count = await self._surely(lambda: self._queue.bury_all(name, reason, self._now()))
                events.webhook_gone(name, count)
        else:
            await self._failed(delivery, f"status {status}")

    async def _failed(self, delivery: Delivery, reason: str) -> None:
        name, attempts = delivery.message.endpoint, delivery.attempts + 1
        self._attempts["failed"] += 1
        if name not in self._failing:
            self._failing.add(name)
            events.webhook_failing(name, reason)
        if attempts <= len(RETRY_DELAYS):
            delay = RETRY_DELAYS[attempts - 1] * (1 + JITTER * (2 * self._random() - 1))
            await self._surely(lambda: self._queue.retry(delivery.id, attempts, self._now() + delay))
        else:
            self._attempts["dead"] += 1
            await self._surely(lambda: self._queue.bury(delivery.id, attempts, reason, self._now()))
            events.webhook_dead_letter(name, delivery.message.message_id, attempts, reason)

    async def _surely(self, change: Callable[[], Coroutine[Deferred[Any], Any, Any]]) -> Any:
        """A change of the queue, made again until it can be: or else the same message would be sent again at once."""
        while True:
            try:
                return await change()
            except DatabaseUnavailable as error:
                self._say_failing(error)
                await deferLater(self._clock, PAUSE)

    def _say_failing(self, error: DatabaseUnavailable) -> None:
        if not self._queue_failing:
            self._queue_failing = True
            events.webhook_queue_failing(error.reason)

    def _wake(self) -> None:
        self._woken = True
        if self._nap is not None:
            nap, self._nap = self._nap, None
            nap.callback(None)

    async def _sleep(self, seconds: float) -> None:
        """Until it is time, or there is something to do."""
        if self._woken:
            return
        timer = self._clock.callLater(seconds, self._wake)
        self._nap = Deferred()
        try:
            await self._nap
        finally:
            self._nap = None
            if timer.active():
                timer.cancel()

    def _begin(self, work: Coroutine[Deferred[Any], Any, None], what: str) -> Deferred[None]:
        def failed(failure: Failure) -> None:
            if not failure.check(CancelledError):
                events.failed_unexpectedly(failure, what)

        working = Deferred.fromCoroutine(work)
        self._working.add(working)
        return working.addErrback(failed).addBoth(lambda _: self._working.discard(working))

    async def _stopped(self) -> None:
        # what is claimed nobody else tells; this takes no longer than Redis and the queue's file may
        await gatherResults(tuple(self._telling))
        working = tuple(self._working)
        for work in working:
            work.cancel()
        await gatherResults(working)
        await self._queue.close()
        await self._sender.close()
