import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.wire.first_event import ANSWERS, MAX_BYTES, MAX_EVENTS, FirstEvent, event_kind, judge_answer

USAGE = {"prompt_tokens": 11, "completion_tokens": 0}


def chunk(delta: Any = None, finish: str | None = None, **members: Any) -> Any:
    return {
        "id": "c",
        "choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}],
        "usage": USAGE,
        **members,
    }


ROLE = chunk({"role": "assistant", "content": ""})
TEXT = chunk({"content": "Hel"})
ERROR = {"error": {"message": "too long", "code": 400}}


def event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (ROLE, "role"),
        (chunk({"role": "assistant", "content": None, "tool_calls": []}), "role"),
        (TEXT, "text"),
        (chunk({"content": " "}), "text"),
        (chunk({"reasoning_content": "hm"}), "text"),
        (chunk({"reasoning": "hm"}), "text"),
        (chunk({"refusal": "no"}), "text"),
        (chunk({"content": [{"type": "text", "text": "a"}]}), "text"),
        (chunk({"content": ""}, text="x"), "role"),
        ({"choices": [{"text": "Hel", "finish_reason": None}]}, "text"),
        (chunk({"tool_calls": [{"index": 0, "id": "t"}]}), "tool_call"),
        (chunk({"function_call": {"name": "f"}}), "tool_call"),
        (chunk(finish="stop"), "finish"),
        (chunk(finish=""), "role"),
        ({"choices": [{"delta": {}}, {"delta": {"content": "b"}}]}, "text"),
        ({"choices": [{"delta": {}, "finish_reason": "stop"}, {"delta": {"content": "b"}}]}, "text"),
        ({"choices": [], "usage": USAGE}, "usage"),
        ({"choices": [], "usage": None}, "other"),
        ({"id": "c"}, "other"),
        (ERROR, "error"),
        ({"error": "overloaded"}, "error"),
        (chunk({"content": "x"}, error=None), "text"),
        ({"object": "error", "message": "bad"}, "error"),
        ({"detail": "No instances"}, "error"),
        (b"[DONE]", "done"),
        (b"[DONE] ", "done"),
        (b"", "other"),
        (b"not json", "other"),
        (b"[]", "other"),
        (b'{"choices":"x"}', "other"),
        (b'{"choices":[{"delta":5}]}', "other"),
        (b'{"id":"\xff"}', "other"),
        (b"[" * 5000, "other"),
    ],
)
def test_what_an_event_is(data: Any, kind: str) -> None:
    """Text of any sort, tool calls, finishes, errors, the end, and what is nothing of these."""
    assert event_kind(data if isinstance(data, bytes) else json.dumps(data).encode()) == kind


BEGINNINGS = [
    ([TEXT], "text"),
    ([ROLE, TEXT], "text"),
    ([ROLE, chunk({"tool_calls": [{"id": "t"}]})], "tool_call"),
    ([ROLE, chunk(finish="stop"), b"[DONE]"], "finish"),
    ([ERROR, b"[DONE]"], "error"),
    ([ROLE, ERROR], "error"),
    ([{"choices": [], "usage": USAGE}, b"[DONE]"], "empty"),
    ([ROLE, b"[DONE]"], "empty"),
    ([], "empty"),
    ([ROLE], "empty"),
]


def judged(stream: bytes, cuts: list[int]) -> tuple[str, FirstEvent]:
    first = FirstEvent()
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    for start, end in pairwise(edges):
        if start < end and (verdict := first.feed(stream[start:end])) is not None:
            return verdict, first
    return first.end(), first


@given(
    st.sampled_from(BEGINNINGS),
    st.lists(st.integers(0, 2000), max_size=6),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.booleans(),
)
def test_how_a_stream_began(began: tuple[list[Any], str], cuts: list[int], line_end: bytes, comment: bool) -> None:
    """The verdict does not depend on pieces, line ends and comments, and no byte that was read is lost."""
    events, beginning = began
    stream = (b": waiting\n\n" if comment else b"") + b"".join(map(event, events))
    stream = stream.replace(b"\n", line_end)
    verdict, first = judged(stream, cuts)
    assert verdict == beginning
    assert stream.startswith(held := first.take())
    assert bool(held) == bool(stream)
    assert first.take() == b""
    if verdict == "error":
        assert json.loads(first.error) == ERROR


def test_nothing_is_known_before_the_event_is_whole() -> None:
    """Half an event commits nothing, however much text it holds."""
    first = FirstEvent()
    assert first.feed(b": hello\n\n" + event(ROLE)) is None
    assert first.feed(event(TEXT)[:-1]) is None
    assert first.feed(b"\n") == "text"
    assert (first.events, first.comments) == (2, 1)


def test_what_comes_after_the_verdict_is_held_with_the_rest() -> None:
    """Until it is taken, the stream stays whole."""
    first = FirstEvent()
    first.feed(event(TEXT))
    assert first.feed(b"more") == "text"
    assert first.take() == event(TEXT) + b"more"


@pytest.mark.parametrize(
    "tail",
    [
        b'{"error":"Unhandled exception during response stream: x"}',
        b'\n{ "error" : {}}\n',
        b'{"detail": "No instances"}',
    ],
)
def test_a_bare_error_is_found_at_the_end(tail: bytes) -> None:
    """What the platform appends without framing is an error, though no parser of events sees it."""
    first = FirstEvent()
    assert first.feed(event(ROLE) + tail) is None
    assert first.end() == "error"
    assert json.loads(first.error)


@pytest.mark.parametrize("piece", [event(ROLE), event(b"x")])
def test_a_stream_without_an_end_of_nothing_is_believed(piece: bytes) -> None:
    """After MAX_EVENTS it is relayed as it is, whether they come together or one by one."""
    together, singly = FirstEvent(), FirstEvent()
    assert together.feed(piece * (MAX_EVENTS - 1)) is None
    assert together.feed(piece * 2) == "unclear"
    assert [singly.feed(piece) for _ in range(MAX_EVENTS)] == [None] * (MAX_EVENTS - 1) + ["unclear"]


@pytest.mark.parametrize("piece", [b": " + b"x" * 1000 + b"\n", b"x" * 1000])
def test_held_bytes_are_bounded(piece: bytes) -> None:
    """Comments or an endless line are held back up to MAX_BYTES and then believed."""
    first, size = FirstEvent(), 0
    while first.feed(piece) is None:
        size += len(piece)
        assert size < MAX_BYTES
    assert len(first.take()) <= MAX_BYTES + len(piece)


def test_an_event_over_the_limit_is_believed_unless_an_answer_came_before_it() -> None:
    """What was complete before the large event still counts."""
    large = b"data: " + b"x" * MAX_BYTES + b"\n\n"
    assert FirstEvent().feed(large) == "unclear"
    assert FirstEvent().feed(event(ERROR) + large) == "error"


@given(st.lists(st.binary(max_size=40) | st.sampled_from([event(ROLE), event(TEXT), b"data:", b"\n", b"\r", b"{"])))
def test_any_bytes_are_judged(pieces: list[bytes]) -> None:
    """No stream ends unjudged, and the verdict never changes."""
    first = FirstEvent()
    verdicts = {verdict for piece in pieces if (verdict := first.feed(piece)) is not None}
    verdicts.add(first.end())
    assert len(verdicts) == 1
    assert verdicts <= {*ANSWERS, "error", "empty"}


@pytest.mark.parametrize(
    ("body", "beginning"),
    [
        ({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}, "text"),
        ({"choices": [{"message": {"content": None, "tool_calls": [{}]}}]}, "tool_call"),
        ({"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}, "finish"),
        (ERROR, "error"),
        (b" \n", "empty"),
        (b"plain text", "unclear"),
        ({"data": []}, "unclear"),
    ],
)
def test_a_whole_answer(body: Any, beginning: str) -> None:
    """An error or nothing inside a 200 is told from an answer also where it does not stream."""
    assert judge_answer(body if isinstance(body, bytes) else json.dumps(body).encode()) == beginning
