"""How the parent and a worker talk: length-prefixed messages over a Unix socket pair, and descriptors beside them."""

import os
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IFileDescriptorReceiver, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from chutes_autopilot.workers.messages import Message, Reply

ANSWER_SECONDS = 2.0
"""How long an answer is waited for: the other side may be busy, or stopped."""

_LENGTH = struct.Struct(">I")
_encode = msgspec.msgpack.Encoder().encode


class Handed(int):
    """A descriptor on its way: closed as soon as nobody has it any more.

    Twisted has it until it is sent or the connection is lost, and tells nobody which; until then nobody else may close
    it. A number that is no descriptor any more ends the talk, and one that was given out anew is another's connection.
    """

    def __del__(self) -> None:
        os.close(self)


@implementer(IFileDescriptorReceiver, IPushProducer)
class Channel(Protocol):
    """One side of the talk.

    :param expected: the messages that the other side may send, a union.
    :param received: told of every message but replies.
    :param lost: called once, when the other side is gone.
    :ivar full: the other side is slow to take what it is told, and more waits here than it should.
    :ivar spoke: the other side has said something; whoever wants to know of more sets it back.
    """

    def __init__(
        self,
        expected: Any,
        clock: IReactorTime,
        received: Callable[[Any], None],
        lost: Callable[[], None],
    ) -> None:
        self._decode = msgspec.msgpack.Decoder(expected).decode
        self._clock = clock
        self._received = received
        self._lost = lost
        self._descriptors: deque[int] = deque()
        self._buffer = bytearray()
        self._asked: dict[int, Deferred[bytes | None]] = {}
        self._last_id = 0
        self.open = True
        self.full = False
        self.spoke = False

    def connectionMade(self) -> None:
        cast(Any, self.transport).registerProducer(self, True)

    def send(self, message: Message) -> None:
        """Tell it; nothing is done where the other side is gone."""
        self.send_encoded(encoded(message))

    def send_encoded(self, framed: bytes) -> None:
        """The same for what `encoded` gave, so that what all are told is encoded once."""
        if self.open and self.transport is not None:
            self.transport.write(framed)

    def send_descriptors(self, descriptors: tuple[int, ...], message: Message) -> None:
        """Give descriptors to the other side, and tell what they are.

        :param descriptors: Handed, or open as long as this process runs.
        """
        transport: Any = self.transport
        if self.open:
            for descriptor in descriptors:
                transport.sendFileDescriptor(descriptor)
            # one byte at least goes with each
            self.send(message)

    def take_descriptors(self, count: int) -> tuple[int, ...]:
        """Those of the message that was received last: so many as it brings.

        Those of later messages may have come as well, for each goes with the first byte that can be sent.
        """
        return tuple(self._descriptors.popleft() for _ in range(min(count, len(self._descriptors))))

    def ask(self, question: Callable[[int], Message], within: float = ANSWER_SECONDS) -> Deferred[bytes | None]:
        """Ask and get the answer; None where the other side has none, ends, or takes too long.

        :param question: makes the message from its id.
        :param within: seconds.
        """
        self._last_id = number = self._last_id + 1
        answer: Deferred[bytes | None] = Deferred()
        if not self.open:
            answer.callback(None)
            return answer
        self._asked[number] = answer
        late = self._clock.callLater(within, self._answered, number, None)

        def over(value: bytes | None) -> bytes | None:
            if late.active():
                late.cancel()
            return value

        answer.addCallback(over)
        self.send(question(number))
        return answer

    def dataReceived(self, data: bytes) -> None:
        self.spoke = True
        buffer = self._buffer
        buffer += data
        start, end = 0, len(buffer)
        while end - start >= _LENGTH.size:
            stop = start + _LENGTH.size + _LENGTH.unpack_from(buffer, start)[0]
            if stop > end:
                break
            message = self._decode(memoryview(buffer)[start + _LENGTH.size : stop])
            start = stop
            if isinstance(message, Reply):
                self._answered(message.id, message.value)
            else:
                self._received(message)
        if start:
            del buffer[:start]

    def fileDescriptorReceived(self, descriptor: int) -> None:
        """One has come."""
        self._descriptors.append(descriptor)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.open = False
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        for number in tuple(self._asked):
            self._answered(number, None)
        self.transport = None  # it may have descriptors that were not sent
        self._lost()

    def close(self) -> None:
        """End the talk, whatever was not said yet."""
        if self.open and self.transport is not None:
            cast(Any, self.transport).abortConnection()

    # IPushProducer

    def pauseProducing(self) -> None:
        """Too much waits to be taken."""
        self.full = True

    def resumeProducing(self) -> None:
        """It was taken."""
        self.full = False

    def stopProducing(self) -> None:
        """The connection is gone."""

    def _answered(self, number: int, value: bytes | None) -> None:
        answer = self._asked.pop(number, None)
        if answer is not None:
            answer.callback(value)


def encoded(message: Message) -> bytes:
    """A message as it goes over the channel."""
    data = _encode(message)
    return _LENGTH.pack(len(data)) + data
