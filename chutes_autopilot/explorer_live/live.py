"""Everybody who follows the explorer live: counted, served in turn, and let go where they do not keep up.

One tick a second looks for what is new; nothing is done for nobody. What is new goes out to a few subscribers in each
turn of the reactor, so that hundreds of them do not hold up the requests that are relayed meanwhile. A subscriber whose
connection is full is skipped; when it can take something again it gets the state of that moment and not what it missed,
and where that takes too long it is closed.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from chutes_autopilot.explorer_live.topics import Bundle, Topic
from chutes_autopilot.observe import events

TICK = 1.0
"""Seconds between two looks at what is new."""

HEARTBEAT = 15.0
"""Seconds without a message after which one is sent that says nothing, so that proxies keep the connection."""

SLOW_SECONDS = 30.0
"""How long a subscriber may be unable to take anything before it is closed."""

BATCH = 4
"""Subscribers served in one turn of the reactor, in well under a tenth of a millisecond: a request that is relayed
meanwhile waits for two or three such turns."""

BUNDLES = 8
"""How many different bundles are kept until something is new: nearly all subscribers have seen the same."""


class Subscriber(Protocol):
    """One connection that follows."""

    def send(self, bundle: Bundle) -> None:
        """Write what is new."""

    def beat(self) -> None:
        """Write something that says nothing."""

    def end(self) -> None:
        """Close after what was written; the service stops."""

    def drop(self) -> None:
        """Close at once: it does not read."""


class TooManySubscribers(Exception):
    """No further one may follow now."""


@define(eq=False)
class Subscription:
    """What is known of one subscriber; its connection says here whether it can take more, and when it is gone."""

    _live: "Live"
    subscriber: Subscriber
    seen: tuple[int, ...]
    last_sent: float
    full_since: float | None = None
    queued: bool = False
    open: bool = True

    def pause(self) -> None:
        """The connection is full."""
        if self.full_since is None:
            self.full_since = self._live.clock.seconds()

    def resume(self) -> None:
        """The connection can take more."""
        self.full_since = None
        self._live.queue(self)

    def gone(self) -> None:
        """The connection is no more; may be said twice."""
        self.open = False
        self._live.subscriptions.pop(self, None)


@define(eq=False)
class Live(Service):
    """Tells subscribers what is new.

    :param limit: most subscribers at once.
    :param draining: whether the service is about to stop: then all are sent away.
    """

    clock: IReactorTime
    topics: Sequence[Topic]
    limit: int
    draining: Callable[[], bool] = lambda: False
    subscriptions: dict[Subscription, None] = field(factory=dict, init=False)
    _versions: tuple[int, ...] = field(init=False)
    _bundles: dict[tuple[int, ...], Bundle] = field(factory=dict, init=False)
    _queue: deque[Subscription] = field(factory=deque, init=False)
    _turn: IDelayedCall | None = field(default=None, init=False)
    _loop: LoopingCall | None = field(default=None, init=False)

    @_versions.default
    def _versions_of_topics(self) -> tuple[int, ...]:
        return tuple(topic.version for topic in self.topics)

    def startService(self) -> None:
        super().startService()
        self._loop = LoopingCall(self._tick)
        self._loop.clock = self.clock
        self._loop.start(TICK, now=False)

    def stopService(self) -> None:
        super().stopService()
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self._send_away()

    def check_room(self) -> None:
        """Raise TooManySubscribers where no further one may follow now."""
        if len(self.subscriptions) >= self.limit or not self.running or self.draining():
            raise TooManySubscribers

    def subscribe(self, subscriber: Subscriber) -> Subscription:
        """Follow from now on, beginning with everything there is.

        :raises TooManySubscribers: see check_room.
        """
        self.check_room()
        if not self.subscriptions:
            self._update(at_once=True)  # nobody looked for a while
        subscription = Subscription(self, subscriber, (0,) * len(self.topics), self.clock.seconds())
        self.subscriptions[subscription] = None
        self.queue(subscription)
        return subscription

    def queue(self, subscription: Subscription) -> None:
        """Have a subscriber served in its turn."""
        if subscription.queued or not subscription.open or subscription.full_since is not None:
            return
        if subscription.seen == self._versions:
            return
        subscription.queued = True
        self._queue.append(subscription)
        if self._turn is None:
            self._turn = self.clock.callLater(0, self._serve_some)

    def _tick(self) -> None:
        try:
            if self.draining():
                self._send_away()
            if self.subscriptions:
                self._update()
                self._look_after_all()
        except Exception:  # noqa: BLE001 - reported; a LoopingCall ends for good at the first failure
            events.failed_unexpectedly(Failure(), "telling subscribers what is new")

    def _update(self, *, at_once: bool = False) -> None:
        try:
            for topic in self.topics:
                topic.update(at_once=at_once)
        finally:
            versions = self._versions_of_topics()
            if versions != self._versions:
                self._versions = versions
                self._bundles.clear()

    def _look_after_all(self) -> None:
        now = self.clock.seconds()
        for subscription in tuple(self.subscriptions):
            if subscription.full_since is not None:
                if now - subscription.full_since >= SLOW_SECONDS:
                    subscription.gone()
                    subscription.subscriber.drop()
                continue
            self.queue(subscription)
            if not subscription.queued and now - subscription.last_sent >= HEARTBEAT:
                subscription.last_sent = now
                subscription.subscriber.beat()

    def _serve_some(self) -> None:
        self._turn = None
        for _ in range(min(BATCH, len(self._queue))):
            subscription = self._queue.popleft()
            subscription.queued = False
            try:
                self._serve(subscription)
            except Exception:  # noqa: BLE001 - reported; the others are served all the same
                events.failed_unexpectedly(Failure(), "telling a subscriber what is new")
                subscription.gone()
                subscription.subscriber.drop()
        if self._queue and self._turn is None:
            self._turn = self.clock.callLater(0, self._serve_some)

    def _serve(self, subscription: Subscription) -> None:
        if not subscription.open or subscription.full_since is not None:
            return
        bundle = self._bundle_after(subscription.seen)
        subscription.seen = self._versions
        if bundle.messages:
            subscription.last_sent = self.clock.seconds()
            subscription.subscriber.send(bundle)

    def _bundle_after(self, seen: tuple[int, ...]) -> Bundle:
        bundle = self._bundles.get(seen)
        if bundle is None:
            messages = (topic.message_after(version) for topic, version in zip(self.topics, seen, strict=True))
            bundle = Bundle(tuple(message for message in messages if message is not None))
            if len(self._bundles) < BUNDLES:
                self._bundles[seen] = bundle
        return bundle

    def _send_away(self) -> None:
        for subscription in tuple(self.subscriptions):
            subscription.gone()
            subscription.subscriber.end()
        self._queue.clear()
