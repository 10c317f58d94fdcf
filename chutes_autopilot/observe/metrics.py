"""The Prometheus metrics of the service; every label value comes from a closed set.

Requests are counted in plain numbers and turned into metric families when they are scraped: on the hot path
prometheus_client's own counters, with a lock and a label look-up each, cost as much as relaying a small answer.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from chutes_autopilot.observe.record import RequestRecord

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_FIRST_BYTE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_OVERHEAD_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)
_DURATION_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800)
_REFRESH_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

AT_ONCE = 64
"""Requests that are counted together: a processor counts many in the time in which it finds out how to count one."""


class _Histogram:
    """Counts by bucket; made cumulative only when read."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, values: list[float]) -> None:
        """Count some values; a clock set back counts as 0."""
        values.sort()
        if values and values[0] < 0:
            values = [max(0.0, value) for value in values]
        counts, at, end = self._counts, 0, len(values)
        for place, bound in enumerate(self._bounds):
            if at == end:
                break
            after = bisect_right(values, bound, at)
            counts[place] += after - at
            at = after
        counts[-1] += end - at
        self._sum += sum(values)

    def add_to(self, family: HistogramMetricFamily, labels: tuple[str, ...] = ()) -> None:
        """Give the buckets and the sum to a family that is being scraped."""
        buckets, total = [], 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append((floatToGoString(bound), total))
        family.add_metric(labels, buckets, self._sum)


class Metrics(Collector):
    """Counts finished requests and refreshes, and reads the control plane's gauges when scraped.

    :param model_label: gives the catalog name a sent model stands for, or "other"; asked when a request is
        counted.
    """

    def __init__(self, model_label: Callable[[str], str]) -> None:
        self._model_label = model_label
        self.active = 0
        """Requests whose answer has not ended."""
        self._uncounted: list[RequestRecord] = []
        self._requests: Counter[int] = Counter()
        self._selections: Counter[tuple[str, int]] = Counter()
        self._failures: Counter[str] = Counter()
        self._waits: Counter[str] = Counter()
        self._wait_seconds: dict[str, float] = {}
        self._cut = 0
        self._first_byte = _Histogram(_FIRST_BYTE_BUCKETS)
        self._overhead = _Histogram(_OVERHEAD_BUCKETS)
        self._duration = _Histogram(_DURATION_BUCKETS)
        self._refreshes: Counter[tuple[str, str]] = Counter()
        self._refresh_durations: dict[str, _Histogram] = {}
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []
        self._counters: list[tuple[str, str, str, Counter[str]]] = []
        self._endpoints = self.counter(
            "endpoint_requests", "Requests to the endpoints beside chat, by endpoint.", "endpoint"
        )
        self.rate_limits = self.counter("rate_limited", "The platform's 429s by policy.rate_limits' kinds.", "kind")
        self.continued = self.counter(
            "streams_continued",
            "Streams that broke off where another model might go on: how it did, or failed, impossible.",
            "outcome",
        )
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """A gauge ``chutes_autopilot_<name>`` whose value is read at every scrape."""
        self._gauges.append((f"chutes_autopilot_{name}", help_text, read))

    def counter(self, name: str, help_text: str, label: str) -> Counter[str]:
        """A counter ``chutes_autopilot_<name>_total`` with one label; whoever has it counts in it."""
        counts: Counter[str] = Counter()
        self._counters.append((name, help_text, label, counts))
        return counts

    def finished(self, record: RequestRecord) -> None:
        """Count one request whose answer has ended, at the latest when somebody asks."""
        uncounted = self._uncounted
        uncounted.append(record)
        if len(uncounted) >= AT_ONCE:
            self._count()

    def _count(self) -> None:
        records, self._uncounted = self._uncounted, []
        labels = {model: self._model_label(model) for model in {r.selected for r in records} if model is not None}
        self._requests.update([record.status for record in records])
        # with the upstream's status, which the client may have left before it saw the whole answer of
        self._selections.update(
            [(labels[r.selected], r.attempts[-1].status or 0) for r in records if r.selected is not None]
        )
        self._first_byte.observe([r.first_byte - r.received for r in records if r.first_byte is not None])
        self._overhead.observe([r.first_attempt - r.received for r in records if r.first_attempt is not None])
        self._duration.observe([r.ended - r.received for r in records if r.ended is not None])
        for record in records:
            attempts = record.attempts
            if record.outcome != "complete" or len(attempts) != 1 or attempts[0].failure or record.continuations:
                self._count_faults(record)
            if record.endpoint != "chat":
                self._endpoints[record.endpoint] += 1

    def _count_faults(self, record: RequestRecord) -> None:
        for attempt in record.attempts:
            if attempt.failure is not None:
                self._failures[attempt.failure] += 1
                if attempt.waited is not None:
                    self._waits[attempt.failure] += 1
                    waited = self._wait_seconds.get(attempt.failure, 0.0) + attempt.waited
                    self._wait_seconds[attempt.failure] = waited
        for attempt in record.continuations:
            if attempt.failure is not None:
                self._failures[attempt.failure] += 1
        if record.outcome == "cut":
            self._cut += 1

    def refreshed(self, source: str, outcome: str, seconds: float) -> None:
        """Count one refresh of the control plane."""
        self._refreshes[source, outcome] += 1
        self._refresh_durations.setdefault(source, _Histogram(_REFRESH_BUCKETS)).observe([seconds])

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The families of one scrape, for prometheus_client."""
        self._count()
        yield GaugeMetricFamily(
            "chutes_autopilot_requests_active", "Requests to be relayed whose answer has not ended.", self.active
        )
        yield _counter(
            "requests",
            "Requests to be relayed by the status the client got; 499: it left before the end.",
            ["status"],
            {(f"{status:03d}",): count for status, count in self._requests.items()},
        )
        yield _counter(
            "selection",
            "Answers relayed, by the model that gave them and their status.",
            ["model", "status"],
            {(model, f"{status:03d}"): count for (model, status), count in self._selections.items()},
        )
        yield _counter(
            "failover_reason",
            "Attempts that failed, by reason.",
            ["reason"],
            {(reason,): count for reason, count in self._failures.items()},
        )
        yield _counter(
            "retry_waits",
            "Waits before the same model was tried again, by the reason why its attempt failed.",
            ["reason"],
            {(reason,): count for reason, count in self._waits.items()},
        )
        yield _counter(
            "retry_wait_seconds",
            "Seconds of these waits.",
            ["reason"],
            {(reason,): seconds for reason, seconds in self._wait_seconds.items()},
        )
        yield CounterMetricFamily(
            "chutes_autopilot_streams_cut", "Answers that broke off after they had begun.", self._cut
        )
        yield _histogram(
            "time_to_first_byte_seconds",
            "From the complete request to the first byte of the answer's body.",
            self._first_byte,
        )
        yield _histogram(
            "gateway_overhead_seconds",
            "From the complete request to the start of its first attempt: what the gateway adds before the upstream.",
            self._overhead,
        )
        yield _histogram(
            "request_duration_seconds", "From the complete request to the end of its answer.", self._duration
        )
        yield _counter(
            "refresh",
            "Refreshes of the control plane by source (catalog, utilization) and outcome.",
            ["source", "outcome"],
            self._refreshes,
        )
        refresh_durations = HistogramMetricFamily(
            "chutes_autopilot_refresh_duration_seconds", "Time of one refresh.", labels=["source"]
        )
        for source, histogram in self._refresh_durations.items():
            histogram.add_to(refresh_durations, (source,))
        yield refresh_durations
        for name, help_text, label, counts in self._counters:
            yield _counter(name, help_text, [label], {(value,): count for value, count in counts.items()})
        for name, help_text, read in self._gauges:
            yield GaugeMetricFamily(name, help_text, read())


def _counter(name: str, help_text: str, labels: list[str], counts: Mapping[Any, float]) -> Metric:
    family = CounterMetricFamily(f"chutes_autopilot_{name}", help_text, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def _histogram(name: str, help_text: str, histogram: _Histogram) -> Metric:
    family = HistogramMetricFamily(f"chutes_autopilot_{name}", help_text, labels=())
    histogram.add_to(family)
    return family
