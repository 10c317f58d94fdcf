"""Seconds that nobody can set: what is to happen later happens then."""

from collections.abc import Iterator

import pytest
from twisted.internet.selectreactor import SelectReactor

from chutes_autopilot.steady_time import LOOK_SECONDS, STEP_SECONDS, keep_steady, time_begun, unix_time_of

HOUR = 3600.0


class Machine:
    """Its clocks, and a reactor of Twisted's that goes by the one that can be set, until it is kept steady."""

    def __init__(self) -> None:
        self.clock, self.running, self.asleep = 1_800_000_000.0, 5000.0, 700.0
        self.told: list[float] = []
        self.reactor = self.process()

    def process(self, begun: float | None = None) -> SelectReactor:
        reactor = SelectReactor()
        reactor.seconds = lambda: self.clock  # type: ignore[method-assign,assignment,misc]
        keep_steady(
            reactor,
            self.told.append,
            begun,
            unix_time=lambda: self.clock,
            monotonic=lambda: self.running,
            suspended=lambda: self.asleep,
        )
        return reactor

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.clock, self.running = self.clock + 1, self.running + 1
            self.reactor.runUntilCurrent()


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.reactor.waker.connectionLost(None)  # type: ignore[attr-defined]


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_clock_that_is_set_moves_nothing(machine: Machine, hours: int) -> None:
    """What was to happen in a minute happens in a minute, and so it is with what is asked for afterwards."""
    happened: list[str] = []
    machine.reactor.callLater(60, happened.append, "before")
    machine.run(1)
    machine.clock += hours * HOUR
    machine.reactor.callLater(59, happened.append, "after")
    machine.run(58)
    assert (happened, machine.reactor.timeout()) == ([], pytest.approx(1))
    machine.run(1)
    assert happened == ["before", "after"]


def test_seconds_are_unix_time_until_the_clock_is_set(machine: Machine) -> None:
    """What they are off by then is told once, and once that it is over; what NTP corrects is not told."""
    assert machine.reactor.seconds() == machine.clock
    machine.clock += STEP_SECONDS - 1
    machine.run(5 * LOOK_SECONDS)
    assert machine.told == []
    machine.clock -= 3 * HOUR + STEP_SECONDS - 1
    machine.run(5 * LOOK_SECONDS)
    assert machine.told == [-3 * HOUR]
    assert machine.reactor.seconds() == machine.clock + 3 * HOUR
    machine.clock += 3 * HOUR
    machine.run(5 * LOOK_SECONDS)
    assert machine.told == [-3 * HOUR, 0]


def test_while_a_machine_is_suspended_time_passes(machine: Machine) -> None:
    """Nobody has set its clock, and what was to happen meanwhile is due."""
    happened: list[str] = []
    machine.reactor.callLater(HOUR, happened.append, "due")
    machine.clock, machine.asleep = machine.clock + HOUR, machine.asleep + HOUR
    machine.run(2 * LOOK_SECONDS)
    assert (happened, machine.told) == (["due"], [])
    assert machine.reactor.seconds() == machine.clock


def test_processes_go_by_the_same_time(machine: Machine) -> None:
    """Also one that begins after the clock was set, and has slept with the others."""
    machine.clock, machine.asleep = machine.clock - 3 * HOUR, machine.asleep + HOUR
    machine.run(2 * LOOK_SECONDS)
    later = machine.process(time_begun(machine.reactor))
    assert later.seconds() == machine.reactor.seconds()
    later.waker.connectionLost(None)  # type: ignore[attr-defined]


def test_certificates_are_judged_by_the_clock_as_it_was_set(machine: Machine) -> None:
    machine.clock += HOUR
    assert unix_time_of(machine.reactor)() == machine.clock
