"""Whatever breaks inside the service, with whatever text: an answer, a count that goes back, and nothing in the log."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from loopback_peers import CHUNKED, RawClient, ScriptedUpstream, StartGateway, chunk, read_response, respond
from twisted.logger import globalLogPublisher

import chutes_autopilot.composition
from chutes_autopilot.edge.downstream import FrontDownstream
from chutes_autopilot.observe import events
from chutes_autopilot.observe.logs import log_observer
from chutes_autopilot.observe.metrics import Metrics
from chutes_autopilot.relay.exchange import Exchange
from chutes_autopilot.storage.memory import MemoryStickyStore
from chutes_autopilot.web.downstream import RequestDownstream
from chutes_autopilot.wire.body import ChatBody
from chutes_autopilot.wire.sse import StreamGuard

MARK = "quoted-from-the-request"
ALIAS = "chutesai/AutoPilot"


@pytest.fixture(params=["front", "reference"])
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def logged() -> Iterator[Callable[[], str]]:
    """Everything that is logged from now on, as text and as JSON, at the lowest level."""
    streams = [io.StringIO(), io.StringIO()]
    observers = [log_observer(stream, form, "debug") for stream, form in zip(streams, ("text", "json"), strict=True)]
    for observer in observers:
        globalLogPublisher.addObserver(observer)
    yield lambda: "".join(stream.getvalue() for stream in streams)
    for observer in observers:
        globalLogPublisher.removeObserver(observer)


class Forced(Exception):
    """What breaks; it quotes a request in every way an exception can."""

    def __init__(self) -> None:
        super().__init__(MARK, MARK.encode(), {"body": MARK})
        self.add_note(MARK)
        self.body = MARK


def breaks(*_arguments: Any, **_options: Any) -> Any:
    try:
        raise ValueError(MARK)
    except ValueError as error:
        raise Forced from error


async def none_active(client: RawClient, gateway: Any) -> bool:
    """Whether the gauge is at 0 when the client is gone."""
    client.transport.loseConnection()
    await client.closed
    return (await gateway.metrics())["requests_active"] == 0


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (MemoryStickyStore, "get"),
        (MemoryStickyStore, "put"),
        (chutes_autopilot.composition, "ChatAttempt"),
        (ChatBody, "with_model"),
    ],
)
async def test_what_breaks_before_the_answer_is_an_internal_error(
    start_gateway: StartGateway,
    logged: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
) -> None:
    """A JSON 500 while the client still waits, one line that names type and place, and no request left active; the
    connection goes on with the next request."""
    gateway = await start_gateway()
    client = await gateway.connect()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, breaks)
        client.post(b'{"model":"%b"}' % ALIAS.encode())
        await client.complete()
        response = read_response(client.received)
    assert (response.status, response.error["code"]) == (500, "internal_error")
    client.received = b""
    client.post(b'{"model":"%b"}' % ALIAS.encode())
    await client.complete()
    assert read_response(client.received).status == 200
    assert await none_active(client, gateway)
    assert "Forced" in logged()
    assert "status=500 outcome=refused" in logged()
    assert MARK not in logged() + response.body.decode() + repr(response.headers)
    assert (await gateway.metrics())['requests_total{status="500"}'] == 1


@pytest.mark.parametrize(("owner", "name"), [(Metrics, "finished"), (events, "request_finished")])
@pytest.mark.parametrize("status", [200, 400])
async def test_what_breaks_after_the_answer_costs_nobody_his_answer(
    start_gateway: StartGateway,
    logged: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    status: int,
) -> None:
    """Counting and logging a request may fail: answers and refusals arrive as ever."""
    monkeypatch.setattr(owner, name, breaks)
    gateway = await start_gateway()
    client = await gateway.connect()
    client.post(b'{"model":"%b"}' % ALIAS.encode() if status == 200 else b"{}")
    await client.complete()
    assert read_response(client.received).status == status
    assert await none_active(client, gateway)
    assert "Forced" in logged()
    assert MARK not in logged()


@pytest.mark.parametrize(
    ("owners", "name"),
    [((StreamGuard,), "feed"), ((FrontDownstream, RequestDownstream), "write")],
)
async def test_what_breaks_in_the_answer_is_a_visible_cut(
    start_gateway: StartGateway,
    scripted: ScriptedUpstream,
    logged: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    logged_errors: Any,
    owners: tuple[Any, ...],
    name: str,
) -> None:
    """A stream that fails inside the gateway has no clean end, and no request is left active."""
    head = CHUNKED.replace(b"application/json", b"text/event-stream")
    scripted.scripts["a/A"] = respond(head + chunk(b"data: {}\n\n"))
    gateway = await start_gateway()
    client = await gateway.connect()
    client.post(b'{"model":"a/A"}')
    await client.until(b"data: {}")
    with monkeypatch.context() as patch:
        for owner in owners:
            patch.setattr(owner, name, breaks)
        scripted.connections[-1].transport.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await client.closed
    assert not client.received.endswith(b"0\r\n\r\n")
    assert (await gateway.metrics())["requests_active"] == 0
    assert "Forced" in logged()
    assert MARK not in logged() + client.received.decode()
    logged_errors.flush(Forced)


@pytest.mark.parametrize("name", ["client_gone", "answer"])
async def test_what_breaks_where_nobody_catches_it_is_logged_without_its_text(
    start_gateway: StartGateway,
    scripted: ScriptedUpstream,
    logged: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    logged_errors: Any,
    name: str,
) -> None:
    """An exception that only the reactor catches has its type and place in the log, and no text."""
    gateway = await start_gateway()
    client = await gateway.connect()
    with monkeypatch.context() as patch:
        patch.setattr(Exchange, name, breaks)
        client.post(b'{"model":"a/A"}')
        await scripted.when_asked(1)
        if name == "client_gone":
            client.transport.abortConnection()
            await client.closed
        while "Forced" not in logged():
            await gateway.get("/healthz")
    assert MARK not in logged()
    assert logged_errors.flush(Forced)
