"""Which requests count as of now, and what a nonce is claimed as."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.e2ee.replay import check_outlived, check_window, claim_expiry, claim_name
from chutes_autopilot.errors import ApiError

NOW = 1_760_000_000.5
WINDOW, SKEW = 300, 30


def refused(ts: int, now: float = NOW, not_before: int | None = None) -> bool:
    try:
        check_window(ts, now, WINDOW, not_before)
    except ApiError as error:
        return (error.code, error.type, error.status) == ("e2ee_invalid_timestamp", "e2ee_invalid_timestamp", 400)
    return False


@pytest.mark.parametrize(
    ("ts", "now", "expected"),
    [
        (1000, 1300.0, False),
        (1000, 1300.001, True),
        (1000, 700.0, False),
        (1000, 699.999, True),
        (1000, 1000.0, False),
        (999_999_999_999, 1000.0, True),
    ],
)
def test_the_window_has_sharp_edges(ts: int, now: float, expected: bool) -> None:
    """A timestamp may be a whole window old or ahead, and not a moment more."""
    assert refused(ts, now) is expected


@pytest.mark.parametrize(("ts", "expected"), [(999, True), (1000, False), (1001, False)])
def test_what_is_older_than_the_store_is_refused(ts: int, expected: bool) -> None:
    """Where a start lost earlier claims, requests from before its second are refused; without that they pass."""
    assert refused(ts, 1010.0, not_before=1000) is expected
    assert refused(ts, 1010.0) is False


@given(st.integers(-WINDOW - 5, WINDOW + 5), st.floats(0, 700))
def test_a_claim_outlives_every_request_that_passes(offset: int, later: float) -> None:
    """Whenever a request with some timestamp passes the window, its claim is kept, even without skew."""
    ts = int(NOW) + offset
    if not refused(ts) and not refused(ts, NOW + later):
        check_outlived(claim_expiry(ts, WINDOW, 0), NOW + later)


def test_the_end_of_a_claim_is_absolute() -> None:
    """It depends on the request's timestamp and not on when it is claimed; later claims are refused."""
    expiry = claim_expiry(1000, WINDOW, SKEW)
    assert expiry == 1330
    check_outlived(expiry, 1330.0)
    with pytest.raises(ApiError) as caught:
        check_outlived(expiry, 1330.001)
    assert caught.value.code == "e2ee_invalid_timestamp"


def test_the_name_is_of_server_key_and_nonce() -> None:
    """A nonce is claimed once for a server key, whatever else the request says; the two parts cannot run together."""
    assert claim_name(b"\x04key", "nonce-0123456789") == sha256(b"\x04key\x00nonce-0123456789").hexdigest()
    assert len({claim_name(b"key", "ab"), claim_name(b"keya", "b"), claim_name(b"key", "ac")}) == 3
