"""The queue of webhooks: what waits is there until it is delivered or given up, within bounds, whatever the file is."""

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import blockon
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, gatherResults
from twisted.internet.threads import deferToThreadPool
from twisted.logger import formatEvent, globalLogPublisher

from chutes_autopilot.storage.sqlite_database import MAX_PENDING, DatabaseUnavailable, aside
from chutes_autopilot.storage.webhook_queue import FILE_NAME, OVERFLOW, Delivery, Message, WebhookQueue

NOW = 1_795_219_200.5
ALL = {"a": 10, "b": 10}


def message(number: int, endpoint: str = "a") -> Message:
    return Message(f"msg_{number}", endpoint, "model.added", b"body %d" % number)


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("event") == "webhooks":
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


OpenQueue = Callable[..., WebhookQueue]


@pytest.fixture
def open_queue() -> Iterator[OpenQueue]:
    """Opens queues, and closes them at the end."""
    from twisted.internet import reactor

    opened: list[WebhookQueue] = []

    def start(directory: Path | None, **bounds: int) -> WebhookQueue:
        in_thread = partial(deferToThreadPool, reactor, reactor.getThreadPool())  # type: ignore[attr-defined]
        queue = WebhookQueue(reactor, directory, in_thread, **bounds)
        opened.append(queue)
        ensureDeferred(queue.open())  # what is asked meanwhile waits
        return queue

    yield start
    for queue in opened:
        blockon(ensureDeferred(queue.close()))


@pytest.fixture(params=["file", "memory"])
def queue(request: pytest.FixtureRequest, open_queue: OpenQueue, tmp_path: Path) -> WebhookQueue:
    return open_queue(tmp_path / "cache" if request.param == "file" else None, max_waiting=5, max_dead=8)


async def due(queue: WebhookQueue, now: float = NOW, rooms: dict[str, int] = ALL, busy: Any = ()) -> list[str]:
    return [delivery.message.message_id for delivery in (await queue.take(now, rooms, busy))[0]]


async def test_what_is_added_is_due_at_once_until_it_is_removed(queue: WebhookQueue) -> None:
    """Taking it changes nothing."""
    assert await queue.add([message(1), message(2, "b")], NOW) == 0
    (first, second), later = await queue.take(NOW, ALL, ())
    assert (first, later) == (Delivery(first.id, message(1), 0, NOW), None)
    assert (second.message.body, queue.waiting) == (b"body 2", 2)
    assert await due(queue, NOW - 1) == []
    await queue.remove(first.id)
    assert (await due(queue), queue.waiting, queue.dead) == (["msg_2"], 1, 0)


async def test_no_more_is_taken_than_there_is_room_for(queue: WebhookQueue) -> None:
    """For each endpoint by itself, the longest due first, and nothing that is under way already."""
    await queue.add([message(1), message(2)], NOW)
    await queue.add([message(3, "b"), message(4, "b")], NOW - 1)
    assert await due(queue, rooms={"a": 1, "b": 2}) == ["msg_3", "msg_4", "msg_1"]
    assert await due(queue, rooms={"a": 0, "b": 1}, busy=(1, 3)) == ["msg_4"]
    assert await due(queue, rooms={"c": 1}) == []


async def test_a_retry_is_due_later(queue: WebhookQueue) -> None:
    """And the queue says when the next one of those endpoints is."""
    await queue.add([message(1), message(2), message(3, "b")], NOW)
    await queue.retry(1, 1, NOW + 60)
    await queue.retry(2, 3, NOW + 5)
    await queue.retry(3, 1, NOW + 1)
    assert await queue.take(NOW, {"a": 9}, ()) == ((), NOW + 5)
    assert await queue.take(NOW + 5, {"a": 9}, ()) == ((Delivery(2, message(2), 3, NOW + 5),), NOW + 60)


async def test_dead_letters_tell_why(queue: WebhookQueue) -> None:
    """One after its last attempt, all of an endpoint, and those of endpoints that are no more; the latest first."""
    await queue.add([message(1), message(2), message(3, "b"), message(4, "c")], NOW)
    await queue.bury(1, 8, "status 500", NOW + 1)
    assert await queue.bury_all("b", "gone", NOW + 2) == 1
    assert await queue.retain(["a", "b"], "not configured", NOW + 3) == 1
    letters = await queue.dead_letters(10)
    assert [(x.message.message_id, x.message.body, x.attempts, x.died_at - NOW, x.reason) for x in letters] == [
        ("msg_4", b"body 4", 0, 3, "not configured"),
        ("msg_3", b"body 3", 0, 2, "gone"),
        ("msg_1", b"body 1", 8, 1, "status 500"),
    ]
    assert await queue.dead_letters(1) == letters[:1]
    assert (await due(queue), queue.waiting, queue.dead) == (["msg_2"], 1, 3)


async def test_dead_letters_are_queued_anew(queue: WebhookQueue) -> None:
    """One or all, of the endpoints that there are, as if never attempted; nobody has to make room for them."""
    await queue.add([message(1), message(2), message(3, "b")], NOW)
    for number in (1, 2, 3):
        await queue.bury(number, 8, "status 500", NOW + 1)
    letters = {letter.message.message_id: letter for letter in await queue.dead_letters(9)}
    assert {letter.queued_at for letter in letters.values()} == {NOW}
    assert await queue.revive(letters["msg_3"].number, ["a"], NOW + 2) == 0
    assert await queue.revive(letters["msg_2"].number, ["a", "b"], NOW + 2) == 1
    assert await queue.revive(letters["msg_2"].number, ["a", "b"], NOW + 2) == 0
    (delivery,) = (await queue.take(NOW + 2, ALL, ()))[0]
    assert (delivery.message, delivery.attempts, delivery.due) == (message(2), 0, NOW + 2)
    await queue.add([message(number) for number in range(10, 14)], NOW + 3)  # five wait, as many as may
    assert await queue.revive(None, ["a", "b"], NOW + 4) == 1
    assert [letter.message.message_id for letter in await queue.dead_letters(9)] == ["msg_1"]
    assert (queue.waiting, queue.dead) == (6, 1)


async def test_dead_letters_are_forgotten(queue: WebhookQueue) -> None:
    """One or all; what waits stays."""
    await queue.add([message(1), message(2), message(3)], NOW)
    await queue.bury(1, 8, "status 500", NOW)
    await queue.bury(2, 8, "status 500", NOW)
    _, first = (letter.number for letter in await queue.dead_letters(9))
    assert (await queue.forget(first), await queue.forget(first), queue.dead) == (1, 0, 1)
    await queue.bury(3, 8, "status 500", NOW)
    assert (await queue.forget(None), await queue.dead_letters(9), queue.dead) == (2, (), 0)


async def test_what_waits_for_one_endpoint_is_bounded(queue: WebhookQueue) -> None:
    """The oldest become dead letters; other endpoints keep theirs."""
    await queue.add([message(0, "b"), *map(message, range(1, 4))], NOW)
    assert await queue.add([message(4), message(5), message(6), message(7)], NOW) == 2
    assert await due(queue) == ["msg_0", "msg_3", "msg_4", "msg_5", "msg_6", "msg_7"]
    assert [(x.message.message_id, x.reason) for x in await queue.dead_letters(9)] == [
        ("msg_2", OVERFLOW),
        ("msg_1", OVERFLOW),
    ]


async def test_dead_letters_are_bounded(queue: WebhookQueue) -> None:
    """The oldest are forgotten."""
    for start in range(0, 20, 4):
        await queue.add([message(number) for number in range(start, start + 4)], NOW)
        await queue.bury_all("a", "gone", NOW)
    assert [x.message.message_id for x in await queue.dead_letters(99)] == [f"msg_{n}" for n in range(19, 11, -1)]
    assert queue.dead == 8


async def test_the_file_outlives_the_process_and_is_its_owners_alone(open_queue: OpenQueue, tmp_path: Path) -> None:
    """Everything is there again, and no endpoint's URL or key is in it, for they were never given."""
    before = os.umask(0)
    try:
        queue = open_queue(tmp_path / "cache")
        await queue.add([message(1), message(2)], NOW)
        await queue.retry(1, 2, NOW + 60)
        await queue.bury(2, 8, "status 500", NOW)
        modes = {stat.S_IMODE(os.stat(file).st_mode) for file in (tmp_path / "cache").iterdir()}
        assert (modes, stat.S_IMODE(os.stat(tmp_path / "cache").st_mode)) == ({0o600}, 0o700)
    finally:
        os.umask(before)
    await queue.close()
    (tmp_path / "cache" / FILE_NAME).chmod(0o644)
    again = open_queue(tmp_path / "cache")
    assert await again.take(NOW + 60, ALL, ()) == ((Delivery(1, message(1), 2, NOW + 60),), None)
    assert len(await again.dead_letters(9)) == 1
    assert stat.S_IMODE(os.stat(tmp_path / "cache" / FILE_NAME).st_mode) == 0o600
    await again.remove(1)
    assert (again.waiting, again.dead) == (0, 1)
    await again.add([message(3)], NOW)
    assert (await again.take(NOW, ALL, ()))[0][0].id > 2  # a place in the queue is never given twice


def other_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript("CREATE TABLE diary (secret TEXT); INSERT INTO diary VALUES ('x')")


def other_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript("CREATE TABLE x (y); PRAGMA application_id = 1128355656; PRAGMA user_version = 7")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b"not a database at all" * 100), "it is damaged"),
        (other_program, "it was not made by this program"),
        (other_version, "it is of version 7, and this program knows version 1"),
    ],
)
async def test_a_file_that_cannot_be_used_is_set_aside(
    spoil: Callable[[Path], None], reason: str, open_queue: OpenQueue, tmp_path: Path, log: list[str]
) -> None:
    """Nothing of it is lost, and the log says so."""
    path = tmp_path / FILE_NAME
    spoil(path)
    spoilt = path.read_bytes()
    queue = open_queue(tmp_path)
    await queue.add([message(1)], NOW)
    assert await due(queue) == ["msg_1"]
    assert aside(path).read_bytes() == spoilt
    assert log == [f"the webhooks' queue was set aside as {FILE_NAME}.set-aside: {reason}"]


async def test_a_file_damaged_while_it_is_used_is_set_aside_then(
    open_queue: OpenQueue, tmp_path: Path, log: list[str]
) -> None:
    """One question fails, and the next finds a new queue."""
    queue = open_queue(tmp_path, max_waiting=10_000)
    await queue.add([message(number) for number in range(5000)], NOW)
    await queue.close()
    await queue.open()
    with (tmp_path / FILE_NAME).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (os.stat(tmp_path / FILE_NAME).st_size - 4096))
    with pytest.raises(DatabaseUnavailable, match="SQLITE_CORRUPT"):
        await due(queue)
    await queue.add([message(1)], NOW)
    assert await due(queue) == ["msg_1"]
    assert log == [f"the webhooks' queue was set aside as {FILE_NAME}.set-aside: it is damaged"]


async def test_without_a_directory_the_queue_is_in_memory(
    open_queue: OpenQueue, tmp_path: Path, log: list[str]
) -> None:
    """Where a file stands in the way, the log says so once and everything else works."""
    (tmp_path / "file").write_text("")
    queue = open_queue(tmp_path / "file")
    await queue.add([message(1)], NOW)
    assert await due(queue) == ["msg_1"]
    assert log == ["webhooks cannot be kept on disk (File exists): what is not delivered is lost at the stop"]


async def test_questions_are_bounded_and_outlive_whoever_asks(queue: WebhookQueue) -> None:
    """Too many at once are refused at once; one that is given up is done all the same, and frees its place."""
    given_up = ensureDeferred(queue.add([message(1)], NOW))
    asked: list[Deferred[Any]] = [ensureDeferred(queue.dead_letters(1)) for _ in range(MAX_PENDING - 1)]
    with pytest.raises(DatabaseUnavailable, match="too much"):
        await queue.dead_letters(1)
    given_up.addErrback(lambda failure: failure.trap(CancelledError))
    given_up.cancel()
    assert await gatherResults(asked) == [()] * (MAX_PENDING - 1)
    assert await due(queue) == ["msg_1"]


async def test_a_closed_queue_refuses(queue: WebhookQueue) -> None:
    """What was asked before is done first."""
    adding = ensureDeferred(queue.add([message(1)], NOW))
    closing_it = ensureDeferred(queue.close())
    late = ensureDeferred(queue.add([message(2)], NOW)).addErrback(lambda failure: failure.value)
    assert await adding == 0
    assert str(await late) == "it is closed"
    await closing_it
