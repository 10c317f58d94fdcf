"""Values that can be asked for during a while."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from chutes_autopilot.storage.expiring import ExpiringStore


def test_a_value_lives_from_its_put() -> None:
    """Reading does not prolong a value, putting it again does."""
    clock = Clock()
    store: ExpiringStore[str, int] = ExpiringStore(60.0, 10, clock.seconds)
    store.put("a", 1)
    store.put("b", 2)
    clock.advance(59)
    assert (store.get("a"), store.get("b"), store.get("c")) == (1, 2, None)
    store.put("b", 3)
    clock.advance(1)
    assert (store.get("a"), store.get("b"), len(store)) == (None, 3, 1)


def test_the_oldest_goes_when_it_is_full() -> None:
    """The one put longest ago makes room, however often it was read."""
    store: ExpiringStore[str, int] = ExpiringStore(60.0, 2, Clock().seconds)
    store.put("a", 1)
    store.put("b", 2)
    store.put("a", 3)
    store.get("b")
    store.put("c", 4)
    assert (store.get("a"), store.get("b"), store.get("c")) == (3, None, 4)


@given(
    st.integers(0, 3),
    st.sampled_from([0.0, 5.0]),
    st.lists(st.tuples(st.floats(0, 3), st.sampled_from("abcde"), st.booleans()), max_size=40),
)
def test_bounds_hold_whatever_comes(room: int, ttl: float, steps: list[tuple[float, str, bool]]) -> None:
    """Nothing is found that is too old, nothing live is lost while there is room, and a put leaves no dead behind."""
    clock = Clock()
    store: ExpiringStore[str, float] = ExpiringStore(ttl, room, clock.seconds)
    put: dict[str, float] = {}
    for pause, key, putting in steps:
        clock.advance(pause)
        now = clock.seconds()
        if putting:
            store.put(key, now)
            put.pop(key, None)
            put[key] = now
            live = {k: at for k, at in put.items() if now - at < ttl}
            put = dict(list(live.items())[-room:]) if room else {}
            assert len(store) == len(put)
        else:
            at = put.get(key)
            assert store.get(key) == (at if at is not None and now - at < ttl else None)
