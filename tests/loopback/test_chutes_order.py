"""What the Chutes route refuses, in its order, before anything is asked of the upstream."""

import json
from collections.abc import Callable
from time import time
from typing import Any

import pytest
from loopback_peers import Gateway, Response, ScriptedUpstream, StartGateway, read_response
from sealing_client import AS_ALICE, CHAT, TOKEN, Caller, SealingClient, settings

MODEL = "a/A"
PLAIN = b'{"model":"a/A","messages":[]}'
POST = CHAT.decode()
GETS = ["/v1/chutes/models", "/v1/attestation/report", "/v1/signature/x", "/v1/receipts/x"]
LOCAL = b"Host: localhost:8080"


def code_of(response: Response) -> tuple[int, str]:
    """Status and code, once the shape is right: the type is the code."""
    error = response.error
    assert error["type"] == error["code"]
    assert error["message"]
    return response.status, error["code"]


async def ask(gateway: Gateway, path: str, body: bytes, *headers: bytes) -> Response:
    """A request with no other headers than these and what HTTP needs."""
    method = b"POST" if path == POST else b"GET"
    lines = [method + b" " + path.encode() + b" HTTP/1.1", b"Connection: close", b"Content-Length: %d" % len(body)]
    client = await gateway.connect()
    client.transport.write(b"\r\n".join([*lines, *headers]) + b"\r\n\r\n" + body)
    await client.closed
    return read_response(client.received)


async def refused(gateway: Gateway, scripted: ScriptedUpstream, path: str, *headers: bytes) -> tuple[int, str]:
    """Status and code of a refusal of which the upstream hears nothing."""
    response = await ask(gateway, path, PLAIN if path == POST else b"", *headers)
    assert not scripted.requests
    return code_of(response)


async def test_a_disabled_route_says_so_on_every_path(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """Whoever asks, with whatever."""
    gateway = await start_gateway(CHUTES_API_KEY="cpk_operator", TOKEN=TOKEN.decode())
    for path in [POST, *GETS]:
        for headers in ([b"Host: x"], [b"Host: x", AS_ALICE, b"X-E2EE-Nonce: 1"]):
            response = await ask(gateway, path, b"{", *headers)
            assert code_of(response) == (503, "chutes_disabled")
            assert response.header("x-e2ee-applied") == "false"
    assert not scripted.requests


@pytest.mark.parametrize("framing", [b"Content-Length: 999", b"Transfer-Encoding: chunked"])
async def test_a_stranger_is_not_told_that_the_body_is_too_large(
    scripted: ScriptedUpstream, start_gateway: StartGateway, framing: bytes
) -> None:
    """Who may ask is judged before the size, also where the size is known first; every answer says it is in clear."""
    for environ, token, expected in (
        ({"CHUTES_API_KEY": "cpk_operator"}, AS_ALICE, (503, "chutes_disabled")),
        (settings(scripted.url), b"Authorization: Bearer wrong", (401, "invalid_api_key")),
        (settings(scripted.url), AS_ALICE, (413, "request_too_large")),
    ):
        gateway = await start_gateway(**{**environ, "MAX_REQUEST_BYTES": "100"})
        client = await gateway.connect()
        client.transport.write(b"\r\n".join([b"POST " + CHAT + b" HTTP/1.1", b"Host: x", token, framing, b"", b""]))
        client.transport.write(b"c8\r\n" + b"x" * 200)
        await client.complete()
        response = read_response(client.received)
        assert (response.status, response.error["code"]) == expected
        assert response.header("x-e2ee-applied") == "false"
    assert not scripted.requests


async def test_without_the_operators_key_only_what_needs_none_is_served(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """And the AutoPilot route is, as ever."""
    gateway = await start_gateway(**settings(scripted.url, CHUTES_API_KEY=""))
    misconfigured = (503, "chutes_misconfigured")
    for headers in ([b"Host: x"], [b"Host: x", AS_ALICE]):
        assert await refused(gateway, scripted, POST, *headers) == misconfigured
        assert await refused(gateway, scripted, "/v1/chutes/models", *headers) == misconfigured
    assert (await Caller(gateway).get("/v1/attestation/report")).status == 200
    assert (await Caller(gateway).get("/v1/signature/x")).status == 404
    assert (await gateway.chat({"model": MODEL})).status == 200


async def test_without_a_token_only_this_machine_is_served(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """No proxy, and no page in a browser; then anybody, where the operator says so."""
    gateway = await start_gateway(**settings(scripted.url, TOKEN=""))
    for headers in (
        [b"Host: chutes.example.org"],
        [LOCAL, b"X-Forwarded-For: 127.0.0.1"],
        [LOCAL, b"Origin: http://localhost"],
        [LOCAL, b"Via: 1.1 x"],
    ):
        for path in [POST, *GETS]:
            assert await refused(gateway, scripted, path, *headers) == (503, "chutes_misconfigured")
    assert (await ask(gateway, POST, PLAIN, LOCAL)).status == 200
    gateway = await start_gateway(**settings(scripted.url, TOKEN="", CHUTES_ALLOW_ANONYMOUS="true"))
    assert (await ask(gateway, POST, PLAIN, b"Host: x", b"Origin: http://y")).status == 200


@pytest.mark.parametrize("path", [POST, *GETS])
async def test_a_wrong_token_is_refused(scripted: ScriptedUpstream, start_gateway: StartGateway, path: str) -> None:
    """With the challenge of RFC 9110 section 11.6.1, before anything of the request is looked at."""
    gateway = await start_gateway(**settings(scripted.url))
    for headers in ([], [b"Authorization: Bearer cpk_operator"], [AS_ALICE + b"x"]):
        headers = [b"Host: x", b"X-E2EE-Nonce: 1", b"Content-Encoding: gzip", *headers]
        response = await ask(gateway, path, b"", *headers)
        assert code_of(response) == (401, "invalid_api_key")
        assert response.header("www-authenticate") == "Bearer"
    assert not scripted.requests


Change = Callable[[SealingClient, dict[str, bytes]], Any]


def sealed_with(texts: tuple[str, ...] = ("Hello",), **members: Any) -> Change:
    return lambda client, headers: client.body(MODEL, *texts, **members)


def with_header(name: str, value: bytes | None) -> Change:
    """A good body behind one header that is another or missing."""

    def change(client: SealingClient, headers: dict[str, bytes]) -> bytes:
        headers.pop(name, None)
        if value is not None:
            headers[name] = value
        return client.body(MODEL, "Hello")

    return change


def with_messages(*messages: Any, **members: Any) -> Change:
    """Messages whose contents are not all sealed."""
    return lambda client, headers: json.dumps({"model": MODEL, "messages": messages, **members}).encode()


def with_old_time(client: SealingClient, headers: dict[str, bytes]) -> bytes:
    client.timestamp = int(time()) - 400
    headers["X-E2EE-Timestamp"] = b"%d" % client.timestamp
    return client.body(MODEL, "Hello")


def with_other_model(client: SealingClient, headers: dict[str, bytes]) -> bytes:
    return client.body("b/B", "Hello").replace(b"b/B", b"a/A")


def with_bad_second(client: SealingClient, headers: dict[str, bytes]) -> bytes:
    body = json.loads(client.body(MODEL, "Hello", "you"))
    body["messages"][1]["content"] = body["messages"][0]["content"]
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        (with_header("Content-Encoding", b"gzip"), 415, "unsupported_content_encoding"),
        (with_header("X-Client-Pub-Key", None), 400, "e2ee_header_missing"),
        (with_header("X-Signing-Algo", b"rsa"), 400, "e2ee_invalid_signing_algo"),
        (with_header("X-Client-Pub-Key", b"ff" * 32), 400, "e2ee_invalid_public_key"),
        (with_header("X-Client-Pub-Key", b"01" + b"00" * 31), 400, "e2ee_invalid_public_key"),
        (with_header("X-Model-Pub-Key", b"00" * 32), 400, "e2ee_model_key_mismatch"),
        (with_header("X-E2EE-Version", b"3"), 400, "e2ee_invalid_version"),
        (with_header("X-E2EE-Nonce", b"short"), 400, "e2ee_invalid_nonce"),
        (with_header("X-E2EE-Nonce", b"a" * 16 + b"\r\nX-E2EE-Nonce: " + b"a" * 16), 400, "invalid_e2ee_request"),
        (with_header("X-E2EE-Timestamp", b"+1700000000"), 400, "e2ee_invalid_timestamp"),
        (lambda client, headers: b'{"model":"a/A","x":NaN}', 400, "invalid_json"),
        (lambda client, headers: b'["a/A"]', 400, "invalid_body"),
        (with_messages({"role": "user", "content": "00"}), 400, "e2ee_decryption_failed"),
        (lambda client, headers: client.body("a|A", "Hello"), 400, "invalid_e2ee_request"),
        (with_messages(), 400, "invalid_e2ee_request"),
        (with_messages({"role": "user", "content": "Hello"}), 400, "invalid_e2ee_request"),
        (sealed_with(tools=[{"type": "function"}]), 400, "e2ee_uncovered_field"),
        (with_old_time, 400, "e2ee_invalid_timestamp"),
        (with_messages(*[{"role": "user", "content": "00"}] * 4), 413, "e2ee_too_many_fields"),
        (with_other_model, 400, "e2ee_decryption_failed"),
        (with_bad_second, 400, "e2ee_decryption_failed"),
    ],
)
async def test_a_bad_encrypted_request_costs_no_upstream_call(
    scripted: ScriptedUpstream, start_gateway: StartGateway, change: Change, status: int, code: str
) -> None:
    """Each fault has its code, and is counted."""
    gateway = await start_gateway(**settings(scripted.url, E2EE_MAX_FIELDS="3"))
    client = await Caller(gateway).new()
    headers = {name.decode(): value for name, _, value in (line.partition(b": ") for line in client.headers)}
    body = change(client, headers)
    lines = [name.encode() + b": " + value for name, value in headers.items()]
    response = await ask(gateway, POST, body, b"Host: x", AS_ALICE, *lines)
    assert (response.status, response.error["code"]) == (status, code)
    assert response.header("x-e2ee-applied") == "false"
    assert not scripted.requests
    assert (await gateway.metrics())[f'requests_total{{status="{status}"}}'] == 1


async def test_the_first_fault_in_the_order_answers(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """A request with every fault loses one after the other."""
    gateway = await start_gateway(**settings(scripted.url, E2EE_MAX_FIELDS="3"))
    client = await Caller(gateway).new()
    codes = []
    for mended in range(9):
        wrong = [mended <= number for number in range(8)]
        now = int(time()) - (400 if wrong[6] else 0)
        headers = [
            b"Authorization: Bearer " + (b"nobody" if wrong[0] else TOKEN),
            b"Content-Encoding: " + (b"gzip" if wrong[1] else b"identity"),
            *client.headers[1:3],
            b"X-Signing-Algo: " + (b"rsa" if wrong[2] else b"ed25519"),
            b"X-E2EE-Nonce: " + client.nonce.encode(),
            b"X-E2EE-Timestamp: %d" % now,
        ]
        body = {
            "model": "a|A" if wrong[4] else MODEL,
            "tools": [1] if wrong[5] else [],
            "messages": [{"role": "user", "content": "00"}] * (4 if wrong[7] else 1),
        }
        text = json.dumps(body)[: -1 if wrong[3] else None].encode()
        codes.append((await ask(gateway, POST, text, b"Host: x", *headers)).error["code"])
    assert codes == [
        "invalid_api_key",
        "unsupported_content_encoding",
        "e2ee_invalid_signing_algo",
        "invalid_json",
        "invalid_e2ee_request",
        "e2ee_uncovered_field",
        "e2ee_invalid_timestamp",
        "e2ee_too_many_fields",
        "e2ee_decryption_failed",
    ]


async def test_a_nonce_is_accepted_once(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """Whoever sends it, with whatever time; what did not open, or was not asked, claims none."""
    gateway = await start_gateway(**settings(scripted.url))
    client = await Caller(gateway).new()
    bad = client.body("b/B", "Hello").replace(b"b/B", b"a/A")
    assert code_of(await Caller(gateway).sealed(client, bad)) == (400, "e2ee_decryption_failed")
    first = await Caller(gateway).sealed(client, client.body(MODEL, "Hello"))
    assert len(scripted.requests) == 1
    assert first.status == 502  # this upstream's answer cannot be sealed, and the nonce is spent all the same
    assert "new nonce" in first.error["message"]
    client.timestamp += 1
    for token in (TOKEN, b"bob-token"):
        again = await Caller(gateway, token).sealed(client, client.body(MODEL, "Hello"))
        assert code_of(again) == (400, "e2ee_replay_detected")
    assert len(scripted.requests) == 1


async def test_a_full_store_refuses_and_forgets_nothing(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """E2EE_REPLAY_MAX_ENTRIES: a flood cannot make an old nonce new."""
    gateway = await start_gateway(**settings(scripted.url, E2EE_REPLAY_MAX_ENTRIES="1"))
    alice = Caller(gateway)
    client = await alice.new()
    await alice.sealed(client, client.body(MODEL, "Hello"))
    other = await alice.new()
    full = await alice.sealed(other, other.body(MODEL, "Hello"))
    assert code_of(full) == (503, "e2ee_replay_cache_full")
    assert (full.header("retry-after") or "").isdigit()
    assert code_of(await alice.sealed(client, client.body(MODEL, "Hello"))) == (400, "e2ee_replay_detected")


async def test_what_is_not_encrypted_is_refused_where_the_operator_says_so(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """E2EE_REQUIRE."""
    gateway = await start_gateway(**settings(scripted.url, E2EE_REQUIRE="true"))
    assert await refused(gateway, scripted, POST, b"Host: x", AS_ALICE) == (400, "e2ee_required")


async def test_an_error_behind_the_claim_asks_for_a_new_nonce(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """For the one that was sent is spent, also where routing refuses the model or no upstream can be reached."""
    gateway = await start_gateway(**settings("http://127.0.0.1:1"))
    for model, code in (("no/Such", "unknown_model"), (MODEL, "upstream_connect_error")):
        client = await Caller(gateway).new()
        response = await Caller(gateway).sealed(client, client.body(model, "Hello"))
        assert response.error["code"] == code
        assert "new nonce" in response.error["message"]
        assert response.header("x-e2ee-applied") == "false"
    plain = await Caller(gateway).post({"model": MODEL})
    assert "nonce" not in plain.error["message"]
