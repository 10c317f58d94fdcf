"""Who sits where among worker processes: the spare, restarts and their pauses, the hung, and the end."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from attrs import define, field
from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from chutes_autopilot.control.snapshots import SnapshotHolder
from chutes_autopilot.policy.cooldown import CooldownRules
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.policy.retry_shield import BanFuse
from chutes_autopilot.web.connections import ClientConnections
from chutes_autopilot.web.signatures import SignedExchange
from chutes_autopilot.workers import worker as serving_worker
from chutes_autopilot.workers.bans import SharedBanFuse
from chutes_autopilot.workers.channel import ANSWER_SECONDS, Channel, encoded
from chutes_autopilot.workers.link import ParentLink
from chutes_autopilot.workers.messages import (
    Banned,
    Begin,
    Drain,
    Draining,
    Family,
    FindDecision,
    Go,
    Hurry,
    Lent,
    Ready,
    Recent,
    Reply,
    Report,
    Returned,
    Serving,
    Sources,
    Strength,
    Told,
    ToWorker,
)
from chutes_autopilot.workers.parent import Orders, ParentService
from chutes_autopilot.workers.processes import CHECKED_SECONDS, LAST_SECONDS, STUCK_CHECKS, WorkerProcess
from chutes_autopilot.workers.supervision import BACKOFF_FIRST, BACKOFF_LONGEST, HOPELESS, LIVED_SECONDS, Supervisor
from chutes_autopilot.workers.totals import ServiceTotals
from chutes_autopilot.workers.worker import WorkerLog

SOCKETS = {0: (10,), 1: (11,), 2: (12,)}
STICKY = 9
ORDERS = Orders(("tcp:0",), Sources((), ()), b"secret", False, None, None)
DEAD, DONE = Failure(ProcessTerminated(signal=9)), Failure(ProcessDone(0))


class Wire(StringTransport):
    """A channel's, which takes descriptors too."""

    def __init__(self) -> None:
        super().__init__()
        self.descriptors: list[int] = []

    def sendFileDescriptor(self, descriptor: int) -> None:
        self.descriptors.append(descriptor)


@define(eq=False)
class Process:
    """One process as a test sees it; what it does not do itself is the real WorkerProcess."""

    worker: WorkerProcess
    wire: Wire = field(factory=Wire)
    signals: list[str] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.worker.transport = self  # type: ignore[assignment]
        self.worker.channel.makeConnection(self.wire)

    def signalProcess(self, name: str) -> None:
        self.signals.append(name)

    def says(self, message: Any) -> None:
        self.worker.channel.dataReceived(encoded(message))

    def ends(self, reason: Failure = DEAD) -> None:
        self.worker.process_ended(reason)

    def told(self) -> list[Any]:
        """What it was told since this was asked last."""
        heard: list[Any] = []
        side = Channel(ToWorker, Clock(), heard.append, lambda: None)
        side.dataReceived(self.wire.value())
        self.wire.clear()
        return heard

    def hears(self) -> list[str]:
        """The names of that."""
        return [type(message).__name__ for message in self.told()]


class RunningClock(Clock):
    def callWhenRunning(self, call: Any) -> None:
        call()


@define(eq=False)
class World:
    """A parent of some workers whose processes are pretended.

    :param most: so many processes can be started.
    """

    count: int = 2
    most: int = 99
    clock: RunningClock = field(factory=RunningClock)
    processes: list[Process] = field(factory=list)
    restarted: list[int] = field(factory=list)
    parent: ParentService = field(init=False)

    def __attrs_post_init__(self) -> None:
        connections = [ClientConnections(9) for _ in range(2)]
        self.parent = parent = ParentService(
            ORDERS, self.clock, *connections, SnapshotHolder(), lambda: ORDERS.sources, 5.0
        )
        parent.supervisor = Supervisor(self.clock, self.count, parent, self._start, STICKY, SOCKETS.__getitem__)
        parent.supervisor.restarts = self.restarted.append
        parent.totals = ServiceTotals(CollectorRegistry())
        parent.supervisor.startService()

    def _start(self) -> WorkerProcess:
        if len(self.processes) >= self.most:
            raise OSError(11, "Resource temporarily unavailable")
        self.processes.append(Process(WorkerProcess(self.clock)))
        return self.processes[-1].worker

    def serve(self) -> list[Process]:
        """All workers serve; they, and the spare that waits."""
        for process in self.processes[: self.count]:
            process.says(Serving())
        self.processes[-1].says(Ready())
        for process in self.processes:
            process.told()
        return [*self.processes]

    def sitting(self, number: int) -> Process:
        """The process in a seat."""
        return next(p for p in self.processes if p.worker is self.parent.supervisor.seats[number - 1].process)


def test_a_dead_worker_is_followed_by_the_spare_at_once() -> None:
    """It takes the seat in the same moment, another accepts for it until it serves, and then a new spare is started."""
    world = World()
    assert [process.hears()[:1] + process.wire.descriptors for process in world.processes] == [
        ["Begin", STICKY, 10],
        ["Begin", STICKY, 11],
    ]
    first, second, spare = world.serve()
    assert (spare.hears(), spare.wire.descriptors) == ([], [])
    first.ends()
    begin, strength, go = spare.told()
    assert (type(begin), begin.number, spare.wire.descriptors) == (Begin, 1, [STICKY, 10])
    assert (strength, go) == (Strength(1), Go())
    assert second.told() == [Strength(1), Lent(1)]
    assert second.wire.descriptors[-1:] == [10]
    assert (world.restarted, len(world.processes)) == ([1], 3)
    world.clock.advance(0.2)
    spare.says(Serving())
    assert second.told() == [Returned(1), Strength(2)]
    assert (len(world.processes), world.processes[3].hears()) == (4, [])


def lent(process: Process) -> list[int]:
    """For whom a process was asked to accept since it was asked last."""
    return [message.number for message in process.told() if isinstance(message, Lent)]


def test_whoever_serves_accepts_for_all_seats_where_nobody_does() -> None:
    """One that has never been taken, then one that waits for a restart while who accepted for it is replaced."""
    world = World(3, most=2)
    first, second = world.processes
    first.says(Serving())
    assert lent(first) == [2, 3]
    second.says(Serving())
    first.ends()
    assert (lent(second), second.wire.descriptors[-2:]) == ([1, 3], [10, 12])
    second.ends()
    world.most = 99
    world.clock.advance(BACKOFF_LONGEST)
    world.sitting(3).says(Serving())
    assert lent(world.sitting(3)) == [1, 2]


def test_nothing_is_lent_once_all_are_to_end() -> None:
    """A worker that is only now ready would accept what the others have just left, and keep the end waiting."""
    world = World(3)
    first = world.processes[0]
    Deferred.fromCoroutine(world.parent.supervisor.drain())
    first.says(Serving())
    assert lent(first) == []


def test_a_seat_is_lent_once() -> None:
    """However many die there before one serves."""
    world = World()
    _, second, spare = world.serve()
    world.processes[0].ends()
    assert lent(second) == [1]
    spare.ends()
    world.clock.advance(BACKOFF_LONGEST)
    world.sitting(1).ends()
    assert lent(second) == []


def test_a_worker_that_drains_leaves_its_seat() -> None:
    """Another accepts for it at once, and the spare takes it soon, unless all are to end. Until it ends, it is told
    and asked what the others are, and the end waits for it."""
    world = World()
    first, second, spare = world.serve()
    first.says(Draining())
    assert (lent(second), spare.told()) == ([1], [])
    world.clock.advance(BACKOFF_FIRST)
    assert spare.told()[0].number == 1
    spare.says(Serving())
    first.told()
    world.parent.hurry()
    Deferred.fromCoroutine(world.parent.recent(9))
    assert first.told() == [Hurry(), Recent(1, 9)]
    drained = Deferred.fromCoroutine(world.parent.supervisor.drain())
    world.processes[3].ends()
    for process in (second, spare):
        process.ends(DONE)
    assert (first.hears(), first.signals, drained.called) == ([], [], False)
    first.ends(DONE)
    assert (drained.called, world.restarted) == (True, [1])


def test_a_worker_that_dies_while_there_is_no_spare_is_started_at_once() -> None:
    """As where two die in one moment."""
    world = World()
    first, second, _ = world.serve()
    first.ends()
    second.ends()
    assert len(world.processes) == 4
    assert [each.told()[0].number for each in world.processes[2:]] == [1, 2]


def test_one_that_dies_again_and_again_is_started_ever_later() -> None:
    """The first time at once, then after pauses that double up to half a minute; after a minute of life at once."""
    world = World()
    world.processes[1].says(Serving())
    pauses = []
    for _ in range(9):
        began = world.clock.seconds()
        count = len(world.processes)
        world.sitting(1).ends(DONE)
        while len(world.processes) == count:
            world.clock.advance(0.25)
        pauses.append(world.clock.seconds() - began)
    assert pauses == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    world.clock.advance(LIVED_SECONDS)
    count = len(world.processes)
    world.processes[-1].ends()
    assert len(world.processes) == count + 1


@pytest.mark.parametrize("served", [False, True])
def test_a_service_of_which_no_worker_ever_served_ends(served: bool) -> None:
    """Once each has died three times: something is wrong with all of them, and whoever watches over the service is to
    know. One that has served shows that they can."""
    world = World()
    given_up: list[float] = []
    world.parent.supervisor.hopeless = lambda: given_up.append(world.clock.seconds())
    if served:
        world.processes[0].says(Serving())
    for _ in range(HOPELESS):
        assert not given_up
        for seat in world.parent.supervisor.seats:
            next(each for each in world.processes if each.worker is seat.process).ends()
        world.clock.advance(BACKOFF_LONGEST)
    assert len(given_up) == (not served)
    seats = [seat.process for seat in world.parent.supervisor.seats]
    assert (seats == [None, None]) is not served


def test_a_spare_that_dies_is_replaced_later() -> None:
    """It is of no use to anybody meanwhile, and nobody's seat."""
    world = World()
    _, second, spare = world.serve()
    spare.ends()
    assert (second.told(), len(world.processes), world.restarted) == ([], 3, [])
    world.clock.advance(BACKOFF_LONGEST)
    assert len(world.processes) == 4


def test_a_process_that_cannot_be_started_is_tried_again() -> None:
    """No process or no descriptor is left: the others serve on."""
    world = World()
    first, second, _ = world.serve()
    world.most = 3
    first.ends()
    second.ends()
    world.most = 99
    assert len(world.processes) == 3
    world.clock.advance(BACKOFF_LONGEST)
    assert world.processes[3].told()[0].number == 2


def test_a_worker_that_says_nothing_any_more_is_killed() -> None:
    """When it has been asked for a minute, whether it serves, drains or has not begun; one that answers late is not."""
    world = World(3)
    world.parent.startService()
    slow, *silent = world.serve()
    silent[0].says(Draining())
    for _ in range(STUCK_CHECKS // 5):
        world.clock.pump([CHECKED_SECONDS] * 5)
        slow.says(Reply(0, None))
    assert [process.signals for process in world.processes] == [[]] * 4
    world.clock.pump([CHECKED_SECONDS] * 2)
    assert (slow.signals, [process.signals for process in silent]) == ([], [["KILL"]] * 3)


def test_one_that_cannot_be_told_anything_is_killed() -> None:
    """Its channel is closed, whatever it does itself."""
    world = World()
    first, *_ = world.serve()
    first.worker.channel.connectionLost()
    assert first.signals == ["KILL"]


@pytest.mark.parametrize("by_itself", [True, False])
def test_one_that_ends_in_order_has_time_for_its_last_words(by_itself: bool) -> None:
    """Its channel goes before it does: it is killed only where it does not end soon after."""
    world = World()
    first, second, *_ = world.serve()
    for process in (first, second):
        process.says(Draining()) if by_itself else process.worker.tell(Drain())
        process.worker.channel.connectionLost()
    first.ends(DONE)
    world.clock.advance(LAST_SECONDS - 0.01)
    assert (first.signals, second.signals) == ([], [])
    world.clock.advance(0.01)
    assert (first.signals, second.signals) == ([], ["KILL"])


def test_a_worker_writes_what_waits_to_be_logged_before_its_channel_goes() -> None:
    """Once all its answers have ended: the reactor closes connections next, and whoever has lost its channel may be
    killed."""
    triggers: list[Any] = []
    happened: list[str] = []
    stopped: Deferred[None] = Deferred()
    reactor = SimpleNamespace(addSystemEventTrigger=lambda *trigger: triggers.append(trigger), stop=lambda: None)
    gateway = SimpleNamespace(
        privilegedStartService=lambda: None, startService=lambda: None, stopService=lambda: stopped
    )
    log = WorkerLog(lambda _settings: None, lambda: happened.append("flushed"))
    worker = serving_worker.Worker(reactor, lambda *_: log, lambda *_: gateway)  # type: ignore[arg-type, return-value]
    worker.channel = Channel(ToWorker, Clock(), worker.received, worker.lost)
    for _ in range(2):
        worker.channel.fileDescriptorReceived(os.dup(0))
    worker.received(World().parent.begin(1))
    worker.received(Go())
    ((phase, event, stop, *arguments),) = triggers
    assert (phase, event) == ("before", "shutdown")
    stopping = stop(*arguments).addCallback(lambda _: happened.append("goes on"))
    assert happened == []
    stopped.callback(None)
    assert stopping.called
    assert happened == ["flushed", "goes on"]


def test_what_a_worker_counted_counts_once_if_it_dies_while_others_are_asked() -> None:
    """Its last answer is what stays of it, and its measured times are over."""
    world = World()
    first, second, spare = world.serve()
    name, health = "requests", FleetHealth(CooldownRules(failures=1, first=10.0))
    health.failed("a", 0.0)

    def counted(process: Process, value: float) -> None:
        (asked,) = (message for message in process.told() if isinstance(message, Report))
        told = Told([Family(name, "", "counter", [(f"{name}_total", (), value)])], health.as_json(0.0))
        process.says(Reply(asked.id, msgspec.msgpack.encode(told)))

    def total() -> list[str]:
        return [line for line in world.parent.totals.exposition().decode().splitlines() if line.startswith(name)]

    for value in (1000.0, 1001.0):
        scrape = Deferred.fromCoroutine(world.parent.count())
        counted(first, value)
        if value == 1001.0:
            first.ends()
        counted(second, 10.0)
        assert scrape.called
    assert total() == ["requests_total 1011.0"]
    second.ends()
    assert world.parent.routing.health.figures("a", 0.0) is None
    spare.says(Serving())
    Deferred.fromCoroutine(world.parent.count())
    counted(spare, 1.0)
    assert total() == ["requests_total 1012.0"]


def test_an_answer_is_for_the_process_that_asked() -> None:
    """Not for the next one in its place, whose question may have the same number."""
    world = World()
    first, second, spare = world.serve()
    first.says(FindDecision(1, "request", b"owner"))
    (asked,) = second.told()
    first.ends()
    spare.says(Serving())
    spare.told()
    second.says(Reply(asked.id, b"found"))
    assert spare.wire.value() == b""


def test_the_end_waits_for_those_who_serve() -> None:
    """They are asked to drain; who does not serve is killed, the spare too, and nobody is started again."""
    world = World()
    first, second, third = world.serve()
    first.ends()
    drained = Deferred.fromCoroutine(world.parent.supervisor.drain())
    assert second.told()[-1] == Drain()
    assert (second.signals, third.signals) == ([], ["KILL"])
    third.ends()
    assert not drained.called
    second.ends(DONE)
    assert drained.called
    world.clock.advance(LIVED_SECONDS)
    assert len(world.processes) == 3


@define(eq=False)
class Worker:
    """The worker's side in one of the pretended processes."""

    process: Process
    clock: Clock
    health: FleetHealth = field(factory=lambda: FleetHealth(CooldownRules(failures=1, first=10.0)))
    channel: Channel = field(init=False)
    link: ParentLink = field(init=False)
    fuse: BanFuse = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.channel = Channel(ToWorker, self.clock, self._hear, lambda: None)
        self.channel.makeConnection(StringTransport())
        self._listen()

    def _listen(self) -> None:
        told = self.process.wire.value()
        self.process.wire.clear()
        self.channel.dataReceived(told)

    def _hear(self, message: Any) -> None:
        if isinstance(message, Begin):
            self.link = ParentLink(message, self.channel, self.clock, tuple(os.dup(0) for _ in range(2)))
            self.link.share_cooldowns({"chat": self.health})
            self.fuse = self.link.fuse()
        else:
            self.link.heard(message)

    def talk(self) -> None:
        """Whatever was said by either side is heard by the other."""
        said = self.channel.transport.value()  # type: ignore[union-attr]
        self.channel.transport.clear()  # type: ignore[union-attr]
        self.process.worker.channel.dataReceived(said)
        self._listen()


@pytest.fixture
def pair() -> Iterator[tuple[World, list[Worker]]]:
    """A parent and its two workers, which serve."""
    yield from serving(2)


@pytest.fixture
def three() -> Iterator[tuple[World, list[Worker]]]:
    """The same of three."""
    yield from serving(3)


def serving(count: int) -> Iterator[tuple[World, list[Worker]]]:
    world = World(count)
    workers = [Worker(process, world.clock) for process in world.processes]
    for worker in workers:
        worker.process.says(Serving())
    yield world, workers
    for worker in workers:
        worker.link.adopted()


def talk(workers: list[Worker]) -> None:
    for worker in workers * 2:
        worker.talk()


def test_what_one_worker_finds_failing_all_leave_alone(pair: tuple[World, list[Worker]]) -> None:
    """From then on, those too that begin later; one request of all of them finds out if it is over, and an answer
    ends it everywhere."""
    world, (one, two) = pair
    one.health.failed("a", 0.0)
    talk([one, two])
    assert two.health.cooling(0.0) == {"a"}
    two.process.ends()
    three = Worker(world.processes[2], world.clock)
    assert three.health.cooling(0.0) == {"a"}
    world.clock.advance(10.0)
    assert one.health.started("a", 10.0)
    talk([one, three])
    assert three.health.cooling(10.0) == {"a"}
    assert not three.health.started("a", 10.0)
    one.health.abandoned("a", probe=True)
    talk([one, three])
    assert three.health.started("a", 11.0)
    three.health.succeeded("a", None, 12.0)
    talk([three, one])
    assert one.health.cooling(12.0) == frozenset()
    three.link.adopted()


def test_a_ban_keeps_clients_of_every_worker_from_calling(pair: tuple[World, list[Worker]]) -> None:
    """For as long as the one that met it, those too that begin later, and a second ban lasts longer at all."""
    world, (one, two) = pair
    waits = []
    for passed in (20.0, 100.0):
        one.fuse.banned(b"client", None, world.clock.seconds())
        talk([one, two])
        world.clock.advance(passed)
        two.process.ends()
        two.link.adopted()
        two = Worker(world.processes[-1], world.clock)
        two.process.says(Serving())
        now = world.clock.seconds()
        waits.append([worker.fuse.admit(b"client", now) for worker in (one, two)])
        assert two.fuse.admit(b"another", now) == 0.0
        world.clock.advance(40.0)
    assert waits == [[40.0, 40.0], [20.0, 20.0]]
    two.link.adopted()


def test_the_others_hear_of_each_ban_page_once() -> None:
    """However often one worker comes upon it: with the page's head, and again at its end."""
    told: list[object] = []
    fuse = SharedBanFuse(tell=told.append)
    for now in (100.0, 100.5, 200.0):
        fuse.banned(b"client", None, now)
    assert told == [Banned(b"client", 60.0, 1), Banned(b"client", 120.0, 2)]


def test_a_probe_that_dies_with_its_worker_is_over(pair: tuple[World, list[Worker]]) -> None:
    """Another worker begins one at once."""
    world, (one, two) = pair
    one.health.failed("a", 0.0)
    talk([one, two])
    world.clock.advance(10.0)
    assert one.health.started("a", 10.0)
    talk([one, two])
    assert not two.health.started("a", 10.0)
    one.process.ends()
    two.talk()
    assert two.health.started("a", 10.0)


def test_readyz_of_any_worker_says_who_is_missing(pair: tuple[World, list[Worker]]) -> None:
    """From the moment when one is gone until the next one serves."""
    world, (one, two) = pair
    talk([one, two])
    assert (one.link.missing(), two.link.missing()) == (None, None)
    one.process.ends()
    two.talk()
    assert two.link.missing() == "1 of 2 workers is missing"
    world.processes[2].says(Serving())
    two.talk()
    assert two.link.missing() is None


def test_the_explorer_sees_how_models_fare_at_all_workers(pair: tuple[World, list[Worker]]) -> None:
    """What each has measured, as one; what cools down counts on between two reports; of the dead nothing."""
    world, (one, two) = pair
    health = world.parent.routing.health
    for worker, seconds in ((one, 0.1), (two, 0.3)):
        worker.health.streamed("a", 11, None, seconds * 10, 0.0)
        worker.health.succeeded("a", None, 0.0)
    two.health.failed("b", 0.0)
    health.take(one.process.worker, one.health.as_json(0.0), 0.0)
    health.take(two.process.worker, two.health.as_json(0.0), 0.0)
    figures = health.figures("a", 0.0)
    assert figures is not None
    assert (figures["between_events_ms"], figures["successes"]) == (200.0, 2)
    assert health.cooling(9.0) == {"b"}
    assert (health.figures("b", 4.0) or {})["cooling_ms"] == 6000.0
    assert health.cooling(10.0) == frozenset()
    two.process.ends()
    assert health.figures("b", 0.0) is None


def test_what_another_worker_has_is_found_although_one_is_stalled(three: tuple[World, list[Worker]]) -> None:
    """Whoever has it answers for all; that nobody has is known when the stalled one was waited for, not before."""
    world, (one, _, other) = three
    other.link.answers = {(b"caller", "kept"): SignedExchange("text", "key")}
    found: list[Any] = []
    for chat_id in ("kept", "lost"):
        one.link.answer_elsewhere((b"caller", chat_id)).addCallback(found.append)
        for worker in (one, other, other, one):
            worker.talk()
    assert [each["text"] for each in found] == ["text"]
    world.clock.advance(ANSWER_SECONDS)
    assert len(found) == 1
    one.talk()
    assert found[1:] == [None]


def test_a_report_tells_what_is_measured_of_chat(pair: tuple[World, list[Worker]]) -> None:
    """Beside what is counted, so that the explorer has both by one question."""
    _, (one, _) = pair
    one.health.failed("a", 0.0)

    one.link.relay = SimpleNamespace(metrics=CollectorRegistry())  # type: ignore[assignment]
    asked = one.process.worker.channel.ask(Report)
    one.talk()
    one.talk()
    told = msgspec.msgpack.decode(asked.result, type=Told)
    assert (told.families, told.health["a"]["cooling_ms"]) == ([], 10_000.0)
