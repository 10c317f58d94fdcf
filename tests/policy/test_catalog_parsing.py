import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.policy.catalog import Catalog, CatalogEntry, parse_catalog
from chutes_autopilot.policy.feed_json import MAX_RECORDS, FeedError


def listing(*records: object) -> bytes:
    return json.dumps({"object": "list", "data": records}).encode()


def ids(catalog: Catalog) -> list[str]:
    return [entry.id for entry in catalog.entries]


def test_entries_keep_order_and_every_byte() -> None:
    """A model keeps its place and its record exactly as the upstream wrote it."""
    first = b'{ "id":"b/Two", "chute_id":"ABC-1", "price":{"usd":0.010399999999999998}, "n":"\xc3\xa9\\u00e9" }'
    catalog = parse_catalog(b'{"object":"list","data":[' + first + b', {"id":"a/One"}]}')
    assert catalog.entries == (CatalogEntry("b/Two", "abc-1", first), CatalogEntry("a/One", None, b'{"id":"a/One"}'))
    assert catalog.ids == {"a/One", "b/Two"}
    assert catalog.by_chute_id == {"abc-1": "b/Two"}


@pytest.mark.parametrize(
    "record",
    [
        None,
        7,
        "a/One",
        [],
        {},
        {"id": None},
        {"id": 7},
        {"id": ""},
        {"id": "x" * 257},
        {"id": "a\nb"},
        {"id": "a\x9fb"},
    ],
)
def test_a_malformed_record_is_skipped_and_counted(record: object) -> None:
    """A record without a usable id costs only itself."""
    catalog = parse_catalog(listing(record, {"id": "x" * 256}))
    assert (ids(catalog), catalog.skipped) == (["x" * 256], 1)


@pytest.mark.parametrize(
    "record",
    [b'{"id":"bad","root":"\xff"}', b'{"id":"bad\\ud800"}', b'{"id":"bad\xff","n":NaN}', b'{"id":"\\ud83dbad"}'],
)
def test_a_record_that_is_no_text_is_skipped_and_counted(record: bytes) -> None:
    """Invalid UTF-8 and lone surrogates in one record leave the others alone."""
    catalog = parse_catalog(b'{"data":[' + record + b',{"id":"good"}]}')
    assert (ids(catalog), catalog.skipped) == (["good"], 1)


def test_the_first_of_two_equal_ids_wins() -> None:
    """A repeated id is left out and counted; a shared chute belongs to the first model."""
    catalog = parse_catalog(
        listing({"id": "a", "chute_id": "1"}, {"id": "a", "chute_id": "2"}, {"id": "b", "chute_id": "1"})
    )
    assert (ids(catalog), catalog.skipped) == (["a", "b"], 1)
    assert catalog.by_chute_id == {"1": "a"}


@pytest.mark.parametrize("chute", [None, 7, "", ["x"], "x" * 65, "a\n"])
def test_an_unusable_chute_id_is_no_chute_id(chute: object) -> None:
    """The model stays, without a chute."""
    assert parse_catalog(listing({"id": "a", "chute_id": chute})).entries[0].chute_id is None


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000])
def test_what_is_no_json_number_reaches_clients_as_null(number: bytes) -> None:
    """The records that clients get are JSON whatever the upstream's server printed, and strings are left alone."""
    body = b'{"x":NaN, "data":[{"id":"NaN, \\"Infinity","n":' + number + b"}]}"
    (entry,) = parse_catalog(body).entries
    assert json.loads(entry.raw) == {"id": 'NaN, "Infinity', "n": None}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"[NaN]",
        b"null",
        b"{}",
        b'{"data":{}}',
        b'{"data":null}',
        b'{"data":NaN}',
        b'{"data":"x"}',
        b'{"data":[{"id":"a"}]',
        b'{"data":[{"id":"a"}],}',
        b'{"data":[{"id":"a"}]} x',
        b'{"data":[{"id":"a", "n":NaN}]} x',
        b'{"data":[{"id":"a", "n":NaN}',
        b'{"data":[{"id":"a", "n":NaN},]}',
        b'{data:[{"id":"a"}]}',
        b'\xff{"data":[]}',
        b'{"data":' + b"[" * 100_000,
        b'{"data":[{"id":7}, 3]}',
    ],
)
def test_a_body_of_another_shape_is_refused_as_a_whole(body: bytes) -> None:
    """Broken JSON, the wrong shape, and a list in which nothing is a model are all FeedError."""
    with pytest.raises(FeedError):
        parse_catalog(body)


def test_an_empty_list_is_an_empty_catalog() -> None:
    """Whether to believe it is somebody else's decision."""
    assert parse_catalog(b'{"data":[]}') == parse_catalog(b' {"n":NaN, "data" : [ ] , "m":1} ') == Catalog(())


@pytest.mark.parametrize("literal", [b"0", b"NaN"])
def test_a_list_without_end_is_refused(literal: bytes) -> None:
    """More records than any platform has are refused, however the list is read."""
    body = b'{"data":[{"id":"a"}' + b"," + b",".join([literal] * MAX_RECORDS) + b"]}"
    with pytest.raises(FeedError, match="records"):
        parse_catalog(body)


@settings(deadline=None)
@given(
    st.binary()
    | st.lists(st.sampled_from([*'[]{}:,"', '"data"', '"id"', "NaN", "1", " "])).map("".join).map(str.encode)
)
def test_no_body_raises_anything_else(body: bytes) -> None:
    """Whatever comes is a catalog or a FeedError."""
    with suppress(FeedError):
        parse_catalog(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.lists(st.fixed_dictionaries({"id": st.text(max_size=8)}, optional={"x": JSON}), max_size=5), st.booleans())
def test_both_ways_of_reading_agree(records: list[dict[str, object]], ascii_only: bool) -> None:
    """A NaN somewhere in the answer changes nothing about the other records."""
    models = json.dumps([{"id": "last"}, *records], ensure_ascii=ascii_only).encode("utf-8", "replace")
    plain = parse_catalog(b'{"data": ' + models + b"}")
    assert parse_catalog(b'{"data": ' + models + b' , "n": NaN}') == plain
