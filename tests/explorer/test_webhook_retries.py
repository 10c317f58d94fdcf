"""Webhooks under a clock: who is told what and when, how often it is tried, and what a restart takes up."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from pytest_twisted import blockon
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import formatEvent, globalLogPublisher

from chutes_autopilot.explorer.changes import Change, ChangeType
from chutes_autopilot.explorer.webhook_config import WebhookEndpoint
from chutes_autopilot.explorer.webhook_events import EVENT_TYPES, EventType
from chutes_autopilot.explorer_live.webhook_sending import SendFailed
from chutes_autopilot.explorer_live.webhooks import (
    MAX_AT_ONCE,
    MAX_AT_ONCE_PER_ENDPOINT,
    RETRY_DELAYS,
    Claim,
    GiveBack,
    Webhooks,
)
from chutes_autopilot.storage.sqlite_database import DatabaseUnavailable
from chutes_autopilot.storage.webhook_queue import DeadLetter, WebhookQueue

START = 1_795_219_200.0


def endpoint(name: str, *types: EventType) -> WebhookEndpoint:
    return WebhookEndpoint(name, f"https://{name}.example/", b"k" * 32, frozenset(types or EVENT_TYPES))


def added(name: str, kind: ChangeType = "model.added") -> Change:
    return Change(kind, START, f"v1:{name}", None, name)


class FakeSender:
    """Answers as told, 200 otherwise; where it holds, when the test says so."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sent: list[tuple[float, str, str]] = []  # seconds since the start, endpoint, message id
        self.answers: list[int | Exception] = []
        self.holding = False
        self.held: list[Deferred[int]] = []
        self.closed = False

    async def send(self, endpoint: WebhookEndpoint, message_id: str, body: bytes) -> int:
        self.sent.append((self.clock.seconds() - START, endpoint.name, message_id))
        if self.holding:
            self.held.append(Deferred())
            return await self.held[-1]
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> Deferred[None]:
        self.closed = True
        return succeed(None)


@define(eq=False)
class Hooks:
    """A running service and what it works with."""

    reactor: Any
    clock: Clock
    sender: FakeSender
    queue: WebhookQueue
    service: Webhooks
    counts: Counter[str]
    random: list[float] = field(factory=list)

    async def until(self, happened: Callable[[], bool]) -> None:
        while not happened():
            await deferLater(self.reactor, 0.001)

    async def idle(self) -> None:
        """Until the service sleeps and nothing else is under way."""
        await self.until(lambda: self.service._nap is not None and len(self.service._working) == 1)

    async def tell(self, *changes: Change) -> None:
        self.service.changed(changes)
        await self.idle()

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.idle()

    async def dead(self) -> list[tuple[str, int, str]]:
        letters: tuple[DeadLetter, ...] = await self.queue.dead_letters(99)
        return [(letter.message.endpoint, letter.attempts, letter.reason) for letter in letters]

    async def stop(self) -> None:
        await self.service.stopService()


StartHooks = Callable[..., Hooks]


@pytest.fixture
def start() -> Iterator[StartHooks]:
    """Starts services, of one endpoint "a" where nothing else is said."""
    from twisted.internet import reactor

    clock, ids, started = Clock(), count(1), []
    clock.advance(START)

    async def all_claimed(changes: Sequence[Change]) -> list[tuple[Change, str]]:
        return [(change, f"msg_{next(ids)}") for change in changes]

    def begin(
        *endpoints: WebhookEndpoint,
        directory: Path | None = None,
        claim: Claim = all_claimed,
        give_back: GiveBack | None = None,
    ) -> Hooks:
        in_thread = partial(deferToThreadPool, reactor, reactor.getThreadPool())  # type: ignore[attr-defined]
        queue, sender, counts = WebhookQueue(reactor, directory, in_thread), FakeSender(clock), Counter[str]()
        random: list[float] = []
        service = Webhooks(
            endpoints or (endpoint("a"),),
            queue,
            sender,
            clock,
            clock.seconds,
            lambda: random[-1] if random else 0.5,
            claim,
            counts,
            give_back,
        )
        service.startService()
        started.append(Hooks(reactor, clock, sender, queue, service, counts, random))
        return started[-1]

    yield begin
    for hooks in started:
        if hooks.service.running:
            blockon(hooks.service.stopService())
    assert clock.getDelayedCalls() == []


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("event") in ("webhook", "webhooks", "unexpected"):
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


async def test_each_endpoint_hears_what_it_asked_for(start: StartHooks) -> None:
    """Once, at once, under one id for all of them."""
    hooks = start(endpoint("a"), endpoint("b", "price.changed"), endpoint("c", "model.removed", "model.added"))
    await hooks.tell(added("1"), added("2", "price.changed"), added("3", "model.changed"))
    assert sorted(hooks.sender.sent) == [(0, "a", "msg_1"), (0, "a", "msg_2"), (0, "b", "msg_2"), (0, "c", "msg_1")]
    await hooks.advance(100_000)
    assert (len(hooks.sender.sent), hooks.queue.waiting, hooks.counts) == (4, 0, {"delivered": 4})


async def test_a_message_is_tried_eight_times_in_a_day_and_a_half(start: StartHooks, log: list[str]) -> None:
    """With growing delays and the same id; then it is a dead letter. The log tells of the first failure and the end."""
    hooks = start()
    hooks.sender.answers = [500, 301, 404, SendFailed("no answer in time"), 429, 199, 300, 503]
    await hooks.tell(added("1"))
    for delay in RETRY_DELAYS:
        before = len(hooks.sender.sent)
        await hooks.advance(delay - 0.5)
        assert len(hooks.sender.sent) == before
        await hooks.advance(0.5)
        assert len(hooks.sender.sent) == before + 1
    times = [0, 5, 65, 365, 2165, 9365, 38_165, 124_565]
    assert hooks.sender.sent == [(time, "a", "msg_1") for time in times]
    assert await hooks.dead() == [("a", 8, "status 503")]
    await hooks.advance(1_000_000)
    assert (len(hooks.sender.sent), hooks.queue.waiting) == (8, 0)
    assert hooks.counts == {"failed": 8, "dead": 1}
    assert log == ["webhook a fails: status 500", "webhook a: message msg_1 is given up after 8 attempts: status 503"]


@pytest.mark.parametrize(("random", "delay"), [(0.0, 4.5), (0.999999, 5.5)])
async def test_delays_vary_by_a_tenth(start: StartHooks, random: float, delay: float) -> None:
    """So that those who failed together do not come back together."""
    hooks = start()
    hooks.random.append(random)
    hooks.sender.answers = [500]
    await hooks.tell(added("1"))
    await hooks.advance(delay - 0.01)
    assert len(hooks.sender.sent) == 1
    await hooks.advance(0.01)
    assert len(hooks.sender.sent) == 2


async def test_any_2xx_is_a_success(start: StartHooks, log: list[str]) -> None:
    """Also after a failure, which the log then calls overcome."""
    hooks = start()
    hooks.sender.answers = [500, 200, 299]
    await hooks.tell(added("1"))
    await hooks.advance(5)
    await hooks.tell(added("2"))
    assert (hooks.queue.waiting, hooks.counts) == (0, {"failed": 1, "delivered": 2})
    assert log == ["webhook a fails: status 500", "webhook a works again"]


async def test_410_disables_an_endpoint(start: StartHooks, log: list[str]) -> None:
    """It is sent nothing more, and what waited is dead; others go on."""
    hooks = start(endpoint("a"), endpoint("b", "price.changed"))
    hooks.sender.answers = [500, 410]
    await hooks.tell(added("1"))
    await hooks.tell(added("2"))
    await hooks.advance(5)
    await hooks.tell(added("3", "price.changed"))
    assert [sent[1:] for sent in hooks.sender.sent] == [("a", "msg_1"), ("a", "msg_2"), ("b", "msg_3")]
    assert await hooks.dead() == [("a", 0, "the endpoint answered 410"), ("a", 1, "the endpoint answered 410")]
    assert hooks.counts == {"failed": 1, "gone": 1, "delivered": 1}
    assert log[-1] == "webhook a answered 410 and is disabled; 2 messages that waited are given up"


async def test_only_a_few_are_sent_at_once(start: StartHooks) -> None:
    """To one endpoint and to all; whatever ends makes room for the next."""
    hooks = start(*(endpoint(f"e{number}") for number in range(10)))
    hooks.sender.holding = True
    hooks.service.changed([added("1"), added("2"), added("3")])
    await hooks.until(lambda: len(hooks.sender.held) == MAX_AT_ONCE)
    for ended in range(30):
        flying = Counter(name for _, name, _ in hooks.sender.sent[ended:])
        assert max(flying.values()) <= MAX_AT_ONCE_PER_ENDPOINT
        hooks.sender.held[ended].callback(200)
        await hooks.until(lambda ended=ended: len(hooks.sender.held) >= min(30, ended + 1 + MAX_AT_ONCE))  # type: ignore[misc]
        assert len(hooks.sender.held) <= ended + 1 + MAX_AT_ONCE
    await hooks.idle()
    assert len(set(hooks.sender.sent)) == 30


async def test_one_that_hangs_holds_up_no_other(start: StartHooks) -> None:
    """Its room is its own."""
    hooks = start(endpoint("a", "model.added"), endpoint("b", "model.removed"))
    hooks.sender.holding = True
    hooks.service.changed([added(str(number)) for number in range(20)])
    await hooks.until(lambda: len(hooks.sender.held) == 2)
    hooks.sender.holding = False
    hooks.service.changed([added("x", "model.removed")])
    await hooks.until(lambda: hooks.counts["delivered"] == 1)
    assert [name for _, name, _ in hooks.sender.sent] == ["a", "a", "b"]


async def test_a_restart_goes_on_where_it_stopped(start: StartHooks, tmp_path: Path) -> None:
    """With the same ids and the attempts that were made; what was cut by the stop does not count as one."""
    hooks = start(directory=tmp_path)
    hooks.sender.answers = [500, 500]
    await hooks.tell(added("1"))
    await hooks.advance(5)
    hooks.sender.holding = True
    hooks.service.changed([added("2")])
    await hooks.until(lambda: len(hooks.sender.held) == 1)
    await hooks.stop()
    assert hooks.sender.closed
    hooks.service.changed([added("3")])  # nobody is there any more
    again = start(directory=tmp_path)
    again.sender.answers = [500, 500]
    await again.until(lambda: bool(again.sender.sent))
    await again.idle()
    await again.advance(5)
    await again.advance(55)
    assert again.sender.sent == [(5, "a", "msg_2"), (10, "a", "msg_2"), (65, "a", "msg_1")]
    await again.advance(5)
    assert (again.sender.sent[3], again.queue.waiting) == ((70, "a", "msg_2"), 0)


async def test_a_dead_letter_is_sent_again_at_once_when_the_operator_says_so(start: StartHooks) -> None:
    """With all its attempts before it; not where the endpoint wants nothing more."""
    hooks = start(endpoint("a"), endpoint("b"))
    hooks.sender.answers = [500, 410]
    await hooks.tell(added("m"))
    for delay in RETRY_DELAYS:
        hooks.sender.answers.append(500)
        await hooks.advance(delay)
    assert {letter.message.endpoint for letter in await hooks.service.dead_letters()} == {"a", "b"}
    before = len(hooks.sender.sent)
    assert await hooks.service.retry(None) == 1
    await hooks.idle()
    ((_, name, message_id),) = hooks.sender.sent[before:]
    assert (name, message_id) == ("a", hooks.sender.sent[0][2])
    assert [letter.message.endpoint for letter in await hooks.service.dead_letters()] == ["b"]
    assert (await hooks.service.forget(None), hooks.service.waiting) == (1, 0)


async def test_endpoints_that_are_no_more_get_dead_letters(start: StartHooks, tmp_path: Path, log: list[str]) -> None:
    """What waits for them is found at the start."""
    hooks = start(endpoint("a"), endpoint("b"), directory=tmp_path)
    hooks.sender.answers = [500, 500]
    await hooks.tell(added("1"))
    await hooks.stop()
    log.clear()
    again = start(endpoint("b"), directory=tmp_path)
    await again.idle()
    assert await again.dead() == [("a", 1, "the endpoint is not configured any more")]
    assert log == ["1 webhook messages are given up: the endpoint is not configured any more"]
    await again.advance(5)
    assert [name for _, name, _ in again.sender.sent] == ["b"]


async def test_what_was_delivered_is_not_sent_again_while_the_disk_fails(
    start: StartHooks, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    """It is tried until it can be written that it was, and the log says so once; what cannot be queued is lost."""
    hooks = start()

    async def fail(*_: Any) -> Any:
        raise DatabaseUnavailable("SQLite: SQLITE_FULL")

    hooks.sender.holding = True
    hooks.service.changed([added("1")])
    await hooks.until(lambda: hooks.service._nap is not None and len(hooks.sender.held) == 1)
    with monkeypatch.context() as broken:
        for name in ("add", "take", "remove"):
            broken.setattr(hooks.queue, name, fail)
        hooks.sender.held[0].callback(200)
        hooks.service.changed([added("2")])
        for _ in range(5):
            hooks.clock.advance(60)
    assert log[0] == "the webhooks' queue fails: SQLite: SQLITE_FULL"
    assert log[1:] == ["1 webhook messages are lost: SQLite: SQLITE_FULL"]
    hooks.clock.advance(60)
    await hooks.idle()
    assert (len(hooks.sender.sent), hooks.queue.waiting) == (1, 0)


async def test_an_error_of_our_own_is_a_failed_attempt(start: StartHooks, log: list[str]) -> None:
    """Reported without its text, and not tried again at once."""
    hooks = start()
    hooks.sender.answers = [ZeroDivisionError("s3cret")]
    await hooks.tell(added("1"))
    assert (hooks.counts, hooks.queue.waiting) == ({"failed": 1}, 1)
    assert "ZeroDivisionError while sending a webhook" in log[0]
    assert "s3cret" not in "".join(log)
    await hooks.advance(5)
    assert hooks.queue.waiting == 0


async def test_what_another_replica_tells_is_not_told(start: StartHooks) -> None:
    """Nobody is asked about what no endpoint wants to hear; what is left of a change is what is told."""
    asked: list[list[str]] = []

    async def claim(changes: Sequence[Change]) -> list[tuple[Change, str]]:
        asked.append([change.name for change in changes])
        return [(change, "msg_ours") for change in changes if change.name != "theirs"]

    hooks = start(endpoint("a", "model.added"), claim=claim)
    await hooks.tell(added("ours"), added("theirs"), added("unheard", "price.changed"))
    await hooks.tell(added("unheard", "price.changed"))
    assert asked == [["ours", "theirs"]]
    assert hooks.sender.sent == [(0, "a", "msg_ours")]


async def test_what_is_being_claimed_at_the_stop_is_still_queued(start: StartHooks, tmp_path: Path) -> None:
    """No other replica tells it any more, so the next start does."""
    claimed: Deferred[list[tuple[Change, str]]] = Deferred()

    async def claim(_changes: Sequence[Change]) -> list[tuple[Change, str]]:
        return await claimed

    hooks = start(directory=tmp_path, claim=claim)
    hooks.service.changed([added("1")])
    stopping = hooks.service.stopService()
    assert not stopping.called
    claimed.callback([(added("1"), "msg_ours")])
    await stopping
    again = start(directory=tmp_path)
    await again.until(lambda: bool(again.sender.sent))
    await again.idle()
    assert [message_id for *_, message_id in again.sender.sent] == ["msg_ours"]


async def test_what_cannot_be_queued_is_given_back(start: StartHooks, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that another replica may tell it."""
    given: list[str] = []

    async def give_back(message_ids: Sequence[str]) -> None:
        given.extend(message_ids)

    async def fail(*_: Any) -> Any:
        raise DatabaseUnavailable("SQLite: SQLITE_FULL")

    hooks = start(give_back=give_back)
    await hooks.tell(added("1"))
    assert given == []
    monkeypatch.setattr(hooks.queue, "add", fail)
    await hooks.tell(added("2"), added("3"))
    assert given == ["msg_2", "msg_3"]
