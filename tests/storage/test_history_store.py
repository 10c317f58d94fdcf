"""The history: what was written comes back by the minute and by the hour, within bounds, whatever the file is like."""

import os
import sqlite3
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import blockon
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, gatherResults
from twisted.internet.threads import deferToThreadPool
from twisted.logger import formatEvent, globalLogPublisher

from chutes_autopilot.explorer_live import recorder
from chutes_autopilot.explorer_live.recorder import OTHERS, Recorder
from chutes_autopilot.storage import history, history_file, history_queries
from chutes_autopilot.storage.history import FILE_NAME, MAX_PENDING, HistoryStore, HistoryUnavailable
from chutes_autopilot.storage.history_rows import MEASURES, CatalogChange, FailoverCount, HistoryRow, Point
from chutes_autopilot.storage.history_writing import DAY, HOUR, MINUTE

T0 = 1_795_219_200
"""The beginning of a day."""

MB = 1_000_000


def row(chute: str = "a", utilization: float | None = 0.5, **values: Any) -> HistoryRow:
    return HistoryRow(chute, f"org/{chute}", utilization, **values)


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("event") == "history":
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def open_store() -> Iterator[Callable[..., HistoryStore]]:
    """Starts stores and stops them at the end."""
    from twisted.internet import reactor

    started: list[HistoryStore] = []

    def start(directory: Path | None, max_bytes: int = 256 * MB) -> HistoryStore:
        in_thread = partial(deferToThreadPool, reactor, reactor.getThreadPool())  # type: ignore[attr-defined]
        started.append(HistoryStore(reactor, directory, max_bytes, in_thread))
        started[-1].startService()
        return started[-1]

    yield start
    for store in started:
        blockon(store.stopService())


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, open_store: Callable[..., HistoryStore], tmp_path: Path) -> HistoryStore:
    return open_store(tmp_path / "cache" if request.param == "file" else None)


async def means(store: HistoryStore, resolution: Any = "minute", chute: str = "a") -> list[tuple[int, float]]:
    points = await store.series(chute, "utilization", 0, T0 + 1000 * DAY, resolution)
    return [((point.at - T0) // (MINUTE if resolution == "minute" else HOUR), point.mean) for point in points]


async def test_every_measure_comes_back_by_the_minute(store: HistoryStore) -> None:
    """A minute has the values it was given at any time within it; unknown ones are gaps; ``until`` is exclusive."""
    values = {measure: number + 0.5 for number, measure in enumerate(MEASURES)}
    await store.record(T0 + 59.9, [HistoryRow("a", "org/a", **values), HistoryRow("b", "org/b")])  # type: ignore[arg-type]
    await store.record(T0 + 60, [row(utilization=None)])
    await store.record(T0 + 120, [row()])
    for measure, value in values.items():
        points = await store.series("a", measure, T0, T0 + 120, "minute")  # type: ignore[arg-type]
        assert points == (Point(T0, value, value, value),)
    assert await store.series("b", "utilization", T0, T0 + DAY, "minute") == ()
    assert await store.series("c", "utilization", T0, T0 + DAY, "minute") == ()
    assert await means(store) == [(0, 0.5), (2, 0.5)]


async def test_a_minute_that_is_written_again_is_replaced(store: HistoryStore) -> None:
    """There is one value for each minute."""
    await store.record(T0, [row(utilization=0.1)])
    await store.record(T0 + 30, [row(utilization=0.2)])
    assert await means(store) == [(0, 0.2)]


async def test_hours_are_mean_least_and_greatest_of_their_minutes(store: HistoryStore) -> None:
    """Also the hour that is not over yet, and the ones that nothing was written in are gaps."""
    for minute, value in ((0, 0.0), (30, 0.25), (59, 0.5), (180, 0.75), (181, 0.25)):
        await store.record(T0 + minute * MINUTE, [row(utilization=value, rank=3), row("b", value)])
    assert await store.series("a", "utilization", T0, T0 + DAY, "hour") == (
        Point(T0, 0.25, 0.0, 0.5),
        Point(T0 + 3 * HOUR, 0.5, 0.25, 0.75),
    )
    assert await store.series("a", "rank", T0, T0 + HOUR, "hour") == (Point(T0, 3.0, 3, 3),)


async def test_minutes_live_for_7_days_and_hours_for_90(store: HistoryStore) -> None:
    """What is older goes when an hour begins, and with the last of it the chute itself is forgotten."""
    await store.record(T0, [row("b")])
    await store.record(T0 + DAY, [row()])
    await store.record(T0 + 8 * DAY, [row(utilization=0.25)])
    assert await means(store) == [(24 * 60, 0.5), (8 * 24 * 60, 0.25)]
    assert await means(store, chute="b") == []
    assert await means(store, "hour", "b") == [(0, 0.5)]
    await store.record(T0 + 91 * DAY, [row()])
    assert await means(store) == [(91 * 24 * 60, 0.5)]
    assert await means(store, "hour") == [(24, 0.5), (8 * 24, 0.25), (91 * 24, 0.5)]
    assert await means(store, "hour", "b") == []
    assert await store.first_seen() == {"a": T0 + DAY}


async def test_a_clock_that_was_set_back_stops_nothing(store: HistoryStore) -> None:
    """Hours are rolled up again from then on."""
    await store.record(T0 + 50 * HOUR, [row()])
    for hour in range(3):
        await store.record(T0 + hour * HOUR, [row(utilization=0.25)])
    assert await means(store, "hour") == [(0, 0.25), (1, 0.25), (2, 0.25), (50, 0.5)]


async def test_sparklines_of_all_chutes_at_once(store: HistoryStore) -> None:
    """24 hours in 48 means, None where nothing is known; a record renews them."""
    now = T0 + 40 * HOUR
    await store.record(now - 25 * HOUR, [row()])
    await store.record(now - DAY + MINUTE, [row(utilization=0.25), row("b", None)])
    await store.record(now, [row(utilization=0.75), row("c", 1.0)])
    lines = await store.sparklines(now)
    assert lines == {"a": (0.25, *[None] * 46, 0.75), "c": (*[None] * 47, 1.0)}
    assert await store.sparklines(now) is lines
    await store.record(now, [row(utilization=0.5)])
    assert (await store.sparklines(now))["a"][-1] == 0.5
    assert (await store.sparklines(now + HOUR))["a"][-3:] == (0.5, None, None)


async def test_changes_are_kept_with_their_detail(store: HistoryStore) -> None:
    """The newest first, by time, kind and chute, no more than asked for; details that are too large are left out."""
    happened = [
        CatalogChange(T0, "added", "a", "org/a"),
        CatalogChange(T0 + 1, "price", "a", "org/a", {"field": "price.input", "before": 1.0, "after": 2.0}),
        CatalogChange(T0 + 1, "removed", None, "org/b", "x" * 20_000),
    ]
    await store.record(T0 + 60, [], happened)
    kept = [happened[0], happened[1], CatalogChange(T0 + 1, "removed", None, "org/b")]
    assert await store.changes(0, 10) == tuple(reversed(kept))
    assert await store.changes(T0 + 1, 1) == (kept[2],)
    assert await store.changes(0, 10, kinds=["added", "price"]) == (kept[1], kept[0])
    assert await store.changes(0, 10, kinds=["removed"], chute_id="a") == ()


async def test_failovers_are_added_up_by_the_hour(store: HistoryStore) -> None:
    """By model, reason and who was next."""
    for minute, count in ((0, 1), (59, 2), (60, 4)):
        counts = {("org/a", "connect", "org/b"): count, ("org/a", "timeout", None): 1}
        await store.record(T0 + minute * MINUTE, [], (), counts)
    assert await store.failovers(T0, 3) == (
        FailoverCount(T0 + HOUR, "org/a", "connect", "org/b", 4),
        FailoverCount(T0 + HOUR, "org/a", "timeout", None, 1),
        FailoverCount(T0, "org/a", "connect", "org/b", 3),
    )


async def test_a_measure_is_one_of_the_known(store: HistoryStore) -> None:
    """A visitor's text never gets into SQL."""
    with pytest.raises(ValueError, match="no measure"):
        await store.series("a", "utilization FROM minute--", 0, 1, "hour")  # type: ignore[arg-type]
    assert await store.series("a' OR 1", "utilization", 0, 1, "hour") == ()


async def test_the_file_outlives_the_process_and_is_its_owners_alone(
    open_store: Callable[..., HistoryStore], tmp_path: Path
) -> None:
    """Everything is there again; WAL, and mode 0600 for all files though the umask would allow more."""
    before = os.umask(0)
    try:
        store = open_store(tmp_path / "cache")
        await store.record(T0, [row()])
        modes = {stat.S_IMODE(os.stat(file).st_mode) for file in (tmp_path / "cache").glob("history*")}
        assert modes == {0o600}
        assert stat.S_IMODE(os.stat(tmp_path / "cache").st_mode) == 0o700
    finally:
        os.umask(before)
    await store.stopService()
    with closing(sqlite3.connect(tmp_path / "cache" / FILE_NAME)) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert raw.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    assert await means(open_store(tmp_path / "cache")) == [(0, 0.5)]


def overwrite(path: Path, start: int, end: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * (end - start))


def size_on_disk(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob(FILE_NAME + "*"))


def other_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript("CREATE TABLE diary (secret TEXT); INSERT INTO diary VALUES ('x')")


def other_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(f"CREATE TABLE x (y); PRAGMA application_id = {history_file.SCHEMA.application_id}")
        raw.execute("PRAGMA user_version = 7")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b"not a database at all" * 100), "it is damaged"),
        (other_program, "it was not made by this program"),
        (other_version, "it is of version 7, and this program knows version 1"),
    ],
)
async def test_a_file_that_cannot_be_used_is_set_aside(
    spoil: Callable[[Path], None],
    reason: str,
    open_store: Callable[..., HistoryStore],
    tmp_path: Path,
    log: list[str],
) -> None:
    """Nothing of it is lost, the log says so once, and the history begins anew."""
    spoil(tmp_path / FILE_NAME)
    spoilt = (tmp_path / FILE_NAME).read_bytes()
    store = open_store(tmp_path)
    await store.record(T0, [row()])
    assert await means(store) == [(0, 0.5)]
    assert (tmp_path / f"{FILE_NAME}.set-aside").read_bytes() == spoilt
    assert log == [f"the history was set aside as {FILE_NAME}.set-aside: {reason}"]
    await store.stopService()
    assert await means(open_store(tmp_path)) == [(0, 0.5)]
    assert len(log) == 1


async def test_a_file_damaged_at_some_page_is_found_out_at_the_start(
    open_store: Callable[..., HistoryStore], tmp_path: Path, log: list[str]
) -> None:
    """Not only its head is looked at."""
    store = open_store(tmp_path)
    await store.record(T0, [row(f"chute-{number}") for number in range(2000)])
    await store.stopService()
    overwrite(tmp_path / FILE_NAME, 40_960, 81_920)
    assert await means(open_store(tmp_path)) == []
    assert log == [f"the history was set aside as {FILE_NAME}.set-aside: it is damaged"]


async def test_a_file_damaged_while_it_is_used_is_set_aside_then(
    open_store: Callable[..., HistoryStore], tmp_path: Path, log: list[str]
) -> None:
    """One question fails, and the next finds a new history."""
    store = open_store(tmp_path)
    await store.record(T0, [row(f"chute-{number}") for number in range(5000)])
    await store._pool.runWithConnection(history_file.checkpoint)  # type: ignore[union-attr]
    await store._pool.runInteraction(lambda cursor: cursor.execute("PRAGMA shrink_memory"))  # type: ignore[union-attr]
    overwrite(tmp_path / FILE_NAME, 4096, os.stat(tmp_path / FILE_NAME).st_size)
    with pytest.raises(HistoryUnavailable, match="SQLITE_CORRUPT"):
        await store.first_seen()
    await store.record(T0, [row()])
    assert await store.first_seen() == {"a": T0}
    assert log == [f"the history was set aside as {FILE_NAME}.set-aside: it is damaged"]


async def test_without_a_directory_the_history_is_in_memory(
    open_store: Callable[..., HistoryStore], tmp_path: Path, log: list[str]
) -> None:
    """Where a file stands in the way, the log says so once and everything else works."""
    (tmp_path / "file").write_text("")
    store = open_store(tmp_path / "file")
    await store.record(T0, [row()])
    assert await means(store) == [(0, 0.5)]
    assert log == ["the history cannot be kept on disk (File exists): it is in memory only"]


@pytest.mark.wait(60)
async def test_the_file_stays_within_its_bound(open_store: Callable[..., HistoryStore], tmp_path: Path) -> None:
    """The oldest minutes go first, their hours stay, and the space goes back to the file system."""
    bound = 1_500_000
    store = open_store(tmp_path, bound)
    rows = [row(f"chute-{number:04}", 0.5, score=0.1, price_input=0.1, price_output=0.2) for number in range(300)]
    sizes = []
    for minute in range(0, 180, 2):
        await store.record(T0 + minute * MINUTE, rows)
        sizes.append(size_on_disk(tmp_path))
    assert max(sizes[:40]) > bound / 2  # it had to be trimmed
    assert os.stat(tmp_path / FILE_NAME).st_size <= bound
    kept = await means(store, chute="chute-0000")
    assert kept[0][0] > 0
    assert kept[-1][0] == 178
    assert [hour for hour, _ in await means(store, "hour", "chute-0000")] == [0, 1, 2]


@pytest.mark.wait(60)
async def test_a_bound_that_was_lowered_is_kept_too(open_store: Callable[..., HistoryStore], tmp_path: Path) -> None:
    """Also where hours and events alone are too much."""
    store = open_store(tmp_path)
    happened = [CatalogChange(T0 + number, "price", "a", "org/a", "x" * 1000) for number in range(3000)]
    await store.record(T0, [row(f"chute-{number}") for number in range(3000)], happened)
    await store.record(T0 + HOUR, [])
    await store.stopService()
    assert os.stat(tmp_path / FILE_NAME).st_size > 3 * MB
    store = open_store(tmp_path, MB)
    await store.record(T0 + HOUR, [row()])
    await store.stopService()
    assert os.stat(tmp_path / FILE_NAME).st_size <= MB
    assert await means(open_store(tmp_path, MB)) == [(60, 0.5)]


async def test_questions_are_bounded_and_outlive_whoever_asks(store: HistoryStore) -> None:
    """Too many at once are refused at once; one that is given up ends by itself and frees its place."""
    asked = [ensureDeferred(store.first_seen()) for _ in range(MAX_PENDING)]
    with pytest.raises(HistoryUnavailable, match="too many"):
        await store.first_seen()
    asked[0].addErrback(lambda failure: failure.trap(CancelledError))
    asked[0].cancel()
    assert await gatherResults(asked[1:]) == [{}] * (MAX_PENDING - 1)
    await store.record(T0, [row()])
    assert await store.first_seen() == {"a": T0}


async def test_a_stopped_store_refuses(store: HistoryStore) -> None:
    """What still waits for its turn is answered too."""
    asked = [ensureDeferred(store.first_seen()) for _ in range(3)]
    results = [deferred.addErrback(lambda failure: failure.value) for deferred in asked]
    await store.stopService()
    assert isinstance(await results[-1], HistoryUnavailable)
    with pytest.raises(HistoryUnavailable, match="closed"):
        await store.record(T0, [])


async def test_the_reactor_is_never_held(
    open_store: Callable[..., HistoryStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database works, the reactor's thread does not."""
    from twisted.python.threadable import isInIOThread

    in_reactor: list[bool] = []

    def watched(work: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*given: Any) -> Any:
            in_reactor.append(isInIOThread())
            return work(*given)

        return watch

    for module, name in ((history, "prepare"), (history_file, "trim"), (history_queries, "first_seen")):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    store = open_store(tmp_path)
    await store.record(T0, [row()])
    await store.first_seen()
    assert in_reactor == [False, False, False]


# the recorder


class FakeStore:
    """Takes records when the test says so."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.writing: Deferred[None] | None = None

    async def record(self, *given: Any) -> None:
        self.records.append(given)
        self.writing = Deferred()
        await self.writing


def start(work: Awaitable[None]) -> Deferred[None]:
    return ensureDeferred(work)  # type: ignore[arg-type]


async def test_a_minute_is_written_with_what_happened_before_it(store: HistoryStore) -> None:
    """Rows, changes and failovers go into one transaction; what was written is not written again."""
    recorder = Recorder(store)
    recorder.changed([CatalogChange(T0, "added", "a", "org/a")])
    recorder.failed_over("org/a", "connect", "org/b")
    recorder.failed_over("org/a", "connect", "org/b")
    await recorder.record(T0, [row()])
    await recorder.record(T0 + 60, [row(utilization=0.75)])
    assert await means(store) == [(0, 0.5), (1, 0.75)]
    assert len(await store.changes(0, 10)) == 1
    assert [failover.count for failover in await store.failovers(0, 10)] == [2]


async def test_what_happened_waits_when_a_minute_cannot_be_written(log: list[str]) -> None:
    """The minute is lost, which is said once until one is written; changes and failovers are not."""
    fake: Any = FakeStore()
    recorder = Recorder(fake)
    first, second = CatalogChange(T0, "added", "a", "org/a"), CatalogChange(T0, "added", "b", "org/b")
    recorder.changed([first])
    recorder.failed_over("org/a", "connect", None)
    for _ in range(2):
        writing = start(recorder.record(T0, [row()]))
        recorder.changed([second])
        recorder.failed_over("org/a", "connect", None)
        fake.writing.errback(HistoryUnavailable("SQLite: SQLITE_FULL"))
        await writing
    writing = start(recorder.record(T0 + 60, []))
    fake.writing.callback(None)
    await writing
    assert fake.records[-1] == (T0 + 60, [], (first, second, second), {("org/a", "connect", None): 3})
    assert log == ["the history misses minutes: SQLite: SQLITE_FULL"]


async def test_nothing_is_queued_behind_a_slow_disk(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """While a minute is being written the next is dropped, and what waits with it is bounded."""
    monkeypatch.setattr(recorder, "MAX_FAILOVER_KINDS", 2)
    fake: Any = FakeStore()
    slow = Recorder(fake)
    writing = start(slow.record(T0, [row()]))
    await slow.record(T0 + 60, [row()])
    assert log == ["the history misses minutes: an earlier minute is still being written"]
    for number in range(recorder.MAX_CHANGES + 1):
        slow.changed([CatalogChange(T0 + number, "price", "a", "org/a")])
    for model in ("a", "b", "c", "d", "a"):
        slow.failed_over(model, "timeout", None)
    fake.writing.callback(None)
    await writing
    writing = start(slow.record(T0 + 120, []))
    _, _, changes, failovers = fake.records[-1]
    assert (len(changes), changes[0].at) == (recorder.MAX_CHANGES, T0 + 1)
    assert failovers == {("a", "timeout", None): 2, ("b", "timeout", None): 1, (OTHERS, "timeout", None): 2}
    fake.writing.callback(None)
    await writing
