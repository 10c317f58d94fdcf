"""The one byte mover: after the commit boundary only this touches the upstream attempt and the client."""

from collections.abc import Callable, Mapping

import attrs
from twisted.internet.interfaces import IPushProducer, IReactorTime
from zope.interface import implementer

from chutes_autopilot.errors import ApiError
from chutes_autopilot.interfaces import IAttemptObserver, IDownstream, IUpstreamAttempt
from chutes_autopilot.observe.record import Outcome
from chutes_autopilot.policy.failover import ConnectFailed, DeadlinePassed, Lost, Refused
from chutes_autopilot.policy.rate_limits import READ_BYTES
from chutes_autopilot.relay.limited import RATE_LIMITED
from chutes_autopilot.relay.watch import Patience, Watch
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.wire.http1 import ResponseHead
from chutes_autopilot.wire.sse import StreamGuard, is_plain_event_stream
from chutes_autopilot.wire.typed_events import TypedStreamGuard

TRUNCATED = "upstream_stream_truncated"
IDLE = "upstream_stream_idle"
"""Why a stream was cut, in the record; the client is told TRUNCATED for both."""

_MESSAGES = {
    TRUNCATED: "The model's answer ended before it was complete: what came is only a part of it; try again.",
    IDLE: "The model stopped sending before its answer was complete: what came is only a part of it; try again.",
}


@attrs.frozen
class Pace:
    """How a stream came: its events, the tokens its usage counts (None: it does not), when the last event came."""

    events: int
    tokens: int | None
    heard_at: float


@implementer(IAttemptObserver, IPushProducer)
class Pipe:
    """Relays body bytes as they arrive, with back-pressure both ways.

    Flow control. The client's transport is the consumer and this pipe its push producer. When the client reads
    more slowly than the upstream writes, the transport's buffer passes its limit and it calls `pauseProducing`:
    the upstream connection stops reading, TCP's window closes and the upstream slows down. When the buffer has
    drained, `resumeProducing` opens it again. Nothing is queued in between, so the memory of a stream is one
    transport buffer plus one read.

    Ends. A stream of events that ends too early gets an error event behind its bytes, then the cut; one with a
    declared length only the cut, made before its last byte. The end of an answer that the client has yet to take
    waits until it has, so that a client that takes nothing is found out then too.

    :param head: the response's, to tell what kind of body it is.
    :param ended: called once, with how the answer ended and, for a stream that was cut, why.
    :param new_guard: makes what judges whether a stream came to its end.
    """

    moved_on = False
    """Whether another attempt has taken the place of the one it was made for."""
    _was_paused = False

    def __init__(
        self,
        attempt: IUpstreamAttempt,
        downstream: IDownstream,
        head: ResponseHead,
        clock: IReactorTime,
        deadlines: Deadlines,
        patience: Patience,
        ended: Callable[[Outcome, str | None], None],
        new_guard: Callable[[], StreamGuard | TypedStreamGuard] = StreamGuard,
    ) -> None:
        self._attempt = attempt
        self._downstream = downstream
        self._ended = ended
        self._guard = new_guard() if is_plain_event_stream(head.status, head.index) else None
        self._length = None if self._guard is None else _declared_length(head.index)
        self._now = clock.seconds
        self._watch = Watch(self._now, deadlines, patience, self)
        self._watch.start()
        self._end_waits = False
        self._events = 0
        self._ended_well = False
        self._beginning: list[bytes] | None = [] if head.status == RATE_LIMITED else None
        self.bytes_relayed = 0
        """Body bytes given to the client's transport so far."""

    def head(self, head: ResponseHead) -> None:
        raise AssertionError("a committed attempt has had its head")

    def answer(self, head: ResponseHead, data: bytes) -> None:
        raise AssertionError("a committed attempt has had its head")

    def body(self, data: bytes, framed: bytes = b"") -> None:
        guard = self._guard
        if guard is None:
            self._watch.heard_at = self._now()
        elif guard.feed(data):
            self._watch.heard_at = self._now()
            self._events += 1
        if self._beginning is not None and self.bytes_relayed < READ_BYTES:
            self._beginning.append(data)
        self.bytes_relayed += len(data)
        if self.bytes_relayed == self._length and self._ends_too_early():
            self._attempt.abort()
            self.bytes_relayed -= 1
            self._downstream.write(data[:-1])
            self._cut(TRUNCATED)
        else:
            self._downstream.write(data, framed)

    def end(self) -> None:
        if self._ends_too_early():
            self._cut(TRUNCATED)
        elif self._watch.paused:
            self._end_waits = True
            self._watch.start()
        else:
            self._finish()

    def failed(self, failure: ConnectFailed | Lost | DeadlinePassed | Refused) -> None:
        """The upstream died mid-body: the client must see a cut, never a clean end."""
        self._cut(failure.reason if isinstance(failure, Refused) else TRUNCATED)

    def stop(self) -> None:
        """The exchange is over, for whatever reason: watch the time no more."""
        self._watch.stop()

    def beginning(self) -> bytes:
        """How a 429 began, as far as it came: enough to tell of which kind it is."""
        return b"".join(self._beginning or ())

    def pace(self) -> Pace | None:
        """The pace of a stream that came to its end; None of anything else.

        Of one that its client was ever too slow for there is none: it came as the client took it.
        """
        if self._guard is None or not self._ended_well or self._was_paused:
            return None
        return Pace(self._events, self._guard.completion_tokens(), self._watch.heard_at)

    def pauseProducing(self) -> None:
        self._was_paused = True
        self._attempt.pause()
        self._watch.pause()

    def resumeProducing(self) -> None:
        self._watch.resume()
        if self._end_waits:
            self._finish()
        else:
            self._attempt.resume()

    def stopProducing(self) -> None:
        """The client's transport takes no more; its disconnection is reported elsewhere."""
        self._attempt.abort()

    def _ends_too_early(self) -> bool:
        return self._guard is not None and self._guard.verdict() in ("unfinished", "error_tail")

    def _finish(self) -> None:
        self._downstream.finish()
        self._ended_well = True
        self._ended("complete", None)

    def _cut(self, fault: str) -> None:
        guard = self._guard
        if guard is not None and self._length is None and guard.verdict() not in ("done", "error"):
            event = guard.error_event(ApiError(TRUNCATED, _MESSAGES.get(fault, _MESSAGES[TRUNCATED])))
            self.bytes_relayed += len(event)
            self._downstream.write(event)
        self._downstream.abort()
        self._ended("cut", None if guard is None else fault)

    # what the watch asks and tells

    def unsent(self) -> int:
        return self._downstream.unsent()

    def upstream_idle(self) -> None:
        self._attempt.abort()
        self._cut(IDLE)

    def client_stalled(self) -> None:
        self._attempt.abort()
        self._ended("client_gone", None)
        self._downstream.reset()


def _declared_length(index: Mapping[bytes, bytes]) -> int | None:
    number = index.get(b"content-length", b"").strip(b" \t,")
    return int(number) if number.isdigit() else None
