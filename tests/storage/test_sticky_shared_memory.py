"""The sticky choices that several processes share: each knows at once what another one has put."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from chutes_autopilot.interfaces import IStickyStore
from chutes_autopilot.policy.stickiness import StickyChoice
from chutes_autopilot.storage.shared_memory import (
    BUCKET_SLOTS,
    MAX_MODEL_BYTES,
    SharedStickyStore,
    mapped,
    shared_memory,
)

ROOT = Path(__file__).parent.parent.parent
CHOICE = StickyChoice("lab/Modèle-32B", True, 12.5)


def key(name: object) -> bytes:
    return sha256(str(name).encode()).digest()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def process(clock: Clock) -> Iterator[Callable[..., SharedStickyStore]]:
    """The store as one process has it; each call is another process."""
    descriptor = shared_memory(100)

    def process(ttl: float = 60.0, max_entries: int = 100) -> SharedStickyStore:
        return SharedStickyStore(ttl, max_entries, clock.seconds, mapped(descriptor))

    yield process
    os.close(descriptor)


def test_it_is_a_sticky_store(process: Callable[..., SharedStickyStore]) -> None:
    """It keeps the port's promises of names and parameters."""
    assert verifyObject(IStickyStore, process())


def test_what_one_puts_every_other_gets(process: Callable[..., SharedStickyStore]) -> None:
    """The last choice of a client counts, whoever put it, also for a process that comes later."""
    one, other = process(), process()
    one.put(key(1), CHOICE)
    assert (other.get(key(1)), other.get(key(2))) == (CHOICE, None)
    other.put(key(1), StickyChoice("b"))
    assert (one.get(key(1)), process().get(key(1))) == (StickyChoice("b"), StickyChoice("b"))


def test_the_time_to_live_counts_from_the_last_put(process: Callable[..., SharedStickyStore], clock: Clock) -> None:
    """Reading does not prolong an entry, putting does."""
    store = process()
    store.put(key("read"), CHOICE)
    store.put(key("renewed"), CHOICE)
    clock.advance(30)
    store.put(key("renewed"), CHOICE)
    assert store.get(key("read")) == CHOICE
    clock.advance(30)
    assert (store.get(key("read")), store.get(key("renewed"))) == (None, CHOICE)


def test_it_has_room_for_those_it_was_made_for(process: Callable[..., SharedStickyStore], clock: Clock) -> None:
    """The clients seen last are remembered, all but a few of as many as there is room for; of the oldest none."""
    store = process()
    for number in range(1000):
        clock.advance(0.01)
        store.put(key(number), CHOICE)
    kept = [number for number in range(1000) if store.get(key(number))]
    assert len([number for number in kept if number >= 920]) > 70
    assert not [number for number in kept if number < 500]


@pytest.mark.parametrize(("ttl", "max_entries"), [(0.0, 10), (60.0, 0)])
def test_zero_switches_it_off(process: Callable[..., SharedStickyStore], ttl: float, max_entries: int) -> None:
    """Without time or room nothing is remembered, and what was is not used."""
    process().put(key(1), CHOICE)
    off = process(ttl, max_entries)
    off.put(key(2), CHOICE)
    assert (off.get(key(1)), process().get(key(2))) == (None, None)


def test_a_name_too_long_is_not_remembered(process: Callable[..., SharedStickyStore]) -> None:
    """The longest that fits is."""
    store = process()
    store.put(key(1), StickyChoice("m" * MAX_MODEL_BYTES))
    store.put(key(2), StickyChoice("m" * (MAX_MODEL_BYTES + 1)))
    assert (store.get(key(1)), store.get(key(2))) == (StickyChoice("m" * MAX_MODEL_BYTES), None)


def test_a_record_that_is_not_whole_is_nothing(clock: Clock) -> None:
    """Whatever bit of it another process has not written yet, nothing is got, and a new choice takes its place."""
    descriptor = shared_memory(1)
    memory = mapped(descriptor)
    os.close(descriptor)
    store = SharedStickyStore(60.0, 1, clock.seconds, memory)
    store.put(key(1), CHOICE)
    whole = bytes(memory)
    written = len(whole.rstrip(b"\0"))
    for at in range(written):
        memory[at] ^= 1
        assert store.get(key(1)) is None
        memory[at] ^= 1
    memory[written - 1] ^= 1
    store.put(key(1), StickyChoice("b"))
    assert store.get(key(1)) == StickyChoice("b")


HAMMER = f"""
import sys
from hashlib import sha256
from random import Random
from chutes_autopilot.policy.stickiness import StickyChoice
from chutes_autopilot.storage.shared_memory import SharedStickyStore, mapped

random, store = Random(), SharedStickyStore(60.0, 100, lambda: 0.0, mapped(int(sys.argv[1])))
for _ in range(3000):
    client = random.randrange({2 * BUCKET_SLOTS})
    key = sha256(str(client).encode()).digest()
    store.put(key, StickyChoice((str(client) + " ") * random.randrange(1, 40)))
    got = store.get(key)
    assert got is None or set(got.model.split()) == {{str(client)}}
"""
"""Puts and gets a few clients again and again; fails where it gets what nobody has put."""


def test_nobody_gets_what_nobody_put() -> None:
    """Processes that write to the same few places at the same time tear no record."""
    descriptor = shared_memory(1)
    command = [sys.executable, "-c", HAMMER, str(descriptor)]
    children = [subprocess.Popen(command, pass_fds=[descriptor], cwd=ROOT) for _ in range(2)]
    assert [child.wait(60) for child in children] == [0, 0]
    os.close(descriptor)
