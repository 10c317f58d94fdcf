"""The simulator's data: catalog, feed, listing and answers have the platform's shape."""

import json
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.demo.catalog import DETAIL_KEYS, models_answer, simulated_models
from chutes_autopilot.demo.completions import Completion, stream_pieces, tokens_begun, whole_answer
from chutes_autopilot.demo.feed import utilization_rows
from chutes_autopilot.demo.listing import (
    DEARER,
    REDEPLOYED,
    RENAMED,
    ListingRefused,
    chute_answer,
    listing_answer,
)
from chutes_autopilot.demo.other_chutes import OTHER_CHUTES

MODELS = simulated_models()
NOW = 1_760_000_000.0
FEED_KEYS = {
    "chute_id", "name", "timestamp", "utilization_current", "utilization_5m", "utilization_15m", "utilization_1h",
    "rate_limit_ratio_5m", "rate_limit_ratio_15m", "rate_limit_ratio_1h", "total_requests_5m", "total_requests_15m",
    "total_requests_1h", "completed_requests_5m", "completed_requests_15m", "completed_requests_1h",
    "rate_limited_requests_5m", "rate_limited_requests_15m", "rate_limited_requests_1h", "instance_count",
    "action_taken", "target_count", "effective_multiplier", "total_instance_count", "active_instance_count", "scalable",
    "scale_allowance", "avg_busy_ratio", "total_invocations", "total_rate_limit_errors",
}  # fmt: skip


def test_the_catalog_has_the_varied_shape_of_the_platforms() -> None:
    """About forty unique entries: TEE or not, vision or not, the seven details together or not at all, one id bare."""
    answer = models_answer(MODELS, NOW)
    data = answer["data"]
    assert answer["object"] == "list"
    assert 35 <= len(data) == len({entry["id"] for entry in data}) == len({entry["chute_id"] for entry in data})
    assert all(entry["confidential_compute"] == entry["id"].endswith("-TEE") for entry in data)
    assert 5 < sum(entry["confidential_compute"] for entry in data) < len(data)
    assert {len(set(DETAIL_KEYS) & set(entry)) for entry in data} == {0, 7}
    assert any("image" in entry.get("input_modalities", ()) for entry in data)
    assert len([entry for entry in data if "/" not in entry["id"]]) == 1
    assert len({entry["pricing"]["prompt"] for entry in data}) > 10
    for entry in data:
        assert entry["chute_id"] == str(uuid5(NAMESPACE_OID, entry["id"]))
        assert entry["pricing"]["completion"] == entry["price"]["output"]["usd"]
        assert 0 <= NOW - entry["created"] <= 600


def test_the_feed_has_thirty_keys_a_row_and_the_platforms_odd_rows() -> None:
    """Private chutes, cold ones, chutes the catalog does not know, and nulls are among the rows; busiest first."""
    rows = utilization_rows(MODELS, NOW)
    names = {model.name for model in MODELS}
    assert len(FEED_KEYS) == 30
    assert all(set(row) == FEED_KEYS for row in rows)
    assert {model.chute_id for model in MODELS} <= {row["chute_id"] for row in rows}
    assert len({row["chute_id"] for row in rows}) == len(rows)
    assert sum(row["name"] == "[private chute]" for row in rows) > 3
    assert any(row["name"] not in names and row["name"] != "[private chute]" for row in rows)
    assert any(row["name"] in names and row["active_instance_count"] == 0 for row in rows)
    assert any(row["active_instance_count"] != row["total_instance_count"] for row in rows)
    for key in ("utilization_5m", "rate_limit_ratio_1h", "effective_multiplier"):
        assert 0 < sum(row[key] is None for row in rows) < len(rows) / 5
    requests = [row["total_requests_1h"] for row in rows]
    assert requests == sorted(requests, reverse=True)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


@given(st.floats(0, 4e9))
def test_the_feed_is_consistent_at_any_time(now: float) -> None:
    """Shares stay within 0 and 1, totals add up, the scaler's numbers agree, and no active count is negative."""
    for row in utilization_rows(MODELS, now):
        shares = [row[key] for key in row if key.startswith(("utilization", "rate_limit_ratio"))]
        assert all(share is None or 0 <= share <= 1 for share in shares)
        for window in ("5m", "15m", "1h"):
            parts = row[f"completed_requests_{window}"] + row[f"rate_limited_requests_{window}"]
            assert parts == pytest.approx(row[f"total_requests_{window}"])
        assert row["scale_allowance"] == max(0, row["target_count"] - row["active_instance_count"])
        assert row["scalable"] is (row["active_instance_count"] < row["target_count"])
        assert 0 <= row["active_instance_count"] <= row["total_instance_count"]


def test_the_feed_moves_slowly_and_far_enough() -> None:
    """The same second gives the same rows, a minute is some hundredths, and within half an hour others are idlest."""

    def shares(now: float) -> dict[str, float]:
        rows = utilization_rows(MODELS, now)
        return {row["chute_id"]: row["utilization_current"] for row in rows if row["active_instance_count"]}

    def idlest(now: float) -> list[str]:
        current = shares(now)
        return sorted(current, key=current.__getitem__)[:5]

    assert utilization_rows(MODELS, NOW) == utilization_rows(MODELS, NOW)
    before, after = shares(NOW), shares(NOW + 60)
    assert all(abs(before[chute] - after[chute]) < 0.1 for chute in before)
    assert idlest(NOW) != idlest(NOW + 1800)


def test_the_listing_has_the_platforms_keys_and_pages() -> None:
    """39 keys an item, 25 items unless told otherwise, and pages that follow each other."""
    first = listing_answer(MODELS, {})
    assert set(first) == {"total", "page", "limit", "items", "cord_refs"}
    assert first["total"] == len(MODELS) + len(OTHER_CHUTES)
    assert {len(item) for item in first["items"]} == {39}
    assert all(item["cord_ref_id"] in first["cord_refs"] for item in first["items"])
    answer = listing_answer(MODELS, {"limit": "5000"})
    everything = answer["items"]
    assert {len(item) for item in everything} == {39}
    assert all(item["cord_ref_id"] in answer["cord_refs"] for item in everything)
    names = [(RENAMED | REDEPLOYED).get(model.name, model.name) for model in MODELS]
    assert [item["name"] for item in everything] == names + [other.name for other in OTHER_CHUTES]
    assert listing_answer(MODELS, {"page": "1", "limit": "10"})["items"] == everything[10:20]
    assert listing_answer(MODELS, {"offset": "3", "limit": "2"})["items"] == everything[3:5]


def test_the_listing_disagrees_with_the_catalog_where_the_platforms_does() -> None:
    """One name, some prices and one chute id are others than in the catalog; other kinds are sold by other units."""
    items = {item["chute_id"]: item for item in listing_answer(MODELS, {"limit": "5000"})["items"]}
    models = {entry["id"]: entry for entry in models_answer(MODELS, NOW)["data"]}
    (renamed,), (redeployed,) = RENAMED, REDEPLOYED
    assert items[models[renamed]["chute_id"]]["name"] == RENAMED[renamed]
    assert models[redeployed]["chute_id"] not in items
    tokens = {
        entry["id"]: items[entry["chute_id"]]["current_estimated_price"]["per_million_tokens"]["output"]["usd"]
        for entry in models.values()
        if entry["chute_id"] in items
    }
    assert {name for name, usd in tokens.items() if usd != models[name]["pricing"]["completion"]} == set(DEARER)
    sold = [set(item["current_estimated_price"]) for item in items.values()]
    assert {"per_step", "usd", "tao"} in sold
    assert {"per_request", "usd", "tao"} in sold
    assert {"usd", "tao"} in sold
    assert len({item["standard_template"] for item in items.values()}) == 5


def test_the_listing_is_filtered_and_shows_one_chute() -> None:
    """Template and part of a name narrow it down; one chute has its endpoints with it."""
    images = listing_answer(MODELS, {"template": "diffusion"})["items"]
    assert {item["standard_template"] for item in images} == {"diffusion"}
    assert {item["standard_template"] for item in listing_answer(MODELS, {"template": "other"})["items"]} == {None}
    assert [item["name"] for item in listing_answer(MODELS, {"name": "CANVAS"})["items"]] == ["demo-studio/canvas-xl"]
    one = chute_answer(MODELS, images[0]["chute_id"])
    assert one is not None
    assert (one["name"], one["cord_ref_id"]) == (images[0]["name"], None)
    assert [cord["output_content_type"] for cord in one["cords"]] == ["image/jpeg"]
    assert chute_answer(MODELS, "nobody") is None


@pytest.mark.parametrize(
    ("query", "status"),
    [({"limit": "6000"}, 422), ({"limit": "0"}, 422), ({"page": "x"}, 422), ({"page": "1", "offset": "1"}, 400)],
)
def test_the_listing_refuses_what_the_platform_refuses(query: dict[str, str], status: int) -> None:
    """A parameter out of range is 422 with its place, page and offset together are 400."""
    with pytest.raises(ListingRefused) as refused:
        listing_answer(MODELS, query)
    assert refused.value.status == status
    if status == 422:
        assert refused.value.detail[0]["loc"] == ["query", *query]


def events(stream: bytes) -> list[Any]:
    """The events of a complete stream, without the final ``[DONE]``."""
    *blocks, done, rest = stream.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(block.removeprefix(b"data: ")) for block in blocks]


@given(st.integers(1, 200), st.sampled_from(["length", "stop"]))
def test_a_stream_has_the_platforms_order_and_usage_in_every_chunk(tokens: int, finish_reason: str) -> None:
    """Role delta, one chunk a token, the finish reason, then usage with empty choices; usage is in all of them."""
    answer = Completion("chatcmpl-1", "demo/a%b", 7, tokens, 5, finish_reason)
    pieces = list(stream_pieces(answer))
    role, *content, finish, usage = events(b"".join(pieces))
    assert len(pieces) == tokens + 1
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["usage"]["completion_tokens"] for chunk in content] == list(range(1, tokens + 1))
    assert finish["choices"] == [{"index": 0, "delta": {}, "finish_reason": finish_reason}]
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
    for chunk in (role, *content, finish, usage):
        assert (chunk["id"], chunk["model"], chunk["created"]) == ("chatcmpl-1", "demo/a%b", 7)
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["usage"]["total_tokens"] == 5 + chunk["usage"]["completion_tokens"]
    assert all("chutes_verification" in chunk for chunk in content)
    assert not any("chutes_verification" in chunk for chunk in (role, finish, usage))


def test_both_forms_say_the_same_and_that_it_is_simulated() -> None:
    """The non-streaming answer holds the text of the stream, which names the model and says it is simulated."""
    answer = Completion("chatcmpl-1", 'demo/"odd"', 7, 40)
    content = events(b"".join(stream_pieces(answer)))[1:-2]
    streamed = "".join(chunk["choices"][0]["delta"]["content"] for chunk in content)
    whole = json.loads(whole_answer(answer))
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"]["content"] == streamed
    assert whole["usage"]["completion_tokens"] == 40
    assert streamed.startswith('This is a simulated answer from model demo/"odd"; ')


@given(st.integers(1, 40), st.integers(1, 40))
def test_an_answer_is_gone_on_with_where_it_ended(begun: int, rest: int) -> None:
    """The text that a request has of an answer already, and what is answered to it, are the same answer."""
    first, whole = (content_of(Completion("x", "a/model", 1, tokens)) for tokens in (begun, begun + rest))
    assert tokens_begun("a/model", len(first)) == begun
    assert first + content_of(Completion("x", "a/model", 1, rest, begun=begun)) == whole


def content_of(completion: Completion) -> str:
    content: str = json.loads(whole_answer(completion))["choices"][0]["message"]["content"]
    return content
