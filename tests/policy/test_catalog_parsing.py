import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.policy import feed_json
from chutes_autopilot.policy.catalog import Catalog, CatalogEntry, parse_catalog, parse_catalog_in_slices
from chutes_autopilot.policy.feed_json import MAX_RECORD_BYTES, MAX_RECORDS, SLICE_BYTES, FeedError


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


@pytest.mark.parametrize("record", [b'{"id":"bad",}', b'{"id":"bad","x":[}}', b'{"id":"bad" "x":1}', b"{bad}"])
def test_a_record_that_is_no_json_is_skipped_and_counted(record: bytes) -> None:
    """A record with its brackets in pairs costs only itself, whatever is between them."""
    catalog = parse_catalog(b'{"data":[' + record + b',{"id":"good"}]}')
    assert (ids(catalog), catalog.skipped) == (["good"], 1)


def test_a_record_that_is_too_large_is_skipped_and_counted() -> None:
    """One byte over the bound costs the record; the bound itself passes."""
    frame = b'{"id":"a","x":"%s"}'
    largest = frame % (b"x" * (MAX_RECORD_BYTES - len(frame % b"")))
    catalog = parse_catalog(b'{"data":[' + largest + b',{"id":"b"}]}')
    assert (ids(catalog), catalog.skipped) == (["a", "b"], 0)
    catalog = parse_catalog(b'{"data":[' + largest.replace(b"xxx", b"xxxx", 1) + b',{"id":"b"}]}')
    assert (ids(catalog), catalog.skipped) == (["b"], 1)


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
        b'{"models":[{"id":"a"}]}',
        b'{"data":[{"id":"a"}],"data":[{"id":"b"}]}',
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
        b'{"data":[{"id":"a"} {"id":"b"}]}',
        b'{"data":[{"id":"a"}], "n":"',
        b'{"data":[{"id":"a"}], "n":"\\',
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


def test_a_list_without_end_is_refused() -> None:
    """More records than any platform has are refused."""
    with pytest.raises(FeedError, match="records"):
        parse_catalog(b'{"data":[{"id":"a"}' + b",0" * MAX_RECORDS + b"]}")


def test_a_laborious_body_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk through one body has a bound of its own, below which everything is read."""
    monkeypatch.setattr(feed_json, "MAX_STEPS", 100)
    frame = b'{"x":[%s0],"data":[]}'
    assert parse_catalog(frame % (b"[[[[[[]]]]]]," * 8)) == Catalog(())
    with pytest.raises(FeedError, match="steps"):
        parse_catalog(frame % (b"[[[[[[]]]]]]," * 80))


@pytest.mark.parametrize(
    ("start", "filling", "end"),
    [
        (b'"', b"x", b'"'),
        (b'"', rb"\"", b'"'),
        (b"[", b"0,", b"0]"),
        (b"[", b'"",', b"0]"),
        (b"[", b"[],", b"0]"),
        (b"[", b"[[[[[[[[]]]]]]]],", b"0]"),
        (b"[", b" ", b"0]"),
        (b"", b'["x",', b""),
    ],
    ids=["string", "escapes", "numbers", "strings", "lists", "deep lists", "white space", "never closed"],
)
def test_no_slice_is_long(start: bytes, filling: bytes, end: bytes) -> None:
    """However a body is made, other work runs before the walk has gone 32 KiB further."""
    body = b'{"n":NaN,"x":' + start + filling * (500_000 // len(filling)) + end + b',"data":[{"id":"a"}]}'
    slices = 0
    with suppress(FeedError):
        for _ in parse_catalog_in_slices(body):
            slices += 1
    assert slices >= len(body) // (2 * SLICE_BYTES)


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
@given(st.lists(JSON, max_size=5), st.booleans(), st.integers(8, 60))
def test_records_end_where_they_end(values: list[object], ascii_only: bool, slice_bytes: int) -> None:
    """Every record comes as it was written, whatever is in it and wherever the slices end."""
    records = [{"id": f"m{number}", "x": [[[value]]]} for number, value in enumerate(values)]
    written = [json.dumps(record, ensure_ascii=ascii_only).encode() for record in records]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed_json, "SLICE_BYTES", slice_bytes)
        catalog = parse_catalog(b'{"n" : NaN , "data" : [ ' + b" , ".join(written) + b' ] , "x" : ["[\\"]"]}')
    assert [entry.raw for entry in catalog.entries] == written
