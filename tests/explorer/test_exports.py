"""Models as files: nothing in them does anything, and everything in them can be read back."""

import csv
import io
import json
import re
from typing import Any

import pytest
from explorer_samples import chute_json, chutes, listing_body, loads, models, uuid
from hypothesis import example, given
from hypothesis import strategies as st

from chutes_autopilot.explorer.export import (
    CSV_COLUMNS,
    ExportedSource,
    csv_table,
    documented_export,
    escaped,
    markdown_table,
    merge_analysis,
    ndjson,
)
from chutes_autopilot.explorer.listing import ListedChute
from chutes_autopilot.explorer.merge import merge
from chutes_autopilot.explorer.models import ModelRecord
from chutes_autopilot.explorer.privacy import NotAListing, is_private_chute, public_listing, public_page
from chutes_autopilot.explorer.provenance import MergedModel

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)


def record(name: str = "m", **members: Any) -> MergedModel:
    return merge(chutes(ListedChute(name, uuid(1), **members)), None, None).records[0]


def rows(table: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.decode(), newline=""), strict=True))


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_no_cell_is_a_formula(first: str) -> None:
    """A spreadsheet would run it; a quote in front makes it text."""
    row = rows(csv_table([record(f'{first}HYPERLINK("http://evil")', owner=f"{first}1", gpus=(f"{first}2", "b"))]))[0]
    assert row["name"] == f'\'{first}HYPERLINK("http://evil")'
    assert row["owner"] == f"'{first}1"
    assert row["gpus"] == f"'{first}2;b"


@given(texts)
@example('a"b,c\r\nd')
def test_a_table_is_read_back_as_it_was(name: str) -> None:
    """RFC 4180: whatever is in a cell, it is one cell."""
    table = csv_table([record(name), record("z")])
    assert table.count(b"\r\n") >= 3
    found = rows(table)
    assert [row["name"].removeprefix("'") for row in found] == [name.removeprefix("'"), "z"]
    assert list(found[0]) == list(CSV_COLUMNS)


def test_values_in_cells_are_plain() -> None:
    """Unknown is empty and not zero, numbers have no noise, lists are joined."""
    row = rows(csv_table([record(tee=True, instances=0, gpus=("a", "b"), prices={"price.input": 0.1 + 0.2})]))[0]
    assert (row["tee"], row["instances"], row["hot"], row["gpus"]) == ("true", "0", "", "a;b")
    assert (row["price.input"], row["price.output"], row["sources"]) == ("0.3", "", "chutes")


def test_lines_of_json_are_the_records() -> None:
    """One per line, as the API gives them."""
    records = merge(chutes((1, "a\nb"), (2, "c")), models((1, "d")), None).records
    lines = [json.loads(line) for line in ndjson(records).decode().splitlines()]
    assert lines == [json.loads(json.dumps({**each.as_json(), "conflicts": list(each.conflicts)})) for each in records]
    assert [line["conflicts"] for line in lines] == [["name"], []]


@given(texts)
@example("a|b")
@example("</td><script>alert(1)</script>")
@example("[x](javascript:alert(1)) `code` **b** ~~s~~ &lt; $m$ :smile: #1 @me")
@example("see https://evil.example and WWW.evil.example")
def test_nothing_happens_in_markdown(name: str) -> None:
    """A cell stays one cell, and no mark-up, HTML or link begins without a backslash before it."""
    table = markdown_table([record(name)]).decode()
    lines = table.split("\n")
    assert (len(lines), lines[-1]) == (4, "")
    bars = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines[:3]]
    assert len(set(bars)) == 1
    cell = escaped(name)
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]<>~&!:@$#]", cell)
    assert not re.search(r"www\.", cell, re.IGNORECASE)
    shown = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cell)
    assert shown == re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", name)


def test_the_documented_analysis() -> None:
    """The share is of the smaller catalog, with two decimals."""
    merged = merge(
        chutes(*((number, f"m{number}") for number in range(1, 7))),
        models(ModelRecord("m1", uuid(1), context_length=8), (2, "m2"), (3, "m3"), (9, "new")),
        None,
    )
    assert merge_analysis(merged) == {
        "totalInChutesApi": 6,
        "totalInV1Api": 4,
        "matched": 3,
        "matchPercentage": "75.00%",
        "onlyInChutesApi": ["m4", "m5", "m6"],
        "onlyInV1Api": ["new"],
        "dataGaps": {"chutesApiMissing": ["context_length"], "v1ApiMissing": []},
        "matchedByRule": {"chute_id": 3},
    }
    assert merge_analysis(merge(chutes(), models((1, "a")), None))["matchPercentage"] == "0.00%"
    assert "utilization" not in json.dumps(merge_analysis(merge(chutes((1, "a")), models((1, "a")), loads((1, "a")))))


def test_the_documented_export() -> None:
    """The platform's answers are in it as they came; a source that cannot be had is null, and the analysis with it."""
    chutes_api = ExportedSource("https://a/chutes/", True, 1, b'{"items":[{"price":1.0}]}')
    v1_api = ExportedSource("https://l/v1/models", False, 0, b'{"data":[]}')
    merged = merge(chutes((1, "a")), models(), None)
    whole = documented_export("2026-01-02T03:04:05Z", chutes_api, v1_api, merged, "s1")
    assert b'"data":{"items":[{"price":1.0}]}' in whole
    exported = json.loads(whole)
    assert list(exported) == ["timestamp", "sources", "snapshot"]
    assert list(exported["sources"]) == ["chutesApi", "v1Api", "mergeAnalysis"]
    assert exported["sources"]["v1Api"] == {
        "source": "https://l/v1/models",
        "requiresAuth": False,
        "modelCount": 0,
        "data": {"data": []},
    }
    halved = json.loads(documented_export("t", None, v1_api, None, None))["sources"]
    assert (halved["chutesApi"], halved["mergeAnalysis"]) == (None, None)


def test_private_chutes_leave_a_listing_without_a_trace() -> None:
    """With them go their count and what only they refer to; the others stay byte for byte. So does what cannot be read,
    for nobody can tell whether it is private."""
    body = listing_body(
        {**chute_json(1, "a"), "cord_ref_id": "r1", "price": 1.0},
        {**chute_json(2, "secret"), "public": False, "cord_ref_id": "r2"},
        {**chute_json(3, "odd"), "public": "true", "cord_ref_id": ["r2"]},
        {key: value for key, value in chute_json(4, "old").items() if key != "public"},
        None,
        cord_refs={"r1": [{"path": "/x"}], "r2": [{"path": "/secret"}]},
        extra=1.50,
    )
    visible = public_listing(body)
    found = json.loads(visible)
    assert [item["name"] for item in found["items"]] == ["a", "old"]
    assert (found["total"], found["extra"], found["cord_refs"]) == (2, 1.5, {"r1": [{"path": "/x"}]})
    assert json.dumps({**chute_json(1, "a"), "cord_ref_id": "r1", "price": 1.0}).encode() in visible
    assert b"secret" not in visible


def test_a_listing_without_private_chutes_is_passed_on_unchanged() -> None:
    """The very same bytes, whatever else is in them."""
    body = b'{ "items":[ {"public" :true,"n":1.50} , {"n":1e999} ],"total": "many" }'
    assert public_listing(body) == body


chute_lists = st.lists(st.tuples(st.booleans(), st.sampled_from(["r1", "r2", None, 3])), max_size=6)


@given(chute_lists, st.integers(0, 3), st.integers(1, 4), st.booleans())
def test_a_page_of_the_public_chutes_is_the_same_whatever_else_is_listed(
    listed: list[tuple[bool, Any]], page: int, limit: int, has_refs: bool
) -> None:
    """Byte for byte: its count, its places and the cords in it are those of a list without any other chute."""
    items = [
        {**chute_json(number, f"m{number}", public=public), "cord_ref_id": ref}
        for number, (public, ref) in enumerate(listed)
    ]
    refs = {"cord_refs": {"r1": [], "r2": [1.0]} if has_refs else None}
    pages = [
        public_page(listing_body(*kept, more=len(kept), **refs), page, limit)
        for kept in (items, [item for item in items if item["public"]])
    ]
    assert pages[0] == pages[1]
    found = json.loads(pages[0])
    assert found["items"] == [item for item in items if item["public"]][page * limit :][:limit]
    assert (found["total"], found["page"], found["limit"]) == (sum(public for public, _ in listed), page, limit)


@pytest.mark.parametrize(
    "body", [b"[]", b"[null]", b"7", b'{"items":null}', b'{"item":[]}', b'{"items":{}}', b"", b"{"]
)
def test_an_answer_of_another_shape_is_not_passed_on(body: bytes) -> None:
    """Nobody can tell what is private in it."""
    with pytest.raises(NotAListing):
        public_listing(body)


def test_one_chute_is_private_unless_it_says_it_is_public() -> None:
    """Absent counts as public, for older servers do not say it; any other value does not."""
    answers = {b'{"a":1}': False, b'{"public":true}': False, b'{"public":false}': True, b'{"public":null}': True}
    assert {body: is_private_chute(body) for body in answers} == answers
    with pytest.raises(NotAListing):
        is_private_chute(b"[null]")
