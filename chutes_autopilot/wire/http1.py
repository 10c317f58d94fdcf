"""HTTP/1.1 as a client speaks it: the request's bytes, and an incremental, strict response parser (RFC 9112).

Sans-io: bytes in, events out. The parser believes nothing that is ambiguous, because whatever it accepts is
passed on to another reader: bare line feeds, folded lines, control characters in values, conflicting lengths
and unknown transfer codings are all `Invalid`.
"""

import re
from collections.abc import Callable, Mapping

import attrs

from chutes_autopilot.wire.headers import Header, downstream_response_headers, header_lines

MAX_HEAD_BYTES = 65536
MAX_HEADERS = 256
MAX_INFORMATIONAL = 16
MAX_SHAPE_BYTES = 2048
"""The longest head of which a shape is made: that takes a millisecond for a usual one, and a tenth of a second for the
longest head there may be."""
MAX_CHUNK_LINE_BYTES = 4096
MAX_TRAILER_BYTES = 16384

_FIELD_LINES = rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r\n)*"
_FIELDS = re.compile(_FIELD_LINES)
_BARE_LF = re.compile(rb"(?<!\r)\n")
_FIELD = re.compile(rb"([^:]+):[ \t]*([^\r]*?)[ \t]*\r\n")
_HEAD = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n(" + _FIELD_LINES + rb")\r\n")
_PLAIN_HEAD = re.compile(
    rb"HTTP/1\.1 ([2-9][0-9]{2}) ([^\x00-\x08\x0a-\x1f\x7f]*+)\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]++: [^\x00-\x08\x0a-\x1f\x7f]*+\r\n)*+)\r\n"
)
"""A final head written as nearly everybody writes it, with a space after each colon."""

_GATEWAY_FIELD = (
    rb"\n(content-(?:length|type|encoding)|t(?:ransfer-encoding|e|railer)|connection|keep-alive|upgrade|date|"
    rb"proxy-(?:connection|authenticate|authorization)|retry-after|x-request-id|x-chutes-autopilot-[^:]*+): ([^\r]*+)"
)
"""The fields a gateway looks at; of a plain head no others are taken apart. It begins with a byte that is the same in
either case, as the search is then for that byte."""

_FIELDS_IN_LOWER_CASE = re.compile(_GATEWAY_FIELD).findall
_FIELDS_IN_ANY_CASE = re.compile(_GATEWAY_FIELD, re.IGNORECASE).findall

_OF_ANY_VALUE = (b"date", b"x-request-id")
"""Of the fields a gateway looks at those of which it looks at the name alone."""

_WITHOUT_BODY = (b"204", b"304")

_PLAIN_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_SMALL_SIZES = {b"%x" % size: size for size in range(1, 2049)}
"""How the sizes of nearly all chunks are spelled: to look one up takes a third of the time of writing it."""

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")


class _InvalidResponse(Exception):
    """Carries the name of a fault from where it is found to `ResponseParser.receive`."""


class ResponseHead:
    """A complete final response head: status, reason phrase, and fields in the order received.

    :param headers: the fields one by one; made from ``block`` when they are asked for.
    :param block: the same as lines, each with its line end.
    :param index: lower-case name to last value, at least of the fields that a gateway looks at; of a 200 the values may
        be in lower case too, and those of Date and X-Request-Id of another answer.
    :param passing: those lines that reach the client, where that is known already.
    """

    __slots__ = ("_block", "_headers", "index", "passing", "reason", "status")

    def __init__(
        self,
        status: int,
        reason: bytes,
        headers: tuple[Header, ...] | None = None,
        block: bytes | None = None,
        index: Mapping[bytes, bytes] | None = None,
        passing: bytes | None = None,
    ) -> None:
        self.status = status
        self.reason = reason
        self.passing = passing
        self._headers = headers
        self._block = block
        self.index = {name.lower(): value for name, value in self.headers} if index is None else index

    @property
    def headers(self) -> tuple[Header, ...]:
        """Name and value of every field."""
        if self._headers is None:
            self._headers = tuple(_FIELD.findall(self._block or b""))
        return self._headers

    @property
    def block(self) -> bytes:
        """The fields as they stand in a head."""
        if self._block is None:
            self._block = header_lines(self.headers)
        return self._block

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResponseHead) and (self.status, self.reason, self.headers) == (
            other.status,
            other.reason,
            other.headers,
        )

    __hash__ = None  # type: ignore[assignment]  # compared, never kept in a set

    def __repr__(self) -> str:
        return f"ResponseHead({self.status}, {len(self.headers)} fields)"


@attrs.define
class Body:
    """Body bytes without their transfer coding; never empty.

    ``framed`` is the same bytes as they came, where that was in whole chunks without extensions, else nothing.
    """

    data: bytes
    framed: bytes = attrs.field(default=b"", eq=False, repr=False)


@attrs.frozen
class End:
    """The response is complete. ``reusable``: the connection may carry another request (RFC 9112 section 9.3)."""

    reusable: bool


@attrs.frozen
class Invalid:
    """The bytes are not a response that can be relayed; ``fault`` names what is wrong, never the bytes."""

    fault: str


Event = ResponseHead | Body | End | Invalid

REUSABLE = End(reusable=True)
"""The usual end: made once, as one is needed for every response."""


def request_head(method: bytes, target: bytes, host: bytes, fields: bytes, length: int) -> bytes:
    """The head of a request with a body of ``length`` bytes (RFC 9112 section 3).

    :param fields: further header lines, each with its line end.
    """
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%bContent-Length: %d\r\n\r\n" % (method, target, host, fields, length)


class ResponseParser:
    """Reads exactly one response, informational ones before it skipped (RFC 9110 section 15.2).

    ::

        HEAD ──▶ LENGTH ──────────────▶ DONE
             ──▶ CHUNK_LINE ⇄ CHUNK ──▶ TRAILER ──▶ DONE
             ──▶ UNTIL_CLOSE ─(closed)▶ DONE
             ──▶ DONE                       (204, 304, Content-Length: 0)
    """

    _buffer = b""
    _at = 0  # what lies before this offset of the buffer has been read
    _remaining = 0
    _informational = 0
    _trailer_bytes = 0
    _reusable = True
    _until_close = False
    _split = False  # whether whole chunks have been looked for in this read
    _done = False

    def __init__(self) -> None:
        # functions, not bound methods: those would make a cycle, and each parser garbage for the collector
        self._read: Callable[[ResponseParser, list[Event]], bool] = ResponseParser._read_head
        self._between_chunks = False  # all that came has been read, and a chunk's size comes next

    def receive(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes; after an `End` or `Invalid` no more bytes are taken.

        Bytes after the end of the response are a fault of the upstream: its `End` is then not reusable.
        """
        if self._between_chunks:
            parts = data.split(b"\r\n", 2)
            if len(parts) == 3 and not parts[2] and _SMALL_SIZES.get(parts[0]) == len(parts[1]):
                return [Body(parts[1], data)]  # one chunk: an event of a stream
            body, end = _whole_chunks(data)
            if body is not None and end == len(data):
                return [body]
            self._between_chunks = False
        self._split = False
        events: list[Event] = []
        self._buffer = self._buffer[self._at :] + data
        self._at = 0
        try:
            while not self._done and self._read(self, events):
                pass
        except _InvalidResponse as fault:
            self._done = True
            events.append(Invalid(str(fault)))
        if self._done:
            if self._at < len(self._buffer) and events and isinstance(events[-1], End):
                events[-1] = End(reusable=False)
        elif self._at == len(self._buffer):
            self._buffer = b""
            self._at = 0
            self._between_chunks = self._read is ResponseParser._read_chunk_line
        return _joined(events) if len(events) > 2 else events

    def closed(self) -> list[Event]:
        """What the upstream's orderly close means: the end of a body that lasts until then, or a cut."""
        if self._done:
            return []
        self._done = True
        if self._until_close:
            return [End(reusable=False)]
        return [Invalid("the connection closed before the response was complete")]

    def _finish(self, events: list[Event]) -> bool:
        self._done = True
        events.append(REUSABLE if self._reusable else End(reusable=False))
        return False

    def _take_line(self, limit: int, what: str) -> bytes | None:
        end = self._buffer.find(b"\n", self._at, self._at + limit)
        if end < 0:
            if len(self._buffer) - self._at >= limit:
                raise _InvalidResponse(f"the {what} is too long")
            return None
        if end == self._at or self._buffer[end - 1] != 13:
            raise _InvalidResponse(f"a bare line feed in the {what}")
        line = self._buffer[self._at : end - 1]
        self._at = end + 1
        return line

    def _read_head(self, events: list[Event]) -> bool:
        if self._at == 0 and self._read_plain_head(events):
            return True
        head = _HEAD.match(self._buffer, self._at)
        if head is None or head.end() - self._at > MAX_HEAD_BYTES:
            return self._incomplete_head()
        self._at = head.end()
        old, status_text, reason, lines = head.groups()
        headers = _fields(lines)
        status = int(status_text)
        if status < 200:
            self._informational += 1
            if status == 101 or self._informational > MAX_INFORMATIONAL:
                raise _InvalidResponse("an informational response that was not asked for")
            return True
        head_event = ResponseHead(status, reason or b"", headers)
        self._choose_framing(head_event, old == b"0")
        events.append(head_event)
        return True

    def _read_plain_head(self, events: list[Event]) -> bool:
        """Take a head that is plain in every respect; False leaves it to the rest of `_read_head`."""
        plain = _plain_head(self._buffer)
        if plain is None:
            return False
        head, length, self._at = plain
        if length is None:
            self._read = ResponseParser._read_chunk_line
        else:
            self._remaining = length
            self._read = ResponseParser._read_length
        events.append(head)
        return True

    def _incomplete_head(self) -> bool:
        """Wait for more of the head, unless what is here can never become one."""
        if not b"HTTP/1.".startswith(self._buffer[self._at : self._at + 7]):
            raise _InvalidResponse("the answer is not HTTP/1")
        if self._buffer.find(b"\r\n\r\n", self._at) >= 0 or _BARE_LF.search(self._buffer, self._at):
            raise _InvalidResponse("the response head is malformed")
        if len(self._buffer) - self._at >= MAX_HEAD_BYTES:
            raise _InvalidResponse("the response head is too long")
        return False

    def _choose_framing(self, head: ResponseHead, old: bool) -> None:
        """How the body ends: RFC 9112 section 6.3. A length beside a coding, or two lengths, is a smuggler's."""
        codings = _members(head, b"transfer-encoding")
        lengths = [value for name, value in head.headers if name.lower() == b"content-length"]
        options = _members(head, b"connection")
        self._reusable = b"close" not in options and (not old or b"keep-alive" in options)
        if len(lengths) > 1 or (lengths and codings) or not all(v.isdigit() and len(v) < 19 for v in lengths):
            raise _InvalidResponse("the content length is malformed")
        if codings and (codings != [b"chunked"] or old):
            raise _InvalidResponse("the transfer coding is not one that can be read")
        if head.status in (204, 304):
            self._read = ResponseParser._finish
        elif codings:
            self._read = ResponseParser._read_chunk_line
        elif lengths:
            self._remaining = int(lengths[0])
            self._read = ResponseParser._read_length
        else:
            self._reusable = False
            self._until_close = True
            self._read = ResponseParser._read_until_close

    def _take_body(self, events: list[Event]) -> None:
        data = self._buffer[self._at : self._at + self._remaining]
        if data:
            self._at += len(data)
            self._remaining -= len(data)
            events.append(Body(data))

    def _read_length(self, events: list[Event]) -> bool:
        self._take_body(events)
        return self._finish(events) if self._remaining == 0 else False

    def _read_until_close(self, events: list[Event]) -> bool:
        self._remaining = len(self._buffer)
        self._take_body(events)
        return False

    def _read_chunk_line(self, events: list[Event]) -> bool:
        self._take_whole_chunks(events)
        line = self._take_line(MAX_CHUNK_LINE_BYTES, "chunk size line")
        if line is None:
            return False
        size = _CHUNK_LINE.fullmatch(line)
        if size is None:
            raise _InvalidResponse("the chunk size is malformed")
        self._remaining = int(size[1], 16)
        self._read = ResponseParser._read_chunk if self._remaining else ResponseParser._read_trailer
        return True

    def _take_whole_chunks(self, events: list[Event]) -> None:
        """Take every chunk that is here from its size to its end: most reads hold nothing else."""
        if not self._split:
            self._split = True  # once a read: it looks at all that is left
            body, end = _whole_chunks(self._buffer[self._at :])
            if body is not None:
                self._at += end
                events.append(body)
                return
        buffer, at, pieces = self._buffer, self._at, []
        while (size := _PLAIN_SIZE.match(buffer, at)) is not None:
            start = size.end()
            end = start + int(size[1], 16)
            if end == start or buffer[end : end + 2] != b"\r\n":
                break
            pieces.append(buffer[start:end])
            at = end + 2
        if pieces:
            self._at = at
            events.append(Body(pieces[0] if len(pieces) == 1 else b"".join(pieces)))

    def _read_chunk(self, events: list[Event]) -> bool:
        self._take_body(events)
        if self._remaining:
            return False
        line_end = self._buffer[self._at : self._at + 2]
        if not b"\r\n".startswith(line_end):
            raise _InvalidResponse("a chunk is longer than its size")
        if len(line_end) < 2:
            return False
        self._at += 2
        self._read = ResponseParser._read_chunk_line
        return True

    def _read_trailer(self, events: list[Event]) -> bool:
        """Trailer fields are checked and dropped: a gateway may (RFC 9110 section 6.5.1)."""
        line = self._take_line(MAX_TRAILER_BYTES, "trailer")
        if line is None:
            return False
        if not line:
            return self._finish(events)
        self._trailer_bytes += len(line)
        if self._trailer_bytes > MAX_TRAILER_BYTES:
            raise _InvalidResponse("the trailer is too long")
        if _FIELDS.fullmatch(line + b"\r\n") is None:
            raise _InvalidResponse("a trailer line is malformed")
        return True


def whole_response(data: bytes) -> tuple[ResponseHead, bytes] | None:
    """A plain head and the body of its length, where ``data`` is just that: what most answers are, in one read.

    The connection it came over may be used again. Whatever is not exactly that is a `ResponseParser`'s to judge.
    """
    plain = _plain_head(data)
    if plain is None or not plain[1] or len(data) - plain[2] != plain[1]:
        return None
    return plain[0], data[plain[2] :]


class HeadShape:
    """What the heads of one server's answers have in common: names in their order, and the values that mean something.

    One match against it finds what reading a head from scratch would: the servers of a platform name the same fields in
    each answer, and say the same but for times, counts and ids. Whatever differs in anything else is read from scratch.
    """

    __slots__ = ("_digits", "_fields_at", "_index", "_match", "_passing", "_reason")

    def __init__(self, head: ResponseHead) -> None:
        start = b"HTTP/1.1 200 %b\r\n" % head.reason
        lines: list[bytes] = []
        passing = iter(downstream_response_headers(head.headers))
        next_to_pass = next(passing, None)
        groups, open_group = 0, False
        self._passing: list[int] = []  # the groups of lines that reach the client
        for field in head.headers:
            passes = field == next_to_pass
            if passes:
                next_to_pass = next(passing, None)
            if passes and not open_group:
                groups += 1
                self._passing.append(groups)
                lines.append(b"(")
            elif open_group and not passes:
                lines.append(b")")
            open_group = passes
            if field[0].lower() == b"content-length":
                groups += 1
                self._digits = groups
            lines.append(_line_of_shape(*field))
        lines.append(b")\r\n" if open_group else b"\r\n")
        self._match = re.compile(re.escape(start) + b"".join(lines)).match
        self._fields_at = len(start)
        self._index = dict(head.index)
        self._reason = head.reason

    def whole(self, data: bytes) -> tuple[ResponseHead, bytes] | None:
        """`whole_response` of an answer of this shape; None of any other."""
        found = self._match(data)
        if found is None:
            return None
        digits, start = found[self._digits], found.end()
        length = int(digits)
        if not length or len(data) - start != length or start > MAX_HEAD_BYTES:
            return None
        index = self._index.copy()
        index[b"content-length"] = digits
        runs = self._passing
        passing = found[runs[0]] if len(runs) == 1 else b"".join(map(found.group, runs))
        block = data[self._fields_at : start - 2]
        return ResponseHead(200, self._reason, None, block, index, passing), data[start:]


def _line_of_shape(name: bytes, value: bytes) -> bytes:
    lower = name.lower()
    if lower == b"content-length":
        return rb"%b: ([0-9]{1,18})\r\n" % re.escape(name)
    if lower in _OF_ANY_VALUE or not _FIELDS_IN_LOWER_CASE(b"\n%b: x" % lower):
        return rb"%b: [^\x00-\x08\x0a-\x1f\x7f]*+\r\n" % re.escape(name)
    return rb"%b: %b\r\n" % (re.escape(name), re.escape(value))


def shape_of(head: ResponseHead) -> HeadShape | None:
    """The shape of a head that `whole_response` found; None where its answer is not the usual one."""
    if len(head.block) > MAX_SHAPE_BYTES:
        return None
    plain = head.status == 200 and all(value == value.strip() for value in head.index.values())
    return HeadShape(head) if plain else None


def _plain_head(data: bytes) -> tuple[ResponseHead, int | None, int] | None:
    """The head at the start of ``data``, its body's length (None: chunked) and where the body starts; None where
    anything about it is not plain."""
    found = _PLAIN_HEAD.match(data)
    if found is None or found.end() > MAX_HEAD_BYTES:
        return None
    status_text, reason, block = found.groups()
    if status_text == b"200":
        # nothing that is looked at here tells upper from lower case; of other answers whole values are read
        fields = _FIELDS_IN_LOWER_CASE(b"\n" + block.lower())
        index = dict(fields)
    else:
        fields = _FIELDS_IN_ANY_CASE(b"\n" + block)
        index = {name.lower(): value for name, value in fields}
    if len(index) != len(fields) or block.count(b"\n") > MAX_HEADERS or status_text in _WITHOUT_BODY:
        return None
    if b"connection" in index and index[b"connection"] != b"keep-alive":
        return None
    head = ResponseHead(int(status_text), reason, None, block, index)
    length = index.get(b"content-length")
    if length is None:
        return (head, None, found.end()) if index.get(b"transfer-encoding") == b"chunked" else None
    if b"transfer-encoding" in index or not length.isdigit() or len(length) > 18:
        return None
    return head, int(length), found.end()


def _whole_chunks(data: bytes) -> tuple[Body | None, int]:
    """The whole chunks that ``data`` begins with, written as nearly everybody writes them, and where they end.

    None where there are none, or where they are not that plain: whoever reads them one by one finds out why.
    """
    parts = data.split(b"\r\n")
    whole = (len(parts) - 1) // 2
    sizes, pieces = parts[: 2 * whole : 2], parts[1 : 2 * whole : 2]
    if pieces and not pieces[-1]:  # the last chunk: its trailer is read elsewhere
        del sizes[-1], pieces[-1]
    # a piece that holds a line end of its own, and an empty one further in front, fail the comparison
    lengths = list(map(len, pieces))
    if not pieces or (list(map(_SMALL_SIZES.get, sizes)) != lengths and sizes != [b"%x" % n for n in lengths]):
        return None, 0
    end = sum(lengths) + sum(map(len, sizes)) + 4 * len(pieces)
    if not all(lengths):
        return None, 0
    return Body(pieces[0] if len(pieces) == 1 else b"".join(pieces), data if end == len(data) else data[:end]), end


def _joined(events: list[Event]) -> list[Event]:
    """The same events with the body bytes of one read in one piece: one write to the client, not many."""
    if len(events) == 3 and type(events[0]) is ResponseHead and type(events[2]) is not Body:
        return events
    data = b"".join(event.data for event in events if isinstance(event, Body))
    others: list[Event] = [event for event in events if not isinstance(event, Body)]
    if data:
        others.insert(1 if isinstance(others[0] if others else None, ResponseHead) else 0, Body(data))
    return others


def _fields(lines: bytes) -> tuple[Header, ...]:
    """Name and value of every line of a block that is known to be well-formed."""
    fields = _FIELD.findall(lines)
    if len(fields) > MAX_HEADERS:
        raise _InvalidResponse("the response has too many headers")
    return tuple(fields)


def _members(head: ResponseHead, name: bytes) -> list[bytes]:
    """The comma-separated members of a field, lower case and over all its lines."""
    if name not in head.index:
        return []
    values = [value for found, value in head.headers if found.lower() == name]
    return [member for value in values for part in value.lower().split(b",") if (member := part.strip(b" \t"))]
