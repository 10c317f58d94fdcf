"""Webhooks over real sockets: what arrives, whom it may go to, and that nobody can lead it anywhere else."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, SOCK_STREAM
from threading import Event
from typing import Any

import pytest
import trustme
from attrs import define, field
from chain_peers import ClockedReactor
from loopback_peers import Script, UpstreamSide, answer, reset, respond, silent
from OpenSSL.SSL import TLS_METHOD
from pytest_twisted import blockon
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred, gatherResults, maybeDeferred
from twisted.internet.protocol import Factory
from twisted.internet.ssl import Certificate, DefaultOpenSSLContextFactory, platformTrust, trustRootFromCertificates
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread, deferToThreadPool
from twisted.logger import formatEvent, globalLogPublisher

from chutes_autopilot import __version__
from chutes_autopilot.explorer import addresses
from chutes_autopilot.explorer.addresses import IPAddress
from chutes_autopilot.explorer.changes import Change
from chutes_autopilot.explorer.webhook_config import WebhookEndpoint
from chutes_autopilot.explorer.webhook_events import EVENT_TYPES
from chutes_autopilot.explorer.webhook_signing import verify
from chutes_autopilot.explorer_live.webhook_connections import LookUps
from chutes_autopilot.explorer_live.webhook_sending import MAX_ANSWER_BYTES, TIMEOUT, SendFailed, WebhookSender
from chutes_autopilot.explorer_live.webhooks import MAX_AT_ONCE, Webhooks
from chutes_autopilot.storage.webhook_queue import WebhookQueue

KEY = b"k" * 32
BODY = b'{"type":"model.added"}'
AUTHORITY = trustme.CA()


@define(eq=False)
class Receiver:
    """Listens on loopback, keeps what comes, and answers by a script for each request, then 204."""

    scripts: list[Script] = field(factory=list)
    requests: list[tuple[list[str], dict[str, str], bytes]] = field(factory=list)  # lines, headers, body
    connections: list[UpstreamSide] = field(factory=list)
    ports: list[Any] = field(factory=list)
    server_names: list[bytes | None] = field(factory=list)

    def asked(self, side: UpstreamSide, head: bytes, body: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        self.requests.append((lines, headers, body))
        (self.scripts.pop(0) if self.scripts else answer(b"", b"204 No Content"))(side)

    def listen(self, reactor: Any, tls: Any = None) -> int:
        factory = Factory.forProtocol(lambda: UpstreamSide(self))  # type: ignore[arg-type]
        factory.noisy = False
        if tls is None:
            self.ports.append(reactor.listenTCP(0, factory, interface="127.0.0.1"))
        else:
            self.ports.append(reactor.listenSSL(0, factory, tls, interface="127.0.0.1"))
        return int(self.ports[-1].getHost().port)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    blockon(gatherResults([maybeDeferred(port.stopListening) for port in receiver.ports]))
    for side in receiver.connections:
        if not side.lost.called:
            side.transport.abortConnection()
    blockon(gatherResults([side.lost for side in receiver.connections]))


class Names:
    """A reactor whose names resolve to what a test says, each time to the next of its answers."""

    def __init__(self, reactor: Any, *answers: str) -> None:
        self._reactor = reactor
        self._answers = list(answers)
        self.asked: list[str] = []
        self.dialled: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def connectTCP(self, host: str, *given: Any, **named: Any) -> Any:
        self.dialled.append(host)
        return self._reactor.connectTCP(host, *given, **named)

    def look_up(self, hostname: str) -> Deferred[tuple[IPAddress, ...]]:
        self.asked.append(hostname)
        return deferLater(self._reactor, 0, lambda: tuple(map(ip_address, self._answers.pop(0).split())))


def loopback_too(address: IPAddress) -> str | None:
    """The rules, but that 127.0.0.1 stands for a public address."""
    return None if str(address) == "127.0.0.1" else addresses.refusal(address)


def endpoint(
    port: int, host: str = "hooks.example", scheme: str = "http", path: str = "/in?token=s3cret"
) -> WebhookEndpoint:
    return WebhookEndpoint("hook", f"{scheme}://{host}:{port}{path}", KEY, frozenset(EVENT_TYPES))


StartSender = Callable[..., WebhookSender]


@pytest.fixture
def start_sender() -> Iterator[StartSender]:
    started: list[WebhookSender] = []

    def start(
        reactor: Any, trust_root: Any = None, refusal: Any = loopback_too, now: Callable[[], float] = lambda: 1e9
    ) -> WebhookSender:
        trust_root = trust_root or platformTrust()
        look_up = getattr(reactor, "look_up", None) or LookUps(reactor).look_up
        started.append(WebhookSender(reactor, trust_root, now, MAX_AT_ONCE, look_up, refusal=refusal))
        return started[-1]

    yield start
    from twisted.internet import reactor

    blockon(gatherResults([sender.close() for sender in started]))
    blockon(deferLater(reactor, 0))


async def failure_of(sender: WebhookSender, endpoint: WebhookEndpoint) -> str:
    with pytest.raises(SendFailed) as caught:
        await sender.send(endpoint, "msg_1", BODY)
    assert caught.value.__suppress_context__
    return caught.value.reason


async def test_a_message_arrives_as_the_receiver_expects_it(receiver: Receiver, start_sender: StartSender) -> None:
    """A POST that a verifier of Standard Webhooks believes, to the URL with its query, by the name in it."""
    from twisted.internet import reactor

    port = receiver.listen(reactor)
    names = Names(reactor, "127.0.0.1")
    assert await start_sender(names).send(endpoint(port), "msg_1", BODY) == 204
    ((lines, headers, body),) = receiver.requests
    assert (lines[0], headers["host"], body) == ("POST /in?token=s3cret HTTP/1.1", f"hooks.example:{port}", BODY)
    assert (headers["content-type"], headers["user-agent"]) == ("application/json", f"chutes-autopilot/{__version__}")
    assert verify([KEY], headers, body, 1e9) == "msg_1"


@pytest.mark.parametrize("status", [200, 301, 302, 307, 308, 410, 500])
async def test_every_status_is_told_and_no_redirect_is_followed(
    receiver: Receiver, start_sender: StartSender, status: int
) -> None:
    """Wherever it points."""
    from twisted.internet import reactor

    port = receiver.listen(reactor)
    receiver.scripts = [answer(b"moved", b"%d X" % status, b"Location: http://127.0.0.1:%d/" % port)]
    names = Names(reactor, "127.0.0.1")
    assert await start_sender(names).send(endpoint(port), "msg_1", BODY) == status
    assert (len(receiver.requests), len(receiver.connections), names.asked) == (1, 1, ["hooks.example"])


@pytest.mark.parametrize(
    ("resolved", "what"),
    [
        ("10.0.0.1", "private"),
        ("169.254.169.254", "link-local"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "IPv4 inside IPv6"),
        ("64:ff9b::7f00:1", "IPv4 inside IPv6 (NAT64)"),
        ("fe80::1%lo", "of one link only"),
        ("127.0.0.1 192.168.0.1", "private"),
        ("127.0.0.2 127.0.0.1", "loopback"),
    ],
)
async def test_a_name_is_refused_for_any_of_its_addresses(
    receiver: Receiver, start_sender: StartSender, resolved: str, what: str
) -> None:
    """Nothing is connected to, not even an address that may be."""
    from twisted.internet import reactor

    names = Names(reactor, resolved)
    assert await failure_of(start_sender(names), endpoint(receiver.listen(reactor))) == f"its address is {what}"
    assert (names.dialled, receiver.connections) == ([], [])


@pytest.mark.parametrize("host", ["localhost", "0x7f.1", "2130706433", "127.1"])
async def test_loopback_is_refused_as_the_system_resolves_it(
    receiver: Receiver, start_sender: StartSender, host: str
) -> None:
    """By the rules themselves and the real resolver: also notations that the configuration would not let pass."""
    from twisted.internet import reactor

    sender = start_sender(reactor, refusal=addresses.refusal)
    assert await failure_of(sender, endpoint(receiver.listen(reactor), host)) == "its address is loopback"
    assert receiver.connections == []


async def test_a_resolver_that_answers_nothing_holds_up_nobody_else() -> None:
    """However many names it is asked for: each waits for itself, in one thread for all who wait for it."""
    from twisted.internet import reactor

    asked, answers = [], Event()

    def getaddrinfo(hostname: str, *_: object, **__: object) -> list[Any]:
        asked.append(hostname)
        if hostname != "quick.example":
            answers.wait(20)
        if hostname == "unknown.example":
            raise OSError
        return [(AF_INET, SOCK_STREAM, 6, "", ("192.0.2.1", 0))]

    look_up = LookUps(reactor, getaddrinfo).look_up
    found = (ip_address("192.0.2.1"),)
    names = [*(f"{number}.example" for number in range(15)), "unknown.example"]
    slow = [look_up(name) for name in (*names, names[0], names[1])]
    try:
        assert await look_up("quick.example") == found
        await deferToThread(lambda: None)  # as upstreams are looked up
        slow[1].cancel()
        assert not any(each.called for each in slow if each is not slow[1])
    finally:
        answers.set()
    results = await DeferredList(slow, consumeErrors=True)
    assert [result for success, result in results if success] == [found] * 14 + [(), found, found]
    assert sorted(asked) == sorted([*names, "quick.example"])


async def test_an_address_in_the_url_is_judged_too(receiver: Receiver, start_sender: StartSender) -> None:
    """It needs no look-up to be refused."""
    from twisted.internet import reactor

    names = Names(reactor)
    sender = start_sender(names, refusal=addresses.refusal)
    for host in ("127.0.0.1", "[::1]"):
        await failure_of(sender, endpoint(receiver.listen(reactor), host))
    assert (names.asked, names.dialled) == ([], [])
    assert await start_sender(names).send(endpoint(receiver.listen(reactor), "127.0.0.1"), "msg_1", BODY) == 204


async def test_a_name_that_changes_its_mind_leads_nowhere(receiver: Receiver, start_sender: StartSender) -> None:
    """DNS rebinding: what was judged is what is connected to, and the next message is judged anew."""
    from twisted.internet import reactor

    names = Names(reactor, "127.0.0.1", "192.168.0.1", "127.0.0.1")
    sender, target = start_sender(names), endpoint(receiver.listen(reactor))
    assert await sender.send(target, "msg_1", BODY) == 204
    assert (names.asked, names.dialled) == (["hooks.example"], ["127.0.0.1"])
    assert await failure_of(sender, target) == "its address is private"
    assert await sender.send(target, "msg_2", BODY) == 204
    assert (names.asked, names.dialled) == (["hooks.example"] * 3, ["127.0.0.1"] * 2)


async def test_the_next_address_is_tried_where_one_does_not_answer(
    receiver: Receiver, start_sender: StartSender
) -> None:
    """Up to three of them, in their order."""
    from twisted.internet import reactor

    def all_loopback(address: IPAddress) -> str | None:
        return None if address.is_loopback else "other"

    names = Names(reactor, "127.0.0.2 127.0.0.3 127.0.0.1", "127.0.0.2 127.0.0.3 127.0.0.4 127.0.0.1", "")
    sender, target = start_sender(names, refusal=all_loopback), endpoint(receiver.listen(reactor))
    assert await sender.send(target, "msg_1", BODY) == 204
    assert await failure_of(sender, target) == "no connection (ConnectionRefusedError)"
    assert await failure_of(sender, target) == "its name cannot be resolved"
    assert len(receiver.connections) == 1


def certificate(name: str, directory: Path, receiver: Receiver) -> DefaultOpenSSLContextFactory:
    leaf = AUTHORITY.issue_cert(name)
    (directory / "key.pem").write_bytes(leaf.private_key_pem.bytes())
    (directory / "cert.pem").write_bytes(leaf.cert_chain_pems[0].bytes())
    factory = DefaultOpenSSLContextFactory(str(directory / "key.pem"), str(directory / "cert.pem"), TLS_METHOD)
    names = receiver.server_names
    factory.getContext().set_tlsext_servername_callback(lambda connection: names.append(connection.get_servername()))
    return factory


async def test_tls_is_for_the_name_and_not_for_the_address(
    receiver: Receiver, start_sender: StartSender, tmp_path: Path
) -> None:
    """The certificate must be the name's, which is also what the receiver hears (SNI); else it gets no byte."""
    from twisted.internet import reactor

    trust_root = trustRootFromCertificates([Certificate.loadPEM(AUTHORITY.cert_pem.bytes())])
    sender = start_sender(Names(reactor, *["127.0.0.1"] * 2), trust_root)
    port = receiver.listen(reactor, certificate("hooks.example", tmp_path, receiver))
    assert await sender.send(endpoint(port, scheme="https"), "msg_1", BODY) == 204
    assert (receiver.server_names, receiver.requests[0][1]["host"]) == ([b"hooks.example"], f"hooks.example:{port}")
    other = receiver.listen(reactor, certificate("other.example", tmp_path, receiver))
    assert (await failure_of(sender, endpoint(other, scheme="https"))).startswith("no connection")
    assert [side.buffer for side in receiver.connections[1:]] == [b""]


async def test_an_answer_that_does_not_end_is_cut(receiver: Receiver, start_sender: StartSender) -> None:
    """Its status counts all the same; no more of the body is read than the bound."""
    from twisted.internet import reactor

    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
    receiver.scripts = [respond(head + b"x" * (MAX_ANSWER_BYTES + 1))]
    sender = start_sender(Names(reactor, "127.0.0.1"))
    sending = ensureDeferred(sender.send(endpoint(receiver.listen(reactor)), "msg_1", BODY))
    while not sending.called:
        await deferLater(reactor, 0.001)  # not the sending itself, which would end well when the test's time is up
    assert await sending == 200
    await receiver.connections[0].lost


@pytest.mark.parametrize("script", [reset, respond(b"SSH-2.0-x\r\n\r\n"), respond(b"HTTP/1.1 2", close=True)])
async def test_what_is_no_answer_is_a_failure(receiver: Receiver, start_sender: StartSender, script: Script) -> None:
    """Cut, garbled or half."""
    from twisted.internet import reactor

    receiver.scripts = [script]
    sender = start_sender(Names(reactor, "127.0.0.1"))
    assert await failure_of(sender, endpoint(receiver.listen(reactor))) == "no valid answer"


async def asked(receiver: Receiver, reactor: Any) -> None:
    while not receiver.requests:
        await deferLater(reactor, 0.001)


async def test_whoever_does_not_answer_in_time_is_left(receiver: Receiver, start_sender: StartSender) -> None:
    """The connection is closed."""
    from twisted.internet import reactor

    clock = Clock()
    receiver.scripts = [silent]
    sender = start_sender(ClockedReactor(Names(reactor, "127.0.0.1"), clock))
    failing = ensureDeferred(failure_of(sender, endpoint(receiver.listen(reactor))))
    await asked(receiver, reactor)
    clock.advance(TIMEOUT - 0.1)
    assert not failing.called
    clock.advance(0.1)
    assert await failing == "no answer in time"
    await receiver.connections[0].lost


async def test_a_body_that_stalls_does_not_hold_the_message(receiver: Receiver, start_sender: StartSender) -> None:
    """The head has said that it was taken."""
    from twisted.internet import reactor

    clock = Clock()
    receiver.scripts = [respond(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx")]
    sender = start_sender(ClockedReactor(Names(reactor, "127.0.0.1"), clock))
    sending = ensureDeferred(sender.send(endpoint(receiver.listen(reactor)), "msg_1", BODY))
    await asked(receiver, reactor)
    while not sending.called:
        clock.advance(1)
        await deferLater(reactor, 0.001)
    assert await sending == 200
    assert clock.seconds() >= TIMEOUT
    await receiver.connections[0].lost


async def test_a_look_up_that_hangs_is_a_failure(start_sender: StartSender) -> None:
    """And what it brings later is not heeded."""
    from twisted.internet import reactor

    clock, names, answers = Clock(), Names(reactor), Event()

    def getaddrinfo(*_: object, **__: object) -> list[Any]:
        answers.wait(20)
        return [(AF_INET, SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    names.look_up = LookUps(reactor, getaddrinfo).look_up  # type: ignore[method-assign]
    failing = ensureDeferred(failure_of(start_sender(ClockedReactor(names, clock)), endpoint(80)))
    clock.advance(TIMEOUT)
    assert (await failing).startswith("no connection (TimeoutError)")
    same = names.look_up("hooks.example")
    answers.set()
    assert await same == (ip_address("127.0.0.1"),)
    assert names.dialled == []


async def test_from_a_change_to_its_delivery_over_a_restart(
    receiver: Receiver, start_sender: StartSender, tmp_path: Path
) -> None:
    """A failure, a stop, a new process: the same message comes again, newly signed. No log line holds a secret."""
    from twisted.internet import reactor

    clock = Clock()
    clock.advance(1e9)
    in_thread = partial(deferToThreadPool, reactor, reactor.getThreadPool())  # type: ignore[attr-defined]
    target = endpoint(receiver.listen(reactor))
    receiver.scripts = [answer(b"s3cret", b"503 s3cret")]
    log: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        log.append(formatEvent(event))

    async def claim(changes: Sequence[Change]) -> list[tuple[Change, str]]:
        return [(change, "msg_1") for change in changes]

    async def run(changes: list[Change], done: Callable[[Counter[str]], bool]) -> None:
        clocked = ClockedReactor(Names(reactor, *["127.0.0.1"] * 2), clock)
        counts = Counter[str]()
        queue = WebhookQueue(reactor, tmp_path, in_thread)
        sender = start_sender(clocked, now=clock.seconds)
        service = Webhooks([target], queue, sender, clock, clock.seconds, lambda: 0.5, claim, counts)
        service.startService()
        service.changed(changes)
        while not done(counts) or service._flights:
            await deferLater(reactor, 0.001)
        await service.stopService()

    globalLogPublisher.addObserver(observe)
    try:
        await run([Change("model.added", 1e9, "v1:m", None, "m")], lambda counts: counts["failed"] == 1)
        clock.advance(5)
        await run([], lambda counts: counts["delivered"] == 1)
    finally:
        globalLogPublisher.removeObserver(observe)
    (_, first, body), (_, second, again) = receiver.requests
    assert body == again
    assert json.loads(body)["data"]["name"] == "m"
    assert [verify([KEY], headers, body, 1e9) for headers in (first, second)] == ["msg_1"] * 2
    assert int(second["webhook-timestamp"]) - int(first["webhook-timestamp"]) == 5
    assert "webhook hook fails: status 503" in log
    assert not any(
        word in line for line in log for word in ("s3cret", "hooks.example", "kkkk", first["webhook-signature"])
    )
