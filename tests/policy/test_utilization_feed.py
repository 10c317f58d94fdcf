import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.policy.catalog import Catalog, CatalogEntry
from chutes_autopilot.policy.feed_json import MAX_RECORD_BYTES, FeedError
from chutes_autopilot.policy.utilization import (
    PRIVATE,
    UtilizationRow,
    eligible_name,
    parse_utilization,
    parse_utilization_in_slices,
)


def test_a_row_holds_what_the_ranking_needs() -> None:
    """Names, counts and ratios are taken as they stand, the chute id in lower case, all else is dropped."""
    record = {
        "name": "a/B",
        "chute_id": "ABC",
        "active_instance_count": 3,
        "scalable": True,
        "scale_allowance": 2,
        "utilization_current": 0.5,
        "utilization_5m": 0,
        "utilization_15m": 0.25,
        "utilization_1h": 1.5,
        "rate_limit_ratio_5m": 0.1,
        "rate_limit_ratio_15m": 0.2,
        "rate_limit_ratio_1h": 0.3,
        "avg_busy_ratio": 9,
    }
    feed = parse_utilization(json.dumps([record]).encode())
    assert feed.rows == (UtilizationRow("a/B", "abc", 3, True, 2, 0.5, 0, 0.25, 1.5, 0.1, 0.2, 0.3),)


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "1e16", "-1", "-0.5", "true", '"1"', "null", "[]"]
)
def test_what_is_no_number_counts_as_missing(number: str) -> None:
    """NaN, infinite, absurd and negative numbers, booleans and strings are missing; the row stays."""
    body = f'[{{"name":"a","active_instance_count":{number},"utilization_5m":{number}, "scale_allowance":1}}]'
    assert parse_utilization(body.encode()).rows == (UtilizationRow("a", scale_allowance=1),)


@pytest.mark.parametrize("value", [1, "true", None])
def test_only_true_is_scalable(value: object) -> None:
    """A scalable that is no boolean is not believed."""
    assert not parse_utilization(json.dumps([{"name": "a", "scalable": value}]).encode()).rows[0].scalable


@pytest.mark.parametrize("literal", [b"", b",NaN"])
def test_malformed_records_are_counted_and_private_ones_dropped(literal: bytes) -> None:
    """What is no record is skipped and counted; of private chutes nothing is kept."""
    body = (
        b'[{"name":"a"},{"name":7},3,{"name":"b","x":"\xff"},{"name":"[private chute]","chute_id":"s"}' + literal + b"]"
    )
    feed = parse_utilization(body)
    assert feed.rows == (UtilizationRow("a"),)
    assert feed.skipped == 3 + bool(literal)


def test_a_row_that_is_too_large_is_skipped_and_counted() -> None:
    """It costs only itself."""
    feed = parse_utilization(b'[{"name":"a"},{"name":"b","x":"%s"}]' % (b"x" * MAX_RECORD_BYTES))
    assert (feed.rows, feed.skipped) == ((UtilizationRow("a"),), 1)


def test_a_feed_of_private_chutes_only_is_no_error() -> None:
    """There is nothing wrong with such a feed, and nothing in it."""
    assert parse_utilization(json.dumps([{"name": PRIVATE}]).encode()).rows == ()


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"data":[]}', b"null", b'[{"name":"a"}', b"[1,2]", b"[" * 100_000, b"[NaN"]
)
def test_a_body_that_is_no_list_of_chutes_is_refused(body: bytes) -> None:
    """Broken JSON, the wrong shape, and a list without a single chute are FeedError."""
    with pytest.raises(FeedError):
        parse_utilization(body)


NUMBERS = st.floats() | st.integers() | st.booleans() | st.none() | st.text(max_size=2)
NAMES = st.text(max_size=3) | st.just(PRIVATE) | st.integers()
RECORDS = st.fixed_dictionaries({"name": NAMES}, optional={"active_instance_count": NUMBERS, "utilization_1h": NUMBERS})


@settings(deadline=None)
@given(st.lists(RECORDS))
def test_every_record_is_kept_dropped_or_counted(records: list[dict[str, Any]]) -> None:
    """No record is lost unseen, and what is kept holds finite numbers from zero on only."""
    good = [{"name": "good"}, *records]
    feed = parse_utilization(json.dumps(good).encode())
    private = sum(record["name"] == PRIVATE for record in good)
    assert len(feed.rows) + private + feed.skipped == len(good)
    for row in feed.rows:
        for number in (row.active_instance_count, row.utilization_1h):
            assert number is None or 0 <= number <= 1e15


def test_a_long_feed_is_read_in_slices() -> None:
    """Other work runs at least after every thousand rows, however short they are."""
    body = b"[" + b"{}," * 10_000 + b'{"name":"a"}]'
    assert len(list(parse_utilization_in_slices(body))) >= 10


CATALOG = Catalog((CatalogEntry("new/Name", "c1", b""), CatalogEntry("a/B", "c2", b"")))
OLD_SHAPE = Catalog((CatalogEntry("new/Name", "c1", b""), CatalogEntry("a/B", None, b"")))
"""Without the chute id of one model."""


@pytest.mark.parametrize(
    ("row", "catalog", "name"),
    [
        (UtilizationRow("a/B", "c2", 1), CATALOG, "a/B"),
        (UtilizationRow("a/B", None, 0.5), CATALOG, "a/B"),
        (UtilizationRow("a/B", "c2", 0), CATALOG, None),
        (UtilizationRow("a/B", "c2", None), CATALOG, None),
        (UtilizationRow("old/Name", "c1", 1), CATALOG, "new/Name"),
        (UtilizationRow("a/B", "c1", 1), CATALOG, "new/Name"),
        (UtilizationRow("a/B", "c9", 1), CATALOG, None),
        (UtilizationRow("a/B", "c9", 1), OLD_SHAPE, "a/B"),
        (UtilizationRow("a/B", "c1", 1), OLD_SHAPE, "a/B"),
        (UtilizationRow("x-TEE", "c9", 1), CATALOG, None),
        (UtilizationRow("x-TEE", None, 1), CATALOG, None),
        (UtilizationRow(PRIVATE, "c1", 1), CATALOG, None),
        (UtilizationRow("x-TEE", None, 1), None, "x-TEE"),
        (UtilizationRow("x-TEE", None, 1), Catalog(()), "x-TEE"),
        (UtilizationRow("x-TEE", None, 0), None, None),
        (UtilizationRow("x-tee", None, 1), None, None),
        (UtilizationRow("a/B", "c2", 1), Catalog(()), None),
    ],
)
def test_eligibility(row: UtilizationRow, catalog: Catalog | None, name: str | None) -> None:
    """A public chute with an instance counts if it is listed by name or chute id, or is TEE where there is no list."""
    assert eligible_name(row, catalog) == name


CHUTES = st.none() | st.sampled_from("1234")
LISTED = st.dictionaries(st.sampled_from("abcd"), CHUTES, min_size=1).map(
    lambda listed: Catalog(tuple(CatalogEntry(name, chute, b"") for name, chute in listed.items()))
)
LIVE = st.builds(UtilizationRow, st.sampled_from("abcde"), CHUTES, st.just(1.0))


@given(LIVE, LISTED)
def test_no_chute_speaks_for_a_model_that_has_another_one(row: UtilizationRow, catalog: Catalog) -> None:
    """Where both ids are known they are equal; where one is not, name or id is what the catalog lists."""
    model = eligible_name(row, catalog)
    listed = catalog.chute_ids.get(model or "")
    assert model is None or listed == row.chute_id or (model == row.name and None in (listed, row.chute_id))


@given(LIVE, LISTED)
def test_a_chute_that_is_listed_is_never_passed_over(row: UtilizationRow, catalog: Catalog) -> None:
    """Its id is enough, whatever it is called; so is its name where nothing is known against it."""
    by_id = row.chute_id is not None and row.chute_id in catalog.chute_ids.values()
    by_name = row.name in catalog.ids and (row.chute_id is None or catalog.chute_ids.get(row.name) is None)
    assert (eligible_name(row, catalog) is not None) == (by_id or by_name)
