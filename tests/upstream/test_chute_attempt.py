"""Attempts over the sealed transport, against an API and its instances on a real loopback socket."""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from secrets import token_urlsafe
from typing import Any

import pytest
from attrs import define, field
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from pytest_twisted import blockon
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.web.client import Agent

from chutes_autopilot.demo.chute_sealing import (
    StreamSealing,
    clear_event,
    gzip_bomb,
    open_request,
    outer_event,
    packed,
    seal_packed,
)
from chutes_autopilot.e2ee.chute_stream import SLICE_BYTES
from chutes_autopilot.e2ee.receipt import Attested
from chutes_autopilot.policy.failover import ConnectFailed, DeadlinePassed, Lost, Refused
from chutes_autopilot.upstream.chat import UpstreamRequest
from chutes_autopilot.upstream.chute_e2ee.attempt import THREAD_BYTES, ChuteAttempt
from chutes_autopilot.upstream.chute_e2ee.budget import Turn
from chutes_autopilot.upstream.chute_e2ee.link import ChuteTerms
from chutes_autopilot.upstream.chute_e2ee.transport import ChuteTransport, listings_from
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.upstream.pool import ConnectionPool, endpoints_for

MARKER = "the prompt nobody may see"
ANSWER = b'{"id": "x", "choices": [{"message": {"content": "the answer nobody may see"}}]}'
A = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
B = b'data: {"choices":[{"delta":{"content":"b"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


@define(eq=False)
class Invoked:
    """One sealed request as the API and the instance saw it."""

    side: "ApiSide"
    headers: dict[str, str]
    clear: dict[str, Any]

    @property
    def answer_key(self) -> MLKEM768PublicKey:
        return MLKEM768PublicKey.from_public_bytes(b64decode(self.clear["e2e_response_pk"]))

    def write(self, data: bytes) -> None:
        self.side.transport.write(data)

    def respond(self, status: int, body: bytes, content_type: str, more: str = "") -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
        self.write(head.encode() + body)

    def begin_stream(self) -> StreamSealing:
        self.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n")
        self.write(b"Transfer-Encoding: chunked\r\n\r\n")
        return StreamSealing(self.answer_key)

    def chunk(self, data: bytes) -> None:
        self.write(b"%x\r\n%b\r\n" % (len(data), data))


Script = Callable[[Invoked], None]


def blob(body: bytes = ANSWER) -> Script:
    """An instance that answers; ``body`` is what it seals."""
    return lambda call: call.respond(200, seal_packed(call.answer_key, packed(body)), "application/octet-stream")


def refuse(status: int, detail: str = "", more: str = "") -> Script:
    """An API that refuses."""
    return lambda call: call.respond(status, json.dumps({"detail": detail}).encode(), "application/json", more)


def stream(*clear: bytes, end: bool = True) -> Script:
    """An instance that streams, a record for each piece."""

    def script(call: Invoked) -> None:
        sealing = call.begin_stream()
        call.chunk(outer_event("e2e_init", sealing.ciphertext))
        for piece in clear:
            call.chunk(outer_event("e2e", sealing.record(piece)))
        if end:
            call.write(b"0\r\n\r\n")

    return script


def outer(*events: Any) -> Script:
    """A stream of events that a callable makes of its sealing, or that are bytes as they are."""

    def script(call: Invoked) -> None:
        sealing = call.begin_stream()
        for event in events:
            call.chunk(event(sealing) if callable(event) else event)
        call.write(b"0\r\n\r\n")

    return script


def init(sealing: StreamSealing) -> bytes:
    return outer_event("e2e_init", sealing.ciphertext)


def record(clear: bytes) -> Callable[[StreamSealing], bytes]:
    return lambda sealing: outer_event("e2e", sealing.record(clear))


def reset(call: Invoked) -> None:
    call.side.transport.abortConnection()


def silent(call: Invoked) -> None:
    pass


class ApiSide(Protocol):
    """One connection to the API."""

    def __init__(self, api: "Api") -> None:
        self.api = api
        self.buffer = b""
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.api.connections.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.api.wire += data
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            found = LENGTH.search(head)
            length = int(found[1]) if found else 0
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            self.api.asked(self, head.decode(), rest[:length])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


@define(eq=False)
class Api:
    """Chutes' API with the instances behind it; ``scripts`` answer one invocation each, then ``default`` does."""

    scripts: list[Script] = field(factory=list)
    default: Script = field(factory=lambda: blob())
    instances: dict[str, MLKEM768PrivateKey] = field(factory=dict)
    invoked: list[Invoked] = field(factory=list)
    listings: int = 0
    listing_script: Callable[[ApiSide], None] | None = None
    connections: list[ApiSide] = field(factory=list)
    wire: bytes = b""
    port: Any = None
    _waiting: list[tuple[int, Deferred[None]]] = field(factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port.getHost().port}"

    def asked(self, side: ApiSide, head: str, body: bytes) -> None:
        lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        assert headers["authorization"] == "Bearer cpk-operator"
        if lines[0].startswith("GET /e2e/instances/chute-1 "):
            self.listings += 1
            (self.listing_script or self.list_instances)(side)
            return
        assert lines[0] == "POST /e2e/invoke HTTP/1.1"
        clear = json.loads(open_request(self.instances[headers["x-instance-id"]], body))
        call = Invoked(side, headers, clear)
        self.invoked.append(call)
        (self.scripts.pop(0) if self.scripts else self.default)(call)
        for count, waiter in self._waiting:
            if count == len(self.invoked):
                waiter.callback(None)

    def when_invoked(self, count: int) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        self._waiting.append((count, waiter))
        return waiter

    def list_instances(self, side: ApiSide) -> None:
        entries = [
            {
                "instance_id": name,
                "e2e_pubkey": b64encode(private.public_key().public_bytes_raw()).decode(),
                "nonces": [token_urlsafe(18) for _ in range(10)],
            }
            for name, private in self.instances.items()
        ]
        body = json.dumps({"instances": entries, "nonce_expires_in": 60}).encode()
        side.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body)
        )
        side.transport.loseConnection()


class Observer:
    """Keeps what an attempt reports; ``over`` fires with its end."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.over: Deferred[None] = Deferred()
        self.first: Deferred[None] = Deferred()

    def head(self, head: Any) -> None:
        self.events.append(head)

    def body(self, data: bytes, framed: bytes = b"") -> None:
        self.events.append(data)
        if not self.first.called:
            self.first.callback(None)

    def end(self) -> None:
        self.events.append("end")
        self.over.callback(None)

    def answer(self, head: Any, data: bytes) -> None:
        self.events += [head, data, "end"]
        self.over.callback(None)

    def failed(self, failure: Any) -> None:
        self.events.append(failure)
        self.over.callback(None)

    @property
    def body_bytes(self) -> bytes:
        return b"".join(event for event in self.events if isinstance(event, bytes))

    @property
    def told(self) -> Any:
        return self.events[-1]


class Bench:
    """A transport before an API, with a clock of the test's own for all but connecting."""

    def __init__(self, api: Api, **terms: Any) -> None:
        from twisted.internet import reactor

        self.api = api
        self.clock = Clock()
        self.counted: list[str] = []
        self.catalog_wanted = 0
        self.usable = True
        self.attested: Attested | None = Attested("off")
        self.in_thread: Callable[..., Deferred[Any]] = partial(deferToThreadPool, reactor, reactor.getThreadPool())
        self.connections = ConnectionPool(reactor, endpoints_for(reactor, None), 5.0)
        self.deadlines = Deadlines(self.clock)
        self.transport = ChuteTransport(
            ChuteTerms("cpk-operator", **terms),
            api.url,
            listings_from(HTTPClient(Agent(reactor)), api.url, "cpk-operator", self.clock),
            self.connections,
            self.deadlines,
            self.clock,
            self.clock.seconds,
            lambda: 0.5,
            lambda work: self.in_thread(work),
            {"org/Model": "chute-1", "org/Gone": "chute-2/../x"}.get,
            usable=lambda instance_id, key: self.usable,
            counted=self.counted.append,
            refresh_catalog=self.refresh_catalog,
            attested=lambda instance_id, key: self.attested,
        )

    def refresh_catalog(self) -> None:
        self.catalog_wanted += 1

    def open(self, model: str = "org/Model", timeout: float = 10.0, **body: Any) -> tuple[Any, Observer]:
        data = json.dumps({"model": model, "messages": [{"content": MARKER}], **body}).encode()
        fields = b"Authorization: Bearer client-token\r\nCookie: secret\r\nX-Request-Id: r-1\r\n"
        request = UpstreamRequest(b"POST", b"/v1/chat/completions", fields, (data[:5], data[5:]))
        observer = Observer()
        attempt = self.transport.open(model, request, timeout, observer)
        attempt.start()
        return attempt, observer

    async def finished(self, **body: Any) -> Observer:
        _, observer = self.open(**body)
        await observer.over
        return observer

    async def turn(self) -> None:
        from twisted.internet import reactor

        await deferLater(reactor, 0.001)

    async def until(self, condition: Callable[[], bool]) -> None:
        from twisted.internet import reactor

        while not condition():
            await deferLater(reactor, 0.001)


@pytest.fixture
def api() -> Iterator[Api]:
    from twisted.internet import reactor

    api = Api(instances={name: MLKEM768PrivateKey.generate() for name in ("i-1", "i-2", "i-3")})
    factory = Factory.forProtocol(lambda: ApiSide(api))
    factory.noisy = False
    api.port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    yield api
    blockon(maybeDeferred(api.port.stopListening))
    for side in api.connections:
        if not side.lost.called:
            side.transport.abortConnection()
    blockon(gatherResults([side.lost for side in api.connections]))


@pytest.fixture
def start(api: Api) -> Iterator[Callable[..., Bench]]:
    benches = []

    def start(**terms: Any) -> Bench:
        benches.append(Bench(api, **terms))
        return benches[-1]

    yield start
    for bench in benches:
        bench.transport.retire()
        bench.deadlines.stop()
        blockon(bench.connections.close())


@pytest.fixture
def bench(start: Callable[..., Bench]) -> Bench:
    return start()


def refusal_of(observer: Observer) -> tuple[str, bool, str]:
    refused = observer.told
    assert isinstance(refused, Refused)
    return refused.error.code, refused.retry, refused.reason


async def test_an_answer_is_opened(bench: Bench) -> None:
    """The observer gets an ordinary answer; the API saw the operator's key, sizes and ids, the instance the request."""
    attempt, observer = bench.open(temperature=0.5, e2e_response_pk="the client's")
    await observer.over
    head, data, _ = observer.events
    assert (head.status, data) == (200, ANSWER)
    assert dict(head.headers) == {b"Content-Type": b"application/json", b"Content-Length": b"%d" % len(ANSWER)}
    (call,) = bench.api.invoked
    expected = {"content-type", "x-chute-id", "x-instance-id", "x-e2e-nonce", "x-e2e-stream", "x-e2e-path"}
    assert set(call.headers) == expected | {"host", "authorization", "content-length", "accept-encoding"}
    sent = [call.headers[name] for name in ("x-chute-id", "x-e2e-stream", "x-e2e-path", "accept-encoding")]
    assert sent == ["chute-1", "false", "/v1/chat/completions", "identity"]
    assert (call.clear["model"], call.clear["temperature"]) == ("org/Model", 0.5)
    assert call.clear["messages"][0]["content"] == MARKER
    assert MARKER.encode() not in bench.api.wire
    assert b"client-token" not in bench.api.wire
    private = bench.api.instances[call.headers["x-instance-id"]]
    key_hash = sha256(private.public_key().public_bytes_raw()).digest()
    assert (attempt.chute_id, attempt.instance_id) == ("chute-1", call.headers["x-instance-id"])
    assert attempt.instance_key_sha256 == key_hash


async def test_a_stream_is_opened_as_it_comes(bench: Bench) -> None:
    """First the head, then each event with its record; the connection then carries the next request."""
    bench.api.scripts = [stream(A, B, DONE), stream(A, DONE)]
    for clear in (A + B + DONE, A + DONE):
        observer = await bench.finished(stream=True)
        assert observer.events[0].headers == ((b"Content-Type", b"text/event-stream"),)
        assert (observer.body_bytes, observer.told) == (clear, "end")
        await bench.until(lambda: bench.connections.idle_count == 1)
    assert [call.headers["x-e2e-stream"] for call in bench.api.invoked] == ["true", "true"]
    assert bench.api.invoked[0].side is bench.api.invoked[1].side


async def test_a_record_of_very_many_events_leaves_the_reactor_its_turns(bench: Bench) -> None:
    """It is opened in slices, and in none while the client takes no more; its end comes last."""
    many = A * 3000
    bench.api.scripts = [stream(many, DONE)]
    attempt, observer = bench.open(stream=True)
    await observer.first
    first = observer.body_bytes
    for _ in range(5):
        await bench.turn()
    assert observer.body_bytes == first
    assert len(first) <= SLICE_BYTES
    attempt.pause()
    bench.clock.advance(0)
    assert observer.body_bytes == first
    attempt.resume()
    while not observer.over.called:
        bench.clock.advance(0)
        await bench.turn()
    assert (observer.body_bytes, observer.told) == (many + DONE, "end")
    assert max(len(event) for event in observer.events if isinstance(event, bytes)) <= SLICE_BYTES


async def test_what_comes_behind_a_long_record_waits_for_it(bench: Bench) -> None:
    """The loss of the connection too, which is told when all is opened; an aborted attempt opens no more."""
    many = A * 3000

    def lost_behind(call: Invoked) -> None:
        stream(many, end=False)(call)
        call.side.transport.loseConnection()

    bench.api.scripts = [lost_behind, lost_behind]
    attempt, observer = bench.open(stream=True)
    await observer.first
    side = bench.api.invoked[0].side
    await side.lost
    while not observer.over.called:
        await bench.turn()
        bench.clock.advance(0)
    assert (observer.body_bytes, observer.told) == (many, Lost())
    attempt, observer = bench.open(stream=True)
    await observer.first
    attempt.abort()
    told = len(observer.events)
    bench.clock.advance(0)
    assert len(observer.events) == told


async def test_bodies_that_take_long_go_through_a_thread(bench: Bench) -> None:
    """Both ways, and in one piece to the observer."""
    answer = json.dumps({"id": token_urlsafe(THREAD_BYTES)}).encode()
    bench.api.scripts = [blob(answer)]
    observer = await bench.finished(user=token_urlsafe(THREAD_BYTES))
    assert observer.events[1] == answer
    assert len(bench.api.invoked[0].clear["user"]) > THREAD_BYTES


async def test_no_nonce_instance_key_or_sealing_is_used_twice(bench: Bench) -> None:
    """Requests go round the instances, and each has its own of everything else."""
    for _ in range(6):
        await bench.finished()
    calls = bench.api.invoked
    assert [call.headers["x-instance-id"] for call in calls] == ["i-1", "i-2", "i-3"] * 2
    assert len({call.headers["x-e2e-nonce"] for call in calls}) == 6
    assert len({call.clear["e2e_response_pk"] for call in calls}) == 6
    assert bench.api.listings == 1


@pytest.mark.parametrize(
    ("script", "refusal"),
    [
        (refuse(401), ("chutes_upstream_auth", False, "upstream_auth")),
        (refuse(403, "Not allowed"), ("chutes_upstream_auth", False, "upstream_auth")),
        (refuse(402), ("chutes_upstream_quota", False, "upstream_quota")),
        (refuse(422), ("chutes_e2ee_protocol", False, "protocol")),
        (refuse(400, "Empty request body"), ("chutes_e2ee_protocol", False, "protocol")),
        (refuse(503, "This chute is currently disabled."), ("chutes_e2ee_no_session", True, "chute_disabled")),
        (refuse(404, "Chute not found"), ("chutes_e2ee_no_session", True, "chute_gone")),
    ],
)
async def test_a_refusal_that_no_other_instance_would_change(
    bench: Bench, script: Script, refusal: tuple[str, bool, str]
) -> None:
    """One request, and what becomes of it is said to failover."""
    bench.api.scripts = [script]
    assert refusal_of(await bench.finished()) == refusal
    assert len(bench.api.invoked) == 1
    assert bench.counted == [refusal[2]]


@pytest.mark.parametrize(
    ("script", "status", "code", "wait"),
    [
        (refuse(429, "slow down", "Retry-After: 7\r\n"), 429, "rate_limit_exceeded", b"7"),
        (refuse(429, "Instance is at maximum capacity", "Retry-After: soon\r\n"), 429, "rate_limit_exceeded", None),
        (refuse(429, "quota"), 429, "insufficient_quota", None),
        (refuse(400, MARKER), 400, "upstream_400", None),
    ],
)
async def test_a_refusal_that_is_the_clients(
    bench: Bench, script: Script, status: int, code: str, wait: bytes | None
) -> None:
    """It is an answer with its status, in words of our own."""
    bench.api.scripts = [script]
    observer = await bench.finished()
    head, data, _ = observer.events
    error = json.loads(data)["error"]
    assert (head.status, error["code"], error["type"]) == (status, code, "upstream_error")
    assert dict(head.headers).get(b"Retry-After") == wait
    assert MARKER not in error["message"]


@pytest.mark.parametrize(
    "script",
    [
        refuse(404, "Instance not found"),
        refuse(410, "Instance is no longer active"),
        refuse(400, "Non-streaming E2E requests require chutes >= 0.5.27"),
        refuse(502, "Instance requires key exchange"),
        refuse(500, "Internal error during E2E invocation"),
    ],
)
async def test_another_instance_is_asked(bench: Bench, script: Script) -> None:
    """With another nonce and sealed anew, and the first is not asked by the next request either."""
    bench.api.scripts = [script]
    observer = await bench.finished()
    assert observer.events[1] == ANSWER
    await bench.finished()
    await bench.finished()
    instances = [call.headers["x-instance-id"] for call in bench.api.invoked]
    assert instances[0] not in instances[1:]
    assert len({call.headers["x-e2e-nonce"] for call in bench.api.invoked}) == 4


async def test_a_stale_instance_shows_that_all_were_listed_too_long_ago(bench: Bench) -> None:
    """So there is a new listing, and another instance of it gets the request."""
    bench.api.scripts = [refuse(400, "Instance does not belong to the specified chute")]
    observer = await bench.finished()
    assert observer.events[1] == ANSWER
    first, second = (call.headers["x-instance-id"] for call in bench.api.invoked)
    assert first != second
    assert bench.api.listings == 2


async def test_the_number_of_instances_is_bounded(start: Callable[..., Bench], api: Api) -> None:
    """Then the next candidate has its turn."""
    api.default = refuse(404, "Instance not found")
    assert refusal_of(await start(max_instance_tries=1).finished())[2] == "instance_gone"
    assert len(api.invoked) == 1
    assert refusal_of(await start(max_instance_tries=3).finished()) == (
        "chutes_e2ee_no_session", True, "instance_gone"
    )  # fmt: skip
    assert len(api.invoked) == 4


async def test_after_a_failed_instance_only_one_more_is_asked(start: Callable[..., Bench], api: Api) -> None:
    """Even where more are allowed; both are left alone for half a minute."""
    bench = start(max_instance_tries=5)
    api.scripts = [refuse(500), refuse(502, "Instance returned status 500")]
    assert refusal_of(await bench.finished()) == ("upstream_first_body_byte_error", True, "instance_failed")
    assert len(api.invoked) == 2
    await bench.finished()
    await bench.finished()
    assert [call.headers["x-instance-id"] for call in api.invoked[2:]] == ["i-3", "i-3"]
    bench.clock.advance(30)
    await bench.finished()
    assert api.invoked[-1].headers["x-instance-id"] != "i-3"


async def test_a_rejected_nonce_costs_its_whole_answer(bench: Bench) -> None:
    """New ones are asked for, once; the instance is not to blame."""
    bench.api.instances = {"i-1": bench.api.instances["i-1"]}
    bench.api.scripts = [refuse(403, "Invalid or expired nonce")]
    observer = await bench.finished()
    assert observer.events[1] == ANSWER
    assert (bench.api.listings, len(bench.api.invoked)) == (2, 2)
    bench.api.scripts = [refuse(403, "nonce")] * 2
    assert refusal_of(await bench.finished()) == ("chutes_e2ee_no_session", True, "nonce_rejected")
    assert len(bench.api.invoked) == 4


async def test_a_full_instance_may_give_way_to_another_one(start: Callable[..., Bench], api: Api) -> None:
    """If the operator wants it; never another model: when all are full that is the answer."""
    bench = start(instance_429="next-instance")
    full = refuse(429, "Instance is at maximum capacity, try again later")
    api.scripts = [full]
    assert (await bench.finished()).events[1] == ANSWER
    for _ in range(4):
        await bench.finished()
    assert [call.headers["x-instance-id"] for call in api.invoked] == ["i-1", "i-2", "i-3"] * 2
    api.scripts = [full, full]
    assert (await bench.finished()).events[0].status == 429


async def test_a_chute_that_is_gone_is_left_until_the_next_catalog(bench: Bench) -> None:
    """Which is asked for."""
    bench.api.scripts = [refuse(404, "Chute not found")]
    await bench.finished()
    assert bench.catalog_wanted == 1
    assert not bench.transport.has_session("org/Model")
    assert bench.transport.obstacle("org/Model:THINKING") == "chute_gone"
    assert refusal_of(await bench.finished())[2] == "chute_gone"
    assert len(bench.api.invoked) == 1
    bench.transport.catalog_refreshed()
    assert (await bench.finished()).told == "end"


async def test_an_old_instance_still_serves_streams(bench: Bench) -> None:
    """It is passed over only where the answer is to come in one piece."""
    bench.api.instances = {"i-1": bench.api.instances["i-1"]}
    bench.api.scripts = [refuse(400, "Non-streaming E2E requests require chutes >= 0.5.27"), stream(A, DONE)]
    assert refusal_of(await bench.finished()) == ("chutes_e2ee_no_session", True, "stream_only")
    assert (await bench.finished(stream=True)).body_bytes == A + DONE


TAMPERED_STREAMS: list[tuple[Script, str]] = [
    (outer(init, lambda s: outer_event("e2e", bytes(60))), "bad_tag"),
    (outer(record(A), record(DONE)), "no_init"),
    (outer(init, init, record(A)), "second_init"),
    (outer(init, clear_event({"e2e_error": {"message": MARKER}})), "clear_error"),
    (outer(init, b"data: [DONE]\n\n"), "truncated"),
    (outer(init, record(b"data: {")), "truncated"),
    (outer(init, record(DONE)), "truncated"),
    (outer(), "no_init"),
    (outer(init, b"data: {{{\n\n"), "garbage"),
    (outer(init, record(A), b"data: {{{\n\n"), "garbage"),  # all in one read
    (blob(), "garbage"),
    (lambda call: call.respond(200, b"", "text/event-stream", "Content-Encoding: gzip\r\n"), "garbage"),
]


@pytest.mark.parametrize(("script", "code"), TAMPERED_STREAMS)
async def test_a_stream_refused_before_its_first_event(bench: Bench, script: Script, code: str) -> None:
    """Nothing was relayed, another model may be tried, and the instance is left alone for five minutes."""
    bench.api.scripts = [script]
    observer = await bench.finished(stream=True)
    assert refusal_of(observer) == ("chutes_e2ee_protocol", True, code)
    assert observer.body_bytes == b""
    assert bench.counted == [code]
    bench.api.default = stream(A, DONE)
    bench.clock.advance(20)
    for _ in range(4):
        await bench.finished(stream=True)
    assert [call.headers["x-instance-id"] for call in bench.api.invoked].count("i-1") == 1


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (lambda key: seal_packed(key, packed(ANSWER))[:-1] + b"\0", "application/octet-stream", "bad_tag"),
        (lambda key: b"x" * 1000, "application/octet-stream", "bad_blob"),
        (lambda key: seal_packed(key, gzip_bomb(9)), "application/octet-stream", "too_large"),
        (lambda key: bytes(8 * 1024 * 1024 + 1), "application/octet-stream", "too_large"),
        (lambda key: seal_packed(key, packed(ANSWER) * 2), "application/octet-stream", "bad_gzip"),
        (lambda key: b'{"e2e": "AAAA"}', "application/json", "garbage"),
        (lambda key: ANSWER, "application/octet-stream", "bad_blob"),
    ],
    ids=["tag", "short", "bomb", "large", "two members", "envelope", "clear"],
)
async def test_a_whole_answer_refused(bench: Bench, body: Any, content_type: str, code: str) -> None:
    """The same for answers that are no streams."""
    bench.api.scripts = [lambda call: call.respond(200, body(call.answer_key), content_type)]
    observer = await bench.finished()
    assert refusal_of(observer) == ("chutes_e2ee_protocol", True, code)
    assert bench.counted == [code]


@pytest.mark.parametrize(
    ("event", "code"),
    [(b"data: garbage\n\n", "garbage"), (lambda s: outer_event("e2e", bytes(60)), "bad_tag"), (b"", "truncated")],
)
async def test_a_stream_refused_after_its_first_event_is_cut(bench: Bench, event: Any, code: str) -> None:
    """What came before is relayed, and an end never is."""

    def script(call: Invoked) -> None:
        sealing = call.begin_stream()
        call.chunk(init(sealing) + record(A)(sealing))
        observer.first.addCallback(lambda _: rest(call, sealing))

    def rest(call: Invoked, sealing: StreamSealing) -> None:
        call.chunk(record(B)(sealing) + (event(sealing) if callable(event) else event))
        call.write(b"0\r\n\r\n")

    bench.api.scripts = [script]
    _, observer = bench.open(stream=True)
    await observer.over
    assert (observer.body_bytes, observer.told) == (A + B, Lost())
    assert bench.counted == [code]


async def test_lost_connections_are_told_by_phase(bench: Bench) -> None:
    """Before the head nothing was made of it; after it the answer is broken and the instance left for a while."""
    bench.api.scripts = [reset]
    assert (await bench.finished()).told == ConnectFailed()

    def half(call: Invoked) -> None:
        stream(A, end=False)(call)
        observer.first.addCallback(lambda _: reset(call))

    bench.api.scripts = [half]
    _, observer = bench.open(stream=True)
    await observer.over
    assert (observer.body_bytes, observer.told) == (A, Lost())
    assert bench.counted == ["connection_lost"]


async def test_a_refused_connection(bench: Bench) -> None:
    """Its nonce is gone all the same."""
    await bench.finished()
    await bench.api.port.stopListening()
    await bench.until(lambda: bench.connections.idle_count == 1)
    bench.api.connections[-1].transport.abortConnection()
    await bench.until(lambda: bench.connections.idle_count == 0)
    assert (await bench.finished()).told == ConnectFailed()


async def test_a_stale_connection_costs_a_session_and_nothing_else(bench: Bench) -> None:
    """The request is sealed anew for a new connection: no nonce goes out twice, not even there."""
    await bench.finished()
    bench.api.scripts = [reset]
    observer = await bench.finished()
    assert observer.events[1] == ANSWER
    calls = bench.api.invoked
    assert calls[0].side is calls[1].side is not calls[2].side
    assert len({call.headers["x-e2e-nonce"] for call in calls}) == 3
    assert bench.counted == []


async def test_the_header_deadline_counts_the_wait_for_a_session(bench: Bench) -> None:
    """Ten seconds in all: three for the listing, seven for the head."""
    waiting: list[ApiSide] = []
    bench.api.listing_script = waiting.append
    bench.api.scripts = [silent]
    _, observer = bench.open(timeout=10.0)
    await bench.until(lambda: bool(waiting))
    bench.clock.advance(3)
    invoked = bench.api.when_invoked(1)
    bench.api.list_instances(waiting[0])
    await invoked
    bench.clock.advance(6.9)
    assert observer.events == []
    bench.clock.advance(0.2)
    assert observer.told == DeadlinePassed("header")


async def test_a_session_is_waited_for_so_long(bench: Bench) -> None:
    """Then the next candidate has its turn, though there was time left for a head."""
    waiting: list[ApiSide] = []
    bench.api.listing_script = waiting.append
    _, observer = bench.open(timeout=10.0)
    await bench.until(lambda: bool(waiting))
    bench.clock.advance(5)
    assert refusal_of(observer) == ("chutes_e2ee_no_session", True, "discovery_failed")


async def test_the_header_deadline_lasts_until_a_whole_answer_is_there(bench: Bench) -> None:
    """Its head came, the rest never does."""

    def half(call: Invoked) -> None:
        call.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 2000\r\n\r\nhalf")

    bench.api.scripts = [half]
    attempt, observer = bench.open()
    await bench.until(lambda: repr(attempt) == "ChuteAttempt(blob)")
    bench.clock.advance(10)
    assert observer.events == [DeadlinePassed("header")]


async def test_only_a_record_meets_the_first_byte_deadline(bench: Bench) -> None:
    """Neither the init nor clear events and comments do; part of an event in a record does."""
    bench.api.scripts = [outer_forever(b": hi\n\n", init, clear_event({"usage": {}}))]
    attempt, observer = bench.open(stream=True)
    await bench.until(lambda: len(observer.events) == 1)
    attempt.expect_body(5.0)
    await bench.until(lambda: bench.api.invoked[0].side.transport.dataBuffer == b"")
    bench.clock.advance(5)
    assert observer.told == DeadlinePassed("first_byte")

    bench.api.scripts = [outer_forever(init)]
    attempt, observer = bench.open(stream=True)
    await bench.until(lambda: len(observer.events) == 1)
    attempt.expect_body(5.0)
    sealing, call = SEALINGS[-1]
    call.chunk(record(b"data: ")(sealing))
    await bench.until(lambda: attempt._opener.authenticated)
    bench.clock.advance(50)
    call.chunk(record(A[6:] + DONE)(sealing))
    await observer.over
    assert (observer.body_bytes, observer.told) == (A + DONE, "end")


SEALINGS: list[tuple[StreamSealing, Invoked]] = []


def outer_forever(*events: Any) -> Script:
    """A stream that begins so and goes on when the test says."""

    def script(call: Invoked) -> None:
        sealing = call.begin_stream()
        SEALINGS.append((sealing, call))
        for event in events:
            call.chunk(event(sealing) if callable(event) else event)

    return script


async def test_the_authenticated_end_is_the_end(bench: Bench) -> None:
    """Whatever the API does then: the client's answer is complete, and a connection left open is closed soon."""
    bench.api.scripts = [stream(A, DONE, end=False)]
    observer = await bench.finished(stream=True)
    assert (observer.body_bytes, observer.told) == (A + DONE, "end")
    side = bench.api.invoked[0].side
    assert not side.lost.called
    bench.clock.advance(2)
    await side.lost


@pytest.mark.parametrize("phase", ["waiting", "sealing", "sending", "blob", "stream"])
async def test_an_aborted_attempt_says_nothing_more(bench: Bench, phase: str) -> None:
    """In every phase, and its session is given up."""
    waiting: list[ApiSide] = []
    if phase == "waiting":
        bench.api.listing_script = waiting.append
    scripts: dict[str, Script] = {"stream": stream(A, end=False), "sending": silent}
    bench.api.scripts = [scripts.get(phase, half_a_blob)]
    body = {"user": "x" * THREAD_BYTES} if phase == "sealing" else {}
    in_thread: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def later(work: Callable[[], Any]) -> Deferred[Any]:
        in_thread.append((work, Deferred()))
        return in_thread[0][1]

    bench.in_thread = later
    attempt, observer = bench.open(stream=phase == "stream", **body)
    await bench.until(lambda: repr(attempt) == f"ChuteAttempt({phase})")
    if phase == "waiting":
        await bench.until(lambda: bool(waiting))
    if phase == "sending":
        await bench.until(lambda: len(bench.api.invoked) == 1)
    told = len(observer.events)
    attempt.abort()
    attempt.abort()
    bench.api.scripts.clear()
    for work, done in in_thread:
        done.callback(work())
    if waiting:
        bench.api.list_instances(waiting[0])
        await bench.until(lambda: bench.transport.has_session("org/Model"))
    bench.clock.advance(1)
    bench.api.listing_script = None
    await bench.finished()
    assert len(observer.events) == told


def half_a_blob(call: Invoked) -> None:
    call.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 2000\r\n\r\nhalf")


async def test_a_paused_attempt_reads_no_more(bench: Bench) -> None:
    """Until it is resumed."""
    bench.api.scripts = [outer_forever(init)]
    attempt, observer = bench.open(stream=True)
    await bench.until(lambda: len(observer.events) == 1)
    attempt.pause()
    sealing, call = SEALINGS[-1]
    call.chunk(record(A)(sealing))
    await bench.until(lambda: not call.side.transport.dataBuffer)
    await bench.finished()
    assert observer.body_bytes == b""
    attempt.resume()
    await observer.first
    attempt.abort()


@pytest.mark.parametrize(
    ("model", "sent", "thinking"),
    [
        ("org/Model:THINKING", "org/Model", True),
        ("org/Model:latency", "org/Model", None),
        ("org/Model:throughput:THINKING", "org/Model", True),
    ],
)
async def test_the_platforms_suffixes_end_here(bench: Bench, model: str, sent: str, thinking: bool | None) -> None:
    """An instance knows its model by one name; what a suffix means for it is said in the request."""
    assert (await bench.finished(model=model)).told == "end"
    clear = bench.api.invoked[0].clear
    assert clear["model"] == sent
    assert clear.get("chat_template_kwargs", {}).get("enable_thinking") is thinking


@pytest.mark.parametrize("model", ["org/Unknown", "org/Gone", "org/model"])
async def test_a_model_without_a_chute_is_no_candidate(bench: Bench, model: str) -> None:
    """Nothing is asked of the API; names are exact, and an id that is none is not put into a URL."""
    assert refusal_of(await bench.finished(model=model)) == ("chutes_e2ee_no_session", True, "chute_gone")
    bench.transport.prefetch([model])
    assert not bench.transport.has_session(model)
    assert (bench.transport.obstacle(model), bench.transport.obstacle("org/Model")) == ("chute_gone", None)
    assert bench.api.listings == 0


async def test_a_stream_that_is_no_boolean_is_the_clients_fault(bench: Bench) -> None:
    """No instance gets to see it, for its answer would be taken for a forgery."""
    assert refusal_of(await bench.finished(stream=1)) == ("invalid_body", False, "request_refused")


async def test_an_instance_without_a_verdict_gets_nothing(bench: Bench) -> None:
    """The transport tells which instances there are to be attested."""
    bench.usable = False
    assert refusal_of(await bench.finished()) == ("no_attested_candidate", True, "no_verdict")
    assert bench.api.invoked == []
    known = {(chute, instance.instance_id, instance.key_text) for chute, instance in bench.transport.instances()}
    assert {(chute, name) for chute, name, _ in known} == {("chute-1", name) for name in bench.api.instances}
    bench.usable = True
    assert (await bench.finished()).told == "end"


async def test_what_held_of_the_key_when_it_was_used_is_kept(bench: Bench) -> None:
    """A verdict that ends or is given anew before the answer does says nothing of what was sealed before."""
    bench.attested = Attested("quote", "ab")
    bench.api.default = silent
    attempt, observer = bench.open()
    await bench.until(lambda: bool(bench.api.invoked))
    bench.attested = None
    blob()(bench.api.invoked[0])
    await observer.over
    assert (observer.told, attempt.attested) == ("end", Attested("quote", "ab"))


async def test_prefetching_makes_a_session_ready(bench: Bench) -> None:
    """So that the first request need not wait."""
    assert not bench.transport.has_session("org/Model")
    bench.transport.prefetch(["org/Model", "org/Unknown"])
    await bench.until(lambda: bench.transport.has_session("org/Model"))
    await bench.finished()
    assert bench.api.listings == 1


async def test_what_is_another_processs_to_look_up_is_left_to_it(start: Callable[..., Bench]) -> None:
    """Of two that share one look-up a minute, each has every other minute."""
    bench = start(discovery_rpm=1, discovery_turn=Turn(1, 2))
    assert refusal_of(await bench.finished()) == ("chutes_e2ee_no_session", True, "discovery_limited")
    assert bench.api.listings == 0
    bench.clock.advance(60)
    assert (await bench.finished()).told == "end"


def test_nothing_secret_is_in_a_representation() -> None:
    """Settings and attempts may come into a traceback or a log."""
    assert "cpk" not in repr(ChuteTerms("cpk-operator"))
    assert ChuteAttempt.__repr__ is not object.__repr__
