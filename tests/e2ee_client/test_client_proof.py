"""Signatures and receipts: what holds for exactly the recorded bytes, and all that does not."""

import json
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.e2ee.curves import Algo
from chutes_autopilot.e2ee.receipt import build_receipt, sign_receipt
from chutes_autopilot.e2ee.server_keys import ServerKey, ephemeral_keys
from chutes_autopilot.e2ee_client.errors import ProofRefused
from chutes_autopilot.e2ee_client.proof import ExchangeRecord, check_receipt, check_signature

KEYS, OTHERS = ephemeral_keys(), ephemeral_keys()


def record(algo: Algo = "ed25519") -> ExchangeRecord:
    return ExchangeRecord("chatcmpl-1", "m", algo, KEYS.current(algo).address, "aa" * 32, "bb" * 32)


def signature(of: ExchangeRecord, key: ServerKey | None = None, **changes: Any) -> bytes:
    key = key or KEYS.current(of.signing_algo)
    members = {
        "text": of.text,
        "signature": key.sign(of.text),
        "signing_address": key.address,
        "signing_algo": key.algo,
    }
    return json.dumps(members | changes).encode()


def receipt(of: ExchangeRecord, **changes: Any) -> dict[str, Any]:
    members = build_receipt(
        id=of.id,
        time=1_700_000_000,
        requested_model=of.requested_model,
        served_model="vendor/Model-1",
        chute_id=None,
        instance_id="i-1\x1b[2J",
        instance_key_sha256=None,
        attestation="binding",
        evidence_sha256=None,
        attempts=[("vendor/Model-1", "complete")],
        request_sha256=of.request_sha256,
        response_sha256=of.response_sha256,
    )
    return members | changes


def signed_receipt(of: ExchangeRecord, key: ServerKey | None = None, **changes: Any) -> bytes:
    return json.dumps(sign_receipt(receipt(of, **changes), key or KEYS.current(of.signing_algo))).encode()


@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
def test_a_signature_over_these_bytes_holds(algo: Algo) -> None:
    """By the key of the report; the address counts in any case."""
    of = record(algo)
    assert check_signature(of, signature(of)).startswith("signature: ")
    shouted = "0X" + of.signing_address[2:].upper() if algo == "ecdsa" else of.signing_address.upper()
    check_signature(of, signature(of, signing_address=shouted))


@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
def test_a_receipt_for_this_exchange_holds(algo: Algo) -> None:
    """What it says is shown as the service's word, harmless on a terminal."""
    of = record(algo)
    lines = check_receipt(of, signed_receipt(of))
    assert "the service's word" in lines[0]
    assert lines[1] == "  time: 1700000000 (2023-11-14T22:13:20Z)"
    assert "  chute_id: unknown" in lines
    assert '  attestation: "binding"' in lines
    assert "\x1b" not in "".join(lines)
    check_receipt(of, signed_receipt(of, requested_model=None))


@pytest.mark.parametrize("time", [10**15, -(10**18), True, "1700000000", None])
def test_a_time_that_is_none_of_the_calendar_is_shown_as_it_is(time: object) -> None:
    """Whoever holds the key may have signed anything."""
    of = record()
    shown = "unknown" if time is None else json.dumps(time)
    assert check_receipt(of, signed_receipt(of, time=time))[1] == f"  time: {shown}"


SIGNATURES: list[tuple[str, dict[str, Any], str]] = [
    ("other bytes", {"text": "aa" * 32 + ":" + "cc" * 32}, "signed other bytes"),
    ("another kind", {"signing_algo": "ecdsa"}, "another kind of key"),
    ("another key", {"signing_address": "ab" * 32}, "another key than the one"),
    ("a broken signature", {"signature": "00" * 64}, "not one of the gateway's key"),
    ("a signature by another", {"signature": OTHERS.current("ed25519").sign(record().text)}, "not one of the gateway"),
    ("no signature", {"signature": None}, "has no signature"),
    ("no text", {"text": 1}, "has no text"),
]


@pytest.mark.parametrize(("changes", "message"), [s[1:] for s in SIGNATURES], ids=[s[0] for s in SIGNATURES])
def test_a_signature_that_does_not_hold_is_refused(changes: dict[str, Any], message: str) -> None:
    """With the reason."""
    with pytest.raises(ProofRefused, match=message):
        check_signature(record(), signature(record(), **changes))


RECEIPTS: list[tuple[str, bytes, str]] = [
    ("another answer", signed_receipt(record(), id="chatcmpl-2"), "its id differs"),
    ("another model", signed_receipt(record(), requested_model="n"), "its requested_model differs"),
    ("another request", signed_receipt(record(), request_sha256="cc" * 32), "its request_sha256 differs"),
    ("another response", signed_receipt(record(), response_sha256=None), "its response_sha256 differs"),
    ("another version", signed_receipt(record(), version=2), "not of version 1"),
    ("another key", signed_receipt(record(), OTHERS.current("ed25519")), "another key than the one"),
    (
        "changed after it was signed",
        signed_receipt(record()).replace(b"vendor/Model-1", b"vendor/Model-2"),
        "not signed by the gateway's key",
    ),
    ("none", b'{"receipt":null}', "another kind of key"),
]


@pytest.mark.parametrize(("answer", "message"), [r[1:] for r in RECEIPTS], ids=[r[0] for r in RECEIPTS])
def test_a_receipt_that_does_not_hold_is_refused(answer: bytes, message: str) -> None:
    """With the reason."""
    with pytest.raises(ProofRefused, match=message):
        check_receipt(record(), answer)


@given(
    st.one_of(st.binary(), st.recursive(st.none() | st.text() | st.floats(), st.lists).map(json.dumps).map(str.encode))
)
def test_whatever_comes_is_a_refusal(data: bytes) -> None:
    """Of a signature, a receipt or a line of a record."""
    for check in (
        lambda d: check_signature(record(), d),
        lambda d: check_receipt(record(), d),
        ExchangeRecord.from_json,
    ):
        with pytest.raises(ProofRefused):
            check(data)


def test_a_record_is_one_line_and_comes_back() -> None:
    """Whatever the model is called."""
    of = evolve(record("ecdsa"), requested_model="a\n\u2028b")
    assert b"\n" not in of.to_json()
    assert ExchangeRecord.from_json(of.to_json()) == of
    with pytest.raises(ProofRefused, match="unknown signing_algo"):
        ExchangeRecord.from_json(of.to_json().replace(b'"ecdsa"', b'"rsa"'))
