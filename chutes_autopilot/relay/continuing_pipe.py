"""A pipe that has another model go on where a stream broke off."""

from collections.abc import Callable

from twisted.internet.interfaces import IPushProducer, IReactorTime
from zope.interface import implementer

from chutes_autopilot.interfaces import IAttemptObserver, IDownstream, IUpstreamAttempt
from chutes_autopilot.observe.record import Outcome
from chutes_autopilot.policy.continuation import (
    UNLIKE,
    Command,
    Continuation,
    Declined,
    Failed,
    GiveUp,
    GoesOn,
    Prefill,
    Relay,
    Restart,
    begin,
    step,
    useless,
)
from chutes_autopilot.policy.failover import ConnectFailed, DeadlinePassed, Lost, Refused, failure_reason
from chutes_autopilot.relay.continuations import Continuations
from chutes_autopilot.relay.limited import rate_limit_of
from chutes_autopilot.relay.pipe import IDLE, TRUNCATED, Pace, Pipe
from chutes_autopilot.relay.watch import Patience
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.wire.http1 import ResponseHead
from chutes_autopilot.wire.splice import Splice
from chutes_autopilot.wire.sse import StreamGuard, is_plain_event_stream
from chutes_autopilot.wire.stream_text import MAX_EVENT_BYTES, StreamText, whole_events

FAULTY = "upstream_stream_error"
"""Why a stream was continued, or cut, that did not end by itself."""


@implementer(IAttemptObserver, IPushProducer)
class ContinuingPipe(Pipe):
    """Relays a stream as a Pipe does, remembers its text, and once it breaks off has another model go on with it.

    Only whole events are relayed, the beginning of one is held back until its end comes: so what the client has been
    sent is what is remembered, and a stream that breaks off never leaves half an event behind. What has more than
    text in it, or too much of it, is relayed like any other stream from then on.

    A stream breaks off where a Pipe would cut it, but not behind its ``finish_reason``; and at an event that is no JSON
    or says that the engine failed, which is then not relayed. Then `policy.continuation` says what is tried. Whatever
    that is, from the break it has the patience that silence has (`Patience.stream_idle`) until the text goes on; then
    the rest may be no more silent than any stream. The client's back-pressure holds for whichever attempt is under way.

    :param continuations: makes and records the attempts.
    """

    def __init__(
        self,
        attempt: IUpstreamAttempt,
        downstream: IDownstream,
        head: ResponseHead,
        clock: IReactorTime,
        deadlines: Deadlines,
        patience: Patience,
        ended: Callable[[Outcome, str | None], None],
        continuations: Continuations,
    ) -> None:
        super().__init__(attempt, downstream, head, clock, deadlines, patience, ended)
        self._continuations = continuations
        self._said: StreamText | None = StreamText()  # None: it is not remembered any more
        self._held = b""
        self._fault = TRUNCATED  # how the stream broke off
        self._state: Continuation | None = None  # None: it has not
        self._splice: Splice | None = None
        self._given_up = False

    def head(self, head: ResponseHead, data: bytes = b"") -> None:
        """A further attempt was answered.

        :param data: the answer, where all of it is here.
        """
        self._continuations.answered(head.status)
        if self._watch.paused:
            self._attempt.pause()
        if is_plain_event_stream(head.status, head.index):
            return
        limit = rate_limit_of(head, data)
        if limit is not None:
            self._continuations.limited(limit)
        self._failed(*useless(head.status, banned=limit is not None and limit.kind == "edge"))

    def answer(self, head: ResponseHead, data: bytes) -> None:
        attempt = self._attempt
        self.head(head, data)
        if self._attempt is attempt and not self._given_up:
            self.body(data)
        if self._attempt is attempt and not self._given_up:
            self.end()

    def body(self, data: bytes, framed: bytes = b"") -> None:
        said, guard = self._said, self._guard
        if said is None or guard is None:
            super().body(data, framed)
            return
        alive = guard.feed(data)
        if self._splice is not None:
            if alive:
                self._continuations.heard()
            self._spliced(self._splice.feed(data), alive)
            return
        if alive:
            self._watch.heard_at = self._now()
            self._events += 1
        if self._held or not data.endswith(b"\n\n"):
            data, self._held = whole_events(self._held + data)
            framed = b""
        read = said.read(data) if data else 0
        if said.plain and said.faulty:
            if read:
                self._send(data[:read])
            if self._continued(FAULTY):
                return
            data, framed = data[read:], b""
        if said.faulty or not said.plain or len(self._held) > MAX_EVENT_BYTES:
            self._said = None
            self._continuations.drop()
            data, self._held, framed = data + self._held, b"", b""
        if data:
            self._send(data, framed)

    def end(self) -> None:
        if self._splice is not None:
            self._spliced(self._splice.end(), alive=False)
            if not self._going:
                return
        if not self._ends_too_early():
            self._send_held()
            super().end()
        elif self._splice is None:
            self._broke(TRUNCATED)
        else:
            self._failed(TRUNCATED, Failed())

    def failed(self, failure: ConnectFailed | Lost | DeadlinePassed | Refused) -> None:
        if self._splice is None and isinstance(failure, Refused):
            self._send_held()
            super().failed(failure)
        elif self._splice is None:
            self._broke(TRUNCATED)
        elif self._going:
            self._failed(TRUNCATED, Failed())
        elif isinstance(failure, Refused):
            self._failed(failure.reason, Failed(retry=failure.retry))
        else:
            self._failed(failure_reason(failure), Failed())

    def pace(self) -> Pace | None:
        """The pace of a stream that came to its end; that of two models is none."""
        return None if self.moved_on else super().pace()

    def stop(self) -> None:
        super().stop()
        if self.moved_on:
            self._attempt.abort()
            self._attempt.observer = None
            self._continuations.stop()

    @property
    def _going(self) -> bool:
        """Whether another model's text goes to the client."""
        return self._state is not None and self._state.phase == "going"

    def _send(self, data: bytes, framed: bytes = b"") -> None:
        self.bytes_relayed += len(data)
        self._downstream.write(data, framed)

    def _send_held(self) -> None:
        held, self._held = self._held, b""
        if held:
            self._send(held)

    def upstream_idle(self) -> None:
        self._attempt.abort()
        if self._splice is None:
            self._broke(IDLE)
        else:
            self._continuations.failed(IDLE)
            self._give_up(IDLE)

    def _broke(self, fault: str) -> None:
        """The stream ended before the answer did."""
        guard = self._guard
        over = guard is None or guard.verdict() in ("done", "error")
        if over or not self._continued(fault):
            self._send_held()
            self._cut(fault)

    def _continued(self, fault: str) -> bool:
        """Whether another model is asked to go on."""
        said = self._said
        if said is None or said.finished or self._continuations.stopping():
            return False
        candidates, attempts = self._continuations.candidates(), self._continuations.attempts_left
        state, command = begin(candidates, attempts, has_text=bool(said.text))
        if isinstance(command, GiveUp):
            self._continuations.counted("impossible")
            return False
        self._state, self._fault, self._held = state, fault, b""
        self.moved_on = True
        self._continuations.broke(fault)
        self._watch.again()
        self._carry_out(command)
        return True

    def _failed(self, reason: str, event: Declined | Failed) -> None:
        """The attempt under way did not bring the answer to its end."""
        self._continuations.failed(reason)
        self._happened(event)

    def _happened(self, event: Declined | Failed | GoesOn) -> None:
        assert self._state is not None  # noqa: S101 - there is an attempt
        self._state, command = step(self._state, event)
        self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        match command:
            case Prefill() | Restart():
                self._attempt.abort()
                said = self._said
                assert said is not None  # noqa: S101 - what is continued is remembered
                self._guard = StreamGuard()
                self._splice = Splice(said, restart=isinstance(command, Restart))
                self._attempt = self._continuations.open(command, said.text, self)
                self._attempt.start()
            case Relay(model):
                self._continuations.goes_on()
                self._send(b": this stream broke off and is continued by %b\n\n" % model.encode())
            case GiveUp():
                self._give_up(TRUNCATED)

    def _give_up(self, fault: str) -> None:
        self._given_up = True
        self._attempt.abort()
        if not self._going:
            self._continuations.counted("failed")
            self._guard = StreamGuard()  # what came last the client has not seen
            fault = self._fault
        self._cut(fault)

    def _spliced(self, events: bytes, alive: bool) -> None:
        """Send what the attempt under way gave, and see how it stands."""
        splice = self._splice
        assert splice is not None  # noqa: S101 - there is an attempt
        if events:
            if not self._going:
                self._happened(GoesOn())
            self._send(events)
        if self._going and alive:
            self._watch.heard_at = self._now()
        if splice.progress == "unlike":
            self._failed(UNLIKE, Declined())
        elif splice.progress == "failed":
            self._failed(TRUNCATED, Failed())
