from base64 import b64encode
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.e2ee.evidence import EvidenceError, InstanceEvidence, check_evidence, read_evidence
from chutes_autopilot.e2ee.quote import MAX_QUOTE_BYTES, QuoteRefused, check_binding, decode_evidence, parse_quote
from tests.e2ee.quote_factory import MRTD, NONCE, NOW, PUBLIC_KEY, RTMRS, machine, raw_public

GOOD = machine().quote().join()
DER = machine().instance_der


def refused(data: bytes) -> str:
    with pytest.raises(QuoteRefused) as caught:
        parse_quote(data)
    return caught.value.reason


def patched(offset: int, value: bytes) -> bytes:
    return GOOD[:offset] + value + GOOD[offset + len(value) :]


def number_at(offset: int, size: int) -> int:
    return int.from_bytes(GOOD[offset : offset + size], "little")


AUTHENTICATION_AT = 636 + 64 + 64 + 2 + 4 + 384 + 64
CHAIN_AT = AUTHENTICATION_AT + 2 + number_at(AUTHENTICATION_AT, 2)


def test_a_quote_comes_apart_into_its_fields() -> None:
    """Every field is where the format says."""
    quote = parse_quote(GOOD)
    assert (quote.mrtd, quote.rtmrs) == (MRTD, RTMRS)
    assert quote.report_data[:32] == sha256((NONCE + PUBLIC_KEY).encode()).digest()
    assert quote.signed == GOOD[:632]
    assert quote.attestation_key == raw_public(machine().attestation_key)
    assert quote.qe_authentication == bytes(range(32))
    assert quote.pck_chain.startswith(b"-----BEGIN CERTIFICATE-----")
    assert not quote.debug


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"\x03\0"),
        (0, b"\x05\0"),
        (2, b"\x03\0"),
        (4, b"\0\0\0\0"),
        (4, b"\x81\0\0\1"),
        (636 + 128, b"\x05\0"),
        (CHAIN_AT, b"\x06\0"),
    ],
    ids=["version 3", "version 5", "P-384", "SGX", "upper half", "no QE report", "no PEM chain"],
)
def test_other_kinds_are_refused(offset: int, value: bytes) -> None:
    """A version, key type, TEE or certification that is not the one described is no quote for us."""
    assert refused(patched(offset, value)) == "malformed"


@pytest.mark.parametrize(
    ("offset", "size"),
    [(632, 4), (636 + 130, 4), (AUTHENTICATION_AT, 2), (CHAIN_AT + 2, 4)],
    ids=["signature data", "QE certification", "authentication", "chain"],
)
@pytest.mark.parametrize("change", [-1, 1, None])
def test_every_length_must_fit(offset: int, size: int, change: int | None) -> None:
    """One less, one more, and the largest there is: each is refused, for each length."""
    value = 256**size - 1 if change is None else number_at(offset, size) + change
    assert refused(patched(offset, value.to_bytes(size, "little"))) == "malformed"


@pytest.mark.parametrize("data", [GOOD + b"\0", GOOD + GOOD, b""], ids=["one byte", "twice", "empty"])
def test_nothing_may_follow_or_be_missing(data: bytes) -> None:
    """What follows the signature data is not skipped."""
    assert refused(data) == "malformed"


@pytest.mark.parametrize("inner", [False, True], ids=["signature data", "QE certification"])
def test_nothing_may_hide_inside(inner: bool) -> None:
    """A byte after the last field of a part is refused although all lengths around it fit."""
    longer = GOOD + b"\0"
    for offset in (632, 636 + 130) if inner else (632,):
        length = (number_at(offset, 4) + 1).to_bytes(4, "little")
        longer = longer[:offset] + length + longer[offset + 4 :]
    assert refused(longer) == "malformed"


@given(st.integers(0, len(GOOD) - 1))
def test_no_front_of_a_quote_is_one(length: int) -> None:
    """Cut anywhere it is refused."""
    assert refused(GOOD[:length]) == "malformed"


def test_a_quote_has_a_bound() -> None:
    """A well-formed quote over the bound is refused unread."""
    chain = b"\n" * MAX_QUOTE_BYTES
    assert refused(machine().quote(chain=chain).join()) == "malformed"


@given(st.binary(max_size=2000))
def test_garbage_is_refused_and_nothing_else(data: bytes) -> None:
    """Whatever the bytes are, the one exception is QuoteRefused."""
    assert refused(data) == "malformed"


def binding(nonce: str = NONCE, key: str = PUBLIC_KEY, certificate: bytes | None = DER, quote: bytes = GOOD) -> str:
    try:
        check_binding(parse_quote(quote), nonce, key, certificate)
    except QuoteRefused as error:
        return error.reason
    return "stands"


OTHER_KEY = b64encode(b"\1" + bytes(1183)).decode()


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({}, "stands"),
        ({"certificate": None}, "stands"),
        ({"nonce": "5b" * 32}, "binding"),
        ({"nonce": NONCE.upper()}, "binding"),
        ({"key": OTHER_KEY}, "binding"),
        ({"key": PUBLIC_KEY + "\n"}, "binding"),
        ({"certificate": machine().root.public_bytes(Encoding.DER)}, "certificate"),
        ({"certificate": b"no certificate"}, "certificate"),
        ({"quote": machine().quote(td_attributes=b"\x01\0\0\x10" + bytes(4)).join()}, "debug"),
    ],
    ids=[
        "as it is",
        "no certificate",
        "another nonce",
        "another spelling of the nonce",
        "another key",
        "another spelling of the key",
        "another certificate",
        "no DER",
        "debug",
    ],
)
def test_the_binding_holds_for_one_nonce_key_and_certificate(change: dict[str, object], outcome: str) -> None:
    """The exact texts and the certificate that the quote names, and a trust domain nobody looks into."""
    assert binding(**change) == outcome  # type: ignore[arg-type]


def evidence(quote: bytes = GOOD, certificate: bytes | None = DER) -> InstanceEvidence:
    der = None if certificate is None else b64encode(certificate).decode()
    return InstanceEvidence("i", b64encode(quote).decode(), der)


def test_level_binding_believes_what_nobody_signed() -> None:
    """The level's documented limit: a quote with invented signatures passes it, and only it."""
    made_up = machine().quote(signature=bytes(64), qe_signature=bytes(64), chain=b"none").join()
    assert check_evidence(evidence(made_up), "binding", NONCE, PUBLIC_KEY, None, NOW).measurement is None
    with pytest.raises(QuoteRefused, match="chain"):
        check_evidence(evidence(made_up), "quote", NONCE, PUBLIC_KEY, None, NOW)


def test_the_evidence_is_named_by_the_quotes_hash() -> None:
    """For receipts: SHA-256 of the quote's bytes."""
    checked = check_evidence(evidence(), "binding", NONCE, PUBLIC_KEY, None, NOW)
    assert checked.sha256 == sha256(GOOD).hexdigest()


@pytest.mark.parametrize("text", ["AA", "AAA=\n", "A A=", "AAAA=", "AAA-", "\u00e9", "="])
def test_base64_is_read_strictly(text: str) -> None:
    """Missing or superfluous padding, white space and other alphabets are refused."""
    with pytest.raises(QuoteRefused, match="malformed"):
        decode_evidence(text)


def test_the_answer_is_taken_apart_by_instance() -> None:
    """Items in any order, with members unknown; bad ones and all of a doubled one are as if they had not come."""
    body = b"""{"x":1,"evidence":[{"instance_id":"b","quote":"Qg==","gpu_evidence":[{"arch":"h"}]},
        {"instance_id":"a","quote":"QQ==","certificate":"Yw==","signature":null},
        {"instance_id":"c","quote":null},{"quote":"QQ=="},7,null,{"instance_id":5,"quote":"QQ=="},
        {"instance_id":"d","quote":"QQ=="},{"instance_id":"d","quote":"QQ=="},{"instance_id":"d","quote":"QQ=="},
        {"instance_id":"e","quote":"%s"}],"failed_instance_ids":["f"]}""" % (b"A" * 200_000)
    assert read_evidence(body) == {
        "b": InstanceEvidence("b", "Qg=="),
        "a": InstanceEvidence("a", "QQ==", "Yw=="),
    }


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"evidence":{}}', b'{"evidence":[}', b'{"evidence":' + b"[" * 9999]
)
def test_an_answer_that_is_none_is_no_evidence(body: bytes) -> None:
    """It says nothing about any instance."""
    with pytest.raises(EvidenceError):
        read_evidence(body)
