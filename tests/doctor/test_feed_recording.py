"""Recorded feeds: what is kept, what goes, and what a ranking makes of it."""

import gzip
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from doctor_platform import models, row
from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from chutes_autopilot.cli.replay import replay
from chutes_autopilot.control.recording import RecordedFeed, Recorder, public_part
from chutes_autopilot.policy.feed_json import FeedError
from chutes_autopilot.policy.herding import HerdingMeter
from chutes_autopilot.policy.ranking import Ranked, rank
from chutes_autopilot.policy.utilization import UtilizationRow
from chutes_autopilot.policy.variants import VARIANTS
from chutes_autopilot.storage.feed_archive import ArchiveError, FeedArchive, read_snapshot, snapshots_in
from chutes_autopilot.upstream.fetch import FetchedAnswer, FetchError

START = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
CATALOG = json.dumps(models("a/A", "b/B", "c/C")).encode()
NOISE = bytes(range(256)) * 8


def opened(path: Path, max_bytes: int = 1_000_000) -> FeedArchive:
    archive = FeedArchive(path, max_bytes)
    archive.open()
    return archive


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def feed(**busy: float) -> bytes:
    return json.dumps([row(f"{name}/{name.upper()}", utilization_5m=share) for name, share in busy.items()]).encode()


def test_a_snapshot_is_one_file_named_by_its_time(tmp_path: Path) -> None:
    """It holds the body, compressed, and the index tells of it."""
    archive = opened(tmp_path / "new" / "dir")
    kept = archive.add("utilization", START + 0.1234, b"[1]", 1)
    archive.close()
    assert names(tmp_path / "new" / "dir") == ["index.json", "utilization-20261121T120000.123Z.json.gz"]
    assert gzip.decompress((tmp_path / "new" / "dir" / kept.name).read_bytes()) == b"[1]"
    (entry,) = json.loads((tmp_path / "new" / "dir" / "index.json").read_bytes())["snapshots"]
    assert entry == {
        "file": kept.name,
        "source": "utilization",
        "at": "2026-11-21T12:00:00.123+00:00",
        "bytes": kept.size,
        "records": 1,
    }


def test_it_goes_on_where_it_ended(tmp_path: Path) -> None:
    """What is there stays, with its number of records; half a file that was left behind goes."""
    archive = opened(tmp_path)
    archive.add("catalog", START, CATALOG, 3)
    archive.close()
    (tmp_path / "utilization-20261121T130000.000Z.json.gz.part").write_bytes(b"half")
    archive = opened(tmp_path)
    assert [(kept.source, kept.at, kept.records) for kept in archive.kept] == [("catalog", START, 3)]
    assert len(names(tmp_path)) == 3  # with its lock
    archive.close()
    (tmp_path / "index.json").write_bytes(b"{")
    archive = opened(tmp_path)
    assert [kept.records for kept in archive.kept] == [None]
    archive.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A directory that is being recorded into is refused, and one that cannot be."""
    archive = opened(tmp_path)
    with pytest.raises(ArchiveError, match="another process"):
        opened(tmp_path)
    archive.close()
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveError, match="cannot use"):
        opened(tmp_path / "file" / "dir")


def test_the_oldest_go_first(tmp_path: Path) -> None:
    """Feeds go before the catalog they were ranked by, which goes when none of them is left; the newest feed stays."""
    archive = opened(tmp_path, 3 * len(gzip.compress(NOISE)))
    archive.add("catalog", START, NOISE, 1)
    for second in range(1, 4):
        archive.add("utilization", START + second, NOISE, 1)
    assert [(kept.source, kept.at - START) for kept in archive.kept] == [
        ("catalog", 0),
        ("utilization", 2),
        ("utilization", 3),
    ]
    archive.add("catalog", START + 4, NOISE, 1)
    archive.add("utilization", START + 5, NOISE, 1)
    archive.close()
    assert [(kept.source, kept.at - START) for kept in archive.kept] == [("catalog", 4), ("utilization", 5)]
    assert [kept.at for kept in snapshots_in(tmp_path)] == [START + 4, START + 5]


def test_catalogs_alone_are_bounded_too(tmp_path: Path) -> None:
    """Where utilization hardly changes: what stays is its catalog and the newest one."""
    archive = opened(tmp_path, 30_000)
    archive.add("catalog", START, os.urandom(1000), 1)
    archive.add("utilization", START + 1, os.urandom(1000), 1)
    for number in range(2, 60):
        archive.add("catalog", START + number, os.urandom(1000), 1)
        assert sum(kept.size for kept in archive.kept) <= 30_000
    assert [kept.at - START for kept in archive.kept[:2]] == [0, 1]
    assert archive.kept[-1].at == START + 59
    archive.close()


@pytest.mark.parametrize(
    "index", [b'{"snapshots": [{"file": "x", "records": 1e999}]}', b"[" * 100_000, b'{"snapshots": 5}', b"\xff"]
)
def test_a_damaged_index_is_none(tmp_path: Path, index: bytes) -> None:
    """The files are the truth: what it would have said of them is not known."""
    archive = opened(tmp_path)
    archive.add("catalog", START, CATALOG, 3)
    archive.close()
    (tmp_path / "index.json").write_bytes(index)
    archive = opened(tmp_path)
    assert [(kept.at, kept.records) for kept in archive.kept] == [(START, None)]
    archive.close()


def test_a_name_with_a_time_that_there_is_not_is_another_file(tmp_path: Path) -> None:
    """It is left alone, and so is the rest."""
    archive = opened(tmp_path)
    archive.add("catalog", START, CATALOG, 3)
    archive.close()
    (tmp_path / "utilization-20261399T000000.000Z.json.gz").write_bytes(b"")
    assert [kept.at for kept in snapshots_in(tmp_path)] == [START]


def test_a_clock_that_is_set_back(tmp_path: Path) -> None:
    """Nothing is overwritten, and the order stays that of recording."""
    archive = opened(tmp_path)
    for body in (b"[1]", b"[2]", b"[3]"):
        archive.add("utilization", START, body, 1)
    archive.add("utilization", START - 3600, b"[4]", 1)
    archive.close()
    kept = snapshots_in(tmp_path)
    assert [read_snapshot(tmp_path, each) for each in kept] == [b"[1]", b"[2]", b"[3]", b"[4]"]


def test_a_torn_snapshot_is_none(tmp_path: Path) -> None:
    """Neither half a file nor one of another kind is taken for a body."""
    archive = opened(tmp_path)
    kept = archive.add("utilization", START, NOISE, 1)
    archive.close()
    whole = (tmp_path / kept.name).read_bytes()
    for broken in (whole[:-9], b"no gzip"):
        (tmp_path / kept.name).write_bytes(broken)
        assert read_snapshot(tmp_path, kept) is None


def test_nothing_of_private_chutes_is_kept() -> None:
    """The rest of the feed is kept to the byte."""
    body = b'[{"name": "a/A", "x": 1.50},\n {"name": "[private chute]", "chute_id": "secret"}, {"name": "b/B"}]'
    assert public_part("utilization", body) == (b'[{"name": "a/A", "x": 1.50},\n{"name": "b/B"}]', 2)
    assert public_part("catalog", CATALOG) == (CATALOG, 3)
    with pytest.raises(FeedError):
        public_part("utilization", b"{}")


class Recording:
    """A recorder under a clock; each answer is given by the test when it is asked for."""

    def __init__(self, path: Path, start: float = START, count: int | None = None) -> None:
        self.clock = Clock()
        self.clock.advance(start)
        self.said: list[str] = []
        self.asked: list[Deferred[FetchedAnswer]] = []
        self.archive = opened(path)

        async def fetch() -> FetchedAnswer:
            self.asked.append(Deferred())
            return await self.asked[-1]

        feeds = (RecordedFeed("utilization", fetch, 30.0),)
        recorder = Recorder(self.archive, feeds, self.clock, self.clock.seconds, self.said.append)
        self.running = Deferred.fromCoroutine(recorder.run(count))

    def answer(self, body: bytes = b"", status: int = 200, retry_after: float | None = None) -> None:
        self.asked.pop().callback(FetchedAnswer(status, retry_after, body))

    def waits(self, seconds: float) -> bool:
        """Whether the next fetch comes then, and not before."""
        self.clock.advance(seconds - 0.5)
        early = bool(self.asked)
        self.clock.advance(1.0)
        return not early and bool(self.asked)

    def end(self) -> None:
        self.running.addErrback(lambda _: None)
        self.running.cancel()
        self.archive.close()


def test_recording_politely(tmp_path: Path) -> None:
    """One fetch an interval; what is as before is not kept again; a failure doubles the pause, as the server asks."""
    recording = Recording(tmp_path)
    recording.clock.advance(0)
    recording.answer(feed(a=0.5))
    assert recording.waits(30)
    recording.answer(feed(a=0.5))
    assert recording.waits(30)
    recording.answer(status=503)
    assert recording.said[-1] == "utilization: status 503; again in 60 s"
    assert recording.waits(60)
    recording.asked.pop().errback(FetchError("network", "ConnectError"))
    assert recording.waits(120)
    recording.answer(status=429, retry_after=500.0)
    assert recording.waits(500)
    recording.answer(b"{}")
    assert recording.waits(480)
    recording.answer(feed(a=0.6))
    assert recording.waits(30)
    recording.end()


def test_what_is_as_before_is_kept_once(tmp_path: Path) -> None:
    """Also after a new start, which keeps to the interval of the recording before; --count ends it."""
    body = feed(a=0.5)
    recording = Recording(tmp_path, count=2)
    recording.clock.advance(0)
    recording.answer(body)
    assert recording.waits(30)
    recording.answer(body)
    assert recording.running.called
    recording.end()
    again = Recording(tmp_path, START + 10)
    assert again.waits(20)
    again.answer(body)
    again.end()
    assert recording.said[-1] == again.said[-1] == "utilization: as before"
    assert len(snapshots_in(tmp_path)) == 1


def replayed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    replay([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_replaying_what_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The default order sends everybody to one model, and to another one at each new ranking; a spread order does
    neither. Times count: the first ranking held thrice as long.
    """
    archive = opened(tmp_path)
    archive.add("utilization", START, feed(a=0.1, b=0.5, c=0.5), 3)
    archive.add("catalog", START + 1, CATALOG, 3)  # first known a moment later
    archive.add("utilization", START + 90, feed(a=0.9, b=0.2, c=0.2, x=0.0), 4)
    archive.add("utilization", START + 120, b"broken", 0)
    archive.close()
    report = replayed(capsys, str(tmp_path))
    default, spread = report["rankings"]["default"], report["rankings"]["rendezvous"]
    assert (report["unusable"], report["clients"], default["rankings"]) == (1, 200, 2)
    assert (default["churn"], default["first_share"], default["effective_models"]) == (1.0, 1.0, 1.0)
    assert default["shares"] == {"a/A": 0.75, "b/B": 0.25}
    assert set(spread["shares"]) == {"a/A", "b/B", "c/C"}
    assert 0.1 < spread["churn"] < 0.6
    assert spread["pressure"] < 1.1 < default["pressure"]


@pytest.mark.parametrize("body", [b'{"data": []}', b"[", None])
def test_without_its_catalog_a_feed_is_not_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], body: bytes | None
) -> None:
    """Names that end in -TEE would be ranked in its place, which says nothing of the order."""
    archive = opened(tmp_path)
    archive.add("catalog", START, CATALOG, 3)
    archive.add("utilization", START + 1, feed(a=0.1, b=0.5), 2)
    torn = archive.add("catalog", START + 2, body or CATALOG, 3)
    if body is None:
        file = tmp_path / torn.name
        file.write_bytes(file.read_bytes()[:-9])
    rows = [{"name": "a-TEE", "active_instance_count": 1}]
    archive.add("utilization", START + 3, json.dumps(rows).encode(), 2)
    archive.close()
    report = replayed(capsys, str(tmp_path))
    assert (report["unusable"], report["rankings"]["default"]["shares"]) == (1, {"a/A": 1.0})


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """People get the same numbers in columns."""
    archive = opened(tmp_path)
    archive.add("catalog", START, CATALOG, 3)
    archive.add("utilization", START, feed(a=0.1, b=0.5), 2)
    archive.close()
    replay([str(tmp_path), "--ranking", "default", "--ranking", "random", "--top", "1"])
    out = capsys.readouterr().out
    assert "1 rankings from 2026-11-21T12:00:00+00:00" in out
    assert out.splitlines()[2].split() == ["default", "random"]


def test_nothing_to_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty directory, or none, is told in one line."""
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SystemExit) as ended:
            replay([str(directory)])
        assert ended.value.code == 1
        assert capsys.readouterr().err.startswith("chutes-autopilot replay: ")


SHARES = st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), min_size=1, max_size=12)


@given(SHARES, st.binary(max_size=64))
def test_every_order_has_each_candidate_once(rows: list[tuple[int, float]], key: bytes) -> None:
    """Whatever the scores, the same client gets the same order."""
    ranking = ranked_from(rows)
    for order in VARIANTS.values():
        assert sorted(order(key, ranking)) == sorted(ranked.model for ranked in ranking)
        assert list(order(key, ranking)) == list(order(key, ranking))


@given(SHARES, st.lists(st.integers(0, 11), min_size=1, max_size=30), st.floats(0.1, 1000))
def test_measures_stay_in_their_bounds(rows: list[tuple[int, float]], picked: list[int], seconds: float) -> None:
    """Shares add up to 1, and the effective number is between 1 and the number of models that were picked."""
    ranking = ranked_from(rows)
    assume(ranking)
    picks = [ranking[number % len(ranking)].model for number in picked]
    meter = HerdingMeter()
    meter.add(ranking, picks, seconds)
    result = meter.result()
    assert sum(result.shares.values()) == pytest.approx(1)
    assert 1 / len(picks) - 1e-9 <= result.first_share <= 1 + 1e-9
    assert 1 - 1e-9 <= result.effective_models <= len(set(picks)) + 1e-9


def ranked_from(rows: list[tuple[int, float]]) -> tuple[Ranked, ...]:
    made = [
        UtilizationRow(f"{number}-TEE", active_instance_count=instances, utilization_5m=busy)
        for number, (instances, busy) in enumerate(rows)
    ]
    return rank(made, None)
