"""The sticky choices of one process."""

import pytest
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from chutes_autopilot.interfaces import IStickyStore
from chutes_autopilot.policy.stickiness import StickyChoice
from chutes_autopilot.storage.memory import MemoryStickyStore

A, B, C = (StickyChoice(name) for name in "abc")


def test_it_is_a_sticky_store() -> None:
    """It keeps the port's promises of names and parameters."""
    assert verifyObject(IStickyStore, MemoryStickyStore(1.0, 1, Clock().seconds))


def test_the_last_choice_put_is_got() -> None:
    """Each client has one choice, the newest."""
    store = MemoryStickyStore(60.0, 10, Clock().seconds)
    store.put(b"one", A)
    store.put(b"two", B)
    store.put(b"one", C)
    assert (store.get(b"one"), store.get(b"two"), store.get(b"three"), len(store)) == (C, B, None, 2)


def test_the_time_to_live_counts_from_the_last_put() -> None:
    """Reading does not prolong an entry, putting does, and an expired one is dropped when it is met."""
    clock = Clock()
    store = MemoryStickyStore(60.0, 10, clock.seconds)
    store.put(b"read", A)
    store.put(b"renewed", A)
    clock.advance(30)
    assert store.get(b"read") == A
    store.put(b"renewed", A)
    clock.advance(29.5)
    assert store.get(b"read") == A
    clock.advance(0.5)
    assert (store.get(b"read"), store.get(b"renewed"), len(store)) == (None, A, 1)


def test_the_client_not_used_for_longest_is_forgotten_first() -> None:
    """Both reading and putting are use; the bound holds whatever comes."""
    store = MemoryStickyStore(60.0, 2, Clock().seconds)
    store.put(b"one", A)
    store.put(b"two", B)
    store.get(b"one")
    store.put(b"three", C)
    assert (store.get(b"two"), store.get(b"one"), store.get(b"three")) == (None, A, C)
    store.put(b"one", B)
    store.put(b"four", C)
    assert (store.get(b"three"), store.get(b"one"), len(store)) == (None, B, 2)


@pytest.mark.parametrize(("ttl", "max_entries"), [(0.0, 10), (60.0, 0)])
def test_zero_switches_it_off(ttl: float, max_entries: int) -> None:
    """Without time or room nothing is remembered and nothing is held."""
    store = MemoryStickyStore(ttl, max_entries, Clock().seconds)
    store.put(b"one", A)
    assert (len(store), store.get(b"one")) == (0, None)
