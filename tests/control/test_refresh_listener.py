"""Who reads the router's own answers for a purpose of its own."""

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from chutes_autopilot.control.refresh import CatalogRefresh, UtilizationRefresh
from chutes_autopilot.control.snapshots import SnapshotBuilder, SnapshotHolder
from chutes_autopilot.upstream.fetch import FetchError

CATALOG = b'{"data":[{"id":"a"}]}'
FEED = b'[{"name":"a","active_instance_count":1}]'


class Listener:
    """Hears of answers, and sees what the router knew by then."""

    def __init__(self, holder: SnapshotHolder) -> None:
        self.holder = holder
        self.heard: list[Any] = []

    def fetched(self, source: str, body: bytes, at: float) -> None:
        self.heard.append((source, body, at, self.holder.current.id))

    def failed(self, source: str, reason: str) -> None:
        self.heard.append((source, reason))


class Observer:
    def refreshed(self, source: str, outcome: str, seconds: float) -> None:
        pass

    def state_changed(self, source: str, state: str, detail: str) -> None:
        pass


def refresh(
    kind: type[CatalogRefresh | UtilizationRefresh], holder: SnapshotHolder, listener: Any, *answers: Any
) -> None:
    clock = Clock()
    clock.advance(1000.0)
    given = list(answers)

    async def fetch() -> bytes:
        answer = given.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bytes(answer)

    made = kind(fetch, SnapshotBuilder(holder, clock), clock, Observer(), listener)
    for _ in answers:
        assert Deferred.fromCoroutine(made.refresh()).called


def test_the_bytes_are_handed_on_once_the_routing_has_them() -> None:
    """Catalog and feed come with their bytes and time, after the snapshot that they made is in force."""
    holder = SnapshotHolder()
    listener = Listener(holder)
    refresh(CatalogRefresh, holder, listener, CATALOG)
    refresh(UtilizationRefresh, holder, listener, FEED)
    assert listener.heard == [("catalog", CATALOG, 1000.0, 1), ("utilization", FEED, 1000.0, 2)]


@pytest.mark.parametrize("answer", [FetchError("timeout", "late"), b"<html>"])
def test_a_refresh_that_brings_nothing_is_told_with_its_reason(answer: Any) -> None:
    """What cannot be fetched or read is told as a failure, without bytes."""
    holder = SnapshotHolder()
    listener = Listener(holder)
    refresh(CatalogRefresh, holder, listener, answer)
    ((source, reason),) = listener.heard
    assert source == "catalog"
    assert reason.startswith(("timeout: late", "invalid: "))


def test_a_listener_that_fails_harms_no_refresh() -> None:
    """The refreshes go on."""
    holder = SnapshotHolder()
    refresh(CatalogRefresh, holder, object(), CATALOG, CATALOG)
    assert holder.current.id == 2
