"""A worker's link to its parent: what it is told, what it asks, and what it tells."""

import json
import os
import socket
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

import attrs
import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Factory

from chutes_autopilot.control.snapshots import Snapshot, SnapshotHolder
from chutes_autopilot.explorer_live.counting import Counting
from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.policy.catalog import Catalog
from chutes_autopilot.policy.decision import MAX_DECISIONS
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.policy.model_offers import Offers
from chutes_autopilot.relay.chat import ChatRelay
from chutes_autopilot.settings import Settings
from chutes_autopilot.storage.shared_memory import SharedStickyStore, mapped
from chutes_autopilot.workers.bans import SharedBanFuse
from chutes_autopilot.workers.channel import ANSWER_SECONDS, Channel, Handed
from chutes_autopilot.workers.cooldowns import ToldCooldowns
from chutes_autopilot.workers.messages import (
    Banned,
    Begin,
    CatalogOutOfDate,
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
    State,
    Strength,
    Told,
)
from chutes_autopilot.workers.sockets import Adopting
from chutes_autopilot.workers.totals import families_of

if TYPE_CHECKING:
    from chutes_autopilot.workers.sealing import ForwardedClaims, HandedKeys

FINISHED_SECONDS = 1.0
"""How long finished requests wait until the explorer is told of them, many at a time; it never hears of those of a time
when the parent is slow."""

ELSEWHERE_SECONDS = ANSWER_SECONDS + 1.0
"""How long the parent has for an answer that it asks the other workers for: longer than it waits for them itself."""

TOLD_WHOLE = MAX_DECISIONS
"""Of how many of them all workers together tell all, for more are not kept; of others only where the first attempt
failed."""

AT_ONCE = 64
"""Requests that are counted together."""

EXPLAINED = 20
"""Of how many of them it is told why they went where they went: so many as anybody can read."""

_SHOWN = "chat", "sealed"
"""Whose health the explorer shows: as in one process, the first that knows a model."""

_encode = msgspec.msgpack.Encoder().encode


def share_of(settings: Settings, workers: int) -> Settings:
    """The settings of one worker out of so many: what limits the whole service is divided among them.

    Look-ups of instances are not: workers take turns at them (upstream.chute_e2ee.budget.Turn).
    """
    return attrs.evolve(
        settings,
        max_connections=max(1, -(-settings.max_connections // workers)),
        max_buffered_request_bytes=-(-settings.max_buffered_request_bytes // workers),
        max_inflight_requests=max(1, -(-settings.max_inflight_requests // workers)),
    )


def missing(serving: int, workers: int) -> str:
    """What /readyz says where not all workers serve."""
    return f"{workers - serving} of {workers} workers {'is' if workers - serving == 1 else 'are'} missing"


class AnswerStore(Protocol):
    """Where signed answers are kept for a while, by caller and id: attrs values."""

    def get(self, key: tuple[bytes, str], /) -> Any: ...


@attrs.define(eq=False)
class ParentLink:
    """One worker's, for its whole life.

    :param begin: what the parent said first.
    :param descriptors: that came with it: of the memory in which all remember clients, then of the listening sockets.
    :ivar snapshots: the platform as the parent tells it.
    :ivar relay: what this worker's requests went through: siblings and the operator ask for them.
    :ivar answers: what this worker has kept of its answers; None without the Chutes route.
    """

    begin: Begin
    channel: Channel
    reactor: Any
    _descriptors: tuple[int, ...]
    snapshots: SnapshotHolder = attrs.field(factory=SnapshotHolder, init=False)
    adopting: Adopting = attrs.field(init=False)
    keys: "HandedKeys | None" = attrs.field(default=None, init=False)
    relay: ChatRelay | None = attrs.field(default=None, init=False)
    answers: AnswerStore | None = attrs.field(default=None, init=False)
    _fuse: SharedBanFuse | None = attrs.field(default=None, init=False)
    _cooldowns: ToldCooldowns | None = attrs.field(default=None, init=False)
    _shown: tuple[FleetHealth, ...] = attrs.field(default=(), init=False)
    _serving: int | None = attrs.field(default=None, init=False)
    _finished: deque[RequestRecord] = attrs.field(factory=deque, init=False)
    _counting: Counting = attrs.field(factory=Counting, init=False)
    _told_whole: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.adopting = Adopting(self.reactor, list(self._descriptors[1:]))
        self._told_whole = -(-TOLD_WHOLE // self.begin.workers)

    # what the service of a worker is made of

    def sticky(self, settings: Settings) -> SharedStickyStore:
        """Where all workers remember clients."""
        memory = mapped(self._descriptors[0])
        return SharedStickyStore(settings.sticky_ttl, settings.sticky_max_entries, self.reactor.seconds, memory)

    def adopted(self) -> None:
        """Whoever wanted one of the descriptors has its own by now."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = ()

    def fuse(self) -> SharedBanFuse:
        """The bans that all workers share."""
        self._fuse = SharedBanFuse(tell=self.channel.send)
        return self._fuse

    def share_cooldowns(self, healths: Mapping[str, FleetHealth]) -> None:
        """Let what fails at one worker be left alone by all.

        :param healths: by a name that keeps apart what is measured apart.
        """
        self._shown = tuple(healths[name] for name in _SHOWN if name in healths)
        self._cooldowns = ToldCooldowns(self.channel.send, self.reactor.seconds, healths)

    def missing(self) -> str | None:
        """How many workers are missing, for /readyz; None where none is."""
        workers = self.begin.workers
        if self._serving is None or self._serving >= workers:
            return None
        return missing(self._serving, workers)

    def handed_keys(self) -> "HandedKeys":
        """The keys of all workers; none as long as the parent has none."""
        if self.keys is None:
            from chutes_autopilot.workers.sealing import HandedKeys  # with all of encryption

            self.keys = HandedKeys()
        return self.keys

    def claims(self, settings: Settings) -> "ForwardedClaims":
        """Where all workers' claims are made."""
        from chutes_autopilot.workers.sealing import ForwardedClaims

        return ForwardedClaims(self.channel, 0.0 if settings.redis_url is None else settings.e2ee_redis_timeout)

    def catalog_out_of_date(self) -> None:
        """The platform does not know what its catalog lists."""
        self.channel.send(CatalogOutOfDate())

    def finished(self, record: RequestRecord) -> None:
        """A request is over: the explorer will hear of it."""
        counting = self._counting
        if self.channel.full:
            return
        finished = self._finished
        if not finished:
            self.reactor.callLater(FINISHED_SECONDS, self._tell_finished)
        finished.append(record)
        if len(finished) >= self._told_whole + AT_ONCE:
            for _ in range(AT_ONCE):
                counting.take(finished.popleft())

    def decision_elsewhere(self, request_id: str, owner: bytes) -> Deferred[bytes | None]:
        """What another worker knows of a request."""
        return self.channel.ask(lambda number: FindDecision(number, request_id, owner), ELSEWHERE_SECONDS)

    def answer_elsewhere(self, key: tuple[bytes, str]) -> Deferred[dict[str, Any] | None]:
        """What another worker has kept of an answer: the fields of a SignedExchange."""
        caller, chat_id = key
        asked = self.channel.ask(lambda number: FindAnswer(number, caller, chat_id), ELSEWHERE_SECONDS)
        return asked.addCallback(lambda reply: None if reply is None else msgspec.msgpack.decode(reply))

    def open_line(self, protocol: IProtocol) -> None:
        """Connect a protocol to the parent's own site, at once.

        :raises OSError: there is no descriptor left, or no parent that takes any.
        """
        if not self.channel.open or self.channel.full:
            raise ConnectionError("the parent does not listen")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            for each in (ours, theirs):
                each.setblocking(False)
            factory = cast(Any, Factory).forProtocol(lambda: protocol)
            factory.noisy = False
            self.reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
            self.channel.send_descriptors((Handed(theirs.detach()),), Line())

    # what the parent tells

    def heard(self, message: Message) -> None:
        """Anything that concerns the service and not its life."""
        match message:
            case State():
                self.snapshots.current = self._snapshot(message)
            case Banned():
                if self._fuse is not None:
                    self._fuse.heard(message.client, message.wait, message.times, self.reactor.seconds())
            case Cooling() | Probing():
                if self._cooldowns is not None:
                    self._cooldowns.heard(message)
            case Strength(serving=serving):
                self._serving = serving
            case Report(id=number):
                self._reply(number, None if self.relay is None else self._told(self.relay))
            case FindDecision(id=number):
                self._reply(number, self._decision(message))
            case FindAnswer(id=number, caller=caller, chat_id=chat_id):
                kept = None if self.answers is None else self.answers.get((caller, chat_id))
                self._reply(number, None if kept is None else _encode(attrs.asdict(kept, recurse=False)))
            case Recent(id=number, count=count):
                self._reply(number, None if self.relay is None else json.dumps(self.relay.recent(count)).encode())

    def _told(self, relay: ChatRelay) -> bytes:
        now = self.reactor.seconds()
        health: dict[str, dict[str, Any]] = {}
        for each in self._shown:
            health = each.as_json(now) | health
        return _encode(Told(families_of(relay.metrics), health))

    def _decision(self, asked: FindDecision) -> bytes | None:
        found = None if self.relay is None else self.relay.decisions.find(asked.request_id, asked.owner)
        return None if found is None else json.dumps(found.decision().as_json()).encode()

    def _snapshot(self, state: State) -> Snapshot:
        last = self.snapshots.current
        catalog, offers = last.catalog, last.offers
        if state.catalog is not None:
            catalog = Catalog(state.catalog, state.catalog_skipped)
            offers = Offers(MappingProxyType(state.offers))
        return Snapshot(
            state.id,
            catalog,
            state.catalog_fetched_at,
            state.feed_fetched_at,
            state.ranking,
            state.feed_rows,
            state.feed_skipped,
            offers,
        )

    def _reply(self, number: int, value: bytes | None) -> None:
        self.channel.send(Reply(number, value))

    def _tell_finished(self) -> None:
        counting, self._counting = self._counting, Counting()
        while len(self._finished) > self._told_whole:
            counting.take(self._finished.popleft())
        finished, self._finished = [*self._finished], deque()
        over = {id(record) for record in finished[-EXPLAINED:]}
        kept = [] if self.relay is None else self.relay.decisions.newest(self.relay.decisions.limit)
        decisions = [each.decision() for each in kept if id(each.record) in over]
        records = counting.others + finished
        self.channel.send(Finished(records, decisions, counting.seen - len(counting.others), counting.plain))
