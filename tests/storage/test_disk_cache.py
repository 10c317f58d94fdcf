"""Documents kept in memory and on disk: what survives, what goes first, and what is never read or written."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, execute
from twisted.internet.threads import deferToThreadPool
from twisted.logger import formatEvent, globalLogPublisher

from chutes_autopilot.storage import cache_files
from chutes_autopilot.storage.cache_files import CachedJson, NotJson, count_items, is_safe_name
from chutes_autopilot.storage.disk_cache import DiskCache

NAME = "v1_models_all.json"
UUID = "0d7184a2-32a3-53e0-9607-058c37edaab5"
BODY = b'{ "items":[1.0, 2,\n"\xc3\xa9\\u00e9"], "n":1e2}'


def page(number: int) -> str:
    return f"models_p{number}_l25_tnull_nnull_pubtrue.json"


def names(directory: Path) -> set[str]:
    return {file.name for file in directory.iterdir()}


def document(body: bytes = BODY, at: float = 1000.5) -> CachedJson:
    return CachedJson(at, body, count_items(body))


async def opened(directory: Path, in_thread: Callable[..., Deferred[Any]] = execute, **bounds: int) -> DiskCache:
    cache = DiskCache(directory, in_thread, **bounds)
    await cache.open()
    return cache


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    lines: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("event") == "cache_unusable":
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


async def test_a_document_survives_a_restart_byte_for_byte(tmp_path: Path) -> None:
    """In real threads: what one process put, the next one gets, exactly as the upstream spelled it."""
    from twisted.internet import reactor

    in_thread = partial(deferToThreadPool, reactor, reactor.getThreadPool())  # type: ignore[attr-defined]
    await (await opened(tmp_path / "new" / "cache", in_thread)).put(NAME, document())
    later = await opened(tmp_path / "new" / "cache", in_thread)
    assert later.peek(NAME) is None
    assert await later.get(NAME) == CachedJson(1000.5, BODY, 3)
    assert later.peek(NAME) == CachedJson(1000.5, BODY, 3)


async def test_the_file_is_the_documented_one_and_its_owners_alone(tmp_path: Path) -> None:
    """A timestamp in milliseconds, the data as they came, mode 0600, and nothing else left behind."""
    await (await opened(tmp_path)).put(NAME, document())
    file = tmp_path / NAME
    assert names(tmp_path) == {NAME}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_bytes() == b'{"timestamp": 1000500, "data": ' + BODY + b"}"
    assert json.loads(file.read_bytes()) == {"timestamp": 1000500, "data": json.loads(BODY)}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"timestamp": 1000500, "data": {"items":[1]',
        b'{"timestamp": 1000500, "data": {"items":[1]}} more',
        b'{"timestamp": 1000500}',
        b'{"timestamp": 1000500, "data": 7}',
        b'{"timestamp": "x", "data": {}}',
        b"[]",
        b"\x00\x01",
    ],
)
async def test_a_torn_or_foreign_file_is_a_miss(tmp_path: Path, text: bytes) -> None:
    """Whatever is no complete document counts as absent, and the next put takes its place."""
    (tmp_path / NAME).write_bytes(text)
    cache = await opened(tmp_path)
    assert await cache.get(NAME) is None
    assert cache.entries() == ()
    await cache.put(NAME, document())
    assert (await (await opened(tmp_path)).get(NAME)) == document()


async def test_files_of_the_predecessor_are_taken_over(tmp_path: Path) -> None:
    """The documented content counts, however it is spaced."""
    (tmp_path / NAME).write_text('\n{"timestamp":5000,\n"data":[1,2]\n}\n')
    assert await (await opened(tmp_path)).get(NAME) == CachedJson(5.0, b"[1,2]", 2)


async def test_the_least_recently_used_goes_out_of_both_levels(tmp_path: Path) -> None:
    """Reading counts as use, and a restart keeps the bound too."""
    cache = await opened(tmp_path, max_entries=3)
    for number in range(3):
        await cache.put(page(number), document(at=float(number)))
    await cache.get(page(0))
    await cache.put(page(3), document(at=3.0))
    assert [entry.name for entry in cache.entries()] == [page(3), page(0), page(2)]
    assert names(tmp_path) == {page(3), page(0), page(2)}
    assert await cache.get(page(1)) is None
    again = await opened(tmp_path, max_entries=2)
    assert [entry.name for entry in again.entries()] == [page(3), page(2)]
    assert names(tmp_path) == {page(3), page(2)}


async def test_there_are_256_entries_at_most(tmp_path: Path) -> None:
    """The documented bound holds where nothing else is said."""
    cache = await opened(tmp_path)
    for number in range(260):
        await cache.put(page(number), document())
    assert len(cache.entries()) == len(names(tmp_path)) == 256


async def test_a_large_document_is_on_disk_only(tmp_path: Path) -> None:
    """It is given back from its file each time, and takes no memory between."""
    cache = await opened(tmp_path, max_entry_bytes=len(BODY) - 1)
    await cache.put(NAME, document())
    assert cache.peek(NAME) is None
    assert await cache.get(NAME) == document()
    assert [(entry.in_memory, entry.on_disk) for entry in cache.entries()] == [(False, True)]


async def test_memory_is_bounded_as_a_whole(tmp_path: Path) -> None:
    """When all together are too large, the least recently used stay on disk only."""
    cache = await opened(tmp_path, max_memory_bytes=2 * len(BODY))
    for number in range(3):
        await cache.put(page(number), document())
    assert [entry.in_memory for entry in cache.entries()] == [True, True, False]
    assert await cache.get(page(0)) == document()
    assert [entry.in_memory for entry in cache.entries()] == [True, True, False]


async def test_the_disk_is_bounded_as_a_whole(tmp_path: Path) -> None:
    """When all files together are too large, the least recently used are removed."""
    cache = await opened(tmp_path, max_disk_bytes=2 * len(BODY))
    for number in range(4):
        await cache.put(page(number), document())
    assert names(tmp_path) == {page(2), page(3)}


async def test_without_a_directory_memory_serves_and_the_log_says_so_once(tmp_path: Path, warnings: list[str]) -> None:
    """Where a file stands in the way of the directory, documents are kept all the same, within memory's bounds."""
    (tmp_path / "file").write_text("")
    cache = await opened(tmp_path / "file", max_entries=2, max_entry_bytes=100)
    for number in range(3):
        await cache.put(page(number), document())
    await cache.put(NAME, document(b"[" + b"1," * 100 + b"1]"))
    assert [await cache.get(name) for name in (page(0), page(1), page(2), NAME)] == [None, None, document(), None]
    assert warnings == ["CACHE_DIR cannot be used (File exists): what cannot be written there is kept in memory only"]


async def test_a_disk_that_fails_later_is_said_once_too(tmp_path: Path, warnings: list[str]) -> None:
    """A write that fails costs the copy on disk and nothing else."""
    cache = await opened(tmp_path / "cache")
    os.rmdir(tmp_path / "cache")
    await cache.put(NAME, document())
    await cache.put(page(0), document())
    assert await cache.get(NAME) == document()
    assert [entry.on_disk for entry in cache.entries()] == [False, False]
    assert len(warnings) == 1


async def test_what_is_not_the_caches_own_is_left_alone(tmp_path: Path) -> None:
    """Other files in the directory are neither counted nor removed, nor is one behind a link ever read."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret").write_bytes(b'{"timestamp": 1000, "data": ["secret"]}')
    (tmp_path / page(9)).symlink_to(tmp_path / "other" / "secret")
    (tmp_path / "package.json").write_text('{"timestamp": 1, "data": []}')
    (tmp_path / "chute_notes.json").write_text('{"notes": []}')
    cache = await opened(tmp_path, max_entries=1)
    assert cache.entries() == ()
    await cache.put(page(1), document())
    await cache.put(page(2), document())
    kept = {"other", page(9), "package.json", "chute_notes.json", page(2)}
    assert names(tmp_path) == kept
    assert cache_files.read(tmp_path / page(9)) is None


async def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    """A file that was being written long ago goes; one that may still be written stays."""
    (tmp_path / ".part-old").write_text("x")
    os.utime(tmp_path / ".part-old", (1, 1))
    (tmp_path / ".part-new").write_text("x")
    await opened(tmp_path)
    assert names(tmp_path) == {".part-new"}


def test_a_write_that_fails_leaves_the_old_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the very last step nothing has changed, and nothing is left over."""
    cache_files.write(tmp_path / NAME, document())

    def fail(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        cache_files.write(tmp_path / NAME, document(b"[]"))
    assert names(tmp_path) == {NAME}
    assert cache_files.read(tmp_path / NAME) == document()


async def test_writes_of_one_name_stay_in_order(tmp_path: Path) -> None:
    """However slow the first write is, the document put last is the one on disk at the end."""
    held: list[Deferred[None]] = []

    def in_thread(work: Callable[..., Any], *given: Any) -> Deferred[Any]:
        if work is not cache_files.write:
            return execute(work, *given)
        held.append(Deferred())
        return held[-1].addCallback(lambda _: work(*given))

    cache = await opened(tmp_path, in_thread)
    first = Deferred.fromCoroutine(cache.put(NAME, document(b"[1]")))
    second = Deferred.fromCoroutine(cache.put(NAME, document(b"[1,2]")))
    assert await cache.get(NAME) == document(b"[1,2]")
    for number in range(2):
        held[number].callback(None)
    await first
    await second
    assert cache_files.read(tmp_path / NAME) == document(b"[1,2]")


@pytest.mark.parametrize(
    "name",
    [
        "",
        NAME[:-5],
        "../" + NAME,
        "chute_/../x.json",
        "chute_\\x.json",
        "chute_x\0.json",
        "chute_x.json\n",
        "x.json",
        ".hidden.json",
        "history.sqlite3",
        "chute_é.json",
        f"chute_{'x' * 250}.json",
    ],
)
async def test_only_documented_names_touch_the_disk(tmp_path: Path, name: str) -> None:
    """A name that is a path, or of no documented kind, is refused before anything is read or written."""
    cache = await opened(tmp_path / "cache")
    with pytest.raises(ValueError, match="not the name of a cache file"):
        await cache.put(name, document())
    with pytest.raises(ValueError, match="not the name of a cache file"):
        await cache.get(name)
    assert names(tmp_path) | names(tmp_path / "cache") == {"cache"}


def test_every_documented_name_is_accepted() -> None:
    """Listings, single chutes and the catalog each have a name, odd characters percent-encoded."""
    for name in (
        NAME,
        f"chute_{UUID}.json",
        "models_p100_l5000_tvllm_nQwen%2F..%C3%A9_pubfalse_schfalse.json",
        page(0),
    ):
        assert is_safe_name(name)


@given(st.text())
def test_no_safe_name_is_a_path(text: str) -> None:
    """Whatever is put into a name, a safe one names a file in this directory and nothing else."""
    for name in (text, f"chute_{text}.json", f"models_p0_l1_t{text}.json"):
        if is_safe_name(name):
            assert Path("/cache", name).parent == Path("/cache")
            assert Path("/cache", name).name == name
            assert len(name.encode()) <= 255


def test_records_are_counted() -> None:
    """Those of a listing, of a catalog, of a bare list, or the one document itself."""
    counted = [count_items(body) for body in (b'{"items":[1,2]}', b'{"data":[1]}', b"[]", b"{}", b'{"items":null}')]
    assert counted == [2, 1, 0, 1, 1]
    for body in (b"", b"7", b'"x"', b"null", b'{"items":', b"<html>", b"[" * 100_000):
        with pytest.raises(NotJson):
            count_items(body)
