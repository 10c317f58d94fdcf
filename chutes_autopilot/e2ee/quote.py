"""TDX quotes, version 4: what is in one, and whether it speaks of our nonce and of the key we were given.

Every number is little-endian; offsets are those of the decoded quote (Intel, "TDX DCAP Quoting Library API",
Appendix A). Each level of checking contains the ones before it:

- ``binding`` (here: parse_quote and check_binding): key, nonce and quote text belong together. It finds mistakes and
  stale keys. It proves nothing against a malicious API, which can write a quote that nobody signed.
- ``quote`` (plus quote_chain.verify_quote and measurements): a trust domain on genuine Intel hardware, not in debug
  mode, with listed measurements, made this quote for our nonce and holds the key. It does not prove that the platform
  is patched or not revoked.
- ``quote+tcb`` (plus tcb): platform and quoting enclave are at an accepted TCB level and not revoked as of now.

None proves which weights or serving code run, that the listed measurements are good, that the GPU is genuine, or
anything against somebody with hands on the machine.
"""

from binascii import Error as Base64Error
from binascii import a2b_base64
from hashlib import sha256
from typing import Literal, get_args

from attrs import field, frozen
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_der_x509_certificate

Level = Literal["off", "binding", "quote", "quote+tcb"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""What CHUTES_ATTESTATION may say, the weakest first."""

Refusal = Literal[
    "malformed",
    "debug",
    "binding",
    "certificate",
    "quote_signature",
    "chain",
    "validity",
    "root",
    "qe_signature",
    "qe_report",
    "qe_identity",
    "measurements",
    "tcb",
    "tcb_status",
]
REFUSALS: tuple[Refusal, ...] = get_args(Refusal)
"""Why evidence is refused: a closed set, for metrics and logs."""

MAX_QUOTE_BYTES = 64 * 1024
"""A genuine quote has some 5 KiB, most of it certificates."""

_HEADER = 48
SIGNED_BYTES = _HEADER + 584
"""Header and TD report: what the attestation key signs."""

_ATTRIBUTES, _MRTD, _RTMR, _REPORT_DATA = (_HEADER + offset for offset in (120, 136, 328, 520))
_MEASURE = 48
_DEBUG = 0x01
_QE_REPORT = 384
_QE_REPORT_CERTIFICATION, _PCK_CHAIN = 6, 5


class QuoteRefused(ValueError):
    """Evidence that does not stand; ``reason`` is one of REFUSALS, and the text is as constant."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(f"attestation refused: {reason}")
        self.reason: Refusal = reason


@frozen
class Quote:
    """A quote cut into its fields; that it could be cut says nothing about its truth.

    :param raw: all of it.
    :param mrtd: measurement of the initial contents, 48 bytes.
    :param rtmrs: the four measurements extended at run time, 48 bytes each.
    :param report_data: the 64 bytes that the trust domain chose.
    :param signature: r and s over ``signed``, 32 bytes each, big-endian.
    :param attestation_key: x and y on P-256, 32 bytes each, big-endian.
    :param qe_report: the quoting enclave's report, 384 bytes, with its signature by the PCK.
    :param qe_authentication: what else the quoting enclave put under its report's hash.
    :param pck_chain: PEM, the PCK's certificate first.
    """

    raw: bytes = field(repr=False)
    td_attributes: bytes
    mrtd: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: bytes = field(repr=False)
    qe_signature: bytes
    qe_authentication: bytes
    pck_chain: bytes = field(repr=False)

    @property
    def signed(self) -> bytes:
        """What the attestation key signs."""
        return self.raw[:SIGNED_BYTES]

    @property
    def debug(self) -> bool:
        """Whether the host may read and write the trust domain's memory (TD_ATTRIBUTES.DEBUG)."""
        return bool(self.td_attributes[0] & _DEBUG)


class _Cursor:
    """Takes bytes from the front; QuoteRefused where they do not reach or are left over."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) != count:
            raise QuoteRefused("malformed")
        self._at += count
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def sized(self, size: int) -> bytes:
        """What follows a length of ``size`` bytes."""
        return self.take(self.number(size))

    def expect(self, size: int, value: int) -> None:
        if self.number(size) != value:
            raise QuoteRefused("malformed")

    def end(self) -> None:
        if self._at != len(self._data):
            raise QuoteRefused("malformed")


def parse_quote(data: bytes) -> Quote:
    """Cut a quote into its fields; version, types and every length must fit exactly.

    :raises QuoteRefused: ``malformed``.
    """
    if len(data) > MAX_QUOTE_BYTES:
        raise QuoteRefused("malformed")
    quote = _Cursor(data)
    quote.expect(2, 4)  # version
    quote.expect(2, 2)  # attestation key: ECDSA P-256
    quote.expect(4, 0x81)  # TEE: TDX
    quote.take(SIGNED_BYTES - 8)
    signatures = _Cursor(quote.sized(4))
    quote.end()
    signature, attestation_key = signatures.take(64), signatures.take(64)
    signatures.expect(2, _QE_REPORT_CERTIFICATION)
    enclave = _Cursor(signatures.sized(4))
    signatures.end()
    qe_report, qe_signature, qe_authentication = enclave.take(_QE_REPORT), enclave.take(64), enclave.sized(2)
    enclave.expect(2, _PCK_CHAIN)
    pck_chain = enclave.sized(4)
    enclave.end()
    first, second, third, fourth = (data[at : at + _MEASURE] for at in range(_RTMR, _RTMR + 4 * _MEASURE, _MEASURE))
    return Quote(
        raw=data,
        td_attributes=data[_ATTRIBUTES : _ATTRIBUTES + 8],
        mrtd=data[_MRTD : _MRTD + _MEASURE],
        rtmrs=(first, second, third, fourth),
        report_data=data[_REPORT_DATA : _REPORT_DATA + 64],
        signature=signature,
        attestation_key=attestation_key,
        qe_report=qe_report,
        qe_signature=qe_signature,
        qe_authentication=qe_authentication,
        pck_chain=pck_chain,
    )


def decode_evidence(text: str) -> bytes:
    """Strict base64, as quotes and certificates come; raises QuoteRefused (``malformed``)."""
    if len(text) % 4:  # not looked at by the decoder where padding is superfluous
        raise QuoteRefused("malformed")
    try:
        return a2b_base64(text.encode("ascii"), strict_mode=True)
    except (Base64Error, UnicodeEncodeError):
        raise QuoteRefused("malformed") from None


def check_binding(quote: Quote, nonce: str, public_key: str, certificate: bytes | None) -> None:
    """Level ``binding``: the quote is not of a debuggable trust domain and names our nonce, this key and certificate.

    It looks at no signature, so whoever can answer for the instance can make all of it up.

    :param nonce: the 64 hexadecimal characters of our call.
    :param public_key: the base64 text of the instance's key, exactly as discovery gave it.
    :param certificate: DER; None where none came with the quote, and the second half is not looked at.
    :raises QuoteRefused: ``debug``, ``binding`` or ``certificate``.
    """
    if quote.debug:
        raise QuoteRefused("debug")
    if quote.report_data[:32] != sha256((nonce + public_key).encode()).digest():
        raise QuoteRefused("binding")
    if certificate is not None and quote.report_data[32:] != _public_key_hash(certificate):
        raise QuoteRefused("certificate")


def _public_key_hash(certificate: bytes) -> bytes:
    try:
        key = load_der_x509_certificate(certificate).public_key()
        return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    except Exception:  # noqa: BLE001 - what the library raises for odd certificates has no common ancestor
        raise QuoteRefused("certificate") from None
