"""Who a client is, and what its last success means for its next request."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chutes_autopilot.policy.model_field import Alias
from chutes_autopilot.policy.plan import Plan, expanded, make_plan
from chutes_autopilot.policy.stickiness import (
    StickyChoice,
    after_success,
    bearer_token,
    client_key,
    session_value,
    sticky_model,
)


def key(
    secret: bytes = b"secret",
    authorization: bytes | None = b"Bearer token",
    address: str = "192.0.2.1",
    session: bytes = b"",
) -> bytes:
    return client_key(secret, token=bearer_token(authorization), address=address, session=session)


def test_the_token_tells_clients_apart_wherever_they_come_from() -> None:
    """With a bearer token the address does not matter; the scheme is read in any case and with any spacing."""
    assert key(address="192.0.2.1") == key(address="192.0.2.2") == key(authorization=b" bEARER  token ")
    assert key() != key(authorization=b"Bearer other")


@pytest.mark.parametrize("authorization", [None, b"", b"Bearer", b"Bearer  ", b"Basic token"])
def test_without_a_bearer_token_the_address_decides(authorization: bytes | None) -> None:
    """No token, an empty one and another scheme all mean the peer."""
    assert key(authorization=authorization) == key(authorization=None)
    assert key(authorization=authorization) != key(authorization=authorization, address="192.0.2.2")


def test_the_key_depends_on_the_secret_and_the_session() -> None:
    """Another secret makes the keys useless, another session makes another client."""
    assert len({key(), key(secret=b"other"), key(session=b"s"), key(session=b"t")}) == 4


def test_a_key_is_not_the_text_it_was_made_of() -> None:
    """What is kept reveals neither token nor session."""
    assert len(key(session=b"s" * 256)) == 32
    assert b"token" not in key()


PARTS = st.tuples(st.booleans(), st.text("ab \x00", max_size=4).map(str.strip), st.binary(max_size=3))


@given(PARTS, PARTS)
@example((True, "ab", b""), (True, "a", b"b"))
@example((True, "a", b""), (False, "a", b""))
def test_different_clients_never_share_a_key(one: tuple[bool, str, bytes], two: tuple[bool, str, bytes]) -> None:
    """Token and address of the same text differ, and nothing can be shifted between identity and session."""

    def of(has_token: bool, identity: str, session: bytes) -> tuple[bytes, tuple[bool, str, bytes]]:
        if has_token and identity:
            authorization = b"Bearer " + identity.encode()
            return key(authorization=authorization, session=session), (True, identity, session)
        return key(authorization=None, address=identity, session=session), (False, identity, session)

    (key_one, who_one), (key_two, who_two) = of(*one), of(*two)
    assert (key_one == key_two) == (who_one == who_two)


@pytest.mark.parametrize(
    ("values", "session"),
    [
        ((b" id ", b"affinity", "cache"), b"id"),
        ((b" \t", b"affinity", "cache"), b"affinity"),
        ((None, None, " cache\n"), b"cache"),
        ((None, b"", None), b""),
        ((None, None, 7), b""),
        ((None, None, {"a": 1}), b""),
        ((None, None, "\u00a0"), "\u00a0".encode()),
        ((b"x" * 257, None, None), b"x" * 256),
        ((None, None, "é" * 200), "é".encode() * 128),
        ((None, None, "\ud800"), b"\xed\xa0\x80"),
    ],
)
def test_the_first_value_that_is_not_empty_names_the_session(
    values: tuple[bytes, bytes, object], session: bytes
) -> None:
    """Header, header, body, in this order; ASCII white space is trimmed and 256 bytes count."""
    assert session_value(*values) == session


def test_a_usual_choice_lasts() -> None:
    """A choice that did not come from a failover never gives way."""
    assert sticky_model(None, 0.0, 30.0) is None
    assert sticky_model(StickyChoice("a"), 1e9, 30.0) == "a"


@pytest.mark.parametrize(
    ("now", "failback", "model"),
    [(129.9, 30.0, "b"), (130.0, 30.0, None), (90.0, 30.0, "b"), (1e9, 0.0, "b")],
)
def test_a_choice_made_by_failover_gives_way(now: float, failback: float, model: str | None) -> None:
    """It lasts until the preferred model's failure is ``failback`` seconds old; 0 is for ever; clocks may jump back."""
    choice = StickyChoice("b", from_failover=True, preferred_failed_at=100.0)
    assert sticky_model(choice, now, failback) == model


FAILED_OVER = StickyChoice("b", from_failover=True, preferred_failed_at=5.0)


@pytest.mark.parametrize(
    ("previous", "sticky", "winner", "failures", "choice"),
    [
        # the preferred model answers, at once or after the sticky one failed
        (None, None, "a:T", {}, StickyChoice("a")),
        (FAILED_OVER, "b", "a:T", {"b": 9.0}, StickyChoice("a")),
        # the sticky model answers: what was known about it stays
        (FAILED_OVER, "b", "b:T", {}, FAILED_OVER),
        (StickyChoice("b"), "b", "b:T", {}, StickyChoice("b")),
        # another request of this client has changed the choice meanwhile
        (StickyChoice("c"), "b", "b:T", {}, StickyChoice("b")),
        # failover, from the preferred model or past it
        (None, None, "b:T", {"a": 9.0}, StickyChoice("b", True, 9.0)),
        (None, None, "c:T", {"a": 8.0, "b": 9.0}, StickyChoice("c", True, 8.0)),
        (FAILED_OVER, "b", "c:T", {"b": 8.0, "a": 9.0}, StickyChoice("c", True, 9.0)),
        (FAILED_OVER, None, "b:T", {"a": 9.0}, StickyChoice("b", True, 9.0)),
    ],
)
def test_what_a_success_leaves_behind(
    previous: StickyChoice | None, sticky: str | None, winner: str, failures: dict[str, float], choice: StickyChoice
) -> None:
    """Only a success that came by failover is marked to give way, with the time of the preferred model's failure."""
    plan: Plan = make_plan("alias", expanded(Alias(":T"), lambda _: "abcd"), sticky, limit=4)
    assert after_success(previous, plan, winner, failures) == choice
