"""Encrypted requests over real connections: what the client, the upstream and everybody in between see of them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from loopback_peers import Gateway, Script, ScriptedUpstream, StartGateway, answer, chunk, read_response, reset, respond
from pytest_twisted import blockon
from sealing_client import (
    CHAT,
    DONE,
    STREAM_HEAD,
    Caller,
    answers_in,
    chunk_event,
    completion,
    echo,
    settings,
    streamed,
    whole,
)
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import formatEvent, globalLogPublisher

ALIAS = "chutesai/AutoPilot"
MARKER = "Top|Secret"
ERROR_EVENT = b'data: {"error":{"message":"Top|Secret"}}\n\n'


@pytest.fixture
def caller(scripted: ScriptedUpstream, start_gateway: StartGateway) -> Caller:
    """Alice, before a gateway in front of models that repeat what they are told."""
    scripted.scripts.update(dict.fromkeys(scripted.names, echo))
    gateway: Gateway = blockon(Deferred.fromCoroutine(start_gateway(**settings(scripted.url))))
    return Caller(gateway)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Everything that is logged, in every form."""
    lines: list[str] = []

    def observe(event: Any) -> None:
        lines.append(f"{formatEvent(event)} {event} {event.get('record')}")

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
async def test_prompt_and_answer_are_sealed_between_client_and_service(
    scripted: ScriptedUpstream, caller: Caller, algo: str, version: int, stream: bool
) -> None:
    """A client that owes nothing to our code opens the answer of a model that was asked in clear."""
    client = await caller.new(algo, version)
    body = json.loads(client.body(ALIAS, "Be brief.", "Say Grüße, 世界.", stream=stream, temperature=0.70))
    body["messages"][0] |= {"role": "system", "tool_calls": [], "name": "x"}
    response = await caller.sealed(client, json.dumps(body).encode(), b"Cookie: id=1")
    (seen,) = scripted.requests
    assert json.loads(seen.body) == {
        "model": "a/A",
        "messages": [
            {"role": "system", "content": "Be brief.", "name": "x"},
            {"role": "user", "content": "Say Grüße, 世界."},
        ],
        "stream": stream,
        "temperature": 0.7,
    }
    assert {name.lower() for name, _ in seen.headers} == {
        b"host",
        b"content-length",
        b"content-type",
        b"accept",
        b"accept-encoding",
        b"authorization",
        b"user-agent",
    }
    assert client.texts(response.body)["0 content"] == "Say Grüße, 世界."
    assert {(one["id"], one["model"]) for one in answers_in(response.body)} == {("chatcmpl-1", "served")}
    expected = [
        ("cache-control", "no-store"),
        ("content-type", "text/event-stream; charset=utf-8" if stream else "application/json"),
        ("x-e2ee-applied", "true"),
        ("x-e2ee-version", str(version)),
        ("x-e2ee-alg", algo),
        ("x-e2ee-algo", algo),
        ("x-e2ee-uncovered", "reject"),
        ("x-chutes-autopilot-selected", "a/A"),
        ("x-chutes-autopilot-attempts", "1"),
        ("x-accel-buffering", "no") if stream else ("content-length", str(len(response.body))),
        *([("transfer-encoding", "chunked")] if stream else []),
    ]
    assert sorted(header for header in response.headers if header[0] not in ("date", "x-request-id")) == sorted(
        expected
    )
    assert response.status == 200


EARLY_FAULTS: dict[str, tuple[Script, int, str]] = {
    "503": (answer(b"Top|Secret", b"503 Service Unavailable"), 503, "upstream_503"),
    "reset": (reset, 502, "upstream_connect_error"),
    "error event": (streamed(ERROR_EVENT), 502, "upstream_error"),
    "no JSON": (streamed(b"data: Top|Secret\n\n"), 502, "e2ee_encryption_failed"),
    "no chat": (whole(b'{"x":"Top|Secret"}'), 502, "e2ee_encryption_failed"),
    "cut": (streamed(b": Top|Secret\n\n", end=b"", close=True), 502, "upstream_first_body_byte_error"),
    "no event": (streamed(b": Top|Secret\n\n"), 502, "upstream_stream_truncated"),
    "coded": (answer(b"Top|Secret", b"200 OK", b"Content-Encoding: gzip"), 502, "e2ee_encryption_failed"),
}


@pytest.mark.parametrize(("script", "status", "code"), EARLY_FAULTS.values(), ids=EARLY_FAULTS)
async def test_a_fault_before_the_first_sealed_byte_fails_over(
    scripted: ScriptedUpstream, caller: Caller, script: Script, status: int, code: str
) -> None:
    """The client sees the next candidate's answer; of the last candidate, an error without the upstream's words."""
    scripted.scripts["a/A"] = script
    client, other = await gatherResults([Deferred.fromCoroutine(caller.new()) for _ in range(2)])
    response = await caller.sealed(client, client.body(ALIAS, "Hello", stream=True))
    assert client.texts(response.body) == {"0 content": "Hello"}
    assert response.header("x-chutes-autopilot-attempts") == "2"
    response = await caller.sealed(other, other.body("a/A", "Hello", stream=True))
    assert (response.status, response.error["code"]) == (status, code)
    assert response.header("x-e2ee-applied") == "false"
    assert MARKER not in str(response)


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        (respond(chunk(ERROR_EVENT + DONE) + b"0\r\n\r\n"), "upstream_error"),
        (respond(chunk(b"data: Top|Secret\n\n")), "e2ee_encryption_failed"),
        (respond(b"0\r\n\r\n"), "upstream_stream_truncated"),
        (reset, "upstream_stream_truncated"),
    ],
    ids=["error event", "no JSON", "no end mark", "reset"],
)
async def test_a_fault_after_it_is_told_and_the_connection_cut(
    scripted: ScriptedUpstream, caller: Caller, rest: Script, code: str
) -> None:
    """No end mark and no last chunk: a cut answer looks cut."""
    scripted.scripts["a/A"] = respond(STREAM_HEAD + chunk(chunk_event("Hello")))
    sealing = await caller.new()
    client = await caller.gateway.connect()
    client.post(sealing.body(ALIAS, "x", stream=True), caller.authorization, *sealing.headers, target=CHAT)
    await client.until(b"data: ")
    rest(scripted.connections[-1])
    await client.closed
    last = client.received.split(b"\r\n")[-2]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == code
    assert b"[DONE]" not in client.received
    assert MARKER.encode() not in client.received
    assert len(scripted.requests) == 1
    assert (await caller.gateway.metrics())["streams_cut_total"] == 1


async def test_the_end_mark_ends_an_answer_whose_upstream_stays(scripted: ScriptedUpstream, caller: Caller) -> None:
    """The client's connection is free again for its next request."""
    scripted.scripts["a/A"] = streamed(chunk_event("Hello"), DONE, end=b"")
    sealing = await caller.new()
    client = await caller.gateway.connect()
    client.post(sealing.body(ALIAS, "x", stream=True), caller.authorization, *sealing.headers, target=CHAT)
    await client.until(b"0\r\n\r\n")
    client.transport.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    await client.until(b"\r\n\r\nok")


async def test_an_upstreams_error_is_told_in_our_own_words(scripted: ScriptedUpstream, caller: Caller) -> None:
    """Its status, code and Retry-After reach the client; its text may repeat the prompt."""
    body = b'{"error":{"code":"rate_limit_exceeded","message":"Top|Secret"}}'
    scripted.scripts["a/A"] = answer(body, b"429 Top|Secret", b"Retry-After: 7", b"X-Said: Top|Secret")
    client = await caller.new()
    response = await caller.sealed(client, client.body(ALIAS, MARKER))
    assert (response.status, response.header("retry-after")) == (429, "7")
    assert (response.error["type"], response.error["code"]) == ("upstream_error", "rate_limit_exceeded")
    assert response.header("x-e2ee-applied") == "false"
    assert MARKER not in str(response)


@pytest.mark.parametrize(
    ("setting", "value", "text", "outcome"),
    [
        ("E2EE_MAX_RESPONSE_BYTES", "3000", "x" * 3000, "upstream_response_too_large"),
        ("E2EE_MAX_EVENT_BYTES", "2000", "x" * 2000, "e2ee_encryption_failed"),
    ],
)
async def test_what_is_sealed_is_bounded(
    scripted: ScriptedUpstream, start_gateway: StartGateway, setting: str, value: str, text: str, outcome: str
) -> None:
    """By the operator."""
    stream = setting == "E2EE_MAX_EVENT_BYTES"
    scripted.scripts["a/A"] = streamed(chunk_event(text)) if stream else whole(completion(text))
    caller = Caller(await start_gateway(**settings(scripted.url, **{setting: value})))
    client = await caller.new()
    response = await caller.sealed(client, client.body("a/A", "Hello", stream=stream))
    assert response.error["code"] == outcome


async def test_what_cannot_be_encrypted_passes_only_where_the_operator_says_so(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """E2EE_UNCOVERED_FIELDS=clear; and the pieces of a stream are gathered where he says that."""
    environ = {"E2EE_UNCOVERED_FIELDS": "clear", "E2EE_STREAM_COALESCE_MS": "5000"}
    caller = Caller(await start_gateway(**settings(scripted.url, **environ)))
    scripted.scripts["a/A"] = whole(completion("Hello", tool_calls=[{"id": MARKER}]))
    scripted.scripts["b/B"] = streamed(*map(chunk_event, "Hello"), DONE)
    client = await caller.new()
    response = await caller.sealed(client, client.body("a/A", "Hello", tools=[{"type": "function"}]))
    assert MARKER in response.body.decode()
    assert response.header("x-e2ee-uncovered") == "clear"
    client = await caller.new()
    response = await caller.sealed(client, client.body("b/B", "Hello", stream=True))
    assert (client.texts(response.body), len(answers_in(response.body))) == ({"0 content": "Hello"}, 1)


async def test_many_fields_do_not_hold_the_reactor(scripted: ScriptedUpstream, caller: Caller) -> None:
    """While 256 ECDSA fields are opened, other requests are answered."""
    sealing = await caller.new("ecdsa")
    body = sealing.body(ALIAS, *["Hello"] * 256)
    client = await caller.gateway.connect()
    client.post(body, caller.authorization, *sealing.headers, target=CHAT)
    for _ in range(5):
        assert (await caller.gateway.get("/healthz")).status == 200
        assert not scripted.requests
    await client.complete()
    response = read_response(client.received)
    assert sealing.texts(response.body)["0 content"] == "Hello"


async def test_a_client_that_leaves_before_it_is_understood_asks_nobody(
    scripted: ScriptedUpstream, caller: Caller
) -> None:
    """While its fields are opened."""
    sealing = await caller.new("ecdsa")
    client = await caller.gateway.connect()
    client.post(sealing.body(ALIAS, *["Hello"] * 100), caller.authorization, *sealing.headers, target=CHAT)
    pool = caller.gateway.reactor.getThreadPool()
    while not pool.working:
        await caller.gateway.get("/healthz")
    client.transport.abortConnection()
    while pool.working:
        await caller.gateway.get("/healthz")
    assert (await caller.gateway.get("/readyz")).status == 200
    assert not scripted.requests


async def test_no_text_is_told_to_anybody_else(scripted: ScriptedUpstream, caller: Caller, logged: list[str]) -> None:
    """Prompt and answer stand in no log, no metric, no error and no other byte, however the exchange ends."""
    told = []
    for script in (echo, *(script for script, _, _ in EARLY_FAULTS.values())):
        scripted.scripts["a/A"] = script
        for stream in (True, False):
            client = await caller.new()
            response = await caller.sealed(client, client.body("a/A", MARKER, stream=stream))
            told.append(str(response))
            if script is echo:
                assert MARKER in client.texts(response.body)["0 content"]
    client = await caller.new()
    plain = json.dumps({"model": "a/A", "messages": [{"role": "user", "content": MARKER}]}).encode()
    told.append(str(await caller.sealed(client, plain)))
    told.append(str(await caller.sealed(client, plain[:-1])))
    metrics = (await caller.gateway.get("/metrics")).body.decode()
    for text in (*told, metrics, *logged):
        for secret in (
            MARKER,
            MARKER.encode().hex(),
            "alice-token",
            "cpk_operator",
            client.nonce,
            client.key.wire.hex(),
        ):
            assert secret not in text
    assert sum("request id=" in line for line in logged) == 20
