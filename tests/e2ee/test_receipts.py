import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.e2ee.receipt import build_receipt, canonical_json, sign_receipt, verify_receipt
from chutes_autopilot.e2ee.server_keys import ServerKey, ephemeral_keys, keys_from_secrets

ECDSA, ED25519 = keys_from_secrets("k", bytes(31) + b"\1", bytes(32))
RECEIPT = build_receipt(
    id="chatcmpl-1",
    time=1_780_000_000,
    requested_model="autopilot",
    served_model="Ünï/côdé\u2028",
    chute_id="c",
    instance_id="i",
    instance_key_sha256="ab" * 32,
    attestation="quote",
    evidence_sha256="cd" * 32,
    attempts=[("a", "instance_gone"), ("b", "ok")],
    request_sha256="ef" * 32,
    response_sha256=None,
)


def test_a_receipt_has_all_members_whatever_is_known() -> None:
    """Unknown ones are null, and attempts keep their order."""
    assert list(RECEIPT) == [
        "version",
        "id",
        "time",
        "requested_model",
        "served_model",
        "chute_id",
        "instance_id",
        "instance_key_sha256",
        "attestation",
        "evidence_sha256",
        "attempts",
        "request_sha256",
        "response_sha256",
    ]
    assert (RECEIPT["version"], RECEIPT["response_sha256"]) == (1, None)
    assert RECEIPT["attempts"] == [{"model": "a", "outcome": "instance_gone"}, {"model": "b", "outcome": "ok"}]


def test_there_is_one_way_to_write_a_value() -> None:
    """Sorted keys at every depth, no white space, UTF-8 unescaped, only JSON's own escapes."""
    value = {"b": [1, True, None, {"z": 'é\u2028\n"\\/\u0001', "a": -7}], "B": {}, "": []}
    assert canonical_json(value) == '{"":[],"B":{},"b":[1,true,null,{"a":-7,"z":"é\u2028\\n\\"\\\\/\\u0001"}]}'.encode()


@pytest.mark.parametrize("value", [1.0, float("nan"), {1: 2}, {None: 1}, "\ud800", {"\udfff": 1}, b"x", {1}, [0.5]])
def test_what_has_no_one_form_is_refused(value: Any) -> None:
    """Floating-point numbers, keys that are no strings, lone surrogates and whatever is not JSON."""
    with pytest.raises(ValueError):  # noqa: PT011 - the kinds have no text in common
        canonical_json(value)


def test_a_receipt_of_another_version_is_none() -> None:
    """Its members may mean something else, so its signature says nothing here."""
    signed = sign_receipt(RECEIPT | {"version": 2}, ED25519)
    assert not verify_receipt(signed["receipt"], signed["signature"], "ed25519", ED25519.address)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@given(JSON)
def test_the_canonical_form_survives_the_way_over_the_wire(value: Any) -> None:
    """Written in any other way and parsed again it is the same; so a verifier may parse the receipt as it likes."""
    assert json.loads(canonical_json(value)) == value
    assert canonical_json(json.loads(json.dumps(value, indent=1))) == canonical_json(value)


@pytest.mark.parametrize("key", [ECDSA, ED25519], ids=["ecdsa", "ed25519"])
def test_a_signed_receipt_verifies_after_the_wire(key: ServerKey) -> None:
    """What the route answers is enough to check it against the address the client knows, in any case."""
    answer = json.loads(json.dumps(sign_receipt(RECEIPT, key)))
    assert list(answer) == ["receipt", "signature", "signing_algo", "signing_address"]
    assert (answer["signing_algo"], answer["signing_address"]) == (key.algo, key.address)
    for address in (key.address, key.address.lower()):
        assert verify_receipt(answer["receipt"], answer["signature"], answer["signing_algo"], address)


def test_the_signature_is_over_the_canonical_bytes() -> None:
    """Anybody with an Ed25519 library and the rule can check it."""
    signature = sign_receipt(RECEIPT, ED25519)["signature"]
    Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().verify(
        bytes.fromhex(signature), canonical_json(RECEIPT)
    )


def test_another_key_did_not_sign_it() -> None:
    """The address decides, not what came with the receipt."""
    signed = sign_receipt(RECEIPT, ED25519)
    for other in ephemeral_keys().keys:
        assert not verify_receipt(signed["receipt"], signed["signature"], other.algo, other.address)
    assert not verify_receipt(signed["receipt"], signed["signature"], "ecdsa", ECDSA.address)


@pytest.mark.parametrize("member", list(RECEIPT))
def test_no_member_can_be_changed_added_or_taken_away(member: str) -> None:
    """Each change breaks the signature."""
    signature = sign_receipt(RECEIPT, ED25519)["signature"]

    def stands(receipt: Any) -> bool:
        return verify_receipt(receipt, signature, "ed25519", ED25519.address)

    assert stands(dict(reversed(RECEIPT.items())))
    assert not stands(RECEIPT | {member: "x" if RECEIPT[member] != "x" else "y"})
    assert not stands({name: value for name, value in RECEIPT.items() if name != member})
    assert not stands(RECEIPT | {member + "2": None})


@settings(max_examples=60)
@given(
    receipt=JSON | st.just(RECEIPT),
    signature=JSON | st.just("0x" + "00" * 65) | st.just("00" * 64),
    algo=JSON | st.sampled_from(["ecdsa", "ed25519"]),
    address=st.text() | st.sampled_from([ECDSA.address, ED25519.address]),
)
def test_garbage_is_no_signed_receipt(receipt: Any, signature: Any, algo: Any, address: str) -> None:
    """Whatever the parts are, the answer is no, and not an exception."""
    assert not verify_receipt(receipt, signature, algo, address)
    if isinstance(receipt, dict):
        assert not verify_receipt(receipt | {"version": 1, "x": 0.5}, signature, algo, address)
