"""Failover, deadlines and cuts with real connections."""

import pytest
from loopback_peers import (
    CHUNKED,
    Gateway,
    Script,
    ScriptedUpstream,
    StartGateway,
    answer,
    chunk,
    read_response,
    reset,
    respond,
    silent,
)
from twisted.internet.error import ConnectionLost

STREAM = {"model": "chutesai/AutoPilot", "stream": True}
HEAD_ONLY = respond(CHUNKED)
FAST = {"UPSTREAM_HEADER_TIMEOUT_MS": "40", "UPSTREAM_FIRST_BODY_BYTE_TIMEOUT_MS": "40"}

FAULTS = [
    ("upstream_503", answer(b"busy", b"503 Service Unavailable"), {}),
    ("upstream_connect_error", reset, {}),
    ("upstream_connect_error", respond(b"", close=True), {}),
    ("upstream_connect_error", respond(b"SSH-2.0-OpenSSH\r\n"), {}),
    ("upstream_header_timeout", silent, FAST),
    ("upstream_first_body_byte_timeout", HEAD_ONLY, FAST),
    ("upstream_first_body_byte_timeout", answer(b""), {}),
    ("upstream_first_body_byte_error", respond(CHUNKED, close=True), {}),
    ("upstream_first_body_byte_error", respond(CHUNKED + b"nonsense\r\n"), {}),
]
STATUS = {
    "upstream_connect_error": 502,
    "upstream_header_timeout": 504,
    "upstream_first_body_byte_timeout": 504,
    "upstream_first_body_byte_error": 502,
}


@pytest.fixture(params=["front", "reference"])
def path(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both readers of requests."""
    return str(request.param)


@pytest.mark.parametrize(("reason", "script", "settings"), FAULTS)
async def test_a_fault_before_the_first_byte_is_not_seen_by_the_client(
    scripted: ScriptedUpstream, start_gateway: StartGateway, reason: str, script: Script, settings: dict[str, str]
) -> None:
    """The next candidate answers; the reason stands in the metrics."""
    gateway = await start_gateway(**settings)
    scripted.scripts["a/A"] = script
    response = await gateway.chat(STREAM)
    assert (response.status, response.body) == (200, b'{"from":"b/B"}')
    assert response.header("x-chutes-autopilot-selected") == "b/B"
    assert response.header("x-chutes-autopilot-attempts") == "2"
    metrics = await gateway.metrics()
    assert metrics[f'failover_reason_total{{reason="{reason}"}}'] == 1
    assert metrics['selection_total{model="b/B",status="200"}'] == 1
    assert metrics["requests_active"] == 0


@pytest.mark.parametrize(("reason", "script", "settings"), FAULTS[1:])
async def test_a_fault_of_the_last_candidate_becomes_an_error_of_its_kind(
    scripted: ScriptedUpstream, start_gateway: StartGateway, reason: str, script: Script, settings: dict[str, str]
) -> None:
    """One model and no other: a precise error in OpenAI's shape with the number of attempts."""
    gateway = await start_gateway(**settings)
    scripted.scripts["a/A"] = script
    response = await gateway.chat({"model": "a/A", "stream": True})
    # the last candidate has the first-byte time for its head; its silence is a header timeout all the same
    assert (response.status, response.error["code"]) == (STATUS[reason], reason)
    assert response.error["type"] == "server_error"
    assert response.header("x-chutes-autopilot-attempts") == "1"
    assert response.header("x-chutes-autopilot-selected") is None


async def test_the_last_503_is_the_answer(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """When every candidate is busy the client sees what the last one said."""
    for name in scripted.names:
        scripted.scripts[name] = answer(name.encode(), b"503 Service Unavailable", b"Retry-After: 7")
    response = await gateway.chat({"model": "b/B, a/A"})
    assert (response.status, response.body, response.header("retry-after")) == (503, b"a/A", "7")
    assert response.header("x-chutes-autopilot-attempts") == "2"


async def test_a_refused_connection_is_a_connect_error(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """A closed port is told apart from a slow one."""
    gateway = await start_gateway(BACKEND_BASE_URL="http://127.0.0.1:1")
    response = await gateway.chat(STREAM)
    assert (response.status, response.error["code"]) == (502, "upstream_connect_error")
    assert response.header("x-chutes-autopilot-attempts") == "3"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_the_request_deadline_ends_all_attempts(
    scripted: ScriptedUpstream, start_gateway: StartGateway, stream: bool
) -> None:
    """REQUEST_DEADLINE_MS counts until the commit, over all attempts; a head that may take longer changes nothing."""
    gateway = await start_gateway(REQUEST_DEADLINE_MS="60")
    scripted.scripts["a/A"] = silent
    response = await gateway.chat({**STREAM, "stream": stream})
    assert (response.status, response.error["code"]) == (504, "deadline_exceeded")
    assert len(scripted.requests) == 1


async def test_no_deadline_ends_an_answer_that_has_begun(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """After the commit neither the first-byte nor the request deadline counts any more."""
    gateway = await start_gateway(REQUEST_DEADLINE_MS="60", **FAST)
    scripted.scripts["a/A"] = respond(CHUNKED + chunk(b"one"))
    scripted.scripts["b/B"] = silent
    begun = await gateway.connect()
    begun.post(b'{"model":"a/A","stream":true}')
    await begun.until(b"one")
    side = scripted.connections[-1]
    await gateway.chat({"model": "b/B"})  # takes as long as the deadline
    side.transport.write(chunk(b"two") + b"0\r\n\r\n")
    assert read_response(await begun.until(b"0\r\n\r\n")).body == b"onetwo"


async def test_a_cut_answer_to_an_http_1_0_client_is_a_reset(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """Where the body ends with the connection, only a reset can show a cut."""
    scripted.scripts["a/A"] = respond(CHUNKED + chunk(b"one") + b"nonsense\r\n")
    client = await gateway.connect()
    client.transport.write(b'POST /v1/chat/completions HTTP/1.0\r\nContent-Length: 15\r\n\r\n{"model":"a/A"}')
    assert await client.closed is ConnectionLost


async def test_what_is_not_a_trigger_is_final(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """A 500 passes back although candidates are left."""
    scripted.scripts["a/A"] = answer(b'{"detail":"x"}', b"500 Internal Server Error")
    assert (await gateway.chat(STREAM)).status == 500
    assert len(scripted.requests) == 1


async def test_no_more_attempts_than_the_operator_allows(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """MAX_FAILOVER_ATTEMPTS bounds one request."""
    gateway = await start_gateway(MAX_FAILOVER_ATTEMPTS="2")
    for name in scripted.names:
        scripted.scripts[name] = reset
    response = await gateway.chat(STREAM)
    assert (response.header("x-chutes-autopilot-attempts"), len(scripted.requests)) == ("2", 2)
