"""Plain requests of the Chutes route: the walk of AutoPilot, with the operator's key."""

import json
from typing import Any

import attrs
import pytest
from loopback_peers import (
    CHUNKED,
    Gateway,
    Response,
    Script,
    ScriptedUpstream,
    StartGateway,
    answer,
    chunk,
    reset,
    respond,
    silent,
)
from pytest_twisted import blockon
from sealing_client import CHAT, DONE, STREAM_HEAD, Caller, chunk_event, settings, streamed
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent

from chutes_autopilot import __version__
from chutes_autopilot.settings import read_settings

ALIAS = "chutesai/AutoPilot"
PREFIX = "/chutes/side"


@pytest.fixture
def caller(scripted: ScriptedUpstream, start_gateway: StartGateway) -> Caller:
    """Alice, before a gateway whose Chutes route has a path of its own at the upstream."""
    environ = settings(scripted.url + PREFIX, UPSTREAM_HEADER_TIMEOUT_MS="200")
    gateway: Gateway = blockon(Deferred.fromCoroutine(start_gateway(**environ)))
    return Caller(gateway)


async def test_the_upstream_sees_nothing_of_the_client(scripted: ScriptedUpstream, caller: Caller) -> None:
    """Header lines of our own alone, and the body's bytes as they came but for the model."""
    body = b'{ "x":1.50,\n"model" : "chutesai/AutoPilot", "tool_calls":[], "n":1e999 }'
    response = await caller.post(
        body,
        b"Cookie: id=1",
        b"X-Api-Key: theirs",
        b"X-Request-Id: their-id",
        b"X-Request-Hash: " + b"0" * 64,
        b"X-Forwarded-For: 198.51.100.7",
        b"X-Session-Id: session",
        b"User-Agent: theirs",
        b"Accept: text/html",
        b"Accept-Encoding: br",
    )
    assert response.status == 200
    (seen,) = scripted.requests
    assert seen.head.startswith(b"POST /chutes/side/v1/chat/completions HTTP/1.1\r\n")
    assert seen.body == body.replace(ALIAS.encode(), b"a/A")
    assert sorted((name.lower(), value) for name, value in seen.headers) == [
        (b"accept", b"application/json, text/event-stream"),
        (b"accept-encoding", b"identity"),
        (b"authorization", b"Bearer cpk_operator"),
        (b"content-length", b"%d" % len(seen.body)),
        (b"content-type", b"application/json"),
        (b"host", scripted.url.removeprefix("http://").encode()),
        (b"user-agent", b"chutes-autopilot/" + __version__.encode()),
    ]


async def test_it_is_told_from_what_clients_pay_themselves(caller: Caller) -> None:
    """In log, metrics and decision records, by an endpoint of its own."""
    with capturedLogs() as logged:
        assert (await caller.post({"model": ALIAS}, b"X-Request-Id: r1")).status == 200
        assert (await caller.gateway.chat({"model": ALIAS})).status == 200
    texts = [formatEvent(event) for event in logged]
    assert [text.split()[2] for text in texts if text.startswith("request ")] == ["endpoint=chutes", "endpoint=chat"]
    metrics = await caller.gateway.metrics()
    counted = {name: value for name, value in metrics.items() if name.startswith("endpoint_requests_total")}
    assert counted == {'endpoint_requests_total{endpoint="chutes"}': 1}
    assert json.loads((await caller.get("/v1/autopilot/decisions/r1")).body)["endpoint"] == "chutes"


async def test_a_query_of_the_client_stays_here(scripted: ScriptedUpstream, caller: Caller) -> None:
    """The target is ours too."""
    response = await caller.gateway.chat({"model": ALIAS}, caller.authorization, target=CHAT + b"?key=x")
    assert response.status == 200
    assert scripted.requests[0].head.startswith(b"POST /chutes/side/v1/chat/completions HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("model", "sent", "selected"),
    [(ALIAS, "a/A", "a/A"), ("c/C, b/B", "c/C", "c/C"), ("b/B", "b/B", None)],
    ids=["alias", "list", "direct"],
)
async def test_models_are_chosen_as_ever(
    scripted: ScriptedUpstream, caller: Caller, model: str, sent: str, selected: str | None
) -> None:
    """The ranking, the client's list, or the one model; the answer passes and says that it is not encrypted."""
    scripted.scripts[sent] = answer(b'{"id":"1"}', b"200 OK", b"Set-Cookie: a=1", b"X-E2EE-Applied: true")
    response = await caller.post({"model": model}, b"X-Request-Id: ours")
    assert (response.status, response.body, scripted.requests[0].model) == (200, b'{"id":"1"}', sent)
    expected = [
        ("set-cookie", "a=1"),
        ("content-length", "10"),
        ("x-e2ee-applied", "false"),
        ("x-chutes-autopilot-attempts", "1"),
        ("x-request-id", "ours"),
        *([("x-chutes-autopilot-selected", selected)] if selected else []),
    ]
    assert sorted(header for header in response.headers if header[0] != "date") == sorted(expected)


@pytest.mark.parametrize("pieces", [[chunk_event("Hello"), DONE], [b"data: [DONE]\r\r", b"data: \xe2\x80\xa8"]])
async def test_a_plain_stream_passes_byte_for_byte(
    scripted: ScriptedUpstream, caller: Caller, pieces: list[bytes]
) -> None:
    """Whatever its events are."""
    scripted.scripts["a/A"] = streamed(*pieces)
    response = await caller.post({"model": "a/A", "stream": True})
    assert (response.body, response.header("x-e2ee-applied")) == (b"".join(pieces), "false")


async def test_a_client_stays_with_its_model(scripted: ScriptedUpstream, caller: Caller) -> None:
    """Stickiness goes by the client's own token and session, though the upstream sees neither."""
    scripted.scripts["a/A"] = answer(b"busy", b"503 Service Unavailable")
    first = await caller.post({"model": ALIAS}, b"X-Session-Id: one")
    scripted.scripts.pop("a/A")
    again = await caller.post({"model": ALIAS}, b"X-Session-Id: one")
    other = await caller.post({"model": ALIAS}, b"X-Session-Id: two")
    selected = [each.header("x-chutes-autopilot-selected") for each in (first, again, other)]
    assert selected == ["b/B", "b/B", "a/A"]


@pytest.mark.parametrize(
    "script",
    [
        answer(b"busy", b"503 Service Unavailable"),
        reset,
        silent,
        respond(CHUNKED, close=True),
        answer(b""),
    ],
    ids=["503", "reset", "silent", "no body", "empty"],
)
async def test_a_fault_before_the_first_byte_is_not_seen(
    scripted: ScriptedUpstream, caller: Caller, script: Script
) -> None:
    """The next candidate answers."""
    scripted.scripts["a/A"] = script
    response = await caller.post({"model": ALIAS, "stream": True})
    assert (response.status, response.body) == (200, b'{"from":"b/B"}')
    assert response.header("x-chutes-autopilot-attempts") == "2"


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [
        (b"401 Unauthorized", 502, "chutes_upstream_auth"),
        (b"402 Payment Required", 503, "chutes_upstream_quota"),
        (b"403 Forbidden", 502, "chutes_upstream_auth"),
    ],
)
@pytest.mark.parametrize("encrypted", [True, False])
async def test_what_concerns_the_operators_key_is_told_as_our_fault(
    scripted: ScriptedUpstream, caller: Caller, status: bytes, told: int, code: str, encrypted: bool
) -> None:
    """Nobody else is tried, and nothing of what the upstream said is passed on."""
    scripted.scripts["a/A"] = answer(b"the key cpk_operator", status, b"WWW-Authenticate: Bearer")
    if encrypted:
        client = await caller.new()
        response = await caller.sealed(client, client.body(ALIAS, "Hello"))
    else:
        response = await caller.post({"model": ALIAS})
    assert (response.status, response.error["code"], response.error["type"]) == (told, code, code)
    assert response.header("x-e2ee-applied") == "false"
    assert response.header("www-authenticate") is None
    assert b"cpk" not in response.body
    assert len(scripted.requests) == 1


async def test_other_errors_pass_in_plain_mode(scripted: ScriptedUpstream, caller: Caller) -> None:
    """As on the AutoPilot route."""
    scripted.scripts["a/A"] = answer(b'{"error":"x"}', b"429 Too Many", b"Retry-After: 3")
    response = await caller.post({"model": ALIAS})
    assert (response.status, response.body, response.header("retry-after")) == (429, b'{"error":"x"}', "3")
    assert response.header("x-e2ee-applied") == "false"


@pytest.mark.parametrize("encrypted", [True, False])
async def test_a_ban_page_bans_the_operators_key(scripted: ScriptedUpstream, caller: Caller, encrypted: bool) -> None:
    """Whoever calls with it next is answered here, whatever words the page was told in; other keys are no concern."""
    scripted.scripts["a/A"] = answer(b"<html>nginx</html>", b"429 Too Many", b"Content-Type: text/html")

    async def ask(caller: Caller) -> Response:
        if not encrypted:
            return await caller.post({"model": ALIAS})
        client = await caller.new()
        return await caller.sealed(client, client.body(ALIAS, "Hello"))

    bob = attrs.evolve(caller, token=b"bob-token")
    met, refused = await ask(caller), await ask(bob)
    assert (met.status, met.header("x-should-retry")) == (429, "false")
    assert (refused.status, refused.error["code"]) == (429, "upstream_ban")
    assert len(scripted.requests) == 1
    scripted.scripts["a/A"] = answer(b"{}")
    assert (await caller.gateway.chat({"model": "a/A"}, caller.authorization)).status == 200
    metrics = await caller.gateway.metrics()
    assert metrics['rate_limited_total{kind="edge"}'] == 1
    assert (await ask(caller)).status == 429


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("encrypted", [True, False])
async def test_a_client_that_leaves_frees_the_upstream(
    scripted: ScriptedUpstream, caller: Caller, begun: bool, encrypted: bool
) -> None:
    """Before and after the first byte, in both modes: the upstream's connection is closed, and the record says why."""
    scripted.scripts["b/B"] = respond(STREAM_HEAD + chunk(chunk_event("Hello"))) if begun else silent
    members: dict[str, Any] = {"stream": True}
    body, headers = json.dumps({"model": "b/B", **members}).encode(), []
    if encrypted:
        sealing = await caller.new()
        body, headers = sealing.body("b/B", "Hello", **members), list(sealing.headers)
    client = await caller.gateway.connect()
    client.post(body, caller.authorization, *headers, target=CHAT)
    await scripted.when_asked(1)
    if begun:
        await client.until(b"data: ")
    client.transport.abortConnection()
    await scripted.connections[-1].lost
    metrics = await caller.gateway.metrics()
    assert (metrics["requests_active"], metrics['requests_total{status="499"}']) == (0, 1)


async def test_the_models_are_those_of_the_operators_key(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Byte for byte what the upstream lists for it; the client's own token does not get there."""
    caller = Caller(await start_gateway(**settings(scripted.url)))
    response = await caller.get("/v1/chutes/models", b"X-E2EE-Nonce: ignored")
    assert (response.status, response.header("content-type")) == (200, "application/json")
    assert response.header("x-e2ee-applied") == "false"
    assert [model["id"] for model in json.loads(response.body)["data"]] == ["a/A", "b/B", "c/C"]
    head = scripted.heads[-1]
    assert head.startswith(b"GET /v1/models HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer cpk_operator" in head
    assert b"alice" not in head


async def test_changed_timeouts_hold_from_the_next_request(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """For the list of models, and for the body of an answer that is to be sealed, as for all that is relayed."""
    caller = Caller(await start_gateway(**settings(scripted.url)))
    short = {"CONTROL_PLANE_TIMEOUT_MS": "50", "UPSTREAM_FIRST_BODY_BYTE_TIMEOUT_MS": "50"}
    caller.gateway.service.apply(read_settings(short, lambda path: ""))
    scripted.listing = silent
    assert (await caller.get("/v1/chutes/models")).error["code"] == "upstream_header_timeout"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    scripted.scripts["a/A"] = respond(head)
    client = await caller.new()
    response = await caller.sealed(client, client.body("a/A", "x"))
    assert response.error["code"] == "upstream_first_body_byte_timeout"


@pytest.mark.parametrize(("status", "told"), [(b"520 Odd", 520), (b"302 Found", 502), (b"404 Not Found", 404)])
async def test_a_list_of_models_that_is_none(
    scripted: ScriptedUpstream, start_gateway: StartGateway, status: bytes, told: int
) -> None:
    """An error keeps its status, also one that HTTP does not know; a redirect leads nobody anywhere."""
    caller = Caller(await start_gateway(**settings(scripted.url)))
    scripted.listing = answer(b"{}", status, b"Location: http://elsewhere/")
    assert (await caller.get("/v1/chutes/models")).status == told


async def test_models_that_nobody_lists(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """Where the upstream is not there, or refuses the operator's key."""
    away = Caller(await start_gateway(**settings("http://127.0.0.1:1")))
    assert (await away.get("/v1/chutes/models")).error["code"] == "upstream_connect_error"
