"""One attempt over the sealed transport: to one chute, at few of its instances, until its answer ends or breaks."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from attrs import evolve
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure
from zope.interface import implementer

from chutes_autopilot.e2ee.chute import ChuteProtocolError, ResponseSecret, open_response, seal_request
from chutes_autopilot.e2ee.chute_errors import (
    INSTANCE_QUARANTINE,
    MAX_ERROR_BYTES,
    TAMPERING_QUARANTINE,
    Refusal,
    detail_of,
    judge,
)
from chutes_autopilot.e2ee.chute_stream import ChuteStreamOpener
from chutes_autopilot.e2ee.receipt import Attested
from chutes_autopilot.errors import internal_error
from chutes_autopilot.interfaces import IAttemptObserver, IUpstreamAttempt
from chutes_autopilot.observe import events
from chutes_autopilot.policy.failover import ConnectFailed, DeadlinePassed, Lost, Refused
from chutes_autopilot.upstream.chute_e2ee.invocation import Invocation, Stale, invoke_fields
from chutes_autopilot.upstream.chute_e2ee.link import ChuteCall, ChuteLink, ChuteTerms
from chutes_autopilot.upstream.chute_e2ee.pools import Session
from chutes_autopilot.upstream.chute_e2ee.refusals import answer_head, refusal, relayed_answer
from chutes_autopilot.upstream.chute_e2ee.retries import Retries, heed
from chutes_autopilot.wire.http1 import ResponseHead
from chutes_autopilot.wire.reworded import reworded

THREAD_BYTES = 256 * 1024
"""Larger bodies are sealed and opened in a thread."""

DRAIN_SECONDS = 2.0
"""How long the connection may take to end a stream that has come to its authenticated end."""


@implementer(IUpstreamAttempt)
class ChuteAttempt:
    """Seals the request to an instance and reports the opened answer: a head of our own, clear body, an end.

    ::

        waiting ──▶ sealing ──▶ sending ──▶ stream ─────────────▶ over
           ▲                       ├──────▶ blob ──▶ opening ───▶ over
           └───────(retried)────── └──────▶ error ──────────────▶ over

    Each try has a session, a key for the answer and a sealing of its own. Where the status was 200 nothing is retried
    here, and no byte is reported that was not opened. The header deadline counts the wait for sessions and what
    earlier tries used of it, but not the time to connect. It lasts until the answer is reported: for a stream that is
    its head, for other answers the time when all of it was opened.
    """

    def __init__(
        self, link: ChuteLink, terms: ChuteTerms, call: ChuteCall, header_timeout: float, observer: IAttemptObserver
    ) -> None:
        self._link = link
        self._terms = terms
        self._call = call
        self._header_left = header_timeout
        self._waiting_since = 0.0
        self._state: str = "new"
        self._cancel_waiting: Callable[[], None] | None = None
        self._session: Session | None = None
        self._holds_session = False
        self._retries = Retries(terms)
        self._earlier: tuple[Refusal, bytes] | None = None
        self._said: tuple[ResponseHead, bytes] | None = None
        self._stale = False
        self._invocation: Invocation | None = None
        self._secret: ResponseSecret | None = None
        self._head: ResponseHead | None = None
        self._pieces: list[bytes] = []
        self._room = 0
        self._opener: ChuteStreamOpener | None = None
        self._unopened: deque[bytes | Lost | DeadlinePassed | None] = deque()
        self._turn: IDelayedCall | None = None
        self._paused = False
        self._committed = False
        self.attested: Attested | None = None
        """What held of the instance's key when the request was sealed to it, which it may do no more at the end."""
        self.observer = observer

    def __repr__(self) -> str:
        return f"ChuteAttempt({self._state})"

    @property
    def chute_id(self) -> str:
        """Whom the request is for."""
        return self._call.chute_id

    @property
    def instance_id(self) -> str | None:
        """The instance last asked, which is the one that answered; None before any was."""
        return None if self._session is None else self._session.instance.instance_id

    @property
    def instance_key_sha256(self) -> bytes | None:
        """Of the key that the request was sealed to."""
        return None if self._session is None else self._session.instance.key_sha256

    def start(self) -> None:
        """Take a session, or wait for one, and send the request."""
        self._next_session()

    def expect_body(self, timeout: float) -> None:
        """The first record must have come, and opened, within ``timeout`` seconds from now."""
        if self._invocation is not None:
            self._invocation.expect(timeout)

    def pause(self) -> None:
        """Back-pressure: read no more from the upstream until `resume`, and open no more of what was read."""
        self._paused = True
        if self._invocation is not None:
            self._invocation.pause()

    def resume(self) -> None:
        """Go on reading from the upstream, once all is opened that was read."""
        self._paused = False
        if self._opens_more:
            self._take_turns()
        elif self._invocation is not None:
            self._invocation.resume()

    def abort(self) -> None:
        """Drop the attempt in whatever phase it is; the observer hears nothing more. Harmless when it is over."""
        self._state = "over"
        self._release()
        self._secret = self._opener = self._said = None
        self._pieces.clear()
        self._unopened.clear()
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.cancel()
        cancel_waiting, self._cancel_waiting = self._cancel_waiting, None
        if cancel_waiting is not None:
            cancel_waiting()
        invocation, self._invocation = self._invocation, None
        if invocation is not None:
            invocation.abort()

    # from a session to the request on the wire

    def _next_session(self) -> None:
        self._state = "waiting"
        self._waiting_since = self._link.deadlines.now()
        cancel = self._link.sessions.acquire(
            self._call.chute_id,
            stream=self._call.wishes.stream,
            exclude=frozenset(self._retries.asked),
            wait=max(0.0, min(self._terms.discovery_wait, self._header_left)),
            got=self._got_session,
            refused=self._no_session,
        )
        if self._state == "waiting":
            self._cancel_waiting = cancel

    def _no_session(self, why: Refused) -> None:
        self._cancel_waiting = None
        if self._earlier is not None and why.retry:
            self._give_up(*self._earlier)
        else:
            self._fail(why)

    def _got_session(self, session: Session) -> None:
        self._cancel_waiting = None
        self._state = "sealing"
        self._session, self._holds_session = session, True
        instance = session.instance
        self.attested = self._link.attested(instance.instance_id, instance.key_sha256)
        self._retries.asked.add(instance.instance_id)
        self._header_left -= self._link.deadlines.now() - self._waiting_since
        call = self._call
        seal = partial(seal_request, instance.key_text, call.body, call.model, thinking=call.thinking)
        self._run(seal, len(call.body), self._sealed)

    def _sealed(self, sealed: tuple[bytes, ResponseSecret]) -> None:
        session = self._session
        if self._state != "sealing" or session is None:
            return
        self._state = "sending"
        blob, self._secret = sealed
        fields = invoke_fields(session, self._terms.api_key, stream=self._call.wishes.stream)
        left = max(0.1, round(self._header_left, 1))  # in tenths, so that there are few different deadlines
        link = self._link
        self._invocation = Invocation(link.connections, link.backend, link.deadlines, fields, blob, left, self)
        self._invocation.start(fresh=self._stale)

    # what the invocation reports

    def head(self, head: ResponseHead) -> None:
        self._head = head
        stream = self._call.wishes.stream
        if head.status != 200:
            self._state, self._room = "error", MAX_ERROR_BYTES
        elif not _has_type(head, b"text/event-stream" if stream else b"application/octet-stream"):
            self._tampered("garbage")
        elif stream:
            self._begin_stream()
        else:
            self._state, self._room = "blob", self._terms.max_response_bytes

    def body(self, data: bytes) -> None:
        if self._state == "stream":
            self._read_stream(data)
            return
        self._pieces.append(data)
        self._room -= len(data)
        if self._room < 0 and self._state == "blob":
            self._tampered("too_large")
        elif self._room < 0:
            self._pieces.clear()
            self._judge()

    def end(self) -> None:
        match self._state:
            case "stream":
                self._read_stream(None)
            case "blob":
                self._open_blob()
            case "error":
                self._judge()

    def failed(self, failure: ConnectFailed | Stale | DeadlinePassed | Lost) -> None:
        self._invocation = None
        if self._opens_more and isinstance(failure, Lost | DeadlinePassed):
            self._unopened.append(failure)
        elif isinstance(failure, Stale):
            self._stale = True
            self._release()
            self._retries.asked.discard(self.instance_id or "")
            self._next_session()
        elif isinstance(failure, Lost) and self._state == "error":
            self._judge()
        else:
            if isinstance(failure, Lost):
                self._quarantine(INSTANCE_QUARANTINE)
                self._link.counted("connection_lost")
            self._fail(failure)

    # answers with status 200

    def _begin_stream(self) -> None:
        self._state = "stream"
        assert self._secret is not None and self._invocation is not None  # noqa: S101, PT018 - it was sealed and sent
        self._opener = ChuteStreamOpener(
            self._secret,
            self._call.wishes,
            max_event_bytes=self._terms.max_event_bytes,
            max_records=self._terms.max_records,
        )
        self._secret = None
        self._call = evolve(self._call, body=b"")  # nothing is retried, and the stream may take long
        self._invocation.in_time()
        self.observer.head(answer_head(b"text/event-stream"))

    # One read may bring a record with tens of thousands of events. They are opened in slices, with a turn of the
    # reactor between two of them. Meanwhile the upstream is paused; what it still brings, its end included, waits in
    # _unopened, and so does all of it while the client takes no more.

    @property
    def _opens_more(self) -> bool:
        """Whether something was read that is not yet opened."""
        return bool(self._unopened) or (self._opener is not None and self._opener.more)

    def _read_stream(self, data: bytes | None) -> None:
        """Open the next piece, or, with None, what the body's end completes."""
        if self._opens_more:
            self._unopened.append(data)
            return
        assert self._opener is not None  # noqa: S101 - made before the state
        opener = self._opener
        self._open_slice(opener, opener.end if data is None else partial(opener.feed, data))
        self._take_turns()

    def _take_turns(self) -> None:
        """Open what is left, should there be anything, in later turns of the reactor."""
        if self._opens_more and self._turn is None:
            if self._invocation is not None:
                self._invocation.pause()
            self._turn = self._link.clock.callLater(0, self._next_turn)

    def _next_turn(self) -> None:
        self._turn, opener = None, self._opener
        if self._paused or opener is None:
            return
        try:
            if opener.more:
                self._open_slice(opener, opener.take)
            else:
                match self._unopened.popleft():
                    case bytes(data):
                        self._open_slice(opener, partial(opener.feed, data))
                    case None:
                        self._open_slice(opener, opener.end)
                    case failure:
                        self.failed(failure)
        except Exception:  # noqa: BLE001 - nobody else hears of it: there is no connection above a later turn
            self._unexpected(Failure())
        self._take_turns()
        if not (self._opens_more or self._paused) and self._invocation is not None:
            self._invocation.resume()

    def _open_slice(self, opener: ChuteStreamOpener, work: Callable[[], bytes]) -> None:
        fault = None
        try:
            clear = work()
        except ChuteProtocolError as error:
            clear, fault = error.opened, error.code
        if opener.authenticated and not self._committed and self._invocation is not None:
            self._invocation.in_time()
        if clear and (self._committed or fault is None):
            self._committed = True
            self.observer.body(clear)
        if self._state != "stream":
            return
        if fault is not None:
            self._tampered(fault)
        elif opener.done:
            invocation = self._invocation
            self._state, self._opener, self._invocation = "over", None, None
            self._unopened.clear()
            self._release()
            if invocation is not None:
                invocation.leave(DRAIN_SECONDS)
            self.observer.end()

    def _open_blob(self) -> None:
        self._state = "opening"
        blob, secret = b"".join(self._pieces), self._secret
        assert secret is not None  # noqa: S101 - made by the sealing
        self._pieces.clear()
        self._secret = None
        self._run(partial(open_response, blob, secret, self._terms.max_response_bytes), len(blob), self._opened)

    def _opened(self, clear: bytes) -> None:
        if self._state == "opening":
            self._report(answer_head(b"application/json", len(clear)), clear)

    def _tampered(self, code: str) -> None:
        """The answer is not what the instance would send."""
        self._quarantine(TAMPERING_QUARANTINE)
        self._link.counted(code)
        self._fail(Lost() if self._committed else refusal("tampered", retry=True, reason=code))

    def _quarantine(self, seconds: float) -> None:
        if self.instance_id is not None:
            self._link.pools.of(self.chute_id).quarantine(self.instance_id, self._link.monotonic() + seconds)

    # all other answers

    def _judge(self) -> None:
        head, session, invocation = self._head, self._session, self._invocation
        assert head is not None and session is not None  # noqa: S101, PT018 - it was sent, and the state follows a head
        said = b"".join(self._pieces)
        row = judge(head.status, detail_of(said))
        self._said = head, said
        retry_after = next((value for name, value in head.headers if name.lower() == b"retry-after"), b"")
        self._pieces.clear()
        self._link.counted(row.code)
        heed(row, session, self._link)
        self._release()
        if invocation is not None:
            self._header_left -= self._link.deadlines.now() - invocation.sent_at
            self._invocation = None
            invocation.abort()
        if self._retries.allows(row, session.instance.instance_id):
            self._earlier = row, retry_after
            self._next_session()
        else:
            self._give_up(row, retry_after)

    def _give_up(self, row: Refusal, retry_after: bytes) -> None:
        if row.answer == "rate_limit" or row.answer == "request":
            own, body = relayed_answer(row.answer, row.code, retry_after)
            if self._said is not None and self._said[0].status == own.status:
                own = reworded(*self._said, own)
            self._report(own, body)
        else:
            self._fail(refusal(row.answer, retry=row.then != "stop", reason=row.code))

    # ends

    def _report(self, head: ResponseHead, body: bytes) -> None:
        self.abort()
        self.observer.answer(head, body)

    def _fail(self, failure: ConnectFailed | Lost | DeadlinePassed | Refused) -> None:
        self.abort()
        self.observer.failed(failure)

    def _run(self, work: Callable[[], Any], size: int, then: Callable[[Any], None]) -> None:
        """Do the work, where it is much of it in a thread; its failure is the attempt's."""
        if size > THREAD_BYTES:
            self._link.in_thread(work).addCallbacks(then, self._not_done).addErrback(self._unexpected)
            return
        try:
            result = work()
        except Exception:  # noqa: BLE001 - the same way as out of a thread
            self._not_done(Failure())
        else:
            then(result)

    def _not_done(self, failure: Failure) -> None:
        if isinstance(failure.value, ChuteProtocolError):
            if self._state == "opening":
                self._tampered(failure.value.code)
        else:
            self._unexpected(failure)

    def _unexpected(self, failure: Failure) -> None:
        events.failed_unexpectedly(failure, "working on a sealed request")
        if self._state != "over":
            self._fail(Refused(internal_error(), False, "internal_error"))

    def _release(self) -> None:
        if self._holds_session and self._session is not None:
            self._holds_session = False
            self._link.sessions.release(self._session)


def _has_type(head: ResponseHead, wanted: bytes) -> bool:
    """Whether a body is of this type and without a coding."""
    if head.index.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        return False
    return head.index.get(b"content-type", b"").partition(b";")[0].strip().lower() == wanted
