"""A client of the encrypted route that owes nothing to the code under test: the protocol's formulas and a library."""

import json
from hashlib import sha512
from os import urandom
from time import time
from typing import Any

from attrs import define, field, frozen
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from loopback_peers import Gateway, Response, Script, UpstreamSide, answer, chunk, respond

CHAT = b"/v1/chutes/chat/completions"
TOKEN = b"alice-token"
AS_ALICE = b"Authorization: Bearer " + TOKEN
P = 2**255 - 19
CURVE = ec.SECP256K1()
COVERED = ("content", "reasoning_content", "reasoning")


def settings(url: str, **changes: str) -> dict[str, str]:
    """What switches the Chutes route on in front of an upstream."""
    return {
        "CHUTES_ENABLED": "true",
        "CHUTES_BASE_URL": url,
        "CHUTES_API_KEY": "cpk_operator",
        "TOKEN": "alice-token, bob-token",
        "E2EE_ATTESTATION": "off",
    } | changes


class Key:
    """A key pair of either algo, as the client's one, or for one field."""

    def __init__(self, algo: str, seed: bytes) -> None:
        self.algo = algo
        self._ecdsa = ec.derive_private_key(int.from_bytes(seed, "big") % 2**255 or 1, CURVE)
        self._x25519 = X25519PrivateKey.from_private_bytes(sha512(seed).digest()[:32])  # clamped by the exchange
        self.wire = self.point[1:] if algo == "ecdsa" else _ed25519_public(seed)

    @property
    def point(self) -> bytes:
        """What stands before a ciphertext."""
        if self.algo == "ed25519":
            return self._x25519.public_key().public_bytes_raw()
        numbers = self._ecdsa.public_key().public_numbers()
        return b"\4" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")

    def shared(self, point: bytes) -> AESGCM:
        """The cipher shared with the holder of an ephemeral key."""
        if self.algo == "ecdsa":
            secret = self._ecdsa.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(CURVE, point))
        else:
            secret = self._x25519.exchange(X25519PublicKey.from_public_bytes(point))
        return AESGCM(HKDF(SHA256(), 32, None, f"{self.algo}_encryption".encode()).derive(secret))


def _ed25519_public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def _as_point(algo: str, wire: bytes) -> bytes:
    """A key as reports have it, in the form for an exchange."""
    if algo == "ecdsa":
        return b"\4" + wire
    y = int.from_bytes(wire, "little") % 2**255
    return ((1 + y) * pow(1 - y, -1, P) % P).to_bytes(32, "little")


@define(eq=False)
class SealingClient:
    """One exchange: a fresh key of the client, and for version 2 a fresh nonce.

    :param server_key: from the report.
    """

    algo: str
    version: int
    server_key: bytes
    nonce: str = field(factory=lambda: f"n{int(time())}{urandom(8).hex()}")
    timestamp: int = field(factory=lambda: int(time()))
    key: Key = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.key = Key(self.algo, urandom(32))

    @property
    def headers(self) -> tuple[bytes, ...]:
        lines = [
            f"X-Signing-Algo: {self.algo}",
            f"X-Client-Pub-Key: {self.key.wire.hex()}",
            f"X-Model-Pub-Key: {self.server_key.hex()}",
        ]
        if self.version == 2:  # by its nonce, as existing clients have it
            lines += [f"X-E2EE-Nonce: {self.nonce}", f"X-E2EE-Timestamp: {self.timestamp}"]
        return tuple(line.encode() for line in lines)

    def seal(self, text: str, model: str, m: int = 0, c: str = "-") -> str:
        aad = f"v2|req|algo={self.algo}|model={model}|m={m}|c={c}|n={self.nonce}|ts={self.timestamp}"
        ephemeral, nonce = Key(self.algo, urandom(32)), urandom(12)
        cipher = ephemeral.shared(_as_point(self.algo, self.server_key))
        sealed = cipher.encrypt(nonce, text.encode(), aad.encode() if self.version == 2 else None)
        return (ephemeral.point + nonce + sealed).hex()

    def body(self, model: str, *texts: str, **members: Any) -> bytes:
        """A request whose messages have these texts."""
        messages = [{"role": "user", "content": self.seal(text, model, m)} for m, text in enumerate(texts)]
        return json.dumps({"model": model, "messages": messages, **members}).encode()

    def open(self, sealed: str, answer: dict[str, Any], choice: int, name: str) -> str:
        blob, size = bytes.fromhex(sealed), 65 if self.algo == "ecdsa" else 32
        aad = (
            f"v2|resp|algo={self.algo}|model={answer['model']}|id={answer['id']}|choice={choice}|field={name}"
            f"|n={self.nonce}|ts={self.timestamp}"
        )
        cipher = self.key.shared(blob[:size])
        clear = cipher.decrypt(blob[size : size + 12], blob[size + 12 :], aad.encode() if self.version == 2 else None)
        return clear.decode()

    def texts(self, body: bytes) -> dict[str, str]:
        """All covered text of a whole answer or a stream, joined by choice and member."""
        joined: dict[str, str] = {}
        for one in answers_in(body):
            stream = one["object"] == "chat.completion.chunk"
            for position, choice in enumerate(one["choices"]):
                place = choice["index"] if stream else position
                said = choice["delta" if stream else "message"]
                for name in COVERED:
                    if said.get(name) is not None:
                        joined[f"{place} {name}"] = joined.get(f"{place} {name}", "") + self.open(
                            said[name], one, place, name
                        )
        return joined


def answers_in(body: bytes) -> list[dict[str, Any]]:
    """The objects of an answer: the one, or those of the events of a stream, whose form must be as promised."""
    assert body.isascii()
    if not body.startswith((b"data: ", b":")):
        return [json.loads(body)]
    *events, rest = body.split(b"\n\n")
    assert (rest, events[-1]) == (b"", b"data: [DONE]")
    return [json.loads(event.removeprefix(b"data: ")) for event in events[:-1] if not event.startswith(b":")]


@frozen
class Caller:
    """Somebody with a token, asking a gateway."""

    gateway: Gateway
    token: bytes = TOKEN

    @property
    def authorization(self) -> bytes:
        return b"Authorization: Bearer " + self.token

    async def new(self, algo: str = "ed25519", version: int = 2) -> SealingClient:
        """A client for one exchange, which has asked for the report."""
        report = await self.get(f"/v1/attestation/report?signing_algo={algo}")
        return SealingClient(algo, version, bytes.fromhex(json.loads(report.body)["signing_public_key"]))

    async def get(self, path: str, *headers: bytes) -> Response:
        return await self.gateway.get(path, self.authorization, *headers)

    async def post(self, body: Any, *headers: bytes) -> Response:
        """A request of the route; ``body`` as bytes, or anything that JSON can say."""
        return await self.gateway.chat(body, self.authorization, *headers, target=CHAT)

    async def sealed(self, client: SealingClient, body: bytes, *headers: bytes) -> Response:
        return await self.post(body, *client.headers, *headers)


# what models answer


def completion(text: str, **more: Any) -> bytes:
    message = {"role": "assistant", "content": text, "reasoning_content": f"think {text}", **more}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps(
        {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "served", "choices": [choice]}
    ).encode()


def chunk_event(text: str | None, **more: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": "stop" if text is None else None, **more}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "served"}
    return b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def whole(body: bytes) -> Script:
    return answer(body, b"200 OK", b"Content-Type: application/json")


def streamed(*pieces: bytes, end: bytes = b"0\r\n\r\n", close: bool = False) -> Script:
    """A stream in these pieces; without its last chunk where ``end`` is empty."""
    return respond(STREAM_HEAD + b"".join(map(chunk, pieces)) + end, close=close)


def echo(side: UpstreamSide) -> None:
    """A script that says what the last message said."""
    asked = json.loads(side.upstream.requests[-1].body)
    text = asked["messages"][-1]["content"]
    if asked.get("stream"):
        streamed(*map(chunk_event, text), chunk_event(None), DONE)(side)
    else:
        whole(completion(text))(side)
