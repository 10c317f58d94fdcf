"""The evidence of simulated TEE instances, checked step by step as its description says, and each fault of it."""

import json
from base64 import b64decode
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sealed_client import Reply, SealedPlatform

MODEL = "demo-labs/Aurora-32B-TEE"
NO_TEE = "sample-ai/Fjord-20B"
NONCE = "0123456789abcdef" * 4
NOW = datetime(2026, 1, 1, tzinfo=UTC)
QUOTING_ENCLAVE = "dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"


def number(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def signed_by(key: Any, signature: bytes, data: bytes) -> bool:
    halves = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    try:
        key.verify(encode_dss_signature(*halves), data, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def spki(key: Any) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    certificate.verify_directly_issued_by(issuer)
    return True


def findings(evidence: dict[str, Any], key_text: str, root: str, measurements: list[Any]) -> set[str]:
    """The rules that the evidence breaks."""
    quote = b64decode(evidence["quote"], validate=True)
    assert (number(quote[0:2]), number(quote[2:4]), number(quote[4:8])) == (4, 2, 0x81)
    report = quote[48:632]
    certificate = x509.load_der_x509_certificate(b64decode(evidence["certificate"], validate=True))
    rtmrs = [report[328 + 48 * place :][:48].hex() for place in range(4)]
    listed = [
        [entry["mrtd"].lower(), *(entry["runtime_rtmrs"][f"RTMR{place}"].lower() for place in range(4))]
        for entry in measurements
    ]

    signatures = quote[636:]
    assert number(quote[632:636]) == len(signatures)
    signature, point = signatures[:64], signatures[64:128]
    assert number(signatures[128:130]) == 6
    inner = signatures[134:]
    assert number(signatures[130:134]) == len(inner)
    qe_report, qe_signature, size = inner[:384], inner[384:448], number(inner[448:450])
    authentication, rest = inner[450 : 450 + size], inner[450 + size :]
    assert (number(rest[:2]), number(rest[2:6])) == (5, len(rest) - 6)
    chain = x509.load_pem_x509_certificates(rest[6:])
    attestation_key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + point)

    rules = {
        "debug": report[120] & 1 == 0,
        "measurement": [report[136:184].hex(), *rtmrs] in listed,
        "binding": report[520:552] == sha256((NONCE + key_text).encode()).digest(),
        "spki": report[552:584] == sha256(spki(certificate.public_key())).digest(),
        "signature": signed_by(attestation_key, signature, quote[:632]),
        "qe signature": signed_by(chain[0].public_key(), qe_signature, qe_report),
        "qe report": qe_report[320:384] == sha256(point + authentication).digest() + bytes(32),
        "enclave": (qe_report[128:160].hex(), number(qe_report[256:258])) == (QUOTING_ENCLAVE, 2),
        "qe debug": qe_report[48] & 2 == 0,
        "chain": len(chain) == 3 and issued(chain[0], chain[1]) and issued(chain[1], chain[2]),
        "root": sha256(spki(chain[-1].public_key())).hexdigest() == root and issued(chain[-1], chain[-1]),
        "valid": all(one.not_valid_before_utc <= NOW <= one.not_valid_after_utc for one in chain),
    }
    return {name for name, kept in rules.items() if not kept}


async def evidence(sealed: SealedPlatform, name: str = MODEL, nonce: str | None = NONCE) -> Reply:
    query = "" if nonce is None else f"?nonce={nonce}"
    return await sealed.get(f"/chutes/{sealed.model(name).chute_id}/evidence{query}")


async def found(sealed: SealedPlatform, reply: Reply) -> set[str]:
    """What is wrong with an instance's evidence, judged by the key that the listing gave for it."""
    instance = await sealed.instance(MODEL)
    (entry,) = [e for e in json.loads(reply.body)["evidence"] if e["instance_id"] == instance["instance_id"]]
    measurements = json.loads((await sealed.get("/servers/tee/measurements", None)).body)
    root = json.loads((await sealed.get("/_simulator/attestation_root", None)).body)["root_spki_sha256"]
    return findings(entry, instance["e2e_pubkey"], root, measurements)


async def test_good_evidence_keeps_every_rule(sealed: SealedPlatform) -> None:
    """Every instance of the chute is there, and a verifier that trusts the simulated root finds nothing wrong."""
    reply = await evidence(sealed)
    answer = json.loads(reply.body)
    assert {entry["instance_id"] for entry in answer["evidence"]} == set(sealed.model(MODEL).instance_ids)
    assert answer["failed_instance_ids"] == []
    assert await found(sealed, reply) == set()


async def test_the_simulated_root_says_what_it_is(sealed: SealedPlatform) -> None:
    """No certificate of the chain can be taken for a true one, and each simulator has a root of its own."""
    quote = b64decode(json.loads((await evidence(sealed)).body)["evidence"][0]["quote"])
    chain = x509.load_pem_x509_certificates(quote[quote.index(b"-----BEGIN") :])
    assert all("Simulated" in certificate.subject.rfc4514_string() for certificate in chain)
    shown = json.loads((await sealed.get("/_simulator/attestation_root", None)).body)
    root = sealed.simulator.chutes.attestation_root_sha256
    assert shown == {"simulated": True, "root_spki_sha256": root}
    assert sha256(spki(chain[-1].public_key())).hexdigest() == root
    assert root != type(sealed.simulator)(sealed.clock).chutes.attestation_root_sha256


@pytest.mark.parametrize(
    ("fault", "broken"),
    [
        ("evidence_key", {"binding"}),
        ("evidence_nonce", {"binding"}),
        ("evidence_certificate", {"spki"}),
        ("evidence_debug", {"debug"}),
        ("evidence_measurement", {"measurement"}),
        ("evidence_signature", {"signature"}),
        ("evidence_enclave", {"enclave"}),
        ("evidence_root", {"root"}),
        ("evidence_expired", {"valid"}),
    ],
)
async def test_a_fault_breaks_one_rule_only(sealed: SealedPlatform, fault: str, broken: set[str]) -> None:
    """All else stays good, so that a verifier refuses for the right reason; the next answer is good again."""
    sealed.simulator.faults.add(fault, MODEL, 1)
    assert await found(sealed, await evidence(sealed)) == broken
    assert await found(sealed, await evidence(sealed)) == set()


async def test_after_a_restart_evidence_is_about_the_new_key(sealed: SealedPlatform) -> None:
    """Evidence from before a key change does not bind the key that is listed after it."""
    before = await evidence(sealed)
    sealed.simulator.faults.add("key_change", MODEL, 1)
    assert "binding" in await found(sealed, before)
    assert await found(sealed, await evidence(sealed)) == set()


@pytest.mark.parametrize(
    ("name", "nonce", "status", "words"),
    [
        (MODEL, None, 422, "Field required"),
        (MODEL, "", 400, "got 0"),
        (MODEL, "abc", 400, "Nonce must be exactly 64 hex characters (32 bytes), got 3"),
        (MODEL, "g" * 64, 400, "Nonce must be exactly 64 hex characters (32 bytes), got 64"),
        (NO_TEE, NONCE, 400, "is not TEE-enabled"),
    ],
)
async def test_evidence_is_refused_as_the_platform_does(
    sealed: SealedPlatform, name: str, nonce: str | None, status: int, words: str
) -> None:
    """A missing or wrong nonce and a chute without TEE have their own words."""
    reply = await evidence(sealed, name, nonce)
    assert reply.status == status
    assert words in json.dumps(reply.detail)


async def test_faults_that_leave_no_evidence(sealed: SealedPlatform) -> None:
    """Limited, too old, silent, or with every instance among the failed ones."""
    for fault, status in (("evidence_429", 429), ("evidence_too_old", 400)):
        sealed.simulator.faults.add(fault, MODEL, 1)
        assert (await evidence(sealed)).status == status
    sealed.simulator.faults.add("evidence_failed", MODEL, 1)
    answer = json.loads((await evidence(sealed)).body)
    assert (answer["evidence"], len(answer["failed_instance_ids"])) == ([], 24)
    sealed.simulator.faults.add("evidence_silent", MODEL)
    wire = await sealed.send("GET", f"/chutes/{sealed.model(MODEL).chute_id}/evidence?nonce={NONCE}")
    await sealed.simulator.chutes.attested.when(4)
    await sealed.get("/v1/models")
    assert wire.received == b""


async def test_sixty_evidence_calls_a_clock_minute(sealed: SealedPlatform) -> None:
    """The next one is refused until the minute turns."""
    sealed.simulator.chutes.evidence_limit.limit = 2
    statuses = [(await evidence(sealed)).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    sealed.clock.advance(60)
    assert (await evidence(sealed)).status == 200
