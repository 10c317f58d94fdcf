"""Every path but those of the Chutes route: the same bytes in both directions, whatever is set for that route."""

import re
from typing import Any

import pytest
from loopback_peers import CHUNKED, Gateway, ScriptedUpstream, StartGateway, answer, chunk, respond
from sealing_client import DONE, STREAM_HEAD, SealingClient, chunk_event, completion, settings, streamed, whole

SEALING = SealingClient("ed25519", 2, bytes([9]).ljust(32, b"\0"), nonce="n1700000000abcd1234abcd")
E2EE = SEALING.headers
PLAIN = b'{ "model":"chutesai/AutoPilot", "messages":[{"content":"00","tool_calls":[]}], "n":1e999 }'
STREAM = PLAIN.replace(b'"n"', b'"stream":true,"n"')
SETTINGS: dict[str, dict[str, str]] = {
    "no key": {"CHUTES_API_KEY": "", "TOKEN": ""},
    "everybody": {"TOKEN": "", "CHUTES_ALLOW_ANONYMOUS": "true"},
    "strict": {"E2EE_REQUIRE": "true", "E2EE_STRICT": "true", "E2EE_ALLOW_V1": "false", "E2EE_MAX_FIELDS": "1"},
    "sealing": {
        "E2EE_UNCOVERED_FIELDS": "clear",
        "E2EE_STREAM_COALESCE_MS": "50",
        "E2EE_MAX_EVENT_BYTES": "1024",
        "E2EE_MAX_RESPONSE_BYTES": "1024",
        "E2EE_TRUST_REQUEST_HASH": "true",
        "CHUTES_BASE_URL": "http://127.0.0.1:1",
    },
}
SCRIPTS = {
    "whole": whole(completion("Hello " * 500)),
    "stream": streamed(chunk_event("Hello"), DONE),
    "cut": respond(STREAM_HEAD + chunk(chunk_event("Hello")), close=True),
    "chunked": respond(CHUNKED + chunk(b"data: x") + b"0\r\n\r\n"),
    "401": answer(b"no key", b"401 Unauthorized", b"WWW-Authenticate: Bearer", b"X-E2EE-Applied: maybe"),
    "402": answer(b"{}", b"402 Payment Required"),
    "503": answer(b"busy", b"503 Service Unavailable"),
}
REQUESTS: list[tuple[bytes, bytes, tuple[bytes, ...], bytes]] = [
    (b"POST", b"/v1/chat/completions?x=1", (b"Authorization: Bearer theirs", b"Cookie: a=b"), PLAIN),
    (b"POST", b"/v1/chat/completions", (b"Authorization: Bearer theirs", *E2EE), PLAIN),
    (b"POST", b"/v1/chat/completions", (*E2EE, b"X-Request-Hash: " + b"0" * 64), STREAM),
]
OTHERS: list[tuple[bytes, bytes, tuple[bytes, ...], bytes]] = [
    (b"POST", b"/v1/chat/completions", E2EE, PLAIN.replace(b"chutesai/AutoPilot", b"b/B")),
    (b"POST", b"/v1/chat/completions", (b"Content-Encoding: gzip", *E2EE), PLAIN),
    (b"POST", b"/v1/chat/completions", E2EE, b'{"model":'),
    (b"POST", b"/v1/chat/completions", E2EE, b'{"model":"no/Such"}'),
    (b"GET", b"/v1/chat/completions", E2EE, b""),
    (b"GET", b"/v1/models", E2EE, b""),
    (b"GET", b"/v1/models/a/A", (), b""),
    (b"GET", b"/v1/models/no/Such", E2EE, b""),
    (b"GET", b"/healthz", E2EE, b""),
    (b"GET", b"/readyz", (), b""),
    (b"GET", b"/v1/chutes", E2EE, b""),
    (b"POST", b"/v1/completions", E2EE, PLAIN),
]


@pytest.fixture(params=["front", "reference"])
def path(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both readers of requests."""
    return str(request.param)


async def exchanged(
    gateway: Gateway, scripted: ScriptedUpstream, request: tuple[bytes, bytes, tuple[bytes, ...], bytes]
) -> tuple[bytes, list[Any]]:
    """All bytes that the client got, but for the time of day, and what the upstream was asked."""
    method, target, headers, body = request
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: x", b"Connection: close", b"X-Request-Id: ours", *headers]
    if gateway.reference:
        lines.append(b"TE: trailers")
    client = await gateway.connect()
    scripted.requests.clear()
    client.transport.write(b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body]))
    await client.closed
    return re.sub(rb"\r\nDate: [^\r]+", b"", client.received), list(scripted.requests)


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
async def test_nothing_changes_elsewhere(
    scripted: ScriptedUpstream, start_gateway: StartGateway, changes: dict[str, str]
) -> None:
    """A gateway with the Chutes route and one without it, asked the same, also with the headers of encryption."""
    without = await start_gateway()
    with_route = await start_gateway(**settings(scripted.url, **changes))
    asked = 0
    for script in SCRIPTS.values():
        scripted.scripts["a/A"] = script
        for request in REQUESTS:
            expected = await exchanged(without, scripted, request)
            assert await exchanged(with_route, scripted, request) == expected
            asked += len(expected[1])
    for request in OTHERS:
        assert await exchanged(with_route, scripted, request) == await exchanged(without, scripted, request)
    assert asked == 23  # the 503 takes two attempts, of each of two clients once
