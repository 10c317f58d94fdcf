"""Which headers pass through a gateway and which end at it (RFC 9110 section 7.6.1)."""

import re
from collections.abc import Iterable, Sequence

Header = tuple[bytes, bytes]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that belong to one connection, lower case; RFC 9110 section 7.6.1 and, for trailer, section 6.6.2."""

SELECTED = b"x-chutes-autopilot-selected"
SKIPPED = b"x-chutes-autopilot-skipped"
EXPLAIN = b"x-chutes-autopilot-explain"
ATTEMPTS = b"x-chutes-autopilot-attempts"
REQUEST_ID = b"x-request-id"
OWN_PREFIX = b"x-chutes-autopilot-"

DROPPED_FROM_REQUESTS = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"x-chutes-trace",
    b"accept-encoding",
    REQUEST_ID,
}
"""Request fields that end here or are written anew, lower case; beside them what Connection names and our own."""

DROPPED_FROM_RESPONSES = HOP_BY_HOP | {REQUEST_ID}
"""Response fields that end here or are written anew, lower case; beside them what Connection names and our own."""

PASSING = frozenset({b"content-length", b"content-type", b"content-encoding", b"date", b"retry-after"})
"""Response fields that a gateway looks at (wire.http1.ResponseHead.index) and that all pass, lower case."""

NO_CONTENT = 204

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def named_by_connection(headers: Iterable[Header]) -> frozenset[bytes]:
    """The lower-case field names that Connection lists; they are hop-by-hop too.

    But for Content-Length: it is meant for every recipient (RFC 9110 section 7.6.1), and without it a body has no end.
    """
    names = [
        name.strip(b" \t").lower()
        for key, value in headers
        if key.lower() == b"connection"
        for name in value.split(b",")
    ]
    return frozenset(filter(None, names)) - {b"content-length"}


def acceptable_request_id(value: bytes | None) -> str | None:
    """The client's own request id where it is safe to pass on and to log, else None."""
    return value.decode() if value is not None and _REQUEST_ID.fullmatch(value) else None


def upstream_request_headers(received: Iterable[Header], request_id: str) -> list[Header]:
    """The headers of the upstream request, in the order received.

    Everything end-to-end passes, Authorization included. What ends here: hop-by-hop fields, Host,
    Content-Length, Expect, X-Chutes-Trace (it turns the answer into trace events) and our own
    ``x-chutes-autopilot-*``. Accept-Encoding becomes ``identity``, so that bytes can be relayed as they are.
    """
    received = list(received)
    dropped = DROPPED_FROM_REQUESTS | named_by_connection(received)
    kept = [
        (name, value)
        for name, value in received
        if (lower := name.lower()) not in dropped and not lower.startswith(OWN_PREFIX)
    ]
    return [*kept, (b"Accept-Encoding", b"identity"), (b"X-Request-Id", request_id.encode())]


def header_lines(headers: Iterable[Header]) -> bytes:
    """The headers as lines, each with its line end, as they stand in a head (RFC 9112 section 5)."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def downstream_response_headers(received: Sequence[Header], status: int = 200) -> list[Header]:
    """The upstream's headers that reach the client, in their order: the end-to-end ones.

    What this gateway writes itself is not among them, nor other ``x-chutes-autopilot-*`` fields, because only this
    gateway can know them. A 204 may have no length (RFC 9110 section 8.6).
    """
    named = [(name.lower(), (name, value)) for name, value in received]
    dropped = DROPPED_FROM_RESPONSES
    if any(lower == b"connection" for lower, _ in named):
        dropped |= named_by_connection(received)
    if status == NO_CONTENT:
        dropped |= {b"content-length"}
    return [header for lower, header in named if lower not in dropped and not lower.startswith(OWN_PREFIX)]
