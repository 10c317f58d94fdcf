"""GET /v1/signature/{chat_id} and /v1/receipts/{chat_id}: for the caller, for a while, by the key that was used."""

from typing import Any

import pytest
from in_memory_route import Asked, app, get
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from chutes_autopilot.e2ee.receipt import build_receipt, verify_receipt
from chutes_autopilot.e2ee.server_keys import ServerKeys, keys_from_secrets
from chutes_autopilot.e2ee.signing import verify
from chutes_autopilot.errors import e2ee_error
from chutes_autopilot.storage.expiring import ExpiringStore
from chutes_autopilot.web.signatures import SignatureRoute, SignedExchange
from chutes_autopilot.web.site import GatewayRequest

NOW = 1_800_000_000
TTL = 1200

CURRENT = keys_from_secrets(
    "current",
    bytes.fromhex("20488b6b97947afd5b18214687cb62f5f6b4ee04084c8495ad7ea081c3ea88f4"),
    bytes.fromhex("a34a6cab43452c1c7f07fe1938709936069dfca3b3920976ea3830dda4d68260"),
)
OLD = keys_from_secrets("old", bytes([1] * 32), bytes([2] * 32), NOW + 60)

TEXT = (
    "14ff09fa79b8976780b2729ed4465697226d2a1a15ace4c2d81f33874a0aada5"
    ":0339b1bd266794d1a92672e2c2e63079da1a86447cc684d76dc7e219b6d37d34"
)
RECEIPT = build_receipt(
    id="chat-1",
    time=NOW,
    requested_model="chutesai/AutoPilot",
    served_model="a/Modèle",
    chute_id=None,
    instance_id=None,
    instance_key_sha256=None,
    attestation="off",
    evidence_sha256=None,
    attempts=[("b/B", "503"), ("a/Modèle", "200")],
    request_sha256=TEXT[:64],
    response_sha256=TEXT[65:],
)


class Service:
    """Both routes, asked by callers whose token is their name."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.store: ExpiringStore[tuple[bytes, str], SignedExchange] = ExpiringStore(TTL, 100, self.clock.seconds)
        self.keys = ServerKeys((*CURRENT, *OLD))
        route = SignatureRoute(self.authenticate, lambda: self.keys, self.store, self.clock.seconds)
        self.app = app()

        @self.app.route("/v1/signature/<path:chat_id>")
        def signature(request: GatewayRequest, chat_id: str) -> Deferred[None]:
            return route.signature(request, chat_id)

        @self.app.route("/v1/receipts/<path:chat_id>")
        def receipt(request: GatewayRequest, chat_id: str) -> Deferred[None]:
            return route.receipt(request, chat_id)

    @staticmethod
    def authenticate(request: GatewayRequest) -> bytes:
        authorization = request.getHeader(b"authorization")
        if authorization is None:
            raise e2ee_error("invalid_api_key", "No.")
        return bytes(authorization.removeprefix(b"Bearer "))

    def answered(self, id: str = "chat-1", *, key_id: str = "current", receipt: Any = RECEIPT) -> None:
        """Keep what the route keeps of Alice's answer."""
        self.store.put((b"alice", id), SignedExchange(TEXT, key_id, receipt))

    def ask(self, path: str, caller: str = "alice") -> Asked:
        return get(self.app, path, f"Authorization: Bearer {caller}")


@pytest.fixture
def service() -> Service:
    service = Service()
    service.answered()
    return service


@pytest.mark.parametrize("query", ["", "?signing_algo=ecdsa", "?model=a/A&signing_algo=ecdsa"])
def test_ecdsa_is_the_default(service: Service, query: str) -> None:
    """EIP-191, byte for byte as other implementations sign; existing clients also name the model."""
    asked = service.ask("/v1/signature/chat-1" + query)
    assert (asked.status, asked.header("cache-control")) == (200, "no-store")
    assert asked.json == {
        "text": TEXT,
        "signature": "0xc744b77551f6893b98e4441346986a54cb2ffadb0d49186b3b1e4e6601e8b35d"
        "183889d80dd33e00f4df7a43b1da9e9c5a47d5c23aa7a17799ebf42ab77094dd1b",
        "signing_address": "0x0F36912B165f56f07bb0CEeD62a60fD0186ab7B6",
        "signing_algo": "ecdsa",
    }


def test_ed25519(service: Service) -> None:
    """The other key of the same generation, whichever the request was sealed to."""
    assert service.ask("/v1/signature/chat-1?signing_algo=ed25519").json == {
        "text": TEXT,
        "signature": "fbd8aa5fffb4f0f62309c7f2a6fa3b005626e60d104862e4ebbda793ebaf813f"
        "3c08ee673af5b3d03027f36e8dddcb16f50d83ef6df494a868fc88997b906101",
        "signing_address": "9508aae76b823ce1fafe7f5fa2b58b5390e12ded4d8f655041570ea53e34a985",
        "signing_algo": "ed25519",
    }


@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
def test_a_receipt_can_be_verified_from_the_answer_alone(service: Service, algo: Any) -> None:
    """Every member is there, unknown ones as null, and the signature is over the canonical form of what was read."""
    answer = service.ask(f"/v1/receipts/chat-1?signing_algo={algo}").json
    key = CURRENT[0] if algo == "ecdsa" else CURRENT[1]
    assert answer["receipt"] == RECEIPT
    assert (answer["signing_algo"], answer["signing_address"]) == (algo, key.address)
    assert set(answer) == {"receipt", "signature", "signing_algo", "signing_address"}
    assert verify_receipt(answer["receipt"], answer["signature"], algo, key.address)
    assert not verify_receipt({**answer["receipt"], "served_model": "b/B"}, answer["signature"], algo, key.address)


@pytest.mark.parametrize("path", ["/v1/signature/", "/v1/receipts/"])
def test_the_key_that_was_used_signs_as_long_as_it_counts(service: Service, path: str) -> None:
    """Not the current one; when its time is over the answer can no longer be vouched for."""
    service.answered("chat-2", key_id="old")
    service.clock.advance(60)
    answer = service.ask(path + "chat-2").json
    assert answer["signing_address"] == OLD[0].address
    if "text" in answer:
        assert verify("ecdsa", OLD[0].address, TEXT, answer["signature"])
    service.clock.advance(1)
    assert service.ask(path + "chat-2").error == (404, "not_found", None)
    assert service.ask(path + "chat-1").status == 200


@pytest.mark.parametrize("path", ["/v1/signature/", "/v1/receipts/"])
def test_what_is_not_found(service: Service, path: str) -> None:
    """Unknown, expired, somebody else's or signed by a key that is gone: one and the same answer."""
    service.answered("chat-3", key_id="gone")
    answers = [
        service.ask(path + "chat-9"),
        service.ask(path + "chat-1", "mallory"),
        service.ask(path + "chat-3"),
    ]
    service.clock.advance(TTL)
    answers.append(service.ask(path + "chat-1"))
    assert {answer.error for answer in answers} == {(404, "not_found", None)}
    assert {answer.body for answer in answers} == {answers[0].body}
    assert answers[0].json["error"]["message"] == "Chat id not found or expired"


def test_an_answer_without_a_receipt(service: Service) -> None:
    """Still has a signature."""
    service.answered("chat-4", receipt=None)
    assert service.ask("/v1/receipts/chat-4").error == (404, "not_found", None)
    assert service.ask("/v1/signature/chat-4").status == 200


@pytest.mark.parametrize("path", ["/v1/signature/", "/v1/receipts/"])
def test_what_is_refused(service: Service, path: str) -> None:
    """Strangers first, then algorithms nobody knows."""
    assert get(service.app, path + "chat-1?signing_algo=rsa").error == (401, "invalid_api_key", None)
    for chat_id in ("chat-1", "chat-9"):
        asked = service.ask(f"{path}{chat_id}?signing_algo=rsa")
        assert asked.error == (400, "invalid_signing_algo", "signing_algo")


@pytest.mark.parametrize("path", ["/v1/signature/a/b c", "/v1/signature/a%2Fb%20c", "/v1/signature/a/b%20c"])
def test_an_id_may_hold_anything(service: Service, path: str) -> None:
    """In plain mode it is whatever the upstream says."""
    service.answered("a/b c")
    assert service.ask(path.replace(" ", "%20")).status == 200
