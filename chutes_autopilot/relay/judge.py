"""The beginning of an answer, held back until it is known for one: another model can take its place until then."""

from collections.abc import Mapping
from typing import Literal, Protocol

from zope.interface import implementer

from chutes_autopilot.interfaces import IAttemptObserver
from chutes_autopilot.policy.failover import ConnectFailed, DeadlinePassed, Ended, FirstByte, Lost, Refused
from chutes_autopilot.policy.rate_limits import RateLimit
from chutes_autopilot.policy.resilience import ErrorAnswer, Resilience
from chutes_autopilot.policy.upstream_errors import READ_BYTES, read_error_event, read_upstream_error
from chutes_autopilot.relay.limited import RATE_LIMITED, rate_limit_of
from chutes_autopilot.upstream.deadlines import Deadline, Deadlines
from chutes_autopilot.wire.first_event import ANSWERS, MAX_BYTES, Beginning, FirstEvent, judge_answer
from chutes_autopilot.wire.http1 import ResponseHead
from chutes_autopilot.wire.reworded import RewordedHead
from chutes_autopilot.wire.sse import is_plain_event_stream

ERROR_SECONDS = 5.0
"""How long the body of an error may take to be read; then it is judged by what came."""

_MAY_BE_TOO_LONG = (400, 413, 422)
_MAY_LACK_INSTANCES = 500

Judged = FirstByte | Ended | ErrorAnswer


class JudgedExchange(Protocol):
    """Who is told what an attempt's answer is."""

    def judge_head(self, judge: "Judge", head: ResponseHead) -> None: ...
    def judge_body(self, judge: "Judge", data: bytes, framed: bytes) -> None: ...
    def judge_end(self, judge: "Judge") -> None: ...
    def judge_answer(self, judge: "Judge", head: ResponseHead, data: bytes) -> None: ...
    def judge_failed(self, judge: "Judge", failure: ConnectFailed | Lost | DeadlinePassed | Refused) -> None: ...

    def judged(self, judge: "Judge", head: ResponseHead, event: Judged, held: bytes, *, over: bool) -> None:
        """What it is, with all its bytes so far.

        :param over: no more will come.
        """


@implementer(IAttemptObserver)
class Judge:
    """Hears of one attempt in place of its exchange, until the answer is committed to.

    ::

        head ──stream of events──▶ stream ──first meaningful event, error, end──▶ over
             ──other 2xx, JSON───▶ whole ──its end, or too long to be held──────▶ over
             ──error to be read──▶ error ──its end, READ_BYTES, ERROR_SECONDS───▶ over
             ──anything else─────▶ through

    What it holds is bounded: FirstEvent's MAX_BYTES, or READ_BYTES of an error, and one read.

    :param chunks: streams are of chunks with choices; others pass through.
    :ivar exchange: whom it tells; None: nobody any more.
    :ivar answered: the head of the answer.
    """

    __slots__ = (
        "_deadline",
        "_deadlines",
        "_events",
        "_pieces",
        "_reads_streams",
        "_rules",
        "_size",
        "_state",
        "_timeout",
        "answered",
        "exchange",
    )

    def __init__(
        self, exchange: JudgedExchange, rules: Resilience, deadlines: Deadlines, *, chunks: bool = True
    ) -> None:
        self.exchange: JudgedExchange | None = exchange
        self._rules = rules
        self._reads_streams = chunks and (rules.first_event or rules.hedge)
        self._deadlines = deadlines
        self._state: Literal["head", "stream", "whole", "error", "through", "over"] = "head"
        self._events = FirstEvent()
        self.answered: ResponseHead | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._timeout = 0.0
        self._deadline: Deadline | None = None

    def expect(self, timeout: float) -> bool:
        """The first event must come within so many seconds; False where that is not judged here.

        An error keeps its ERROR_SECONDS.
        """
        if self._state in ("stream", "whole"):
            self._wait(timeout)
        return self._state in ("stream", "whole", "error")

    def leave(self) -> None:
        """The exchange hears of this attempt in another way from now on, or not at all."""
        self.exchange = None
        self._over()

    # what the attempt reports

    def head(self, head: ResponseHead) -> None:
        self._begin(head)
        if self.exchange is not None and self._state in ("stream", "whole", "through"):
            self.exchange.judge_head(self, head)
        elif self._state == "error":
            self._wait(ERROR_SECONDS)

    def body(self, data: bytes, framed: bytes = b"") -> None:
        match self._state:
            case "stream":
                beginning = self._events.feed(data)
                if beginning is not None:
                    self._stream_is(beginning, over=False)
            case "whole" | "error":
                self._keep(data)
            case "through" if self.exchange is not None:
                self.exchange.judge_body(self, data, framed)

    def end(self) -> None:
        match self._state:
            case "stream":
                self._stream_is(self._events.end(), over=True)
            case "whole":
                self._whole_is(judge_answer(b"".join(self._pieces)), over=True)
            case "error":
                self._error_is(over=True)
            case "through" if self.exchange is not None:
                self.exchange.judge_end(self)

    def answer(self, head: ResponseHead, data: bytes) -> None:
        self._begin(head)
        match self._state:
            case "stream":
                self._stream_is(self._events.feed(data) or self._events.end(), over=True)
            case "whole" | "error":
                self._pieces.append(data)
                self.end()
            case "through" if self.exchange is not None:
                self.exchange.judge_answer(self, head, data)

    def failed(self, failure: ConnectFailed | Lost | DeadlinePassed | Refused) -> None:
        exchange = self.exchange
        if self._state != "over" and exchange is not None:
            self._over()
            exchange.judge_failed(self, failure)

    # what it is

    def _begin(self, head: ResponseHead) -> None:
        self.answered = head
        status, rules = head.status, self._rules
        if 200 <= status < 300:
            if self._reads_streams and is_plain_event_stream(status, head.index):
                self._state = "stream"
            elif rules.first_event and status != 204 and _is_plain_json(head.index):
                self._state = "whole"
            else:
                self._state = "through"
            return
        read = (
            (status in _MAY_BE_TOO_LONG and rules.context_length)
            or (status == RATE_LIMITED and rules.rate_limits)
            or (status == _MAY_LACK_INSTANCES and rules.server_errors)
        )
        self._state = "error" if read else "through"

    def _keep(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._state == "error":
            if self._size >= READ_BYTES:
                self._error_is(over=False)
        elif self._size >= MAX_BYTES:
            self._whole_is("unclear", over=False)
        elif self._deadline is not None:  # it is on its way
            self._wait(self._timeout)

    def _stream_is(self, beginning: Beginning, *, over: bool) -> None:
        self._tell(_event(self._status, beginning, self._events.error), self._events.take(), over=over)

    def _whole_is(self, beginning: Beginning, *, over: bool) -> None:
        data = b"".join(self._pieces)
        self._tell(_event(self._status, beginning, data), data, over=over)

    def _error_is(self, *, over: bool) -> None:
        head = self.answered
        assert head is not None  # noqa: S101 - the state follows a head
        data = b"".join(self._pieces)
        said = head.said if isinstance(head, RewordedHead) else data
        error = read_upstream_error(head.status, said)
        self._tell(ErrorAnswer(head.status, error, rate_limit_of(head, data)), data, over=over)

    def _tell(self, event: Judged, held: bytes, *, over: bool) -> None:
        head, exchange = self.answered, self.exchange
        self._over()
        if head is not None and exchange is not None:
            exchange.judged(self, head, event, held, over=over)

    @property
    def _status(self) -> int:
        return 0 if self.answered is None else self.answered.status

    def _wait(self, timeout: float) -> None:
        if self._deadline is not None:
            if self._deadline.restart(timeout):
                return
            self._deadline.cancel()
        self._timeout = timeout
        self._deadline = self._deadlines.start(timeout, self._late)

    def _late(self) -> None:
        self._deadline = None
        if self._state == "error":
            self._error_is(over=False)
        else:
            self.failed(DeadlinePassed("first_byte"))

    def _over(self) -> None:
        self._state = "over"
        self._pieces = []
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _event(status: int, beginning: Beginning, error: bytes) -> Judged:
    if beginning in ANSWERS:
        return FirstByte()
    if beginning == "empty":
        return Ended()
    told = read_error_event(error)
    # an error inside a stream comes from the model's engine, whatever its words
    return ErrorAnswer(status, told, RateLimit("engine", json=True) if told.kind == "rate_limited" else None)


def _is_plain_json(index: Mapping[bytes, bytes]) -> bool:
    kind = index.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return kind == b"application/json" and b"content-encoding" not in index
