"""Receipts: what the service says of one answer, signed, so that it cannot deny it later.

A receipt binds the service to a statement: which model, chute and instance it sent the request to, at which level that
instance's key was attested, and the hashes of what went over the wire. It says nothing about the model's honesty, and
its word on attestation is worth what that level proves and no more.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from attrs import frozen

from chutes_autopilot.e2ee.curves import Algo
from chutes_autopilot.e2ee.signing import verify

VERSION = 1


class ReceiptSigner(Protocol):
    """Whoever signs: server_keys.ServerKey."""

    @property
    def algo(self) -> Algo:
        """Kind of the key."""

    @property
    def address(self) -> str:
        """Signing address."""

    def sign(self, text: str) -> str:
        """The signature over a text."""


@frozen
class Attested:
    """How an instance's key was attested: the level, and hex of the hash of the quote, where there was one."""

    level: str
    evidence_sha256: str | None = None


def canonical_json(value: Any) -> bytes:
    """The one way to write a value: sorted keys, no white space, UTF-8, nothing escaped that need not be.

    :raises ValueError: it has floating-point numbers (which no two languages write alike), keys that are no strings,
        lone surrogates, or something JSON does not know.
    """
    _refuse_ambiguous(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def build_receipt(
    *,
    id: str,
    time: int,
    requested_model: str | None,
    served_model: str | None,
    chute_id: str | None,
    instance_id: str | None,
    instance_key_sha256: str | None,
    attestation: str | None,
    evidence_sha256: str | None,
    attempts: Sequence[tuple[str, str]],
    request_sha256: str | None,
    response_sha256: str | None,
) -> dict[str, Any]:
    """The receipt of one answer; what is not known, or not so on this transport, is None.

    :param id: the answer's id, as the client saw it.
    :param time: Unix seconds.
    :param instance_key_sha256: of the raw 1184-byte key, in hex.
    :param attestation: the level at which that key had a verdict when it was used: ``off``, ``binding``...
    :param evidence_sha256: of the quote behind that verdict, in hex.
    :param attempts: model and outcome of each attempt in turn.
    :param request_sha256: of the exact bytes the client sent, in hex; ``response_sha256`` of those it got.
    """
    return {
        "version": VERSION,
        "id": id,
        "time": time,
        "requested_model": requested_model,
        "served_model": served_model,
        "chute_id": chute_id,
        "instance_id": instance_id,
        "instance_key_sha256": instance_key_sha256,
        "attestation": attestation,
        "evidence_sha256": evidence_sha256,
        "attempts": [{"model": model, "outcome": outcome} for model, outcome in attempts],
        "request_sha256": request_sha256,
        "response_sha256": response_sha256,
    }


def sign_receipt(receipt: Mapping[str, Any], signer: ReceiptSigner) -> dict[str, Any]:
    """The receipt with its signature, as ``GET /v1/receipts/{chat_id}`` answers."""
    return {
        "receipt": dict(receipt),
        "signature": signer.sign(canonical_json(receipt).decode()),
        "signing_algo": signer.algo,
        "signing_address": signer.address,
    }


def verify_receipt(receipt: Any, signature: Any, algo: Any, address: str) -> bool:
    """Whether the holder of ``address`` signed exactly this receipt; False for whatever is malformed too.

    :param receipt: the parsed member ``receipt``.
    :param address: of the key the caller trusts, from an attested report, say; the ``signing_address`` that came with
        the receipt proves nothing.
    """
    if not isinstance(receipt, dict) or receipt.get("version") != VERSION:
        return False
    if not isinstance(signature, str) or algo not in ("ecdsa", "ed25519"):
        return False
    try:
        text = canonical_json(receipt).decode()
    except (ValueError, RecursionError):
        return False
    return verify(algo, address, text, signature)


def _refuse_ambiguous(value: Any) -> None:
    match value:
        case None | bool() | int() | str():
            return
        case dict():
            if not all(isinstance(key, str) for key in value):
                raise ValueError("a key is no string")
            for item in value.values():
                _refuse_ambiguous(item)
        case list() | tuple():
            for item in value:
                _refuse_ambiguous(item)
        case _:
            raise ValueError(f"no canonical form for {type(value).__name__}")
