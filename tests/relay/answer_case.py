"""What stands on both sides of an answer filter, and a client that can open what is sealed."""

import json
from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from chutes_autopilot.e2ee.allow_list import SealContext
from chutes_autopilot.e2ee.request_headers import E2EEPolicy, read_e2ee_headers
from chutes_autopilot.e2ee.server_keys import ephemeral_keys
from chutes_autopilot.e2ee_client.exchange import Exchange
from chutes_autopilot.e2ee_client.opening import StreamOpener, open_completion
from chutes_autopilot.interfaces import IAttemptObserver, IUpstreamAttempt
from chutes_autopilot.policy.failover import Refused
from chutes_autopilot.relay.answer_filter import AnswerFilter
from chutes_autopilot.relay.sealed_answer import SealedAnswer, SealingTerms
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.wire.http1 import ResponseHead

KEYS = ephemeral_keys()
NOW = 1_700_000_000.0
POLICY = E2EEPolicy(require=False, allow_v1=True, strict=False, uncovered="reject", max_fields=256, window=300, skew=30)
STREAM = (b"Content-Type", b"text/event-stream; charset=utf-8")
JSON = (b"Content-Type", b"application/json")
DONE = b"data: [DONE]\n\n"
FAR = 1000.0
"""Seconds by which every deadline has passed."""


def chunk_event(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return b"data: " + json.dumps({"id": "chatcmpl-1", "model": "m", "choices": [choice]}).encode() + b"\n\n"


def completion(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"id": "chatcmpl-1", "model": "m", "choices": [choice]}).encode()


def response(status: int, *headers: tuple[bytes, bytes]) -> ResponseHead:
    return ResponseHead(status, b"Whatever", headers)


@implementer(IUpstreamAttempt)
@define(eq=False)
class Inside:
    """An attempt that remembers what was asked of it."""

    observer: Any = None
    asked: list[Any] = field(factory=list)

    def start(self) -> None:
        self.asked.append("start")

    def expect_body(self, timeout: float) -> None:
        self.asked.append(("expect_body", timeout))

    def pause(self) -> None:
        self.asked.append("pause")

    def resume(self) -> None:
        self.asked.append("resume")

    def abort(self) -> None:
        self.asked.append("abort")


@implementer(IAttemptObserver)
@define(eq=False)
class Heard:
    """An observer that remembers what it was told."""

    events: list[str] = field(factory=list)
    heads: list[ResponseHead] = field(factory=list)
    pieces: list[bytes] = field(factory=list)
    framed: list[bytes] = field(factory=list)
    failures: list[Any] = field(factory=list)

    def head(self, head: ResponseHead) -> None:
        self.events.append("head")
        self.heads.append(head)

    def body(self, data: bytes, framed: bytes = b"") -> None:
        assert data
        self.events.append("body")
        self.pieces.append(data)
        self.framed.append(framed)

    def end(self) -> None:
        self.events.append("end")

    def answer(self, head: ResponseHead, data: bytes) -> None:
        self.events.append("answer")
        self.heads.append(head)
        self.pieces.append(data)

    def failed(self, failure: Any) -> None:
        self.events.append("failed")
        self.failures.append(failure)

    @property
    def bytes(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def headers(self) -> dict[bytes, bytes]:
        (head,) = self.heads
        assert len({name.lower() for name, _ in head.headers}) == len(head.headers)
        return dict(head.headers)

    @property
    def refused(self) -> tuple[int, str, bool, str]:
        """Of the one failure: status, code, whether another candidate may be tried, and the reason."""
        (failure,) = self.failures
        assert isinstance(failure, Refused)
        return failure.error.status, failure.error.code, failure.retry, failure.reason


class Case:
    """A sealed answer between the two, in 3 s of patience for a whole body; work for threads waits in ``threads``."""

    def __init__(
        self, version: Any = 2, *, coalesce: float = 0, max_event_bytes: int = 10_000, max_response_bytes: int = 10**7
    ) -> None:
        self.clock = Clock()
        self.inside, self.heard = Inside(), Heard()
        self.threads: list[tuple[Callable[[], Any], Deferred[Any]]] = []
        self.client = Exchange.new("ed25519", version, NOW)
        headers = self.client.headers(KEYS.current("ed25519").wire_hex)
        sealed = read_e2ee_headers({n.lower(): [v] for n, v in headers}, KEYS, POLICY, NOW)
        assert sealed is not None
        self.answer = SealedAnswer(
            self.heard,
            SealContext(sealed, "asked/Model", "reject"),
            POLICY,
            SealingTerms(max_event_bytes, max_response_bytes, coalesce, first_byte=lambda: 3),
            Deadlines(self.clock),
            self._in_thread,
        )
        self.answer.inside = self.inside

    def _in_thread(self, work: Callable[[], Any]) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.threads.append((work, done))
        return done

    def work(self) -> None:
        """The thread does its work."""
        ((work, done),) = self.threads
        try:
            done.callback(work())
        except Exception:  # noqa: BLE001 - as a thread pool does
            done.errback()

    def opened(self) -> Any:
        """What the client reads: the text of a stream, or the object of a whole answer."""
        fields = self.client.opener()
        if self.heard.events == ["answer"]:
            return json.loads(open_completion(self.heard.bytes, fields)[0])
        return "".join(
            choice["delta"].get("content", "")
            for event in StreamOpener(fields).feed(self.heard.bytes).split(b"\n\n")[:-1]
            for choice in json.loads(event.removeprefix(b"data: "))["choices"]
        )

    def nothing_follows(self) -> None:
        """Whatever time passes: no deadline is left."""
        before = list(self.heard.events), list(self.inside.asked)
        self.clock.advance(FAR)
        self.clock.advance(FAR)
        assert (self.heard.events, self.inside.asked) == before
        assert not self.clock.getDelayedCalls()


def begin(made: AnswerFilter, head: ResponseHead, *pieces: bytes) -> None:
    """The upstream answers."""
    made.head(head)
    for piece in pieces:
        made.body(piece)
