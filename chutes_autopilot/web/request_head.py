"""Read a request's head strictly: what two servers could read in two ways is refused.

A request is smuggled where a proxy in front and this gateway disagree on where a message ends. Every known way of
making them disagree is odd syntax that some server forgives, so nothing is forgiven here (RFC 9112 sections 2.2, 3,
5, 6 and 11.2).
"""

import re

import attrs

from chutes_autopilot.errors import ApiError
from chutes_autopilot.wire.headers import Header

MAX_REQUEST_LINE = 8192
"""Bytes; RFC 9112 section 3 asks for at least 8000."""

MAX_HEAD_BYTES = 32768
MAX_HEADERS = 100

FORBIDDEN = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""Control characters: none belongs in a head, apart from the tab and the line ends."""

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) (HTTP/1\.[01])")
_HOST = re.compile(rb"[0-9A-Za-z._~!$&'()*+,;=%:\[\]-]*")
_MAX_LENGTH_DIGITS = 64  # more than any length needs and fewer than int() refuses


@attrs.frozen
class RequestLine:
    """Method, target and version as received; the version is HTTP/1.0 or HTTP/1.1."""

    method: bytes
    target: bytes
    version: bytes


@attrs.frozen
class RequestHead:
    """What the header lines say.

    :param length: of the body in bytes; None: chunked.
    :param persistent: whether another request may follow on the connection.
    :param wants_continue: the client waits for 100 Continue before it sends the body.
    """

    headers: tuple[Header, ...]
    length: int | None
    persistent: bool
    wants_continue: bool


def malformed(what: str) -> ApiError:
    """The refusal of a request that is not valid HTTP/1.1; ``what`` names the fault without quoting it."""
    return ApiError("bad_request", f"The request is not valid HTTP/1.1: {what}.")


def uri_too_long() -> ApiError:
    """The refusal of a request line longer than MAX_REQUEST_LINE."""
    return ApiError("uri_too_long", f"The request line is longer than {MAX_REQUEST_LINE} bytes.")


def headers_too_large() -> ApiError:
    """The refusal of a head that is longer than MAX_HEAD_BYTES or has more than MAX_HEADERS lines."""
    return ApiError(
        "headers_too_large",
        f"The request's headers are more than {MAX_HEADERS}, or longer than {MAX_HEAD_BYTES} bytes in all.",
    )


def read_request_line(line: bytes) -> RequestLine:
    """The first line, without its line end. Raises ApiError ``uri_too_long`` or ``bad_request``."""
    if len(line) > MAX_REQUEST_LINE:
        raise uri_too_long()
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        raise malformed("its first line is not METHOD TARGET HTTP/1.1")
    return RequestLine(found[1], found[2], found[3])


def read_header_lines(lines: list[bytes], version: bytes) -> RequestHead:
    """The header lines, without their line ends. Raises ApiError ``bad_request`` or ``expectation_failed``."""
    headers = tuple(_header(line) for line in lines)
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(value)
    _check_host(values.get(b"host", []), version)
    expected = _tokens(values.get(b"expect", []))
    if not expected <= {b"100-continue"}:
        raise ApiError("expectation_failed", "The only expectation that can be met is 100-continue.")
    modern = version == b"HTTP/1.1"
    return RequestHead(
        headers,
        _length(values.get(b"content-length", []), values.get(b"transfer-encoding", []), version),
        persistent=modern and b"close" not in _tokens(values.get(b"connection", [])),
        wants_continue=modern and bool(expected),
    )


def _header(line: bytes) -> Header:
    if line.startswith((b" ", b"\t")):
        raise malformed("a header line begins with a blank")
    name, colon, value = line.partition(b":")
    if not colon or _TOKEN.fullmatch(name) is None:
        raise malformed("a header line is not NAME: VALUE")
    if FORBIDDEN.search(value):
        raise malformed("a header value holds a control character")
    return name, value.strip(b" \t")


def _check_host(hosts: list[bytes], version: bytes) -> None:
    """RFC 9112 section 3.2: exactly one Host, and a valid one; HTTP/1.0 may do without."""
    if len(hosts) > 1 or (not hosts and version == b"HTTP/1.1"):
        raise malformed("it needs exactly one Host header")
    if hosts and _HOST.fullmatch(hosts[0]) is None:
        raise malformed("its Host is not a host name")


def _length(lengths: list[bytes], codings: list[bytes], version: bytes) -> int | None:
    """The body's framing, which must be said once and in one way (RFC 9112 section 6)."""
    if codings:
        if lengths:
            raise malformed("it has both Content-Length and Transfer-Encoding")
        if [coding.lower() for coding in codings] != [b"chunked"] or version != b"HTTP/1.1":
            raise malformed("the only transfer coding is chunked, once, in HTTP/1.1")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > _MAX_LENGTH_DIGITS:
        raise malformed("its Content-Length is not one number")
    return int(lengths[0])


def _tokens(values: list[bytes]) -> set[bytes]:
    """The members of a list header, lower case (RFC 9110 section 5.6.1)."""
    return {token.strip(b" \t").lower() for value in values for token in value.split(b",")} - {b""}
