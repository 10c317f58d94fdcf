"""The answers the gateway gives itself: errors on every path, limits, health, readiness, the model list."""

import json
import socket

import pytest
from loopback_peers import Gateway, ScriptedUpstream, StartGateway, chunk, read_response
from twisted.internet.threads import deferToThread

both_paths = pytest.mark.parametrize("path", ["front", "reference"])
"""For what concerns chat requests, whoever reads them."""


@both_paths
@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "invalid_json", None),
        (b"[]", 400, "invalid_body", None),
        (b'{"model":"a","model":"b"}', 400, "invalid_body", "model"),
        (b"{}", 400, "missing_model", "model"),
        (b'{"model":7}', 400, "invalid_model", "model"),
        (b'{"model":"a\\r\\nX: y"}', 400, "invalid_model", "model"),
        (b'{"model":" , "}', 400, "invalid_model_list", "model"),
        (b'{"model":"a/a"}', 400, "unknown_model", "model"),
    ],
)
async def test_bad_input_gets_a_precise_400(
    scripted: ScriptedUpstream, gateway: Gateway, body: bytes, status: int, code: str, param: str | None
) -> None:
    """In OpenAI's error shape, naming the parameter; the upstream is not asked and nothing was attempted."""
    response = await gateway.chat(body)
    assert response.status == status
    assert (response.error["code"], response.error["param"]) == (code, param)
    assert response.error["type"] == "invalid_request_error"
    assert response.header("x-chutes-autopilot-attempts") is None
    assert not scripted.requests
    assert (await gateway.metrics())[f'requests_total{{status="{status}"}}'] == 1


@both_paths
async def test_an_unknown_model_passes_where_the_operator_says_so(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """UNKNOWN_MODELS=pass leaves the judgement to the platform; in metrics such a name is "other"."""
    gateway = await start_gateway(UNKNOWN_MODELS="pass")
    await gateway.chat({"model": "who/Knows"})
    assert scripted.requests[0].model == "who/Knows"
    assert (await gateway.metrics())['selection_total{model="other",status="200"}'] == 1


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        (b"GET", "/", 404, None),
        (b"GET", "/v1/nope", 404, None),
        (b"GET", "/%ff", 404, None),
        (b"GET", "*", 404, None),
        (b"GET", "/v1/models/no/such", 404, None),
        (b"GET", "/v1/chat/completions", 405, "POST"),
        (b"DELETE", "/healthz", 405, "GET, HEAD"),
        (b"BREW", "/v1/models", 405, "GET, HEAD"),
        (b"OPTIONS", "/v1/chat/completions", 405, "POST"),
        (b"GET", "/v1/completions", 405, "POST"),
        (b"OPTIONS", "/v1/completions", 405, "POST"),
        (b"PUT", "/v1/embeddings", 405, "POST"),
        (b"GET", "/v1/responses", 405, "POST"),
        (b"GET", "/v1/responses/resp_1", 404, None),
        (b"DELETE", "/v1/responses/resp_1", 404, None),
        (b"OPTIONS", "/v1/messages", 405, "POST"),
        (b"POST", "/v1/messages/count_tokens", 404, None),
        (b"GET", "/v1/autopilot", 404, None),
        (b"GET", "/v1/autopilot/route", 405, "POST"),
        (b"OPTIONS", "/v1/autopilot/route", 405, "POST"),
        (b"GET", "/v1/autopilot/decisions", 404, None),
        (b"POST", "/v1/autopilot/decisions", 405, "GET, HEAD"),
        (b"OPTIONS", "/v1/autopilot/decisions", 405, "GET, HEAD"),
        (b"GET", "/v1/autopilot/decisions/no-such", 404, None),
        (b"DELETE", "/v1/autopilot/decisions/no-such", 405, "GET, HEAD"),
    ],
)
async def test_no_path_or_method_gets_html(
    gateway: Gateway, method: bytes, path: str, status: int, allow: str | None
) -> None:
    """404 and 405 have the error shape, and 405 says what is allowed."""
    response = await gateway.get(path, method=method)
    assert response.status == status
    assert response.error["code"] == ("not_found" if status == 404 else "method_not_allowed")
    assert response.header("allow") == allow
    assert response.header("server") is None


async def test_a_browser_gets_a_page_for_a_mistyped_address(gateway: Gateway) -> None:
    """Complete in itself, with the same status; below /v1/ and /api/ everybody gets JSON."""
    browser = b"Accept: text/html,application/xhtml+xml,*/*;q=0.8"
    page = await gateway.get("/modles", browser)
    assert (page.status, page.header("content-type")) == (404, "text/html; charset=utf-8")
    assert (page.body.startswith(b"<!doctype html>"), page.header("vary")) == (True, "Accept")
    for path in ("/v1/nope", "/api/nope"):
        assert (await gateway.get(path, browser)).header("content-type") == "application/json"
    assert (await gateway.get("/modles", browser, method=b"POST")).header("content-type") == "application/json"


async def test_what_visitors_ask_for_unasked_is_there(gateway: Gateway) -> None:
    """Crawlers are kept from what is no page, and an old browser's icon is no 404."""
    robots, icon = await gateway.get("/robots.txt"), await gateway.get("/favicon.ico")
    assert (robots.status, b"Disallow: /v1/\n" in robots.body) == (200, True)
    assert (icon.status, icon.header("content-type"), icon.body[:4]) == (200, "image/svg+xml", b"<svg")


@pytest.mark.parametrize("path", ["/healthz", "/healthz/", "http://any.host/healthz?x=1"])
async def test_healthz_says_ok(gateway: Gateway, path: str) -> None:
    """While the process answers at all; a final slash and the absolute form are the same path."""
    response = await gateway.get(path)
    assert (response.status, response.body) == (200, b"ok")


async def test_head_is_get_without_body(gateway: Gateway) -> None:
    """RFC 9110 section 9.3.2."""
    response = await gateway.get("/healthz", method=b"HEAD")
    assert (response.status, response.header("content-length"), response.body) == (200, "2", b"")


async def test_what_is_not_http_gets_a_json_400(gateway: Gateway) -> None:
    """Also where twisted.web answers before any route."""
    client = await gateway.connect()
    client.transport.write(b"nonsense\r\n\r\n")
    await client.closed
    response = read_response(client.received)
    assert (response.status, response.error["code"]) == (400, "bad_request")


async def test_a_declared_length_over_the_limit_is_refused_unread(start_gateway: StartGateway) -> None:
    """413 comes while the client still waits to send, and no 100 Continue before it."""
    gateway = await start_gateway(MAX_REQUEST_BYTES="1000")
    client = await gateway.connect()
    client.transport.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n\r\n"
    )
    await client.closed
    response = read_response(client.received)
    assert (response.status, response.error["code"]) == (413, "request_too_large")
    assert (await gateway.metrics())['requests_total{status="413"}'] == 1


def send_all_then_read(port: int, framing: bytes, pieces: list[bytes]) -> bytes:
    """A plain blocking client that looks at the answer only when it has sent everything."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n")
        for piece in pieces:
            client.sendall(piece)
        received = b""
        while data := client.recv(65536):
            received += data
    return received


@pytest.mark.parametrize(
    ("framing", "piece"),
    [(b"Content-Length: 10485760", b"x" * 65536), (b"Transfer-Encoding: chunked", chunk(b"x" * 65536))],
)
async def test_a_client_that_sends_on_can_still_read_the_413(
    start_gateway: StartGateway, framing: bytes, piece: bytes
) -> None:
    """Ten megabytes over the limit are taken to the end without a reset, and the answer is there."""
    gateway = await start_gateway(MAX_REQUEST_BYTES="1000")
    received = await deferToThread(send_all_then_read, gateway.port, framing, [piece] * 160)
    assert read_response(received).status == 413


@both_paths
async def test_the_limit_itself_is_allowed(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """MAX_REQUEST_BYTES is the largest body that passes."""
    gateway = await start_gateway(MAX_REQUEST_BYTES="1000")
    body = b'{"model":"a/A"' + b" " * 985 + b"}"
    assert len(body) == 1000
    assert (await gateway.chat(body)).status == 200


async def test_models_are_the_alias_and_the_catalog_as_the_platform_wrote_it(gateway: Gateway) -> None:
    """Every field of every entry is there, also those nobody here reads."""
    listed = json.loads((await gateway.get("/v1/models")).body)
    assert listed["object"] == "list"
    names = [entry["id"] for entry in listed["data"]]
    assert (names[0], names[-3:]) == ("chutesai/AutoPilot", ["a/A", "b/B", "c/C"])
    assert all(name.startswith("chutesai/AutoPilot:") for name in names[1:-3])
    assert listed["data"][-3]["price"] == {"x": 1.5}


@pytest.mark.parametrize("path", ["/v1/models/b/B", "/v1/models/b%2FB"])
async def test_one_model_is_found_by_an_id_with_slashes(gateway: Gateway, path: str) -> None:
    """Encoded or not."""
    assert json.loads((await gateway.get(path)).body)["id"] == "b/B"


@both_paths
async def test_before_the_first_catalog(start_gateway: StartGateway) -> None:
    """Without a catalog: not ready, no model list, no candidates; one named model still works."""
    gateway = await start_gateway(ready=False, MODELS_URL="http://127.0.0.1:1/", UTILIZATION_URL="http://127.0.0.1:1/")
    ready = await gateway.get("/readyz")
    assert (ready.status, ready.error["type"], ready.error["code"]) == (503, "not_ready", "missing_allowlist")
    models = await gateway.get("/v1/models")
    assert (models.status, models.error["type"], models.error["code"]) == (503, "not_ready", "missing_allowlist")
    alias = await gateway.chat({"model": "chutesai/AutoPilot"})
    assert (alias.status, alias.error["code"], alias.header("retry-after")) == (503, "no_candidates", "1")
    assert (await gateway.chat({"model": "who/Knows"})).status == 200
    assert (await gateway.metrics())["ready_allowlist_age_ms"] == -1


async def test_the_metrics_name_the_state_of_the_control_plane(gateway: Gateway) -> None:
    """Gauges for readiness and counters for the refreshes, by source and outcome."""
    metrics = await gateway.metrics()
    assert metrics["ready_candidates"] == 3
    assert metrics["ready_allowlist_size"] == 3
    assert metrics["ready_snapshot_age_ms"] >= 0
    assert metrics['refresh_total{outcome="ok",source="utilization"}'] == 1
