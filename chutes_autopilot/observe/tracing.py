"""Spans of chat requests and their attempts, sent to a collector by OpenTelemetry. Needs the extra ``tracing``:
import it only where tracing is on.

Spans end into a bounded queue; a thread of the SDK sends them in batches. A collector that is slow or gone costs spans
and nothing else.
"""

import logging
from collections.abc import Callable, Sequence
from threading import Thread

import attrs
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from chutes_autopilot.observe.record import AttemptRecord, RequestRecord
from chutes_autopilot.policy.resilience import HEDGE_LOST

_W3C = TraceContextTextMapPropagator()

OPERATIONS = {"completions": "text_completion", "embeddings": "embeddings"}
"""What OpenTelemetry calls the work of an endpoint where it does not call it a chat."""


@attrs.frozen
class TracingTerms:
    """What the operator sets of tracing.

    :param endpoint: the collector's base URL.
    :param headers: for the collector; they may hold a credential.
    :param sampler: by its OpenTelemetry name; ``ratio`` is for those that take a part.
    """

    service_name: str
    endpoint: str
    headers: tuple[tuple[str, str], ...] = attrs.field(repr=False)
    sampler: str
    ratio: float


class Tracing:
    """Makes the spans; one object for the life of the service.

    :param told: called in the sending thread each time that the collector begins or ceases to take spans.
    """

    def __init__(self, terms: TracingTerms, version: str, told: Callable[[bool], None]) -> None:
        # The SDK reports each batch that is lost, with the texts of exceptions; the log says it once, without them.
        sdk_log = logging.getLogger("opentelemetry")
        sdk_log.propagate = False
        sdk_log.addHandler(logging.NullHandler())
        exporter = OTLPSpanExporter(f"{terms.endpoint}/v1/traces", headers=dict(terms.headers))
        resource = Resource.create({"service.name": terms.service_name, "service.version": version})
        self._provider = TracerProvider(sampler=_sampler(terms), resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_Heard(exporter, told)))
        self._tracer = self._provider.get_tracer("chutes_autopilot", version)

    def begin(
        self, route: str, endpoint: str, received: float, traceparent: bytes | None, tracestate: bytes | None
    ) -> "RequestTrace":
        """The trace of a request.

        :param endpoint: its name, as in log and metrics.
        :param received: Unix time.
        :param traceparent: the client's, as it came; what is not valid counts for nothing, nor does its tracestate.
        """
        carrier = {"traceparent": (traceparent or b"").decode("latin-1")}
        if tracestate is not None:
            carrier["tracestate"] = tracestate.decode("latin-1")
        parent = _W3C.extract(carrier, Context())
        return RequestTrace(self._tracer, route, OPERATIONS.get(endpoint, "chat"), received, parent)

    def end(self, ended: Callable[[], None]) -> None:
        """Send what is left, in a thread of its own that does not keep the process; ``ended`` is called in it."""

        def finish() -> None:
            self._provider.shutdown()
            ended()

        Thread(target=finish, name="tracing-end", daemon=True).start()


class RequestTrace:
    """The spans of one request."""

    def __init__(self, tracer: Tracer, route: str, operation: str, received: float, parent: Context) -> None:
        self._tracer = tracer
        self._operation = operation
        self._span = tracer.start_span(
            f"POST {route}",
            parent,
            SpanKind.SERVER,
            {"http.request.method": "POST", "http.route": route},
            start_time=_nanoseconds(received),
        )
        self._attempts: list[tuple[Span, float, AttemptRecord]] = []

    def attempt(self, attempt: AttemptRecord, now: float) -> bytes:
        """An attempt begins: header lines that name its span to the upstream; none where there is no tracing at all."""
        span = self._tracer.start_span(
            f"{self._operation} {attempt.model}",
            set_span_in_context(self._span, Context()),
            SpanKind.CLIENT,
            {
                "gen_ai.operation.name": self._operation,
                "gen_ai.provider.name": "chutes",
                "gen_ai.request.model": attempt.model,
            },
            start_time=_nanoseconds(now),
        )
        self._attempts.append((span, now, attempt))
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, set_span_in_context(span, Context()))
        return "".join(f"{name}: {value}\r\n" for name, value in carrier.items()).encode("latin-1")

    def finish(self, record: RequestRecord) -> None:
        """The request is over: its spans are given away."""
        ended = record.ended if record.ended is not None else record.received
        for span, begun, attempt in self._attempts:
            if span.is_recording():
                committed = attempt is record.attempts[-1] and record.selected is not None
                _describe_attempt(span, attempt, record, begun, committed)
            span.end(_nanoseconds(ended if attempt.failed is None else attempt.failed))
        if self._span.is_recording():
            _describe_request(self._span, record)
        self._span.end(_nanoseconds(ended))


def _describe_request(span: Span, record: RequestRecord) -> None:
    span.set_attributes(
        {
            "http.response.status_code": record.status,
            "http.request.body.size": record.bytes_in,
            "http.response.body.size": record.bytes_out,
            "gen_ai.request.stream": record.stream,
            "chutes_autopilot.request_id": record.request_id,
            "chutes_autopilot.mode": record.mode,
            "chutes_autopilot.outcome": record.outcome or "",
            "chutes_autopilot.attempts": len(record.attempts),
        }
    )
    if record.selected is not None:
        span.set_attribute("chutes_autopilot.selected", record.selected)
    if record.first_byte is not None:
        span.set_attribute("chutes_autopilot.time_to_first_byte", record.first_byte - record.received)
    if record.error is not None:
        span.set_attribute("error.type", record.error)
    if record.status >= 500 or record.outcome == "cut":
        if record.error is None:
            span.set_attribute("error.type", str(record.status) if record.status >= 500 else "cut")
        span.set_status(Status(StatusCode.ERROR))


def _describe_attempt(span: Span, attempt: AttemptRecord, record: RequestRecord, begun: float, committed: bool) -> None:
    """:param committed: whether its answer was relayed."""
    status, error = attempt.status, attempt.failure
    span.set_attribute("gen_ai.request.stream", record.stream)
    if error == HEDGE_LOST:  # nothing went wrong with it
        span.set_attribute("chutes_autopilot.hedge_lost", True)
        return
    if status is not None:
        span.set_attribute("http.response.status_code", status)
    if attempt.detail is not None:
        span.set_attribute("chutes_autopilot.rate_limit", attempt.detail)
    if committed and record.first_byte is not None:
        span.set_attribute("gen_ai.response.time_to_first_chunk", record.first_byte - begun)
    if error is None and status is not None and status >= 400:
        error = str(status)
    if error is None and (not committed or record.outcome == "cut"):
        error = record.error or record.outcome
    if error is not None:
        span.set_attribute("error.type", error)
        span.set_status(Status(StatusCode.ERROR))


class _Heard(SpanExporter):
    """Passes batches on, and tells when they begin or cease to arrive."""

    def __init__(self, exporter: SpanExporter, told: Callable[[bool], None]) -> None:
        self._exporter = exporter
        self._told = told
        self._arrives = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        arrives = result is SpanExportResult.SUCCESS
        if arrives != self._arrives:
            self._arrives = arrives
            self._told(arrives)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _sampler(terms: TracingTerms) -> Sampler:
    roots: dict[str, Sampler] = {
        "always_on": ALWAYS_ON,
        "always_off": ALWAYS_OFF,
        "traceidratio": TraceIdRatioBased(terms.ratio),
    }
    root = roots[terms.sampler.removeprefix("parentbased_")]
    return ParentBased(root) if terms.sampler.startswith("parentbased_") else root


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
