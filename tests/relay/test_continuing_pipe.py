"""A stream that breaks off and another model's that goes on, in memory, with a clock."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from pipe_sides import Client, Upstream
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from chutes_autopilot.errors import ApiError
from chutes_autopilot.interfaces import IAttemptObserver
from chutes_autopilot.observe.record import AttemptRecord, RequestRecord
from chutes_autopilot.policy.failover import ConnectFailed, DeadlinePassed, Lost, Refused
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.policy.plan import Plan
from chutes_autopilot.relay.call import ChatCall
from chutes_autopilot.relay.call import Client as Caller
from chutes_autopilot.relay.continuations import Continuations
from chutes_autopilot.relay.continuing_pipe import ContinuingPipe
from chutes_autopilot.relay.watch import LOOKS, Patience
from chutes_autopilot.upstream.chat import UpstreamRequest
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.wire.body import read_chat_body
from chutes_autopilot.wire.http1 import ResponseHead
from chutes_autopilot.wire.prefill import read_continuable

HEAD = ResponseHead(200, b"OK", ((b"Content-Type", b"text/event-stream"),))
BODY = b'{"model":"a,b,c","messages":[{"role":"user","content":"hi"}],"stream":true}'
DONE = b"data: [DONE]\n\n"
ANNOUNCED = b": this stream broke off and is continued by %b\n\n"
TRUNCATED = "upstream_stream_truncated"


def event(text: str, name: str = "1") -> bytes:
    return b'data: {"id":"%b","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (name.encode(), text.encode())


def head(status: int, kind: bytes = b"application/json") -> ResponseHead:
    return ResponseHead(status, b"", ((b"Content-Type", kind),))


class Case:
    """A stream of the model a, with 8 s of patience; b and c may go on."""

    def __init__(self, max_attempts: int = 8, left_out: tuple[str, ...] = ()) -> None:
        self.clock, self.client, self.health = Clock(), Client(), FleetHealth()
        self.ended: list[tuple[str, str | None]] = []
        self.attempts = [Upstream()]
        self.asked: list[dict[str, Any]] = []
        self.went_on: list[tuple[str, Mapping[str, float]]] = []
        self.counted: list[str] = []
        self.limits: list[str] = []
        self.stopping = False
        self.record = RequestRecord("r", 0.0, attempts=[AttemptRecord("a", 200)], selected="a")
        continuable = read_continuable(BODY)
        assert continuable is not None
        continuations = Continuations(
            ChatCall(b"POST", b"/", b"", BODY, "r", Caller("x")),
            read_chat_body(BODY),
            continuable,
            Plan("list", ("a", "b", "c"), ("a", "b", "c")),
            self.record,
            max_attempts,
            5.0,
            self.health,
            self.clock.seconds,
            self._open,
            lambda model, failed: self.went_on.append((model, failed)),
            self.counted.append,
            lambda: self.stopping,
            lambda limit, _: self.limits.append(limit.kind),
            left_out,
        )
        deadlines, patience = Deadlines(self.clock), Patience(8, 16)
        self.pipe = ContinuingPipe(
            self.attempts[0], self.client, HEAD, self.clock, deadlines, patience, self._over, continuations
        )
        self.pipe.body(event("one"))

    def _open(self, model: str, request: UpstreamRequest, timeout: float, observer: IAttemptObserver) -> Upstream:
        self.asked.append(json.loads(b"".join(request.body)))
        assert timeout == 5.0
        self.attempts.append(Upstream(observer))
        return self.attempts[-1]

    def _over(self, outcome: str, fault: str | None) -> None:
        self.pipe.stop()
        self.ended.append((outcome, fault))

    def advance(self, seconds: float) -> None:
        for _ in range(round(seconds * 4)):
            self.clock.advance(0.25)

    @property
    def models(self) -> list[tuple[str, bool]]:
        """Who was asked, and whether to go on."""
        return [(body["model"], "continue_final_message" in body) for body in self.asked]

    def was_cut(self, relayed: bytes, fault: str = TRUNCATED) -> bool:
        """Whether the client got these bytes, the error event, and the cut."""
        assert self.client.written.startswith(relayed + b"\n\ndata: ")
        error = json.loads(self.client.written[len(relayed) + 8 :])["error"]
        assert error["code"] == TRUNCATED
        assert self.pipe.bytes_relayed == len(self.client.written)
        return self.client.ends == ["abort"] and self.ended == [("cut", fault)]


def test_another_model_goes_on_behind_the_text() -> None:
    """Half an event is not sent; the next model gets the text, and its answer becomes the rest, announced."""
    case = Case()
    case.pipe.body(event("two") + event("lost")[:30])
    case.pipe.failed(Lost())
    assert case.asked[0]["messages"][-1] == {"role": "assistant", "content": "onetwo"}
    verifyObject(IAttemptObserver, case.pipe)
    assert case.attempts[1].observer is case.pipe
    case.pipe.head(HEAD)
    case.pipe.body(event("three", "2") + DONE)
    case.pipe.end()
    assert case.client.written == event("one") + event("two") + ANNOUNCED % b"b" + event("three") + DONE
    assert (case.client.ends, case.ended, case.counted) == (["finish"], [("complete", None)], ["prefill"])
    assert case.pipe.bytes_relayed == len(case.client.written)
    assert case.pipe.pace() is None


def test_what_became_of_it_is_recorded() -> None:
    """The break, the attempt and the model that went on; the client's next request goes there."""
    case = Case()
    case.advance(2)
    case.pipe.failed(Lost())
    case.pipe.head(HEAD)
    case.pipe.body(event("two") + DONE)
    case.pipe.end()
    committed, (continued,) = case.record.attempts[0], case.record.continuations
    assert (committed.detail, committed.failure, committed.failed) == (TRUNCATED, None, 2.0)
    assert (continued.model, continued.status, continued.failure, continued.detail) == ("b", 200, None, "prefill")
    assert case.record.continued_by == "b"
    assert case.went_on == [("b", {"a": 2.0})]
    assert case.health.as_json(0)["b"]["successes"] == 1


@pytest.mark.parametrize(
    "data", [event("one") + DONE, event("one") + b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n']
)
def test_a_stream_that_came_to_its_end_is_let_be(data: bytes) -> None:
    """Behind its finish_reason or [DONE] nobody else is asked, whether it ends or dies."""
    for ends in ("end", "failed"):
        case = Case()
        case.pipe.body(data)
        case.pipe.end() if ends == "end" else case.pipe.failed(Lost())
        assert case.asked == []
        assert case.client.written.startswith(event("one") + data)
        assert case.client.ends == ["finish" if ends == "end" else "abort"]


def test_an_end_without_its_blank_line_is_sent() -> None:
    """What was held back at a clean end belongs to the answer."""
    case = Case()
    case.pipe.body(DONE[:-1])
    assert case.client.written == event("one")
    case.pipe.end()
    assert (case.client.written, case.client.ends) == (event("one") + DONE[:-1], ["finish"])


def test_a_refused_prefill_is_followed_by_a_restart_that_repeats() -> None:
    """The same model gets the client's own request; what it repeats is left out."""
    case = Case()
    case.pipe.failed(Lost())
    case.pipe.head(head(400))
    assert case.models == [("b", True), ("b", False)]
    assert case.asked[1]["messages"] == [{"role": "user", "content": "hi"}]
    assert case.attempts[1].asked == ["start", "abort"]
    case.pipe.answer(HEAD, event("on", "2") + event("e, two", "2") + DONE)
    assert case.client.written == event("one") + ANNOUNCED % b"b" + event(", two") + DONE
    assert (case.ended, case.counted) == ([("complete", None)], ["restart"])
    assert [a.failure for a in case.record.continuations] == ["continuation_refused", None]


def test_a_restart_that_says_something_else_ends_in_the_error() -> None:
    """Nothing of it is sent, and no other model is asked."""
    case = Case()
    case.pipe.failed(Lost())
    case.pipe.head(HEAD)
    case.pipe.body(b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n')
    case.pipe.head(HEAD)
    case.pipe.body(event("two") + DONE)
    assert case.models == [("b", True), ("b", False)]
    assert case.was_cut(event("one"))
    assert case.counted == ["failed"]
    assert [a.failure for a in case.record.continuations] == ["continuation_unlike"] * 2
    assert case.attempts[2].asked == ["start", "abort", "abort"]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (ConnectFailed(), "upstream_connect_error"),
        (DeadlinePassed("header"), "upstream_header_timeout"),
        (Lost(), "upstream_first_body_byte_error"),
        (head(503), "upstream_503"),
        (head(429), "upstream_429"),
        (head(500), "upstream_server_error"),
        (head(200), "continuation_unlike"),
        (DONE, TRUNCATED),
        (b"", TRUNCATED),
    ],
)
def test_a_model_that_fails_gives_way_to_the_next(failure: Any, reason: str) -> None:
    """Whatever is wrong with it; its failure has its reason, and with nobody left the error follows."""
    case = Case()
    case.pipe.end()
    for _ in range(2):
        if isinstance(failure, bytes):
            case.pipe.head(HEAD)
            case.pipe.body(failure + b": \n\n")
            if not failure:
                case.pipe.end()
        elif isinstance(failure, ResponseHead):
            case.pipe.answer(failure, b"whatever")
        else:
            case.pipe.failed(failure)
    assert case.models == [("b", True), ("c", True)]
    assert [a.failure for a in case.record.continuations] == [reason] * 2
    assert case.was_cut(event("one"))
    assert case.counted == ["failed"]


def test_a_fault_of_our_own_is_not_continued() -> None:
    """What was held back is sent, and the record names the fault."""
    case = Case()
    case.pipe.body(b"data: {")
    case.pipe.failed(Refused(ApiError("internal_error", "x"), False, "internal_error"))
    assert case.models == []
    assert case.was_cut(event("one") + b"data: {", "internal_error")


def test_an_error_of_our_own_forbids_another_try() -> None:
    """As where the operator's key is refused."""
    case = Case()
    case.pipe.failed(Lost())
    case.pipe.failed(Refused(ApiError("internal_error", "x"), False, "key_refused"))
    assert (case.models, [a.failure for a in case.record.continuations]) == ([("b", True)], ["key_refused"])
    assert case.was_cut(event("one"))


def test_a_ban_page_forbids_another_try() -> None:
    """Further calls would lengthen the ban."""
    case = Case()
    case.pipe.failed(Lost())
    case.pipe.head(head(429, b"text/html"))
    assert (case.models, case.limits) == ([("b", True)], ["edge"])
    assert case.was_cut(event("one"))


def test_a_429_counts_by_its_kind() -> None:
    """As one that comes before a stream."""
    case = Case()
    case.pipe.failed(Lost())
    case.pipe.answer(head(429), b'{"detail":"Free models limit reached for today: come back tomorrow"}')
    assert (case.limits, case.models) == (["account"], [("b", True), ("c", True)])


def test_who_cannot_serve_the_request_is_not_asked_to_go_on() -> None:
    """Such as a model whose context is too short."""
    case = Case(left_out=("b",))
    case.pipe.failed(Lost())
    assert case.models == [("c", True)]


def test_a_model_is_measured_by_when_it_begins_to_answer() -> None:
    """Not by when it has repeated what the client has had."""
    case = Case()
    case.pipe.failed(Lost())
    case.pipe.answer(head(400), b"{}")
    case.pipe.head(HEAD)
    case.advance(1)
    case.pipe.body(event("on"))
    case.advance(4)
    case.pipe.body(event("e two"))
    figures = case.health.figures("b", case.clock.seconds())
    assert figures is not None
    assert figures["first_token_ms"] == 1000


def test_a_stream_is_continued_once() -> None:
    """The model that goes on breaks off too: its whole events, the error, the cut."""
    case = Case()
    case.pipe.failed(Lost())
    case.pipe.head(HEAD)
    case.pipe.body(event("two") + event("lost")[:30])
    case.pipe.failed(Lost())
    assert case.models == [("b", True)]
    assert case.was_cut(event("one") + ANNOUNCED % b"b" + event("two"))
    assert case.counted == ["prefill"]
    assert case.record.continuations[0].failure == TRUNCATED


def test_the_budget_of_attempts_holds() -> None:
    """With none left a stream breaks off as ever, what came last included."""
    case = Case(max_attempts=1)
    case.pipe.body(b"data: {")
    case.pipe.failed(Lost())
    assert (case.models, case.counted) == ([], ["impossible"])
    assert case.was_cut(event("one") + b"data: {")
    assert case.record.attempts[0].detail is None


def test_nobody_is_asked_when_the_gateway_stops() -> None:
    """A stream that the stop cuts is cut, and is none that others could have continued."""
    case = Case()
    case.stopping = True
    case.pipe.failed(Lost())
    assert (case.asked, case.counted) == ([], [])
    assert case.health.figures("a", 0.0) is None


def test_models_that_cool_down_are_asked_last() -> None:
    """Once all others have failed."""
    case = Case()
    for _ in range(3):
        case.health.failed("b", 0.0)
    case.pipe.failed(Lost())
    assert case.models == [("c", True)]
    case.attempts[-1].observer.failed(ConnectFailed())
    assert case.models == [("c", True), ("b", True)]


@pytest.mark.parametrize(
    "more", [b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n', b'data: ["x"]\n\n']
)
def test_more_than_text_is_relayed_as_ever(more: bytes) -> None:
    """Nothing is held back any more, and nobody goes on."""
    case = Case()
    case.pipe.body(more + b"data: {")
    assert case.client.written == event("one") + more + b"data: {"
    case.pipe.body(b'"half')
    case.pipe.failed(Lost())
    assert case.models == []
    assert case.was_cut(event("one") + more + b'data: {"half')


@pytest.mark.parametrize("fault", [b"data: {x\n\n", b'data: {"error":{"message":"x","code":500}}\n\n'])
def test_a_faulty_event_is_a_break_and_is_not_sent(fault: bytes) -> None:
    """What came before it is; the upstream is dropped. With nobody to go on it is relayed as ever, and what follows."""
    case = Case()
    case.pipe.body(event("two") + fault + event("three"))
    assert case.client.written == event("one") + event("two")
    assert (case.attempts[0].asked, case.models) == (["abort"], [("b", True)])
    case.pipe.failed(Refused(ApiError("internal_error", "x"), False, "key_refused"))
    assert case.was_cut(event("one") + event("two"), "upstream_stream_error")
    case = Case(max_attempts=1)
    case.pipe.body(event("two") + fault + event("three")[:9])
    case.pipe.body(event("three")[9:])
    assert case.client.written == event("one") + event("two") + fault + event("three")
    assert (case.models, case.counted, case.ended) == ([], ["impossible"], [])


def test_a_silent_stream_is_continued_too() -> None:
    """Then the text has to go on within the same patience; if it does, silence counts anew."""
    case = Case()
    case.advance(8 + 8 / LOOKS)
    assert case.attempts[0].asked[0] == "abort"
    assert case.models == [("b", True)]
    case.advance(6)
    case.pipe.head(HEAD)
    case.pipe.body(event("two"))
    case.advance(7.75)
    assert not case.ended
    case.advance(0.25 + 8 / LOOKS)
    assert case.was_cut(event("one") + ANNOUNCED % b"b" + event("two"), "upstream_stream_idle")
    assert case.attempts[1].asked[-1] == "abort"


def test_a_model_that_does_not_go_on_in_time_is_dropped() -> None:
    """Whatever it says meanwhile that is no text, and whichever it is: the patience counts from the break."""
    case = Case()
    case.pipe.failed(Lost())
    case.advance(5)
    case.pipe.failed(DeadlinePassed("header"))
    case.pipe.head(HEAD)
    case.pipe.body(event(""))
    case.advance(3 + 8 / LOOKS)
    assert case.models == [("b", True), ("c", True)]
    assert case.was_cut(event("one"))
    assert case.attempts[2].asked[-1] == "abort"
    assert [a.failure for a in case.record.continuations] == ["upstream_header_timeout", "upstream_stream_idle"]
    case.advance(100)


def test_back_pressure_holds_for_the_next_attempt() -> None:
    """It is paused as soon as it answers, resumed with the client, and its time stands still meanwhile."""
    case = Case()
    case.client.waiting = 100_000
    case.pipe.pauseProducing()
    case.pipe.failed(Lost())
    case.pipe.head(HEAD)
    assert case.attempts[1].asked == ["start", "pause"]
    case.advance(10)
    case.pipe.resumeProducing()
    assert case.attempts[1].asked == ["start", "pause", "resume"]
    case.advance(7)
    assert not case.ended


def test_a_client_that_leaves_ends_the_attempt_under_way() -> None:
    """Its model is judged by nothing, and nobody is told any more."""
    case = Case()
    case.pipe.failed(Lost())
    case.pipe.stop()
    assert case.attempts[1].asked == ["start", "abort"]
    assert case.attempts[1].observer is None
    assert case.health.as_json(0).get("b", {"failures": 0})["failures"] == 0
    case.advance(100)
    assert case.ended == []
