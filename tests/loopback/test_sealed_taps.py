"""Every byte on both hops of the double-sealed chain, recorded: no prompt and no answer is among them."""

import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_twisted
from chain_peers import MODELS, ONE, THREE, Chain, StartChain, Tap, text_of
from pytest_twisted import blockon
from sealing_client import TOKEN
from twisted.internet.defer import Deferred
from twisted.logger import formatEvent, globalLogPublisher

from chutes_autopilot.e2ee_client.gateway import Gateway, GatewayOptions
from chutes_autopilot.e2ee_client.reading import AnswerStream, read_answer
from chutes_autopilot.e2ee_client.sealing import read_chat_request
from chutes_autopilot.e2ee_client.transport import build_agent

PROMPT, ANSWER = "prompt-marker-4711", "answer-marker-0815"
MARKERS = [
    form.lower()
    for text in (PROMPT.encode(), ANSWER.encode())
    for form in (text, text.hex().encode(), *(b64encode(bytes(shift) + text)[4:-4] for shift in range(3)))
]
"""In every form in which they could stand there, whatever stands before them."""
ALIAS = "chutesai/AutoPilot"
BOTH = f"{ONE}, {THREE}"


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Everything that is logged, in every form."""
    lines: list[str] = []

    def observe(event: Any) -> None:
        lines.append(f"{formatEvent(event)} {event} {event.get('record')}")

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def inner() -> list[Tap]:
    """The tap between service and platform, once the chain is started."""
    return []


@pytest.fixture
def chain(start_chain: StartChain, inner: list[Tap], monkeypatch: pytest.MonkeyPatch) -> Chain:
    """A chain whose models answer with a marker, tapped between service and platform."""
    monkeypatch.setattr("chutes_autopilot.demo.completions._INTRO", (ANSWER, " and", " more"))

    def tap(port: int) -> Tap:
        inner.append(Tap(port))
        return inner[0]

    started: Chain = blockon(Deferred.fromCoroutine(start_chain(MODELS[1:], tap)))
    return started


@pytest_twisted.async_yield_fixture
async def outer(chain: Chain) -> AsyncIterator[Tap]:
    """A tap between client and service; its URL is ``outer.url``."""
    tap = Tap(chain.gateway.port)
    port = chain.reactor.listenTCP(0, tap, interface="127.0.0.1")
    tap.url = f"http://127.0.0.1:{port.getHost().port}/v1/chutes"
    yield tap
    await port.stopListening()


@pytest_twisted.async_yield_fixture
async def client(chain: Chain, outer: Tap) -> AsyncIterator[Gateway]:
    """The shipped client, behind the tap."""
    agent, pool = build_agent(chain.reactor)
    yield Gateway(chain.reactor, agent, GatewayOptions(outer.url), time.time, lambda _: None)
    await pool.closeCachedConnections()


async def ask(client: Gateway, model: str, *, stream: bool) -> str:
    """The text of an answer, asked for by the shipped client."""
    messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    body = {"model": model, "messages": messages, "stream": stream, "n_tokens": 3}
    answer = await client.ask(read_chat_request(json.dumps(body).encode()), f"Bearer {TOKEN.decode()}")
    if not stream:
        clear, _ = await read_answer(answer, client.reactor, frozenset())
        return str(json.loads(clear)["choices"][0]["message"]["content"])
    events: list[bytes] = []
    done: Deferred[Any] = Deferred()
    reading = AnswerStream(answer, frozenset(), client.reactor, events.append, done.callback, done.errback)
    answer.response.deliverBody(reading)
    await done
    return "".join(
        choice["delta"].get("content") or ""
        for event in b"".join(events).split(b"\n\n")[:-1]
        for choice in json.loads(event.removeprefix(b"data: "))["choices"]
    )


def holds_none(recorded: bytes) -> None:
    assert [marker for marker in MARKERS if marker in recorded.lower()] == []


async def test_nothing_in_clear_on_either_hop(
    chain: Chain, inner: list[Tap], outer: Tap, client: Gateway, logged: list[str]
) -> None:
    """Alias, list and model, stream and not, with failovers and faults on the way: the ends alone read the text.

    Neither logs nor metrics hold it either, nor any of the keys.
    """
    for stream in (True, False):
        for model in (ALIAS, BOTH, ONE):
            assert await ask(client, model, stream=stream) == f"{ANSWER} and more"
        for fault in ("bad_tag", "instance_failed", "cut_before_body"):
            chain.fault(fault, THREE)
            assert await ask(client, f"{THREE}, {ONE}", stream=stream) == f"{ANSWER} and more"
    assert all(PROMPT.encode() in seen.body for seen in chain.chutes.requests)  # the instances did read it
    assert min(len(inner[0].there), len(inner[0].back), len(outer.there), len(outer.back)) > 5000
    holds_none(inner[0].recorded)
    holds_none(outer.recorded)
    holds_none("\n".join(logged).encode())
    holds_none((await chain.gateway.get("/metrics")).body)
    assert b"cpk_operator" not in outer.recorded
    assert TOKEN not in inner[0].recorded
    for secret in ("cpk_operator", TOKEN.decode(), *(seen.nonce for seen in chain.chutes.requests)):
        assert secret not in "\n".join(logged)
    assert sum("request id=" in line for line in logged) == 12


async def test_a_client_without_encryption_is_still_sealed_to_the_instance(chain: Chain, inner: list[Tap]) -> None:
    """Its own hop is in clear, which is what it asked for; the platform's relay reads nothing."""
    for stream in (True, False):
        response = await chain.ask(ONE, stream=stream, messages=[{"role": "user", "content": PROMPT}], n_tokens=1)
        assert text_of(response) == ANSWER
    holds_none(inner[0].recorded)


async def test_the_taps_would_show_it(start_chain: StartChain, inner: list[Tap], monkeypatch: Any) -> None:
    """The same request over CHUTES_TRANSPORT=tls: what these tests look for is there to be found."""
    monkeypatch.setattr("chutes_autopilot.demo.completions._INTRO", (ANSWER,))

    def tap(port: int) -> Tap:
        inner.append(Tap(port))
        return inner[0]

    chain = await start_chain(MODELS[1:], tap, CHUTES_TRANSPORT="tls")
    await chain.ask(ONE, messages=[{"role": "user", "content": PROMPT}], n_tokens=1)
    assert PROMPT.encode() in inner[0].there
    assert ANSWER.encode() in inner[0].back
