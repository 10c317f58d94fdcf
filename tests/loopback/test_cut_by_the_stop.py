"""Requests that are being answered when a stop begins, and when its grace ends: each is recorded, and once."""

from collections.abc import Iterator
from typing import Any

import pytest
from loopback_peers import CHUNKED, ScriptedUpstream, StartGateway, chunk, is_complete, read_response, respond, silent
from twisted.logger import globalLogPublisher

import chutes_autopilot.control_composition
from chutes_autopilot.observe.metrics import Metrics

STREAM = CHUNKED.replace(b"application/json", b"text/event-stream")

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"


@pytest.fixture(params=["front", "reference"])
def path(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both readers of requests."""
    return str(request.param)


@pytest.fixture
def recorded() -> Iterator[list[Any]]:
    """The record of every request that is logged."""
    records: list[Any] = []

    def keep(event: dict[str, Any]) -> None:
        if event.get("event") == "request":
            records.append(event["record"])

    globalLogPublisher.addObserver(keep)
    yield records
    globalLogPublisher.removeObserver(keep)


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> list[Metrics]:
    """The metrics of every gateway that is built: a stopped one cannot be asked for them."""
    built: list[Metrics] = []

    def build(*arguments: Any) -> Metrics:
        built.append(Metrics(*arguments))
        return built[-1]

    monkeypatch.setattr(chutes_autopilot.control_composition, "Metrics", build)
    return built


@pytest.mark.parametrize("reused", [False, True], ids=["new connection", "reused connection"])
@pytest.mark.parametrize(
    ("script", "outcome", "status", "cut"),
    [
        (silent, "refused", 503, 0),
        (respond(CHUNKED), "refused", 503, 0),
        (respond(CHUNKED + chunk(b"one")), "cut", 200, 1),
        (respond(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\none"), "cut", 200, 1),
        (respond(b"HTTP/1.1 500 Broken\r\nContent-Length: 9\r\n\r\none"), "cut", 500, 1),
        (respond(STREAM + chunk(b'data: {"choices":[]}\n\n')), "cut", 200, 1),
    ],
    ids=["no head", "no body", "chunks", "length", "error", "stream"],
)
async def test_what_the_stop_cuts_is_recorded_once(
    scripted: ScriptedUpstream,
    metrics: list[Metrics],
    recorded: list[Any],
    start_gateway: StartGateway,
    script: Any,
    outcome: str,
    status: int,
    cut: int,
    reused: bool,
) -> None:
    """One log line and one count, whatever the answer's phase; nothing is active any more, no other model is asked, no
    model is said to have failed, and the client sees an error or a cut."""
    gateway = await start_gateway(SHUTDOWN_GRACE_MS="1")
    before = 0
    if reused:
        before = 1
        assert (await gateway.chat({"model": "b/B"})).status == 200
    scripted.scripts["a/A"] = script
    client = await gateway.connect()
    client.post(b'{"model":"chutesai/AutoPilot","stream":true}')
    await scripted.when_asked(before + 1)
    await gateway.get("/healthz")
    await gateway.service.stopService()
    await client.closed
    why = "shutdown_grace_over" if cut else "draining"
    assert [(r.outcome, r.status, r.error) for r in recorded[before:]] == [(outcome, status, why)]
    counted = dict(line.rsplit(" ", 1) for line in metrics[0].exposition().decode().splitlines() if line[0] != "#")
    requests = [float(counted[name]) for name in counted if name.startswith("chutes_autopilot_requests_total{")]
    assert sum(requests) == before + 1
    assert float(counted["chutes_autopilot_requests_active"]) == 0
    assert float(counted["chutes_autopilot_streams_cut_total"]) == cut
    assert not [name for name in counted if name.startswith("chutes_autopilot_failover_reason_total{")]
    assert len(scripted.requests) == before + 1
    if cut:
        assert client.received.startswith(b"HTTP/1.1 %d " % status)
        assert not is_complete(client.received)
    else:
        response = read_response(client.received)
        assert (response.error["code"], response.header("retry-after")) == ("draining", "1")
        assert response.header("x-should-retry") is None


@pytest.mark.parametrize("sent", [b"POST /v1/chat", HEAD, HEAD + b"\r\n{"], ids=["request line", "head", "body"])
async def test_a_request_that_is_still_being_received_is_refused(
    start_gateway: StartGateway, scripted: ScriptedUpstream, recorded: list[Any], path: str, sent: bytes
) -> None:
    """It is told to come again, and recorded as soon as it is known what is asked."""
    gateway = await start_gateway(SHUTDOWN_GRACE_MS="1")
    client = await gateway.connect()
    client.transport.write(sent.replace(b"Host", b"TE: trailers\r\nHost") if path == "reference" else sent)
    await gateway.get("/healthz")
    await gateway.service.stopService()
    await client.closed
    response = read_response(client.received)
    assert (response.status, response.error["code"], response.header("retry-after")) == (503, "draining", "1")
    assert [(r.outcome, r.status, r.error) for r in recorded] == [("refused", 503, "draining")] * sent.startswith(HEAD)
    assert scripted.requests == []


async def test_an_answer_that_had_begun_is_not_yet_the_last(
    start_gateway: StartGateway, scripted: ScriptedUpstream
) -> None:
    """Its head has not said that the connection closes, and so the next request on it is answered too: with that word,
    and then the connection closes."""
    scripted.scripts["a/A"] = respond(CHUNKED + chunk(b"one"))
    gateway = await start_gateway()
    client = await gateway.connect()
    client.post(b'{"model":"a/A"}')
    assert b"close" not in await client.until(b"one")
    stopped = gateway.service.stopService()
    scripted.connections[-1].transport.write(chunk(b"two") + b"0\r\n\r\n")
    await client.until(b"two\r\n0\r\n\r\n")
    client.received = b""
    client.post(b'{"model":"b/B"}')
    await client.closed
    assert read_response(client.received).header("connection") == "close"
    assert read_response(client.received).body.endswith(b'{"from":"b/B"}')
    await stopped
