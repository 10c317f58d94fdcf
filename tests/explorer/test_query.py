"""Which merged models a query finds, in which order, and what of a query is refused."""

from typing import Any

import pytest
from explorer_samples import chutes, loads, models, uuid
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.explorer.listing import ListedChute
from chutes_autopilot.explorer.loads import LoadRow
from chutes_autopilot.explorer.merge import merge
from chutes_autopilot.explorer.models import ModelRecord
from chutes_autopilot.explorer.parameters import BadQuery, Parameters
from chutes_autopilot.explorer.prices import INPUT, OUTPUT
from chutes_autopilot.explorer.query import QUERY_PARAMETERS, SORT_KEYS, Query, SortKey, links, read_query
from chutes_autopilot.explorer.selection import matching, ordered, select

RECORDS = merge(
    chutes(
        ListedChute("Qwen/Qwen3", uuid(1), template="vllm", owner="chutes", tee=True, hot=True, tagline="Thinks Twice"),
        ListedChute("painter", uuid(2), template="diffusion", owner="Ann", hot=False, prices={"price.per_step": 0.01}),
        ListedChute("odd", uuid(3), owner="ann", prices={INPUT: 9.0}),
    ),
    models(
        ModelRecord(
            "Qwen/Qwen3",
            uuid(1),
            tee=False,
            context_length=8000,
            quantization="fp8",
            input_modalities=("text", "image"),
            output_modalities=("text",),
            features=("tools", "reasoning"),
            prices={INPUT: 0.5, OUTPUT: 1.0},
        ),
        ModelRecord("only/v1", uuid(4), tee=True, context_length=32000, features=("tools",), prices={INPUT: 0.0}),
    ),
    loads(LoadRow("painter", uuid(2), total_requests_1h=7.5, utilization_current=0.0)),
).records


def query(**parameters: str) -> Query:
    return read_query(Parameters(parameters.items()))


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ({}, ["odd", "only/v1", "painter", "Qwen/Qwen3"]),
        ({"q": "  QWEN twice "}, ["Qwen/Qwen3"]),
        ({"q": uuid(2)}, ["painter"]),
        ({"q": "qwen nothing"}, []),
        ({"kind": "vision,image"}, ["painter", "Qwen/Qwen3"]),
        ({"modality": "image"}, ["painter", "Qwen/Qwen3"]),
        ({"modality": "image,Text"}, ["painter", "Qwen/Qwen3"]),
        ({"modality": "image,video"}, []),
        ({"feature": "tools"}, ["only/v1", "Qwen/Qwen3"]),
        ({"feature": "tools,reasoning"}, ["Qwen/Qwen3"]),
        ({"template": "other"}, ["odd"]),
        ({"template": "vllm,diffusion"}, ["painter", "Qwen/Qwen3"]),
        ({"quantization": "FP8"}, ["Qwen/Qwen3"]),
        ({"owner": "ann"}, ["odd", "painter"]),
        ({"source": "v1"}, ["only/v1", "Qwen/Qwen3"]),
        ({"source": "chutes,v1"}, ["Qwen/Qwen3"]),
        ({"tee": "true"}, ["only/v1"]),
        ({"tee": "false"}, ["Qwen/Qwen3"]),
        ({"tee": "unknown"}, ["odd", "painter"]),
        ({"hot": "true"}, ["Qwen/Qwen3"]),
        ({"conflict": "true"}, ["Qwen/Qwen3"]),
        ({"conflict": "name,tee"}, ["Qwen/Qwen3"]),
        ({"conflict": "name"}, []),
        ({"conflict": "false"}, ["odd", "only/v1", "painter"]),
        ({"context_min": "8001"}, ["only/v1"]),
        ({"price_max": "0"}, ["only/v1"]),
        ({"price_max": "0.50"}, ["only/v1", "Qwen/Qwen3"]),
        ({"kind": "", "owner": "", "limit": ""}, ["odd", "only/v1", "painter", "Qwen/Qwen3"]),
    ],
)
def test_each_filter_finds_what_it_says(parameters: dict[str, str], found: list[str]) -> None:
    """Filters narrow; what is unknown passes none of them, and an empty value is none."""
    assert [record.name for record in matching(RECORDS, query(**parameters))] == found


@pytest.mark.parametrize(
    ("sort", "found"),
    [
        ("price_input", ["only/v1", "Qwen/Qwen3", "odd", "painter"]),
        ("-price_input", ["odd", "Qwen/Qwen3", "only/v1", "painter"]),
        ("-context_length", ["only/v1", "Qwen/Qwen3", "odd", "painter"]),
        ("-name", ["Qwen/Qwen3", "painter", "only/v1", "odd"]),
        ("-hot,-name", ["Qwen/Qwen3", "painter", "only/v1", "odd"]),
        ("owner,-price.input", ["painter", "odd", "Qwen/Qwen3", "only/v1"]),  # "Ann" and "ann" are two owners
        ("features", ["only/v1", "Qwen/Qwen3", "odd", "painter"]),
        ("utilization", ["painter", "odd", "only/v1", "Qwen/Qwen3"]),
    ],
)
def test_what_is_missing_comes_last_in_both_directions(sort: str, found: list[str]) -> None:
    """Zero is a value, null is none; equal records stay in the order of their names."""
    assert [record.name for record in ordered(RECORDS, query(sort=sort).sort)] == found


@settings(max_examples=60)
@given(st.lists(st.sampled_from(sorted(SORT_KEYS)), min_size=1, max_size=3), st.booleans(), st.permutations(RECORDS))
def test_any_field_sorts_any_records(names: list[str], descending: bool, records: list[Any]) -> None:
    """Every key gives a permutation, what it knows before what it does not, and sorting twice changes nothing."""
    keys = tuple(SortKey(name, descending) for name in names)
    once = ordered(records, keys)
    assert sorted(record.key for record in once) == sorted(record.key for record in RECORDS)
    missing = [record.fields[keys[0].field] is None for record in once]
    assert missing == sorted(missing)
    assert ordered(once, keys) == once


@pytest.mark.parametrize(
    ("parameters", "parameter"),
    [
        ({"colour": "red"}, "colour"),
        ({"<script>": "1"}, "?script?"),
        ({"kind": "chat,poem"}, "kind"),
        ({"source": "moon"}, "source"),
        ({"tee": "yes"}, "tee"),
        ({"conflict": "price"}, "conflict"),
        ({"context_min": "-1"}, "context_min"),
        ({"context_min": "1e3"}, "context_min"),
        ({"context_min": "٣"}, "context_min"),
        ({"price_max": "NaN"}, "price_max"),
        ({"price_max": "-0.1"}, "price_max"),
        ({"sort": "colour"}, "sort"),
        ({"sort": "--name"}, "sort"),
        ({"sort": ",".join(sorted(SORT_KEYS)[:9])}, "sort"),
        ({"limit": "0"}, "limit"),
        ({"limit": "5001"}, "limit"),
        ({"offset": "1000001"}, "offset"),
        ({"q": "x" * 201}, "q"),
        ({"q": "a\x00b"}, "q"),
        ({"owner": "\ud800"}, "owner"),
        ({"owner": ",".join(map(str, range(33)))}, "owner"),
    ],
)
def test_what_means_nothing_is_refused_by_name(parameters: dict[str, str], parameter: str) -> None:
    """The fault names the parameter and never repeats the value."""
    with pytest.raises(BadQuery) as refused:
        query(**parameters)
    assert refused.value.parameter == parameter
    assert next(iter(parameters.values())) not in refused.value.message.split()


def test_what_is_given_twice_or_is_not_utf8_is_refused() -> None:
    """A second value of a single parameter would have to be ignored, and bytes cannot be guessed."""
    with pytest.raises(BadQuery, match=r"^limit may be given only once"):
        read_query(Parameters([("limit", "1"), ("limit", "2")]))
    with pytest.raises(BadQuery, match=r"^q must be UTF-8"):
        Parameters.decoded({b"q": [b"\xff"]})
    assert read_query(Parameters.decoded({b"kind": [b"chat", b"image,chat"]})).kind == ("chat", "image")


def test_a_page_is_cut_out_of_the_whole() -> None:
    """Totals are of everything found, and beyond the end there is nothing."""
    page = select(RECORDS, query(limit="2", offset="1"))
    assert ([record.name for record in page.items], page.total, page.everything) == (["only/v1", "painter"], 4, 4)
    assert select(RECORDS, query(offset="4")).items == ()


def test_links_lead_through_all_pages_and_keep_the_filters() -> None:
    """Whoever follows ``next`` from the first page sees everything once; values come encoded."""
    asked = query(q="a&b/ü", limit="2", sort="-requests,name")
    assert links(asked, 0, "/api/catalog") == {
        "self": "/api/catalog?q=a%26b/%C3%BC&sort=-requests,name&limit=2",
        "first": "/api/catalog?q=a%26b/%C3%BC&sort=-requests,name&limit=2",
        "last": "/api/catalog?q=a%26b/%C3%BC&sort=-requests,name&limit=2",
    }
    middle = links(query(limit="2", offset="3"), 7, "/x")
    assert {relation: href.partition("offset=")[2] for relation, href in middle.items()} == {
        "self": "3",
        "first": "",
        "prev": "1",
        "next": "5",
        "last": "6",
    }


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "q": st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=50),
            "owner": st.text("aZ/ ,", max_size=9),
            "tee": st.sampled_from(["true", "false", "unknown"]),
            "price_max": st.from_regex(r"[0-9]{1,9}(\.[0-9]{1,9})?", fullmatch=True),
            "sort": st.sampled_from(["-name", "requests,-tee"]),
            "limit": st.integers(1, 5000).map(str),
            "offset": st.integers(0, 10).map(str),
        },
    )
)
def test_a_query_read_from_its_own_parameters_is_the_same(parameters: dict[str, str]) -> None:
    """So links say what was asked, and one answer is kept for all spellings."""
    asked = query(**parameters)
    assert read_query(Parameters(asked.parameters)) == asked
    assert {name for name, _ in asked.parameters} <= set(QUERY_PARAMETERS)
