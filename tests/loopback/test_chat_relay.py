"""What the client and the upstream see of one relayed chat request."""

import gzip
import json

import pytest
from loopback_peers import (
    CHUNKED,
    Gateway,
    ScriptedUpstream,
    StartGateway,
    UpstreamSide,
    answer,
    chunk,
    read_response,
    respond,
    silent,
)

ALIAS = "chutesai/AutoPilot"


@pytest.fixture(params=["front", "reference"])
def path(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both readers of requests."""
    return str(request.param)


async def test_the_alias_takes_the_best_ranked_model(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """The request goes to the first of the ranking and the answer names it."""
    response = await gateway.chat({"model": ALIAS})
    assert (response.status, response.body) == (200, b'{"from":"a/A"}')
    assert response.header("x-chutes-autopilot-selected") == "a/A"
    assert response.header("x-chutes-autopilot-attempts") == "1"


async def test_only_the_model_value_changes_on_the_way(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """Body bytes, method, target and end-to-end headers reach the upstream as they were sent."""
    body = b'{ "x":1.50,\n"model" : "chutesai/AutoPilot", "n":1e999 }'
    await gateway.chat(
        body,
        b"Authorization: Bearer secret",
        b"X-Two: 1",
        b"X-Two: 2",
        b"X-Request-ID: my-id",
        target=b"/v1/chat/completions?a=%20b&c",
    )
    (seen,) = scripted.requests
    assert seen.body == body.replace(b"chutesai/AutoPilot", b"a/A")
    assert seen.head.startswith(b"POST /v1/chat/completions?a=%20b&c HTTP/1.1\r\nHost: 127.0.0.1:")
    headers = [(name.lower(), value) for name, value in seen.headers]
    assert (b"authorization", b"Bearer secret") in headers
    assert [value for name, value in headers if name == b"x-two"] == [b"1", b"2"]
    assert (b"x-request-id", b"my-id") in headers
    assert (b"accept-encoding", b"identity") in headers
    assert b"connection" not in dict(headers)


async def test_a_direct_request_is_forwarded_as_it_came(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """One model: its body is not touched and its answer does not claim a selection."""
    body = b'{"model":"b\\/B"}'
    response = await gateway.chat(body)
    assert scripted.requests[0].body == body
    assert response.header("x-chutes-autopilot-selected") is None
    assert response.header("x-chutes-autopilot-attempts") == "1"


async def test_a_path_prefix_of_the_backend_is_kept(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """BACKEND_BASE_URL's path stands in front of every target."""
    gateway = await start_gateway(BACKEND_BASE_URL=scripted.url + "/some/prefix/")
    await gateway.chat({"model": "a/A"})
    assert scripted.requests[0].head.startswith(b"POST /some/prefix/v1/chat/completions HTTP/1.1")


async def test_the_answer_passes_unchanged(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """Status, reason, duplicate cookies, compressed bytes and a missing content type stay as the upstream sent them."""
    packed = gzip.compress(b"hello")
    scripted.scripts["a/A"] = answer(
        packed,
        b"418 I'm a teapot",
        b"Set-Cookie: a=1",
        b"Set-Cookie: b=2",
        b"Content-Encoding: gzip",
        b"Location: http://elsewhere/",
        b"Server: theirs",
        b"Date: then",
        b"X-Request-Id: theirs",
        b"X-Chutes-Autopilot-Selected: theirs",
        b"Keep-Alive: 5",
        b"Connection: X-Hop",
        b"X-Hop: 1",
    )
    client = await gateway.connect()
    client.post(json.dumps({"model": ALIAS}).encode(), b"X-Request-ID: ours")
    await client.complete()
    assert client.received.startswith(b"HTTP/1.1 418 I'm a teapot\r\n")
    response = read_response(client.received)
    assert response.body == packed
    assert sorted(response.headers) == sorted(
        [
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("content-encoding", "gzip"),
            ("location", "http://elsewhere/"),
            ("server", "theirs"),
            ("date", "then"),
            ("content-length", str(len(packed))),
            ("x-chutes-autopilot-selected", "a/A"),
            ("x-chutes-autopilot-attempts", "1"),
            ("x-request-id", "ours"),
        ]
    )


async def test_each_piece_is_relayed_as_it_arrives(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """The client reads an event before the upstream sends the next one."""
    scripted.scripts["a/A"] = respond(CHUNKED + chunk(b"data: one\n\n"))
    client = await gateway.connect()
    client.post(b'{"model":"a/A","stream":true}')
    await client.until(b"data: one\n\n")
    scripted.connections[-1].transport.write(chunk(b"data: two\n\n") + b"0\r\n\r\n")
    raw = await client.until(b"0\r\n\r\n")
    assert read_response(raw).body == b"data: one\n\ndata: two\n\n"


async def test_connections_are_kept_alive_on_both_sides(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """Two requests of one client use one client connection and one upstream connection."""
    feeds = len(scripted.connections)
    client = await gateway.connect()
    client.post(b'{"model":"a/A"}')
    await client.until(b'{"from":"a/A"}')
    client.post(b'{"model":"a/A"}')
    await client.until(b'{"from":"a/A"}', 2)
    assert len(scripted.connections) - feeds == 1


async def test_a_stale_upstream_connection_costs_nothing(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """An idle connection that the upstream closes as it is reused is replaced once, within the same attempt."""
    await gateway.chat({"model": "a/A"})
    served = scripted.scripts.pop("a/A", answer(b"again"))

    def close_first(side: UpstreamSide) -> None:
        scripted.scripts["a/A"] = served
        side.transport.loseConnection()

    scripted.scripts["a/A"] = close_first
    response = await gateway.chat({"model": "a/A"})
    assert (response.status, response.body, response.header("x-chutes-autopilot-attempts")) == (200, b"again", "1")
    assert len(scripted.requests) == 3


async def test_a_large_request_reaches_the_upstream_whole(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A body of many socket buffers is sent in slices and arrives byte for byte."""
    gateway = await start_gateway(MAX_REQUEST_BYTES="20000000")
    body = json.dumps({"model": "a/A", "messages": [{"role": "user", "content": "x" * 9_000_000}]}).encode()
    assert (await gateway.chat(body)).status == 200
    assert scripted.requests[0].body == body


async def test_a_chunked_request_is_read_and_sent_with_its_length(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """The framing of the client's connection ends at the gateway."""
    client = await gateway.connect()
    client.transport.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.transport.write(chunk(b'{"model":') + chunk(b'"a/A"}') + b"0\r\n\r\n")
    await client.until(b'{"from":"a/A"}')
    assert scripted.requests[0].body == b'{"model":"a/A"}'
    assert b"ransfer-" not in scripted.requests[0].head


async def test_an_http_1_0_client_gets_an_unframed_answer(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """Chunks are unknown to HTTP/1.0: the body ends with the connection."""
    scripted.scripts["a/A"] = respond(CHUNKED + chunk(b"all") + chunk(b" of it") + b"0\r\n\r\n")
    client = await gateway.connect()
    client.transport.write(b'POST /v1/chat/completions HTTP/1.0\r\nContent-Length: 15\r\n\r\n{"model":"a/A"}')
    await client.closed
    assert client.received.endswith(b"\r\n\r\nall of it")
    assert b"chunked" not in client.received


async def test_stickiness_keeps_a_client_at_the_model_that_worked(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """After a failover the same token goes to the second choice first; another session starts with the best."""
    scripted.scripts["a/A"] = answer(b"{}", b"503 Service Unavailable")

    async def selected(*headers: bytes) -> tuple[str | None, str | None]:
        response = await gateway.chat({"model": ALIAS}, b"Authorization: Bearer t", *headers)
        return response.header("x-chutes-autopilot-selected"), response.header("x-chutes-autopilot-attempts")

    assert await selected() == ("b/B", "2")
    del scripted.scripts["a/A"]
    assert await selected() == ("b/B", "1")
    assert await selected(b"X-Session-Id: other") == ("a/A", "1")


async def test_a_429_is_passed_back_and_changes_no_choice(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """Rate limits are the client's to see: no second attempt, with candidates left."""
    scripted.scripts["a/A"] = answer(b"slow down", b"429 Too Many Requests")
    response = await gateway.chat({"model": ALIAS})
    assert (response.status, response.body, len(scripted.requests)) == (429, b"slow down", 1)
    assert response.header("x-chutes-autopilot-selected") == "a/A"


@pytest.mark.parametrize("leave", ["abortConnection", "loseConnection", "loseWriteConnection"])
@pytest.mark.parametrize("sent", [1, 12, 13], ids=["request line", "head", "body"])
async def test_a_client_that_leaves_while_it_still_sends_is_counted(
    start_gateway: StartGateway, path: str, leave: str, sent: int
) -> None:
    """As soon as it is known what it asked for, and once; a client that asked for nothing is not."""
    gateway = await start_gateway()
    client = await gateway.connect()
    client.transport.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n")
    if path == "reference":
        client.transport.write(b"TE: trailers\r\n")
    if sent > 1:
        client.transport.write(b"Content-Length: 12\r\n\r\n" + b"{" * (sent - 12))
    idle = await gateway.connect()
    await gateway.get("/healthz")
    for each in (client, idle):
        getattr(each.transport, leave)()
    await client.closed
    while (metrics := await gateway.metrics())["client_connections"] != 1:
        pass
    assert metrics['requests_total{status="499"}'] == 1
    assert metrics["requests_active"] == 0


async def test_a_client_that_leaves_ends_the_upstream_stream(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """Mid-body, the upstream's connection is closed at once and the request is counted as 499."""
    scripted.scripts["a/A"] = respond(CHUNKED + chunk(b"data: one\n\n"))
    client = await gateway.connect()
    client.post(b'{"model":"chutesai/AutoPilot","stream":true}')
    await client.until(b"data: one")
    client.transport.abortConnection()
    await scripted.connections[-1].lost
    metrics = await gateway.metrics()
    assert metrics['requests_total{status="499"}'] == 1
    assert metrics["requests_active"] == 0


async def test_a_client_that_leaves_before_the_head_ends_the_attempts(
    scripted: ScriptedUpstream, gateway: Gateway
) -> None:
    """Nobody is asked once the client is gone."""
    scripted.scripts["a/A"] = silent
    client = await gateway.connect()
    client.post(b'{"model":"chutesai/AutoPilot","stream":true}')
    await scripted.when_asked(1)
    client.transport.abortConnection()
    await scripted.connections[-1].lost
    assert len(scripted.requests) == 1
    assert (await gateway.metrics())["requests_active"] == 0


class Flood:
    """A pull producer: writes another piece of a chunked body whenever the gateway has taken the last one."""

    def __init__(self, side: UpstreamSide, pieces: int) -> None:
        self.side = side
        self.left = pieces

    def resumeProducing(self) -> None:
        self.left -= 1
        self.side.transport.write(chunk(b"x" * 65536))
        if not self.left:
            self.side.transport.unregisterProducer()
            self.side.transport.write(b"0\r\n\r\n")

    def stopProducing(self) -> None:
        """The gateway is gone; nothing is kept."""


async def test_back_pressure_reaches_the_upstream(scripted: ScriptedUpstream, gateway: Gateway) -> None:
    """While the client does not read, the gateway does not either: most of 128 MB stays with the upstream."""
    floods = []

    def flood(side: UpstreamSide) -> None:
        side.transport.write(CHUNKED)
        floods.append(Flood(side, 2048))
        side.transport.registerProducer(floods[0], False)

    scripted.scripts["a/A"] = flood
    client = await gateway.connect()
    client.keep = 1000
    client.post(b'{"model":"a/A","stream":true}')
    await client.until(b"xxxx")
    client.transport.pauseProducing()
    before = -1
    while before != floods[0].left:  # until between two looks, 20 exchanges apart, nothing more was taken
        before = floods[0].left
        for _ in range(20):
            await gateway.get("/healthz")
    assert before > 1500
    client.transport.resumeProducing()
    await client.until(b"0\r\n\r\n")
    assert client.total > 2048 * 65536
