"""The parent of several workers: it relays nothing, and does once what each of them would do for itself."""

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
from msgspec.structs import replace
from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.defer import TimeoutError as TimeOver
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from chutes_autopilot.control.snapshots import Snapshot, SnapshotHolder
from chutes_autopilot.e2ee_keys import KeyHolder
from chutes_autopilot.interfaces import IReplayClaims
from chutes_autopilot.listening import ListeningService
from chutes_autopilot.observe import events
from chutes_autopilot.policy.catalog import Catalog
from chutes_autopilot.settings import Settings
from chutes_autopilot.web.connections import ClientConnections
from chutes_autopilot.web.site import GatewaySite
from chutes_autopilot.workers.bans import KnownBans
from chutes_autopilot.workers.channel import encoded
from chutes_autopilot.workers.cooldowns import KnownCooldowns
from chutes_autopilot.workers.messages import (
    Banned,
    Begin,
    CatalogOutOfDate,
    Changed,
    Claim,
    Cooling,
    FindAnswer,
    FindDecision,
    Finished,
    Line,
    Message,
    Probing,
    Recent,
    Reply,
    Report,
    Sources,
    State,
    Strength,
    Told,
)
from chutes_autopilot.workers.processes import CHECKED_SECONDS, WorkerProcess
from chutes_autopilot.workers.routing import ToldRouting
from chutes_autopilot.workers.supervision import Supervisor
from chutes_autopilot.workers.totals import ServiceTotals

if TYPE_CHECKING:
    from chutes_autopilot.explorer_live.measured import Measurements

END_SECONDS = 5.0
"""How much longer than their grace workers may take to end."""

_told = msgspec.msgpack.Decoder(Told).decode


@attrs.define(eq=False)
class Sealing:
    """What encrypted requests need of the parent."""

    keys: KeyHolder
    claims: IReplayClaims
    not_before: int | None


@attrs.frozen
class Orders:
    """What a worker is told that never changes."""

    endpoints: tuple[str, ...]
    sources: Sources
    client_key_secret: bytes
    shares: bool
    attestation_root: bytes | None
    syslog: str | None


class ParentService(MultiService):
    """The running whole, as far as it is not the workers'.

    :param orders: for every worker.
    :param connections: of the operator, at ADMIN_ENDPOINT.
    :param lines: on which workers pass on what is not theirs to answer.
    :param sources: what the settings in force were read from.
    :ivar listening: the sockets of all workers; they close first.
    :ivar grace: seconds that workers have for answers in flight.
    """

    _log = Logger()
    listening: ListeningService
    supervisor: Supervisor
    site: GatewaySite
    totals: ServiceTotals
    sealing: Sealing | None = None
    measurements: "Measurements | None" = None
    catalog_out_of_date: Callable[[], None]
    changed_settings: Callable[[Settings], None]

    def __init__(
        self,
        orders: Orders,
        reactor: Any,
        connections: ClientConnections,
        lines: ClientConnections,
        snapshots: SnapshotHolder,
        sources: Callable[[], Sources],
        grace: float,
    ) -> None:
        super().__init__()
        self.connections = connections
        self.grace = grace
        self._orders = orders
        self._reactor = reactor
        self._lines = lines
        self._snapshots = snapshots
        self._sources = sources
        self.routing = ToldRouting()
        self._bans = KnownBans()
        self._cooldowns = KnownCooldowns()
        self._told: Catalog | None = None
        self._waiting: Deferred[Any] | None = None
        self._reports = LoopingCall(self._report_soon)
        self._reports.clock = reactor

    # what the composition and twistd call

    @property
    def keys(self) -> KeyHolder | None:
        """Of the Chutes route; None where it is off."""
        return None if self.sealing is None else self.sealing.keys

    def apply(self, settings: Settings) -> None:
        """Put new settings into force, here and in every worker."""
        self.grace = settings.shutdown_grace
        self.changed_settings(settings)
        self.supervisor.tell_all(encoded(Changed(self._sources())))

    def hurry(self) -> None:
        """Wait no longer for answers in flight."""
        self.supervisor.hurry()

    def startService(self) -> None:
        super().startService()
        self._reports.start(CHECKED_SECONDS, now=False)

    def stopService(self) -> Deferred[None]:
        """Drain and stop; fires when the last worker has ended, and all else has."""
        return Deferred.fromCoroutine(self._drain())

    async def _drain(self) -> None:
        self.connections.draining = self._lines.draining = True
        # first, so that the workers' own are the last: then nobody waits in a queue that nobody empties
        await self.listening.stopService()
        drained = Deferred.fromCoroutine(self.supervisor.drain())
        drained.addTimeout(self.grace + END_SECONDS, self._reactor)
        with suppress(TimeOver, CancelledError):
            await drained
        self.supervisor.kill()
        if self._reports.running:
            self._reports.stop()
        self.connections.close_idle()
        await super().stopService()
        self.connections.abort()
        self._lines.abort()

    # what workers are told

    def begin(self, number: int) -> Begin:
        """The first message for a worker."""
        orders = self._orders
        return Begin(
            number,
            len(self.supervisor.seats),
            orders.endpoints,
            orders.sources,
            orders.client_key_secret,
            orders.shares,
            None if self.sealing is None else self.sealing.not_before,
            orders.attestation_root,
            orders.syslog,
        )

    def greetings(self) -> list[bytes]:
        """All else that a new worker must know, encoded."""
        told: list[Message] = []
        sources = self._sources()
        if sources != self._orders.sources:
            told.append(Changed(sources))
        keys = self._keys_message()
        if keys is not None:
            told.append(keys)
        if self._snapshots.current.id:
            told.append(_state(self._snapshots.current, whole=True))
        told += self._bans.lasting(self._reactor.seconds())
        told += [*self._cooldowns.all, Strength(len(self.supervisor.serving))]
        return [encoded(message) for message in told]

    def snapshot_changed(self) -> None:
        """Tell all workers of the current one."""
        snapshot = self._snapshots.current
        whole, self._told = snapshot.catalog is not self._told, snapshot.catalog
        self.supervisor.tell_all(encoded(_state(snapshot, whole=whole)))

    def keys_changed(self, _keys: object) -> None:
        """Hand them to all workers."""
        message = self._keys_message()
        if message is not None:
            self.supervisor.tell_all(encoded(message))

    def _keys_message(self) -> Message | None:
        if self.sealing is None or not self.sealing.keys.there:
            return None
        from chutes_autopilot.workers.sealing import keys_message  # with all of encryption

        return keys_message(self.sealing.keys.current)

    # what workers say

    def received(self, worker: WorkerProcess, message: Any) -> None:
        """Do what it asks for."""
        match message:
            case Finished():
                self.routing.hear(message)
                if self.measurements is not None:
                    self.measurements.add(message.plain)
                    for record in message.records:
                        self.measurements.finished(record)
            case Line():
                self._take_line(worker)
            case Claim():
                self._claim(worker, message)
            case FindDecision() | FindAnswer():
                self._find(worker, message).addErrback(events.failed_unexpectedly, "asking the other workers")
            case Banned():
                self._bans.take(message, self._reactor.seconds())
                self.supervisor.tell_all(encoded(message))
            case Cooling() | Probing():
                self._cooldowns.take(worker, message)
                self.supervisor.tell_all(encoded(message), but=worker)
            case CatalogOutOfDate():
                self.catalog_out_of_date()

    def ended(self, worker: WorkerProcess) -> None:
        """It is gone."""
        self.totals.ended(worker)
        self.routing.health.ended(worker)
        for message in self._cooldowns.ended(worker):
            self.supervisor.tell_all(encoded(message))

    def _take_line(self, worker: WorkerProcess) -> None:
        for descriptor in worker.channel.take_descriptors(1):
            with suppress(OSError):
                os.set_blocking(descriptor, False)
                self._reactor.adoptStreamConnection(descriptor, socket.AF_UNIX, self.site)
            os.close(descriptor)

    def _claim(self, worker: WorkerProcess, message: Claim) -> None:
        if self.sealing is None:
            worker.tell(Reply(message.id, None))
            return
        from chutes_autopilot.workers.sealing import judge

        judged = judge(self.sealing.claims, message, lambda value: worker.tell(Reply(message.id, value)))
        judged.addErrback(events.failed_unexpectedly, "claiming a nonce")

    def _find(self, worker: WorkerProcess, question: FindDecision | FindAnswer) -> Deferred[None]:
        async def find() -> None:
            others = [other for other in self.supervisor.answering if other is not worker]
            asked = [other.channel.ask(lambda number: replace(question, id=number)) for other in others]
            worker.tell(Reply(question.id, await _first_found(asked)))

        return Deferred.fromCoroutine(find())

    # what all of them have

    async def count(self) -> bytes:
        """The metrics of the whole service, in Prometheus' text format."""
        await self._report(self.supervisor.answering)
        return self.totals.exposition()

    async def recent(self, count: int) -> Sequence[bytes]:
        """The last requests of each worker, and its models' health; JSON."""
        asked = [worker.channel.ask(lambda number: Recent(number, count)) for worker in self.supervisor.answering]
        return [answer for answer in await gatherResults(asked) if answer is not None]

    def _report_soon(self) -> None:
        workers = self.supervisor.workers
        for worker in workers:
            worker.check()
        reported = Deferred.fromCoroutine(self._report(workers))
        reported.addErrback(events.failed_unexpectedly, "counting what workers did")

    async def _report(self, workers: Sequence[WorkerProcess]) -> None:
        await gatherResults([each.channel.ask(Report).addCallback(self._take_report, each) for each in workers])

    def _take_report(self, answer: bytes | None, worker: WorkerProcess) -> None:
        # at once: when others have answered as well, this one may have ended, and what it counted be added up
        if answer is not None:
            told = _told(answer)
            self.totals.take(worker, told.families)
            self.routing.health.take(worker, told.health, self._reactor.seconds())


def _first_found(answers: Sequence[Deferred[bytes | None]]) -> Deferred[bytes | None]:
    """The first answer that there is, whoever else is slow; None when nobody has one."""
    found: Deferred[bytes | None] = Deferred()
    left = len(answers)

    def answered(value: bytes | None) -> None:
        nonlocal left
        left -= 1
        if not found.called and (value is not None or not left):
            found.callback(value)

    for answer in answers:
        answer.addCallback(answered)
    if not answers:
        found.callback(None)
    return found


def _state(snapshot: Snapshot, *, whole: bool) -> State:
    catalog = snapshot.catalog if whole else None
    return State(
        snapshot.id,
        snapshot.catalog_fetched_at,
        snapshot.feed_fetched_at,
        snapshot.feed_rows,
        snapshot.feed_skipped,
        snapshot.ranking,
        None if catalog is None else catalog.entries,
        0 if catalog is None else catalog.skipped,
        {} if catalog is None else dict(snapshot.offers.by_model),
    )
