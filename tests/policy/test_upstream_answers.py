import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.policy.rate_limits import KINDS, SENTENCES, RateLimit, read_rate_limit, retry_after_seconds
from chutes_autopilot.policy.upstream_errors import UpstreamError, read_error_event, read_upstream_error

NOW = 1_800_000_000.0
PAGE = b"<html>\n<head><title>429 Too Many Requests</title></head>\n<body><hr><center>nginx</center></body>\n</html>\n"
CAPACITY = "Infrastructure is at maximum capacity, try again later"


def limit(body: Any, content_type: bytes = b"application/json", retry_after: bytes | None = None) -> RateLimit:
    index = {b"content-type": content_type} | ({} if retry_after is None else {b"retry-after": retry_after})
    return read_rate_limit(index, body if isinstance(body, bytes) else json.dumps(body).encode(), NOW)


@pytest.mark.parametrize(
    ("body", "content_type", "kind", "is_json"),
    [
        (PAGE, b"text/html", "edge", False),
        (PAGE, b"text/html; charset=utf-8", "edge", False),
        (b"\r\n" + PAGE, b"", "edge", False),
        (b"", b"Text/HTML", "edge", False),
        ({"detail": CAPACITY}, b"application/json", "capacity", True),
        ({"detail": "Instance is at maximum capacity, try again later"}, b"application/json", "capacity", True),
        ({"detail": CAPACITY + "!"}, b"application/json", "unknown", True),
        ({"detail": "Free models limit reached for today - maintain"}, b"application/json", "account", True),
        ({"detail": "Invalid free model, please select"}, b"application/json", "account", True),
        ({"detail": {"object": "error", "code": 429}}, b"application/json", "engine", True),
        ({"detail": {"code": 400}}, b"application/json", "unknown", True),
        ({"detail": {"code": "429"}}, b"application/json", "unknown", True),
        ({"detail": "Rate limit exceeded. Try again later."}, b"application/json", "unknown", True),
        ({"error": CAPACITY}, b"application/json", "unknown", True),
        ([CAPACITY], b"application/json", "unknown", True),
        (b"slow down", b"text/plain", "unknown", False),
        (b"", b"", "unknown", False),
        (b"[" * 20_000, b"application/json", "unknown", False),
        (b'{"detail": "\xff"}', b"application/json", "unknown", False),
    ],
)
def test_the_kinds_of_429(body: Any, content_type: bytes, kind: str, is_json: bool) -> None:
    """Headers and body tell the edge, capacity, the account and the engine apart; the rest is unknown."""
    found = limit(body, content_type)
    assert (found.kind, found.json) == (kind, is_json)
    assert SENTENCES[found.kind]


@pytest.mark.parametrize(
    ("found", "wait", "moves_on"),
    [
        (RateLimit("edge"), None, False),
        (RateLimit("edge", 1.0), None, False),
        (RateLimit("account", 1.0, json=True), None, False),
        (RateLimit("capacity", None, json=True), 0.0, True),
        (RateLimit("capacity", 5.0, json=True), 5.0, True),
        (RateLimit("capacity", 5.1, json=True), None, True),
        (RateLimit("engine", 2.0, json=True), 2.0, True),
        (RateLimit("unknown", 5.0, json=True), 5.0, True),
        (RateLimit("unknown", 5.1, json=True), None, False),
        (RateLimit("unknown", None, json=True), None, False),
        (RateLimit("unknown", 1.0), None, False),
    ],
)
def test_what_a_429_allows(found: RateLimit, wait: float | None, moves_on: bool) -> None:
    """A full model may be asked again soon or another in its place; a ban or a quota never."""
    assert (found.wait(5.0), found.moves_on(5.0)) == (wait, moves_on)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"3", 3.0),
        (b" 0 ", 0.0),
        (b"9" * 5000, 999_999_999.0),
        (b"Fri, 15 Jan 2027 08:00:07 GMT", 7.0),
        (b"Fri, 15 Jan 2021 08:00:07 GMT", 0.0),
        (b"", None),
        (b"-3", None),
        (b"1.5", None),
        (b"soon", None),
        (b"\xb2", None),
        (b"Fri, 99 Jan 2027 08:00:07 GMT", None),
        (None, None),
    ],
)
def test_retry_after(value: bytes | None, seconds: float | None) -> None:
    """Seconds and dates are read, everything else is as if it were absent."""
    assert retry_after_seconds(value, NOW) == seconds
    assert limit({}, retry_after=value).retry_after == seconds


CONTEXT_TEXTS = [
    ("This model's maximum context length is 40960 tokens. However, you requested 41234 tokens (41134 in the", 41234),
    ("The input (41234 tokens) is longer than the model's context length (40960 tokens).", 41234),
    ("Requested token count exceeds the model's maximum context length of 40960 tokens.", 40960),
    ("context_length_exceeded", 0),
    ("prompt is too long: 41234 tokens > 40960 maximum", 41234),
    ('Invalid request: Invalid request: {"object":"error","message":"context length exceeded","code":400}', 0),
]


@pytest.mark.parametrize(("text", "tokens"), CONTEXT_TEXTS)
@pytest.mark.parametrize("wrapped", [lambda t: {"detail": t}, lambda t: {"error": {"message": t, "code": 400}}, str])
def test_a_context_that_is_too_short(text: str, tokens: int, wrapped: Any) -> None:
    """However an engine words and wraps it, it calls for a longer context, with the tokens it names."""
    body = wrapped(text)
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    found = read_upstream_error(400, data)
    assert found == UpstreamError("context_length", tokens)
    assert found.move == "larger"


@pytest.mark.parametrize(
    ("status", "detail", "kind", "move"),
    [
        (400, "File content not currently supported", "refused", "final"),
        (400, "Blocked by the content_filter", "content_filter", "final"),
        (400, {"code": "content_policy_violation"}, "content_filter", "final"),
        (401, "Invalid token.", "auth", "final"),
        (402, {"message": "Quota exceeded"}, "payment", "final"),
        (404, "model not found: org/unknown", "refused", "final"),
        (422, [{"msg": "bad value", "input": "what is a context length?"}], "refused", "final"),
        (426, "no TEE", "refused", "final"),
        (429, CAPACITY, "rate_limited", "rate_limit"),
        (500, "No infrastructure available to serve request", "no_instance", "next"),
        (500, "exhausted all available targets to no avail", "no_instance", "next"),
        (500, "anything", "server_error", "again"),
        (500, "maximum context length", "server_error", "again"),
        (501, "", "other", "final"),
        (502, "", "bad_gateway", "again"),
        (503, "No instances available (yet)", "unavailable", "next"),
        (504, PAGE.decode(), "gateway_timeout", "again"),
        (519, "", "other", "final"),
        (520, "", "edge_error", "again"),
        (524, "", "edge_error", "again"),
        (525, "", "other", "final"),
        (302, "", "other", "final"),
    ],
)
def test_error_answers(status: int, detail: Any, kind: str, move: str) -> None:
    """Status and text together say whose fault it is and what may help."""
    found = read_upstream_error(status, json.dumps({"detail": detail}).encode())
    assert (found.kind, found.move) == (kind, move)


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (
            {"error": {"message": "longer than the model's context length (40960 tokens)", "code": 400}},
            "context_length",
        ),
        ({"error": {"message": "bad", "code": "400"}}, "refused"),
        ({"error": {"message": "busy", "status": 503}}, "unavailable"),
        ({"error": "Unhandled exception"}, "server_error"),
        (
            {"error": {"message": "maximum context length is 5 tokens", "code": "context_length_exceeded"}},
            "server_error",
        ),
        ({"object": "error", "message": "no", "code": 404}, "refused"),
        ({"detail": {"code": 429}}, "rate_limited"),
        ({"error": {"code": True}}, "server_error"),
    ],
)
def test_errors_inside_a_200(event: Any, kind: str) -> None:
    """They are judged by the status they name, and as a 500 where they name none."""
    assert read_error_event(json.dumps(event).encode()).kind == kind


@given(
    st.integers(100, 999), st.binary(max_size=200) | st.builds(lambda d: json.dumps({"detail": d}).encode(), st.text())
)
def test_no_answer_is_left_unjudged(status: int, body: bytes) -> None:
    """Whatever the upstream writes, there is a kind and a move, and only the known statuses are tried elsewhere."""
    move = read_upstream_error(status, body).move
    assert status in (400, 413, 422, 429, 500, 502, 503, 504, *range(520, 525)) or move == "final"
    assert limit(body).kind in KINDS
    read_error_event(body)
