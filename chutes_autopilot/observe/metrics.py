"""The Prometheus metrics of the service; every label value comes from a closed set."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from chutes_autopilot.observe.record import RequestRecord

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_FIRST_BYTE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_OVERHEAD_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)
_DURATION_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """Counts finished requests and refreshes, and reads the control plane's gauges when scraped.

    :param model_label: gives the catalog name a sent model stands for, or "other".
    """

    def __init__(self, model_label: Callable[[str], str]) -> None:
        self._model_label = model_label
        self._registry = registry = CollectorRegistry()
        self.requests_active = Gauge(
            "chutes_autopilot_requests_active", "Chat requests whose answer has not ended.", registry=registry
        )
        self._requests = Counter(
            "chutes_autopilot_requests",
            "Chat requests by the status the client got; 499: it left before the end.",
            ["status"],
            registry=registry,
        )
        self._selection = Counter(
            "chutes_autopilot_selection",
            "Answers relayed, by the model that gave them and their status.",
            ["model", "status"],
            registry=registry,
        )
        self._failover_reason = Counter(
            "chutes_autopilot_failover_reason", "Attempts that failed, by reason.", ["reason"], registry=registry
        )
        self._cut = Counter(
            "chutes_autopilot_streams_cut",
            "Answers that the upstream broke off after they had begun.",
            registry=registry,
        )
        self._first_byte = Histogram(
            "chutes_autopilot_time_to_first_byte_seconds",
            "From the complete request to the first byte of the answer's body.",
            buckets=_FIRST_BYTE_BUCKETS,
            registry=registry,
        )
        self._overhead = Histogram(
            "chutes_autopilot_gateway_overhead_seconds",
            "From the complete request to the start of its first attempt: what the gateway adds before the upstream.",
            buckets=_OVERHEAD_BUCKETS,
            registry=registry,
        )
        self._duration = Histogram(
            "chutes_autopilot_request_duration_seconds",
            "From the complete request to the end of its answer.",
            buckets=_DURATION_BUCKETS,
            registry=registry,
        )
        self._refreshes = Counter(
            "chutes_autopilot_refresh",
            "Refreshes of the control plane by source (catalog, utilization) and outcome.",
            ["source", "outcome"],
            registry=registry,
        )
        self._refresh_duration = Histogram(
            "chutes_autopilot_refresh_duration_seconds", "Time of one refresh.", ["source"], registry=registry
        )

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """A gauge ``chutes_autopilot_<name>`` whose value is read at every scrape."""
        Gauge(f"chutes_autopilot_{name}", help_text, registry=self._registry).set_function(read)

    def finished(self, record: RequestRecord) -> None:
        """Count one request whose answer has ended."""
        self._requests.labels(f"{record.status:03d}").inc()
        for reason in record.reasons():
            self._failover_reason.labels(reason).inc()
        if record.selected is not None:
            self._selection.labels(self._model_label(record.selected), f"{record.attempts[-1].status:03d}").inc()
        if record.outcome == "cut":
            self._cut.inc()
        if record.first_byte is not None:
            self._first_byte.observe(max(0.0, record.first_byte - record.received))
        if record.first_attempt is not None:
            self._overhead.observe(max(0.0, record.first_attempt - record.received))
        if record.ended is not None:
            self._duration.observe(max(0.0, record.ended - record.received))

    def refreshed(self, source: str, outcome: str, seconds: float) -> None:
        """Count one refresh of the control plane."""
        self._refreshes.labels(source, outcome).inc()
        self._refresh_duration.labels(source).observe(seconds)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
