"""Reading an answer as an SDK does."""

import json
from typing import Any

import pytest

from chutes_autopilot.demo.completions import (
    DONE,
    Completion,
    engine_error_event,
    malformed_event,
    stream_pieces,
    unframed_error_tail,
)
from chutes_autopilot.selftest.reading import NO_JSON, End, Heard, read_answer

ANSWER = Completion("id", "model", 0, 3)
PIECES = tuple(stream_pieces(ANSWER))
ERROR = b'\n\ndata: {"error": {"message": "cut", "type": "server_error", "code": "upstream_stream_truncated"}}\n\n'


def heard(*pieces: bytes, status: int = 200, end: End = End.CLEAN) -> Heard:
    return read_answer(status, b"".join(pieces), end, 1.0)


@pytest.mark.parametrize(
    ("pieces", "text", "finished", "error"),
    [
        (PIECES, "This is a", True, ""),
        ((b"".join(PIECES).replace(b"\n", b"\r\n"),), "This is a", True, ""),
        ((*PIECES[:-1], PIECES[-1].removesuffix(DONE)), "This is a", True, ""),
        ((PIECES[0], b": ping\n\n", DONE), "This", True, ""),
        (PIECES[:2], "This is", False, ""),
        ((PIECES[0], PIECES[1][:-1]), "This", False, ""),
        ((PIECES[0], unframed_error_tail()), "This", False, ""),
        ((PIECES[0], ERROR), "This", False, "upstream_stream_truncated"),
        ((PIECES[0], PIECES[1][:40], ERROR), "This", False, NO_JSON),
        ((engine_error_event(),), "", False, "500"),
        ((PIECES[0], malformed_event(ANSWER), *PIECES[1:]), "This", False, NO_JSON),
        ((b'data: ["no", "chunk"]\n\n',), "", False, NO_JSON),
        ((b'data: {"error": true}\n\n',), "", False, "error"),
        ((), "", False, ""),
    ],
)
def test_a_stream(pieces: tuple[bytes, ...], text: str, finished: bool, error: str) -> None:
    """Text up to the end, or to the first event that makes an SDK raise; half an event and a bare text are nothing."""
    got = heard(*pieces)
    assert (got.text, got.finished, got.error, got.end, got.body) == (text, finished, error, End.CLEAN, b"")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"error": {"code": "no_candidates", "type": "server_error"}}, "no_candidates"),
        ({"error": {"type": "server_error"}}, "server_error"),
        ({"detail": "Infrastructure is at maximum capacity"}, ""),
        ([], ""),
    ],
)
def test_an_error_answer(body: Any, error: str) -> None:
    """Its code where it has OpenAI's shape, and the body as it came."""
    raw = json.dumps(body).encode()
    assert heard(raw, status=503) == Heard(503, End.CLEAN, 1.0, error=error, body=raw)


def test_a_page() -> None:
    """HTML is kept, and says nothing."""
    assert heard(b"<html>", status=429) == Heard(429, End.CLEAN, 1.0, body=b"<html>")
