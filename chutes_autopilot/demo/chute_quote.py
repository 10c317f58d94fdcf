"""Simulated TDX quotes: the structure of true ones, signed by invented keys under an invented root that nobody trusts.

The root's name says that it is simulated, and its keys are made in memory for each simulator: only a verifier that was
told its hash believes what such a quote says.
"""

from datetime import UTC, datetime
from hashlib import sha256
from os import urandom

from attrs import evolve, field, frozen
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from chutes_autopilot.demo.chute_fleet import VALID

_MACHINE, _ISSUER, _ROOT = (
    x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Simulated {role}, not Intel")])
    for role in ("PCK Certificate", "PCK Platform CA", "Root CA")
)
LONG_AGO = (datetime(1960, 1, 1, tzinfo=UTC), datetime(1961, 1, 1, tzinfo=UTC))
QUOTING_ENCLAVE = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
"""MRSIGNER of the enclave that signs true quotes; public, and of no worth without a true chain."""
_SIGNED_BYTES = 632
_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_NO_DEBUG = bytes.fromhex("0000001000000000")
_AUTHENTICATION_DATA = bytes(range(32))


@frozen
class Measurement:
    """What a simulated image measures: MRTD and the four runtime registers, 48 bytes each."""

    mrtd: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]


@frozen
class Platform:
    """A machine that signs quotes, and those who vouch for it.

    :param machine_certificate: of the PCK key, PEM.
    :param issuers: its issuer's certificate and the root's, PEM.
    :param root_spki_sha256: by which a verifier knows the root.
    """

    attestation_key: ec.EllipticCurvePrivateKey = field(repr=False)
    pck_key: ec.EllipticCurvePrivateKey = field(repr=False)
    issuer_key: ec.EllipticCurvePrivateKey = field(repr=False)
    machine_certificate: bytes = field(repr=False)
    issuers: bytes = field(repr=False)
    root_spki_sha256: bytes
    enclave: bytes = QUOTING_ENCLAVE

    @classmethod
    def made(cls) -> "Platform":
        """New keys under a new root."""
        attestation_key, pck, issuer, root = (ec.generate_private_key(ec.SECP256R1()) for _ in range(4))
        issuers = _certificate(_ISSUER, issuer, _ROOT, root) + _certificate(_ROOT, root, _ROOT, root)
        spki = root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        machine = _certificate(_MACHINE, pck, _ISSUER, issuer)
        return cls(attestation_key, pck, issuer, machine, issuers, sha256(spki).digest())

    def expired(self) -> "Platform":
        """The same machine, with a certificate whose time is past."""
        certificate = _certificate(_MACHINE, self.pck_key, _ISSUER, self.issuer_key, LONG_AGO)
        return evolve(self, machine_certificate=certificate)

    def with_another_enclave(self) -> "Platform":
        """The same machine, signing by an enclave that is not the quoting one."""
        return evolve(self, enclave=urandom(32))

    def quote(self, report_data: bytes, measurement: Measurement, *, debug: bool = False) -> bytes:
        """A quote of version 4 over 64 bytes of report data."""
        signed = _header() + _td_report(report_data, measurement, debug)
        key = _point(self.attestation_key)
        chain = self.machine_certificate + self.issuers
        report = _qe_report(self.enclave, sha256(key + _AUTHENTICATION_DATA).digest())
        certification = (
            report
            + _signature(self.pck_key, report)
            + _short(len(_AUTHENTICATION_DATA))
            + _AUTHENTICATION_DATA
            + _short(5)
            + _long(len(chain))
            + chain
        )
        signature = (
            _signature(self.attestation_key, signed) + key + _short(6) + _long(len(certification)) + certification
        )
        return signed + _long(len(signature)) + signature


def with_changed_signature(quote: bytes) -> bytes:
    """The quote with one bit of its signature over header and report changed."""
    place = _SIGNED_BYTES + 4 + 63
    return quote[:place] + bytes([quote[place] ^ 1]) + quote[place + 1 :]


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    valid: tuple[datetime, datetime] = VALID,
) -> bytes:
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number(), *valid)
    constraints = x509.BasicConstraints(ca=subject != _MACHINE, path_length=None)
    return builder.add_extension(constraints, critical=True).sign(issuer_key, SHA256()).public_bytes(Encoding.PEM)


def _short(number: int) -> bytes:
    return number.to_bytes(2, "little")


def _long(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _header() -> bytes:
    version, key_type, tee_type = _short(4), _short(2), _long(0x81)
    return version + key_type + tee_type + bytes(4) + _VENDOR + bytes(20)


def _td_report(report_data: bytes, measurement: Measurement, debug: bool) -> bytes:
    attributes = bytes([_NO_DEBUG[0] | debug]) + _NO_DEBUG[1:]
    before = bytes(120) + attributes + bytes(8) + measurement.mrtd
    return before.ljust(328, b"\0") + b"".join(measurement.rtmrs) + report_data


def _qe_report(enclave: bytes, bound: bytes) -> bytes:
    report = bytearray(384)
    report[48] = 0x15  # initialised, 64 bit, provisioning key; no debug
    report[128:160] = enclave
    report[256:258] = _short(2)
    report[320:352] = bound
    return bytes(report)


def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def _signature(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")
