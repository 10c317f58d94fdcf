"""The dstack guest agent over a real socket: what it is asked, and every way its answer can be of no use."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from pytest_twisted import blockon
from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred
from twisted.internet.task import Clock, deferLater
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from chutes_autopilot.chutes_composition import dstack_agent
from chutes_autopilot.settings import read_settings
from chutes_autopilot.upstream.dstack import (
    MAX_ANSWER_BYTES,
    MAX_QUOTES,
    SOCKETS,
    AgentQuote,
    DstackAgent,
    DstackError,
    find_agent,
)

KEY = bytes(range(32))
DATA = bytes(64)
QUOTE = AgentQuote("abcd", "[]", '{"cpu":2}')


class GuestAgent(Resource):
    """Answers every request with ``answer``, or keeps it in ``held`` where there is none."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.answer: tuple[int, bytes] | None = None
        self.asked: list[tuple[bytes, bytes | None, Any]] = []
        self.held: list[Request] = []
        self.port = 0

    def render(self, request: Any) -> int:
        self.asked.append(
            (request.method + b" " + request.path, request.getHeader(b"host"), json.load(request.content))
        )
        self.held.append(request)
        if self.answer is not None:
            self.give(len(self.held) - 1, *self.answer)
        return NOT_DONE_YET

    def give(self, which: int, status: int, body: bytes) -> None:
        request = self.held.pop(which)
        request.setResponseCode(status)
        request.write(body)
        request.finish()


@attrs.define(eq=False)
class SteppedReactor:
    """The reactor's sockets with a clock of the test's own."""

    reactor: Any
    clock: Clock = attrs.field(factory=Clock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.clock if name in ("callLater", "seconds", "advance") else self.reactor, name)


@pytest.fixture
def stepped() -> SteppedReactor:
    from twisted.internet import reactor

    return SteppedReactor(reactor)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[GuestAgent]:
    """An agent that listens on ``tmp_path / "s"`` and on the TCP port ``guest.port``."""
    from twisted.internet import reactor

    resource = GuestAgent()
    site = Site(resource)
    site.noisy = False
    ports = [
        reactor.listenUNIX(str(tmp_path / "s"), site),  # type: ignore[attr-defined]
        reactor.listenTCP(0, site, interface="127.0.0.1"),  # type: ignore[attr-defined]
    ]
    resource.port = ports[1].getHost().port
    yield resource
    gone = [request.notifyFinish().addErrback(lambda _: None) for request in resource.held]
    for request in resource.held:
        request.loseConnection()
    blockon(gatherResults(gone))
    blockon(gatherResults([maybeDeferred(port.stopListening) for port in ports]))
    blockon(deferLater(reactor, 0))  # both sides of a finished exchange see its end


@pytest.fixture
def agent(guest: GuestAgent, tmp_path: Path, stepped: SteppedReactor) -> DstackAgent:
    return DstackAgent(stepped, str(tmp_path / "s"), 10.0)


async def until(condition: Any) -> None:
    from twisted.internet import reactor

    while not condition():
        await deferLater(reactor, 0.001)


async def test_a_quote(guest: GuestAgent, agent: DstackAgent) -> None:
    """The report data goes in hex, and the three members of the answer that matter come back."""
    guest.answer = 200, b'{"quote": "ABCD", "event_log": "[]", "vm_config": "{\\"cpu\\":2}", "report_data": "00"}'
    data = bytes(range(64))
    assert await agent.get_quote(data) == QUOTE
    assert guest.asked == [(b"POST /GetQuote", b"localhost", {"report_data": data.hex()})]


async def test_a_key(guest: GuestAgent, agent: DstackAgent, stepped: SteppedReactor) -> None:
    """Every agent knows secp256k1, so that is what is asked for; nothing is left running."""
    guest.answer = 200, json.dumps({"key": KEY.hex(), "signature_chain": ["00"]}).encode()
    assert await agent.get_key("some/path") == KEY
    assert guest.asked[0][0] == b"POST /GetKey"
    assert guest.asked[0][2] == {"path": "some/path", "purpose": "e2ee", "algorithm": "secp256k1"}
    assert not stepped.clock.getDelayedCalls()


async def test_an_agent_at_a_url(guest: GuestAgent, stepped: SteppedReactor) -> None:
    """A simulator listens on TCP; a path prefix is kept, and what it says of itself comes back as it is."""
    guest.answer = 200, b'{"app_id": "x", "tcb_info": {"a": [1, null]}}'
    agent = DstackAgent(stepped, f"http://127.0.0.1:{guest.port}/prefix/", 10.0)
    assert await agent.info() == {"app_id": "x", "tcb_info": {"a": [1, None]}}
    assert guest.asked == [(b"POST /prefix/Info", b"127.0.0.1:%d" % guest.port, {})]


@pytest.mark.parametrize(
    ("call", "status", "body", "reason"),
    [
        ("info", 500, b'{"error": "SECRET"}', "status"),
        ("info", 302, b"SECRET", "status"),
        ("info", 200, b"SECRET", "invalid"),
        ("info", 200, b'{"a": "SECRET\xff"}', "invalid"),
        ("info", 200, b"[" * 100_000, "invalid"),
        ("info", 200, b'["SECRET"]', "invalid"),
        ("info", 200, b'{"a": "%b"}' % (b"x" * MAX_ANSWER_BYTES), "too_large"),
        ("key", 200, b"{}", "invalid"),
        ("key", 200, b'{"key": "SECRET"}', "invalid"),
        ("key", 200, b'{"key": "%b"}' % (b"ab" * 31), "invalid"),
        ("key", 200, b'{"key": "%b"}' % (b"ab" * 33), "invalid"),
        ("key", 200, b'{"key": "%b "}' % (b"ab" * 31 + b"a"), "invalid"),
        ("quote", 200, b'{"quote": "", "event_log": ""}', "invalid"),
        ("quote", 200, b'{"quote": "abc", "event_log": ""}', "invalid"),
        ("quote", 200, b'{"quote": "ab", "event_log": ["SECRET"]}', "invalid"),
    ],
)
async def test_an_answer_of_no_use(
    guest: GuestAgent, agent: DstackAgent, call: str, status: int, body: bytes, reason: str
) -> None:
    """Is one kind of error, whose text never changes: the answer may hold a key."""
    guest.answer = status, body
    with pytest.raises(DstackError) as caught:
        await {"info": agent.info, "key": lambda: agent.get_key("p"), "quote": lambda: agent.get_quote(DATA)}[call]()
    assert (caught.value.reason, str(caught.value)) == (reason, "the dstack guest agent gave no usable answer")


async def test_the_largest_answer(guest: GuestAgent, agent: DstackAgent) -> None:
    """MAX_ANSWER_BYTES are still read."""
    body = b'{"a": "%b"}'
    filling = b"x" * (MAX_ANSWER_BYTES - len(body % b""))
    guest.answer = 200, body % filling
    assert await agent.info() == {"a": filling.decode()}


async def test_nobody_listens(stepped: SteppedReactor, tmp_path: Path) -> None:
    """A socket that is not there fails at once."""
    with pytest.raises(DstackError) as caught:
        await DstackAgent(stepped, str(tmp_path / "none"), 10.0).info()
    assert caught.value.reason == "network"


async def test_a_silent_agent(guest: GuestAgent, agent: DstackAgent, stepped: SteppedReactor) -> None:
    """Is waited for as long as was said, then its connection is closed."""
    asking = agent.info()
    await until(lambda: guest.held)
    gone = guest.held.pop().notifyFinish()
    stepped.clock.advance(9.9)
    assert not asking.called
    stepped.clock.advance(0.2)
    with pytest.raises(DstackError) as caught:
        await asking
    assert caught.value.reason == "timeout"
    await gone.addErrback(lambda _: None)


async def test_an_agent_that_stops_in_the_middle(
    guest: GuestAgent, agent: DstackAgent, stepped: SteppedReactor
) -> None:
    """The time is for the whole answer, not only for its head; its connection is closed too."""
    asking = agent.info()
    await until(lambda: guest.held)
    request = guest.held.pop()
    gone = request.notifyFinish()
    request.write(b'{"a":')
    for _ in range(5):  # time for the head to arrive
        await deferLater(stepped.reactor, 0)
    stepped.clock.advance(10)
    with pytest.raises(DstackError, match="no usable answer"):
        await asking
    await gone.addErrback(lambda _: None)


async def test_only_so_many_quotes_at_once(guest: GuestAgent, agent: DstackAgent) -> None:
    """The rest wait for their turn, and one that nobody waits for any more is never asked for."""
    quotes: list[Deferred[AgentQuote]] = [agent.get_quote(DATA) for _ in range(MAX_QUOTES + 2)]
    quotes[MAX_QUOTES].addErrback(lambda failure: failure.trap(CancelledError) and None)
    await until(lambda: len(guest.held) == MAX_QUOTES)
    assert len(guest.asked) == MAX_QUOTES
    quotes[MAX_QUOTES].cancel()
    guest.answer = 200, b'{"quote": "abcd", "event_log": "[]", "vm_config": "{\\"cpu\\":2}"}'
    guest.give(0, *guest.answer)
    await quotes[0]
    assert await quotes[-1] == QUOTE
    assert len(guest.asked) == MAX_QUOTES + 1
    while guest.held:
        guest.give(0, *guest.answer)
    assert await gatherResults(quotes[1:MAX_QUOTES]) == [QUOTE] * (MAX_QUOTES - 1)


async def test_each_worker_has_its_share_of_the_quotes(guest: GuestAgent, stepped: SteppedReactor) -> None:
    """One at least."""
    environ = {"DSTACK_SIMULATOR_ENDPOINT": f"http://127.0.0.1:{guest.port}"}
    agents = [dstack_agent(read_settings(environ, str), stepped, workers) for workers in (1, 2, 3, 9)]
    for agent, at_once in zip(agents, (4, 2, 1, 1), strict=True):
        asked = len(guest.asked)
        quotes = [agent.get_quote(DATA) for _ in range(MAX_QUOTES + 1)]
        while len(guest.asked) < asked + at_once:
            await deferLater(stepped.reactor, 0.001)
        for _ in range(20):
            await deferLater(stepped.reactor, 0)
        assert len(guest.held) == at_once
        while not all(quote.called for quote in quotes):
            if guest.held:
                guest.give(0, 200, b'{"quote": "abcd", "event_log": "[]"}')
            await deferLater(stepped.reactor, 0)


async def test_a_failed_quote_makes_room(guest: GuestAgent, agent: DstackAgent) -> None:
    """Failures, too, give the next one its turn."""
    guest.answer = 500, b""
    for _ in range(MAX_QUOTES + 1):
        with pytest.raises(DstackError, match="no usable answer"):
            await agent.get_quote(DATA)


def test_a_quote_binds_64_bytes(stepped: SteppedReactor) -> None:
    """Anything else is a mistake in this program, not the agent's."""
    with pytest.raises(ValueError, match="64 bytes"):
        DstackAgent(stepped, None, 1.0).get_quote(bytes(63))


@pytest.mark.parametrize(
    ("given", "there", "found"),
    [
        (None, SOCKETS, SOCKETS[0]),
        (None, SOCKETS[2:], SOCKETS[2]),
        (None, (), None),
        ("http://127.0.0.1:8090", SOCKETS, "http://127.0.0.1:8090"),
        ("/not/there/yet", (), "/not/there/yet"),
    ],
)
def test_where_the_agent_is(given: str | None, there: tuple[str, ...], found: str | None) -> None:
    """What the operator says goes before everything, then the first socket that exists."""
    assert find_agent(given, there.__contains__) == found
