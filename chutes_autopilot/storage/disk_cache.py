"""Answers of the platform kept for a while: in memory, and in files that outlive the process."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred, DeferredLock

from chutes_autopilot.observe import events
from chutes_autopilot.storage import cache_files
from chutes_autopilot.storage.cache_files import CachedJson, is_safe_name

MAX_ENTRIES = 256
MAX_ENTRY_BYTES = 16 * 1024 * 1024
"""A larger document is not kept in memory."""

MAX_MEMORY_BYTES = 64 * 1024 * 1024
MAX_DISK_BYTES = 1024 * 1024 * 1024
"""Of all documents together."""

InThread = Callable[..., Deferred[Any]]
"""Runs a blocking function with its arguments in a thread, as ``partial(deferToThreadPool, reactor, pool)`` does."""


@attrs.frozen
class CacheEntry:
    """What the cache tells of a document without reading it.

    :param fetched_at: Unix time, seconds.
    :param size: bytes.
    :param items: how many records it has; None for one that is only on disk and was not read since the start.
    """

    name: str
    fetched_at: float
    size: int
    items: int | None
    in_memory: bool
    on_disk: bool


@attrs.define(eq=False)
class _Entry:
    fetched_at: float
    size: int
    document: CachedJson | None = None
    items: int | None = None
    on_disk: bool = False


class DiskCache:
    """Keeps documents by the names of their files; the least recently used go first, out of both levels at once.

    It never fails for want of a disk: where the directory cannot be used, which the log says once, memory alone
    serves. Whether a document is still fresh is the caller's to judge. Nothing is forgotten by age.

    :param in_thread: where files are read and written.
    :param known: of a name; other files of the cache that earlier processes left are removed.
    """

    def __init__(
        self,
        directory: Path,
        in_thread: InThread,
        *,
        known: Callable[[str], bool] = lambda name: True,
        max_entries: int = MAX_ENTRIES,
        max_entry_bytes: int = MAX_ENTRY_BYTES,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
        max_disk_bytes: int = MAX_DISK_BYTES,
    ) -> None:
        self._directory = directory
        self._in_thread = in_thread
        self._known = known
        self._max_entries = max_entries
        self._max_entry_bytes = min(max_entry_bytes, max_memory_bytes)
        self._max_memory_bytes = max_memory_bytes
        self._max_disk_bytes = max_disk_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._usable = False
        self._said = False
        self._writing = DeferredLock()  # files are written and removed in the order in which that was decided

    async def open(self) -> None:
        """Take over what earlier processes left; until then, memory alone serves."""
        try:
            found = await self._in_thread(cache_files.scan, self._directory)
        except (OSError, ValueError) as error:
            self._say(error)
            return
        self._usable = True
        unknown = [self._directory / name for name, _, _ in found if not self._known(name)]
        for name, fetched_at, size in reversed(found):
            if self._known(name) and name not in self._entries:
                self._entries[name] = _Entry(fetched_at, size, on_disk=True)
                self._entries.move_to_end(name, last=False)
        async with self._writing:
            await self._in_thread(_remove_all, unknown + self._surplus())

    def peek(self, name: str) -> CachedJson | None:
        """The document where it is in memory: at once."""
        entry = self._entries.get(_checked(name))
        if entry is None:
            return None
        self._entries.move_to_end(name)
        return entry.document

    async def get(self, name: str) -> CachedJson | None:
        """The document last put under this name, from memory or from its file.

        None where there is none (any more), or its file is torn or was replaced by something else.

        :raises ValueError: this is not the name of a cache file.
        """
        document = self.peek(name)
        entry = self._entries.get(name)
        if document is not None or entry is None or not entry.on_disk:
            return document
        document = cast(CachedJson | None, await self._in_thread(cache_files.read, self._directory / name))
        if self._entries.get(name) is not entry:  # put or evicted meanwhile
            return self.peek(name) or document
        if document is None:
            del self._entries[name]
            return None
        entry.fetched_at, entry.size, entry.items = document.fetched_at, len(document.data), document.items
        self._keep_in_memory(entry, document)
        return document

    async def put(self, name: str, document: CachedJson) -> None:
        """Keep a document in the place of an older one; ends when it is on disk, or cannot be.

        :raises ValueError: this is not the name of a cache file.
        """
        entry = _Entry(document.fetched_at, len(document.data), items=document.items)
        self._entries[_checked(name)] = entry
        self._entries.move_to_end(name)
        self._keep_in_memory(entry, document)
        surplus = self._surplus()
        if self._usable:
            async with self._writing:
                try:
                    await self._in_thread(cache_files.write, self._directory / name, document)
                    entry.on_disk = True
                except OSError as error:
                    self._say(error)
                await self._in_thread(_remove_all, surplus)
        if self._entries.get(name) is entry and not entry.on_disk and entry.document is None:
            del self._entries[name]

    def entries(self) -> tuple[CacheEntry, ...]:
        """What is kept, the most recently used first."""
        return tuple(
            CacheEntry(name, entry.fetched_at, entry.size, entry.items, entry.document is not None, entry.on_disk)
            for name, entry in reversed(self._entries.items())
        )

    def _keep_in_memory(self, entry: _Entry, document: CachedJson) -> None:
        if len(document.data) > self._max_entry_bytes:
            return
        entry.document = document
        loaded = [(name, kept) for name, kept in self._entries.items() if kept.document is not None]
        excess = sum(kept.size for _, kept in loaded) - self._max_memory_bytes
        for name, kept in loaded:
            if excess <= 0:
                break
            if kept is entry:
                continue
            excess -= kept.size
            kept.document = None
            if not self._usable:
                del self._entries[name]

    def _surplus(self) -> list[Path]:
        """Drop what there is too much of; gives the files to remove."""
        removed = []
        size = sum(entry.size for entry in self._entries.values())
        while len(self._entries) > self._max_entries or size > self._max_disk_bytes:
            name, entry = self._entries.popitem(last=False)
            size -= entry.size
            removed.append(self._directory / name)
        return removed

    def _say(self, error: Exception) -> None:
        if not self._said:
            self._said = True
            events.cache_unusable(getattr(error, "strerror", None) or type(error).__name__)


def _checked(name: str) -> str:
    if not is_safe_name(name):
        raise ValueError("not the name of a cache file")
    return name


def _remove_all(paths: list[Path]) -> None:
    for path in paths:
        cache_files.remove(path)
