"""Tell the one ordinary chat request from everything else, and read its head in one go.

Ordinary is ``POST /v1/chat/completions HTTP/1.1`` with plain header lines, none repeated, one Host, one
Content-Length, and nothing that changes how the message is read or answered. Whatever is not exactly that is none
of this module's business: the reference path judges it, so odd syntax is never judged twice.
"""

import re

import attrs

from chutes_autopilot.wire.headers import DROPPED_FROM_REQUESTS, EXPLAIN, OWN_PREFIX, REQUEST_ID, header_lines

MAX_HEAD_BYTES = 8192
"""A longer head is not ordinary; well below what the reference path accepts."""

REQUEST_LINE_START = b"POST /v1/chat/completions"

_HEAD = re.compile(
    rb"POST (/v1/chat/completions(?:\?[\x21\x22\x24-\x7e]*)?) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n){1,100})\r\n"
)
_FIELD = re.compile(rb"([^:]+):[ \t]*([^\r]*?)[ \t]*\r\n")
_HOST = re.compile(rb"[0-9A-Za-z._~!$&'()*+,;=%:\[\]-]+")
_LENGTH = re.compile(rb"(?i:\ncontent-length):[ \t]*([0-9]{1,9})\r\n")
MAX_LENGTH_DIGITS = 9
_NOT_ORDINARY = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"trailer", b"te", b"proxy-connection"})

_AS_THEY_ARE = (b"Accept-Encoding", b"identity")

READ_HEADERS = (
    b"authorization",
    b"x-forwarded-for",
    b"x-session-id",
    b"x-session-affinity",
    b"traceparent",
    b"tracestate",
    REQUEST_ID,
    EXPLAIN,
)


@attrs.frozen
class OrdinaryHead:
    """The head of an ordinary request.

    :param target: as received.
    :param upstream_fields: the header lines that go upstream, but for the request's id and what frames it.
    :param index: lower-case name to value of the headers that this gateway reads.
    :param before: the head up to the digits of its length.
    :param after: the head from there to its end.
    """

    target: bytes
    upstream_fields: bytes
    index: dict[bytes, bytes]
    before: bytes
    after: bytes

    def framing(self, data: bytes) -> tuple[int, int] | None:
        """The body's length and the offset of its first byte, where ``data`` begins with this head but for the length.

        The requests of one connection mostly differ in nothing else, so that each head need not be read anew.
        """
        if not data.startswith(self.before):
            return None
        start, after = len(self.before), self.after
        end = data.find(b"\r", start, start + MAX_LENGTH_DIGITS + 1)
        digits = data[start:end]
        if not digits.isdigit() or not data.startswith(after, end):
            return None
        return int(digits), end + len(after)


def read_ordinary_head(data: bytes) -> OrdinaryHead | None:
    """The head at the start of ``data`` where it is complete and ordinary in every respect, else None."""
    head = _HEAD.match(data)
    if head is None or head.end() > MAX_HEAD_BYTES:
        return None
    fields = _FIELD.findall(head[2])
    index = {name.lower(): value for name, value in fields}
    if len(index) != len(fields) or OWN_PREFIX in head[2].lower():
        return None
    length = _LENGTH.search(data, 0, head.end())
    if length is None or not _HOST.fullmatch(index.get(b"host", b"")) or not _NOT_ORDINARY.isdisjoint(index):
        return None
    if index.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    passing = [field for field, name in zip(fields, index, strict=True) if name not in DROPPED_FROM_REQUESTS]
    index = {name: index[name] for name in READ_HEADERS if name in index}
    before, after = data[: length.start(1)], data[length.end(1) : head.end()]
    return OrdinaryHead(head[1], header_lines((*passing, _AS_THEY_ARE)), index, before, after)
