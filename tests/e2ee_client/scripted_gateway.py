"""A gateway's encrypted route on a loopback socket, doing what a test tells it, with the protocol's own sealing."""

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

from attrs import define, evolve, field, frozen
from quote_factory import Machine, QuoteParts, pem
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from chutes_autopilot.e2ee.allow_list import SealContext
from chutes_autopilot.e2ee.curves import address_bytes
from chutes_autopilot.e2ee.receipt import build_receipt, sign_receipt
from chutes_autopilot.e2ee.request import prepare_request
from chutes_autopilot.e2ee.request_headers import E2EEPolicy, SealedExchange, read_e2ee_headers
from chutes_autopilot.e2ee.response import applied_headers, seal_completion
from chutes_autopilot.e2ee.server_keys import ServerKey, ServerKeys, ephemeral_keys
from chutes_autopilot.e2ee.stream import StreamSealer
from chutes_autopilot.errors import ApiError

TOKEN = "token-of-the-client"
ANSWER_ID = "chatcmpl-0123"
MODEL = "vendor/Model-1"


@frozen
class BoundQuote(QuoteParts):
    """A quote with report data of its own."""

    report_data: bytes = bytes(64)

    def signed(self) -> bytes:
        return QuoteParts.signed(self)[:-64] + self.report_data


def bound_quote(machine: Machine, report_data: bytes, **changes: Any) -> bytes:
    quote = BoundQuote(
        attestation_key=machine.attestation_key,
        pck_key=machine.pck_key,
        chain=pem(machine.pck, machine.authority, machine.root),
        instance_hash=bytes(32),
        report_data=report_data,
    )
    return evolve(quote, **changes).join()


def report_data(key: ServerKey, nonce: str) -> bytes:
    return address_bytes(key.algo, key.public).ljust(32, b"\0") + bytes.fromhex(nonce)


def report_of(key: ServerKey, nonce: str, quote: bytes | None = None, **changes: Any) -> dict[str, Any]:
    """A report as the protocol's section 11 describes it; a change to None leaves null."""
    report = {
        "signing_address": key.address,
        "signing_algo": key.algo,
        "signing_public_key": key.wire_hex,
        "request_nonce": nonce,
        "intel_quote": None if quote is None else quote.hex(),
        "quote": None if quote is None else quote.hex(),
        "event_log": None,
        "info": None,
        "vm_config": None,
        "nvidia_payload": None,
        "attested": quote is not None,
        "not_after": None,
        "transport": "tls",
    }
    return report | changes


def chunk(choices: list[dict[str, Any]], **members: Any) -> bytes:
    """An event of a model server."""
    event = {"id": ANSWER_ID, "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": choices}
    return b"data: " + json.dumps(event | members).encode() + b"\n\n"


def said(text: str, index: int = 0, **delta: Any) -> bytes:
    return chunk([{"index": index, "delta": {"content": text} | delta, "finish_reason": None}])


def completion(text: str, **message: Any) -> bytes:
    """A whole answer of a model server."""
    members = {"role": "assistant", "content": text, "refusal": None, "tool_calls": []} | message
    choice = {"index": 0, "message": members, "finish_reason": "stop", "logprobs": None}
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    answer = {"id": ANSWER_ID, "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice]}
    return json.dumps(answer | {"usage": usage}).encode()


@define(eq=False)
class Asked:
    """One chat request: what came over the wire, what it says in clear, and the way to answer it."""

    request: Request
    wire: bytes
    clear: dict[str, Any]
    exchange: SealedExchange
    policy: E2EEPolicy
    written: bytearray = field(factory=bytearray)
    left: list[object] = field(factory=list)

    @property
    def context(self) -> SealContext:
        return SealContext(self.exchange, self.clear["model"], self.policy.uncovered)

    @property
    def stream(self) -> bool:
        return bool(self.clear.get("stream"))

    def sealer(self) -> StreamSealer:
        return StreamSealer(self.context, max_event_bytes=1 << 20)

    def head(self, *drop: bytes) -> None:
        for name, value in applied_headers(self.exchange, self.policy, self.stream):
            if name not in drop:
                self.request.setHeader(name, value)

    def write(self, data: bytes) -> None:
        self.written += data
        self.request.write(data)

    def finish(self) -> None:
        self.request.finish()

    def cut(self) -> None:
        self.request.channel.loseConnection()


def echo(asked: Asked) -> None:
    """Answer with the text of the last message, a word an event where it is a stream."""
    content = asked.clear["messages"][-1]["content"]
    text = content if isinstance(content, str) else json.dumps(content)
    asked.head()
    if asked.stream:
        sealer = asked.sealer()
        asked.write(sealer.feed(chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}}])))
        for word in text.split(" "):
            asked.write(sealer.feed(said(word + " ")))
        asked.write(sealer.feed(chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}])))
        asked.write(sealer.feed(b"data: [DONE]\n\n"))
    else:
        asked.write(seal_completion(completion(text), asked.context)[0])
    asked.finish()


def refuse(status: int, code: str, **headers: str) -> Callable[["Asked"], None]:
    """A script that answers with an error in OpenAI's shape."""

    def script(asked: Asked) -> None:
        asked.request.setResponseCode(status)
        for name, value in headers.items():
            asked.request.setHeader(name.replace("_", "-"), value)
        asked.request.setHeader("X-E2EE-Applied", "false")
        error = {"message": "as scripted", "type": code, "param": None, "code": code}
        asked.write(json.dumps({"error": error}).encode())
        asked.finish()

    return script


@define(eq=False)
class ScriptedGateway(Resource):
    """The routes under ``/v1``; every request is kept."""

    isLeaf = True

    now: Callable[[], float]
    keys: ServerKeys = field(factory=ephemeral_keys)
    policy: E2EEPolicy = field(
        default=E2EEPolicy(
            require=True, allow_v1=True, strict=False, uncovered="reject", max_fields=256, window=300, skew=30
        )
    )
    scripts: Iterator[Callable[[Asked], None]] = field(factory=lambda: iter(()))
    """What the next chat requests are answered with; when there is none left, echo."""
    report_changes: dict[str, Any] = field(factory=dict)
    quote: Callable[[bytes], bytes] | None = None
    reports: int = 0
    asked: list[Asked] = field(factory=list)
    refused: list[str] = field(factory=list)
    heads: list[list[tuple[bytes, bytes]]] = field(factory=list)
    bodies: list[bytes] = field(factory=list)
    port: Any = None
    _waiting: list[Deferred[Asked]] = field(factory=list)

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port.getHost().port}/v1/chutes"

    def next_asked(self) -> Deferred[Asked]:
        waiting: Deferred[Asked] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def render(self, request: Request) -> int | bytes:
        self.heads.append([(n, v) for n, values in request.requestHeaders.getAllRawHeaders() for v in values])
        path = request.path.decode()
        try:
            if request.getHeader("Authorization") != f"Bearer {TOKEN}":
                raise ApiError("invalid_api_key", "No such token.", error_type="invalid_api_key")
            if path == "/v1/chutes/chat/completions":
                return self._chat(request)
            body = self._document(request, path)
        except ApiError as error:
            self.refused.append(error.code)
            request.setResponseCode(error.status)
            return error.body()
        return json.dumps(body).encode()

    def _document(self, request: Request, path: str) -> dict[str, Any]:
        arguments = {name.decode(): values[0].decode() for name, values in request.args.items()}
        match path.split("/")[2:]:
            case ["chutes", "models"]:
                return {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "x"}]}
            case ["attestation", "report"]:
                self.reports += 1
                key = self.keys.current(arguments["signing_algo"])
                nonce = arguments["nonce"]
                quote = None if self.quote is None else self.quote(report_data(key, nonce))
                return report_of(key, nonce, quote, **self.report_changes)
            case ["signature", answer_id]:
                asked, key = self._found(answer_id)
                text = f"{sha256(asked.wire).hexdigest()}:{sha256(asked.written).hexdigest()}"
                return {
                    "text": text,
                    "signature": key.sign(text),
                    "signing_address": key.address,
                    "signing_algo": key.algo,
                }
            case ["receipts", answer_id]:
                asked, key = self._found(answer_id)
                return sign_receipt(receipt_of(asked), key)
        raise ApiError("not_found", "Nothing here.", error_type="not_found")

    def _found(self, answer_id: str) -> tuple[Asked, ServerKey]:
        if answer_id != ANSWER_ID or not self.asked:
            raise ApiError("not_found", "Chat id not found or expired", error_type="not_found")
        return self.asked[-1], self.asked[-1].exchange.server_key

    def _chat(self, request: Request) -> int:
        body = request.content.read()
        self.bodies.append(body)
        values = {
            name.decode().lower(): [v.decode() for v in vs] for name, vs in request.requestHeaders.getAllRawHeaders()
        }
        exchange = read_e2ee_headers(values, self.keys, self.policy, self.now())
        assert exchange is not None
        sealed = prepare_request(body, exchange, self.policy, self.now())
        sealed.first()
        asked = Asked(request, body, json.loads(sealed.rest()), exchange, self.policy)
        request.notifyFinish().addErrback(asked.left.append)
        self.asked.append(asked)
        next(self.scripts, echo)(asked)
        if self._waiting:
            self._waiting.pop(0).callback(asked)
        return NOT_DONE_YET


def receipt_of(asked: Asked) -> dict[str, Any]:
    return build_receipt(
        id=ANSWER_ID,
        time=1_700_000_000,
        requested_model=asked.clear["model"],
        served_model=MODEL,
        chute_id=None,
        instance_id=None,
        instance_key_sha256=None,
        attestation="off",
        evidence_sha256=None,
        attempts=[(MODEL, "complete")],
        request_sha256=sha256(asked.wire).hexdigest(),
        response_sha256=sha256(asked.written).hexdigest(),
    )


class QuietSite(Site):
    """Without access log and its clock."""

    noisy = False

    def startFactory(self) -> None:
        pass

    def log(self, request: Any) -> None:
        pass
