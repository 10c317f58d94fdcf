"""What is believed of the three sources, and what is kept where a newer answer cannot be."""

import json
from typing import Any

import pytest
from explorer_samples import chute_json, listing_body, uuid
from twisted.internet.defer import Deferred, succeed

from chutes_autopilot.explorer.records import CHUTES, UTILIZATION, V1
from chutes_autopilot.explorer_live.sources import FEED_PAUSE, THREAD_BYTES, Sources


def catalog_body(*numbers: int) -> bytes:
    return json.dumps({"data": [{"id": f"m{n}", "chute_id": uuid(n)} for n in numbers]}).encode()


def feed_body(*numbers: int) -> bytes:
    return json.dumps([{"name": f"m{n}", "chute_id": uuid(n), "utilization_current": 0.5} for n in numbers]).encode()


class Threads:
    """Runs what is given to it when the test says so, or at once."""

    def __init__(self) -> None:
        self.held: list[tuple[Deferred[Any], Any]] | None = None

    def __call__(self, work: Any, *given: Any) -> Deferred[Any]:
        if self.held is None:
            return succeed(work(*given))
        done: Deferred[Any] = Deferred()
        self.held.append((done, lambda: work(*given)))
        return done

    def run_next(self) -> None:
        assert self.held
        done, work = self.held.pop(0)
        done.callback(work())


@pytest.fixture
def threads() -> Threads:
    return Threads()


@pytest.fixture
def sources(threads: Threads) -> Sources:
    return Sources(threads)


def take(sources: Sources, source: Any, body: bytes, at: float) -> None:
    assert Deferred.fromCoroutine(sources.take(source, body, at)).called


def names(sources: Sources, source: Any) -> list[str]:
    records = sources[source].records
    return [] if records is None else [item.name for item in records.items]


def test_each_source_is_loading_until_it_comes_and_then_fresh(sources: Sources) -> None:
    """The router's names for its refreshes are told apart, and each source has its own records and time."""
    assert [each.state for each in sources.all()] == ["loading"] * 3
    changed: list[int] = []
    sources.changed = lambda: changed.append(1)
    sources.fetched("catalog", catalog_body(1), 10.0)
    sources.fetched("utilization", feed_body(1, 2), 11.0)
    take(sources, CHUTES, listing_body(chute_json(3, "m3")), 12.0)
    assert [each.state for each in sources.all()] == ["fresh"] * 3
    assert [each.fetched_at for each in sources.all()] == [12.0, 10.0, 11.0]
    assert (names(sources, CHUTES), names(sources, V1), names(sources, UTILIZATION)) == (["m3"], ["m1"], ["m1", "m2"])
    assert len(changed) == 3


def test_what_was_never_had_is_down_and_what_was_is_stale(sources: Sources) -> None:
    """A failure keeps the old records and their time and says why; the next success clears it."""
    sources.failed("catalog", "timeout: late")
    assert (sources[V1].state, sources[V1].trouble) == ("down", "timeout: late")
    sources.fetched("catalog", catalog_body(1), 10.0)
    sources.failed("catalog", "network: refused")
    assert (sources[V1].state, sources[V1].trouble, sources[V1].fetched_at) == ("stale", "network: refused", 10.0)
    sources.fetched("catalog", catalog_body(1, 2), 20.0)
    assert (sources[V1].state, sources[V1].fetched_at, names(sources, V1)) == ("fresh", 20.0, ["m1", "m2"])


def test_an_answer_that_cannot_be_read_is_trouble_and_not_the_end(sources: Sources) -> None:
    """Neither a body of another kind nor one without a usable record takes the place of the last good one."""
    take(sources, CHUTES, listing_body(chute_json(1, "m1")), 1.0)
    for body in (b"<html>", b"[]", listing_body({"name": 3})):
        take(sources, CHUTES, body, 2.0)
        assert (sources[CHUTES].state, names(sources, CHUTES)) == ("stale", ["m1"])


@pytest.mark.parametrize("left", [(1,), ()])
def test_a_sudden_loss_of_more_than_half_must_come_twice(sources: Sources, left: tuple[int, ...]) -> None:
    """The first such answer is held back, the same answer by another way is no second one, a later one is believed."""
    take(sources, V1, catalog_body(1, 2, 3, 4), 0.0)
    take(sources, V1, catalog_body(*left), 300.0)
    take(sources, V1, catalog_body(*left), 300.5)
    assert (sources[V1].state, len(names(sources, V1))) == ("stale", 4)
    take(sources, V1, catalog_body(*left), 600.0)
    assert (sources[V1].state, len(names(sources, V1))) == ("fresh", len(left))


def test_a_loss_that_is_taken_back_is_forgotten(sources: Sources) -> None:
    """After a full answer the next loss is again the first one; half is no sudden loss."""
    take(sources, V1, catalog_body(1, 2, 3, 4), 0.0)
    for at, numbers, count in ((300.0, (1,), 4), (600.0, (1, 2, 3, 4), 4), (900.0, (1,), 4), (1200.0, (3, 4), 2)):
        take(sources, V1, catalog_body(*numbers), at)
        assert len(names(sources, V1)) == count


def test_the_feed_is_read_now_and_then_and_at_once_after_trouble(sources: Sources) -> None:
    """Answers within the pause are left to the router alone."""
    sources.fetched("utilization", feed_body(1), 100.0)
    sources.fetched("utilization", feed_body(2), 100.0 + FEED_PAUSE - 1)
    assert names(sources, UTILIZATION) == ["m1"]
    sources.failed("utilization", "timeout")
    sources.fetched("utilization", feed_body(1, 3), 100.0 + FEED_PAUSE - 0.5)
    assert names(sources, UTILIZATION) == ["m1", "m3"]
    sources.fetched("utilization", feed_body(1, 4), 100.0 + 2 * FEED_PAUSE)
    assert names(sources, UTILIZATION) == ["m1", "m4"]


def test_a_large_answer_is_read_in_a_thread_and_only_the_newest_waits(sources: Sources, threads: Threads) -> None:
    """While one is read, those that come meanwhile replace each other."""
    threads.held = []
    large = [listing_body(chute_json(n, f"m{n}", tagline="x" * THREAD_BYTES)) for n in (1, 2, 3)]
    readings = [Deferred.fromCoroutine(sources.take(CHUTES, body, float(at))) for at, body in enumerate(large)]
    assert len(threads.held) == 1
    threads.run_next()
    assert names(sources, CHUTES) == ["m1"]
    threads.run_next()
    assert not threads.held
    assert all(reading.called for reading in readings)
    assert sources[CHUTES].renewals == 1  # the last one has lost all that was there


def test_private_chutes_are_dropped_unless_they_are_to_be_shown(threads: Threads) -> None:
    """By default nothing of them is kept."""
    body = listing_body(chute_json(1, "m1"), chute_json(2, "mine", public=False))
    for show, shown in ((False, ["m1"]), (True, ["m1", "mine"])):
        sources = Sources(threads, show_private=show)
        take(sources, CHUTES, body, 0.0)
        assert names(sources, CHUTES) == shown


def test_a_reader_that_fails_is_reported_and_harms_no_other_source(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bug in reading one source that one is in trouble, and the others go on."""

    def broken(_body: bytes) -> Any:
        raise ZeroDivisionError

    monkeypatch.setitem(sources._readers, V1, broken)  # type: ignore[index]
    sources.fetched("catalog", catalog_body(1), 0.0)
    assert sources[V1].state == "down"
    sources.fetched("utilization", feed_body(1), 0.0)
    assert sources[UTILIZATION].state == "fresh"
