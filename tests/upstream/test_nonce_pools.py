"""Nonce pools: each nonce once, the right instance first, nothing older or more than allowed."""

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chutes_autopilot.upstream.chute_e2ee.listing import Instance, Listing
from chutes_autopilot.upstream.chute_e2ee.pools import MAX_CHUTES, MAX_NONCES, NoncePool, Pools, Session


def instance(name: str, key: str = "key") -> Instance:
    return Instance(name, key, sha256(key.encode()).digest())


def listing(*, lifetime: float = 60.0, key: str = "key", **nonces: list[str]) -> Listing:
    return Listing(tuple((instance(name, key), tuple(given)) for name, given in nonces.items()), lifetime, 0)


def everybody(instance_id: str, key_sha256: bytes) -> bool:
    return True


def pool_of(usable: Any = everybody, **nonces: list[str]) -> NoncePool:
    pool = NoncePool("chute", usable)
    pool.merge(listing(**nonces), 0.0, 5.0)
    return pool


def taken(pool: NoncePool, now: float = 1.0, *, stream: bool = True, exclude: frozenset[str] = frozenset()) -> str:
    """Instance and nonce of the next session, or why there is none."""
    session = pool.take(now, stream=stream, exclude=exclude)
    return f"{session.instance.instance_id}:{session.nonce}" if isinstance(session, Session) else session


def test_instances_take_turns() -> None:
    """Never the first one until it is empty."""
    pool = pool_of(a=["a1", "a2"], b=["b1", "b2"], c=["c1"])
    assert [taken(pool) for _ in range(6)] == ["a:a1", "b:b1", "c:c1", "a:a2", "b:b2", "empty"]


def test_fewest_in_flight_goes_first() -> None:
    """An instance that is still busy waits until the others are as busy."""
    pool = pool_of(a=["a1", "a2"], b=["b1", "b2", "b3"])
    assert [taken(pool), taken(pool)] == ["a:a1", "b:b1"]
    pool.release("b")
    assert [taken(pool), taken(pool)] == ["b:b2", "a:a2"]


def test_nonces_end_before_they_expire() -> None:
    """The margin counts, and the time is that of the question."""
    pool = pool_of(a=["a1", "a2"])
    assert taken(pool, 54.9) == "a:a1"
    assert pool.can_take(54.9)
    assert not pool.can_take(55.0)
    assert taken(pool, 55.0) == "empty"


def test_an_answer_is_merged() -> None:
    """Older nonces keep their own deadline, what is known or was used does not come again."""
    pool = pool_of(a=["a1", "a2", "a3"])
    assert taken(pool) == "a:a1"
    pool.merge(listing(a=["a1", "a2", "a4"], b=["a3", "b1"]), 20.0, 5.0)
    assert pool.level(20.0) == 4
    assert pool.level(60.0) == 2
    assert sorted(taken(pool, 60.0) for _ in range(3)) == ["a:a4", "b:b1", "empty"]


def test_a_new_key_takes_the_nonces_along() -> None:
    """The instance restarted: what was given for its former key is worth nothing."""
    pool = pool_of(a=["a1", "a2"])
    pool.merge(listing(key="other", a=["a3"]), 10.0, 5.0)
    session = pool.take(10.0, stream=True)
    assert isinstance(session, Session)
    assert (session.instance.key_text, session.nonce) == ("other", "a3")
    assert taken(pool, 10.0) == "empty"


def test_quarantine_lasts_its_time() -> None:
    """And a shorter one does not end a longer one."""
    pool = pool_of(a=["a1"], b=["b1"])
    pool.quarantine("a", 31.0)
    pool.quarantine("a", 10.0)
    assert [taken(pool, 30.0), taken(pool, 30.0), taken(pool, 31.0)] == ["b:b1", "blocked", "a:a1"]


def test_excluded_and_stream_only_instances_are_passed_over() -> None:
    """The one for a request that asked them already, the other for requests that are no streams."""
    pool = pool_of(a=["a1"], b=["b1"])
    pool.only_streams("a")
    assert taken(pool, exclude=frozenset({"a", "b"})) == "blocked"
    assert taken(pool, stream=False, exclude=frozenset({"b"})) == "blocked"
    assert [taken(pool, stream=False), taken(pool, stream=False), taken(pool)] == ["b:b1", "blocked", "a:a1"]


def test_only_instances_with_a_verdict_are_taken() -> None:
    """Without any there is nothing to wait for; where a verified one has used its nonces up, there is."""
    verdicts: set[str] = set()
    pool = pool_of(lambda name, key: name in verdicts and key == sha256(b"key").digest(), a=["a1"], b=["b1"])
    assert taken(pool) == "no_verdict"
    assert not pool.can_take(1.0)
    verdicts.add("b")
    assert pool.can_take(1.0)
    assert pool.level(1.0) == 1
    assert [taken(pool), taken(pool)] == ["b:b1", "empty"]


def test_what_is_known_to_be_worthless_is_dropped() -> None:
    """The nonces of one answer, of one instance, or all."""
    pool = pool_of(a=["a1"], b=["b1"])
    pool.merge(listing(a=["a2"], b=["b2"]), 1.0, 5.0)
    first = pool.take(1.0, stream=True)
    assert isinstance(first, Session)
    assert first.answer == 1
    pool.drop_answer(1)
    assert pool.level(1.0) == 2
    pool.drop_instance("b")
    assert [known.instance_id for known in pool.instances()] == ["a"]
    pool.drop_all()
    assert pool.level(1.0) == 0


@pytest.mark.parametrize(("left", "now", "used", "wanted"), [(4, 9, 1, False), (3, 9, 1, True), (9, 45, 1, True)])
def test_a_pool_in_use_is_filled_before_it_is_empty(left: int, now: float, used: float, wanted: bool) -> None:
    """At 30 percent, or when it is 45 seconds old."""
    pool = pool_of(a=[f"a{n}" for n in range(10)])
    for _ in range(10 - left):
        taken(pool, used)
    assert pool.wants_refresh(now) is wanted


def test_a_pool_nobody_uses_is_left_alone() -> None:
    """For a minute after its last use it is kept filled."""
    pool = pool_of(a=["a1", "a2"])
    assert not pool.wants_refresh(50.0)
    taken(pool, 10.0)
    assert pool.wants_refresh(70.0)
    assert not pool.wants_refresh(70.1)


def test_pools_are_bounded() -> None:
    """Nonces that expire first give way, and so does the chute not asked for longest."""
    pool = pool_of(a=[f"old{n}" for n in range(100)])
    pool.merge(listing(b=[f"new{n}" for n in range(MAX_NONCES - 10)]), 10.0, 5.0)
    assert pool.level(10.0) == MAX_NONCES
    assert pool.level(60.0) == MAX_NONCES - 10
    pools = Pools(everybody)
    first = pools.of("0")
    for number in range(1, MAX_CHUTES):
        pools.of(str(number))
    assert pools.of("0") is first
    pools.of("another")
    assert (pools.find("0"), pools.find("1")) == (first, None)


def test_nothing_of_a_key_or_nonce_shows() -> None:
    """Sessions may come into a log by their representation."""
    session = pool_of(a=["n-secret"]).take(1.0, stream=True)
    assert "secret" not in repr(session)
    assert "key'" not in repr(session)


names = st.sampled_from("abc")
nonces = st.lists(st.integers(0, 60).map(lambda number: f"nonce{number}"), max_size=12)


class OncePerNonce(RuleBasedStateMachine):
    """Whatever listings say again and whatever is dropped between."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pool = NoncePool("chute", everybody)
        self.used: list[str] = []

    @rule(given=st.dictionaries(names, nonces), key=st.sampled_from(["one", "two"]), lifetime=st.floats(1, 60))
    def merge(self, given: dict[str, list[str]], key: str, lifetime: float) -> None:
        entries = tuple((instance(name, key), tuple(dict.fromkeys(listed))) for name, listed in given.items())
        self.pool.merge(Listing(entries, lifetime, 0), self.now, 0.0)

    @rule(stream=st.booleans(), exclude=st.frozensets(names, max_size=2))
    def take(self, stream: bool, exclude: frozenset[str]) -> None:
        session = self.pool.take(self.now, stream=stream, exclude=exclude)
        if isinstance(session, Session):
            self.used.append(session.nonce)
            assert session.instance.instance_id not in exclude

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=names, answer=st.integers(1, 5))
    def drop(self, name: str, answer: int) -> None:
        self.pool.release(name)
        self.pool.drop_answer(answer)
        self.pool.drop_instance(name)

    @invariant()
    def never_twice(self) -> None:
        assert len(self.used) == len(set(self.used))


OncePerNonce.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestEveryNonceIsUsedAtMostOnce = OncePerNonce.TestCase


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_hundreds_in_one_answer_are_still_taken_once(data: st.DataObject) -> None:
    """Listings that overlap in part, taken to the end."""
    pool, seen = NoncePool("chute", everybody), []
    for round_ in range(4):
        start = data.draw(st.integers(0, 300))
        pool.merge(
            listing(a=[f"n{n}" for n in range(start, start + 200)], b=[f"n{n}" for n in range(100)]), round_, 5.0
        )
        for _ in range(data.draw(st.integers(0, 300))):
            session = pool.take(round_, stream=True)
            if isinstance(session, Session):
                seen.append(session.nonce)
    assert len(seen) == len(set(seen))
