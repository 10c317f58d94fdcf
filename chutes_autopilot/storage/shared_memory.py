"""Clients' last choices in memory that several processes of one machine share.

Workers know of a choice from the moment it is made: there is no message that a client's next request could overtake,
and nobody to ask before a request is routed. Nothing is locked. A record is written in one piece with a checksum, so
what another process reads of it while it is written, or what a process leaves behind that is killed at it, is taken
for nothing. That costs a warm prompt cache and nothing else.
"""

import os
import struct
import sys
from collections.abc import Callable
from mmap import mmap
from zlib import crc32

from attrs import define, field
from zope.interface import implementer

from chutes_autopilot.interfaces import IStickyStore
from chutes_autopilot.policy.stickiness import StickyChoice

KEY_BYTES = 32
SLOT_BYTES = 320
BUCKET_SLOTS = 8
_BUCKET_BYTES = SLOT_BYTES * BUCKET_SLOTS

_RECORD = struct.Struct("<dd?H")
"""Of a slot, behind the key and the checksum of key and record: when it was put, when the preferred model failed,
whether it is a failover's, the length of the model's name that follows."""
_AT = KEY_BYTES + 4
REFRESHES = 16
"""An unchanged choice is written again after this part of its time to live: it may end that much early."""
MAX_MODEL_BYTES = SLOT_BYTES - _AT - _RECORD.size


def shared_memory(max_entries: int) -> int:
    """Anonymous memory for at least so many clients, that no file system ever sees: its descriptor."""
    if sys.platform != "linux":  # the setting says so too
        raise OSError("there is no anonymous shared memory here")
    buckets = max(1, -(-max_entries * 5 // (4 * BUCKET_SLOTS)))  # a quarter more: they do not fill evenly
    descriptor = os.memfd_create("chutes-autopilot-sticky")
    os.ftruncate(descriptor, buckets * _BUCKET_BYTES)
    return descriptor


def mapped(descriptor: int) -> mmap:
    """That memory in this process; the descriptor is not needed any more."""
    return mmap(descriptor, os.fstat(descriptor).st_size)


@implementer(IStickyStore)
@define(eq=False)
class SharedStickyStore:
    """Remembers clients in shared memory; every operation takes constant time.

    A client's key, which is evenly distributed, chooses a bucket of BUCKET_SLOTS; the one put there longest ago gives
    way. What is stored depends on nothing of the process, so all may come and go.

    :param ttl: seconds an entry lives after it was put; 0 switches the store off.
    :param max_entries: 0 is off too; how many there is room for was decided when the memory was made.
    :param now: the clock, in seconds, the same for all processes.

    Both may be changed at any time.
    """

    ttl: float
    max_entries: int
    _now: Callable[[], float]
    _memory: mmap
    _buckets: int = field(init=False)
    _seen: dict[bytes, tuple[int, int, bytes, float, StickyChoice]] = field(init=False, factory=dict)
    """What was read or written last: from where to where, its bytes, since when; it holds as long as the memory has
    those bytes."""

    def __attrs_post_init__(self) -> None:
        self._buckets = len(self._memory) // _BUCKET_BYTES

    def get(self, key: bytes) -> StickyChoice | None:
        """The choice last put under this client key, None where there is none or it is too old."""
        if self.ttl <= 0 or self.max_entries <= 0:
            return None
        seen = self._seen.get(key)
        if seen is not None:
            start, end, slot, put_at, choice = seen
            if self._memory[start:end] == slot:
                return choice if self._now() - put_at < self.ttl else None
        seen = self._read(key)
        if seen is None:
            return None
        self._note(key, seen)
        return seen[4] if self._now() - seen[3] < self.ttl else None

    def put(self, key: bytes, choice: StickyChoice) -> None:
        """Remember a choice and start its time to live anew.

        One that `get` has just given is not written again and again: what another process has put in its place since
        may stay there.
        """
        now, seen = self._now(), self._seen.get(key)
        if seen is not None and seen[4] is choice and now - seen[3] < self.ttl / REFRESHES:
            return  # nearly every time
        if self.ttl <= 0 or self.max_entries <= 0:
            return
        name = choice.model.encode("utf-8", "surrogatepass")
        if len(name) > MAX_MODEL_BYTES:
            return
        record = _RECORD.pack(now, choice.preferred_failed_at, choice.from_failover, len(name)) + name
        # of the key too: two processes that write there may leave the key of one with the record of the other
        slot = key + crc32(record, crc32(key)).to_bytes(4, "little") + record
        start = self._bucket(key)
        bucket = self._memory[start : start + _BUCKET_BYTES]
        at = _found(bucket, key)
        if at < 0:
            at = min(range(0, _BUCKET_BYTES, SLOT_BYTES), key=lambda at: _RECORD.unpack_from(bucket, at + _AT)[0])
        self._memory[start + at : start + at + len(slot)] = slot
        self._note(key, (start + at, start + at + len(slot), slot, now, choice))

    def _read(self, key: bytes) -> tuple[int, int, bytes, float, StickyChoice] | None:
        start = self._bucket(key)
        bucket = self._memory[start : start + _BUCKET_BYTES]
        at = _found(bucket, key)
        if at < 0:
            return None
        record = bucket[at + _AT : at + SLOT_BYTES]
        put_at, failed_at, from_failover, length = _RECORD.unpack_from(record)
        whole = record[: _RECORD.size + length]
        checksum = bucket[at + KEY_BYTES : at + _AT]
        if crc32(whole, crc32(key)) != int.from_bytes(checksum, "little"):
            return None
        model = whole[_RECORD.size :].decode("utf-8", "surrogatepass")
        slot = key + checksum + whole
        return start + at, start + at + len(slot), slot, put_at, StickyChoice(model, from_failover, failed_at)

    def _note(self, key: bytes, seen: tuple[int, int, bytes, float, StickyChoice]) -> None:
        if len(self._seen) >= self.max_entries:
            self._seen.clear()
        self._seen[key] = seen

    def _bucket(self, key: bytes) -> int:
        return int.from_bytes(key[:8], "little") % self._buckets * _BUCKET_BYTES


def _found(bucket: bytes, key: bytes) -> int:
    at = bucket.find(key)
    # an attacker cannot make a key stand anywhere else: who has no CLIENT_KEY_SECRET chooses no key
    return at if at >= 0 and at % SLOT_BYTES == 0 else -1
