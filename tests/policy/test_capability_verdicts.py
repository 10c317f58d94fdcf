import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.capability import REQUIREMENTS, capable, skipped_header, verdict
from chutes_autopilot.policy.catalog import Catalog, CatalogEntry
from chutes_autopilot.policy.model_offers import SURE_BYTES_PER_TOKEN, UNKNOWN, Offer, Offers, offers_of, read_offer
from chutes_autopilot.policy.request_needs import FEATURES, INPUTS, MEDIA_TOKENS, Need, read_need
from chutes_autopilot.wire.body import read_chat_body

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5000}}
SOUND = {"type": "input_audio", "input_audio": {"data": "A" * 5000, "format": "wav"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def request(*parts: Any, **members: Any) -> bytes:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": list(parts) or "hi"}]
    return json.dumps({"model": "m", "messages": messages, **members}).encode()


def offer(**record: Any) -> Offer:
    return read_offer(json.dumps({"id": "m", **record}).encode())


# what a request needs


def need_of(data: bytes) -> Need:
    body = read_chat_body(data)
    need = read_need(body.members, len(data), body.flat)
    assert need == read_need(body.members, len(data))
    return need


@pytest.mark.parametrize(
    ("data", "requires"),
    [
        (request(), ()),
        (request({"type": "text", "text": 'say "type":"image_url" and "tools"'}), ()),
        (request(IMAGE), ("image",)),
        (request({"type": "input_image", "image_url": "https://a/b"}), ("image",)),
        (request({"image_url": "https://a/b"}), ("image",)),
        (request({"type": "text", "text": "x", "image_url": None}), ()),
        (request(SOUND), ("audio",)),
        (request({"type": "audio_url", "audio_url": {"url": "https://a"}}), ("audio",)),
        (request({"type": "video_url", "video_url": {"url": "https://a"}}, IMAGE), ("image", "video")),
        (request({"type": "file", "file": {}}, {"type": 5}, {}), ()),
        (request(tools=[TOOL]), ("tools",)),
        (request(functions=[{"name": "f"}]), ("tools",)),
        (request(tools=[]), ()),
        (b'{"model":"m","messages":"x","tools":[{}]}', ("tools",)),
        (request(tools=None), ()),
        (request(tools=[TOOL], tool_choice="none"), ()),
        (request(tools=[TOOL], tool_choice="required"), ("tools",)),
        (request(response_format={"type": "json_object"}), ("json_mode",)),
        (request(response_format={"type": "json_schema", "json_schema": {}}), ("structured_outputs",)),
        (request(response_format={"type": "text"}), ()),
        (request(response_format={"type": []}), ()),
        (request(response_format="json_object"), ()),
        (request(IMAGE, tools=[TOOL], response_format={"type": "json_object"}), ("image", "tools", "json_mode")),
        (b'{"messages":[{"content":[{"type":"image_url","image_url":"\\ud83d"}]}]}', ("image",)),
        (b'{"messages":"hello","tools":[{}]}', ("tools",)),
        (b'{"messages":[{"content":"a\\ud800"}],"t\\u006fols":[{}]}', ("tools",)),
    ],
)
def test_what_a_request_requires(data: bytes, requires: tuple[str, ...]) -> None:
    """Parts of content, filled tools and the kind of answer count, wherever else their names stand they do not."""
    assert need_of(data).requires == requires


@pytest.mark.parametrize(
    ("members", "tokens"),
    [
        ({}, 0),
        ({"max_tokens": 100}, 100),
        ({"max_tokens": 100, "max_completion_tokens": 50}, 50),
        ({"max_tokens": 100, "max_completion_tokens": None}, 100),
        ({"max_tokens": 100.0}, 100),
        ({"max_tokens": True}, 0),
        ({"max_tokens": "100"}, 0),
        ({"max_tokens": -1}, 0),
        ({"max_tokens": 10**30}, 0),
    ],
)
def test_the_longest_answer(members: dict[str, Any], tokens: int) -> None:
    """max_completion_tokens counts before max_tokens; what is no number of tokens names no limit."""
    assert need_of(request(**members)).max_tokens == tokens


def test_media_bytes_are_no_text() -> None:
    """An image counts by its number, never by the length of its base64."""
    need = need_of(request(IMAGE, {"type": "text", "text": "what is it?"}))
    assert need.media == 1
    assert need.text_bytes < 300
    assert need.tokens(4) == need.text_bytes // 4 + MEDIA_TOKENS


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["type", "image_url", "content", "a"]) | st.text(max_size=3), inner, max_size=3
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(["messages", "tools", "response_format", "max_tokens", "tool_choice"]),
)
def test_no_accepted_body_fails(value: Any, name: str) -> None:
    """Whatever stands where messages, tools or a format should be, the need is read and never negative."""
    data = json.dumps({"model": "m", "messages": [{"content": [value]}], name: value}).encode()
    need = need_of(data)
    assert 0 <= need.text_bytes <= len(data)
    assert set(need.requires) <= {*INPUTS, *FEATURES}


# what a model offers


def test_the_platforms_record() -> None:
    """A full record of the catalog says what the model has, lacks, serves and costs."""
    read = offer(
        context_length=40960,
        max_model_len=40960,
        max_output_length=8192,
        input_modalities=["text", "image"],
        supported_features=["tools", "structured_output"],
        confidential_compute=True,
        pricing={"completion": 0.416},
    )
    assert read.has == {"image", "tools", "structured_outputs", "json_mode"}
    assert read.lacks == {"audio", "video"}
    assert (read.context, read.context_served, read.max_output) == (40960, 40960, 8192)
    assert (read.output_price, read.confidential) == (0.416, True)


@pytest.mark.parametrize(
    ("record", "context", "served"),
    [
        ({}, None, None),
        ({"max_model_len": 1000}, 1000, None),
        ({"context_length": 96000, "max_model_len": 1048576}, 96000, 96000),
        ({"context_length": 1048576, "max_model_len": 96000}, 96000, 1048576),
        ({"context_length": "96000", "max_model_len": -5}, None, None),
        ({"context_length": 0, "max_model_len": True}, None, None),
    ],
)
def test_the_context(record: dict[str, Any], context: int | None, served: int | None) -> None:
    """max_model_len bounds the context, but does not say that it is served."""
    read = offer(**record)
    assert (read.context, read.context_served) == (context, served)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"input_modalities": None, "supported_features": {}, "confidential_compute": "yes", "pricing": 5},
        {"input_modalities": [], "supported_features": "tools", "price": {"output": 1}, "pricing": {"completion": "1"}},
        {"price": {"output": {"usd": True}}, "max_output_length": 1e99},
    ],
)
def test_what_is_missing_or_odd_is_unknown(record: dict[str, Any]) -> None:
    """Nothing is concluded from a field that is absent or of another type."""
    assert offer(**record) == UNKNOWN


def test_the_price_falls_back() -> None:
    """Without pricing, price.output.usd counts; a real zero is a price."""
    assert offer(price={"output": {"usd": 0}}).output_price == 0


# verdicts

BASE = Offer(frozenset(("audio", "video", "tools")), frozenset(("image",)), 1000, 1000, 100)


@pytest.mark.parametrize(
    ("need", "reason"),
    [
        (Need(), None),
        (Need(("image",)), None),
        (Need(("audio",)), "audio"),
        (Need(("image", "tools")), "tools"),
        (Need(("json_mode",)), None),
        (Need(max_tokens=100), None),
        (Need(max_tokens=101), "max_tokens"),
        (Need(text_bytes=4003), None),
        (Need(text_bytes=4004), "context"),
        (Need(text_bytes=3604, max_tokens=100), "context"),
        (Need(("tools",), text_bytes=99999, max_tokens=101), "tools"),
    ],
)
def test_verdicts(need: Need, reason: str | None) -> None:
    """Only what is known to be lacking, too short or too brief speaks against a model; nothing against an unknown."""
    assert verdict(need, BASE) == reason
    assert verdict(need, UNKNOWN) is None


def test_where_it_must_be_sure_only_a_hopeless_length_counts() -> None:
    """A prompt that may just fit is too long for the ranked list and not for a list of the client's own."""
    need = Need(text_bytes=8000)
    assert (verdict(need, BASE), verdict(need, BASE, sure=True)) == ("context", None)
    assert verdict(Need(text_bytes=SURE_BYTES_PER_TOKEN * 1001), BASE, sure=True) == "context"


OFFERS = Offers(
    {
        "text": Offer(lacks=frozenset(("image",)), context=1000),
        "vision": Offer(has=frozenset(("image",)), context=2000),
        "long": Offer(lacks=frozenset(("image",)), context=9000),
    }
)


def test_incapable_candidates_are_skipped_in_place() -> None:
    """Those that remain keep their order, and each skipped one has its reason."""
    found = capable(Need(("image",)), ["text", "new", "long", "vision"], OFFERS)
    assert found.models == ("new", "vision")
    assert found.skipped == {"text": "image", "long": "image"}
    assert skipped_header(found.skipped) == b"text=image, long=image"


def test_nothing_capable_names_what_is_missing() -> None:
    """The error says which requirement nobody meets, and where the request states it."""
    with pytest.raises(ApiError) as refused:
        capable(Need(("image",)), ["text", "long"], OFFERS)
    assert (refused.value.status, refused.value.code) == (400, "no_capable_candidate")
    assert refused.value.param == "messages"
    assert "image input" in refused.value.message


def test_an_estimate_alone_refuses_nobody() -> None:
    """Where only the estimated length speaks against all, those it may be wrong about are tried, longest first."""
    need = Need(text_bytes=40_000)
    assert capable(need, ["text", "vision", "long"], OFFERS).models == ("long",)
    assert capable(Need(text_bytes=20_000), ["text", "vision"], OFFERS).models == ("vision",)
    with pytest.raises(ApiError, match="context of more than 10000 tokens"):
        capable(Need(text_bytes=120_000), ["text", "vision", "long"], OFFERS)


needs = st.builds(
    Need,
    st.sets(st.sampled_from([*INPUTS, *FEATURES])).map(lambda s: tuple(n for n in (*INPUTS, *FEATURES) if n in s)),
    st.integers(0, 50_000),
    st.integers(0, 2),
    st.integers(0, 500) | st.sampled_from([99, 100, 101]),
)
limits = st.none() | st.sampled_from([100, 1000, 5000]) | st.integers(1, 20_000)
offers = st.builds(
    Offer, st.frozensets(st.sampled_from([*INPUTS, *FEATURES])), st.just(frozenset()), limits, limits, limits
)
all_offers = st.dictionaries(st.sampled_from("abcdef"), offers, max_size=5).map(Offers)


@given(all_offers, needs, needs)
def test_equal_keys_mean_equal_verdicts(known: Offers, one: Need, other: Need) -> None:
    """A plan made for one need may serve every need with the same key, and without a key nobody is skipped."""
    verdicts = [[verdict(n, known.of(m), sure=s) for m in known.by_model for s in (False, True)] for n in (one, other)]
    if known.key(one) == known.key(other):
        assert verdicts[0] == verdicts[1]
    if known.key(one) is None:
        assert set(verdicts[0]) <= {None}


@given(all_offers, needs, st.booleans())
def test_choosing(known: Offers, need: Need, sure: bool) -> None:
    """Every model remains or has a reason out of the closed set, and a refusal means that each surely cannot."""
    models = [*known.by_model, "unlisted"][:4]
    try:
        found = capable(need, models, known, sure=sure)
    except ApiError:
        assert all(verdict(need, known.of(name), sure=True) for name in models)
    else:
        assert sorted([*found.models, *found.skipped]) == sorted(models)
        assert set(found.skipped.values()) <= set(REQUIREMENTS)
        assert all(verdict(need, known.of(name), sure=True) is None for name in found.models)
        if sure:
            assert list(found.models) == [name for name in models if name in found.models]


def test_the_header_is_bounded_and_plain() -> None:
    """Names of any spelling become ASCII without commas, and a long list is cut at whole items."""
    assert skipped_header({"a,b é": "image"}) == b"a%2Cb%20%C3%A9=image"
    long = skipped_header({f"model-{n}": "structured_outputs" for n in range(500)})
    assert len(long) <= 1024
    assert all(part.endswith(b"=structured_outputs") for part in long.split(b", "))


def test_offers_of_a_catalog() -> None:
    """Each entry's record is read under its id; a model out of the catalog is unknown, and so is all without one."""
    entries = tuple(CatalogEntry(f"m{n}", None, b'{"context_length":%d}' % (n + 1)) for n in range(2500))
    known = offers_of(Catalog(entries))
    assert [known.of(f"m{n}").context for n in (0, 2499)] == [1, 2500]
    assert known.of("other") is UNKNOWN
    assert offers_of(None).key(Need(text_bytes=10**9)) is None
