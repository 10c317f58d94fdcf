"""What Intel says about a family of platforms: revocation lists, TCB levels and the quoting enclave's identity.

A provisioning cache (PCCS) only hands it on, so every part is checked against the pinned root before it is believed.
What is believed here can only be right or out of date; so a quote that then fails with it fails for its own reasons.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import unquote

import msgspec
from attrs import frozen
from cryptography.x509 import Certificate, CertificateRevocationList, load_der_x509_crl

from chutes_autopilot.e2ee.quote import QuoteRefused
from chutes_autopilot.e2ee.quote_chain import INTEL_ROOT_SPKI_SHA256, leaf_key, read_chain, signed_by, verify_chain

MAX_COLLATERAL_BYTES = 1024 * 1024
"""Ordinary collateral has some 16 KiB."""


class CollateralError(ValueError):
    """Collateral that cannot be used: malformed, not signed as it must be, or not of this time; the text says which."""


@frozen
class Platform:
    """What collateral is asked for by.

    :param fmspc: 12 hexadecimal digits, upper case: the family of platforms.
    :param ca: the authority below the root: ``platform`` or ``processor``.
    """

    fmspc: str
    ca: str


class CollateralText(msgspec.Struct, frozen=True):
    """The members of QuoteCollateralV3's JSON: lists and signatures in hex, chains in PEM, the rest JSON texts."""

    pck_crl_issuer_chain: str
    root_ca_crl: str
    pck_crl: str
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: str
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: str


class _Dates(msgspec.Struct):
    issueDate: datetime
    nextUpdate: datetime


class _TcbInfo(_Dates):
    fmspc: str


class _SignedTcbInfo(msgspec.Struct):
    tcbInfo: msgspec.Raw
    signature: str


class _SignedQeIdentity(msgspec.Struct):
    enclaveIdentity: msgspec.Raw
    signature: str


@frozen
class Collateral:
    """Collateral whose every part leads to the root.

    :param text: QuoteCollateralV3's JSON.
    :param starts: Unix time from which all parts are valid.
    :param ends: Unix time until which they are.
    """

    text: str
    fmspc: str
    starts: float
    ends: float

    def valid(self, at: float) -> bool:
        """Whether every part is valid at this Unix time."""
        return self.starts <= at <= self.ends


@frozen
class Answer:
    """One answer of a PCCS: the body, and the issuer chain its head has (percent-encoded PEM)."""

    body: bytes
    issuer_chain: str


def join_collateral(pck_crl: Answer, root_ca_crl: bytes, tcb_info: Answer, qe_identity: Answer) -> bytes:
    """Put the four answers of a PCCS together, the signed texts byte by byte as they came; checks nothing.

    :raises CollateralError: they cannot be put together.
    """
    try:
        tcb = msgspec.json.decode(tcb_info.body, type=_SignedTcbInfo)
        qe = msgspec.json.decode(qe_identity.body, type=_SignedQeIdentity)
        return msgspec.json.encode(
            CollateralText(
                pck_crl_issuer_chain=unquote(pck_crl.issuer_chain),
                root_ca_crl=_crl_hex(root_ca_crl),
                pck_crl=_crl_hex(pck_crl.body),
                tcb_info_issuer_chain=unquote(tcb_info.issuer_chain),
                tcb_info=bytes(tcb.tcbInfo).decode(),
                tcb_info_signature=tcb.signature,
                qe_identity_issuer_chain=unquote(qe_identity.issuer_chain),
                qe_identity=bytes(qe.enclaveIdentity).decode(),
                qe_identity_signature=qe.signature,
            )
        )
    except (ValueError, RecursionError):
        raise CollateralError("malformed") from None


def read_collateral(text: bytes, at: float, root_spki_sha256: bytes = INTEL_ROOT_SPKI_SHA256) -> Collateral:
    """Check that every part is signed by somebody the root vouches for, and valid at this Unix time.

    :raises CollateralError: it is not. (The TCB levels themselves are judged with a quote, by tcb.TcbChecker.)
    """
    try:
        members = msgspec.json.decode(text, type=CollateralText)
        info = msgspec.json.decode(members.tcb_info, type=_TcbInfo)
        dates = [info, msgspec.json.decode(members.qe_identity, type=_Dates)]
        tcb_chain = _signed(members.tcb_info, members.tcb_info_signature, members.tcb_info_issuer_chain)
        qe_chain = _signed(members.qe_identity, members.qe_identity_signature, members.qe_identity_issuer_chain)
        crl_chain = read_chain(members.pck_crl_issuer_chain.encode())
        chains = [tcb_chain, qe_chain, crl_chain]
        for chain in chains:
            verify_chain(chain, at, root_spki_sha256)
        crls = [_crl(members.pck_crl, crl_chain[0]), _crl(members.root_ca_crl, crl_chain[-1])]
    except QuoteRefused as error:
        raise CollateralError("expired" if error.reason == "validity" else "not signed as it must be") from None
    except CollateralError:
        raise
    except (ValueError, RecursionError):
        raise CollateralError("malformed") from None
    windows = [*_windows(chains, crls), *((one.issueDate, one.nextUpdate) for one in dates)]
    if not re.fullmatch("[0-9a-fA-F]{12}", info.fmspc) or any(end.tzinfo is None for _, end in windows):
        raise CollateralError("malformed")
    starts = max(start.timestamp() for start, _ in windows)
    ends = min(end.timestamp() for _, end in windows)
    collateral = Collateral(msgspec.json.encode(members).decode(), info.fmspc.upper(), starts, ends)
    if not collateral.valid(at):
        raise CollateralError("expired")
    return collateral


def _crl_hex(body: bytes) -> str:
    """A list as a PCCS gives it: DER, or DER in hex."""
    return body.hex() if body.startswith(b"\x30") else body.decode("ascii").strip()


def _signed(text: str, signature: str, issuer_chain: str) -> list[Certificate]:
    chain = read_chain(issuer_chain.encode())
    raw = bytes.fromhex(signature)
    if len(raw) != 64 or not signed_by(leaf_key(chain), raw, text.encode()):
        raise CollateralError("not signed as it must be")
    return chain


def _crl(text: str, issuer: Certificate) -> CertificateRevocationList:
    der = bytes.fromhex(text)
    try:
        crl = load_der_x509_crl(der)
        signed = crl.issuer == issuer.subject and crl.is_signature_valid(leaf_key([issuer]))
    except Exception:  # noqa: BLE001 - what the library raises for odd lists has no common ancestor
        raise CollateralError("malformed") from None
    if not signed:
        raise CollateralError("not signed as it must be")
    return crl


def _windows(
    chains: list[list[Certificate]], crls: list[CertificateRevocationList]
) -> Iterator[tuple[datetime, datetime]]:
    for chain in chains:
        for certificate in chain:
            yield certificate.not_valid_before_utc, certificate.not_valid_after_utc
    for crl in crls:
        # a list without an end would be valid for good
        yield crl.last_update_utc, crl.next_update_utc or datetime.fromtimestamp(0, UTC)
