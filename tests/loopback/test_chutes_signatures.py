"""Signatures and receipts of the Chutes route: over the very bytes on the wire, for the caller alone."""

import json
from hashlib import sha256
from typing import Any

import pytest
from loopback_peers import Response, ScriptedUpstream, StartGateway, answer, chunk, read_response, reset, respond
from pytest_twisted import blockon
from sealing_client import (
    CHAT,
    DONE,
    STREAM_HEAD,
    Caller,
    chunk_event,
    completion,
    echo,
    settings,
    streamed,
    whole,
)
from twisted.internet.defer import Deferred

from chutes_autopilot.e2ee.receipt import verify_receipt
from chutes_autopilot.e2ee.signing import verify

ALIAS = "chutesai/AutoPilot"
BOB = b"bob-token"


@pytest.fixture
def caller(scripted: ScriptedUpstream, start_gateway: StartGateway) -> Caller:
    """Alice, before a gateway in front of models that repeat what they are told."""
    scripted.scripts.update(dict.fromkeys(scripted.names, echo))
    return Caller(blockon(Deferred.fromCoroutine(start_gateway(**settings(scripted.url)))))


async def asked(caller: Caller, body: bytes, *headers: bytes) -> Response:
    """A whole exchange; its body without the chunks, and all of it was read."""
    client = await caller.gateway.connect()
    client.post(body, caller.authorization, *headers, target=CHAT)
    await client.complete()
    return read_response(client.received)


def plain_body(**members: Any) -> bytes:
    return json.dumps({"model": ALIAS, "messages": [{"role": "user", "content": "Hello"}], **members}).encode()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
async def test_the_signed_text_is_that_of_the_wire(
    scripted: ScriptedUpstream, caller: Caller, algo: str, encrypted: bool, stream: bool
) -> None:
    """Hash of the request's bytes as sent, a colon, hash of the answer's as they came; by a key of the report."""
    body, headers = plain_body(stream=stream), ()
    if encrypted:
        client = await caller.new("ecdsa" if algo == "ed25519" else "ed25519")
        body, headers = client.body(ALIAS, "Hello", stream=stream), client.headers
    response = await asked(caller, body, *headers)
    text = f"{sha256(body).hexdigest()}:{sha256(response.body).hexdigest()}"
    report = json.loads((await caller.get(f"/v1/attestation/report?signing_algo={algo}")).body)
    signed = json.loads((await caller.get(f"/v1/signature/chatcmpl-1?model=x&signing_algo={algo}")).body)
    assert (signed["text"], signed["signing_algo"]) == (text, algo)
    assert signed["signing_address"] == report["signing_address"]
    assert verify(algo, report["signing_address"], text, signed["signature"])
    given = json.loads((await caller.get(f"/v1/receipts/chatcmpl-1?signing_algo={algo}")).body)
    assert verify_receipt(given["receipt"], given["signature"], algo, report["signing_address"])
    assert isinstance(given["receipt"].pop("time"), int)
    assert given["receipt"] == {
        "version": 1,
        "id": "chatcmpl-1",
        "requested_model": ALIAS,
        "served_model": "a/A",
        "chute_id": scripted._entry("a/A")["chute_id"],
        "instance_id": None,
        "instance_key_sha256": None,
        "attestation": None,
        "evidence_sha256": None,
        "attempts": [{"model": "a/A", "outcome": "200"}],
        "request_sha256": sha256(body).hexdigest(),
        "response_sha256": sha256(response.body).hexdigest(),
    }


async def test_a_receipt_names_the_attempts_that_failed(scripted: ScriptedUpstream, caller: Caller) -> None:
    """In their order, each with its outcome."""
    scripted.scripts["a/A"] = reset
    scripted.scripts["b/B"] = answer(b"", b"503 Service Unavailable")
    await caller.post(plain_body())
    receipt = json.loads((await caller.get("/v1/receipts/chatcmpl-1")).body)["receipt"]
    assert receipt["attempts"] == [
        {"model": "a/A", "outcome": "upstream_connect_error"},
        {"model": "b/B", "outcome": "upstream_503"},
        {"model": "c/C", "outcome": "200"},
    ]


@pytest.mark.parametrize("kind", ["signature", "receipts"])
async def test_nobody_else_gets_them(caller: Caller, kind: str) -> None:
    """An id is no secret: another caller's question is answered as one for an id that never was."""
    await caller.post(plain_body())
    bob = Caller(caller.gateway, BOB)
    for stranger, chat_id in ((bob, "chatcmpl-1"), (caller, "chatcmpl-2")):
        response = await stranger.get(f"/v1/{kind}/{chat_id}")
        assert (response.status, response.error["message"]) == (404, "Chat id not found or expired")
    assert (await caller.get(f"/v1/{kind}/chatcmpl-1")).status == 200


async def test_the_same_id_of_two_callers_is_two_answers(caller: Caller) -> None:
    """The models choose the ids."""
    bob = Caller(caller.gateway, BOB)
    await caller.post(plain_body())
    await bob.post(plain_body(x=1))
    texts = [json.loads((await who.get("/v1/signature/chatcmpl-1")).body)["text"] for who in (caller, bob)]
    assert [text[:64] for text in texts] == [sha256(plain_body(**more)).hexdigest() for more in ({}, {"x": 1})]


async def test_the_oldest_is_forgotten(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """SIGNATURE_MAX_ENTRIES bounds what is kept."""
    caller = Caller(await start_gateway(**settings(scripted.url, SIGNATURE_MAX_ENTRIES="2")))
    for number in (1, 2, 3):
        scripted.scripts["a/A"] = whole(b'{"id":"%d"}' % number)
        await caller.post(plain_body())
    assert [(await caller.get(f"/v1/signature/{number}")).status for number in (1, 2, 3)] == [404, 200, 200]


@pytest.mark.parametrize(
    "script",
    [
        respond(STREAM_HEAD.replace(b"200 OK", b"201 Created") + chunk(chunk_event("x") + DONE) + b"0\r\n\r\n"),
        answer(b'{"id":"chatcmpl-1"}', b"400 Bad Request"),
        streamed(chunk_event("x")),
        respond(STREAM_HEAD, close=True),
        whole(b'{"x":"no id"}'),
    ],
    ids=["no 200", "an error", "cut", "no body", "no id"],
)
async def test_only_a_complete_answer_is_signed_for(scripted: ScriptedUpstream, caller: Caller, script: Any) -> None:
    """And only one that has an id to ask by."""
    scripted.scripts.update(dict.fromkeys(scripted.names, script))
    await asked(caller, plain_body(stream=True))
    assert (await caller.get("/v1/signature/chatcmpl-1")).status == 404


async def test_a_stream_that_the_client_leaves_is_not_signed_for(scripted: ScriptedUpstream, caller: Caller) -> None:
    """It did not get all that would be signed."""
    scripted.scripts["a/A"] = respond(STREAM_HEAD + chunk(chunk_event("x")))
    client = await caller.gateway.connect()
    client.post(plain_body(stream=True), caller.authorization, target=CHAT)
    await client.until(b"data: ")
    client.transport.abortConnection()
    await scripted.connections[-1].lost
    assert (await caller.get("/v1/signature/chatcmpl-1")).status == 404


@pytest.mark.parametrize(("trusted", "counts"), [("false", False), ("true", True)])
async def test_a_hash_that_the_client_names_is_signed_only_where_the_operator_says_so(
    scripted: ScriptedUpstream, start_gateway: StartGateway, trusted: str, counts: bool
) -> None:
    """E2EE_TRUST_REQUEST_HASH, and then only a hash in lower case."""
    scripted.scripts["a/A"] = streamed(chunk_event("x"), DONE)
    caller = Caller(await start_gateway(**settings(scripted.url, E2EE_TRUST_REQUEST_HASH=trusted)))
    for said, believed in ((b"ab" * 32, counts), (b"AB" * 32, False), (b"ab" * 31, False)):
        await caller.post(plain_body(), b"X-Request-Hash: " + said)
        text = json.loads((await caller.get("/v1/signature/chatcmpl-1")).body)["text"]
        assert text.partition(":")[0] == (said.decode() if believed else sha256(plain_body()).hexdigest())


async def test_plain_requests_need_no_keys(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """Where the guest agent has yet to give them: an answer that cannot be signed for is an answer all the same."""
    environ = {"E2EE_KEY_SOURCE": "dstack", "DSTACK_SIMULATOR_ENDPOINT": "http://127.0.0.1:1"}
    caller = Caller(await start_gateway(**settings(scripted.url, **environ)))
    scripted.scripts["a/A"] = whole(completion("Hello"))
    client = await caller.gateway.connect()
    for count in (1, 2):  # the first answer leaves the connection as it should be
        client.post(plain_body(), caller.authorization, target=CHAT)
        await client.until(completion("Hello"), count)
    assert (await caller.get("/v1/signature/chatcmpl-1")).status == 404
    assert (await caller.get("/v1/attestation/report")).error["code"] == "attestation_unavailable"
    sealed = await caller.post(plain_body(), b"X-Signing-Algo: ecdsa")
    assert (sealed.status, sealed.error["code"]) == (503, "attestation_unavailable")
