"""Recording of catalog and utilization: politely often, only what is public, and only what is new."""

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from chutes_autopilot.policy.catalog import parse_catalog
from chutes_autopilot.policy.feed_json import FeedError, read_record, records_of_list
from chutes_autopilot.policy.utilization import PRIVATE, parse_utilization
from chutes_autopilot.storage.feed_archive import FeedArchive, Source
from chutes_autopilot.upstream.fetch import FetchedAnswer, FetchError

LONGEST_PAUSE = 600.0
"""Seconds: the pause doubles with each failure up to this."""


class _Named(msgspec.Struct, gc=False):
    name: Any = None


_NAMED = msgspec.json.Decoder(_Named)


@frozen
class RecordedFeed:
    """What is fetched, and how often.

    :param fetch: brings the answer, whatever its status; raises FetchError.
    :param interval: seconds.
    """

    source: Source
    fetch: Callable[[], Coroutine[Deferred[Any], Any, FetchedAnswer]]
    interval: float


@define(eq=False)
class Recorder:
    """Fetches each feed in its turn and keeps what is unlike the snapshot before.

    :param now: Unix time.
    :param say: told of each snapshot and each failure, for people.
    """

    archive: FeedArchive
    feeds: tuple[RecordedFeed, ...]
    _clock: IReactorTime
    _now: Callable[[], float]
    _say: Callable[[str], None]
    fetched: int = field(default=0, init=False)
    """Answers of the utilization feed since the start."""
    _due: dict[Source, float] = field(factory=dict, init=False)
    _failures: dict[Source, int] = field(factory=dict, init=False)
    _last: dict[Source, bytes] = field(factory=dict, init=False)

    async def run(self, count: int | None) -> None:
        """Go on until ``count`` answers of the utilization feed have come, or for ever. Raises ArchiveError.

        Where an earlier recording ended a moment ago, its interval is kept to.
        """
        for feed in self.feeds:
            latest = self.archive.latest(feed.source)
            waited = 0.0 if latest is None else self._now() - latest.at
            pause = 0.0 if latest is None else min(feed.interval, max(0.0, feed.interval - waited))
            self._due[feed.source] = self._clock.seconds() + pause
            if latest is not None:
                self._last[feed.source] = self.archive.read(latest) or b""
        while count is None or self.fetched < count:
            feed = min(self.feeds, key=lambda feed: self._due[feed.source])
            await deferLater(self._clock, max(0.0, self._due[feed.source] - self._clock.seconds()))
            pause = await self._record(feed)
            self._due[feed.source] = self._clock.seconds() + pause

    async def _record(self, feed: RecordedFeed) -> float:
        """Fetch once; how long to wait before the next time."""
        source = feed.source
        retry_after = 0.0
        try:
            answer = await feed.fetch()
            retry_after = answer.retry_after or 0.0
            if answer.status != 200:
                raise FetchError("status", f"status {answer.status}")
            body, records = public_part(source, answer.body)
        except (FetchError, FeedError) as error:
            self._failures[source] = failures = self._failures.get(source, 0) + 1
            pause: float = max(retry_after, min(feed.interval * 2**failures, max(feed.interval, LONGEST_PAUSE)))
            self._say(f"{source}: {error}; again in {pause:.0f} s")
            return pause
        self._failures[source] = 0
        if body == self._last.get(source):
            self._say(f"{source}: as before")
        else:
            kept = self.archive.add(source, self._now(), body, records)
            self._last[source] = body
            self._say(f"{source}: {kept.name}, {records} records, {kept.size / 1024:.1f} KiB")
        self.fetched += source == "utilization"
        return feed.interval


def public_part(source: Source, body: bytes) -> tuple[bytes, int]:
    """What of an answer is kept, and how many records that are: nothing of private chutes.

    :raises FeedError: it is no such answer; what cannot be used now will not be later.
    """
    if source == "catalog":
        return body, len(parse_catalog(body).entries)
    parse_utilization(body)
    rows = []
    for raw in records_of_list(body):
        record = read_record(raw, _NAMED) if raw else None
        if raw and record is not None and record.name != PRIVATE:
            rows.append(raw)
    return b"[" + b",\n".join(rows) + b"]", len(rows)
