"""The endpoints beside chat: completions routed like it, embeddings by names, responses and messages as they came."""

import json
from pathlib import Path
from typing import Any

import pytest
from loopback_peers import (
    Gateway,
    ScriptedUpstream,
    StartGateway,
    answer,
    chunk,
    read_response,
    respond,
    silent,
)
from twisted.internet.error import ConnectionDone

ALIAS = "chutesai/AutoPilot"
BUSY = answer(b"busy", b"503 Service Unavailable")
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES = (
    b"/v1/" + name for name in (b"completions", b"embeddings", b"responses", b"messages")
)
TEXT = b'data: {"object":"text_completion","choices":[{"index":0,"text":"a","finish_reason":null}]}\n\n'
DELTA = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n'
COMPLETED = b"event: response.completed\ndata: {" + b'"x":"%b"' % (b"x" * 5000) + b',"type":"response.completed"}\n\n'
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


async def test_completions_are_routed_like_chat(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """The alias fails over, only ``model`` changes on the way, and the client then keeps the model that answered."""
    scripted.scripts["a/A"] = BUSY
    body = b'{ "model" : "chutesai/AutoPilot", "prompt": "p" }'
    response = await gateway.chat(body, b"Authorization: Bearer k", target=COMPLETIONS + b"?a=%20b")
    assert (response.status, response.body) == (200, b'{"from":"b/B"}')
    assert response.header("x-chutes-autopilot-selected") == "b/B"
    assert response.header("x-chutes-autopilot-attempts") == "2"
    seen = scripted.requests[1]
    assert seen.body == body.replace(ALIAS.encode(), b"b/B")
    assert seen.head.startswith(b"POST /v1/completions?a=%20b HTTP/1.1\r\n")
    del scripted.scripts["a/A"]
    await gateway.chat({"model": ALIAS, "prompt": "p"}, b"Authorization: Bearer k", target=COMPLETIONS)
    assert scripted.requests[2].model == "b/B"
    metrics = await gateway.metrics()
    assert metrics['endpoint_requests_total{endpoint="completions"}'] == 2
    assert (metrics['requests_total{status="200"}'], metrics["requests_active"]) == (2, 0)


async def test_a_plan_for_completions_counts_the_longest_prompt(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Each of many prompts has a context of its own; what is too long for all names the parameter at fault."""
    scripted.offers = {name: {"context_length": 2000 if name == "a/A" else 100} for name in scripted.names}
    gateway = await start_gateway()
    many: Any = {"model": ALIAS, "prompt": ["x" * 300] * 100}
    assert (await gateway.chat(many, target=COMPLETIONS)).header("x-chutes-autopilot-selected") == "a/A"
    assert scripted.requests[0].model == "a/A"
    refused = await gateway.chat({"model": ALIAS, "prompt": "x" * 25_000}, target=COMPLETIONS)
    assert (refused.status, refused.error["code"], refused.error["param"]) == (400, "no_capable_candidate", "prompt")


@pytest.mark.parametrize(
    ("target", "whole"),
    [
        (COMPLETIONS, TEXT + b"data: [DONE]\n\n"),
        (RESPONSES, DELTA + COMPLETED),
        (MESSAGES, PING + STOP),
    ],
)
async def test_a_whole_stream_passes_and_a_truncated_one_is_cut(
    scripted: ScriptedUpstream, gateway: Gateway, target: bytes, whole: bytes
) -> None:
    """Each by its own last event; behind a truncated stream an error event and no end."""
    scripted.scripts["a/A"] = respond(STREAM + chunk(whole) + LAST_CHUNK)
    client = await gateway.connect()
    client.post(b'{"model":"a/A","stream":true}', target=target)
    assert read_response(await client.until(LAST_CHUNK)).body == whole
    part = whole[: whole.index(b"\n\n") + 2]
    scripted.scripts["a/A"] = respond(STREAM + chunk(part) + LAST_CHUNK)
    client = await gateway.connect()
    client.post(b'{"model":"a/A","stream":true}', target=target)
    assert await client.closed is ConnectionDone
    assert not client.received.endswith(LAST_CHUNK)
    body = read_response(client.received).body
    assert body.startswith(part)
    error = json.loads(body.rpartition(b"data: ")[2])
    assert error["error"]["code"] == "upstream_stream_truncated"
    assert (await gateway.metrics())["streams_cut_total"] == 1


@pytest.mark.parametrize("target", [RESPONSES, MESSAGES])
async def test_one_model_by_name_is_forwarded_as_it_came(
    scripted: ScriptedUpstream, gateway: Gateway, target: bytes
) -> None:
    """Body, query and the headers by which its API knows client and version; the upstream's answer passes."""
    scripted.scripts["b/B"] = answer(b"no such path", b"404 Not Found", b"X-Mine: 1")
    body = b'{"model":"b\\/B", "max_tokens":1}'
    response = await gateway.chat(
        body, b"X-Api-Key: k", b"Anthropic-Version: 2023-06-01", target=target + b"?beta=true"
    )
    (seen,) = scripted.requests
    assert (response.status, response.body, response.header("x-mine")) == (404, b"no such path", "1")
    assert seen.body == body
    assert seen.head.startswith(b"POST " + target + b"?beta=true HTTP/1.1\r\n")
    assert {(b"X-Api-Key", b"k"), (b"Anthropic-Version", b"2023-06-01")} <= set(seen.headers)


@pytest.mark.parametrize("target", [RESPONSES, MESSAGES])
@pytest.mark.parametrize("model", [ALIAS, ALIAS + ":tee", "a/A,b/B", "house/one"])
async def test_what_has_to_be_rewritten_is_refused_there(
    scripted: ScriptedUpstream, start_gateway: StartGateway, tmp_path: Path, target: bytes, model: str
) -> None:
    """An alias, a list, an alias of the operator's: a 400 that names path and parameter, and nobody is asked."""
    (tmp_path / "aliases.json").write_text('{"house/one": ["a/A"]}')
    gateway = await start_gateway(ALIASES_FILE=str(tmp_path / "aliases.json"))
    response = await gateway.chat({"model": model}, target=target)
    assert (response.status, response.error["code"], response.error["param"]) == (400, "invalid_model", "model")
    assert target.decode() in response.error["message"]
    assert not scripted.requests


async def test_failures_there_are_not_held_against_a_model_in_chat(
    scripted: ScriptedUpstream, gateway: Gateway
) -> None:
    """A model that fails at an API it does not have answers chat all the same."""
    scripted.scripts["a/A"] = answer(b"", b"500 Internal Server Error")
    for _ in range(3):
        await gateway.chat({"model": "a/A"}, target=MESSAGES)
    del scripted.scripts["a/A"]
    assert (await gateway.chat({"model": ALIAS})).header("x-chutes-autopilot-selected") == "a/A"


async def test_without_a_place_for_embeddings_there_are_none(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """404 names the setting; the method is judged first."""
    response = await gateway.chat({"model": "a/A", "input": "x"}, target=EMBEDDINGS)
    assert (response.status, response.error["code"]) == (404, "not_found")
    assert "EMBEDDINGS_BASE_URL" in response.error["message"]
    assert not scripted.requests


async def test_embeddings_go_where_the_operator_says(
    scripted: ScriptedUpstream, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Names are not looked up in the catalog of chat; lists and the operator's own fail over and are not sticky."""
    (tmp_path / "aliases.json").write_text('{"house/embed": ["e/One", "e/Two"], "house/tee": ":tee"}')
    gateway = await start_gateway(
        EMBEDDINGS_BASE_URL=scripted.url + "/embed/", ALIASES_FILE=str(tmp_path / "aliases.json")
    )
    direct = await gateway.chat(b'{"model":"e\\/One","input":"x"}', target=EMBEDDINGS)
    assert (direct.body, direct.header("x-chutes-autopilot-selected")) == (b'{"from":"e/One"}', None)
    assert scripted.requests[0].head.startswith(b"POST /embed/v1/embeddings HTTP/1.1\r\n")
    assert scripted.requests[0].body == b'{"model":"e\\/One","input":"x"}'
    for model in ("e/One, e/Two", "house/embed"):
        scripted.scripts["e/One"] = BUSY
        response = await gateway.chat({"model": model}, b"Authorization: Bearer k", target=EMBEDDINGS)
        assert response.header("x-chutes-autopilot-selected") == "e/Two"
        del scripted.scripts["e/One"]
        response = await gateway.chat({"model": model}, b"Authorization: Bearer k", target=EMBEDDINGS)
        assert response.header("x-chutes-autopilot-selected") == "e/One"
    asked = len(scripted.requests)
    for model in (ALIAS, f"e/One,{ALIAS}", "house/tee"):
        refused = await gateway.chat({"model": model}, target=EMBEDDINGS)
        assert (refused.status, refused.error["code"], refused.error["param"]) == (400, "invalid_model", "model")
    assert len(scripted.requests) == asked
    assert (await gateway.chat({"model": "e/One"})).error["code"] == "unknown_model"
    metrics = await gateway.metrics()
    assert metrics['endpoint_requests_total{endpoint="embeddings"}'] == 8
    assert metrics['selection_total{model="other",status="200"}'] == 5


async def test_the_limits_of_chat_hold(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """Requests in flight are counted together, a body that is too large is refused unread and counted by its path,
    and a client that leaves takes its upstream with it."""
    gateway = await start_gateway(MAX_INFLIGHT_REQUESTS="1", MAX_REQUEST_BYTES="100")
    scripted.scripts["a/A"] = silent
    client = await gateway.connect()
    client.post(b'{"model":"a/A","stream":true}', target=COMPLETIONS)
    await scripted.when_asked(1)
    for target in (MESSAGES, b"/v1/chat/completions"):
        assert (await gateway.chat({"model": "b/B"}, target=target)).error["code"] == "overloaded"
    client.transport.abortConnection()
    await scripted.connections[-1].lost
    assert (await gateway.chat(b"{" + b" " * 200, target=RESPONSES)).error["code"] == "request_too_large"
    metrics = await gateway.metrics()
    assert metrics['requests_total{status="499"}'] == 1
    told = {name: metrics[f'endpoint_requests_total{{endpoint="{name}"}}'] for name in ("completions", "responses")}
    assert told == {"completions": 1, "responses": 1}
    assert metrics["requests_active"] == 0


async def test_a_client_with_an_api_key_is_known_by_it(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """Messages come without Authorization: the record of such a request is for the key that sent it alone."""
    await gateway.chat({"model": "a/A"}, b"X-Api-Key: alice", b"X-Request-Id: m1", target=MESSAGES)
    told = json.loads((await gateway.get("/v1/autopilot/decisions/m1", b"X-Api-Key: alice")).body)
    assert (told["endpoint"], told["mode"], told["selected"]) == ("messages", "direct", "a/A")
    for other in (b"X-Api-Key: bob", b"X-Y: z"):
        assert (await gateway.get("/v1/autopilot/decisions/m1", other)).status == 404
