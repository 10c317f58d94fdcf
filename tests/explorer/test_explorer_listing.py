"""The listing of all chutes, read leniently."""

import json
from typing import Any

import pytest
from explorer_samples import chute_json, listing_body, listing_of, uuid

from chutes_autopilot.explorer.listing import Cord, read_listing
from chutes_autopilot.explorer.records import Invalid
from chutes_autopilot.policy.feed_json import FeedError


def test_a_whole_chute_is_read() -> None:
    """Every member that the explorer needs finds its field, prices by unit and times with their zone."""
    item = chute_json(
        1,
        "Org/Model",
        chute_id=uuid(1).upper(),
        tagline="fast",
        slug="org-model",
        user={"username": "someone", "user_id": "x"},
        tee=True,
        created_at="2026-01-02T03:04:05.000000",
        updated_at="2026-01-02T05:04:05+02:00",
        supported_gpus=["h200", "4090"],
        node_selector={"gpu_count": 8, "min_vram_gb_per_gpu": 140},
        invocation_count=1e3,
        instances=[{"active": True, "verified": True}, {"active": True, "verified": False}],
        current_estimated_price={
            "per_million_tokens": {"input": {"usd": 0.1, "tao": 9}, "output": {"usd": 0}, "input_cache_read": {}},
            "usd": {"hour": 3.5, "second": 0.001},
            "hourly_price_range": {"usd": {"min": 1, "max": 2}},
        },
    )
    listing = listing_of(item)
    (chute,) = listing.items
    assert listing.total == 1
    assert (chute.name, chute.chute_id, chute.owner, chute.tee) == ("Org/Model", uuid(1), "someone", True)
    assert (chute.created_at, chute.updated_at) == ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z")
    assert (chute.gpus, chute.gpu_count, chute.invocation_count) == (("h200", "4090"), 8, 1000)
    assert (chute.instances, chute.instances_ready, chute.hot) == (2, 1, True)
    assert chute.prices == {
        "price.input": 0.1,
        "price.output": 0,
        "price.per_hour": 3.5,
        "price.per_hour_min": 1,
        "price.per_hour_max": 2,
    }
    assert not listing.invalid_fields


@pytest.mark.parametrize(
    ("members", "hot"),
    [
        ({"instances": [{"active": True, "verified": False}, {"active": False, "verified": True}]}, False),
        ({"instances": []}, False),
        ({"instances": None}, None),
        ({"hot": True, "instances": []}, True),
    ],
)
def test_hot_is_computed_only_where_the_server_does_not_say_it(members: dict[str, Any], hot: bool | None) -> None:
    """An instance must be active and verified; nothing is concluded from unknown instances."""
    assert listing_of(chute_json(1, "a", **members)).items[0].hot is hot


def test_bad_records_are_dropped_with_their_reason_and_place() -> None:
    """Name, id and repetition are judged in this order; the good records stay."""
    listing = listing_of(
        {"chute_id": "../../users/me", "name": None},
        chute_json(1, "x" * 257),
        chute_json(2, "", chute_id=None),
        chute_json(3, "traversal", chute_id="../../users/me"),
        chute_json(4, "no id", chute_id=None),
        chute_json(5, "good"),
        chute_json(6, "again", chute_id=uuid(5).upper()),
        "no object",
        7,
        chute_json(8, "newline\n<b>"),
        chute_json(9, "lone \ud800"),
    )
    assert [chute.name for chute in listing.items] == ["good", "newline\n<b>"]
    assert listing.invalid == tuple(
        Invalid("chutes", index, reason)  # type: ignore[arg-type]
        for index, reason in [
            (0, "bad_name"),
            (1, "bad_name"),
            (2, "bad_name"),
            (3, "bad_chute_id"),
            (4, "bad_chute_id"),
            (6, "duplicate_chute_id"),
            (7, "bad_name"),
            (8, "bad_name"),
            (10, "bad_name"),
        ]
    )


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"tagline": 5}, "tagline"),
        ({"tee": "true"}, "tee"),
        ({"tee": 1}, "tee"),
        ({"invocation_count": "12"}, "invocation_count"),
        ({"invocation_count": True}, "invocation_count"),
        ({"invocation_count": -1}, "invocation_count"),
        ({"supported_gpus": ["a", 1]}, "supported_gpus"),
        ({"supported_gpus": "h200"}, "supported_gpus"),
        ({"node_selector": [8]}, "node_selector"),
        ({"created_at": "yesterday"}, "created_at"),
        ({"created_at": 5}, "created_at"),
        ({"user": "me"}, "user"),
        ({"instances": {}}, "instances"),
        ({"instances": [{}, 5]}, "instances.1"),
        ({"instances": [{"active": 1}]}, "instances.0.active"),
        ({"tagline": "\udc00"}, "tagline"),
        ({"current_estimated_price": []}, "current_estimated_price"),
        (
            {"current_estimated_price": {"per_million_tokens": {"output": {"usd": "NaN"}}}},
            "current_estimated_price.per_million_tokens.output.usd",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_unknown_and_noted(members: dict[str, Any], field: str) -> None:
    """It costs that value, not the record, and is listed once."""
    listing = listing_of(chute_json(1, "a"), chute_json(2, "b", **members))
    assert len(listing.items) == 2
    assert [(bad.source, bad.index, bad.field) for bad in listing.invalid_fields] == [("chutes", 1, field)]


def test_numbers_that_no_float_can_hold_are_wrong_values() -> None:
    """NaN, infinities and endless digits, which are no strict JSON, spoil neither the list nor the record."""
    body = listing_body(chute_json(1, "a", concurrency="@"), chute_json(2, "b"))
    for number in (b"NaN", b"Infinity", b"1e999", b"9" * 400, b"9" * 5000):
        listing = read_listing(body.replace(b'"@"', number), show_private=False)
        assert [chute.concurrency for chute in listing.items] == [None, None]
        assert [bad.field for bad in listing.invalid_fields] == ["concurrency"]


@pytest.mark.parametrize("public", [False, None, "true", 1])
def test_private_chutes_are_left_out_unless_the_operator_shows_them(public: object) -> None:
    """Only what is surely public is shown, and nothing of the rest but how many."""
    secret = chute_json(2, "secret", public=public, tagline=5)
    body = listing_body(chute_json(1, "a"), secret, {"chute_id": uuid(3), "name": "old server"})
    hidden = read_listing(body, show_private=False)
    assert [chute.name for chute in hidden.items] == ["a", "old server"]
    assert (hidden.hidden, hidden.invalid_fields) == (1, ())
    shown = read_listing(body, show_private=True)
    assert [chute.name for chute in shown.items] == ["a", "secret", "old server"]
    assert shown.hidden == 0


def test_endpoints_are_looked_up() -> None:
    """A list names its endpoints by reference, a single chute has them; wrong ones are passed over."""
    cord = {"path": "/speak", "function": "speak", "output_content_type": "audio/wav", "stream": False}
    listing = listing_of(
        chute_json(1, "a", cords=None, cord_ref_id="r"),
        chute_json(2, "b", cords=[cord], cord_ref_id=None),
        chute_json(3, "c", cord_ref_id=["r"]),
        cord_refs={"r": [cord, 5], "s": 5},
    )
    speak = Cord("/speak", "speak", None, "audio/wav")
    assert [chute.cords for chute in listing.items] == [(speak, Cord(None, None, None, None)), (speak,), ()]


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"items": {}}', b'{"total": 0}', b'{"items": [1]}', b"\xff", b'{"items":' + b"[" * 5000],
)
def test_what_is_no_listing_is_refused(body: bytes) -> None:
    """A wrong body, or one without a usable record, leaves the last good listing in place."""
    with pytest.raises(FeedError):
        read_listing(body, show_private=True)


def test_an_empty_listing_is_one() -> None:
    """No chutes at all is an answer; whether to believe it is for others to say."""
    assert listing_of().items == ()


def test_bytes_that_are_no_text_cost_one_record() -> None:
    """Invalid UTF-8 inside one chute leaves the others."""
    body = json.dumps({"items": [chute_json(1, "b@d"), chute_json(2, "good")]}).encode().replace(b"@", b"\xff")
    listing = read_listing(body, show_private=True)
    assert [chute.name for chute in listing.items] == ["good"]
    assert [bad.reason for bad in listing.invalid] == ["bad_name"]
