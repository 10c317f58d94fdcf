"""Which headers pass through the gateway."""

import pytest

from chutes_autopilot.wire.headers import (
    acceptable_request_id,
    downstream_response_headers,
    upstream_request_headers,
)


def test_a_request_keeps_its_end_to_end_headers_in_order() -> None:
    """Everything passes but what ends here; Accept-Encoding becomes identity and the request id is ours."""
    received = [
        (b"Host", b"gateway"),
        (b"Authorization", b"Bearer t"),
        (b"X-Two", b"1"),
        (b"Connection", b"keep-alive, X-Private"),
        (b"x-private", b"hop"),
        (b"Content-Type", b"application/json"),
        (b"Content-Length", b"12"),
        (b"Transfer-Encoding", b"chunked"),
        (b"TE", b"trailers"),
        (b"Keep-Alive", b"5"),
        (b"Proxy-Authorization", b"p"),
        (b"Upgrade", b"h2c"),
        (b"Expect", b"100-continue"),
        (b"X-Chutes-Trace", b"true"),
        (b"X-Chutes-Autopilot-Selected", b"spoof"),
        (b"Accept-Encoding", b"gzip"),
        (b"X-Request-ID", b"bad id"),
        (b"Cookie", b"a=1"),
        (b"X-Two", b"2"),
    ]
    assert upstream_request_headers(received, "rid") == [
        (b"Authorization", b"Bearer t"),
        (b"X-Two", b"1"),
        (b"Content-Type", b"application/json"),
        (b"Cookie", b"a=1"),
        (b"X-Two", b"2"),
        (b"Accept-Encoding", b"identity"),
        (b"X-Request-Id", b"rid"),
    ]


def test_a_response_keeps_its_end_to_end_headers() -> None:
    """Duplicates and order stay; hop-by-hop fields and the upstream's claims about this gateway go."""
    received = [
        (b"Set-Cookie", b"a=1"),
        (b"Connection", b"close, X-Hop"),
        (b"X-Hop", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Set-Cookie", b"b=2"),
        (b"X-Request-Id", b"theirs"),
        (b"x-chutes-autopilot-attempts", b"99"),
        (b"Content-Encoding", b"gzip"),
    ]
    assert downstream_response_headers(received) == [
        (b"Set-Cookie", b"a=1"),
        (b"Set-Cookie", b"b=2"),
        (b"Content-Encoding", b"gzip"),
    ]


@pytest.mark.parametrize(("status", "passes"), [(200, True), (204, False), (205, True), (304, True)])
def test_an_answer_without_content_has_no_length(status: int, passes: bool) -> None:
    """RFC 9110 section 8.6 forbids it for a 204; that of a 304 is of the answer that a 200 would have had."""
    received = [(b"Content-Length", b"0"), (b"ETag", b"x")]
    assert downstream_response_headers(received, status) == received[not passes :]


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        (None, None),
        (b"a-1_b.c:D", "a-1_b.c:D"),
        (b"x" * 128, "x" * 128),
        (b"x" * 129, None),
        (b"", None),
        (b"a b", None),
        (b"a\n", None),
        ("é".encode(), None),
    ],
)
def test_a_request_id_is_accepted_when_it_is_safe_to_log(value: bytes | None, accepted: str | None) -> None:
    """1 to 128 characters of A-Z a-z 0-9 . _ : - and nothing else."""
    assert acceptable_request_id(value) == accepted
