"""Streams of the Responses and the Messages API: whether they came to their end."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.errors import ApiError
from chutes_autopilot.wire.sse import Verdict
from chutes_autopilot.wire.typed_events import KEPT_BYTES, MESSAGES_ENDS, RESPONSES_ENDS, TypedStreamGuard

DELTA = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n'
LARGE = b'"response":{"output":"' + b"x" * 3 * KEPT_BYTES + b'"}'
STOP = b'event: message_stop\ndata: {"type": "message_stop"}\n\n'


def verdict(stream: bytes, ends: frozenset[str] = RESPONSES_ENDS, size: int = 1 << 20) -> Verdict:
    guard = TypedStreamGuard(ends)
    for at in range(0, len(stream), size):
        guard.feed(stream[at : at + size])
    return guard.verdict()


WHOLE = [
    b'event: response.completed\ndata: {"type":"response.completed"}\n\n',
    b'event: response.failed\r\ndata: {"x":1}\r\n\r\n',
    b'event:response.incomplete\rdata:{"x":1}\r\r',
    b'data: {"sequence_number":1,"type":"response.completed","more":{}}\n\n',
    b'data: {"type":"response.completed",' + LARGE + b"}\n\n",
    b"data: {" + LARGE + b',"sequence_number":4,"type": "response.completed" }\n\n',
    b"event: response.completed\ndata: {" + LARGE + b',"z":0}\n\n',
    b"data: [DONE]\n\n",
    b'event: response.completed\ndata: {"x":1}\r\n\n',
    b'event: response.completed\r\ndata: {"x":1}\r\r\n',
]
NOT_WHOLE = [
    b"",
    DELTA,
    b"event: response.completed\n\n",
    b'event: response.completed\ndata: {"type":"response.completed"}\n',
    b'data: {"type":"response.created",' + LARGE + b',"tools":[{"type":"response.completed"}]}\n\n',
    b'data: {"type":"response.output_text.delta","delta":"\\"type\\":\\"response.completed\\"}"}\n\n',
    b"data: {" + LARGE + b',"delta":"\\"type\\":\\"response.completed\\"}\n\n',
    b": event: response.completed\ndata: 1\n\n",
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    b'{"error":"Unhandled exception during response stream: x"}',
]


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("last", WHOLE)
def test_a_terminal_event_ends_a_stream(last: bytes, size: int) -> None:
    """By its field or by its data, however long it is, wherever its type stands, in pieces of any size."""
    assert verdict(DELTA + last, size=size) == "done"
    assert verdict(b"\xef\xbb\xbf" + last, size=size) == "done"


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("last", NOT_WHOLE)
def test_nothing_else_ends_a_stream(last: bytes, size: int) -> None:
    """Not what only looks like it: in a string, deeper in the data, without data, or not dispatched."""
    assert verdict(DELTA + last, size=size) == "unfinished"


@pytest.mark.parametrize(
    "last",
    [
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n',
        b'event: error\ndata: {"type":"error","code":"x"}\n\n',
        b'data: {"error":{"message":"engine failed"}}\n\n',
    ],
)
def test_an_error_event_is_an_end_too(last: bytes) -> None:
    """Clients raise it, so nothing has to be added behind it."""
    assert verdict(last) == verdict(DELTA + last, MESSAGES_ENDS) == "error"


def test_each_api_has_its_own_end() -> None:
    """message_stop ends messages."""
    assert verdict(DELTA + STOP, MESSAGES_ENDS) == "done"
    assert verdict(WHOLE[0], MESSAGES_ENDS) == "unfinished"


@pytest.mark.parametrize(
    ("pieces", "alive"),
    [
        ([b": ping\n\n"], [False]),
        ([DELTA], [True]),
        ([b"event: ping\n", b'data: {"ty', b'pe":"ping"}', b"\n\n"], [False, True, True, True]),
    ],
)
def test_only_data_keeps_a_stream_alive(pieces: list[bytes], alive: list[bool]) -> None:
    """Comments and names of events do not."""
    guard = TypedStreamGuard(RESPONSES_ENDS)
    assert [guard.feed(piece) for piece in pieces] == alive


@given(
    st.lists(st.sampled_from([*WHOLE, *NOT_WHOLE, b"\r", b"\n", b"\r\n", b"data:", b"x" * 600]), max_size=6), st.data()
)
def test_pieces_do_not_matter(parts: list[bytes], data: st.DataObject) -> None:
    """However a stream is cut into pieces, the verdict is that of the whole."""
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    guard = TypedStreamGuard(RESPONSES_ENDS)
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        guard.feed(stream[start:end])
    assert guard.verdict() == verdict(stream) == verdict(stream, size=1)


def test_the_error_is_an_event_of_its_own_that_both_apis_know() -> None:
    """Behind whatever was left open; with ``type``, and both places where clients look for what happened."""
    guard = TypedStreamGuard(MESSAGES_ENDS)
    event = guard.error_event(ApiError("upstream_stream_truncated", "why"))
    assert verdict(DELTA + b"event: message_delta\ndata: {" + event, MESSAGES_ENDS) == "error"
    name, data = event.strip().split(b"\n")
    said = json.loads(data.removeprefix(b"data: "))
    assert (name, said["type"], said["code"], said["message"]) == (
        b"event: error",
        "error",
        "upstream_stream_truncated",
        "why",
    )
    assert said["error"]["message"] == "why"
