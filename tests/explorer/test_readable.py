"""One record that is no JSON is lost, and nothing else of the answer it came in."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.explorer.readable import NotReadable, is_readable, repaired, without_gaps

BAD = [
    b"NaN",
    b'{"a":-Infinity}',
    rb'{"a":"\ud800"}',
    rb'{"\udc00\ud800":1}',
    b'{"a":"\xff"}',
    b'{"a":"\x01"}',
    rb'{"a":"\x"}',
    b'{"a":[1,]}',
    b'{"a":tru, "b":[{}]}',
    b"[" * 3000 + b"]" * 3000,
    b'{"a" 1}',
    b"",
]
GOOD = [b"1.50", b'{ "a" : "],}\\"[{" }', b"[[],{}]", '"é"'.encode(), rb'"\ud83d\ude00\\"', b"null", b"{}", b"1e999"]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("around", [b"[%b]", b'{"total": 3,"items" : [%b],"n":"]"}', b'{"data":[%b]}'])
def test_a_record_that_is_no_json_is_null(bad: bytes, around: bytes) -> None:
    """Whatever is wrong in it, and whatever stands beside it."""
    assert not is_readable(bad)
    body = around % b",".join((GOOD[1], b" %b " % bad, GOOD[0]))
    found, lost = repaired(body)
    assert (json.loads(found), lost) == (json.loads(around % b",".join((GOOD[1], b"null", GOOD[0]))), 1)


@given(st.lists(st.sampled_from(BAD + GOOD), min_size=1, max_size=12))
def test_all_other_records_stay_byte_for_byte(records: list[bytes]) -> None:
    """In their places; where none is left, the answer is no JSON."""
    body = b'{"items":[' + b",".join(records) + b"]}"
    expected = [record if record in GOOD else b"null" for record in records]
    if body == b'{"items":[]}' or is_readable(body):
        return
    if set(expected) == {b"null"}:
        with pytest.raises(NotReadable):
            repaired(body)
        return
    found, lost = repaired(body)
    assert found == b'{"items":[' + b",".join(expected) + b"]}"
    assert lost == sum(record in BAD for record in records)
    assert without_gaps(found) == b'{"items":[' + b",".join(each for each in expected if each != b"null") + b"]}"


def test_another_member_that_is_no_json_is_null_too() -> None:
    """As of one chute, which is no list of records."""
    assert repaired(b'{"name":"a" , "price" : {"usd":NaN}}') == (b'{"name":"a","price":null}', 1)


@pytest.mark.parametrize(
    "body",
    rb"""
    <html> [<html>] { [1,NaN [NaN,1]] [1,NaN]x {"items":[1,NaN {"items":[1,NaN]] {NaN} NaN {"items":[NaN]} ["a [1,"a\
    {"a":1}} [1,NaN} {"a":NaN] {"items":[1,NaN}} {"items":[1,NaN]
    """.split(),
)
def test_what_is_no_json_at_all_stays_so(body: bytes) -> None:
    """Nothing is made up."""
    with pytest.raises(NotReadable):
        repaired(body)


@given(st.binary(max_size=40) | st.text('[]{},":\\ aN1n', max_size=40).map(str.encode))
def test_what_comes_out_is_always_json(body: bytes) -> None:
    """Whatever came."""
    try:
        found, _ = repaired(body)
    except NotReadable:
        return
    json.loads(found)


@pytest.mark.parametrize("body", [b'{"items":[1, 2],"n":null}', b"[1 ,2]", b'{"data":{}, "items":null}', b"{}"])
def test_an_answer_without_gaps_is_left_alone(body: bytes) -> None:
    """The very same bytes."""
    assert without_gaps(body) is body


def test_gaps_are_closed() -> None:
    """In lists alone."""
    found: Any = json.loads(without_gaps(b'{"data":[null,1],"items":[2, null],"n":null,"m":[null]}'))
    assert found == {"data": [1], "items": [2], "n": None, "m": [None]}
    assert without_gaps(b"[null,1]") == b"[1]"
