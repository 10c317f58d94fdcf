"""Signatures of webhooks: what the specification says, and what a receiver must refuse."""

import re
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.explorer.webhook_signing import InvalidSignature, read_secret, sign, signed_headers, verify

KEY, OTHER = b"k" * 32, b"o" * 32
NOW = 1_795_219_200
BODY = b'{"type":"model.added"}'
HEADERS = dict(signed_headers(KEY, "msg_1", NOW, BODY))


def test_the_example_everybody_checks_against() -> None:
    """The signature that the reference implementations' tests have for this secret, id, time and body."""
    key = read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_signed_message_is_believed() -> None:
    """Three headers; the receiver gets the id; the names' case does not matter, nor do other signatures beside it."""
    assert set(HEADERS) == {"webhook-id", "webhook-timestamp", "webhook-signature"}
    assert verify([KEY], HEADERS, BODY, NOW) == "msg_1"
    assert verify([KEY], {name.title(): value for name, value in HEADERS.items()}, BODY, NOW) == "msg_1"
    several = f"v1a,\u00e9 v1,eA== {HEADERS['webhook-signature']}"
    assert verify([KEY], {**HEADERS, "webhook-signature": several}, BODY, NOW) == "msg_1"


def test_a_secret_can_be_changed() -> None:
    """While both are known, messages of both are believed."""
    new = dict(signed_headers(OTHER, "msg_2", NOW, BODY))
    assert [verify([KEY, OTHER], headers, BODY, NOW) for headers in (HEADERS, new)] == ["msg_1", "msg_2"]


@pytest.mark.parametrize("offset", [-300, 300])
def test_clocks_may_differ_by_five_minutes(offset: int) -> None:
    """To either side, and no more."""
    assert verify([KEY], HEADERS, BODY, NOW + offset)
    with pytest.raises(InvalidSignature, match="too far"):
        verify([KEY], HEADERS, BODY, NOW + offset * 1.001)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"webhook-id": "msg_2"}, "no webhook-signature fits"),
        ({"webhook-timestamp": str(NOW + 1)}, "no webhook-signature fits"),
        ({"webhook-signature": ""}, "no webhook-signature fits"),
        ({"webhook-signature": HEADERS["webhook-signature"].replace("v1,", "v1a,")}, "no webhook-signature fits"),
        ({"webhook-timestamp": "now"}, "webhook-timestamp is no number of seconds"),
        ({"webhook-timestamp": "\u0661"}, "webhook-timestamp is no number of seconds"),
    ],
)
def test_a_message_that_was_touched_is_not(changed: dict[str, str], reason: str) -> None:
    """Whatever is changed, it is said which header does not hold."""
    with pytest.raises(InvalidSignature, match=f"^{reason}$"):
        verify([KEY], {**HEADERS, **changed}, BODY, NOW)


def test_each_header_is_needed() -> None:
    """And so are a key that fits and the very bytes of the body."""
    for name in HEADERS:
        with pytest.raises(InvalidSignature, match=f"there is no {name}"):
            verify([KEY], {n: v for n, v in HEADERS.items() if n != name}, BODY, NOW)
    for keys, body in (([OTHER], BODY), ([], BODY), ([KEY], BODY + b" ")):
        with pytest.raises(InvalidSignature, match="fits"):
            verify(keys, HEADERS, body, NOW)


@given(st.binary(min_size=24, max_size=64))
def test_a_secret_is_its_base64(key: bytes) -> None:
    """Of 24 to 64 bytes."""
    assert read_secret("whsec_" + b64encode(key).decode()) == key


@pytest.mark.parametrize(
    "text",
    [
        "whsec_",
        "whsec_" + b64encode(b"s" * 23).decode(),
        "whsec_" + b64encode(b"s" * 65).decode(),
        "whsec_" + "A" * 31,
        "whsec_" + "A" * 31 + "\u00e9",
        "whsec_" + "A" * 16 + "\n" + "A" * 16,
        "whsk_" + "A" * 32,
        "A" * 32,
    ],
)
def test_another_secret_is_refused_without_being_repeated(text: str) -> None:
    """It may be nearly the right one."""
    with pytest.raises(ValueError, match=r"^must b") as caught:
        read_secret(text)
    assert not re.search("AAAA|c3Nz", str(caught.value))
