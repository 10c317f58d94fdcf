"""STREAM_CONTINUE on real sockets: what the client, the upstream and the operator see of a stream of two models."""

import json
from typing import Any

import openai
import pytest
from loopback_peers import (
    Gateway,
    RawClient,
    Script,
    ScriptedUpstream,
    StartGateway,
    UpstreamSide,
    answer,
    chunk,
    read_response,
    respond,
)
from pytest_twisted import blockon
from sealing_client import CHAT, Caller
from sealing_client import settings as chutes_settings
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"
ANNOUNCED = b": this stream broke off and is continued by b/B\n\n"
ASKED: dict[str, Any] = {
    "model": "chutesai/AutoPilot",
    "stream": True,
    "temperature": 0,
    "messages": [{"role": "user", "content": "hi"}],
}


def event(text: str | None, model: str, finish: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta | ({} if text is None else {"content": text}), "finish_reason": finish}
    said = {"id": f"id-{model}", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}
    return b"data: " + json.dumps(said, separators=(",", ":")).encode() + b"\n\n"


BEGUN = event("", "a/A", role="assistant") + event("Hello", "a/A")
REST = event(", world", "b/B") + event(None, "b/B", "stop") + DONE
CUT = respond(CHUNKED + chunk(BEGUN + b'data: {"id":"half'), close=True)
CONTINUED = BEGUN + ANNOUNCED + event(", world", "a/A") + event(None, "a/A", "stop") + DONE


def whole(*events: bytes) -> Script:
    """A stream that comes to its end."""
    return respond(CHUNKED + b"".join(map(chunk, events)) + LAST_CHUNK)


def in_turn(*scripts: Script) -> Script:
    """A script for each request."""
    left = list(scripts)
    return lambda side: left.pop(0)(side)


@pytest.fixture(params=["front", "reference"])
def path(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both readers of requests, but for one that has to wait."""
    return str(request.param)


@pytest.fixture
def continuing(start_gateway: StartGateway) -> Gateway:
    started: Gateway = blockon(Deferred.fromCoroutine(start_gateway(STREAM_CONTINUE="true")))
    return started


async def asked(gateway: Gateway, body: Any = ASKED) -> RawClient:
    client = await gateway.connect()
    client.post(json.dumps(body).encode())
    return client


async def test_another_model_goes_on_with_a_stream_that_is_cut(scripted: ScriptedUpstream, continuing: Gateway) -> None:
    """The client gets one answer with a clean end; the second model got the request and the text so far."""
    scripted.scripts.update({"a/A": CUT, "b/B": whole(event("", "b/B", role="assistant"), REST)})
    response = await continuing.chat(ASKED, b"X-Request-Id: r1")
    assert (response.body, response.header("x-chutes-autopilot-selected")) == (CONTINUED, "a/A")
    assert json.loads(scripted.requests[1].body) == ASKED | {
        "model": "b/B",
        "messages": [*ASKED["messages"], {"role": "assistant", "content": "Hello"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    told = json.loads((await continuing.get("/v1/autopilot/decisions/r1")).body)
    assert [(a["model"], a["detail"], a["followed"]) for a in told["attempts"]] == [
        ("a/A", "upstream_stream_truncated", "continued"),
        ("b/B", "prefill", "committed"),
    ]
    metrics = await continuing.metrics()
    assert metrics['streams_continued_total{outcome="prefill"}'] == 1
    assert (metrics["streams_cut_total"], metrics["requests_active"]) == (0, 0)
    assert metrics['selection_total{model="a/A",status="200"}'] == 1
    await continuing.chat(ASKED)
    assert scripted.requests[-1].model == "b/B", "the next request goes where it worked"


@pytest.mark.parametrize("fault", [b"data: {no JSON\n\n", b'data: {"error":{"code":500}}\n\n'])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_faulty_event_is_a_break(
    scripted: ScriptedUpstream, continuing: Gateway, fault: bytes, at_once: bool
) -> None:
    """Though the answer has an end, in one piece with it or not; the event itself is not relayed."""
    pieces = [BEGUN, fault + event("?", "a/A"), DONE]
    scripted.scripts.update({"a/A": whole(b"".join(pieces)) if at_once else whole(*pieces), "b/B": whole(REST)})
    assert (await continuing.chat(ASKED)).body == CONTINUED


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_resilient_profile_continues(
    scripted: ScriptedUpstream, start_gateway: StartGateway, at_once: bool
) -> None:
    """What was held until the first meaningful event is part of the text, also where the whole answer was."""
    gateway = await start_gateway(AUTOPILOT_PROFILE="resilient")
    pieces = [BEGUN, b"data: {no JSON\n\n", DONE]
    scripted.scripts.update({"a/A": whole(b"".join(pieces)) if at_once else whole(*pieces), "b/B": whole(REST)})
    assert (await gateway.chat(ASKED)).body == CONTINUED
    scripted.scripts["b/B"] = CUT
    scripted.scripts["a/A"] = whole(REST)
    response = await gateway.chat(ASKED | {"model": "b/B, a/A"})
    assert ANNOUNCED.replace(b"b/B", b"a/A") in response.body


async def test_a_refused_prefill_is_restarted(scripted: ScriptedUpstream, continuing: Gateway) -> None:
    """With the client's own bytes; what the answer repeats is left out."""
    scripted.scripts["a/A"] = CUT
    repeated = event("Hel", "b/B"), event("lo, world", "b/B"), event(None, "b/B", "stop"), DONE
    scripted.scripts["b/B"] = in_turn(answer(b'{"object":"error"}', b"400 Bad Request"), whole(*repeated))
    assert (await continuing.chat(ASKED)).body == CONTINUED
    assert scripted.requests[2].body == json.dumps(ASKED).encode().replace(b"chutesai/AutoPilot", b"b/B")


async def test_a_restart_that_differs_ends_as_in_the_standard_profile(
    scripted: ScriptedUpstream, continuing: Gateway
) -> None:
    """Error event and cut behind the last whole event; the upstream's connection is closed."""
    scripted.scripts["a/A"] = CUT
    scripted.scripts["b/B"] = in_turn(answer(b"{}", b"400 Bad Request"), respond(CHUNKED + chunk(event("No", "b/B"))))
    client = await asked(continuing)
    await client.closed
    assert not client.received.endswith(LAST_CHUNK)
    body = read_response(client.received).body
    assert body.startswith(BEGUN + b"\n\ndata: ")
    assert json.loads(body[len(BEGUN) + 8 :])["error"]["code"] == "upstream_stream_truncated"
    await scripted.connections[-1].lost
    metrics = await continuing.metrics()
    assert metrics['streams_continued_total{outcome="failed"}'] == 1
    assert metrics['failover_reason_total{reason="continuation_refused"}'] == 1
    assert metrics['failover_reason_total{reason="continuation_unlike"}'] == 1
    assert (metrics["streams_cut_total"], metrics["requests_active"]) == (1, 0)


@pytest.mark.parametrize("path", ["front"], indirect=True)
async def test_a_stream_that_falls_silent_is_continued(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """After STREAM_IDLE_TIMEOUT_MS; the silent upstream is dropped."""
    gateway = await start_gateway(STREAM_CONTINUE="true", STREAM_IDLE_TIMEOUT_MS="500")
    sides: list[UpstreamSide] = []

    def stall(side: UpstreamSide) -> None:
        sides.append(side)
        respond(CHUNKED + chunk(BEGUN))(side)

    scripted.scripts.update({"a/A": stall, "b/B": whole(REST)})
    assert (await gateway.chat(ASKED)).body == CONTINUED
    await sides[0].lost


@pytest.mark.parametrize(
    "members",
    [{"model": "a/A"}, {"tools": [{"type": "function"}]}, {"response_format": {"type": "json_object"}}],
    ids=["one model", "tools", "JSON mode"],
)
async def test_what_cannot_be_continued_is_cut_as_ever(
    scripted: ScriptedUpstream, continuing: Gateway, members: dict[str, Any]
) -> None:
    """Its bytes as they came, half an event included, then error event and cut; nobody else is asked."""
    scripted.scripts["a/A"] = CUT
    client = await asked(continuing, ASKED | members)
    await client.closed
    assert read_response(client.received).body.startswith(BEGUN + b'data: {"id":"half\n\ndata: {"error"')
    assert len(scripted.requests) == 1


async def test_a_client_that_leaves_frees_the_model_that_would_go_on(
    scripted: ScriptedUpstream, continuing: Gateway
) -> None:
    """Its connection is closed, and the request is over."""
    sides: list[UpstreamSide] = []
    scripted.scripts.update({"a/A": CUT, "b/B": sides.append})
    client = await asked(continuing)
    await client.until(b"Hello")
    await scripted.when_asked(2)
    client.transport.abortConnection()
    await sides[0].lost
    metrics = await continuing.metrics()
    assert (metrics["requests_active"], metrics['requests_total{status="499"}']) == (0, 1)


async def test_the_request_is_held_until_its_stream_ends(scripted: ScriptedUpstream, continuing: Gateway) -> None:
    """And counts as held as long."""
    sides: list[UpstreamSide] = []
    scripted.scripts["a/A"] = sides.append
    body = ASKED | {"messages": [{"role": "user", "content": "x" * 100_000}]}
    client = await asked(continuing, body)
    await scripted.when_asked(1)
    sides[0].transport.write(CHUNKED + chunk(BEGUN))
    await client.until(b"Hello")
    assert (await continuing.metrics())["buffered_request_bytes"] == len(json.dumps(body))
    sides[0].transport.write(chunk(DONE) + LAST_CHUNK)
    await client.until(LAST_CHUNK)
    assert (await continuing.metrics())["buffered_request_bytes"] == 0


async def test_a_stop_asks_nobody_else(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """What its grace does not suffice for is cut with the error event."""
    gateway = await start_gateway(STREAM_CONTINUE="true", SHUTDOWN_GRACE_MS="1")
    scripted.scripts["a/A"] = respond(CHUNKED + chunk(BEGUN))
    client = await asked(gateway)
    await client.until(b"Hello")
    await gateway.service.stopService()
    await client.closed
    assert b'"code": "upstream_stream_truncated"' in client.received
    assert len(scripted.requests) == 1


async def test_the_openai_sdk_reads_one_answer(scripted: ScriptedUpstream, continuing: Gateway) -> None:
    """Its helper puts the chunks of both models together to one completion."""
    scripted.scripts.update({"a/A": CUT, "b/B": whole(event("", "b/B", role="assistant"), REST)})

    def ask() -> Any:
        with (
            openai.OpenAI(base_url=f"http://127.0.0.1:{continuing.port}/v1", api_key="x", max_retries=0) as client,
            client.chat.completions.stream(model=ASKED["model"], messages=ASKED["messages"]) as stream,
        ):
            return stream.get_final_completion()

    completion = await deferToThread(ask)
    choice = completion.choices[0]
    assert (completion.id, completion.model) == ("id-a/A", "a/A")
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello, world", "stop")


class TestChutesRoute:
    """The same with the operator's key."""

    @pytest.fixture
    def caller(self, scripted: ScriptedUpstream, start_gateway: StartGateway) -> Caller:
        environ = chutes_settings(scripted.url, STREAM_CONTINUE="true")
        return Caller(blockon(Deferred.fromCoroutine(start_gateway(**environ))))

    async def test_a_plain_stream_is_continued_and_not_signed(self, scripted: ScriptedUpstream, caller: Caller) -> None:
        """A signature speaks of one model's answer."""
        scripted.scripts.update({"a/A": CUT, "b/B": whole(REST)})
        response = await caller.post(ASKED)
        assert response.body == CONTINUED
        assert (await caller.get("/v1/signature/id-b/B")).status == 404
        assert (await caller.get("/v1/signature/id-a/A")).status == 404

    async def test_an_encrypted_stream_is_not(self, scripted: ScriptedUpstream, caller: Caller) -> None:
        """Nobody else is asked."""
        scripted.scripts["a/A"] = CUT
        sealing = await caller.new()
        client = await caller.gateway.connect()
        body = sealing.body(ASKED["model"], "Hello", stream=True)
        client.post(body, caller.authorization, *sealing.headers, target=CHAT)
        await client.closed
        assert len(scripted.requests) == 1
