"""Collateral, and the level it is for. The optional package itself runs where it is installed, with our own root."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_crl
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from chutes_autopilot.e2ee import tcb
from chutes_autopilot.e2ee.collateral import (
    Answer,
    Collateral,
    CollateralError,
    Platform,
    join_collateral,
    read_collateral,
)
from chutes_autopilot.e2ee.quote import QuoteRefused
from chutes_autopilot.e2ee.tcb import TCB_STATUSES, TcbChecker, TcbLibraryMissing, load_tcb_library
from tests.e2ee.quote_factory import (
    AUTHORITY,
    DAY,
    FMSPC,
    NOW,
    ROOT,
    TCB_SIGNING,
    certificate,
    crl,
    machine,
    new_key,
    pem,
    qe_identity_text,
    raw_signature,
    tcb_info_text,
)

M = machine()
QUOTE = M.quote().join()
ROOT_DER = M.root.public_bytes(Encoding.DER)


def read(text: str, at: float = NOW) -> Collateral:
    return read_collateral(text.encode(), at, M.root_spki_sha256)


def error(text: str, at: float = NOW) -> str:
    with pytest.raises(CollateralError) as caught:
        read(text, at)
    return str(caught.value)


def test_good_collateral_says_for_whom_and_how_long() -> None:
    """It ends with the first of its parts; members of no use here are dropped."""
    collateral = read(M.collateral(tcb={"ends": NOW + 7 * DAY}, pck_certificate_chain="x"))
    assert (collateral.fmspc, collateral.starts, collateral.ends) == (FMSPC, NOW - DAY, NOW + 7 * DAY)
    assert "pck_certificate_chain" not in json.loads(collateral.text)


@pytest.mark.parametrize(
    "changes",
    [
        {"tcb": {"ends": NOW - 1}},
        {"qe": {"ends": NOW - 1}},
        {"root_ca_crl": crl(ROOT, M.root_key, ends=NOW - 1).hex()},
        {"pck_crl": crl(AUTHORITY, M.authority_key, ends=NOW - 1).hex()},
    ],
    ids=["TCB info", "QE identity", "root's list", "authority's list"],
)
def test_every_part_must_be_of_today(changes: dict[str, Any]) -> None:
    """One part that has expired makes all of it useless; so does a clock that is far off."""
    assert error(M.collateral(**changes)) == "expired"
    assert error(M.collateral(), NOW + 31 * DAY) == "expired"
    assert error(M.collateral(), NOW - 2 * DAY) == "expired"


def test_every_certificate_in_it_must_be_valid() -> None:
    """Also the one that signs the TCB information."""
    old = certificate(TCB_SIGNING, M.tcb_key, ROOT, M.root_key, ca=False, ends=NOW - 1)
    assert error(M.collateral(tcb_info_issuer_chain=pem(old, M.root).decode())) == "expired"


STRANGER = new_key()
FORGED = tcb_info_text(svn=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"tcb_info": FORGED},
        {"tcb_info": FORGED, "tcb_info_signature": raw_signature(STRANGER, FORGED.encode()).hex()},
        {"tcb_info_signature": "00" * 63},
        {"qe_identity": qe_identity_text(product=3)},
        {"root_ca_crl": crl(ROOT, STRANGER).hex()},
        {"pck_crl": crl(AUTHORITY, STRANGER).hex()},
        {"pck_crl": crl(ROOT, M.root_key).hex()},
        {"root_ca_crl": crl("Another", M.root_key).hex()},
        {"tcb_info_issuer_chain": pem(M.tcb_signing).decode()},
        {"qe_identity_issuer_chain": pem(M.tcb_signing, M.authority, M.root).decode()},
        {"pck_crl_issuer_chain": pem(M.root).decode()},
    ],
    ids=[
        "TCB info",
        "TCB info, signed by a stranger",
        "short signature",
        "QE identity",
        "root's list",
        "authority's list",
        "the wrong list",
        "a list of another name",
        "chain without root",
        "chain of others",
        "chain without authority",
    ],
)
def test_every_part_must_lead_to_the_root(changes: dict[str, str]) -> None:
    """What somebody between Intel and us could have written is refused."""
    assert error(M.collateral(**changes)) == "not signed as it must be"


def test_intels_root_is_the_default_for_collateral_too() -> None:
    """Collateral that is right in itself under another root is refused."""
    with pytest.raises(CollateralError, match="not signed"):
        read_collateral(M.collateral().encode(), NOW)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        M.collateral(tcb_info_signature="zz"),
        M.collateral(pck_crl="00"),
        M.collateral(root_ca_crl="zz"),
        M.collateral(tcb_info="{}"),
        M.collateral(qe_identity="[]"),
        M.collateral(tcb={"fmspc": "../../x"}),
    ],
)
def test_malformed_collateral_is_told_apart(text: str) -> None:
    """What cannot be read is malformed, whichever part it is."""
    assert error(text) == "malformed"


GOOD = json.loads(M.collateral())


def vouched_for(name: str) -> list[int]:
    """Where the characters of a member are that say something or sign it: of a list all but its outermost wrapping."""
    if "crl" not in name:
        return list(range(len(GOOD[name])))
    der = bytes.fromhex(GOOD[name])
    whole = load_der_x509_crl(der)
    said = der.index(whole.tbs_certlist_bytes)
    octets = [*range(said, said + len(whole.tbs_certlist_bytes)), *range(len(der) - len(whole.signature), len(der))]
    return [2 * octet + half for octet in octets for half in (0, 1)]


@pytest.mark.filterwarnings("ignore")  # the library's on odd lists
@settings(max_examples=200)
@given(st.sampled_from([name for name in GOOD if "chain" not in name]), st.data())
def test_no_character_of_collateral_can_be_changed(name: str, data: st.DataObject) -> None:
    """Every character of the lists, the signed texts and their signatures is vouched for."""
    offset = data.draw(st.sampled_from(vouched_for(name)))
    changed = data.draw(st.sampled_from("0123456789abcdef"))
    assume(changed != GOOD[name][offset].lower())
    with pytest.raises(CollateralError):
        read(json.dumps(GOOD | {name: GOOD[name][:offset] + changed + GOOD[name][offset + 1 :]}))


@pytest.mark.parametrize("as_hex", [True, False])
def test_answers_are_joined_byte_by_byte(as_hex: bool) -> None:
    """White space and order inside the signed texts stay; lists come as DER or as hex; chains are percent-encoded."""
    members = json.loads(M.collateral())
    info = ' { "b":1 , "a" : [ ] }'

    def answer(body: str | bytes, chain: str) -> Answer:
        encoded = members[chain].replace("\n", "%0A").replace(" ", "%20")
        return Answer(body if isinstance(body, bytes) else body.encode(), encoded)

    def listed(name: str) -> bytes:
        return members[name].encode() if as_hex else bytes.fromhex(members[name])

    joined = json.loads(
        join_collateral(
            answer(listed("pck_crl"), "pck_crl_issuer_chain"),
            listed("root_ca_crl"),
            answer(f'{{"signature":"ab","tcbInfo":{info}}}', "tcb_info_issuer_chain"),
            answer('{"enclaveIdentity":{"é":1},"signature":"cd"}', "qe_identity_issuer_chain"),
        )
    )
    changes = {
        "tcb_info": info.strip(),
        "tcb_info_signature": "ab",
        "qe_identity": '{"é":1}',
        "qe_identity_signature": "cd",
    }
    assert joined == members | changes


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"tcbInfo":{}}', b"<html>", b'{"tcbInfo":{"a":"\xff"},"signature":"00"}']
)
def test_answers_that_are_none_cannot_be_joined(body: bytes) -> None:
    """A page of HTML in the place of JSON is malformed collateral."""
    good = Answer(b'{"enclaveIdentity":{},"signature":"00"}', "")
    with pytest.raises(CollateralError, match="malformed"):
        join_collateral(Answer(b"\x30", ""), b"\x30", Answer(body, ""), good)


class Library:
    """A stand-in that records what it was asked."""

    def __init__(self, status: str = "UpToDate", error: BaseException | None = None) -> None:
        self.status = status
        self.error = error
        self.calls: list[tuple[object, ...]] = []
        self.QuoteCollateralV3 = SimpleNamespace(from_json=lambda text: ("parsed", text))

    def verify(self, *arguments: object) -> SimpleNamespace:
        self.calls.append(arguments)
        if self.error is not None:
            raise self.error
        return SimpleNamespace(status=self.status)

    def parse_quote(self, quote: bytes) -> SimpleNamespace:
        if self.error is not None:
            raise self.error
        return SimpleNamespace(fmspc=lambda: quote.decode(), ca=lambda: "processor")


COLLATERAL = Collateral("text", FMSPC, NOW - DAY, NOW + DAY)


def checker(library: Any, *accepted: str, root_ca: bytes | None = None) -> TcbChecker:
    return TcbChecker(library, frozenset(accepted or ["UpToDate"]), root_ca)


def test_the_package_is_asked_with_the_time_given() -> None:
    """In whole seconds, with quote and collateral as they are."""
    library = Library()
    assert checker(library).check(b"q", COLLATERAL, NOW + 0.9) == "UpToDate"
    assert library.calls == [(b"q", ("parsed", "text"), int(NOW))]


@pytest.mark.parametrize("status", [*TCB_STATUSES, "Revoked", "OK", ""])
def test_only_accepted_statuses_pass(status: str) -> None:
    """What the operator lists and no other; Revoked not even when listed."""
    library = Library(status)
    with pytest.raises(QuoteRefused, match="tcb_status"):
        checker(library, *({"UpToDate", "OutOfDate"} - {status})).check(b"q", COLLATERAL, NOW)
    if status in TCB_STATUSES:
        assert checker(library, status).check(b"q", COLLATERAL, NOW) == status
    else:
        with pytest.raises(QuoteRefused):
            checker(library, status).check(b"q", COLLATERAL, NOW)


def test_expired_collateral_decides_nothing() -> None:
    """The package is not asked, and the quote is not refused."""
    library = Library()
    for at in (NOW - DAY - 1, NOW + DAY + 1):
        with pytest.raises(CollateralError, match="expired"):
            checker(library).check(b"q", COLLATERAL, at)
    assert library.calls == []


class PanicException(BaseException):
    """As the binding names what Rust code does instead of raising."""


@pytest.mark.parametrize("fault", [ValueError("x"), TypeError(), PanicException()])
def test_whatever_the_package_raises_is_a_refusal(fault: BaseException) -> None:
    """Also a panic of its Rust code, which is no Exception."""
    for call in (lambda c: c.check(b"q", COLLATERAL, NOW), lambda c: c.platform_of(b"q")):
        with pytest.raises(QuoteRefused, match="tcb"):
            call(checker(Library(error=fault)))


def test_the_end_of_the_process_is_no_refusal() -> None:
    """KeyboardInterrupt and its like pass."""
    with pytest.raises(KeyboardInterrupt):
        checker(Library(error=KeyboardInterrupt())).check(b"q", COLLATERAL, NOW)


@pytest.mark.parametrize("fmspc", [b"", b"00906ED5", b"00906ED5000/", b"00906ED500001"])
def test_a_platform_is_fit_for_an_address_and_a_file_name(fmspc: bytes) -> None:
    """What is no FMSPC never gets that far."""
    assert checker(Library()).platform_of(FMSPC.lower().encode()) == Platform(FMSPC, "processor")
    with pytest.raises(QuoteRefused):
        checker(Library()).platform_of(fmspc)


def test_the_package_is_needed_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed: one clear error, naming setting and package."""

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(tcb, "import_module", missing)
    with pytest.raises(TcbLibraryMissing, match=r"CHUTES_ATTESTATION=quote\+tcb needs the package dcap-qvl"):
        load_tcb_library()


@pytest.fixture
def real() -> TcbChecker:
    return checker(pytest.importorskip("dcap_qvl"), root_ca=ROOT_DER)


def outcome(real: TcbChecker, text: str, quote: bytes = QUOTE, at: float = NOW) -> str:
    try:
        return real.check(quote, read(text, at), at)
    except QuoteRefused as refusal:
        return refusal.reason


def test_the_real_package_accepts_what_is_right(real: TcbChecker) -> None:
    """A quote, its platform and its collateral, all under our own root."""
    assert real.platform_of(QUOTE) == Platform(FMSPC, "platform")
    assert outcome(real, M.collateral()) == "UpToDate"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tcb": {"status": "OutOfDate"}}, "tcb_status"),
        ({"tcb": {"svn": 2}}, "tcb"),
        ({"tcb": {"status": "Revoked"}}, "tcb"),
        ({"tcb": {"fmspc": "000000000000"}}, "tcb"),
        ({"qe": {"product": 1}}, "tcb"),
        ({"pck_crl": crl(AUTHORITY, M.authority_key, (M.pck.serial_number,)).hex()}, "tcb"),
        ({"root_ca_crl": crl(ROOT, M.root_key, (M.authority.serial_number,)).hex()}, "tcb"),
        ({"root_ca_crl": crl(ROOT, M.root_key, (M.tcb_signing.serial_number,)).hex()}, "tcb"),
    ],
    ids=["out of date", "no level", "revoked level", "platform", "enclave", "machine", "authority", "TCB signer"],
)
def test_the_real_package_refuses(real: TcbChecker, changes: dict[str, Any], expected: str) -> None:
    """Each reason for which a quote that level ``quote`` accepts is refused with collateral that is right in itself."""
    assert outcome(real, M.collateral(**changes)) == expected


def test_the_real_package_trusts_intel_alone_by_default(real: TcbChecker) -> None:
    """Without a root of ours nothing of ours stands."""
    assert outcome(checker(real.library), M.collateral()) == "tcb"


def test_the_real_package_and_we_agree_on_expiry(real: TcbChecker) -> None:
    """In the last second of its life collateral is accepted by both; after it the package refuses as well."""
    ends = NOW + 3 * DAY
    collateral = read(M.collateral(tcb={"ends": ends}))
    assert real.check(QUOTE, collateral, ends) == "UpToDate"
    stretched = Collateral(collateral.text, FMSPC, 0, ends + DAY)
    with pytest.raises(QuoteRefused):
        real.check(QUOTE, stretched, ends + 2)


@settings(max_examples=100)
@given(quote=st.one_of(st.binary(max_size=800), st.integers(0, len(QUOTE) - 2).map(lambda cut: QUOTE[:cut])))
def test_the_real_package_on_garbage(quote: bytes) -> None:
    """Whatever it is given, it refuses and does nothing else."""
    real = checker(pytest.importorskip("dcap_qvl"), root_ca=ROOT_DER)
    with pytest.raises(QuoteRefused):
        real.check(quote, read(json.dumps(GOOD)), NOW)
    with pytest.raises(QuoteRefused):
        real.platform_of(quote)
