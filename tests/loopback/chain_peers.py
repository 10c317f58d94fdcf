"""The double-sealed chain: gateway and simulated platform on real sockets, both under a clock that a test moves."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from attrs import define, field
from loopback_peers import Gateway, RawClient, Response
from sealing_client import CHAT, Caller, SealingClient, answers_in
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock, deferLater
from twisted.protocols.portforward import ProxyClient, ProxyClientFactory, ProxyFactory, ProxyServer
from zope.interface import directlyProvides, providedBy

from chutes_autopilot.control.attestation import AttestationService
from chutes_autopilot.demo.catalog import SimulatedModel
from chutes_autopilot.demo.chute_peer import ChutePeer
from chutes_autopilot.demo.service import SimulatedChutesService
from chutes_autopilot.demo.simulator import SimulatedChutes

START = 1_750_000_020.0
"""Unix time at which every chain begins: the first second of a minute."""

OLD, THREE, ONE = "peer/Old-TEE", "peer/Three-TEE", "peer/One-TEE"
"""Ranked in this order. The first one's instances have no keys; the others have as many instances as they say."""


def simulated(name: str, instances: int, *, sealable: bool = True) -> SimulatedModel:
    return SimulatedModel(name, "vllm", "bf16", 4096, 0.1, 0.1, instances, 0.1, detailed=sealable)


MODELS = (simulated(OLD, 20, sealable=False), simulated(THREE, 3), simulated(ONE, 1))
TOKENS = 14
"""Tokens of an answer that is the simulator's whole sentence."""


def said(model: str) -> str:
    """What the simulator answers."""
    return f"This is a simulated answer from model {model}; no model was asked."


class ClockedReactor:
    """The real reactor's sockets and threads, and the time of a Clock."""

    def __init__(self, reactor: Any, clock: Clock) -> None:
        self._reactor = reactor
        self.callLater, self.seconds, self.getDelayedCalls = clock.callLater, clock.seconds, clock.getDelayedCalls
        directlyProvides(self, providedBy(reactor), IReactorTime)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@define(eq=False)
class Chain:
    """A running chain and what a test does with it."""

    reactor: Any
    clock: Clock
    platform: SimulatedChutesService
    gateway: Gateway
    caller: Caller = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.caller = Caller(self.gateway)

    @property
    def simulator(self) -> SimulatedChutes:
        return self.platform.simulator

    @property
    def chutes(self) -> ChutePeer:
        return self.simulator.chutes

    @property
    def verifier(self) -> AttestationService:
        return next(part for part in self.gateway.service if isinstance(part, AttestationService))

    def fault(self, kind: str, model: str, requests: int | None = 1, after: int = 0) -> None:
        self.simulator.faults.add(kind, model, requests, after=after)

    async def ask(self, model: str, *, stream: bool = False, **members: Any) -> Response:
        """A request in clear to the gateway."""
        return await self.caller.post(self._body(model, stream, members))

    async def ask_sealed(self, model: str, *, stream: bool = False, **members: Any) -> tuple[Response, str | None]:
        """A request that is encrypted to the gateway as well: the answer and its text, None of an error."""
        client = await self.caller.new()
        body = client.body(model, "Hello", stream=stream, **{"n_tokens": TOKENS, **members})
        response = await self.caller.sealed(client, body)
        return response, client.texts(response.body)["0 content"] if response.status == 200 else None

    async def begin(self, model: str, *, encrypted: bool) -> tuple[RawClient, SealingClient | None]:
        """A stream of which the first event has come to the client."""
        sealing = await self.caller.new() if encrypted else None
        body = json.dumps(self._body(model, True, {})).encode()
        if sealing is not None:
            body = sealing.body(model, "Hello", stream=True, n_tokens=TOKENS)
        client = await self.gateway.connect()
        headers = sealing.headers if sealing is not None else ()
        client.post(body, self.caller.authorization, *headers, target=CHAT)
        await client.until(b"data: ")
        return client, sealing

    async def wait_for(self, condition: Callable[[], Any]) -> None:
        """Let sockets and threads work until it holds; time stands still."""
        while not condition():
            self.clock.advance(0)
            await deferLater(self.reactor, 0.001)

    async def settle(self) -> None:
        """Whatever is on its way through sockets to the gateway has arrived."""
        for _ in range(3):
            await self.gateway.get("/healthz")

    async def pass_time(self, seconds: int) -> None:
        """Advance in small steps; in a large one an idle connection would be used and closed at once."""
        for _ in range(seconds):
            self.clock.advance(1)
            await deferLater(self.reactor, 0)

    async def refusals(self) -> dict[str, float]:
        """What the transport counted, by code."""
        start = 'chute_refusals_total{code="'
        found = await self.gateway.metrics()
        return {name[len(start) : -2]: count for name, count in found.items() if name.startswith(start)}

    async def verify(self, known: int) -> tuple[int, int]:
        """Have so many instances found and judged; how many are usable and how many refused."""
        self.clock.advance(5)
        await self.wait_for(lambda: self.verifier.table.counts()[0] == known)
        self.clock.advance(1)
        await self.wait_for(lambda: sum(self.verifier.table.counts()[1:]) == known)
        return self.verifier.table.counts()[1:]

    def _body(self, model: str, stream: bool, members: dict[str, Any]) -> dict[str, Any]:
        messages = [{"role": "user", "content": "Hello"}]
        return {"model": model, "messages": messages, "stream": stream, "n_tokens": TOKENS, **members}


StartChain = Callable[..., Awaitable[Chain]]


def text_of(response: Response) -> str:
    """The text of a whole answer in clear, or of a stream that has its end mark."""
    choices = [choice for one in answers_in(response.body) for choice in one["choices"]]
    return "".join((choice.get("delta") or choice.get("message") or {}).get("content") or "" for choice in choices)


class _TapOut(ProxyClient):
    def dataReceived(self, data: bytes) -> None:
        self.peer.factory.back += data
        super().dataReceived(data)


class _TapOutFactory(ProxyClientFactory):
    protocol, noisy = _TapOut, False


class _TapIn(ProxyServer):
    clientProtocolFactory = _TapOutFactory

    def dataReceived(self, data: bytes) -> None:
        self.factory.there += data
        super().dataReceived(data)


class Tap(ProxyFactory):
    """Passes connections on to a loopback port and records every byte of both directions."""

    protocol, noisy = _TapIn, False

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port)
        self.there, self.back = bytearray(), bytearray()

    @property
    def recorded(self) -> bytes:
        return bytes(self.there + b"\0" + self.back)


async def ended(client: RawClient) -> bytes:
    """All that came until the connection was closed."""
    await client.closed
    return client.received


def fires(waiting: Awaitable[Any]) -> Deferred[Any]:
    """A coroutine under way."""
    return Deferred.fromCoroutine(waiting)  # type: ignore[arg-type]
