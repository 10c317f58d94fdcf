"""How far a stream of events came, whatever its line ends and wherever it is cut."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.errors import ApiError
from chutes_autopilot.wire.sse import WINDOW_BYTES, StreamGuard, Verdict, is_plain_event_stream


def parsed(stream: bytes) -> tuple[list[str], list[str]]:
    """What a parser after the standard dispatches, the data of each event; and the lines of an event left open."""
    text = stream.decode(errors="replace").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    *lines, last = text.split("\n")
    events: list[str] = []
    pending: list[str] = []
    for line in lines:
        if line:
            pending.append(line)
            continue
        data = [line[5:].removeprefix(" ") for line in pending if line.startswith("data:")]
        if data:
            events.append("\n".join(data))
        pending = []
    return events, [*pending, last]


def expected(stream: bytes) -> Verdict:
    """What a reader of the whole stream says."""
    events, pending = parsed(stream)
    verdict: Verdict = "unfinished"
    for data in events:
        if data.startswith("[DONE]"):
            return "done"
        try:
            event = json.loads(data)
        except ValueError:
            continue  # two events whose CR and LF became one line end
        if event.get("error"):
            return "error"
        if any(choice.get("finish_reason") for choice in event.get("choices") or ()):
            verdict = "finished"
    if any(line.startswith(("data: [DONE]", "data:[DONE]")) for line in pending):
        return "done"  # nothing more could come
    return "error_tail" if any(re.search(r'\{\s*"error"\s*:', line) for line in pending) else verdict


def guarded(*pieces: bytes) -> StreamGuard:
    guard = StreamGuard()
    for piece in pieces:
        guard.feed(piece)
    return guard


def chunk(finish: Any = None, content: str = "x", **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}], **more}


QUOTED = chunk(content='"finish_reason":"stop" data: [DONE]\n\ndata: [DONE]\n\n{"error":"x"}')
EVENTS = st.one_of(
    st.sampled_from(
        [
            chunk(),
            chunk(finish="stop"),
            chunk(finish=""),
            QUOTED,
            chunk(usage={"total_tokens": 1}, error=None),
            {"choices": [], "usage": {"finish_reason": "stop"}},
            {"choices": None},
            {"error": {"message": "m"}},
        ]
    ).flatmap(lambda event: st.sampled_from([json.dumps(event), json.dumps(event, separators=(",", ":"))])),
    st.just(json.dumps(chunk(finish="length"), indent=1)),
    st.sampled_from(["[DONE]", "[DONE] "]),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Whole events and comments with any line ends; one kind of them, or mixed."""
    end = st.just(draw(st.sampled_from(["\n", "\r\n", "\r"]))) if draw(st.booleans()) else st.sampled_from("\n\r")
    lines = ["\ufeff"] if draw(st.booleans()) else [""]
    for data in draw(st.lists(EVENTS, max_size=6)):
        if draw(st.booleans()):
            noise = [": ping", ': "finish_reason":"stop"', ":data: [DONE]", "", "event: x", "id", "retry: 1"]
            lines.append(draw(st.sampled_from(noise)) + draw(end))
        space = draw(st.sampled_from([" ", ""]))
        lines.append("".join(f"data:{space}{line}{draw(end)}" for line in data.split("\n")))
        lines.append(draw(end))
    return "".join(lines).encode()


@given(streams(), st.data())
def test_the_verdict_is_that_of_a_full_parser_wherever_the_stream_is_cut(stream: bytes, data: st.DataObject) -> None:
    """Pieces of any size, an end at any byte: the same answer as from reading and decoding everything."""
    stream = stream[: data.draw(st.integers(0, len(stream)), "cut at")]
    places = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8), "pieces end at"))
    pieces = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    assert guarded(*filter(None, pieces)).verdict() == expected(stream)


@given(streams(), st.data())
def test_an_error_event_behind_any_cut_is_read_as_one(stream: bytes, data: st.DataObject) -> None:
    """What the client's parser dispatches last is the error, whole, whatever line was left open before it."""
    stream = stream[: data.draw(st.integers(0, len(stream)), "cut at")]
    last = json.loads(parsed(stream + StreamGuard().error_event(ApiError("upstream_stream_truncated", "why")))[0][-1])
    error = {"message": "why", "type": "server_error", "param": None, "code": "upstream_stream_truncated"}
    assert last == {"error": error}


TAIL = b'{"error":"Unhandled exception during response stream: x"}'
START = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
FINISH = b'data: {"choices":[{"delta":{},"finish_reason" : "stop"}]}\n\n'


@pytest.mark.parametrize(
    ("stream", "verdict"),
    [
        (b"", "unfinished"),
        (START, "unfinished"),
        (START + FINISH, "finished"),
        (START + FINISH[:-1], "unfinished"),
        (START + b"data: [DONE]", "done"),
        (START + TAIL, "error_tail"),
        (START + TAIL + b"\n\n", "error_tail"),
        (START[:-1] + b'{ "error" : 1}\n', "error_tail"),
        (START + FINISH + TAIL, "error_tail"),
        (START + FINISH + b"data: {" + TAIL, "error_tail"),
        (START + TAIL + b"\n\n" + FINISH, "error_tail"),
        (START + b"data: [DONE]\n\n" + TAIL, "done"),
        (b"data: " + TAIL + b"\n\n", "error"),
        (b"data: not JSON\n\ndata: [1]\n\ndata: " + b"[" * 1500 + b"\n\n", "unfinished"),
        (b"data: \xff\n\n" + FINISH, "finished"),
    ],
)
def test_the_verdict_on_ends_that_happen(stream: bytes, verdict: Verdict) -> None:
    """Platform tails, ends without [DONE], and what is not JSON."""
    assert guarded(stream).verdict() == verdict
    assert guarded(*(stream[i : i + 1] for i in range(len(stream)))).verdict() == verdict


LONG = b'data: {"choices":[{"delta":{"content":"' + b"x" * 3 * WINDOW_BYTES + b'"},"finish_reason":%b}]}\n\n'


@pytest.mark.parametrize(("reason", "verdict"), [(b"null", "unfinished"), (b'"stop"', "finished")])
def test_the_end_of_an_event_of_any_size_is_enough(reason: bytes, verdict: Verdict) -> None:
    """An event larger than what is kept counts by its finish_reason, fed whole or in pieces."""
    event = LONG % reason
    assert guarded(event).verdict() == verdict
    assert guarded(*(event[i : i + 700] for i in range(0, len(event), 700))).verdict() == verdict
    assert guarded(event[:-1]).verdict() == "unfinished"


def test_no_more_than_a_window_is_kept() -> None:
    """A stream of any length, in pieces of any size, costs two windows at most."""
    guard = StreamGuard()
    for size in (1, 300, 5000, 100_000, 10):
        for _ in range(50):
            guard.feed(b"x" * size)
            assert sum(map(len, guard._kept)) <= 2 * WINDOW_BYTES


@pytest.mark.parametrize(
    ("pieces", "alive"),
    [
        ([b"data: 1\n\n"], True),
        ([b"\xef\xbb\xbfdata: 1\n\n"], True),
        ([b": ping\n\n"], False),
        ([b": ping\n\ndata: 1\n\n"], True),
        ([b": ping\r\rdata: 1\r\r"], True),
        ([b"event: x\n", b"data: 1"], True),
        ([b"da", b"ta: 1"], True),
        ([b"data: 1", b"2"], True),
        ([b"id: 1\ndata: 1", b"2"], True),
        ([b": pi", b"ng"], False),
        ([b"data: 1\n: pi", b"ng\n\n"], False),
        ([b"data: 1\n\n", b"\n"], False),
        ([b"data: " + b"1" * 9000, b"2"], True),
    ],
)
def test_only_data_lines_count_as_life(pieces: list[bytes], alive: bool) -> None:
    """Comments, other fields and blank lines are no sign of it; the bytes of a long data line are."""
    guard = guarded(*pieces[:-1])
    assert guard.feed(pieces[-1]) is alive


@pytest.mark.parametrize(
    ("status", "headers", "plain"),
    [
        (200, [(b"Content-Type", b"text/event-stream")], True),
        (201, [(b"x", b"y"), (b"content-type", b"Text/Event-Stream ; charset=utf-8")], True),
        (204, [(b"Content-Type", b"text/event-stream")], False),
        (503, [(b"Content-Type", b"text/event-stream")], False),
        (200, [(b"Content-Type", b"application/json")], False),
        (200, [], False),
        (200, [(b"Content-Type", b"text/event-stream"), (b"Content-Encoding", b"gzip")], False),
    ],
)
def test_which_responses_are_event_streams(status: int, headers: list[tuple[bytes, bytes]], plain: bool) -> None:
    """A 2xx with a body that is text/event-stream and not encoded."""
    assert is_plain_event_stream(status, {name.lower(): value for name, value in headers}) is plain
