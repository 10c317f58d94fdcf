"""Plain answers of the Chutes route pass as they are; and errors that concern the operator's key, in either mode."""

from hashlib import sha256

import pytest
from answer_case import DONE, JSON, STREAM, Case, Heard, Inside, begin, chunk_event, completion, response

from chutes_autopilot.policy.failover import Lost
from chutes_autopilot.relay.answer_filter import MAX_ID_BYTES, AnswerFilter, PlainAnswer

NOT_APPLIED = (b"X-E2EE-Applied", b"false")


def plain() -> PlainAnswer:
    answer = PlainAnswer(Heard())
    answer.inside = Inside()
    return answer


def heard(answer: AnswerFilter) -> Heard:
    assert isinstance(answer.observer, Heard)
    return answer.observer


@pytest.mark.parametrize("at_once", [True, False])
def test_a_plain_answer_passes_and_says_that_it_is_not_encrypted(at_once: bool) -> None:
    """Every byte and header, but for what the upstream itself may say of encryption."""
    answer = plain()
    kept = ((b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2"), JSON)
    head = response(418, *kept, (b"x-e2ee-applied", b"true"))
    if at_once:
        answer.answer(head, b"whatever")
        assert heard(answer).events == ["answer"]
    else:
        answer.head(head)
        answer.body(b"what", b"4\r\nwhat\r\n")
        answer.body(b"ever")
        answer.end()
        assert heard(answer).events == ["head", "body", "body", "end"]
        assert heard(answer).framed == [b"4\r\nwhat\r\n", b""]
    (told,) = heard(answer).heads
    assert (told.status, told.reason, told.headers) == (418, b"Whatever", (*kept, NOT_APPLIED))
    assert heard(answer).bytes == b"whatever"
    assert answer.response_sha256 == sha256(b"whatever").hexdigest()


def test_a_failure_passes() -> None:
    """Before the head and after it."""
    answer = plain()
    answer.failed(Lost())
    assert heard(answer).failures == [Lost()]


def test_what_is_asked_of_an_attempt_is_asked_of_the_one_inside() -> None:
    """Deadlines and back-pressure too."""
    answer = plain()
    answer.start()
    answer.expect_body(3)
    answer.pause()
    answer.resume()
    answer.abort()
    assert isinstance(answer.inside, Inside)
    assert answer.inside.asked == ["start", ("expect_body", 3), "pause", "resume", "abort"]


@pytest.mark.parametrize(
    ("pieces", "chat_id"),
    [
        ([chunk_event("x"), DONE], "chatcmpl-1"),
        ([b": hello\n\n" + chunk_event("x")[:10], chunk_event("x")[10:], b'data: {"id":"other"}\n\n'], "chatcmpl-1"),
        ([b"data: nonsense\n\n", chunk_event("x")], "chatcmpl-1"),
        ([b'data: {"id":"","choices":[]}\n\n' + b"data: {}\n\n" + chunk_event("x")], "chatcmpl-1"),
        ([b'data: {"x":"' + b"x" * 1000 + b'"}\n\n'] * (MAX_ID_BYTES // 1000) + [chunk_event("x")], None),
        ([b'data: {"id":7}\n\n'], None),
        ([b"data: " + b"x" * (MAX_ID_BYTES + 1), chunk_event("x")], None),
        ([b'data: {"id":"' + b"x" * 2000 + b'"}\n\n'], None),
    ],
)
def test_the_id_of_a_stream_is_the_first_that_an_event_has(pieces: list[bytes], chat_id: str | None) -> None:
    """By it the answer's signature can be asked for; what has none, or one of any length, cannot be."""
    answer = plain()
    begin(answer, response(200, STREAM), *pieces)
    answer.end()
    assert answer.chat_id == chat_id
    assert heard(answer).bytes == b"".join(pieces)


@pytest.mark.parametrize(
    ("body", "chat_id"),
    [
        (completion("x"), "chatcmpl-1"),
        (b'{"id":null}', None),
        (b'["id"]', None),
        (b"\xff", None),
        (b"[" * 5000, None),
        (b'{"id":"x"}' + b" " * MAX_ID_BYTES, None),
    ],
)
def test_the_id_of_a_whole_answer(body: bytes, chat_id: str | None) -> None:
    """However it comes."""
    in_pieces, at_once = plain(), plain()
    begin(in_pieces, response(200, JSON), body[:5], *([body[5:]] if body[5:] else []))
    in_pieces.end()
    at_once.answer(response(200, JSON), body)
    assert (in_pieces.chat_id, at_once.chat_id) == (chat_id, chat_id)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("status", "told", "code"),
    [(401, 502, "chutes_upstream_auth"), (403, 502, "chutes_upstream_auth"), (402, 503, "chutes_upstream_quota")],
)
def test_what_concerns_the_operators_key_is_not_the_clients_fault(
    sealed: bool, at_once: bool, status: int, told: int, code: str
) -> None:
    """An error of our own ends the request, whatever the upstream says, and no other candidate is tried."""
    case = Case()
    answer = case.answer if sealed else plain()
    head = response(status, JSON, (b"WWW-Authenticate", b"Bearer"))
    if at_once:
        answer.answer(head, b"your key")
    else:
        answer.head(head)
    assert heard(answer).events == ["failed"]
    assert heard(answer).refused == (told, code, False, code)
    assert isinstance(answer.inside, Inside)
    assert answer.inside.asked == ["abort"]
    case.nothing_follows()
