import json
from base64 import b64encode
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.e2ee.evidence import InstanceEvidence, check_evidence
from chutes_autopilot.e2ee.measurements import read_measurements
from chutes_autopilot.e2ee.quote import QuoteRefused, parse_quote
from chutes_autopilot.e2ee.quote_chain import INTEL_ROOT_SPKI_SHA256, verify_quote
from tests.e2ee.quote_factory import (
    AUTHORITY,
    DAY,
    MEASUREMENTS,
    MRSIGNER_AT,
    NONCE,
    NOW,
    PCK,
    PRODUCT_AT,
    PUBLIC_KEY,
    ROOT,
    Machine,
    QuoteParts,
    certificate,
    machine,
    new_key,
    pem,
    raw_public,
    raw_signature,
)

M = machine()
TRUSTED = read_measurements(json.dumps(MEASUREMENTS).encode(), "pinned")


def verdict(quote: bytes | QuoteParts, at: float = NOW, root: bytes = M.root_spki_sha256) -> str:
    raw = quote.join() if isinstance(quote, QuoteParts) else quote
    try:
        verify_quote(parse_quote(raw), at, root)
    except QuoteRefused as error:
        return error.reason
    return "stands"


def chained(*chain: Any) -> QuoteParts:
    return M.quote(chain=pem(*chain))


@pytest.mark.parametrize("ends", [b"", b"\0", b"\0\0", b"\n\0"])
def test_a_quote_of_a_genuine_machine_stands(ends: bytes) -> None:
    """With and without the NUL at the end of the chain."""
    assert verdict(M.quote(ends=ends)) == "stands"


def test_intels_root_is_the_default() -> None:
    """A chain that is right in itself and ends in any other root does not stand, whatever the root calls itself."""
    with pytest.raises(QuoteRefused, match="root"):
        verify_quote(parse_quote(M.quote().join()), NOW)
    assert verdict(Machine().quote()) == "root"
    assert INTEL_ROOT_SPKI_SHA256.hex() == "a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"


def test_the_attestation_key_must_have_signed() -> None:
    """Neither no signature, nor another key's, nor one over another text."""
    assert verdict(M.quote(signature=bytes(64))) == "quote_signature"
    assert verdict(M.quote(signature=b"\xff" * 64)) == "quote_signature"
    parts = M.quote()
    assert verdict(M.quote(signature=raw_signature(new_key(), parts.signed()))) == "quote_signature"
    assert verdict(M.quote(signature=raw_signature(M.attestation_key, b"x"))) == "quote_signature"


def test_an_attestation_key_off_the_curve_is_refused() -> None:
    """Even where the quoting enclave vouches for those bytes."""
    good = M.quote().join()
    key = raw_public(M.attestation_key)
    bad = key[:-1] + bytes([key[-1] ^ 1])
    report = M.quote().made_qe_report()
    changed = report[:320] + sha256(bad + bytes(range(32))).digest() + report[352:]
    quote = good.replace(key, bad).replace(report, changed)
    old = parse_quote(good).qe_signature
    assert verdict(quote.replace(old, raw_signature(M.pck_key, changed))) == "quote_signature"


def test_the_machine_must_have_signed_the_enclaves_report() -> None:
    """Neither no signature nor another key's."""
    assert verdict(M.quote(qe_signature=bytes(64))) == "qe_signature"
    assert verdict(M.quote(pck_key=new_key())) == "qe_signature"


def test_the_report_must_name_the_attestation_key() -> None:
    """A report about another key, with other authentication data, or with something after the hash is refused."""
    assert verdict(M.quote(qe_report=M.quote(attestation_key=new_key()).made_qe_report())) == "qe_report"
    assert verdict(M.quote(qe_report=M.quote(authentication=b"").made_qe_report())) == "qe_report"
    assert verdict(M.quote(qe_changes=((383, b"\1"),))) == "qe_report"
    assert verdict(M.quote(authentication=b"")) == "stands"


@pytest.mark.parametrize(
    "change",
    [(MRSIGNER_AT, b"\0" * 32), (MRSIGNER_AT + 31, b"\0"), (PRODUCT_AT, b"\1\0"), (PRODUCT_AT, b"\2\1"), (48, b"\x17")],
    ids=["no signer", "another signer", "another product", "product 258", "debug"],
)
def test_only_intels_quoting_enclave_may_vouch(change: tuple[int, bytes]) -> None:
    """A genuine machine signs reports of any enclave; those of others, and of one in debug mode, are refused."""
    assert verdict(M.quote(qe_changes=(change,))) == "qe_identity"


def test_the_chain_leads_from_one_to_the_next() -> None:
    """Out of order, with a gap, with a stranger or without an end it is refused."""
    stranger = certificate(AUTHORITY, new_key(), ROOT, M.root_key)
    assert verdict(chained(M.pck, M.root, M.authority)) == "chain"
    assert verdict(chained(M.authority, M.pck, M.root)) == "chain"
    assert verdict(chained(M.pck, M.root)) == "chain"
    assert verdict(chained(M.pck, stranger, M.root)) == "chain"
    assert verdict(chained(M.pck, M.authority)) == "chain"
    assert verdict(chained(M.pck)) == "chain"
    assert verdict(M.quote(chain=b"")) == "chain"
    assert verdict(M.quote(chain=b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")) == "chain"
    assert verdict(chained(M.pck, M.authority, *[M.root] * 7)) == "chain"


def test_the_root_must_sign_itself() -> None:
    """The right name and the right key are not enough."""
    forged = certificate(ROOT, M.root_key, ROOT, new_key())
    assert verdict(chained(M.pck, M.authority, forged)) == "chain"


def test_only_an_authority_issues() -> None:
    """A certificate issued with the key of an end certificate is refused."""
    key, below = new_key(), new_key()
    authority = certificate(AUTHORITY, key, ROOT, M.root_key, ca=False)
    pck = certificate(PCK, below, AUTHORITY, key, ca=False)
    assert verdict(M.quote(pck_key=below, chain=pem(pck, authority, M.root))) == "chain"


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)])
def test_the_machines_key_is_on_p256(key: Any) -> None:
    """Another curve or kind of key is refused, whatever it would sign."""
    pck = certificate(PCK, key, AUTHORITY, M.authority_key, ca=False)
    assert verdict(chained(pck, M.authority, M.root)) == "chain"


@pytest.mark.parametrize("short", [0, 1, 2])
def test_every_certificate_must_be_valid(short: int) -> None:
    """From the second in which the last of the three begins to that in which the first of them ends."""
    root, authority, pck = ({"starts": NOW - DAY, "ends": NOW + DAY} if i == short else {} for i in range(3))
    quote = chained(
        certificate(PCK, M.pck_key, AUTHORITY, M.authority_key, ca=False, **pck),
        certificate(AUTHORITY, M.authority_key, ROOT, M.root_key, **authority),
        certificate(ROOT, M.root_key, ROOT, M.root_key, **root),
    )
    moments = [NOW - DAY - 1, NOW - DAY, NOW + DAY, NOW + DAY + 1]
    assert [verdict(quote, at) for at in moments] == ["validity", "stands", "stands", "validity"]


def test_no_time_is_too_strange() -> None:
    """A clock that is far off refuses like any other."""
    assert verdict(M.quote(), -1.0) == "validity"


GOOD = M.quote(ends=b"").join()
CHAIN_AT = GOOD.index(b"-----BEGIN")


def accepted(raw: bytes) -> bool:
    evidence = InstanceEvidence("i", b64encode(raw).decode(), b64encode(M.instance_der).decode())
    try:
        check_evidence(evidence, "quote", NONCE, PUBLIC_KEY, TRUSTED, NOW, M.root_spki_sha256)
    except QuoteRefused:
        return False
    return True


def test_the_unchanged_quote_is_accepted() -> None:
    """So that the two tests below can fail."""
    assert accepted(GOOD)


@settings(max_examples=300)
@given(st.integers(0, CHAIN_AT - 1), st.integers(1, 255))
def test_no_byte_before_the_chain_can_be_changed(offset: int, mask: int) -> None:
    """Every byte of header, report, signatures, keys, enclave's report and lengths is vouched for."""
    assert not accepted(GOOD[:offset] + bytes([GOOD[offset] ^ mask]) + GOOD[offset + 1 :])


@pytest.mark.filterwarnings("ignore")  # the library's on odd certificates
@settings(max_examples=300)
@given(st.sampled_from([M.pck, M.authority, M.root]), st.data(), st.integers(1, 255))
def test_no_byte_of_a_certificate_can_be_changed(changed: Any, data: st.DataObject, mask: int) -> None:
    """Every byte that a certificate says or is signed with is vouched for, the root's own signature included."""
    der = changed.public_bytes(Encoding.DER)
    said = der.index(changed.tbs_certificate_bytes)
    spans = st.one_of(
        st.integers(said, said + len(changed.tbs_certificate_bytes) - 1),
        st.integers(len(der) - len(changed.signature), len(der) - 1),
    )
    offset = data.draw(spans)
    mutated = der[:offset] + bytes([der[offset] ^ mask]) + der[offset + 1 :]
    chain = b""
    for one in (M.pck, M.authority, M.root):
        text = b64encode(mutated if one is changed else one.public_bytes(Encoding.DER))
        chain += b"-----BEGIN CERTIFICATE-----\n" + text + b"\n-----END CERTIFICATE-----\n"
    assert not accepted(M.quote(chain=chain).join())
