"""Bounds on reading: time for silence, size for bodies, and what a cut leaves behind."""

from typing import Any

import pytest
from attrs import define, field
from scripted_gateway import said
from sealed_exchange import pair
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from chutes_autopilot.e2ee.stream import StreamSealer
from chutes_autopilot.e2ee_client.errors import ClientError, GatewayFailed
from chutes_autopilot.e2ee_client.gateway import SealedAnswer
from chutes_autopilot.e2ee_client.reading import SILENCE_SECONDS, AnswerStream
from chutes_autopilot.e2ee_client.report import CheckedReport
from chutes_autopilot.e2ee_client.transport import read_whole, within

DONE = b"data: [DONE]\n\n"
LOST = Failure(ConnectionLost())


@define(eq=False)
class Response:
    """A body under a test's control."""

    transport: StringTransport = field(factory=StringTransport)
    body: Any = None

    def deliverBody(self, protocol: Protocol) -> None:
        self.body = protocol
        protocol.makeConnection(self.transport)


class Reading:
    """An AnswerStream on a clock, and what it called back."""

    def __init__(self, stop_at: bytes | None = None) -> None:
        of = pair()
        self.sealer = StreamSealer(of.context(), max_event_bytes=1 << 20)
        self.clock = Clock()
        self.told: list[Any] = []
        self.response = Response()
        key = CheckedReport("ed25519", of.key.public, of.key.address, None, None, "any", None, None)
        answer = SealedAnswer(self.response, of.client.opener(), (), key, "m", "aa" * 32)
        self.stop_at = stop_at
        self.stream = AnswerStream(answer, frozenset(), self.clock, self._opened, self.told.append, self.told.append)
        self.response.deliverBody(self.stream)

    def _opened(self, events: bytes) -> None:
        self.told.append(events)
        if self.stop_at is not None and self.stop_at in events:
            self.stream.abort()

    def receive(self, *events: bytes) -> None:
        self.stream.dataReceived(b"".join(self.sealer.feed(event) for event in events))

    @property
    def code(self) -> str:
        assert isinstance(self.told[-1], ClientError)
        return self.told[-1].code


def test_silence_ends_a_stream() -> None:
    """A gateway that sends nothing for long is given up; anything it sends, if only a comment, counts."""
    reading = Reading()
    reading.clock.advance(SILENCE_SECONDS - 1)
    reading.stream.dataReceived(b": keep-alive\n\n")
    reading.clock.advance(SILENCE_SECONDS - 1)
    assert reading.told == []
    reading.clock.advance(1)
    assert reading.code == "gateway_timeout"
    assert reading.response.transport.disconnected
    reading.stream.connectionLost(LOST)
    assert len(reading.told) == 1


def test_silence_does_not_count_while_nobody_reads() -> None:
    """A reader that pauses may pause for long; the time begins again when it reads on."""
    reading = Reading()
    reading.stream.pause()
    assert reading.response.transport.producerState == "paused"
    reading.clock.advance(2 * SILENCE_SECONDS)
    reading.stream.resume()
    assert reading.response.transport.producerState == "producing"
    reading.clock.advance(SILENCE_SECONDS - 1)
    assert reading.told == []
    reading.clock.advance(1)
    assert reading.code == "gateway_timeout"


@pytest.mark.parametrize("reason", [ResponseDone(), PotentialDataLoss()])
def test_a_stream_with_its_end_is_whole(reason: Exception) -> None:
    """Also where only the close of the connection ended the body: the [DONE] was there. No timer is left."""
    reading = Reading()
    reading.receive(said("x"), DONE)
    reading.stream.connectionLost(Failure(reason))
    assert reading.told[-1].requested_model == "m"
    assert reading.clock.getDelayedCalls() == []


@pytest.mark.parametrize("events", [(), (said("x"),), (said("x"), DONE)])
def test_a_connection_that_breaks_is_a_failure(events: tuple[bytes, ...]) -> None:
    """Even behind the [DONE]: the body had no end, so its hash is of unknown bytes."""
    reading = Reading()
    reading.receive(*events)
    reading.stream.connectionLost(LOST)
    assert reading.code == "gateway_unreachable"
    assert reading.clock.getDelayedCalls() == []


def test_a_reader_may_leave_at_any_event() -> None:
    """Then nothing more is called back, whatever still comes."""
    reading = Reading(stop_at=b"enough")
    reading.receive(said("enough"))
    reading.receive(said("more"), DONE)
    reading.stream.connectionLost(Failure(ResponseDone()))
    assert len(reading.told) == 1
    assert reading.response.transport.disconnected
    assert reading.clock.getDelayedCalls() == []


async def test_a_whole_body_is_bounded() -> None:
    """One byte too many and the connection is cut."""
    for size, code in ((10, None), (11, "gateway_answer_too_large")):
        response = Response()
        reading = read_whole(response, 10)  # type: ignore[arg-type]
        for _ in range(size):
            response.body.dataReceived(b"x")
        response.body.connectionLost(Failure(ResponseDone()))
        if code is None:
            assert await reading == b"x" * size
            continue
        with pytest.raises(GatewayFailed) as failed:
            await reading
        assert failed.value.code == code
        assert response.transport.disconnected


async def test_a_whole_body_has_a_time_limit() -> None:
    """After it the connection is cut."""
    clock, response = Clock(), Response()
    reading = within(clock, 60.0, read_whole(response, 10))  # type: ignore[arg-type]
    clock.advance(60)
    with pytest.raises(GatewayFailed, match="within 60 seconds"):
        await reading
    assert response.transport.disconnected
