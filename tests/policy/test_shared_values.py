"""What replicas share is read as it was written, and anything else as if it were not there."""

import zlib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.policy import shared_values as values
from chutes_autopilot.policy.shared_values import SharedCooldown
from chutes_autopilot.policy.stickiness import StickyChoice

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
TIME = st.floats(0, 4e9)
MEMBERS = st.dictionaries(TEXT, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.lists(TEXT), max_size=3)
UNPACK = [
    values.unpack_choice,
    values.unpack_cooldown,
    values.unpack_signed,
    lambda data: values.unpack_body(data, 1000),
    lambda data: values.unpack_reasons(data) if isinstance(data, bytes) else None,
]


@given(st.binary(min_size=32, max_size=32))
def test_a_client_is_found_again_in_the_name_of_its_key(client: bytes) -> None:
    """Redis names keys; of other kinds of keys nothing is made."""
    key = values.sticky_key(client)
    assert values.client_of_sticky_key(key) == client
    assert key.startswith(values.PREFIX.encode())
    for other in (key[:-1], key + b"0", key.replace(b"sticky", b"signed"), key[:-1] + b"x", key[9:], b""):
        assert values.client_of_sticky_key(other) is None


@given(TEXT, st.booleans(), TIME)
def test_a_choice_is_read_as_it_was_written(model: str, from_failover: bool, failed_at: float) -> None:
    """All of it, unless the name is too long, which is not shared."""
    choice = StickyChoice(model, from_failover, failed_at)
    data = values.pack_choice(choice)
    assert (data is None) == (len(model) > values.MAX_NAME)
    assert values.unpack_choice(data) == (None if data is None else choice)


@given(TIME, st.integers(1, 1000))
def test_a_cooldown_is_read_as_it_was_written(until: float, times: int) -> None:
    """How long, and how often in a row."""
    cooldown = SharedCooldown(until, times)
    assert values.unpack_cooldown(values.pack_cooldown(cooldown)) == cooldown


@settings(max_examples=30)
@given(TEXT, TEXT, st.none() | MEMBERS)
def test_a_signed_exchange_is_read_as_it_was_written(text: str, key_id: str, receipt: dict[str, Any] | None) -> None:
    """With or without a receipt."""
    assert values.unpack_signed(values.pack_signed(text, key_id, receipt)) == (text, key_id, receipt)


@given(st.binary(max_size=2000), TIME)
def test_an_answer_is_read_as_it_was_written(body: bytes, at: float) -> None:
    """With its time; one that is larger than allowed unpacks to nothing, however small it is packed."""
    data = values.pack_body(body, at)
    assert values.unpack_body(data, 2000) == (body, at)
    assert values.unpack_body(data, len(body) - 1) is None
    assert data is not None
    assert values.unpack_body(data[:-1], 2000) is None


@settings(max_examples=30)
@given(MEMBERS)
def test_reasons_are_named_by_what_they_are(reasons: dict[str, Any]) -> None:
    """So every replica names the same ones alike, and they are written once."""
    name, data = values.pack_reasons(reasons)
    assert len(name) == values.DIGEST_BYTES
    assert values.pack_reasons(dict(reasons)) == (name, data)
    assert values.unpack_reasons(data) == reasons


@given(st.binary(max_size=200) | st.sampled_from([None, 1, "OK", [], b"[]", b"null", b'["a",true]', b"[1e400,1]"]))
def test_whatever_else_is_there_is_nothing(data: Any) -> None:
    """A store that others can write to never makes an error here."""
    assert [unpack(data) for unpack in UNPACK] == [None] * len(UNPACK)


def test_what_is_nested_too_deep_is_nothing() -> None:
    """However little it takes to write, zipped all the more."""
    nested = b'{"a":%b%b}' % (b"[" * 5000, b"]" * 5000)
    assert values.unpack_reasons(zlib.compress(nested)) is None
    assert values.unpack_signed(b'["t","k",%b]' % nested) is None


def test_what_is_too_large_is_not_shared() -> None:
    """Neither written nor, should somebody else write it, read."""
    assert values.pack_signed("t", "k", {"x": "y" * values.MAX_SIGNED_BYTES}) is None
    assert values.unpack_choice(b'["%b",false,0]' % (b"m" * (values.MAX_NAME + 1))) is None
    assert values.unpack_reasons(zlib.compress(b'{"x":"%b"}' % (b"y" * values.MAX_REASONS_BYTES))) is None
    assert values.unpack_cooldown(values.pack_cooldown(SharedCooldown(1.0, 0))) is None


def test_names_of_owners_need_the_secret_and_the_owner() -> None:
    """Each part counts, also where two parts joined are the same, and no name holds what it is made of."""
    key = values.naming_key(b"secret", b"kind")
    names = {
        values.owned_name(key, b"alice", "1"),
        values.owned_name(key, b"alice1", ""),
        values.owned_name(key, b"bob", "1"),
        values.owned_name(values.naming_key(b"secret", b"other"), b"alice", "1"),
        values.owned_name(values.naming_key(b"another", b"kind"), b"alice", "1"),
    }
    assert len(names) == 5
    assert {len(name) for name in names} == {16}
    assert values.owned_name(key, b"alice", "1") in names
    assert len({values.fleet_of("a", "b"), values.fleet_of("a", "c"), values.fleet_of("ab")}) == 3
