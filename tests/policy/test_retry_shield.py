import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.policy.retry_shield import (
    BanFuse,
    BanRules,
    ban_refusal,
    no_retry_headers,
    wait_when_exhausted,
)

RULES = BanRules(first=60, longest=200, hold=30)
ONE, TWO = b"\0" * 32, b"\xff" * 32


def test_a_banned_client_is_answered_here() -> None:
    """After a ban page no call of that client goes out for a while; other clients are not concerned."""
    fuse = BanFuse(RULES)
    assert fuse.admit(ONE, 0) == 0
    assert fuse.banned(ONE, None, 0) == 60
    assert fuse.admit(ONE, 1) == 59
    assert fuse.admit(TWO, 1) == 0


def test_one_call_finds_out_whether_the_ban_is_over() -> None:
    """The others wait for its answer, and not for ever."""
    fuse = BanFuse(RULES)
    fuse.banned(ONE, None, 0)
    assert [fuse.admit(ONE, 60), fuse.admit(ONE, 60), fuse.admit(ONE, 80), fuse.admit(ONE, 90)] == [0, 30, 10, 0]
    fuse.answered(ONE, 0)  # under way when the ban was met
    assert fuse.admit(ONE, 91) == 29
    fuse.answered(ONE, 60)
    assert fuse.admit(ONE, 91) == 0
    assert len(fuse.bans) == 0


def test_each_further_ban_page_doubles_the_time() -> None:
    """Up to the limit; late pages of calls that were under way count once."""
    fuse, now, waits = BanFuse(RULES), 0.0, []
    for _ in range(4):
        waits.append(fuse.banned(ONE, None, now))
        assert fuse.banned(ONE, None, now + 1) == waits[-1] - 1
        now += waits[-1]
    assert waits == [60, 120, 200, 200]
    assert fuse.banned(ONE, None, now + 201) == 60


@pytest.mark.parametrize(("retry_after", "wait"), [(5.0, 60), (90.0, 90), (1e9, 200)])
def test_the_pages_own_time_counts_within_the_limits(retry_after: float, wait: float) -> None:
    """A Retry-After lengthens the time, never shortens it, and never beyond the limit."""
    assert BanFuse(RULES).banned(ONE, retry_after, 0) == wait


def test_the_number_of_clients_is_bounded() -> None:
    """The client whose ban page came first is forgotten, and no key can be read from outside."""
    fuse = BanFuse(RULES, max_clients=2)
    for client in (b"a", b"b", b"c"):
        fuse.banned(client, None, 0)
    assert len(fuse.bans) == 2
    assert [fuse.admit(client, 1) > 0 for client in (b"a", b"b", b"c")] == [False, True, True]
    assert "b'" not in repr(fuse)


@given(st.lists(st.tuples(st.sampled_from(["admit", "banned", "answered"]), st.integers(0, 300))))
def test_nobody_is_locked_out_for_longer_than_the_limit(steps: list[tuple[str, int]]) -> None:
    """Whatever happens, a client's wait is never negative and never over the longest time."""
    fuse, now = BanFuse(RULES), 0.0
    for what, seconds in steps:
        now += seconds
        match what:
            case "admit":
                assert 0 <= fuse.admit(ONE, now) <= RULES.longest
            case "banned":
                assert 0 < fuse.banned(ONE, None, now) <= RULES.longest
            case _:
                fuse.answered(ONE, now + 1)
                assert fuse.admit(ONE, now) == 0


@pytest.mark.parametrize(
    ("cooling", "until_feed", "wait"), [(0, 0, 1), (0, 3, 3), (8, 3, 3), (2, 3, 2), (0.1, 0, 1), (900, 0, 60)]
)
def test_when_another_try_makes_sense(cooling: float, until_feed: float, wait: float) -> None:
    """When a model may be tried again or the ranking may change, whatever is first; at least a second."""
    assert wait_when_exhausted(cooling, until_feed, ONE) == wait
    assert wait < wait_when_exhausted(cooling, until_feed, TWO) < wait * 1.25


@pytest.mark.parametrize(("seconds", "value"), [(0.0, b"1"), (0.2, b"1"), (1.0, b"1"), (1.01, b"2"), (59.9, b"60")])
def test_the_headers(seconds: float, value: bytes) -> None:
    """SDKs are told not to retry, and everybody in whole seconds when to come back, never too early."""
    assert no_retry_headers(seconds) == ((b"x-should-retry", b"false"), (b"Retry-After", value))


def test_the_answer_to_a_banned_client() -> None:
    """It is a 429 like the page, says why, and when to come back."""
    error = ban_refusal(59.5)
    assert (error.status, error.code, error.type) == (429, "upstream_ban", "rate_limit_error")
    assert (b"Retry-After", b"60") in error.headers
