"""Nonces claimed by one process: each once, none forgotten early, never more than there is room for."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from chutes_autopilot.e2ee.replay import claim_expiry
from chutes_autopilot.errors import ApiError
from chutes_autopilot.interfaces import IReplayClaims
from chutes_autopilot.storage.claims import DROPPED_AT_ONCE, MemoryClaims


def outcome(claiming: Deferred[None]) -> ApiError | None:
    """What became of a claim that is decided at once; None: it was made."""
    results: list[Failure | None] = []
    claiming.addBoth(results.append)
    (result,) = results
    if result is None:
        return None
    assert isinstance(result.value, ApiError)
    return result.value


def code(claiming: Deferred[None]) -> str | None:
    error = outcome(claiming)
    return error and error.code


def test_it_keeps_replay_claims() -> None:
    """It keeps the port's promises of names and parameters."""
    assert verifyObject(IReplayClaims, MemoryClaims(1, Clock().seconds))


@given(
    st.integers(0, 4),
    st.lists(st.tuples(st.floats(0, 20), st.sampled_from("abcdef"), st.integers(-3, 40)), max_size=60),
)
def test_a_claim_holds_until_its_end(room: int, steps: list[tuple[float, str, int]]) -> None:
    """Whatever comes when, exactly the live claims are refused, and new ones only where these take all the room."""
    clock = Clock()
    claims = MemoryClaims(room, clock.seconds)
    kept: dict[str, int] = {}
    for pause, name, ahead in steps:
        clock.advance(pause)
        now = clock.seconds()
        kept = {name: expiry for name, expiry in kept.items() if expiry >= now}
        expiry = int(now) + ahead
        if expiry < now:
            expected = "e2ee_invalid_timestamp"
        elif name in kept:
            expected = "e2ee_replay_detected"
        elif len(kept) >= room:
            expected = "e2ee_replay_cache_full"
        else:
            expected = None
            kept[name] = expiry
        assert code(claims.claim(name, expiry)) == expected
        assert len(claims) <= room


def test_another_timestamp_does_not_free_a_nonce() -> None:
    """The same nonce one second later, or with a time that is still to come, is a replay."""
    clock = Clock()
    clock.advance(1000)
    claims = MemoryClaims(10, clock.seconds)
    assert code(claims.claim("nonce", claim_expiry(1000, 300, 30))) is None
    for ts in (1001, 1300, 700):
        assert code(claims.claim("nonce", claim_expiry(ts, 300, 30))) == "e2ee_replay_detected"


def test_a_full_store_says_when_there_is_room() -> None:
    """It answers 503 and when the first claim ends; then there is room for one."""
    clock = Clock()
    clock.advance(1000.5)
    claims = MemoryClaims(2, clock.seconds)
    assert code(claims.claim("a", 1020)) is None
    assert code(claims.claim("b", 1010)) is None
    error = outcome(claims.claim("c", 1030))
    assert error is not None
    assert (error.status, error.code, error.headers) == (503, "e2ee_replay_cache_full", ((b"Retry-After", b"10"),))
    clock.advance(10)
    assert code(claims.claim("c", 1030)) is None
    assert code(claims.claim("d", 1030)) == "e2ee_replay_cache_full"


def test_many_claims_that_end_at_once_go_bit_by_bit() -> None:
    """They are out of force at once and out of memory soon, without holding the reactor for all of them."""
    count = 3 * DROPPED_AT_ONCE
    clock = Clock()
    claims = MemoryClaims(count, clock.seconds)
    for number in range(count):
        assert code(claims.claim(str(number), 10)) is None
    clock.advance(11)
    assert code(claims.claim(str(count - 1), 20)) is None
    assert len(claims) == count - DROPPED_AT_ONCE
    assert code(claims.claim(str(count - 1), 20)) == "e2ee_replay_detected"
    for name in ("x", "y"):
        assert code(claims.claim(name, 20)) is None
    assert len(claims) == 3
    assert code(claims.claim(str(count - 1), 20)) == "e2ee_replay_detected"
