"""The platform's documents: which parameters ask for them, where they are, and the names of their files."""

from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.explorer.cache_names import (
    FULL_LISTING,
    ListingQuery,
    chute_document,
    document_of,
    is_known,
    is_open,
    listing_document,
    read_listing_query,
    v1_document,
)
from chutes_autopilot.explorer.parameters import BadQuery, Parameters
from chutes_autopilot.storage.cache_files import is_safe_name

BASE = "https://api.example.org/prefix"
MODELS = "https://llm.example.org/v1/models"
UUID = "0d7184a2-32a3-53e0-9607-058c37edaab5"

texts = st.one_of(
    st.sampled_from(["null", "vllm", "a_nb", "~", "..", "../../etc/passwd", "x" * 128, "%00", "_pubtrue.json"]),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=128),
)
queries = st.builds(
    ListingQuery,
    page=st.integers(0, 100),
    limit=st.integers(1, 5000),
    include_public=st.booleans(),
    include_schemas=st.booleans(),
    template=st.none() | texts,
    name=st.none() | texts,
)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        (ListingQuery(), "models_p0_l100_tnull_nnull_pubtrue.json"),
        (FULL_LISTING, "models_p0_l5000_tnull_nnull_pubtrue_schfalse.json"),
        (ListingQuery(2, 25, False, True, "vllm", "deepseek"), "models_p2_l25_tvllm_ndeepseek_pubfalse.json"),
        (ListingQuery(name="../../etc"), "models_p0_l100_tnull_n..%2F..%2Fetc_pubtrue.json"),
        (ListingQuery(template="null", name="a_b~c é"), "models_p0_l100_t%6Eull_na%5Fb%7Ec%20%C3%A9_pubtrue.json"),
    ],
)
def test_a_cache_file_has_its_documented_name(query: ListingQuery, name: str) -> None:
    """What is safe stands as it is; everything else is encoded, and the text null is not the absence of one."""
    assert query.file_name == name


@given(queries, queries)
def test_no_two_queries_share_a_file_and_no_name_is_a_path(one: ListingQuery, other: ListingQuery) -> None:
    """Whatever a visitor searches for, its answer is kept under a name of its own, inside the directory."""
    assert is_safe_name(one.file_name)
    assert "/" not in one.file_name
    assert (one.file_name == other.file_name) == (one == other)


@given(queries)
def test_exactly_the_documented_parameters_are_forwarded(query: ListingQuery) -> None:
    """The address holds them properly encoded, so nothing in them becomes a parameter or a path of its own."""
    parts = urlsplit(query.url(BASE))
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"{BASE}/chutes/"
    assert parts.fragment == ""
    expected = {
        "page": str(query.page),
        "limit": str(query.limit),
        "include_public": str(query.include_public).lower(),
        "include_schemas": str(query.include_schemas).lower(),
        **({} if query.template is None else {"template": query.template}),
        **({} if query.name is None else {"name": query.name}),
    }
    assert dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) == expected
    assert read_listing_query(Parameters(expected.items())) == query


@given(queries, st.booleans())
def test_a_name_leads_back_to_its_document(query: ListingQuery, with_key: bool) -> None:
    """So a refresh can fetch what is cached; only a text too long for a file name cannot be told from its digest."""
    document = listing_document(query, BASE, with_key=with_key)
    assert is_safe_name(document.name)
    assert (is_known(document.name), is_open(document.name)) == (True, not with_key)
    assert document_of(document.name, BASE, MODELS) in ([document] if "~" not in document.name else [None])


def test_chutes_and_the_catalog_have_documents_too() -> None:
    """A chute's is asked for with or without the key, which is never one document; the catalog's never with it."""
    for with_key, name in ((False, f"chute_{UUID}_open.json"), (True, f"chute_{UUID}_key.json")):
        chute = chute_document(UUID.upper(), BASE, with_key=with_key)
        assert (chute.name, chute.url, chute.with_key) == (name, f"{BASE}/chutes/{UUID}", with_key)
        assert document_of(chute.name, BASE, MODELS) == chute
        assert (is_known(chute.name), is_open(chute.name)) == (True, not with_key)
    catalog = v1_document(MODELS)
    assert (catalog.name, catalog.url, catalog.with_key) == ("v1_models_all.json", MODELS, False)
    assert document_of(catalog.name, BASE, MODELS) == catalog


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        f"chute_{'z' * 36}_open.json",
        f"chute_{UUID}.json",
        "models_p0_l1_tnull_nnull_pubtrue.json",
        "models_p0_l01_tnull_nnull_pubtrue_open.json",
        "models_p0_l1_t_n_pubtrue_open.json",
    ],
)
def test_other_names_are_no_documents(name: str) -> None:
    """A file that no query would have made leads nowhere."""
    assert document_of(name, BASE, MODELS) is None


@pytest.mark.parametrize(
    "chute_id", ["", "../users/me", UUID + "/x", UUID + "\n", UUID[:-1], f"{{{UUID}}}", UUID.replace("-", "")]
)
def test_only_a_canonical_uuid_enters_the_path(chute_id: str) -> None:
    """Anything else could reach another place of the platform with the operator's key."""
    with pytest.raises(ValueError, match="UUID"):
        chute_document(chute_id, BASE)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("page", "101"),
        ("page", "-1"),
        ("page", "0x1"),
        ("limit", "0"),
        ("limit", "5001"),
        ("limit", " 5"),
        ("include_public", "maybe"),
        ("include_schemas", "2"),
        ("template", "x" * 129),
        ("name", "x" * 129),
        ("name", "a\r\nX-Evil: 1"),
    ],
)
def test_parameters_out_of_their_documented_bounds_are_refused(parameter: str, value: str) -> None:
    """The fault names the parameter."""
    with pytest.raises(BadQuery) as refused:
        read_listing_query(Parameters([(parameter, value)]))
    assert refused.value.parameter == parameter


def test_the_documented_defaults() -> None:
    """Empty and unknown parameters count for nothing."""
    assert read_listing_query(Parameters([("template", ""), ("name", ""), ("extra", "1")])) == ListingQuery()
