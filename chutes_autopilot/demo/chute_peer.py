"""The sealed side of the simulated platform: the API that relays ciphertext, and the instances behind it.

``GET /e2e/instances/{chute_id}``, ``POST /e2e/invoke``, ``GET /chutes/{chute_id}/evidence``,
``GET /servers/tee/measurements``, and the simulator's own ``GET /_simulator/sealed_requests`` and
``GET /_simulator/attestation_root``.
"""

from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any

from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorTime

from chutes_autopilot.demo.catalog import SimulatedModel
from chutes_autopilot.demo.chat import ChatCall
from chutes_autopilot.demo.chute_answers import SealedReply
from chutes_autopilot.demo.chute_evidence import Attestation, measurements_answer
from chutes_autopilot.demo.chute_fleet import NONCES_EACH, Fleet, MinuteLimit, NonceBook, listed
from chutes_autopilot.demo.chute_instance import Refused, read_opened, refuse
from chutes_autopilot.demo.chute_sealing import NotOpened, open_request
from chutes_autopilot.demo.faults import Fault, FaultBoard, FaultKind, Occasion
from chutes_autopilot.demo.outcome import GARBAGE, Refusal
from chutes_autopilot.demo.seen import SeenRequests, SeenSealed, Tally
from chutes_autopilot.demo.site import SimulatorRequest

DISCOVERIES_PER_MINUTE = 10
EVIDENCE_PER_MINUTE = 60
REFUSED_KEY = "cpk_refused"
"""A key that begins so is nobody's; every other key is an account of its own."""
UNPAID_KEY = "cpk_unpaid"
"""The account of a key that begins so has no balance."""
_HEX = frozenset("0123456789abcdefABCDEF")


@frozen
class Invocation:
    """A sealed request that was opened and is to be answered."""

    call: ChatCall
    fault: Fault | None
    reply: SealedReply
    prompt_tokens: int


@define(eq=False)
class ChutePeer:
    """Keys, nonces and limits of the sealed side; answers itself what needs no pace.

    :param models: by chute_id.
    :ivar requests: the last invocations, oldest first, with what the instance could read of each.
    :ivar discovered, invoked, attested: calls of each kind that arrived.
    """

    clock: IReactorTime
    models: Mapping[str, SimulatedModel] = field(repr=False)
    faults: FaultBoard
    fleet: Fleet = field(factory=Fleet)
    nonces: NonceBook = field(factory=NonceBook, init=False)
    discovery_limit: MinuteLimit = field(factory=lambda: MinuteLimit(DISCOVERIES_PER_MINUTE), init=False)
    evidence_limit: MinuteLimit = field(factory=lambda: MinuteLimit(EVIDENCE_PER_MINUTE), init=False)
    attestation: Attestation = field(factory=Attestation, init=False)
    requests: SeenRequests[SeenSealed] = field(factory=SeenRequests, init=False, repr=False)
    discovered: Tally = field(factory=Tally, init=False)
    invoked: Tally = field(factory=Tally, init=False)
    attested: Tally = field(factory=Tally, init=False)

    @property
    def attestation_root_sha256(self) -> str:
        """SHA-256 of the simulated root's SubjectPublicKeyInfo in hex, for a verifier that shall trust it."""
        return self.attestation.platform.root_spki_sha256.hex()

    def discover(self, request: SimulatorRequest) -> None:
        """The listing of instances, with nonces."""
        try:
            self._list(request, request.path.split(b"/")[-1].decode("latin-1"))
        except Refused as refused:
            _send(request, refused.answer)
        self.discovered.add()

    def _list(self, request: SimulatorRequest, chute_id: str) -> None:
        account = _account(_key(request))
        now = self.clock.seconds()
        if not self.discovery_limit.allows(now):
            raise refuse(429, "Rate limit exceeded, try again later")
        model = self._model(chute_id)
        if not model.instances:
            raise refuse(404, "No active instances found for this chute")
        if not model.sealable:
            raise refuse(404, "No E2E-capable instances available")
        fault = self.faults.take(model.name, Occasion.DISCOVERY)
        match fault.kind if fault else None:
            case FaultKind.DISCOVERY_LIMITED:
                raise refuse(429, "Rate limit exceeded, try again later")
            case FaultKind.DISCOVERY_FAILED:
                raise refuse(500, "Internal Server Error")
            case FaultKind.NO_LIVE_INSTANCES:
                raise refuse(404, "No active instances found for this chute")
            case FaultKind.DISCOVERY_SILENT:
                return
            case FaultKind.DISCOVERY_GARBAGE:
                request.answer(200, GARBAGE, b"application/json")
                return
            case FaultKind.KEY_CHANGE:
                self.fleet.restart(model)
        instances = self.fleet.some(model)
        nonces = self.nonces.give(account, chute_id, NONCES_EACH * len(instances), now)
        answer = listed(instances, nonces, now)
        if fault and fault.kind is FaultKind.DISCOVERY_BAD_INSTANCE:
            answer["instances"][0]["e2e_pubkey"] = "simulated garbage"
        request.answer_json(200, answer)

    def open_invocation(self, request: SimulatorRequest) -> Invocation | None:
        """Read a sealed request as API and instance do; None if it was refused, and answered so."""
        try:
            return self._invocation(request)
        except Refused as refused:
            _send(request, refused.answer)
            return None

    def _invocation(self, request: SimulatorRequest) -> Invocation:
        body = request.body()
        names = ("X-Chute-Id", "X-Instance-Id", "X-E2E-Nonce", "X-E2E-Stream", "X-E2E-Path")
        values = [(request.getHeader(name.encode()) or b"").decode("latin-1") for name in names]
        chute_id, instance_id, nonce, stream, path = values
        instance = self.fleet.find(instance_id)
        opened = b""
        if instance is not None:
            with suppress(NotOpened):
                opened = open_request(instance.private, body)
        received = tuple(request.received_headers)
        seen = (request.method, request.uri, received, opened, len(body), chute_id, instance_id, nonce)
        self.requests.keep(SeenSealed(*seen))

        key = _key(request)
        missing = [name.lower() for name, value in zip(names[:3], values, strict=False) if not value]
        if missing or stream not in ("true", "false"):
            at = (missing or ["x-e2e-stream"])[0]
            raise refuse(422, [{"type": "missing", "loc": ["header", at], "msg": "Field required", "input": None}])
        if not self.nonces.use(_account(key), chute_id, nonce, self.clock.seconds()):
            raise refuse(403, "Invalid or expired E2E nonce")
        if key.startswith(UNPAID_KEY):
            raise refuse(402, "Quota exceeded and account balance is $0.0, please pay with fiat or send tao")
        model = self._model(chute_id)
        if instance is None:
            raise refuse(404, "Instance not found")
        if instance.chute_id != chute_id:
            raise refuse(400, "Instance does not belong to the specified chute")
        if not body:
            raise refuse(400, "Empty request body")
        call, public = read_opened(opened, path, model)
        fault = self.faults.take(model.name, Occasion.STREAM if stream == "true" else Occasion.WHOLE)
        if fault and fault.kind is FaultKind.NONCES_EXPIRED:
            self.nonces.forget(_account(key), chute_id)
        reply = SealedReply(public, call.stream, stream == "true", fault)
        return Invocation(call, fault, reply, len(opened) // 4 + 1)

    def evidence(self, request: SimulatorRequest) -> None:
        """The quotes of a chute's instances over the caller's nonce."""
        try:
            self._attest(request, request.path.split(b"/")[2].decode("latin-1"))
        except Refused as refused:
            _send(request, refused.answer)
        self.attested.add()

    def _attest(self, request: SimulatorRequest, chute_id: str) -> None:
        _key(request)
        if not self.evidence_limit.allows(self.clock.seconds()):
            raise refuse(429, "Rate limit exceeded, try again later")
        given = request.args.get(b"nonce")
        if not given:
            raise refuse(422, [{"type": "missing", "loc": ["query", "nonce"], "msg": "Field required"}])
        nonce = given[-1].decode("latin-1")
        if len(nonce) != 64 or not _HEX.issuperset(nonce):
            raise refuse(400, f"Nonce must be exactly 64 hex characters (32 bytes), got {len(nonce)}")
        model = self._model(chute_id)
        if not model.confidential:
            raise refuse(400, f"Chute {chute_id} is not TEE-enabled")
        fault = self.faults.take(model.name, Occasion.EVIDENCE)
        kind = fault.kind if fault else None
        if kind is FaultKind.EVIDENCE_LIMITED:
            raise refuse(429, "Rate limit exceeded, try again later")
        if kind is FaultKind.EVIDENCE_TOO_OLD or not model.sealable:
            raise refuse(400, "Instances requires chutes_version >= 0.6.0 to retrieve evidence.")
        if kind is not FaultKind.EVIDENCE_SILENT:
            request.answer_json(200, self.attestation.answer(self.fleet.of(model), nonce, kind))

    def measurements(self, request: SimulatorRequest) -> None:
        """What the platform says that its images measure."""
        request.answer_json(200, measurements_answer())

    def show_root(self, request: SimulatorRequest) -> None:
        """The simulated root, for whoever wants to trust it."""
        request.answer_json(200, {"simulated": True, "root_spki_sha256": self.attestation_root_sha256})

    def show_requests(self, request: SimulatorRequest) -> None:
        """Counts, and the last invocations without what was in them."""
        answer = {
            "simulated": True,
            "discovered": self.discovered.count,
            "discoveries_refused": self.discovery_limit.refused,
            "invoked": self.invoked.count,
            "nonces_refused": self.nonces.refused,
            "attested": self.attested.count,
            "requests": [_shown(seen) for seen in self.requests],
        }
        request.answer_json(200, answer)

    def _model(self, chute_id: str) -> SimulatedModel:
        if chute_id not in self.models:
            raise refuse(404, "Chute not found")
        return self.models[chute_id]


def _send(request: SimulatorRequest, answer: Refusal) -> None:
    request.answer(answer.status, answer.body, answer.content_type)


def _key(request: SimulatorRequest) -> str:
    scheme, _, key = (request.getHeader(b"Authorization") or b"").decode("latin-1").partition(" ")
    if scheme.lower() != "bearer" or not key.strip() or key.startswith(REFUSED_KEY):
        raise refuse(401, "Invalid token.")
    return key.strip()


def _account(key: str) -> bytes:
    return sha256(key.encode()).digest()


def _shown(seen: SeenSealed) -> dict[str, Any]:
    return {
        "chute_id": seen.chute_id,
        "instance_id": seen.instance_id,
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in seen.headers],
        "sealed_size": seen.sealed_size,
        "opened": bool(seen.body),
    }
