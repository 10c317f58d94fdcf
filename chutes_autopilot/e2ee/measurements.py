"""The list of trust domains that are acceptable: what their memory was at the start and what ran since.

The list says which measurements somebody calls good, never that they are. Pinned by the operator it is the operator's
word; taken from the API it is the API's, and whoever wants to deceive with the API's help can add to it.
"""

import re
from typing import Any, Literal

import msgspec
from attrs import field, frozen

from chutes_autopilot.e2ee.quote import Quote, QuoteRefused

Source = Literal["pinned", "api"]
"""Who asserts a list: the operator's file, or the API."""

MAX_ENTRIES = 4096
_RTMRS = ("RTMR0", "RTMR1", "RTMR2", "RTMR3")
_HEX = re.compile(r"[0-9a-fA-F]{96}")
_NAME_LIMIT = 64
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


class MeasurementsError(ValueError):
    """A list that cannot be used; the text names entry and member."""


@frozen
class Measurement:
    """One acceptable trust domain.

    :param name: ``name`` and ``version`` of the entry, for people; nothing is decided by it.
    :param mrtd: 48 bytes.
    :param rtmrs: those at run time, 48 bytes each.
    """

    name: str
    mrtd: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]


@frozen
class Measurements:
    """What may run.

    :param skipped: malformed entries that were left out.
    """

    source: Source
    entries: tuple[Measurement, ...]
    skipped: int = 0
    _by_values: dict[tuple[bytes, ...], Measurement] = field(init=False, repr=False, eq=False)

    @_by_values.default
    def _index(self) -> dict[tuple[bytes, ...], Measurement]:
        return {(entry.mrtd, *entry.rtmrs): entry for entry in reversed(self.entries)}

    def match(self, quote: Quote) -> Measurement:
        """The entry whose MRTD and four RTMRs are all those of the quote; raises QuoteRefused (``measurements``)."""
        entry = self._by_values.get((quote.mrtd, *quote.rtmrs))
        if entry is None:
            raise QuoteRefused("measurements")
        return entry


def read_measurements(data: bytes, source: Source) -> Measurements:
    """A list in the form of ``GET /servers/tee/measurements``, whoever wrote it.

    In a pinned file every entry must be right; of the API's list a malformed one is left out, as it can only have
    made more acceptable. Other members are ignored.

    :raises MeasurementsError: not a JSON list, too long, or without any usable entry.
    """
    try:
        records = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        raise MeasurementsError("not JSON") from None
    if not isinstance(records, list):
        raise MeasurementsError("not a list")
    if len(records) > MAX_ENTRIES:
        raise MeasurementsError(f"more than {MAX_ENTRIES} entries")
    entries = []
    for number, record in enumerate(records):
        try:
            entries.append(_entry(record))
        except MeasurementsError as error:
            if source == "pinned":
                raise MeasurementsError(f"entry {number}: {error}") from None
    if not entries:
        raise MeasurementsError("no usable entry")
    return Measurements(source, tuple(entries), len(records) - len(entries))


def _entry(record: Any) -> Measurement:
    if not isinstance(record, dict):
        raise MeasurementsError("not an object")
    rtmrs = record.get("runtime_rtmrs")
    if not isinstance(rtmrs, dict):
        raise MeasurementsError("runtime_rtmrs is not an object")
    first, second, third, fourth = (_measure(rtmrs.get(name), f"runtime_rtmrs.{name}") for name in _RTMRS)
    shown = " ".join(str(record[member]) for member in ("name", "version") if isinstance(record.get(member), str))
    name = _UNPRINTABLE.sub("?", shown)[:_NAME_LIMIT]
    return Measurement(name, _measure(record.get("mrtd"), "mrtd"), (first, second, third, fourth))


def _measure(value: Any, member: str) -> bytes:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise MeasurementsError(f"{member} is not 96 hexadecimal digits")
    return bytes.fromhex(value)
