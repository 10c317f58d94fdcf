"""What the three sources have in common: which records count, and fields of which nothing is taken on trust."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

import msgspec
from attrs import Factory, define, frozen

from chutes_autopilot.policy.feed_json import FeedError

Source = Literal["chutes", "v1", "utilization"]
"""The listing of all chutes, the catalog of language models, and the live feed."""

CHUTES: Source = "chutes"
V1: Source = "v1"
UTILIZATION: Source = "utilization"
SOURCES: tuple[Source, ...] = (CHUTES, V1, UTILIZATION)
"""In order of precedence: where several have a value for one field, the first one's counts."""

Reason = Literal["bad_name", "bad_chute_id", "duplicate_chute_id"]

_NAME_LIMIT = 256
_CHUTE_ID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@frozen
class Invalid:
    """A record that was dropped.

    :param index: its place in the upstream's list, counted from 0, before anything was dropped.
    """

    source: Source
    index: int
    reason: Reason

    def as_json(self) -> dict[str, Any]:
        """As the merge report shows it."""
        return {"source": self.source, "index": self.index, "reason": self.reason}


@frozen
class InvalidField:
    """A value of the wrong type, which counts as missing.

    :param field: the way to it inside the record, joined by dots.
    """

    source: Source
    index: int
    field: str

    def as_json(self) -> dict[str, Any]:
        """As the merge report shows it."""
        return {"source": self.source, "index": self.index, "field": self.field}


def canonical_chute_id(value: object) -> str | None:
    """The chute's id in lower case, or None where the value is no UUID in its canonical form."""
    return value.lower() if isinstance(value, str) and _CHUTE_ID.fullmatch(value) else None


def _integer(digits: str) -> float:
    # beyond 18 digits the exact value is of no use, and int() refuses 4300
    return int(digits) if len(digits) <= 18 else float(digits)


def lenient_json(raw: bytes | msgspec.Raw) -> Any:
    """A JSON value; NaN and numbers that no float can hold are read too, so that their place can be reported.

    Raises ValueError or RecursionError where it is malformed.
    """
    text = str(raw, "utf-8")
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return json.loads(text, parse_int=_integer)


def as_object(value: Any) -> dict[str, Any]:
    """A record's members; none where it is malformed or no object, so that it fails for want of a name."""
    try:
        decoded = lenient_json(value) if isinstance(value, bytes | msgspec.Raw) else value
    except (ValueError, RecursionError):
        return {}
    return decoded if type(decoded) is dict else {}


def text_of(value: object) -> str | None:
    """The value if it is a string that can be written as UTF-8."""
    return value if isinstance(value, str) and not _SURROGATE.search(value) else None


class Fields:
    """Reads one record's fields, each by its dotted path; what is of the wrong type is None and noted.

    Null and absent are simply None.

    :param note: called with the path of each wrong value, perhaps more than once.
    """

    def __init__(self, record: dict[str, Any], note: Callable[[str], None]) -> None:
        self._record = record
        self._note = note

    def value(self, path: str) -> Any:
        """Whatever is there."""
        value: Any = self._record
        members = path.split(".")
        for depth, member in enumerate(members):
            if value is None:
                return None
            if type(value) is not dict:
                self._note(".".join(members[:depth]))
                return None
            value = value.get(member)
        return value

    def text(self, path: str) -> str | None:
        """A string, taken literally."""
        value = self.value(path)
        if value is not None and text_of(value) is None:
            self._note(path)
            return None
        return value  # type: ignore[no-any-return]

    def flag(self, path: str) -> bool | None:
        """A boolean."""
        value = self.value(path)
        if value is None or type(value) is bool:
            return value
        self._note(path)
        return None

    def number(self, path: str) -> float | None:
        """A finite number that is not negative; no boolean, no digits in a string."""
        value = self.value(path)
        if value is None:
            return None
        # type() and not isinstance(), for True is an int
        if type(value) in (int, float) and 0 <= value <= sys.float_info.max:
            return int(value) if value == int(value) and value < 2**53 else float(value)
        self._note(path)
        return None

    def texts(self, path: str) -> tuple[str, ...] | None:
        """A list of strings; one that holds anything else is wrong as a whole."""
        value = self.value(path)
        if value is None:
            return None
        if type(value) is list and all(text_of(item) is not None for item in value):
            return tuple(value)
        self._note(path)
        return None

    def time(self, path: str) -> str | None:
        """A point in time, which the platform writes in UTC without saying so; here in ISO 8601 with the zone."""
        value = self.value(path)
        if value is None:
            return None
        try:
            when = datetime.fromisoformat(value)
            when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
        except (TypeError, ValueError, OverflowError):
            self._note(path)
            return None
        return when.isoformat().replace("+00:00", "Z")

    def objects(self, path: str) -> Iterator["Fields"] | None:
        """The objects of a list, each with readers of its own."""
        value = self.value(path)
        if value is None:
            return None
        if type(value) is not list:
            self._note(path)
            return None
        return self._each(path, value)

    def _each(self, path: str, items: list[Any]) -> Iterator["Fields"]:
        for number, item in enumerate(items):
            if type(item) is dict:
                yield Fields(item, lambda inner, prefix=f"{path}.{number}": self._note(f"{prefix}.{inner}"))  # type: ignore[misc]
            else:
                self._note(f"{path}.{number}")


@define(eq=False)
class Admission:
    """Decides record by record which ones of a source count; a bad one never harms another.

    :param name_member: where the name stands.
    :param id_optional: whether a record may lack its chute id.
    """

    source: Source
    name_member: str = "name"
    id_optional: bool = False
    count: int = 0
    invalid: list[Invalid] = Factory(list)
    invalid_fields: list[InvalidField] = Factory(list)
    _seen: set[str] = Factory(set)
    _noted: set[InvalidField] = Factory(set)

    def admit(
        self, raws: Iterable[Any], skip: frozenset[str] = frozenset()
    ) -> Iterator[tuple[str, str | None, dict[str, Any], Fields]]:
        """Name, chute id, members and fields of each record that counts; of names to skip nothing is kept.

        Raises FeedError at the end where there were records and not one of them was usable.
        """
        for index, raw in enumerate(raws):
            self.count += 1
            record = as_object(raw)
            name = text_of(record.get(self.name_member))
            if name in skip:
                continue
            given = record.get("chute_id")
            chute_id = canonical_chute_id(given)
            if name is None or not 0 < len(name) <= _NAME_LIMIT:
                self.invalid.append(Invalid(self.source, index, "bad_name"))
            elif chute_id is None and not (given is None and self.id_optional):
                self.invalid.append(Invalid(self.source, index, "bad_chute_id"))
            elif chute_id in self._seen:
                self.invalid.append(Invalid(self.source, index, "duplicate_chute_id"))
            else:
                if chute_id is not None:
                    self._seen.add(chute_id)
                yield name, chute_id, record, Fields(record, partial(self._note, index))
        if self.count and len(self.invalid) == self.count:
            raise FeedError(f"none of {self.count} records is usable")

    def _note(self, index: int, path: str) -> None:
        found = InvalidField(self.source, index, path)
        if found not in self._noted:
            self._noted.add(found)
            self.invalid_fields.append(found)
