"""Whether catalog and utilization come, are understood, and are as new as they should be."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, gatherResults

from chutes_autopilot.doctor.findings import Finding, fail, ok, warn
from chutes_autopilot.policy.catalog import Catalog, parse_catalog
from chutes_autopilot.policy.feed_json import FeedError, read_record, records_of_list
from chutes_autopilot.policy.ranking import Ranked, rank
from chutes_autopilot.policy.utilization import PRIVATE, UtilizationFeed, parse_utilization
from chutes_autopilot.upstream.fetch import FetchError, fetch_json_bytes

OLD_SECONDS = 300.0
"""A feed whose own time is further back says little about now: the ranking counts by windows of five minutes."""

UNKNOWN_SHARE = 0.2
"""How many candidates may lack the number that counts most before the shape of the feed is doubted."""

_ADVICE = {
    "network": "see the findings for its host",
    "timeout": "see the findings for its host; CONTROL_PLANE_TIMEOUT_MS is how long a fetch may take",
    "status": "look at the URL; 401 and 403 mean that something between here and there asks for credentials",
    "too_large": "look at the URL: this is no answer of the platform",
    "invalid": "look at the URL: this is no answer of the platform",
}


class _Times(msgspec.Struct, gc=False):
    name: Any = None
    timestamp: Any = None


_TIMES = msgspec.json.Decoder(_Times)


async def check_feeds(
    http_client: Any,
    models_url: str,
    utilization_url: str,
    clock: Any,
    timeout: float,  # noqa: ASYNC109 - the clock is Twisted's
    max_bytes: int,
    also: Callable[[Catalog, Sequence[Ranked]], Iterable[Finding]],
) -> tuple[list[Finding], bytes | None]:
    """Fetch both as the gateway does, and see what it would make of them.

    :param also: what else there is to say of catalog and ranking, where both could be read.
    :returns: the findings, and the utilization feed's body where it could be read, for `check_age`.
    """

    async def body(url: str) -> bytes | FetchError:
        try:
            return await fetch_json_bytes(http_client, url, clock=clock, timeout=timeout, max_bytes=max_bytes)
        except FetchError as error:
            return error

    started = clock.seconds()
    models, utilization = await gatherResults(
        [Deferred.fromCoroutine(body(models_url)), Deferred.fromCoroutine(body(utilization_url))]
    )
    seconds = clock.seconds() - started
    findings = []
    catalog = feed = None
    if isinstance(models, bytes):
        catalog, finding = _catalog(models)
        findings.append(finding)
    else:
        findings.append(_not_fetched("catalog", models))
    if isinstance(utilization, bytes):
        feed, finding = _feed(utilization)
        findings.append(finding)
    else:
        findings.append(_not_fetched("utilization", utilization))
    if seconds > timeout / 2 and not isinstance(models, FetchError) and not isinstance(utilization, FetchError):
        seen = f"{seconds:.1f} s for both, of {timeout:g} s that CONTROL_PLANE_TIMEOUT_MS allows"
        findings.append(warn("feeds", "both", seen, "see whether the network here is slow, or allow more"))
    if feed is not None:
        ranking = rank(feed.rows, catalog)
        findings.append(_candidates(feed, ranking))
        if catalog is not None:
            findings.extend(also(catalog, ranking))
    return findings, utilization if feed is not None and isinstance(utilization, bytes) else None


def _not_fetched(feed: str, error: FetchError) -> Finding:
    return fail(feed, "fetch", f"{error.reason}: {error}", _ADVICE[error.reason])


def _catalog(body: bytes) -> tuple[Catalog | None, Finding]:
    try:
        catalog = parse_catalog(body)
    except FeedError as error:
        return None, fail("catalog", "shape", str(error), _ADVICE["invalid"])
    seen = f"{len(catalog.entries)} models, {catalog.skipped} records skipped, {_size(body)}"
    if not catalog.entries:
        return catalog, fail("catalog", "shape", seen, "nothing can be routed: every model would be refused")
    without = len(catalog.entries) - len(catalog.chute_ids)
    if catalog.skipped or without:
        told = f"{seen}, {without} without chute_id"
        return catalog, warn("catalog", "shape", told, "it works; renamed chutes are not recognised without ids")
    return catalog, ok("catalog", "shape", seen)


def _feed(body: bytes) -> tuple[UtilizationFeed | None, Finding]:
    try:
        feed = parse_utilization(body)
    except FeedError as error:
        return None, fail("utilization", "shape", str(error), _ADVICE["invalid"])
    seen = f"{len(feed.rows)} public chutes, {feed.skipped} records skipped, {_size(body)}"
    if feed.skipped:
        return feed, warn("utilization", "shape", seen, "the rest counts; see whether the platform changed its feed")
    return feed, ok("utilization", "shape", seen)


def _candidates(feed: UtilizationFeed, ranking: Sequence[Ranked]) -> Finding:
    if not ranking:
        seen = "no model can be chosen: no public chute of the catalog has an active instance"
        return fail("ranking", "candidates", seen, "see that MODELS_URL and UTILIZATION_URL are of one platform")
    names = {ranked.name for ranked in ranking}
    unknown = sum(row.name in names and row.utilization_5m is None for row in feed.rows)
    seen = f"{len(ranking)}, the first {ranking[0].model} {_shown(ranking)}"
    if unknown > UNKNOWN_SHARE * len(ranking):
        advice = "the ranking takes them for busy; see whether the platform renamed its fields"
        return warn("ranking", "candidates", f"{seen}; {unknown} without utilization_5m", advice)
    return ok("ranking", "candidates", seen)


def _shown(ranking: Sequence[Ranked]) -> str:
    first = ranking[0]
    return f"(score {first.score:.1f}, {first.active_instance_count:g} instances, {first.utilization:.0%} busy)"


def check_age(body: bytes, now: float) -> Finding:
    """How old the utilization feed is by its own time stamps.

    :param now: Unix time by the platform's clock, so that ours does not matter.
    """
    times = sorted(_times(body))
    if not times:
        advice = "its age cannot be told; the gateway counts from when it fetched it"
        return warn("utilization", "age", "no readable time stamp", advice)
    oldest, newest = now - times[0], now - times[-1]
    seen = f"{max(0.0, newest):.0f} s" if oldest - newest < 1 else f"{newest:.0f} to {oldest:.0f} s"
    if newest > OLD_SECONDS:
        return warn("utilization", "age", seen, "the platform's feed stands still: the ranking is of then, not of now")
    if newest < -OLD_SECONDS:
        return warn("utilization", "age", f"{-newest:.0f} s in the future", "the platform's clocks disagree")
    return ok("utilization", "age", seen)


def _times(body: bytes) -> Iterable[float]:
    for raw in records_of_list(body):
        record = read_record(raw, _TIMES) if raw else None
        if record is not None and record.name != PRIVATE and isinstance(record.timestamp, str):
            try:
                time = datetime.fromisoformat(record.timestamp)
            except ValueError:
                continue
            yield (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _size(body: bytes) -> str:
    return f"{len(body) / 1024:.0f} KiB"
