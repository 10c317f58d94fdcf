"""Sending one chat answer over time: when its head goes out, how fast its body follows, and how it ends."""

from collections.abc import Callable, Iterator
from enum import Enum, auto
from itertools import islice

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from chutes_autopilot.demo.site import SimulatorRequest

BATCH = 64
"""Pieces written at once when there is no pacing, unless the answer wants its own number."""


class Ending(Enum):
    """What comes after the last piece."""

    FINISH = auto()
    """A clean end, with the chunked terminator where there is one."""
    LOSE = auto()
    """What was written still arrives, then the connection closes in mid-answer."""
    HOLD = auto()
    """Nothing, until the client leaves."""


# Flow control. A client that reads slowly fills its socket, then the transport's buffer; past 64 KiB the transport
# calls pauseProducing on its producer, the HTTP channel, which passes it on to the request's producer: the delivery.
# That happens inside request.write, so the loop in _advance looks at _paused after every write, and of an answer of any
# length never more than the transport's buffer and one batch is in memory. resumeProducing comes when the buffer is
# empty. A pacing timer that runs out during a pause only leaves its mark (_timer is None); resuming goes on from there.
# It is a push producer because a pull producer is asked for a piece only once the last one has left, which would tie
# the pace to the socket.
#
#   waiting  --head_delay-->  sending  --last piece-->  ended (FINISH, LOSE) or held (HOLD)
#      `------------ the client leaves, at any time: ended, no timer left ------------'


@implementer(IPushProducer)
@define(eq=False)
class Delivery:
    """One answer on its way.

    :param pieces: the body; taken one by one, so it may be long.
    :param head_delay: seconds until the head, which goes out together with the first piece; None is never.
    :param gap: seconds between two pieces; 0 sends as fast as the client reads.
    :param when_ended: called once, with True if the client left before the end.
    :param batch: pieces written at once when the gap is 0.
    """

    _request: SimulatorRequest
    _clock: IReactorTime
    _pieces: Iterator[bytes]
    _head_delay: float | None
    _gap: float
    _ending: Ending
    _when_ended: Callable[[bool], object]
    _batch: int = BATCH
    _next: bytes | None = field(default=None, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _paused: bool = field(default=False, init=False)
    _ended: bool = field(default=False, init=False)

    def start(self) -> None:
        """Begin; the request must already have its status and headers."""
        self._request.notifyFinish().addErrback(self._client_left)
        if self._gap == 0:
            self._pieces = _batched(self._pieces, self._batch)
        if self._head_delay == 0:
            self._begin()
        elif self._head_delay is not None:
            self._timer = self._clock.callLater(self._head_delay, self._begin)

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        if self._timer is None:
            self._advance()

    def stopProducing(self) -> None:
        self._end(client_left=True)

    def _client_left(self, reason: Failure) -> None:
        self._end(client_left=True)

    def _begin(self) -> None:
        self._timer = None
        self._request.registerProducer(self, True)
        self._next = next(self._pieces, None)
        if self._next is None:
            self._request.write(b"")  # the head alone
        self._advance()

    def _advance(self) -> None:
        while self._next is not None and not self._paused and not self._ended:
            self._request.write(self._next)
            self._next = next(self._pieces, None)
            if self._gap and self._next is not None:
                self._timer = self._clock.callLater(self._gap, self._tick)
                return
        if self._next is None and not self._ended and self._ending is not Ending.HOLD:
            self._end(client_left=False)

    def _tick(self) -> None:
        self._timer = None
        self._advance()

    def _end(self, *, client_left: bool) -> None:
        if self._ended:
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not client_left:
            self._request.unregisterProducer()
            if self._ending is Ending.FINISH:
                self._request.finish()
            else:
                self._request.close_after(b"")
        self._when_ended(client_left)


def _batched(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    while batch := b"".join(islice(pieces, size)):
        yield batch
