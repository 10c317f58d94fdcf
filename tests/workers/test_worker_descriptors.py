"""Descriptors that go over the channel between a parent and a worker, over a real socket."""

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_twisted import blockon
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater

from chutes_autopilot.workers.channel import Channel, Handed
from chutes_autopilot.workers.messages import Lent, Line, ToParent, ToWorker


class Side(Channel):
    """One side of the talk, and what it was told."""

    def __init__(self, expected: Any) -> None:
        self.heard: list[Any] = []
        self._waiting: list[Deferred[None]] = []
        self.reactor: Any = reactor
        super().__init__(expected, self.reactor, self._hear, self._told)

    def _hear(self, message: Any) -> None:
        self.heard.append(message)
        self._told()

    def _told(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for what it is told, or for its end."""
        while not holds():
            self._waiting.append(told := Deferred())
            await told

    async def end(self) -> None:
        self.close()
        await self.until(lambda: not self.open)
        await deferLater(self.reactor, 0)  # outside of Twisted's own functions, which have the connection


@pytest.fixture
def talk() -> Iterator[tuple[Side, Side]]:
    """A worker's side and the parent's."""
    sides = Side(ToWorker), Side(ToParent)
    for side, end in zip(sides, socket.socketpair(), strict=True):
        with end:
            end.setblocking(False)
            factory: Any = Factory.forProtocol(lambda side=side: side)
            side.reactor.adoptStreamConnection(end.fileno(), socket.AF_UNIX, factory)
    yield sides
    for side in sides:
        blockon(Deferred.fromCoroutine(side.end()))


def is_held(ours: socket.socket) -> bool:
    """Whether somebody still has the other end of a pair."""
    try:
        return ours.recv(1) != b""
    except BlockingIOError:
        return True


async def test_a_descriptor_is_open_until_it_is_sent(talk: tuple[Side, Side]) -> None:
    """And no longer; the other side has its own."""
    worker, parent = talk
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        worker.send_descriptors((Handed(theirs.detach()),), Line())
        assert is_held(ours)
        await parent.until(lambda: Line() in parent.heard)
        assert is_held(ours)
        os.close(*parent.take_descriptors(1))
        assert not is_held(ours)


async def test_each_message_has_its_own_descriptors(talk: tuple[Side, Side]) -> None:
    """Those of two messages that came together are told apart by how many each brings, in their order."""
    worker, parent = talk
    pairs = [socket.socketpair() for _ in range(3)]
    sent = [Handed(theirs.detach()) for _, theirs in pairs]
    parent.send_descriptors(tuple(sent[:2]), Lent(1))
    parent.send_descriptors(tuple(sent[2:]), Lent(2))
    await worker.until(lambda: len(worker.heard) == 2)
    for (ours, _), descriptor in zip(pairs, worker.take_descriptors(2) + worker.take_descriptors(2), strict=True):
        with ours, socket.socket(fileno=descriptor) as theirs:
            theirs.send(b"x")
            assert ours.recv(1) == b"x"


async def test_what_was_not_sent_is_closed_with_the_connection(talk: tuple[Side, Side]) -> None:
    """What waits to be sent as well as what comes too late for that."""
    worker, _ = talk
    for waits in (True, False):
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            worker.send_descriptors((Handed(theirs.detach()),), Line())
            assert is_held(ours) is waits
            await worker.end()
            assert not is_held(ours)
