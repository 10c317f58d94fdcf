"""The live feed: how busy each chute is, and which of its rows stand for a model that may be chosen."""

from typing import Any

import msgspec
from attrs import frozen

from chutes_autopilot.policy.catalog import Catalog
from chutes_autopilot.policy.feed_json import (
    FeedError,
    Sliced,
    chute_id,
    finish,
    model_name,
    read_record,
    records_of_list,
)

PRIVATE = "[private chute]"
"""The one name under which the feed lists all private chutes."""

_LARGEST = 1e15


class UtilizationRow(msgspec.Struct, frozen=True, gc=False):
    """What the ranking needs of one row; None is a number that is missing, NaN, infinite, negative or absurd.

    A msgspec Struct, because 50,000 of them are built every few seconds.
    """

    name: str
    chute_id: str | None = None
    active_instance_count: float | None = None
    scalable: bool = False
    scale_allowance: float | None = None
    utilization_current: float | None = None
    utilization_5m: float | None = None
    utilization_15m: float | None = None
    utilization_1h: float | None = None
    rate_limit_ratio_5m: float | None = None
    rate_limit_ratio_15m: float | None = None
    rate_limit_ratio_1h: float | None = None


@frozen
class UtilizationFeed:
    """What one answer of the feed said.

    :param rows: the named chutes, in the feed's order; of private ones nothing is kept.
    :param skipped: records that are malformed or too large.
    """

    rows: tuple[UtilizationRow, ...]
    skipped: int = 0


class _Record(msgspec.Struct, gc=False):
    name: Any = None
    chute_id: Any = None
    active_instance_count: Any = None
    scalable: Any = None
    scale_allowance: Any = None
    utilization_current: Any = None
    utilization_5m: Any = None
    utilization_15m: Any = None
    utilization_1h: Any = None
    rate_limit_ratio_5m: Any = None
    rate_limit_ratio_15m: Any = None
    rate_limit_ratio_1h: Any = None


_RECORD = msgspec.json.Decoder(_Record)


def _number(value: Any) -> float | None:
    # type() and not isinstance(), for True is an int; the upper bound keeps every score finite
    return value if type(value) in (int, float) and 0 <= value <= _LARGEST else None


def _row(record: _Record, name: str) -> UtilizationRow:
    return UtilizationRow(
        name,
        chute_id(record.chute_id),
        _number(record.active_instance_count),
        record.scalable is True,
        _number(record.scale_allowance),
        _number(record.utilization_current),
        _number(record.utilization_5m),
        _number(record.utilization_15m),
        _number(record.utilization_1h),
        _number(record.rate_limit_ratio_5m),
        _number(record.rate_limit_ratio_15m),
        _number(record.rate_limit_ratio_1h),
    )


def parse_utilization_in_slices(body: bytes) -> Sliced[UtilizationFeed]:
    """The rows of the feed, a bare JSON list.

    Raises FeedError where the body is no list, or where it has records and every one is malformed.
    """
    rows: list[UtilizationRow] = []
    count = skipped = 0
    for raw in records_of_list(body):
        if raw is None:
            yield
            continue
        count += 1
        record = read_record(raw, _RECORD)
        name = model_name(record.name) if record else None
        if record is None or name is None:
            skipped += 1
        elif name != PRIVATE:
            rows.append(_row(record, name))
    if count and skipped == count:
        raise FeedError(f"none of {skipped} records is a chute")
    return UtilizationFeed(tuple(rows), skipped)


def parse_utilization(body: bytes) -> UtilizationFeed:
    """parse_utilization_in_slices in one go."""
    return finish(parse_utilization_in_slices(body))


def eligible_name(row: UtilizationRow, catalog: Catalog | None) -> str | None:
    """The model that a row makes a candidate, or None where it makes none.

    A chute must be public and have an active instance. With an allowlist it must be that of a listed model. Without
    one, TEE chutes are trusted.
    """
    if row.name == PRIVATE or not row.active_instance_count:
        return None
    if catalog is None or not catalog.ids:
        return row.name if row.name.endswith("-TEE") else None
    return listed_model(row, catalog)


def listed_model(row: UtilizationRow, catalog: Catalog) -> str | None:
    """The model of the catalog that a row speaks for: by its name, or else by its chute id (the chute was renamed:
    the listed name counts). None where there is none.
    """
    if row.name in catalog.ids and not is_namesake(row, catalog):
        return row.name
    return catalog.by_chute_id.get(row.chute_id) if row.chute_id is not None else None


def is_namesake(row: UtilizationRow, catalog: Catalog) -> bool:
    """Whether a row has the name of a listed model, and by its chute id is another chute.

    Anybody may give a public chute any name; it is the id that a chute keeps for life.
    """
    return row.chute_id is not None and catalog.chute_ids.get(row.name, row.chute_id) != row.chute_id
