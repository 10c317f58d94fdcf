"""Sealed answers that are no streams, and upstream errors, of which the client hears our own words only."""

import json
from typing import Any

import pytest
from answer_case import JSON, STREAM, Case, begin, completion, response

from chutes_autopilot.policy.failover import DeadlinePassed, Lost
from chutes_autopilot.relay.sealed_answer import ERROR_SECONDS, MAX_ERROR_BYTES, RETRIED_SECONDS, THREAD_BYTES
from chutes_autopilot.wire.http1 import ResponseHead, ResponseParser

HEAD = response(200, JSON, (b"Set-Cookie", b"a=b"))
MARKER = "Top|Secret"
TOLD = "The upstream refused the request; its own words are withheld, for they may repeat the prompt. "


def test_a_whole_answer_is_sealed_and_then_told_at_once() -> None:
    """Nothing is heard before its end; the body has its length, and may take a while to begin but not for ever."""
    case = Case()
    body = completion("Hello")
    begin(case.answer, HEAD, body[:10], body[10:])
    assert (case.heard.events, case.inside.asked) == ([], [("expect_body", 3)])
    case.answer.end()
    assert case.opened()["choices"][0]["message"]["content"] == "Hello"
    assert case.heard.headers == {
        b"Content-Type": b"application/json",
        b"Cache-Control": b"no-store",
        b"X-E2EE-Applied": b"true",
        b"X-E2EE-Version": b"2",
        b"X-E2EE-Alg": b"ed25519",
        b"X-E2EE-Algo": b"ed25519",
        b"X-E2EE-Uncovered": b"reject",
        b"Content-Length": b"%d" % len(case.heard.bytes),
    }
    assert case.answer.chat_id == "chatcmpl-1"
    case.nothing_follows()


def test_an_answer_that_came_at_once_is_waited_for_no_more() -> None:
    """The attempt inside is over: it must not start a deadline."""
    case = Case()
    case.answer.answer(HEAD, completion("Hello"))
    assert (case.heard.events, case.inside.asked) == (["answer"], [])


def test_a_large_answer_is_sealed_in_a_thread() -> None:
    """The reactor goes on meanwhile."""
    case = Case()
    begin(case.answer, HEAD, completion("x" * THREAD_BYTES))
    case.answer.end()
    assert case.heard.events == []
    case.work()
    assert case.opened()["choices"][0]["message"]["content"] == "x" * THREAD_BYTES
    case.nothing_follows()


@pytest.mark.parametrize("body", [completion("x" * THREAD_BYTES), b"x" * (THREAD_BYTES + 1)])
def test_an_answer_that_was_aborted_in_its_thread_is_not_told(body: bytes) -> None:
    """The client has left, or the time is over."""
    case = Case()
    begin(case.answer, HEAD, body)
    case.answer.end()
    case.answer.abort()
    case.work()
    assert case.heard.events == []
    case.nothing_follows()


@pytest.mark.parametrize(
    "body",
    [
        b"Top|Secret",
        b'["Top|Secret"]',
        b'{"x":"Top|Secret"}',
        b'{"choices":["Top|Secret"]}',
        b'{"choices":[{"message":{"content":["Top|Secret"]}}]}',
        completion(MARKER)[:-1],
        b"Top|Secret" * THREAD_BYTES,
    ],
)
def test_what_cannot_be_sealed_is_a_failed_attempt(body: bytes) -> None:
    """Nothing of it is told, and another candidate may do."""
    case = Case()
    begin(case.answer, HEAD, body)
    case.answer.end()
    if case.threads:
        case.work()
    assert case.heard.refused == (502, "e2ee_encryption_failed", True, "e2ee_encryption_failed")
    assert MARKER not in str(case.heard.failures)
    case.nothing_follows()


@pytest.mark.parametrize(("status", "headers"), [(204, []), (200, [(b"Content-Encoding", b"gzip"), STREAM])])
def test_what_cannot_be_read_is_a_failed_attempt_too(status: int, headers: list[Any]) -> None:
    """An answer without a body, or in a coding nobody asked for."""
    case = Case()
    case.answer.head(response(status, *headers))
    if status == 200:
        case.answer.body(completion("x"))
    case.answer.end()
    assert case.heard.refused[3] == "e2ee_encryption_failed"


def test_an_answer_that_is_too_large_is_given_up() -> None:
    """As soon as that shows; a second model's would be no smaller."""
    case = Case(max_response_bytes=100)
    begin(case.answer, HEAD, b" " * 100)
    assert case.heard.events == []
    case.answer.body(b" ")
    assert case.heard.refused == (502, "upstream_response_too_large", False, "upstream_response_too_large")
    assert case.inside.asked[-1] == "abort"
    case.answer.body(b" ")
    case.answer.end()
    assert case.heard.events == ["failed"]
    case.nothing_follows()


@pytest.mark.parametrize("failure", [Lost(), DeadlinePassed("first_byte")])
def test_an_upstream_that_dies_in_its_answer_is_a_failed_attempt(failure: Any) -> None:
    """As it died, for nothing was written."""
    case = Case()
    begin(case.answer, HEAD, completion("x")[:20])
    case.answer.failed(failure)
    assert case.heard.failures == [failure]
    case.nothing_follows()


@pytest.mark.parametrize("error", [False, True])
def test_an_abort_leaves_nothing_behind(error: bool) -> None:
    """While a body or an error is gathered."""
    case = Case()
    begin(case.answer, response(400, JSON) if error else HEAD, b"{")
    case.answer.abort()
    case.answer.body(b"}")
    case.answer.end()
    assert (case.heard.events, case.inside.asked[-1]) == ([], "abort")
    case.nothing_follows()


def real_head(status: int, *lines: bytes) -> ResponseHead:
    """A head as the parser gives it."""
    head = ResponseParser().receive(b"\r\n".join([b"HTTP/1.1 %d Top|Secret" % status, *lines, b"\r\n"]))[0]
    assert isinstance(head, ResponseHead)
    return head


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, b'{"error":{"code":"context_length_exceeded","message":"Top|Secret"}}', "context_length_exceeded"),
        (429, b'{"error":{"code":null,"type":"rate_limit_exceeded"}}', "rate_limit_exceeded"),
        (404, b'{"detail":"Top|Secret"}', "upstream_404"),
        (500, b"Top|Secret", "upstream_500"),
        (503, b'{"error":{"code":"model_not_found","message":"Top|Secret"}}', "model_not_found"),
        (503, b"", "upstream_503"),
    ],
)
def test_an_upstream_error_is_told_in_our_own_words(status: int, body: bytes, code: str) -> None:
    """Its status, its Retry-After where it is a number, and a code that clients know; nothing is encrypted."""
    case = Case()
    length = b"Content-Length: %d" % len(body)
    head = real_head(status, b"Content-Type: application/json", b"Retry-After: 7", b"X: Top|Secret", length)
    begin(case.answer, head, body)
    assert case.heard.events == []
    case.answer.end()
    assert (case.heard.events, case.heard.heads[0].status) == (["answer"], status)
    error = json.loads(case.heard.bytes)["error"]
    assert error == {"message": TOLD + "To try again, send a new nonce.", "type": "upstream_error"} | {
        "param": None,
        "code": code,
    }
    assert case.heard.headers == {
        b"Content-Type": b"application/json",
        b"Content-Length": b"%d" % len(case.heard.bytes),
        b"Cache-Control": b"no-store",
        b"X-E2EE-Applied": b"false",
        b"Retry-After": b"7",
    }
    assert MARKER.encode() not in case.heard.heads[0].reason
    case.nothing_follows()


@pytest.mark.parametrize(("status", "told"), [(302, 502), (101, 502), (418, 418), (599, 599), (600, 502)])
def test_other_statuses_than_those_of_errors_become_502(status: int, told: int) -> None:
    """A redirect would say where to."""
    case = Case()
    case.answer.head(response(status, (b"Location", b"http://x"), (b"Retry-After", b"Top|Secret")))
    case.answer.end()
    assert case.heard.heads[0].status == told
    assert b"Location" not in case.heard.headers
    assert b"Retry-After" not in case.heard.headers


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize(("status", "seconds"), [(400, ERROR_SECONDS), (503, RETRIED_SECONDS)])
def test_an_error_is_not_read_for_ever(status: int, seconds: float, late: bool) -> None:
    """Neither in time nor in bytes; what came by then decides. Another candidate is not kept waiting for long."""
    case = Case()
    begin(case.answer, response(status, JSON), b'{"error":{"code":"model_not_found"}}')
    if late:
        case.clock.advance(seconds)
    else:
        case.answer.body(b" " * MAX_ERROR_BYTES)
    assert json.loads(case.heard.bytes)["error"]["code"] == "model_not_found"
    assert case.inside.asked == ["abort"]
    case.nothing_follows()


def test_an_error_whose_connection_is_lost_is_told_all_the_same() -> None:
    """Its status is what counts."""
    case = Case()
    begin(case.answer, response(400, JSON), b"{")
    case.answer.failed(Lost())
    assert json.loads(case.heard.bytes)["error"]["code"] == "upstream_400"
    case.nothing_follows()
