"""The local endpoint between the OpenAI SDK and a gateway, over real sockets."""

import http.client
import json
import time
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from typing import Any

import openai
import pytest
from attrs import evolve
from local_endpoint import Local
from quote_factory import machine
from scripted_gateway import (
    ANSWER_ID,
    MODEL,
    TOKEN,
    Asked,
    ScriptedGateway,
    bound_quote,
    completion,
    echo,
    refuse,
    said,
)
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from chutes_autopilot.e2ee.curves import Algo
from chutes_autopilot.e2ee.response import seal_completion
from chutes_autopilot.e2ee.server_keys import ephemeral_keys
from chutes_autopilot.e2ee_client.exchange import Version
from chutes_autopilot.e2ee_client.proof import check_signature
from chutes_autopilot.e2ee_client.report import TrustPolicy

MARKER = "Marker of a prompt"
DONE = b"data: [DONE]\n\n"
IMAGE: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,Marker"}}


def messages(content: Any = MARKER) -> Any:
    return [{"role": "user", "content": content}]


def sdk(local: Local, api_key: str = "unused") -> openai.OpenAI:
    return openai.OpenAI(base_url=local.url, api_key=api_key, max_retries=0)


def ask(local: Local, content: Any = MARKER, **parameters: Any) -> Deferred[Any]:
    """One whole answer by the SDK, in a thread of its own."""

    def run() -> Any:
        with sdk(local) as client:
            return client.chat.completions.create(model=MODEL, messages=messages(content), **parameters)

    return deferToThread(run)


def stream(local: Local, seen: Callable[[str], None] = lambda _: None, **parameters: Any) -> Deferred[str]:
    """The text of a streamed answer by the SDK, in a thread of its own; ``seen`` is called there for each piece."""

    def run() -> str:
        text = ""
        with sdk(local) as client:
            for event in client.chat.completions.create(model=MODEL, messages=messages(), stream=True, **parameters):
                for choice in event.choices:
                    text += choice.delta.content or ""
                    seen(text)
        return text

    return deferToThread(run)


def plain_request(
    local: Local, method: str, path: str, body: bytes = b"", **headers: str
) -> Deferred[tuple[int, Any, bytes]]:
    """A request as bytes; status, headers and body of the answer."""

    def run() -> tuple[int, Any, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", local.port)) as connection:
            connection.request(method, path, body, headers)
            with connection.getresponse() as answer:
                return answer.status, answer.headers, answer.read()

    return deferToThread(run)


async def failed(answer: Deferred[Any]) -> Any:
    """The error that an SDK call ended with."""
    try:
        await answer
    except openai.APIError as error:
        return error
    raise AssertionError("the SDK raised nothing")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
async def test_the_sdk_is_encrypted_by_its_base_url(
    scripted: ScriptedGateway, start_local: Callable[..., Local], algo: Algo, version: Version
) -> None:
    """Streamed and whole: what the SDK says and reads is in clear here, and on the wire it is not."""
    local = start_local(algo=algo, version=version)
    whole = await ask(local, [{"type": "text", "text": MARKER}, IMAGE], max_tokens=5)
    assert json.loads(whole.choices[0].message.content)[0]["text"] == MARKER
    assert (whole.id, whole.usage.total_tokens) == (ANSWER_ID, 5)
    assert (await stream(local)).strip() == MARKER
    assert [asked.clear["messages"][0]["content"] for asked in scripted.asked][1:] == [MARKER]
    assert scripted.asked[0].clear["max_tokens"] == 5
    for asked in scripted.asked:
        assert b"Marker" not in asked.wire + asked.written
        assert (asked.exchange.algo, asked.exchange.version) == (algo, version)
    assert scripted.reports == 1
    assert local.lines == []


async def test_a_record_holds_what_the_gateway_signs(scripted: ScriptedGateway, local: Local) -> None:
    """Hashes of the exact bytes of each exchange, streamed or whole."""
    for exchange in (ask, stream):
        await exchange(local)
        record, asked = local.records[-1], scripted.asked[-1]
        assert record.request_sha256 == sha256(asked.wire).hexdigest()
        assert record.response_sha256 == sha256(asked.written).hexdigest()
        assert record.requested_model == MODEL
        check_signature(record, await local.gateway.document(f"signature/{record.id}", f"Bearer {TOKEN}"))


async def test_the_gateway_sees_nothing_of_the_program(scripted: ScriptedGateway, local: Local) -> None:
    """Neither the SDK's headers nor its key; only what the protocol names."""
    await ask(local)
    names = {name.lower() for name, _ in scripted.heads[-1]}
    expected = b"host content-length content-type accept accept-encoding authorization"
    sealing = b"x-signing-algo x-client-pub-key x-model-pub-key x-e2ee-version x-e2ee-nonce x-e2ee-timestamp"
    assert names == {*expected.split(), *sealing.split()}
    assert (b"Authorization", f"Bearer {TOKEN}".encode()) in scripted.heads[-1]


async def test_without_a_token_the_programs_key_is_passed_on(
    scripted: ScriptedGateway, start_local: Callable[..., Local]
) -> None:
    """So the SDK's api_key is the gateway's token, and a wrong one is the gateway's to refuse."""
    local = start_local(authorization=None)

    def models(key: str) -> Deferred[Any]:
        return deferToThread(lambda: sdk(local, key).models.list().data[0].id)

    assert await models(TOKEN) == MODEL
    error = await failed(models("wrong"))
    assert (error.status_code, error.code) == (401, "invalid_api_key")
    assert "wrong" not in str(local.lines)


async def test_a_stream_is_passed_on_as_it_comes(scripted: ScriptedGateway, local: Local) -> None:
    """Each event goes on when it is there: the second is not even sent before the first has been read."""
    from twisted.internet import reactor

    first: Deferred[None] = Deferred()

    def seen(text: str) -> None:
        if text == "one":
            reactor.callFromThread(first.callback, None)

    def script(asked: Asked) -> None:
        sealer = asked.sealer()
        asked.head()
        asked.write(sealer.feed(said("one")))

        def rest(_: None) -> None:
            asked.write(sealer.feed(said(" two") + DONE))
            asked.finish()

        first.addCallback(rest)

    scripted.scripts = iter([script])
    assert await stream(local, seen) == "one two"


async def test_a_client_that_leaves_ends_the_request(scripted: ScriptedGateway, local: Local) -> None:
    """The gateway's connection is cut when nobody reads any more, before and after the answer began."""
    from twisted.internet import reactor

    def begin(asked: Asked) -> None:
        asked.head()
        asked.write(asked.sealer().feed(said("x")))

    for script in (begin, lambda asked: None):
        scripted.scripts = iter([script])
        arrived = scripted.next_asked()
        client = Protocol()
        await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", local.port), client)
        client.transport.write(_chat_bytes({"stream": True}))
        asked = await arrived
        await deferLater(reactor, 0.01)
        client.transport.abortConnection()
        while not asked.left:
            await deferLater(reactor, 0.001)
    assert local.records == []


def _chat_bytes(members: dict[str, Any]) -> bytes:
    body = json.dumps({"model": MODEL, "messages": messages()} | members).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


@pytest.mark.wait(30)
async def test_a_slow_reader_slows_the_gateway_down(scripted: ScriptedGateway, local: Local) -> None:
    """A program that reads nothing stops the gateway's writing; when it reads again it gets everything."""
    from twisted.internet import reactor

    pieces, size = 240, 50_000
    producers: list[Any] = []

    class Source:
        """Writes as fast as it is let."""

        def __init__(self, asked: Asked) -> None:
            self.asked, self.sealer, self.written, self.paused = asked, asked.sealer(), 0, False

        def pauseProducing(self) -> None:
            self.paused = True

        def resumeProducing(self) -> None:
            self.paused = False
            while not self.paused and self.written < pieces:
                self.written += 1
                self.asked.write(self.sealer.feed(said("x" * size)))
            if self.written == pieces:
                self.written += 1
                self.asked.request.unregisterProducer()
                self.asked.write(self.sealer.feed(DONE))
                self.asked.finish()

        def stopProducing(self) -> None:
            self.paused = True

    def script(asked: Asked) -> None:
        asked.head()
        source = Source(asked)
        producers.append(source)
        asked.request.registerProducer(source, True)
        source.resumeProducing()

    class Reader(Protocol):
        received = 0
        tail = b""

        def __init__(self) -> None:
            self.ended: Deferred[None] = Deferred()

        def dataReceived(self, data: bytes) -> None:
            self.received += len(data)
            self.tail = (self.tail + data)[-100:]
            if self.tail.endswith(b"0\r\n\r\n") and not self.ended.called:
                self.ended.callback(None)

    scripted.scripts = iter([script])
    client = Reader()
    await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", local.port), client)
    arrived = scripted.next_asked()
    client.transport.write(_chat_bytes({"stream": True}))
    client.transport.pauseProducing()
    await arrived
    (source,) = producers
    stands = -1
    while stands != source.written or not source.paused:  # until nothing moves any more
        stands = source.written
        await deferLater(reactor, 0.2)
    assert stands < pieces
    client.transport.resumeProducing()
    await client.ended
    assert client.received > pieces * size
    assert b"data: [DONE]" in client.tail
    client.transport.loseConnection()


async def test_an_unknown_key_is_asked_for_again_once(scripted: ScriptedGateway, local: Local) -> None:
    """After a rotation the report is fetched anew and the request repeated with another nonce, unseen by the SDK."""
    await ask(local)
    scripted.keys = ephemeral_keys()
    assert (await ask(local)).choices[0].message.content == MARKER
    assert scripted.reports == 2
    assert scripted.refused == ["e2ee_model_key_mismatch"]
    nonces = [value for head in scripted.heads for name, value in head if name.lower() == b"x-e2ee-nonce"]
    assert len(nonces) == len(set(nonces)) == 3


async def test_a_gateway_that_never_knows_the_key_is_asked_twice(scripted: ScriptedGateway, local: Local) -> None:
    """The second refusal is passed on."""
    stranger = ephemeral_keys().current("ed25519")
    scripted.report_changes = {"signing_public_key": stranger.wire_hex, "signing_address": stranger.address}
    error = await failed(ask(local))
    assert (error.status_code, error.code) == (400, "e2ee_model_key_mismatch")
    assert (scripted.reports, len(scripted.bodies)) == (2, 2)


async def test_a_key_that_is_about_to_end_is_not_used(
    scripted: ScriptedGateway, start_local: Callable[..., Local]
) -> None:
    """Within its last minute, and after an hour in any case, the report is fetched again."""
    seconds = time.time()
    local = start_local(now=lambda: seconds)
    scripted.now = lambda: seconds
    scripted.report_changes = {"not_after": int(seconds) + 300}
    for later, reports in ((0, 1), (230, 1), (20, 2)):
        seconds += later
        await ask(local)
        assert scripted.reports == reports
    scripted.report_changes = {}
    for later, reports in ((0, 3), (3590, 3), (20, 4)):
        seconds += later
        await ask(local)
        assert scripted.reports == reports


async def test_errors_of_the_gateway_are_passed_on(scripted: ScriptedGateway, local: Local) -> None:
    """Status, body and what says when to come again; nothing is repeated."""
    scripted.scripts = iter(
        [refuse(429, "rate_limit_exceeded", Retry_After="7", Set_Cookie="a=b"), refuse(400, "e2ee_replay_detected")]
    )
    error = await failed(ask(local))
    assert (error.status_code, error.code, error.response.headers["retry-after"]) == (429, "rate_limit_exceeded", "7")
    assert "set-cookie" not in error.response.headers
    error = await failed(stream(local))
    assert (error.status_code, error.code) == (400, "e2ee_replay_detected")
    assert len(scripted.bodies) == 2


async def test_a_redirect_is_never_passed_on(scripted: ScriptedGateway, local: Local) -> None:
    """An SDK would follow it and send its request there in clear."""
    scripted.scripts = iter([refuse(307, "x", Location="http://127.0.0.1:1/"), refuse(204, "x")])
    for _ in range(2):
        error = await failed(ask(local))
        assert (error.status_code, error.code) == (502, "gateway_unexpected_status")
        assert "location" not in error.response.headers


def _answer_without(name: bytes) -> Callable[[Asked], None]:
    def script(asked: Asked) -> None:
        asked.head(name)
        asked.write(seal_completion(completion("secret"), asked.context)[0])
        asked.finish()

    return script


def _in_clear(asked: Asked) -> None:
    asked.head()
    asked.write(completion("secret"))
    asked.finish()


def _coded(asked: Asked) -> None:
    asked.request.setHeader("Content-Encoding", "gzip")
    echo(asked)


def _short(asked: Asked) -> None:
    asked.head()
    asked.request.setHeader("Content-Length", "100000")
    asked.write(b"{")
    asked.cut()


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (_answer_without(b"X-E2EE-Applied"), "e2ee_not_applied"),
        (_answer_without(b"Content-Type"), "e2ee_answer_malformed"),
        (_in_clear, "e2ee_answer_not_opened"),
        (_coded, "gateway_answer_coded"),
        (_short, "gateway_unreachable"),
    ],
)
async def test_an_answer_that_is_not_sealed_never_arrives(
    scripted: ScriptedGateway, local: Local, script: Callable[[Asked], None], code: str
) -> None:
    """The SDK gets an error in its place, and nothing is recorded."""
    scripted.scripts = iter([script])
    error = await failed(ask(local))
    assert (error.status_code, error.code) == (502, code)
    assert "secret" not in str(error) + str(local.lines)
    assert local.records == []
    assert local.lines[0].startswith(code)


def _stream_of(*events: bytes, sealed: tuple[bytes, ...] = (), cut: bool = False) -> Callable[[Asked], None]:
    """Sealed events first, then bytes as they are."""

    def script(asked: Asked) -> None:
        asked.head()
        sealer = asked.sealer()
        for event in sealed:
            asked.write(sealer.feed(event))
        for event in events:
            asked.write(event)
        if cut:
            asked.cut()
        else:
            asked.finish()

    return script


FIRST = said("first ")
BROKEN: list[tuple[str, Callable[[Asked], None], str]] = [
    ("an event in clear", _stream_of(said("secret"), DONE, sealed=(FIRST,)), "e2ee_answer_not_opened"),
    (
        "an error event",
        _stream_of(b'data: {"error":{"code":"upstream_error"}}\n\n', sealed=(FIRST,), cut=True),
        "upstream_error",
    ),
    ("no [DONE]", _stream_of(sealed=(FIRST,)), "upstream_stream_truncated"),
    ("a cut", _stream_of(sealed=(FIRST,), cut=True), "gateway_unreachable"),
]


@pytest.mark.parametrize(("script", "code"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
async def test_a_stream_that_breaks_its_promise_breaks_here_too(
    scripted: ScriptedGateway, local: Local, script: Callable[[Asked], None], code: str
) -> None:
    """What was good before is read, then the SDK raises; nobody takes it for a whole answer."""
    scripted.scripts = iter([script])
    seen: list[str] = []
    error = await failed(stream(local, seen.append))
    assert error.code == code
    assert seen[-1] == "first "
    assert local.records == []
    assert "secret" not in str(error) + str(local.lines)


async def test_a_broken_stream_is_cut_on_the_wire(scripted: ScriptedGateway, local: Local) -> None:
    """Behind the error event the body has no end, so that a reader who skips events sees it as well."""
    scripted.scripts = iter([_stream_of(sealed=(FIRST,))])
    body = json.dumps({"model": MODEL, "messages": messages(), "stream": True}).encode()
    with pytest.raises(http.client.IncompleteRead) as cut:
        await plain_request(local, "POST", "/v1/chat/completions", body)
    assert cut.value.partial.endswith(b"\n\n")
    assert b"upstream_stream_truncated" in cut.value.partial
    assert b"[DONE]" not in cut.value.partial


async def test_a_stream_that_fails_first_is_an_ordinary_error(scripted: ScriptedGateway, local: Local) -> None:
    """Before the first opened event there is still a status to say it with."""
    scripted.scripts = iter([_stream_of(said("secret"), DONE), _stream_of(), _stream_of(DONE)])
    for code in ("e2ee_answer_not_opened", "upstream_stream_truncated", "e2ee_answer_malformed"):
        error = await failed(stream(local))
        assert (error.status_code, error.code) == (502, code)


async def test_what_the_user_named_goes_and_comes_in_clear(
    scripted: ScriptedGateway, start_local: Callable[..., Local]
) -> None:
    """Tools and their calls, for those who accept it; without a word both are refused."""
    scripted.policy = evolve(scripted.policy, uncovered="clear")
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    calls = [{"id": "call", "type": "function", "function": {"name": "f", "arguments": "{}"}}]

    def script(asked: Asked) -> None:
        asked.head()
        asked.write(seal_completion(completion("x", tool_calls=calls), asked.context)[0])
        asked.finish()

    scripted.scripts = iter([script, script])
    answer = await ask(start_local(in_clear=frozenset({"tools", "tool_calls"})), tools=tools)
    assert answer.choices[0].message.tool_calls[0].function.name == "f"
    strict = start_local()
    error = await failed(ask(strict, tools=tools))
    assert (error.status_code, error.code, error.param) == (400, "e2ee_uncovered_field", "tools")
    assert (await failed(ask(strict))).code == "e2ee_answer_in_clear"


async def test_nothing_is_sent_to_a_gateway_that_is_not_trusted(
    scripted: ScriptedGateway, start_local: Callable[..., Local]
) -> None:
    """The report is refused, and the prompt stays here; with a quote that stands it goes."""
    policy = TrustPolicy("quote", root_spki_sha256=machine().root_spki_sha256)
    local = start_local(policy=policy)
    error = await failed(ask(local))
    assert (error.status_code, error.code) == (502, "e2ee_report_refused")
    assert scripted.bodies == []
    scripted.quote = lambda data: bound_quote(machine(), data)
    assert (await ask(local)).choices[0].message.content == MARKER
    assert local.reports[0].trust == "quote"


async def test_a_gateway_that_is_not_there_is_said_so(start_local: Callable[..., Local]) -> None:
    """502 with the kind of failure."""
    local = start_local(base_url="http://127.0.0.1:1/v1/chutes")
    error = await failed(ask(local))
    assert (error.status_code, error.code) == (502, "gateway_unreachable")
    assert "ConnectionRefusedError" in str(error)


async def test_concurrent_first_requests_share_one_report(scripted: ScriptedGateway, local: Local) -> None:
    """Quotes are dear, and one is enough."""
    answers = [ask(local) for _ in range(4)]
    for answer in answers:
        assert (await answer).choices[0].message.content == MARKER
    assert scripted.reports == 1


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v1/chat/completions", {}, 405),
        ("POST", "/v1/models", {}, 405),
        ("GET", "/", {}, 404),
        ("POST", "/v1/embeddings", {}, 404),
        ("POST", "/v1/chat/completions", {}, 400),
        ("GET", "/v1/models", {"Host": "attacker.example"}, 403),
        ("GET", "/v1/models", {"Host": "127.0.0.1.attacker.example:80"}, 403),
        ("POST", "/v1/chat/completions", {"Origin": "https://attacker.example"}, 403),
        ("GET", "/v1/models", {"Host": "localhost:1"}, 200),
        ("GET", "/v1/models", {"Host": "[::1]:1"}, 200),
    ],
)
async def test_the_endpoint_is_for_local_programs(
    scripted: ScriptedGateway, local: Local, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    """Two paths, JSON errors, and nothing for a web page that points a browser here."""
    answered, sent, body = await plain_request(local, method, path, **headers)
    assert answered == status
    assert sent["Content-Type"] == "application/json"
    assert sent["Server"] is None
    assert ("error" in json.loads(body)) == (status != 200)
    assert scripted.bodies == []


async def test_a_request_that_is_too_large_is_refused(
    scripted: ScriptedGateway, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not kept while it comes, and not sent."""
    monkeypatch.setattr("chutes_autopilot.e2ee_client.local_site.MAX_REQUEST_BYTES", 1000)
    error = await failed(ask(local, "x" * 1000))
    assert (error.status_code, error.code) == (413, "request_too_large")
    assert scripted.bodies == []
