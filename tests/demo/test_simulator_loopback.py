"""The simulator on a real loopback socket: its paths, its headers, each of its faults, and clients that leave."""

import http.client
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import pytest
import pytest_twisted
from attrs import define, field
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone, ConnectionLost, ProcessDone
from twisted.internet.protocol import ProcessProtocol, Protocol
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure

from chutes_autopilot.demo.faults import FaultKind
from chutes_autopilot.demo.service import SimulatedChutesService, listen_simulator
from chutes_autopilot.demo.simulator import SimulatedChutes
from chutes_autopilot.demo.site import MAX_BODY_BYTES

MODEL = "demo-labs/Aurora-32B-TEE"
OPEN_MODEL = "sample-ai/Fjord-20B"
EVENTS = "text/event-stream; charset=utf-8"


class Wire(Protocol):
    """A client that sees the bytes, and the end, as they are."""

    def __init__(self) -> None:
        self.received = b""
        self.end: Failure | None = None
        self._waiting: list[tuple[bytes | None, Deferred[None]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._wake()

    def connectionLost(self, reason: Failure) -> None:
        self.end = reason
        self._wake()

    def until(self, marker: bytes | None = None) -> Deferred[None]:
        """Fires once the marker has arrived; without one, once the connection has ended."""
        done: Deferred[None] = Deferred()
        self._waiting.append((marker, done))
        self._wake()
        return done

    def _wake(self) -> None:
        for entry in tuple(self._waiting):
            marker, done = entry
            if self.end if marker is None else marker in self.received:
                self._waiting.remove(entry)
                done.callback(None)

    def ask(self, method: str, path: str, body: Any = None, *headers: str) -> None:
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = (f"{method} {path} HTTP/1.1", "Host: demo", f"Content-Length: {len(raw)}", *headers)
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + raw)


@define(eq=False)
class Platform:
    simulator: SimulatedChutes
    service: SimulatedChutesService
    port: int
    wires: list[Wire] = field(factory=list)

    async def wire(self) -> Wire:
        wire = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", self.port), Wire())
        self.wires.append(wire)
        return wire

    async def get(
        self, method: str, path: str, body: Any = None, *headers: str
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """One request on a connection of its own; the answer is read by another implementation of HTTP."""
        wire = await self.wire()
        wire.ask(method, path, body, "Connection: close", *headers)
        await wire.until()
        return parsed(wire.received)

    async def chat(self, *headers: str, **fields: Any) -> tuple[http.client.HTTPResponse, bytes]:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hush"}], **fields}
        return await self.get("POST", "/v1/chat/completions", body, *headers)

    async def start_chat(self, **fields: Any) -> Wire:
        wire = await self.wire()
        wire.ask("POST", "/v1/chat/completions", {"model": MODEL, **fields})
        await self.simulator.when_request(len(self.simulator.requests) + 1)
        return wire


class RawSocket:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def makefile(self, mode: str) -> BytesIO:
        return BytesIO(self.raw)


def parsed(raw: bytes) -> tuple[http.client.HTTPResponse, bytes]:
    """Head and body; http.client.IncompleteRead if the body ends before its time."""
    response = http.client.HTTPResponse(RawSocket(raw))  # type: ignore[arg-type]
    response.begin()
    return response, response.read()


@pytest_twisted.async_yield_fixture
async def platform() -> AsyncIterator[Platform]:
    simulator = SimulatedChutes(Clock())
    port = listen_simulator(reactor, simulator)
    service = SimulatedChutesService(simulator, port)
    service.startService()
    platform = Platform(simulator, service, port.getHost().port)
    yield platform
    await service.stopService()
    for wire in platform.wires:
        await wire.until()


async def test_its_reads_answer_and_every_answer_says_it_is_simulated(platform: Platform) -> None:
    """Catalog, feed and listing come as JSON, other paths and methods in the platform's error shape, all marked."""
    assert platform.service.base_url == f"http://127.0.0.1:{platform.port}"
    answers = {
        path: await platform.get("GET", path)
        for path in ("/v1/models", "/chutes/utilization", "/chutes/?limit=3", "/chutes/?limit=0", "/nowhere")
    }
    answers["delete"] = await platform.get("DELETE", "/v1/models")
    answers["redirect"] = await platform.get("GET", "/chutes?limit=3")
    answers["chat"] = await platform.chat()
    chute_id = platform.simulator.models[0].chute_id
    answers["chute"] = await platform.get("GET", f"/chutes/{chute_id}")
    answers["no chute"] = await platform.get("GET", "/chutes/nobody")
    assert json.loads(answers["chute"][1])["chute_id"] == chute_id
    assert (answers["no chute"][0].status, b"not found" in answers["no chute"][1]) == (404, True)
    assert all(response.headers["X-Simulated-Chutes"] == "true" for response, _ in answers.values())
    assert len(json.loads(answers["/v1/models"][1])["data"]) == len(platform.simulator.models)
    assert len(json.loads(answers["/chutes/utilization"][1])) > len(platform.simulator.models)
    assert len(json.loads(answers["/chutes/?limit=3"][1])["items"]) == 3
    assert answers["/chutes/?limit=0"][0].status == 422
    assert (answers["/nowhere"][0].status, answers["/nowhere"][1]) == (404, b'{"detail": "Not Found"}')
    assert (answers["delete"][0].status, answers["delete"][0].headers["Allow"]) == (405, "GET")
    assert (answers["redirect"][0].status, answers["redirect"][0].headers["Location"]) == (307, "/chutes/?limit=3")


async def test_a_stream_and_a_whole_answer_have_the_platforms_heads(platform: Platform) -> None:
    """Content type, cache and Chutes headers are those of the platform, and a suffix does not change the model."""
    stream, body = await platform.chat(stream=True, model=f"{MODEL}:latency")
    assert stream.status == 200
    assert stream.headers["Content-Type"] == EVENTS
    assert stream.headers["Cache-Control"] == "no-cache, no-transform"
    assert stream.headers["X-Accel-Buffering"] == "no"
    assert stream.headers["X-Chutes-InvocationID"].encode() in body
    assert body.endswith(b"data: [DONE]\n\n")
    assert b"hush" not in body
    whole, body = await platform.chat()
    assert whole.headers["Content-Type"] == "application/json"
    assert whole.headers["X-Chutes-InvocationID"] in json.loads(body)["id"]
    assert whole.headers["X-Accel-Buffering"] is None
    assert json.loads(body)["model"] == MODEL
    assert platform.simulator.open_streams == 0
    assert platform.simulator.disconnected.count == 0


async def test_errors_carry_no_chutes_headers(platform: Platform) -> None:
    """An unknown model and a chute without TEE are refused in the platform's shape, without its success headers."""
    unknown, body = await platform.chat(model="nobody/unknown")
    assert (unknown.status, json.loads(body)) == (404, {"detail": "model not found: nobody/unknown"})
    assert not [name for name in unknown.headers if name.lower().startswith("x-chutes")]
    tee, _ = await platform.chat("X-TEE-Only: true", model=OPEN_MODEL)
    assert tee.status == 426
    assert (await platform.chat("X-TEE-Only: true"))[0].status == 200


@pytest.mark.parametrize(
    ("fault", "status", "content_type", "body"),
    [
        ("503", 503, "application/json", rb'\{"detail": "No instances .* for chute_id=\'[0-9a-f-]+\'"\}'),
        ("429", 429, "application/json", rb'\{"detail": "Infrastructure is at maximum capacity, try again later"\}'),
        ("429_edge", 429, "text/html", rb"<html>.*nginx.*</html>\n"),
        ("500", 500, "application/json", rb'\{"detail": "No infrastructure available to serve request"\}'),
        ("401", 401, "application/json", rb'\{"detail": "Invalid token."\}'),
        ("empty", 200, EVENTS, rb""),
        ("error_event_first", 200, EVENTS, rb'data: \{"error":\{.*\}\}\n\ndata: \[DONE\]\n\n'),
        ("error_tail", 200, EVENTS, rb'(data: \{.*\}\n\n){4}\{"error":"Unhandled [^\n]*"\}'),
        ("context_length", 400, "application/json", rb'\{"detail": "Invalid request: .* maximum context length .*"\}'),
        ("content_filter", 400, "application/json", rb'\{"detail": "Invalid request: content_filter: .*"\}'),
        ("malformed_event", 200, EVENTS, rb'(data: \{.*\}\n\n){4}data: \{[^}]*\[\]\n\n(data: .*\n\n)+'),
        ("no_done", 200, EVENTS, rb'(data: \{[^\n]*\}\n\n)+'),
    ],
)  # fmt: skip
async def test_a_fault_with_a_clean_end(
    platform: Platform, fault: str, status: int, content_type: str, body: bytes
) -> None:
    """The answer is complete HTTP with the platform's status and body, and only the asked number of them."""
    platform.simulator.faults.add(fault, MODEL, 1)
    assert (await platform.chat(stream=True, model=OPEN_MODEL))[1].endswith(b"[DONE]\n\n")
    response, received = await platform.chat(stream=True)
    assert (response.status, response.headers["Content-Type"]) == (status, content_type)
    assert re.fullmatch(body, received, re.DOTALL)
    assert (await platform.chat(stream=True))[1].endswith(b"[DONE]\n\n")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", ["cut", "cut_before_body"])
async def test_a_cut_answer_ends_before_its_time(platform: Platform, fault: str, stream: bool) -> None:
    """Head and, unless cut before, a part of the body arrive; then the connection ends and the body is incomplete."""
    platform.simulator.faults.add(fault)
    wire = await platform.start_chat(stream=stream)
    await wire.until()
    assert wire.received.startswith(b"HTTP/1.1 200 OK\r\n")
    body = wire.received.partition(b"\r\n\r\n")[2]
    assert bool(body) is (fault == "cut")
    assert b"[DONE]" not in body
    with pytest.raises(http.client.IncompleteRead):
        parsed(wire.received)
    assert platform.simulator.open_streams == 0
    assert platform.simulator.disconnected.count == 0


async def test_a_reset_comes_before_any_head(platform: Platform) -> None:
    """The client's connection is reset, and nothing has arrived."""
    platform.simulator.faults.add("reset")
    wire = await platform.start_chat(stream=True)
    await wire.until()
    assert wire.received == b""
    assert wire.end is not None
    assert wire.end.check(ConnectionLost)


async def test_garbage_is_no_http(platform: Platform) -> None:
    """Bytes arrive that no HTTP client can take for a head, then the end."""
    platform.simulator.faults.add("garbage")
    wire = await platform.start_chat(stream=True)
    await wire.until()
    with pytest.raises(http.client.BadStatusLine):
        parsed(wire.received)
    assert wire.end is not None
    assert wire.end.check(ConnectionDone)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", ["silent_head", "silent_body"])
async def test_silence_lasts_until_the_client_leaves(platform: Platform, fault: str, stream: bool) -> None:
    """No head, or a head and no byte more, however long; the simulator notices when the client goes."""
    platform.simulator.faults.add(fault)
    wire = await platform.start_chat(stream=stream)
    if fault == "silent_body":
        await wire.until(b"\r\n\r\n")
    platform.simulator.clock.advance(3600)  # type: ignore[attr-defined]
    await platform.get("GET", "/v1/models")  # whatever was on its way has arrived by now
    assert wire.received.partition(b"\r\n\r\n")[2] == b""
    assert bool(wire.received) is (fault == "silent_body")
    assert platform.simulator.open_streams == 1
    wire.transport.abortConnection()
    await platform.simulator.when_disconnected(1)
    assert platform.simulator.open_streams == 0


async def test_a_client_that_does_not_read_holds_the_stream_back(platform: Platform) -> None:
    """An answer larger than all socket buffers waits for its reader, and then arrives whole."""
    wire = await platform.wire()
    wire.transport.pauseProducing()
    wire.ask("POST", "/v1/chat/completions", {"model": MODEL, "stream": True, "n_tokens": 60_000})
    await platform.simulator.when_request(1)
    await platform.get("GET", "/v1/models")
    assert platform.simulator.open_streams == 1
    received = 0
    done: Deferred[None] = Deferred()

    def count(data: bytes) -> None:
        nonlocal received
        received += len(data)
        if data.endswith(b"0\r\n\r\n"):
            done.callback(None)

    wire.dataReceived = count  # type: ignore[method-assign]
    wire.transport.resumeProducing()
    await done
    assert received > 60_000 * 200
    assert platform.simulator.open_streams == 0


async def test_a_connection_serves_one_request_after_another(platform: Platform) -> None:
    """Answers on a kept connection follow each other, streams among them."""
    wire = await platform.wire()
    for expected in (b"[DONE]\n\n\r\n0\r\n\r\n", b"}"):
        wire.received = b""
        wire.ask("POST", "/v1/chat/completions", {"model": MODEL, "stream": expected != b"}", "n_tokens": 2})
        await wire.until(b"\r\n\r\n")
        await wire.until(expected)
    assert len(platform.simulator.requests) == 2


async def test_faults_are_asked_for_over_the_control_path(platform: Platform) -> None:
    """A fault can be put up, seen, met by a request, and taken back; a wrong one is told what is allowed."""
    asked = {"fault": "slow", "model": MODEL, "requests": 3, "ms": 250}
    response, body = await platform.get("POST", "/_simulator/faults", asked)
    assert (response.status, json.loads(body)) == (201, {"simulated": True, **asked})
    await platform.get("POST", "/_simulator/faults", {"fault": "503", "requests": 2})
    await platform.chat(model=OPEN_MODEL)
    _, body = await platform.get("GET", "/_simulator/faults")
    assert json.loads(body) == {
        "simulated": True,
        "faults": [asked, {"fault": "503", "model": "*", "requests": 1}],
        "allowed": list(FaultKind),
    }
    response, body = await platform.get("DELETE", "/_simulator/faults")
    assert (response.status, body, platform.simulator.faults.waiting()) == (204, b"", ())
    response, body = await platform.get("POST", "/_simulator/faults", {"fault": "418"})
    assert response.status == 400
    assert "silent_head" in json.loads(body)["detail"]


async def test_what_arrived_can_be_read_back_exactly(platform: Platform) -> None:
    """Method, path with query, headers in order and spelling, and the body, also of a chunked request."""
    wire = await platform.wire()
    raw = b'{"model": "%s" ,"x":"\xc3\xa9"}' % MODEL.encode()
    head = b"POST /v1/chat/completions?a=%20b HTTP/1.1\r\nHost: demo\r\nX-b: 2\r\nx-A: 1\r\nX-B:3 \r\n"
    wire.transport.write(head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(raw), raw))
    await platform.simulator.when_request(1)
    headers = [("Host", "demo"), ("X-b", "2"), ("x-A", "1"), ("X-B", "3"), ("Transfer-Encoding", "chunked")]
    seen = platform.simulator.requests[0]
    assert (seen.method, seen.path, seen.body) == (b"POST", b"/v1/chat/completions?a=%20b", raw)
    assert seen.headers == tuple((name.encode(), value.encode()) for name, value in headers)
    _, answer = await platform.get("GET", "/_simulator/requests")
    assert json.loads(answer) == {
        "simulated": True,
        "arrived": 1,
        "disconnected": 0,
        "open_streams": 0,
        "requests": [
            {
                "method": "POST",
                "path": "/v1/chat/completions?a=%20b",
                "headers": [list(header) for header in headers],
                "body": raw.decode(),
            }
        ],
    }


async def test_a_body_over_the_bound_is_read_away_and_refused(platform: Platform) -> None:
    """The client can still read the 413, and nothing of the body is kept."""
    response, _ = await platform.get("POST", "/v1/chat/completions", b"x" * (MAX_BODY_BYTES + 1))
    assert response.status == 413
    assert len(platform.simulator.requests) == 0


async def test_stopping_ends_every_connection(platform: Platform) -> None:
    """Idle and silent connections alike are gone when the service says that it has stopped."""
    platform.simulator.faults.add("silent_head")
    silent, idle = await platform.start_chat(stream=True), await platform.wire()
    idle.ask("GET", "/v1/models")
    await idle.until(b"\r\n\r\n")
    await platform.service.stopService()
    assert platform.simulator.site().channels == set()
    assert platform.simulator.open_streams == 0
    await silent.until()
    await idle.until()


class Child(ProcessProtocol):
    def __init__(self) -> None:
        self.printed = b""
        self.first_line: Deferred[bytes] = Deferred()
        self.ended: Deferred[BaseException] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.printed += data
        if b"\n" in self.printed and not self.first_line.called:
            self.first_line.callback(self.printed)

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(reason.value)


async def test_it_runs_alone_and_prints_where() -> None:
    """As a process of its own it prints one line with its address, answers there, and ends on SIGTERM with code 0."""
    child = Child()
    arguments = [sys.executable, "-m", "chutes_autopilot.demo", "--pace-ms", "0", "--first-token-ms", "0"]
    process = reactor.spawnProcess(child, sys.executable, arguments, env=None)
    try:
        line = (await child.first_line).decode()
        found = re.fullmatch(r"simulated .* on http://127\.0\.0\.1:(\d+)\n", line)
        assert found
        simulator = SimulatedChutes(Clock())
        away = Platform(simulator, None, int(found[1]))  # type: ignore[arg-type]
        response, body = await away.chat(stream=True)
        assert (response.status, body[-14:]) == (200, b"data: [DONE]\n\n")
    finally:
        process.signalProcess(signal.SIGTERM)
        reason = await child.ended
        await deferLater(reactor, 0, lambda: None)
    assert isinstance(reason, ProcessDone)
