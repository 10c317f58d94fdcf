"""An answer on its way to a client that wants it encrypted: nothing passes here that is not sealed."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from chutes_autopilot.e2ee.allow_list import SealContext, SealFailed
from chutes_autopilot.e2ee.request_headers import E2EEPolicy
from chutes_autopilot.e2ee.response import applied_headers, generic_upstream_error, plain_headers, seal_completion
from chutes_autopilot.e2ee.stream import FailureCode, StreamFailed, StreamSealer, failure_error, failure_event
from chutes_autopilot.errors import ApiError, e2ee_error
from chutes_autopilot.interfaces import IAttemptObserver
from chutes_autopilot.observe import events
from chutes_autopilot.policy.failover import (
    FAILOVER_STATUSES,
    ConnectFailed,
    DeadlinePassed,
    Lost,
    Refused,
)
from chutes_autopilot.relay.answer_filter import AnswerFilter
from chutes_autopilot.upstream.deadlines import Deadline, Deadlines
from chutes_autopilot.wire.http1 import ResponseHead
from chutes_autopilot.wire.reworded import reworded
from chutes_autopilot.wire.sse import is_plain_event_stream

THREAD_BYTES = 256 * 1024
"""Larger answers are sealed in a thread."""

GATHERED_BYTES = 64 * 1024
"""No more of a stream is gathered before it is sealed: the events of a MiB take a quarter of a second."""

MAX_ERROR_BYTES = 64 * 1024
ERROR_SECONDS = 5.0
RETRIED_SECONDS = 1.0
"""How much of an upstream's error is read for its code, and how long that may take; less where another candidate may be
waiting to be tried."""

DRAIN_SECONDS = 2.0
"""How long the upstream's connection may take to end a stream whose [DONE] has come."""

InThread = Callable[[Callable[[], Any]], Deferred[Any]]
"""Runs work in a thread, as ``partial(deferToThreadPool, reactor, pool)`` does."""


@attrs.frozen
class SealingTerms:
    """What bounds the sealing of every answer.

    :param max_event_bytes: of one event of a stream.
    :param max_response_bytes: of an answer that is no stream.
    :param coalesce: seconds for which pieces of a stream are gathered; 0: each is sealed at once.
    :param first_byte: seconds the body of an answer that is no stream may take to begin, as it is now.
    """

    max_event_bytes: int
    max_response_bytes: int
    coalesce: float
    first_byte: Callable[[], float]


class SealedAnswer(AnswerFilter):
    """Seals what the attempt inside reports; the observer hears of sealed bytes alone.

    ::

        head ──event stream──▶ stream ──[DONE]──▶ over
             ──other 2xx─────▶ whole ──▶ sealing ──▶ over
             ──anything else─▶ error ──▶ over

    A stream is committed with its first sealed event. Whatever goes wrong before that is a failed attempt; after it,
    an error event of constant text, and then the cut.
    """

    def __init__(
        self,
        observer: IAttemptObserver,
        context: SealContext,
        policy: E2EEPolicy,
        terms: SealingTerms,
        deadlines: Deadlines,
        in_thread: InThread,
    ) -> None:
        super().__init__(observer)
        self._context = context
        self._policy = policy
        self._terms = terms
        self._deadlines = deadlines
        self._in_thread = in_thread
        self._state: Literal["head", "stream", "whole", "sealing", "error", "over"] = "head"
        self._sealer = StreamSealer(context, max_event_bytes=terms.max_event_bytes, coalesce=terms.coalesce > 0)
        self._committed = False
        self._upstream_head: ResponseHead | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._deadline: Deadline | None = None
        self._gathering: Deadline | None = None

    def expect_body(self, timeout: float) -> None:
        """The first sealed event must be there within ``timeout`` seconds: bytes that seal to nothing do not count."""
        self._deadline = self._deadlines.start(timeout, self._first_event_late)

    def abort(self) -> None:
        self._over()
        super().abort()

    # what the attempt inside reports

    def head(self, head: ResponseHead) -> None:
        self._begin(head)
        if self._state == "whole":
            self.inside.expect_body(self._terms.first_byte())

    def _begin(self, head: ResponseHead) -> None:
        if self._state != "head" or self.refused_for_the_operator(head.status):
            return
        self._upstream_head = head
        if is_plain_event_stream(head.status, head.index):
            self._state = "stream"
            self.observer.head(self._sealed_head(stream=True))
        elif 200 <= head.status < 300:
            self._state = "whole"
        else:
            self._state = "error"
            seconds = RETRIED_SECONDS if head.status in FAILOVER_STATUSES else ERROR_SECONDS
            self._deadline = self._deadlines.start(seconds, self._error_late)

    def body(self, data: bytes, framed: bytes = b"") -> None:
        match self._state:
            case "stream" if self._terms.coalesce > 0:
                if not self._keep(data, min(GATHERED_BYTES, self._terms.max_event_bytes)):
                    self._gathered()
                elif self._gathering is None:
                    self._gathering = self._deadlines.start(self._terms.coalesce, self._gathered)
            case "stream":
                self._feed(data)
            case "whole":
                if not self._keep(data, self._terms.max_response_bytes):
                    error = e2ee_error("upstream_response_too_large", "The upstream's answer is too large to encrypt.")
                    self._refuse(error, retry=False)
            case "error":
                if not self._keep(data, MAX_ERROR_BYTES):
                    self._error_late()

    def end(self) -> None:
        match self._state:
            case "stream":
                self._gathered()
                if self._state == "stream":
                    self._stream_ended()
            case "whole":
                self._seal_whole()
            case "error":
                self._pass_error_on()
        self._stop_deadlines()

    def answer(self, head: ResponseHead, data: bytes) -> None:
        self._begin(head)  # and nothing to wait for
        self.body(data)
        self.end()

    def failed(self, failure: ConnectFailed | Lost | DeadlinePassed | Refused) -> None:
        match self._state:
            case "stream" if self._committed or self._pieces:
                self._gathered()
                if self._state == "stream":
                    self._stream_failed(StreamFailed("upstream_stream_truncated", b""))
            case "error":
                self._pass_error_on()
            case "head" | "stream" | "whole":
                self._over()
                self.observer.failed(failure)
            case "over":
                self._stop_deadlines()

    # streams

    def _gathered(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        pieces, self._pieces, self._size = self._pieces, [], 0
        if pieces and self._state == "stream":
            self._feed(b"".join(pieces))

    def _feed(self, data: bytes) -> None:
        try:
            sealed = self._sealer.feed(data)
        except StreamFailed as failure:
            self._stream_failed(failure)
        else:
            self._emit(sealed)
            self._finish_if_done()

    def _stream_ended(self) -> None:
        try:
            sealed = self._sealer.end()
        except StreamFailed as failure:
            self._stream_failed(failure)
        else:
            self._emit(sealed)
            self._finish_if_done()

    def _emit(self, sealed: bytes) -> None:
        if sealed and self._state == "stream":
            if not self._committed:
                self._committed = True
                self._stop_deadlines()
            self.chat_id = self._sealer.emitted_id
            super().body(sealed)

    def _finish_if_done(self) -> None:
        """The answer ends with its [DONE], whatever the upstream does with the rest of its own."""
        if self._sealer.done and self._state == "stream":
            self._over()
            self._deadline = self._deadlines.start(DRAIN_SECONDS, self.inside.abort)
            self.observer.end()

    def _stream_failed(self, failure: StreamFailed) -> None:
        self.inside.abort()
        if self._committed or failure.sealed:
            self._emit(failure.sealed)
            self._emit(failure_event(failure.code))
        self._refuse_stream(failure.code)

    def _refuse_stream(self, code: FailureCode) -> None:
        if self._state != "over":
            self._refuse(failure_error(code), retry=True, reason=code)

    def _first_event_late(self) -> None:
        self._deadline = None
        self.abort()
        self.observer.failed(DeadlinePassed("first_byte"))

    # answers that are no stream

    def _seal_whole(self) -> None:
        head = self._upstream_head
        assert head is not None  # noqa: S101 - the state follows a head
        body, self._pieces = b"".join(self._pieces), []
        self._state = "sealing"
        if head.index.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            self._refuse_stream("e2ee_encryption_failed")
            return
        work = partial(seal_completion, body, self._context)
        if len(body) > THREAD_BYTES:
            self._in_thread(work).addCallbacks(self._sealed, self._not_sealed)
            return
        try:
            sealed = work()
        except SealFailed:
            self._not_sealed(None)
        else:
            self._sealed(sealed)

    def _sealed(self, sealed: tuple[bytes, str]) -> None:
        if self._state == "sealing":
            body, self.chat_id = sealed
            self._over()
            super().answer(self._sealed_head(stream=False, length=len(body)), body)

    def _not_sealed(self, failure: Failure | None) -> None:
        if failure is not None and not failure.check(SealFailed):
            events.failed_unexpectedly(failure, "sealing an answer")
        if self._state == "sealing":
            self._refuse_stream("e2ee_encryption_failed")

    # errors

    def _error_late(self) -> None:
        self.inside.abort()
        self._pass_error_on()

    def _pass_error_on(self) -> None:
        """Answer in words of our own: the upstream's may repeat the prompt."""
        head = self._upstream_head
        assert head is not None  # noqa: S101 - the state follows a head
        retry_after = next((value for name, value in head.headers if name.lower() == b"retry-after"), None)
        said = b"".join(self._pieces)
        error = generic_upstream_error(head.status, said, retry_after)
        self._over()
        body = error.body()
        headers = (
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(body)),
            (b"Cache-Control", b"no-store"),
            *plain_headers(),
            *error.headers,
        )
        self.observer.answer(reworded(head, said, ResponseHead(error.status, b"Upstream Error", headers)), body)

    def _refuse(self, error: ApiError, *, retry: bool, reason: str | None = None) -> None:
        self.abort()
        self.observer.failed(Refused(error, retry, reason or error.code))

    def _keep(self, data: bytes, limit: int) -> bool:
        """Keep a piece of the body; False where there is too much of it."""
        self._pieces.append(data)
        self._size += len(data)
        return self._size <= limit

    def _sealed_head(self, *, stream: bool, length: int | None = None) -> ResponseHead:
        headers = applied_headers(self._context.exchange, self._policy, stream)
        if length is not None:
            headers.append((b"Content-Length", b"%d" % length))
        return ResponseHead(200, b"OK", tuple(headers))

    def _over(self) -> None:
        self._state = "over"
        self._pieces = []
        self._stop_deadlines()

    def _stop_deadlines(self) -> None:
        for deadline in (self._deadline, self._gathering):
            if deadline is not None:
                deadline.cancel()
        self._deadline = self._gathering = None
