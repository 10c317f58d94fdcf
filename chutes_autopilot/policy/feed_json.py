"""Chutes' lists as JSON: one bad record costs that record, never the list, and never the reactor's patience.

A body is walked once, and where a record ends is told by its brackets and quotes alone. What is between them is judged
when the record is decoded. So no step is long, however the body was made. Long computations here and in the modules
above are generators that yield between slices; whoever drives them lets other work run at each yield, and their return
value is the result.
"""

import json
import math
import re
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import msgspec

MAX_RECORDS = 50_000
"""Records one list may have; the platform has some 500."""

MAX_RECORD_BYTES = 64 * 1024
"""Size of one record; the platform's have a few KiB, and the worst of this size takes some 20 ms to decode."""

MAX_STEPS = 1_000_000
"""Steps of the walk through one body: some seconds in all. An ordinary record takes two."""

SLICE = 1_000
"""Rows handled between two yields: about 5 ms."""

SLICE_BYTES = 16 * 1024
"""Bytes walked between two yields: well under 1 ms for ordinary records."""

_STEP_BYTES = 32
"""What a step costs even where it is short, as so many bytes."""

_NAME_LIMIT = 256
_CHUTE_ID_LIMIT = 64
# a lone surrogate cannot be sent as UTF-8, a control character cannot stand in a header
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

_ANY = msgspec.json.Decoder()

T = TypeVar("T")
Sliced = Generator[None, None, T]
"""A computation in slices: each yield lets other work run, the return value is the result."""


class FeedError(ValueError):
    """A list that cannot be used as a whole, so that whoever asked for it keeps the last good one.

    :param message: what is wrong; holds no upstream text.
    :param reason: ``invalid`` (not JSON, wrong shape, too many records) or ``empty`` (a list not yet believed).
    """

    def __init__(self, message: str, reason: str = "invalid") -> None:
        super().__init__(message)
        self.reason = reason


def finish(work: Sliced[T]) -> T:
    """Run a sliced computation to its end in one go, for small inputs and tests."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: T = done.value
            return result


def records_of_list(body: bytes) -> Iterator[bytes | None]:
    """The records of a bare JSON list, one by one, not yet decoded; None where other work should run.

    A record over MAX_RECORD_BYTES comes as no bytes at all: one more that is malformed. Raises FeedError, perhaps only
    at the end.
    """
    walk = _Walk(body)
    yield from walk.elements()
    walk.end()


def records_of_data(body: bytes) -> Iterator[bytes | None]:
    """The same for the list in ``{"data": [...]}``; all other members are passed over."""
    walk, found = _Walk(body), False
    mark = walk.take(b"{")
    while mark != b"}":
        key = yield from walk.value()
        walk.take(b":")
        if key != b'"data"':
            yield from walk.value()
        elif found:
            raise FeedError("unexpected JSON: two members 'data'")
        else:
            found = True
            yield from walk.elements()
        mark = walk.take(b",", b"}")
    walk.end()
    if not found:
        raise FeedError("unexpected JSON: no member 'data'")


# Nothing here ever goes back, which keeps the time proportional to the length. Repeated groups are atomic, (?>...),
# for possessive ones match wrongly before Python 3.11.5.
_WHITE_SPACE = re.compile(rb"[ \t\n\r]*+")
_LITERAL = re.compile(rb'[^ \t\n\r",:\[\]{}]*+')
_TEXT = re.compile(rb'(?>(?:[^"\\]++|\\.)*)', re.DOTALL)


def _inside(levels: int) -> bytes:
    """What stands between brackets, with so many levels of brackets inside."""
    brackets = rb"|[\[{]" + _inside(levels - 1) + rb"[\]}]" if levels else b""
    return rb'(?>(?:[^"\[\]{}]++|"' + _TEXT.pattern + rb'"' + brackets + rb")*)"


_INSIDE = re.compile(_inside(4), re.DOTALL)


class _Walk:
    """Goes through a body in steps, none of them over more than SLICE_BYTES."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0
        self._slice_left = SLICE_BYTES
        self._steps_left = MAX_STEPS

    def take(self, *marks: bytes) -> bytes:
        """Go past the next mark, which must be one of these; which one it was."""
        mark = self._next()
        if mark not in marks:
            raise FeedError(f"unexpected JSON: no {b' or '.join(marks).decode()} at byte {self._at}")
        self._at += 1
        return mark

    def end(self) -> None:
        """Make sure that nothing follows."""
        if self._next():
            raise FeedError(f"unexpected JSON: no end at byte {self._at}")

    def elements(self) -> Iterator[bytes | None]:
        """Go past a list; its elements, and None where other work should run."""
        self.take(b"[")
        if self._next() == b"]":
            self.take(b"]")
            return
        for _ in range(MAX_RECORDS):
            yield (yield from self.value())
            if self.take(b",", b"]") == b"]":
                return
        raise FeedError(f"more than {MAX_RECORDS} records")

    def value(self) -> Sliced[bytes]:
        """Go past a value; its bytes, which need not be JSON, or none where they are too many."""
        self._next()
        start, depth = self._at, 0
        while True:
            if self._count_step():
                yield
            mark = self._mark()
            if not mark or (not depth and mark in b"]},:"):
                raise FeedError(f"unexpected JSON: no value at byte {self._at}")
            if mark == b'"':
                yield from self._string()
            elif mark in b"[{":
                self._at += 1
                depth += 1
            elif mark in b"]}":
                self._at += 1
                depth -= 1
            elif not depth:
                self._go_over(_LITERAL)
            if not depth:
                return self._body[start : self._at] if self._at - start <= MAX_RECORD_BYTES else b""
            self._go_over(_INSIDE)

    def _string(self) -> Sliced[None]:
        self._at += 1
        while True:
            start = self._at
            self._go_over(_TEXT)
            if self._mark() == b'"':
                break
            if self._at == start:
                raise FeedError(f"unexpected JSON: no end of the string at byte {start}")
            if self._count_step():
                yield
        self._at += 1

    def _count_step(self) -> bool:
        """Whether other work should run before the next step."""
        self._steps_left -= 1
        if self._steps_left < 0:
            raise FeedError(f"unexpected JSON: more than {MAX_STEPS} steps")
        self._slice_left -= _STEP_BYTES
        if self._slice_left > 0:
            return False
        self._slice_left = SLICE_BYTES
        return True

    def _next(self) -> bytes:
        """The next mark that is no white space."""
        self._go_over(_WHITE_SPACE)
        return self._mark()

    def _mark(self) -> bytes:
        return self._body[self._at : self._at + 1]

    def _go_over(self, pattern: re.Pattern[bytes]) -> None:
        if match := pattern.match(self._body, self._at, self._at + SLICE_BYTES):
            self._slice_left -= match.end() - self._at
            self._at = match.end()


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


def _integer(digits: str) -> float | None:
    # beyond 18 digits the exact value is of no use, and int() refuses 4300
    return int(digits) if len(digits) <= 18 else _finite(digits)


# a number that is none, or that no float can hold, is a missing number
_LENIENT = json.JSONDecoder(parse_float=_finite, parse_int=_integer, parse_constant=lambda name: None)


def read_record(raw: bytes, decoder: msgspec.json.Decoder[T]) -> T | None:
    """One record by the decoder's type, or None where it is malformed.

    NaN, infinities and numbers out of range read as null. Bytes that are not UTF-8, also in members nobody
    asks for, spoil the record.
    """
    try:
        text = str(raw, "utf-8")
        try:
            return decoder.decode(raw)
        except msgspec.DecodeError:
            return msgspec.convert(_LENIENT.decode(text), decoder.type)
    except (ValueError, RecursionError):
        return None


def standard_json(raw: bytes) -> bytes | None:
    """The record's bytes as strict JSON (RFC 8259), unchanged where they are that already, or None if malformed."""
    try:
        try:
            _ANY.decode(raw)
        except msgspec.DecodeError:
            return json.dumps(_LENIENT.decode(str(raw, "utf-8"))).encode("ascii")
        return raw
    except (ValueError, RecursionError):
        return None


def model_name(value: Any) -> str | None:
    """The value if it can be a model's name: 1 to 256 characters, none of them a control character."""
    if isinstance(value, str) and 0 < len(value) <= _NAME_LIMIT and not _UNPRINTABLE.search(value):
        return value
    return None


def chute_id(value: Any) -> str | None:
    """The chute's id in the one spelling in which ids are compared (lower case), or None where there is none."""
    if isinstance(value, str) and 0 < len(value) <= _CHUTE_ID_LIMIT and not _UNPRINTABLE.search(value):
        return value.lower()
    return None
