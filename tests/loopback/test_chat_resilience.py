"""The resilient profile over real connections, for both readers of requests and the Chutes route."""

import pytest
from chain_peers import ONE, THREE, StartChain, fires, said
from loopback_peers import Gateway, ScriptedUpstream, StartGateway, UpstreamSide, answer, chunk, reset, respond
from pytest_twisted import blockon
from sealing_client import STREAM_HEAD, Caller, chunk_event, settings, streamed
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

ALIAS = "chutesai/AutoPilot"
STREAM = {"model": ALIAS, "stream": True}
TOO_MANY = b"429 Too Many Requests"
CAPACITY = b'{"detail":"Infrastructure is at maximum capacity, try again later"}'
TOO_LONG = b'{"object":"error","message":"This model\'s maximum context length is 8000 tokens."}'
ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
TEXT = b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":null}]}\n\n'
END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
FAILED = b'data: {"error":{"message":"engine died","code":500}}\n\n'
RESILIENT = {"AUTOPILOT_PROFILE": "resilient", "SAME_MODEL_RETRIES": "0"}
"""No tries of the same model where a test is not about them: they take their time."""


@pytest.fixture(params=["front", "reference"])
def path(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both readers of requests."""
    return str(request.param)


@pytest.fixture
def resilient(start_gateway: StartGateway) -> Gateway:
    """A gateway with the resilient profile."""
    started: Gateway = blockon(Deferred.fromCoroutine(start_gateway(FIRST_EVENT_TIMEOUT_MS="80", **RESILIENT)))
    return started


async def test_what_only_begins_like_an_answer_fails_over(scripted: ScriptedUpstream, resilient: Gateway) -> None:
    """An error, and silence behind comments, whose connection is closed; the answer is relayed byte for byte."""
    silent: list[UpstreamSide] = []

    def slow(side: UpstreamSide) -> None:
        silent.append(side)
        side.transport.write(STREAM_HEAD + chunk(b": hi\n\n") + chunk(ROLE))

    scripted.scripts["a/A"] = streamed(b": hi\n\n" + ROLE, FAILED)
    scripted.scripts["b/B"] = slow
    scripted.scripts["c/C"] = streamed(b": hi\n\n", ROLE + TEXT[:9], TEXT[9:] + END)
    response = await resilient.chat(STREAM)
    assert (response.status, response.body) == (200, b": hi\n\n" + ROLE + TEXT + END)
    assert response.header("x-chutes-autopilot-attempts") == "3"
    await silent[0].lost
    metrics = await resilient.metrics()
    assert metrics['failover_reason_total{reason="upstream_error_event"}'] == 1
    assert metrics['failover_reason_total{reason="upstream_first_body_byte_timeout"}'] == 1


@pytest.mark.parametrize("pieces", [1, 3])
async def test_errors_move_on_and_the_last_passes_unchanged(
    scripted: ScriptedUpstream, resilient: Gateway, pieces: int
) -> None:
    """Whole or in pieces: too long for one model, a broken one, a full one, and what is left when all have failed."""
    step = len(TOO_LONG) // pieces + 1
    parts = [chunk(TOO_LONG[at : at + step]) for at in range(0, len(TOO_LONG), step)]
    chunked = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    too_long = respond(chunked + b"".join(parts) + b"0\r\n\r\n")
    scripted.scripts["a/A"] = too_long
    scripted.scripts["b/B"] = answer(b"<html>oh</html>", b"502 Bad Gateway", b"Content-Type: text/html")
    scripted.scripts["c/C"] = answer(CAPACITY, TOO_MANY, b"Retry-After: 60")
    response = await resilient.chat(STREAM)
    assert (response.status, response.body) == (429, CAPACITY)
    assert (response.header("x-should-retry"), response.header("retry-after")) == ("false", "60")
    assert [seen.model for seen in scripted.requests] == ["a/A", "b/B", "c/C"]
    scripted.scripts.update(dict.fromkeys(scripted.names, too_long))
    response = await resilient.chat({"model": "a/A,b/B", "max_tokens": 5})
    assert (response.status, response.body) == (400, TOO_LONG)


async def test_the_same_model_is_tried_again(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """One model by name: it was full, and then answers; all of it is told."""
    gateway = await start_gateway(AUTOPILOT_PROFILE="resilient")
    scripts = iter((answer(CAPACITY, TOO_MANY), streamed(ROLE, TEXT, END)))
    scripted.scripts["a/A"] = lambda side: next(scripts)(side)
    response = await gateway.chat({"model": "a/A", "stream": True}, b"x-chutes-autopilot-explain: 1")
    assert (response.status, response.body) == (200, ROLE + TEXT + END)
    assert response.header("x-chutes-autopilot-attempts") == "2"
    explained = response.header("x-chutes-autopilot-explain") or ""
    assert explained.endswith("attempts=a/A:upstream_429,a/A:200")
    metrics = await gateway.metrics()
    assert metrics['retry_waits_total{reason="upstream_429"}'] == 1
    assert metrics['retry_wait_seconds_total{reason="upstream_429"}'] > 0.19
    assert metrics['rate_limited_total{kind="capacity"}'] == 1


async def test_a_kept_connection_that_was_no_good_counts_as_a_try_where_the_new_one_is_none_either(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """The model has been asked twice then, and the next comes at once."""
    gateway = await start_gateway(AUTOPILOT_PROFILE="resilient")
    assert (await gateway.chat({"model": "a/A"})).status == 200
    scripted.scripts["a/A"] = reset
    response = await gateway.chat({"model": "a/A,b/B"})
    assert (response.status, response.header("x-chutes-autopilot-attempts")) == (200, "2")
    assert [seen.model for seen in scripted.requests] == ["a/A", "a/A", "a/A", "b/B"]
    assert not [name for name in await gateway.metrics() if name.startswith("retry_waits_total")]


async def test_a_client_that_leaves_while_nothing_is_tried(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Nothing is asked any more."""
    gateway = await start_gateway(AUTOPILOT_PROFILE="resilient")
    scripted.scripts["a/A"] = reset
    client = await gateway.connect()
    client.post(b'{"model":"a/A"}')
    await scripted.when_asked(1)
    client.transport.abortConnection()
    while not (await gateway.metrics()).get('requests_total{status="499"}'):
        await deferLater(gateway.reactor, 0.001)
    assert (await gateway.metrics())["requests_active"] == 0
    assert len(scripted.requests) == 1


async def test_a_slow_model_is_outrun_by_another(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """Once its pace is known and a hedge is saved up; the connection to the slow one is closed."""
    gateway = await start_gateway(HEDGE="true")
    slow: list[UpstreamSide] = []
    scripted.scripts["a/A"] = streamed(ROLE, TEXT, END)
    for _ in range(20):
        assert (await gateway.chat(STREAM)).header("x-chutes-autopilot-attempts") == "1"
    scripted.scripts["a/A"] = slow.append
    scripted.scripts["b/B"] = streamed(ROLE, TEXT, END)
    response = await gateway.chat(STREAM)
    assert (response.status, response.body) == (200, ROLE + TEXT + END)
    assert response.header("x-chutes-autopilot-selected") == "b/B"
    await slow[0].lost
    assert (await gateway.metrics())['failover_reason_total{reason="hedge_lost"}'] == 1


@pytest.mark.parametrize("sealed", [False, True])
async def test_the_chutes_route_too(scripted: ScriptedUpstream, start_gateway: StartGateway, sealed: bool) -> None:
    """In clear or encrypted to the service: an error inside a stream, a full model, an answer."""
    caller = Caller(await start_gateway(**settings(scripted.url), **RESILIENT))
    scripted.scripts["a/A"] = streamed(ROLE, FAILED)
    scripted.scripts["b/B"] = answer(CAPACITY, TOO_MANY, b"Retry-After: 60")
    scripted.scripts["c/C"] = streamed(chunk_event("Hi"), chunk_event(None), b"data: [DONE]\n\n")
    if sealed:
        client = await caller.new()
        response = await caller.sealed(client, client.body(ALIAS, "Hello", stream=True))
        assert client.texts(response.body)["0 content"] == "Hi"
    else:
        response = await caller.post(STREAM)
        assert chunk_event("Hi") in response.body
    assert response.header("x-chutes-autopilot-attempts") == "3"


async def test_a_full_chute_gives_way_on_the_sealed_transport(start_chain: StartChain) -> None:
    """Its other instances first, as the profile says; then the request waits, and goes to the next model."""
    chain = await start_chain(AUTOPILOT_PROFILE="resilient")
    chain.fault("instance_full", THREE, 100)
    answered = fires(chain.ask_sealed(f"{THREE}, {ONE}"))
    while not answered.called:
        chain.clock.advance(0.01)
        await deferLater(chain.reactor, 0.001)
    response, text = await answered
    assert (response.status, text) == (200, said(ONE))
    assert response.header("x-chutes-autopilot-attempts") == "3"
