"""Chutes' lists as JSON: one bad record costs that record, never the list, and never the reactor's patience.

A list is split into the bytes of its records at once (fast: some 33 ms for 45 MB) and the records are decoded one by
one, in slices. Long computations here and in the modules above are generators that yield between slices; whoever
drives them lets other work run at each yield, and their return value is the result.
"""

import json
import math
import re
from collections.abc import Generator
from typing import Any, TypeVar

import msgspec

MAX_RECORDS = 100_000
"""Records one list may have; the platform has some 500."""

SLICE = 1_000
"""Records handled between two yields: about 5 ms."""

_LARGE_BODY = 4_000_000
_MANY_COMMAS = 3_000_000
_NAME_LIMIT = 256
_CHUTE_ID_LIMIT = 64
# a lone surrogate cannot be sent as UTF-8, a control character cannot stand in a header
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_WHITE_SPACE = re.compile(r"[ \t\n\r]*")

_LIST = msgspec.json.Decoder(list[msgspec.Raw])
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


class _Envelope(msgspec.Struct):
    data: list[msgspec.Raw]


_ENVELOPE = msgspec.json.Decoder(_Envelope)


def finish(work: Sliced[T]) -> T:
    """Run a sliced computation to its end in one go, for small inputs and tests."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: T = done.value
            return result


def split_list(body: bytes) -> Sliced[list[msgspec.Raw]]:
    """The records of a bare JSON list, as bytes not yet decoded. Raises FeedError."""
    return _split(body, None)


def split_data(body: bytes) -> Sliced[list[msgspec.Raw]]:
    """The records of ``{"data": [...]}``, as bytes not yet decoded. Raises FeedError."""
    return _split(body, "data")


def _split(body: bytes, member: str | None) -> Sliced[list[msgspec.Raw]]:
    # Every record of the fast way costs 73 bytes before it can be counted, so a list of
    # millions of tiny values goes the slow way, which counts as it goes.
    commas = body.count(b",")
    if len(body) > _LARGE_BODY:
        yield
    if commas <= _MANY_COMMAS:
        try:
            records = _LIST.decode(body) if member is None else _ENVELOPE.decode(body).data
        except msgspec.ValidationError as error:
            raise FeedError(str(error)) from None
        except RecursionError:
            raise FeedError("JSON is nested too deeply") from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass  # perhaps only NaN, or half a surrogate pair, in one record
        else:
            if len(records) > MAX_RECORDS:
                raise FeedError(f"more than {MAX_RECORDS} records")
            return records
    if len(body) > _LARGE_BODY:
        yield
    try:
        return (yield from _split_leniently(body.decode("utf-8", "surrogateescape"), member))
    except RecursionError:
        raise FeedError("JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise FeedError(f"JSON is malformed: {error.msg} (character {error.pos})") from None


def _split_leniently(text: str, member: str | None) -> Sliced[list[msgspec.Raw]]:
    """The same boundaries by the standard library, which reads what Python servers write: NaN, lone surrogates.

    Undecodable bytes pass through as surrogates and come out as they were; read_record judges them.
    """
    if member is None:
        records, end = yield from _elements(text, _after("[", text, 0))
    else:
        found, end = None, _after("{", text, 0)
        while True:
            key, end = _LENIENT.raw_decode(text, _skip(text, end))
            end = _skip(text, _after(":", text, end))
            if key == member and text[end : end + 1] == "[":
                found, end = yield from _elements(text, end + 1)
            else:
                _, end = _LENIENT.raw_decode(text, end)
            end = _skip(text, end)
            if text[end : end + 1] != ",":
                break
            end += 1
        end = _after("}", text, end)
        if found is None:
            raise FeedError(f"Expected an object with a list {member!r}")
        records = found
    if _skip(text, end) != len(text):
        raise FeedError("JSON is malformed: trailing characters")
    return records


def _elements(text: str, start: int) -> Sliced[tuple[list[msgspec.Raw], int]]:
    """The elements of the list whose bracket ends at ``start``, and where the list ends."""
    records: list[msgspec.Raw] = []
    end = _skip(text, start)
    if text[end : end + 1] == "]":
        return records, end + 1
    while True:
        start = _skip(text, end)
        _, end = _LENIENT.raw_decode(text, start)
        records.append(msgspec.Raw(text[start:end].encode("utf-8", "surrogateescape")))
        if len(records) > MAX_RECORDS:
            raise FeedError(f"more than {MAX_RECORDS} records")
        if len(records) % SLICE == 0:
            yield
        end = _skip(text, end)
        if text[end : end + 1] != ",":
            return records, _after("]", text, end)
        end += 1


def _skip(text: str, start: int) -> int:
    match = _WHITE_SPACE.match(text, start)
    return match.end() if match else start


def _after(mark: str, text: str, start: int) -> int:
    start = _skip(text, start)
    if text[start : start + 1] != mark:
        raise json.JSONDecodeError(f"expected {mark!r}", "", start)
    return start + 1


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


def _integer(digits: str) -> float | None:
    # beyond 18 digits the exact value is of no use, and int() refuses 4300
    return int(digits) if len(digits) <= 18 else _finite(digits)


# a number that is none, or that no float can hold, is a missing number
_LENIENT = json.JSONDecoder(parse_float=_finite, parse_int=_integer, parse_constant=lambda name: None)


def read_record(raw: msgspec.Raw, decoder: msgspec.json.Decoder[T]) -> T | None:
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


def standard_json(raw: msgspec.Raw) -> bytes | None:
    """The record's bytes as strict JSON (RFC 8259), unchanged where they are that already, or None if malformed."""
    try:
        try:
            _ANY.decode(raw)
        except msgspec.DecodeError:
            return json.dumps(_LENIENT.decode(str(raw, "utf-8"))).encode("ascii")
        return bytes(raw)
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
