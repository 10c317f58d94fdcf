"""Polling without log contexts: what a descriptor's events mean stays as it is."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import CONNECTION_DONE
from twisted.internet.selectreactor import SelectReactor
from twisted.python.failure import Failure

from chutes_autopilot.polling import poll_plainly


class Side:
    """A descriptor that notes what it is told."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.fileno = connection.fileno
        self.told: list[Any] = []
        self.then = lambda: None

    def doRead(self) -> object:
        data = self.connection.recv(100)
        self.told.append(data)
        self.then()
        return None if data else CONNECTION_DONE

    def doWrite(self) -> None:
        self.told.append("writable")

    def connectionLost(self, reason: Failure) -> None:
        self.told.append(reason.type)

    def logPrefix(self) -> str:
        raise AssertionError("asked for its log context")


class World:
    """A reactor of its own, with two descriptors that have peers."""

    def __init__(self) -> None:
        self.reactor: Any = EPollReactor()
        self.pairs = [socket.socketpair() for _ in range(2)]
        self.sides = [Side(ours) for ours, _ in self.pairs]
        for side in self.sides:
            self.reactor.addReader(side)

    def close(self) -> None:
        self.reactor.removeAll()
        for pair in self.pairs:
            for end in pair:
                end.close()
        self.reactor._poller.close()
        self.reactor.waker.connectionLost(None)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    assert poll_plainly(made.reactor)
    yield made
    made.close()


def test_each_is_told_of_its_events_without_a_log_context(world: World) -> None:
    """Readable, writable and gone are told as the reactor itself would."""
    (_, peer), side = world.pairs[0], world.sides[0]
    world.reactor.addWriter(side)
    peer.send(b"x")
    world.reactor.doIteration(1)
    world.reactor.removeWriter(side)
    peer.close()
    world.reactor.doIteration(1)
    assert side.told == [b"x", "writable", b"", type(CONNECTION_DONE)]


def test_an_exception_costs_its_descriptor_alone(world: World, logged_errors: Any) -> None:
    """It is logged, and its transport is told that it is lost."""

    def fail() -> None:
        raise ZeroDivisionError

    world.sides[0].then = fail
    for _, peer in world.pairs:
        peer.send(b"x")
    world.reactor.doIteration(1)
    assert [side.told for side in world.sides] == [[b"x", ZeroDivisionError], [b"x"]]
    assert len(logged_errors.flush(ZeroDivisionError)) == 1


def test_one_that_another_removed_in_the_same_turn_is_not_read(world: World) -> None:
    """The kernel named both before the first one was served."""
    first, second = world.sides
    first.then = lambda: world.reactor.removeReader(second)
    second.then = lambda: world.reactor.removeReader(first)
    for _, peer in world.pairs:
        peer.send(b"x")
    world.reactor.doIteration(1)
    assert sorted([first.told, second.told]) == [[], [b"x"]]


def test_other_reactors_are_left_as_they_are() -> None:
    """Only the one whose inside is known is changed."""
    reactor: Any = SelectReactor()
    before = reactor.doIteration
    assert not poll_plainly(reactor)
    assert reactor.doIteration == before
    reactor.removeAll()
