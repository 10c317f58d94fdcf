"""A tiny client of the sealed side, written from the description of the transport: it opens what was sealed to it."""

import gzip
import http.client
import json
from base64 import b64decode, b64encode
from io import BytesIO
from os import urandom
from typing import Any
from zlib import decompress

from attrs import define, field
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from chutes_autopilot.demo.catalog import SimulatedModel
from chutes_autopilot.demo.service import SimulatedChutesService
from chutes_autopilot.demo.simulator import SimulatedChutes

KEY = "cpk_demo"


def derived(secret: bytes, ciphertext: bytes, info: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(HKDF(SHA256(), 32, ciphertext[:16], info).derive(secret))


def seal_member(public: MLKEM768PublicKey, member: bytes) -> bytes:
    """The blob of a request whose JSON is in gzip already."""
    secret, ciphertext = public.encapsulate()
    nonce = urandom(12)
    return ciphertext + nonce + derived(secret, ciphertext, b"e2e-req-v1").encrypt(nonce, member, None)


def seal(key_text: str, clear: bytes) -> bytes:
    """The blob of a request."""
    public = MLKEM768PublicKey.from_public_bytes(b64decode(key_text, validate=True))
    return seal_member(public, gzip.compress(clear))


def open_blob(blob: bytes, private: MLKEM768PrivateKey) -> bytes:
    """The gzip in the blob of an answer; InvalidTag if it is not sealed to this key."""
    ciphertext, nonce, sealed = blob[:1088], blob[1088:1100], blob[1100:]
    return derived(private.decapsulate(ciphertext), ciphertext, b"e2e-resp-v1").decrypt(nonce, sealed, None)


class Reply:
    """An answer read by another implementation of HTTP, and the keys to open it."""

    def __init__(self, raw: bytes, private: MLKEM768PrivateKey | None = None) -> None:
        self.raw = raw
        self.response = http.client.HTTPResponse(_Socket(raw))  # type: ignore[arg-type]
        self.response.begin()
        self.status = self.response.status
        self.content_type = self.response.headers["Content-Type"]
        self.complete = True
        try:
            self.body = self.response.read()
        except http.client.IncompleteRead as cut:
            self.body, self.complete = cut.partial, False
        self.private = private

    @property
    def detail(self) -> Any:
        return json.loads(self.body)["detail"]

    def opened(self) -> Any:
        """The JSON of a whole answer."""
        return json.loads(decompress(open_blob(self.body, self.private), wbits=31))

    def outer(self) -> list[Any]:
        """The outer events; JSON where it is JSON."""
        *blocks, rest = self.body.split(b"\n\n")
        assert rest == b""
        return [_value(block.removeprefix(b"data: ")) for block in blocks]

    def kinds(self) -> list[str]:
        """The member of each outer event, or its text."""
        return [next(iter(event)) if isinstance(event, dict) else event for event in self.outer()]

    def records(self) -> list[bytes]:
        """The sealed records as they came."""
        return [b64decode(event["e2e"], validate=True) for event in self.outer() if "e2e" in event]

    def stream_cipher(self) -> ChaCha20Poly1305:
        (init,) = [event["e2e_init"] for event in self.outer() if "e2e_init" in event][:1]
        ciphertext = b64decode(init, validate=True)
        return derived(self.private.decapsulate(ciphertext), ciphertext, b"e2e-stream-v1")

    def lines(self) -> list[bytes]:
        """What each record holds."""
        cipher = self.stream_cipher()
        return [cipher.decrypt(record[:12], record[12:], None) for record in self.records()]

    def chunks(self) -> list[Any]:
        """The inner events."""
        blocks = [block.strip(b"\n") for block in b"".join(self.lines()).split(b"\n\n")]
        return [_value(block.removeprefix(b"data: ")) for block in blocks if block]


class _Socket:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def makefile(self, mode: str) -> BytesIO:
        return BytesIO(self.raw)


def _value(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode()


class Wire(Protocol):
    """A client that sees the bytes, and the end, as they are."""

    def __init__(self) -> None:
        self.received = b""
        self.ended: Deferred[None] = Deferred()
        self.writes: list[bytes] = []
        self._waiting: list[tuple[bytes, Deferred[None]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self.writes.append(data)
        for entry in [entry for entry in self._waiting if entry[0] in self.received]:
            self._waiting.remove(entry)
            entry[1].callback(None)

    def connectionLost(self, reason: Failure) -> None:
        self.ended.callback(None)

    def until(self, marker: bytes) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self._waiting.append((marker, done))
        self.dataReceived(b"")
        return done


@define(eq=False)
class SealedPlatform:
    """A simulator on a loopback port, and the requests that a gateway would make to it."""

    simulator: SimulatedChutes
    service: SimulatedChutesService
    port: int
    wires: list[Wire] = field(factory=list)

    @property
    def clock(self) -> Clock:
        return self.simulator.clock  # type: ignore[return-value]

    def model(self, name: str) -> SimulatedModel:
        return next(model for model in self.simulator.models if model.name == name)

    async def send(self, method: str, path: str, body: bytes = b"", key: str | None = KEY, **headers: str) -> Wire:
        wire = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", self.port), Wire())
        self.wires.append(wire)
        lines = [f"{method} {path} HTTP/1.1", "Host: demo", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines += [] if key is None else [f"Authorization: Bearer {key}"]
        wire.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return wire

    async def get(self, path: str, key: str | None = KEY) -> Reply:
        wire = await self.send("GET", path, key=key)
        await wire.ended
        return Reply(wire.received)

    async def discover(self, name: str, key: str | None = KEY) -> Reply:
        return await self.get(f"/e2e/instances/{self.model(name).chute_id}", key)

    async def instance(self, name: str) -> dict[str, Any]:
        """One listed instance of the model, with its nonces."""
        reply = await self.discover(name)
        assert reply.status == 200, reply.body
        return json.loads(reply.body)["instances"][0]

    async def start(
        self,
        name: str,
        instance: dict[str, Any],
        body: bytes | None = None,
        key: str = KEY,
        header_stream: bool | None = None,
        fields: dict[str, Any] | None = None,
        **headers: str,
    ) -> tuple[Wire, MLKEM768PrivateKey]:
        """A sealed request with the next nonce of the instance."""
        private = MLKEM768PrivateKey.generate()
        asked = {
            "model": name,
            "messages": [{"role": "user", "content": "hush"}],
            "e2e_response_pk": b64encode(private.public_key().public_bytes_raw()).decode(),
            **(fields or {}),
        }
        stream = asked.get("stream", False) if header_stream is None else header_stream
        sealed = {
            "X_Chute_Id": self.model(name).chute_id,
            "X_Instance_Id": instance["instance_id"],
            "X_E2E_Nonce": instance["nonces"].pop(0),
            "X_E2E_Stream": str(stream).lower(),
            "X_E2E_Path": "/v1/chat/completions",
        }
        blob = seal(instance["e2e_pubkey"], json.dumps(asked).encode()) if body is None else body
        return await self.send("POST", "/e2e/invoke", blob, key, **(sealed | headers)), private

    async def invoke(self, name: str, instance: dict[str, Any], *arguments: Any, **options: Any) -> Reply:
        wire, private = await self.start(name, instance, *arguments, **options)
        await wire.ended
        return Reply(wire.received, private)

    async def stream(self, name: str, instance: dict[str, Any], **fields: Any) -> Reply:
        return await self.invoke(name, instance, fields={"stream": True, **fields})

    async def seen(self) -> Any:
        return json.loads((await self.get("/_simulator/sealed_requests", None)).body)
