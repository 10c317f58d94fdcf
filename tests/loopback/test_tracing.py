"""Traces as a collector gets them, and as the upstream sees them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attrs import define, field
from loopback_peers import (
    CHUNKED,
    Gateway,
    ScriptedUpstream,
    StartGateway,
    UpstreamSide,
    answer,
    chunk,
    respond,
    silent,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from pytest_twisted import blockon
from sealing_client import AS_ALICE, CHAT
from sealing_client import settings as chutes_settings
from twisted.internet.defer import maybeDeferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, globalLogPublisher

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = f"traceparent: 00-{TRACE}-{PARENT}-01".encode()
TRACESTATE = b"tracestate: congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"
PAIR = ("chat a/A", "chat b/B")
SECRETS = (b"hunter2", b"my prompt", b"my completion", b"127.0.0.1", b"203.0.113.9")


for_both_readers = pytest.mark.parametrize("path", ["front", "reference"])


@define(eq=False)
class Collector:
    """Takes OTLP over HTTP."""

    port: Any = None
    status: bytes = b"200 OK"
    heads: list[bytes] = field(factory=list)
    bodies: list[bytes] = field(factory=list)
    connections: list[UpstreamSide] = field(factory=list)

    def asked(self, side: UpstreamSide, head: bytes, body: bytes) -> None:
        self.heads.append(head)
        self.bodies.append(body)
        answer(b"", self.status)(side)

    @property
    def spans(self) -> dict[str, Span]:
        """By their names."""
        return {span.name: span for span in self.all()}

    def all(self) -> list[Span]:
        requests = map(ExportTraceServiceRequest.FromString, self.bodies)
        return [s for r in requests for of in r.resource_spans for scope in of.scope_spans for s in scope.spans]

    def resource(self) -> dict[str, Any]:
        return values(ExportTraceServiceRequest.FromString(self.bodies[0]).resource_spans[0].resource)


@pytest.fixture
def collector() -> Iterator[Collector]:
    from twisted.internet import reactor

    collector = Collector()
    factory = Factory.forProtocol(lambda: UpstreamSide(collector))  # type: ignore[arg-type]
    factory.noisy = False
    collector.port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    yield collector
    blockon(maybeDeferred(collector.port.stopListening))
    for side in collector.connections:
        if not side.lost.called:
            side.transport.abortConnection()
            blockon(side.lost)


@pytest.fixture
def traced(start_gateway: StartGateway, collector: Collector) -> Callable[..., Any]:
    """Starts a gateway that sends its spans to the collector."""
    url = f"http://127.0.0.1:{collector.port.getHost().port}"

    async def start(**environ: str) -> Gateway:
        return await start_gateway(TRACING_ENABLED="true", **{"OTEL_EXPORTER_OTLP_ENDPOINT": url} | environ)

    return start


async def end(gateway: Gateway) -> None:
    """Stop the service, which sends the last spans."""
    for client in gateway.clients:
        client.transport.loseConnection()
    await gateway.service.stopService()


def values(holder: Any) -> dict[str, Any]:
    return {kv.key: getattr(kv.value, str(kv.value.WhichOneof("value"))) for kv in holder.attributes}


def sent_upstream(scripted: ScriptedUpstream, name: bytes) -> list[bytes]:
    return [value for seen in scripted.requests for key, value in seen.headers if key.lower() == name]


@for_both_readers
async def test_every_attempt_is_a_child_of_its_request(
    traced: Callable[..., Any], scripted: ScriptedUpstream, collector: Collector
) -> None:
    """A failover is three spans in the client's trace: the request and two attempts, each with what became of it, and
    each attempt is the parent that the upstream is told; nothing of content, keys and addresses is in them."""
    scripted.scripts["a/A"] = answer(b"busy", b"503 Service Unavailable")
    event_stream = CHUNKED.replace(b"application/json", b"text/event-stream")
    scripted.scripts["b/B"] = respond(event_stream + chunk(b"data: my completion\n\ndata: [DONE]\n\n") + chunk(b""))
    gateway = await traced(OTEL_EXPORTER_OTLP_HEADERS="x-key=a%20b", OTEL_SERVICE_NAME="gate")
    response = await gateway.chat(
        {"model": "a/A,b/B", "stream": True, "messages": "my prompt"},
        TRACEPARENT,
        TRACESTATE,
        b"Authorization: Bearer hunter2",
        b"X-Forwarded-For: 203.0.113.9",
        b"X-Request-Id: my-id",
    )
    assert response.status == 200
    await end(gateway)

    request, first, second = (collector.spans[n] for n in ("POST /v1/chat/completions", "chat a/A", "chat b/B"))
    assert len(collector.all()) == 3
    assert {span.trace_id.hex() for span in collector.all()} == {TRACE}
    assert request.parent_span_id.hex() == PARENT
    assert first.parent_span_id == second.parent_span_id == request.span_id
    assert (request.kind, first.kind, second.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT, 3)
    told = [f"00-{TRACE}-{span.span_id.hex()}-01".encode() for span in (first, second)]
    assert sent_upstream(scripted, b"traceparent") == told
    assert sent_upstream(scripted, b"tracestate") == [TRACESTATE.partition(b": ")[2]] * 2

    described = values(request)
    assert described.pop("chutes_autopilot.time_to_first_byte") > 0
    assert described.pop("http.request.body.size") > 0
    assert described == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "http.response.body.size": len(response.body),
        "gen_ai.request.stream": True,
        "chutes_autopilot.request_id": "my-id",
        "chutes_autopilot.mode": "list",
        "chutes_autopilot.outcome": "complete",
        "chutes_autopilot.attempts": 2,
        "chutes_autopilot.selected": "b/B",
    }
    chat = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "chutes", "gen_ai.request.stream": True}
    failed = {"http.response.status_code": 503, "error.type": values(first)["error.type"]}
    assert values(first) == {**chat, "gen_ai.request.model": "a/A", **failed}
    described = values(second)
    assert described.pop("gen_ai.response.time_to_first_chunk") >= 0
    assert described == {**chat, "gen_ai.request.model": "b/B", "http.response.status_code": 200}
    codes = [span.status.code for span in (request, first, second)]
    assert codes == [Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET]
    assert request.start_time_unix_nano <= first.start_time_unix_nano <= first.end_time_unix_nano
    assert first.end_time_unix_nano <= second.start_time_unix_nano <= second.end_time_unix_nano
    assert second.end_time_unix_nano <= request.end_time_unix_nano

    assert collector.resource()["service.name"] == "gate"
    assert collector.heads[0].startswith(b"POST /v1/traces HTTP/1.1\r\n")
    assert b"x-key: a b" in collector.heads[0]
    assert not [secret for secret in SECRETS if secret in b"".join(collector.bodies)]


@for_both_readers
@pytest.mark.parametrize("sent", [(), (TRACEPARENT[:-2] + b"x1", TRACESTATE), (TRACEPARENT, TRACEPARENT)])
async def test_without_a_parent_a_trace_begins_here(
    traced: Callable[..., Any], scripted: ScriptedUpstream, collector: Collector, sent: tuple[bytes, ...]
) -> None:
    """Where the client names no span, or not as W3C has it, the upstream is told ours, and of no other trace."""
    gateway = await traced()
    await gateway.chat({"model": "a/A"}, *sent)
    await end(gateway)
    request, attempt = (collector.spans[name] for name in ("POST /v1/chat/completions", "chat a/A"))
    assert (request.parent_span_id, request.trace_id) == (b"", attempt.trace_id)
    assert request.trace_id.hex() != TRACE
    (told,) = sent_upstream(scripted, b"traceparent")
    assert told[:-2] == f"00-{attempt.trace_id.hex()}-{attempt.span_id.hex()}-".encode()
    assert int(told[-2:], 16) & 1  # sampled; another flag says that the trace id is random
    assert sent_upstream(scripted, b"tracestate") == []


@pytest.mark.parametrize(
    ("sampler", "sent", "flags"),
    [
        ({"OTEL_TRACES_SAMPLER": "always_off"}, TRACEPARENT, b"00"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, TRACEPARENT, b"00"),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, TRACEPARENT, b"01"),
        ({}, TRACEPARENT[:-1] + b"0", b"00"),
    ],
)
async def test_the_sampler_decides(
    traced: Callable[..., Any],
    scripted: ScriptedUpstream,
    collector: Collector,
    sampler: dict[str, str],
    sent: bytes,
    flags: bytes,
) -> None:
    """A request that is not sampled stays in its trace, the upstream is told so, and no span of it is sent."""
    gateway = await traced(**sampler)
    assert (await gateway.chat({"model": "a/A"}, sent)).status == 200
    await end(gateway)
    (told,) = sent_upstream(scripted, b"traceparent")
    assert (told[3:35], told[-2:]) == (TRACE.encode(), flags)
    assert bool(collector.all()) is (flags == b"01")


async def test_a_continuation_has_a_span_of_its_own(
    traced: Callable[..., Any], scripted: ScriptedUpstream, collector: Collector
) -> None:
    """It ends with the request, that of the stream which broke off with the break; the upstream is told of each."""
    stream = CHUNKED.replace(b"application/json", b"text/event-stream")
    begun = b'data: {"choices":[{"index":0,"delta":{"content":"my completion"}}]}\n\n'
    scripted.scripts["a/A"] = respond(stream + chunk(begun), close=True)
    scripted.scripts["b/B"] = respond(stream + chunk(begun + b"data: [DONE]\n\n") + chunk(b""))
    gateway = await traced(STREAM_CONTINUE="true")
    messages = [{"role": "user", "content": "my prompt"}]
    await gateway.chat({"model": "a/A,b/B", "stream": True, "messages": messages}, TRACEPARENT)
    await end(gateway)
    first, second = (collector.spans[name] for name in PAIR)
    assert len(collector.all()) == 3
    assert first.end_time_unix_nano <= second.start_time_unix_nano
    told = [f"00-{TRACE}-{span.span_id.hex()}-01".encode() for span in (first, second)]
    assert sent_upstream(scripted, b"traceparent") == told


async def test_refusals_cuts_and_clients_that_leave_are_told(
    traced: Callable[..., Any], scripted: ScriptedUpstream, collector: Collector
) -> None:
    """A request that was refused has a span without attempts, in the client's trace; a stream that was cut and an
    attempt that its client abandoned say so."""
    stream = CHUNKED.replace(b"application/json", b"text/event-stream") + chunk(b"data: {}\n\n")
    scripted.scripts |= {"a/A": respond(stream, close=True), "b/B": silent}
    gateway = await traced(MAX_REQUEST_BYTES="100")
    assert (await gateway.chat(b"[]", TRACEPARENT)).status == 400
    assert (await gateway.chat(b" " * 101)).status == 413
    await gateway.chat({"model": "a/A", "stream": True})
    leaving = await gateway.connect()
    leaving.post(b'{"model":"b/B"}')
    await scripted.when_asked(2)
    leaving.transport.abortConnection()
    while (await gateway.metrics())["requests_active"]:
        await deferLater(gateway.reactor, 0.001)
    await end(gateway)
    requests = [values(span) for span in collector.all() if span.name.startswith("POST ")]
    wanted = ("http.response.status_code", "error.type", "chutes_autopilot.outcome")
    assert sorted([tuple(request.get(key, "") for key in wanted) for request in requests]) == [
        (200, "upstream_stream_truncated", "cut"),
        (400, "invalid_body", "refused"),
        (413, "request_too_large", "refused"),
        (499, "", "client_gone"),
    ]
    cut, left = collector.spans["chat a/A"], collector.spans["chat b/B"]
    assert values(cut)["error.type"] == "upstream_stream_truncated"
    assert values(left)["error.type"] == "client_gone"
    refused = next(s for s in collector.all() if values(s).get("http.response.status_code") == 400)
    assert refused.parent_span_id.hex() == PARENT
    assert refused.status.code == Status.STATUS_CODE_UNSET


async def test_an_attempt_that_was_outrun_is_no_error(
    traced: Callable[..., Any], scripted: ScriptedUpstream, collector: Collector
) -> None:
    """With hedging two attempts are siblings in time, and each span says what became of its own."""
    event_stream = CHUNKED.replace(b"application/json", b"text/event-stream")
    text = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    prompt = respond(event_stream + chunk(text + b"data: [DONE]\n\n") + chunk(b""))
    scripted.scripts = {"a/A": prompt, "b/B": prompt}
    gateway = await traced(HEDGE="true")
    for _ in range(20):  # until the model's pace is known and a hedge is saved up
        assert (await gateway.chat({"model": "chutesai/AutoPilot", "stream": True})).status == 200
    scripted.scripts["a/A"] = silent
    response = await gateway.chat({"model": "chutesai/AutoPilot", "stream": True}, TRACEPARENT)
    assert response.header("x-chutes-autopilot-selected") == "b/B"
    await end(gateway)
    slow, quick = (next(s for s in collector.all() if s.trace_id.hex() == TRACE and s.name == n) for n in PAIR)
    assert (values(slow)["chutes_autopilot.hedge_lost"], slow.status.code) == (True, Status.STATUS_CODE_UNSET)
    assert values(quick)["http.response.status_code"] == 200
    assert slow.start_time_unix_nano < quick.start_time_unix_nano < slow.end_time_unix_nano


async def test_other_endpoints_are_traced_by_their_own_names(
    traced: Callable[..., Any], scripted: ScriptedUpstream, collector: Collector
) -> None:
    """Their spans have their path, and what OpenTelemetry calls their work; a trace goes on through them too."""
    gateway = await traced()
    assert (await gateway.chat({"model": "a/A"}, TRACEPARENT, target=b"/v1/completions")).status == 200
    await end(gateway)
    request, attempt = collector.spans["POST /v1/completions"], collector.spans["text_completion a/A"]
    assert (request.parent_span_id.hex(), attempt.parent_span_id) == (PARENT, request.span_id)
    assert values(attempt)["gen_ai.operation.name"] == "text_completion"
    assert sent_upstream(scripted, b"traceparent") == [f"00-{TRACE}-{attempt.span_id.hex()}-01".encode()]


async def test_the_chutes_route_tells_the_upstream_nothing(
    traced: Callable[..., Any], scripted: ScriptedUpstream, collector: Collector
) -> None:
    """Its requests are traced in the client's trace, but nothing of that goes to Chutes."""
    gateway = await traced(**chutes_settings(scripted.url))
    assert (await gateway.chat({"model": "a/A"}, AS_ALICE, TRACEPARENT, target=CHAT)).status == 200
    await end(gateway)
    request, attempt = collector.spans["POST /v1/chutes/chat/completions"], collector.spans["chat a/A"]
    assert (request.parent_span_id.hex(), attempt.parent_span_id) == (PARENT, request.span_id)
    assert sent_upstream(scripted, b"traceparent") == []


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What the log says of tracing."""
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        if event.get("event") == "tracing":
            lines.append(str(event["log_format"]))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


async def test_a_collector_that_fails_harms_nobody(
    traced: Callable[..., Any], collector: Collector, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are answered as ever, and the log says once that spans are lost and once that they are not any more."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    collector.status = b"400 Bad Request"
    gateway = await traced()
    for refused in (1, 2):
        assert (await gateway.chat({"model": "a/A"})).status == 200
        while len(collector.bodies) < refused or not told:
            await deferLater(gateway.reactor, 0.001)
    collector.status = b"200 OK"
    while len(told) < 2:
        assert (await gateway.chat({"model": "a/A"})).status == 200
        await deferLater(gateway.reactor, 0.001)
    assert [line.partition(": ")[2] for line in told] == [
        "the collector takes no spans; they are lost until it does",
        "the collector takes spans again",
    ]
    await end(gateway)


async def test_a_collector_that_is_gone_does_not_hold_up_the_end(
    traced: Callable[..., Any], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody listens the service stops all the same, its last spans lost."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    gateway = await traced(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert (await gateway.chat({"model": "a/A"})).status == 200
    await end(gateway)
    await deferLater(gateway.reactor, 0)
    assert [line.partition(": ")[2] for line in told] == ["the collector takes no spans; they are lost until it does"]


@for_both_readers
async def test_with_tracing_off_a_trace_passes_as_it_came(
    start_gateway: StartGateway, scripted: ScriptedUpstream
) -> None:
    """traceparent and tracestate reach the upstream unchanged."""
    gateway = await start_gateway()
    await gateway.chat({"model": "a/A"}, TRACEPARENT, TRACESTATE)
    assert sent_upstream(scripted, b"traceparent") == [TRACEPARENT.partition(b": ")[2]]
    assert sent_upstream(scripted, b"tracestate") == [TRACESTATE.partition(b": ")[2]]
