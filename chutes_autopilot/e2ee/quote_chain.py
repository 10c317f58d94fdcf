"""The signatures of a quote, from the trust domain's report up to Intel's root.

The root signs an authority, that signs the platform's certificate (PCK), its key signs the quoting enclave's report,
the report names the attestation key, and that key signs the quote. Intel's quoting enclave signs only for trust
domains on its own machine, so the check that it *is* Intel's enclave is as needed as any signature: the PCK signs for
every enclave that asks.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import BasicConstraints, Certificate, load_pem_x509_certificates

from chutes_autopilot.e2ee.quote import Quote, QuoteRefused

INTEL_ROOT_SPKI_SHA256 = bytes.fromhex("a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e")
"""Of the DER SubjectPublicKeyInfo of the Intel SGX Root CA."""

INTEL_QE_MRSIGNER = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
"""Who signed Intel's quoting enclave for trust domains."""

MAX_CHAIN = 8
"""Certificates in a chain; Intel's have three."""

_QE_PRODUCT = 2
_DEBUG = 0x02


def verify_quote(quote: Quote, at: float, root_spki_sha256: bytes = INTEL_ROOT_SPKI_SHA256) -> None:
    """The signatures of level ``quote``: Intel's quoting enclave on a genuine machine vouches for this quote.

    Alone it says nothing of what the trust domain is (measurements), whom it answers (quote.check_binding), or whether
    the machine is patched or its certificate revoked (tcb).

    :param at: Unix time for which the certificates must be valid.
    :param root_spki_sha256: of the only root that is trusted.
    :raises QuoteRefused: ``quote_signature``, ``chain``, ``validity``, ``root``, ``qe_signature``, ``qe_report`` or
        ``qe_identity``.
    """
    chain = read_chain(quote.pck_chain.rstrip(b"\0"))
    verify_chain(chain, at, root_spki_sha256)
    if not signed_by(leaf_key(chain), quote.qe_signature, quote.qe_report):
        raise QuoteRefused("qe_signature")
    report = quote.qe_report
    if report[320:352] != sha256(quote.attestation_key + quote.qe_authentication).digest() or any(report[352:384]):
        raise QuoteRefused("qe_report")
    if (
        report[128:160] != INTEL_QE_MRSIGNER
        or int.from_bytes(report[256:258], "little") != _QE_PRODUCT
        or report[48] & _DEBUG
    ):
        raise QuoteRefused("qe_identity")
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + quote.attestation_key)
    except ValueError:
        raise QuoteRefused("quote_signature") from None
    if not signed_by(key, quote.signature, quote.signed):
        raise QuoteRefused("quote_signature")


def read_chain(pem: bytes) -> list[Certificate]:
    """The certificates of a PEM text, the leaf first; raises QuoteRefused (``chain``)."""
    try:
        chain = load_pem_x509_certificates(pem)
    except Exception:  # noqa: BLE001 - what the library raises for odd certificates has no common ancestor
        raise QuoteRefused("chain") from None
    if not 2 <= len(chain) <= MAX_CHAIN:
        raise QuoteRefused("chain")
    return chain


def verify_chain(chain: Sequence[Certificate], at: float, root_spki_sha256: bytes) -> None:
    """Each certificate is issued by the next, an authority; all are valid; the last signs itself and is the root.

    :param at: Unix time.
    :raises QuoteRefused: ``chain``, ``validity`` or ``root``.
    """
    root = chain[-1]
    try:
        for certificate, issuer in zip(chain, [*chain[1:], root], strict=True):
            certificate.verify_directly_issued_by(issuer)
            if not issuer.extensions.get_extension_for_class(BasicConstraints).value.ca:
                raise QuoteRefused("chain")
        spki = root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except Exception:  # noqa: BLE001 - as above
        raise QuoteRefused("chain") from None
    if sha256(spki).digest() != root_spki_sha256:
        raise QuoteRefused("root")
    now = datetime.fromtimestamp(at, UTC)
    if not all(one.not_valid_before_utc <= now <= one.not_valid_after_utc for one in chain):
        raise QuoteRefused("validity")


def signed_by(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> bool:
    """Whether this is the key's ECDSA signature (SHA-256; r and s, 32 bytes each, big-endian)."""
    encoded = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        key.verify(encoded, data, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def leaf_key(chain: Sequence[Certificate]) -> ec.EllipticCurvePublicKey:
    """The key of a chain's first certificate, which must be on P-256; raises QuoteRefused (``chain``)."""
    try:
        key = chain[0].public_key()
    except Exception:  # noqa: BLE001 - as above
        raise QuoteRefused("chain") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise QuoteRefused("chain")
    return key
