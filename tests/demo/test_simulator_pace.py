"""When the simulator sends what: under a clock that the test moves, over a transport in memory."""

import json
from collections.abc import Iterable
from typing import Any

from attrs import define, field
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure

from chutes_autopilot.demo.simulator import SimulatedChutes
from chutes_autopilot.demo.site import IDLE_TIMEOUT, SimulatorChannel

MODEL = "demo-labs/Aurora-32B-TEE"


class ShallowTransport(StringTransport):
    """A transport that fills up, as a socket does whose peer does not read."""

    capacity = 65536

    def write(self, data: bytes) -> None:
        super().write(data)
        if len(self.value()) > self.capacity and self.producer is not None:
            self.producer.pauseProducing()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))


@define(eq=False)
class Line:
    """One connection to a simulator."""

    simulator: SimulatedChutes
    transport: ShallowTransport = field(factory=ShallowTransport)
    channel: SimulatorChannel = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.channel = self.simulator.site().buildProtocol(None)
        self.channel.makeConnection(self.transport)

    def ask(self, **fields: Any) -> None:
        body = json.dumps({"model": MODEL, **fields}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: demo\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.channel.dataReceived(head + body)

    def taken(self) -> bytes:
        """What was sent since the last look."""
        sent = self.transport.value()
        self.transport.clear()
        return sent

    def leave(self) -> None:
        self.channel.stopProducing()
        self.channel.connectionLost(Failure(ConnectionDone()))


def paced() -> tuple[Clock, Line]:
    clock = Clock()
    return clock, Line(SimulatedChutes(clock, first_token=0.5, token_gap=0.1))


def answer_calls(clock: Clock) -> int:
    """Delayed calls without those of the idle timeout."""
    return sum("Delivery" in repr(call) for call in clock.getDelayedCalls())


def test_the_head_of_a_stream_comes_with_the_first_token() -> None:
    """Nothing is sent before the first token's time, then head, role delta and first token at once, then one a gap."""
    clock, line = paced()
    line.ask(stream=True, n_tokens=3)
    clock.advance(0.49)
    assert line.taken() == b""
    clock.advance(0.02)
    first = line.taken()
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert first.count(b"data: ") == 2
    clock.advance(0.1)
    assert line.taken().count(b"data: ") == 1
    assert line.simulator.open_streams == 1
    clock.advance(0.1)
    clock.advance(0.1)
    assert line.taken().endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert line.simulator.open_streams == 0
    assert answer_calls(clock) == 0


def test_the_head_of_a_non_streaming_answer_comes_with_the_whole() -> None:
    """Nothing is sent until the last token's time, then everything at once."""
    clock, line = paced()
    line.ask(n_tokens=11)
    clock.advance(1.49)
    assert line.taken() == b""
    clock.advance(0.02)
    head, _, body = line.taken().partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    assert json.loads(body)["usage"]["completion_tokens"] == 11


def test_a_slow_fault_sets_its_own_gap() -> None:
    """With the slow fault one piece comes in each of its gaps."""
    clock, line = paced()
    line.simulator.faults.add("slow", MODEL, 1, gap=7.0)
    line.ask(stream=True, n_tokens=3)
    clock.advance(0.5)
    line.taken()
    clock.advance(6.9)
    assert line.taken() == b""
    clock.advance(0.1)
    assert line.taken().count(b"data: ") == 1


def test_a_slow_start_has_its_own_time() -> None:
    """Head and first token come when the fault says so, the others at the usual pace."""
    clock, line = paced()
    line.simulator.faults.add("slow_start", MODEL, 1, gap=7.0)
    line.ask(stream=True, n_tokens=3)
    clock.advance(6.9)
    assert line.taken() == b""
    clock.advance(0.2)
    assert line.taken().count(b"data: ") == 2
    clock.advance(0.1)
    assert line.taken().count(b"data: ") == 1


def test_pings_follow_the_last_event_until_the_client_leaves() -> None:
    """After a few events there is a comment in each gap, and no timer is left when nobody listens."""
    clock, line = paced()
    line.simulator.faults.add("pings", MODEL, 1, gap=1.0)
    line.ask(stream=True, n_tokens=30)
    clock.advance(0.5)
    for _ in range(5):
        clock.advance(1.0)
    assert line.taken().count(b": ping\n\n") == 3
    assert line.simulator.answering == {MODEL: 1}
    line.leave()
    assert answer_calls(clock) == line.simulator.open_streams == 0


def test_a_client_that_leaves_stops_the_pace() -> None:
    """Before the head or in mid-stream: no delayed call is left, the stream counts as ended, the leaving is told."""
    for moment in (0.2, 0.75):
        clock, line = paced()
        told: list[int] = []
        line.simulator.when_disconnected(1).addCallback(told.append)
        line.ask(stream=True, n_tokens=1000)
        clock.advance(moment)
        assert answer_calls(clock) == 1
        assert line.simulator.open_streams == 1
        line.leave()
        assert answer_calls(clock) == 0
        assert line.simulator.open_streams == 0
        assert told == [1]


def test_an_idle_connection_is_closed_and_its_address_not_logged() -> None:
    """After the idle timeout the connection ends, and no log line tells whose it was."""
    clock, line = paced()
    logged: list[Any] = []
    globalLogPublisher.addObserver(logged.append)
    try:
        clock.advance(IDLE_TIMEOUT)
    finally:
        globalLogPublisher.removeObserver(logged.append)
    assert line.transport.disconnecting
    assert logged == []


def test_without_pacing_no_more_is_sent_than_is_read() -> None:
    """A long answer stops at a full transport, goes on when it has emptied, and arrives whole."""
    line = Line(SimulatedChutes(Clock()))
    line.ask(stream=True, n_tokens=5000)
    events = rounds = 0
    while line.simulator.open_streams:
        part = line.taken()
        assert len(part) < 2 * ShallowTransport.capacity
        events += part.count(b"data: ")
        rounds += 1
        line.channel.resumeProducing()
    events += line.taken().count(b"data: ")
    assert rounds > 10
    assert events == 5000 + 4


def test_a_paused_stream_goes_on_after_its_timer_has_run_out() -> None:
    """Nothing comes while paused however long that is; after resuming the pace is as before."""
    clock, line = paced()
    line.ask(stream=True, n_tokens=5)
    clock.advance(0.5)
    line.channel.pauseProducing()
    line.taken()
    clock.advance(60)
    assert line.taken() == b""
    line.channel.resumeProducing()
    assert line.taken().count(b"data: ") == 1
    clock.advance(0.1)
    assert line.taken().count(b"data: ") == 1
