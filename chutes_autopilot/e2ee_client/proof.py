"""After an exchange: does the gateway's key sign for exactly the bytes that went out and came in?

A signature says that the holder of the key saw these bytes. A receipt says, under the same key, how the service
reports the exchange: which model and instance, after which attempts. Neither says anything of the model's honesty.
"""

import json
from datetime import UTC, datetime
from typing import Any, cast, get_args

import msgspec
from attrs import asdict, frozen

from chutes_autopilot.e2ee.curves import Algo
from chutes_autopilot.e2ee.receipt import verify_receipt
from chutes_autopilot.e2ee.signing import verify
from chutes_autopilot.e2ee_client.errors import ProofRefused


@frozen
class ExchangeRecord:
    """What is needed to check an exchange later: hashes of its wire bytes, which are ciphertext, and the key.

    :param id: of the answer.
    :param signing_address: of the key the request was sealed to, from the report that was checked then.
    :param request_sha256: of the request body as sent, 64 hex characters.
    :param response_sha256: of every byte of the answer's body as it came.
    """

    id: str
    requested_model: str
    signing_algo: Algo
    signing_address: str
    request_sha256: str
    response_sha256: str

    @property
    def text(self) -> str:
        """What the gateway signs (protocol section 10)."""
        return f"{self.request_sha256}:{self.response_sha256}"

    def to_json(self) -> bytes:
        """One line without its end."""
        return msgspec.json.encode(asdict(self))

    @classmethod
    def from_json(cls, line: bytes) -> "ExchangeRecord":
        """What to_json wrote; raises ProofRefused."""
        members = _object(line, "the record")
        names = ("id", "requested_model", "signing_algo", "signing_address", "request_sha256", "response_sha256")
        values = [_text(members, name, "the record") for name in names]
        if values[2] not in get_args(Algo):
            raise ProofRefused("the record has an unknown signing_algo")
        return cls(values[0], values[1], cast(Algo, values[2]), *values[3:])


def check_signature(record: ExchangeRecord, answer: bytes) -> str:
    """One line that says what holds; raises ProofRefused.

    :param answer: the body of ``GET /v1/signature/{id}``.
    """
    members = _object(answer, "the signature")
    _same_signer(record, members, "the signature")
    if _text(members, "text", "the signature") != record.text:
        raise ProofRefused("The gateway signed other bytes than those that were sent and received.")
    if not verify(record.signing_algo, record.signing_address, record.text, _text(members, "signature", "it")):
        raise ProofRefused("The signature is not one of the gateway's key.")
    return "signature: the gateway's key signs for exactly the bytes that were sent and received"


def check_receipt(record: ExchangeRecord, answer: bytes) -> list[str]:
    """What the receipt says, a fact a line, the first naming what holds; raises ProofRefused.

    :param answer: the body of ``GET /v1/receipts/{id}``.
    """
    members = _object(answer, "the receipt")
    _same_signer(record, members, "the receipt")
    receipt = members.get("receipt")
    if not isinstance(receipt, dict) or receipt.get("version") != 1:
        raise ProofRefused("The receipt is not of version 1.")
    signature = _text(members, "signature", "the receipt")
    if not verify_receipt(receipt, signature, record.signing_algo, record.signing_address):
        raise ProofRefused("The receipt is not signed by the gateway's key.")
    for name in ("id", "requested_model", "request_sha256", "response_sha256"):
        # the model may be unknown to the service, as the request's hash already names it
        unknown = name == "requested_model" and receipt.get(name) is None
        if not unknown and receipt.get(name) != getattr(record, name):
            raise ProofRefused(f"The receipt is for another exchange: its {name} differs.")
    lines = ["receipt: signed by the gateway's key, for exactly these bytes; it is the service's word:"]
    for name in ("time", "served_model", "chute_id", "instance_id", "attestation", "attempts"):
        lines.append(f"  {name}: {_shown(receipt.get(name))}")
    lines[1] += _in_words(receipt.get("time"))
    return lines


def _same_signer(record: ExchangeRecord, members: dict[str, Any], what: str) -> None:
    if members.get("signing_algo") != record.signing_algo:
        raise ProofRefused(f"{what.capitalize()} is by another kind of key.")
    if _text(members, "signing_address", what).lower() != record.signing_address.lower():
        raise ProofRefused(f"{what.capitalize()} is by another key than the one the request was sealed to.")


def _text(members: dict[str, Any], name: str, what: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise ProofRefused(f"{what.capitalize()} has no {name}.")
    return value


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ProofRefused(f"{what.capitalize()} is no JSON object.")
    return value


def _in_words(unix_time: object) -> str:
    """Unix seconds as ISO 8601 in UTC, to be put behind them; empty for what is no time of the calendar."""
    if isinstance(unix_time, bool) or not isinstance(unix_time, int):
        return ""
    try:
        return f" ({datetime.fromtimestamp(unix_time, UTC).isoformat().replace('+00:00', 'Z')})"
    except (OverflowError, OSError, ValueError):
        return ""


def _shown(value: object) -> str:
    """On one line and in ASCII, so that no text of a receipt can move a terminal's cursor."""
    return "unknown" if value is None else json.dumps(value)
