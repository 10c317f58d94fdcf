"""What can be read of a long answer of the platform in which some record is no JSON: all the others."""

import re
from collections.abc import Callable
from json import JSONDecoder
from typing import Any

import msgspec

_RAW = msgspec.json.Decoder(msgspec.Raw)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])

_LISTS = ("items", "data")
"""Members that hold records, of a listing and of a catalog."""

_MARKS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)
_NAME = re.compile(r'\s*"([^"\\]*(?:\\.[^"\\]*)*)"\s*:\s*', re.DOTALL)
_SPACE = re.compile(r"\s*")
_SCAN: Callable[[str, int], tuple[Any, int]] = JSONDecoder(parse_float=str, parse_int=str, strict=False).scan_once  # type: ignore[attr-defined]
"""Finds most ends fast, as it takes NaN, half pairs and wrong bytes for what they are meant to be."""


class NotReadable(ValueError):
    """Not even the records of a list can be told from each other, or none of them is JSON."""


def is_readable(body: bytes | msgspec.Raw) -> bool:
    """Whether this is JSON in UTF-8, as far as anybody's parser takes it: no NaN, no half of a surrogate pair."""
    try:
        str(body, "utf-8")
        _RAW.decode(body)
    except (ValueError, RecursionError):
        return False
    return True


def repaired(body: bytes) -> tuple[bytes, int]:
    """The answer with null in the place of each record, or other member, that is no JSON, and how many these are.

    The rest stays byte for byte but for white space between records.

    :param body: an object or a list that is not readable, without white space around it.
    :raises NotReadable: that does not make it readable.
    """
    text = body.decode("utf-8", "surrogateescape")  # wrong bytes belong to some record too
    if text.startswith("["):
        found, lost, end = _list(text, 0)
        if end != len(text):
            raise NotReadable("another end than expected")
    elif text.startswith("{"):
        found, lost = _object(text)
    else:
        raise NotReadable("neither an object nor a list")
    whole = found.encode("utf-8", "surrogateescape")
    if not is_readable(whole):
        raise NotReadable("no JSON")
    return whole, lost


def without_gaps(body: bytes) -> bytes:
    """An answer without the records that are null; without any, it is the very same bytes.

    :param body: readable.
    """
    if body.startswith(b"["):
        records = _LIST.decode(body)
        return msgspec.json.encode(_kept(records)) if _has_gaps(records) else body
    members: dict[str, Any] = _MEMBERS.decode(body)
    lists = {name: _LIST.decode(members[name]) for name in _LISTS if bytes(members.get(name, b"")).startswith(b"[")}
    kept = {name: _kept(records) for name, records in lists.items() if _has_gaps(records)}
    return msgspec.json.encode(members | kept) if kept else body


def _has_gaps(records: list[msgspec.Raw]) -> bool:
    return any(bytes(record) == b"null" for record in records)


def _kept(records: list[msgspec.Raw]) -> list[msgspec.Raw]:
    return [record for record in records if bytes(record) != b"null"]


def _object(text: str) -> tuple[str, int]:
    members, lost, at = [], 0, 1
    while True:
        name = _NAME.match(text, at)
        if name is None:
            raise NotReadable("a member without a name")
        if name[1] in _LISTS and text.startswith("[", name.end()):
            value, more, end = _list(text, name.end())
        else:
            end = _end(text, name.end())
            value, more = text[name.end() : end].strip(), 0
            if not _stands(value):
                value, more = "null", 1
        lost += more
        members.append(f'"{name[1]}":{value}')
        at = end + 1
        if not text.startswith(",", end):
            break
    if not text.startswith("}", end) or at != len(text):
        raise NotReadable("another end than expected")
    return "{" + ",".join(members) + "}", lost


def _list(text: str, at: int) -> tuple[str, int, int]:
    """A list with null in the place of what is no JSON, how often it is, and where the list's next neighbour parts."""
    records: list[str] = []
    lost = 0
    while True:
        end = _end(text, at + 1)
        piece = text[at + 1 : end].strip()
        at = end
        if not (piece or records) and text[end] == "]":
            break
        if not _stands(piece):
            piece = "null"
            lost += 1
        records.append(piece)
        if text[end] != ",":
            break
    if text[at] != "]":
        raise NotReadable("another end than expected")
    if records and all(record == "null" for record in records):
        raise NotReadable("no record is JSON")
    return "[" + ",".join(records) + "]", lost, _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]


def _stands(value: str) -> bool:
    return is_readable(value.encode("utf-8", "surrogateescape"))


def _end(text: str, at: int) -> int:
    """Where the comma or the bracket is that ends the value which begins here."""
    try:
        _, end = _SCAN(text, _SPACE.match(text, at).end())  # type: ignore[union-attr]
        end = _SPACE.match(text, end).end()  # type: ignore[union-attr]
        if text[end] in ",]}":
            return end
    except (StopIteration, ValueError, IndexError, RecursionError):
        pass  # then brackets and commas alone must tell
    depth = 0
    for mark in _MARKS.finditer(text, at):
        match mark[0]:
            case "," | "]" | "}" if depth == 0:
                return mark.start()
            case "[" | "{":
                depth += 1
            case "]" | "}":
                depth -= 1
    raise NotReadable("no end")
