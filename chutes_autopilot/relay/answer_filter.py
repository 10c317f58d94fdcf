"""What stands between an attempt and its observer on the Chutes route, where an answer is changed or remembered."""

import hashlib
from contextlib import suppress

import msgspec
from zope.interface import implementer

from chutes_autopilot.e2ee.response import operator_error, plain_headers
from chutes_autopilot.interfaces import IAttemptObserver, IUpstreamAttempt
from chutes_autopilot.policy.failover import ConnectFailed, DeadlinePassed, Lost, Refused
from chutes_autopilot.wire.event_stream import EventParser, EventTooLarge
from chutes_autopilot.wire.http1 import ResponseHead
from chutes_autopilot.wire.reworded import with_headers
from chutes_autopilot.wire.sse import is_plain_event_stream

MAX_ID_BYTES = 1024 * 1024
"""How far an answer is searched for its id."""

MAX_ID_LENGTH = 256
"""Longer ones are not kept; those of servers have some 40 characters."""


@implementer(IUpstreamAttempt, IAttemptObserver)
class AnswerFilter:
    """An attempt that wraps another: what the one inside reports passes through here.

    A 401, 402 or 403 concerns the operator's key and not the client: it ends the request with an error of our own.

    :ivar inside: the attempt that speaks to the upstream; set before `start`.
    :ivar chat_id: the answer's id, as far as it has been seen.
    """

    inside: IUpstreamAttempt

    def __init__(self, observer: IAttemptObserver) -> None:
        self.observer = observer
        self.chat_id: str | None = None
        self._emitted = hashlib.sha256()

    @property
    def response_sha256(self) -> str:
        """Hex of the hash of all body bytes that were passed on."""
        return self._emitted.hexdigest()

    def start(self) -> None:
        self.inside.start()

    def expect_body(self, timeout: float) -> None:
        self.inside.expect_body(timeout)

    def pause(self) -> None:
        self.inside.pause()

    def resume(self) -> None:
        self.inside.resume()

    def abort(self) -> None:
        self.inside.abort()

    def head(self, head: ResponseHead) -> None:
        if not self.refused_for_the_operator(head.status):
            self.observer.head(head)

    def body(self, data: bytes, framed: bytes = b"") -> None:
        self._emitted.update(data)
        self.observer.body(data, framed)

    def end(self) -> None:
        self.observer.end()

    def failed(self, failure: ConnectFailed | Lost | DeadlinePassed | Refused) -> None:
        self.observer.failed(failure)

    def answer(self, head: ResponseHead, data: bytes) -> None:
        if not self.refused_for_the_operator(head.status):
            self._emitted.update(data)
            self.observer.answer(head, data)

    def refused_for_the_operator(self, status: int) -> bool:
        """End the request where the status is about the operator's key."""
        error = operator_error(status)
        if error is None:
            return False
        self.inside.abort()
        self.observer.failed(Refused(error, False, error.code))
        return True


class PlainAnswer(AnswerFilter):
    """Passes a plain answer on as it is, says that it is not encrypted, and learns its id."""

    def __init__(self, observer: IAttemptObserver) -> None:
        super().__init__(observer)
        self._events: EventParser | None = None
        self._start: list[bytes] | None = None
        self._size = 0

    def head(self, head: ResponseHead) -> None:
        super().head(self._read_head(head))

    def body(self, data: bytes, framed: bytes = b"") -> None:
        self._look(data)
        super().body(data, framed)

    def end(self) -> None:
        self._look_at_whole()
        super().end()

    def answer(self, head: ResponseHead, data: bytes) -> None:
        head = self._read_head(head)
        self._look(data)
        self._look_at_whole()
        super().answer(head, data)

    def _read_head(self, head: ResponseHead) -> ResponseHead:
        if is_plain_event_stream(head.status, head.index):
            self._events = EventParser(max_event_bytes=MAX_ID_BYTES)
        elif head.status == 200:
            self._start = []
        named = {name.lower() for name, _ in plain_headers()}
        kept = [header for header in head.headers if header[0].lower() not in named]
        return with_headers(head, (*kept, *plain_headers()))

    def _look(self, data: bytes) -> None:
        if self._events is not None:
            try:
                events = self._events.feed(data)
            except EventTooLarge as large:
                events = large.events
            self._size += len(data)
            if any(map(self._take_id, events)) or self._size > MAX_ID_BYTES:
                self._events = None
        elif self._start is not None:
            self._start.append(data)
            self._size += len(data)
            if self._size > MAX_ID_BYTES:
                self._start = None

    def _look_at_whole(self) -> None:
        if self._start is not None:
            self._take_id(b"".join(self._start))
            self._start = None

    def _take_id(self, text: bytes) -> bool:
        """Whether this says the answer's id, be it one that is not kept."""
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            chat_id = _IDENTIFIED.decode(text).id
            if chat_id and len(chat_id) <= MAX_ID_LENGTH:
                self.chat_id = chat_id
            return bool(chat_id)
        return False


class _Identified(msgspec.Struct):
    id: str | None = None


_IDENTIFIED = msgspec.json.Decoder(_Identified)
