"""Quotes as a machine of our own makes them: a root, the certificates below it, a quoting enclave and its collateral.

Everything is as on Intel's machines except whose root it is, so what verifies with ``Machine.root_spki_sha256`` fails
with the pinned default. Every piece can be replaced, which is how one rule at a time is broken.
"""

import json
from base64 import b64encode
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from typing import Any

from attrs import evolve, field, frozen
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from chutes_autopilot.e2ee.quote_chain import INTEL_QE_MRSIGNER

NOW = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
"""Unix time at which everything here is valid; certificates for ten years around it, collateral for a month."""

DAY = 86400.0
NONCE = "5a" * 32
PUBLIC_KEY = b64encode(bytes(1184)).decode()
MRTD = b"\x11" * 48
RTMRS = (b"\x21" * 48, b"\x22" * 48, b"\x23" * 48, b"\x24" * 48)
MEASUREMENTS = [
    {
        "name": "other",
        "version": "1",
        "mrtd": "00" * 48,
        "boot_rtmrs": {},
        "runtime_rtmrs": {f"RTMR{i}": "00" * 48 for i in range(4)},
    },
    {
        "name": "tdx",
        "version": "2.0",
        "mrtd": MRTD.hex().upper(),
        "boot_rtmrs": {},
        "runtime_rtmrs": {f"RTMR{i}": value.hex() for i, value in enumerate(RTMRS)},
    },
]
FMSPC = "00906ED50000"
MRSIGNER_AT, PRODUCT_AT = 128, 256

Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def raw_public(key: Key) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def raw_signature(key: Key, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def public_key_hash(certificate: x509.Certificate) -> bytes:
    return sha256(certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def certificate(
    subject: str,
    key: Key,
    issuer: str,
    issuer_key: Key,
    *,
    ca: bool = True,
    starts: float = NOW - 3650 * DAY,
    ends: float = NOW + 3650 * DAY,
    extension: bytes | None = None,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at(starts))
        .not_valid_after(at(ends))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not ca,
                content_commitment=not ca,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=ca,
                crl_sign=ca,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if extension is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(SGX_OID, extension), critical=False)
    return builder.sign(issuer_key, SHA256())


SGX_OID = x509.ObjectIdentifier("1.2.840.113741.1.13.1")


def der(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 0x80 else bytes([0x82]) + size.to_bytes(2, "big")
    return bytes([tag]) + length + content


def der_oid(*tail: int) -> bytes:
    return der(0x06, bytes.fromhex("2a864886f84d010d01") + bytes(tail))


def sgx_extension() -> bytes:
    """What a PCK's certificate says of its platform: PPID, TCB (all 1), PCE id, FMSPC and kind."""
    levels = [der(0x30, der_oid(2, i) + der(0x02, b"\x01")) for i in range(1, 18)]
    svn = der(0x30, der_oid(2, 18) + der(0x04, b"\x01" * 16))
    members = [
        der_oid(1) + der(0x04, bytes(16)),
        der_oid(2) + der(0x30, b"".join(levels) + svn),
        der_oid(3) + der(0x04, bytes(2)),
        der_oid(4) + der(0x04, bytes.fromhex(FMSPC)),
        der_oid(5) + der(0x0A, b"\x00"),
    ]
    return der(0x30, b"".join(der(0x30, member) for member in members))


def crl(issuer: str, key: Key, revoked: tuple[int, ...] = (), ends: float = NOW + 30 * DAY) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name(issuer))
        .last_update(at(NOW - DAY))
        .next_update(at(ends))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for serial in revoked:
        one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at(NOW - DAY)).build()
        builder = builder.add_revoked_certificate(one)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def pem(*chain: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in chain)


ROOT, AUTHORITY, PCK, TCB_SIGNING = "Test Root CA", "Test PCK Platform CA", "Test PCK Certificate", "Test TCB Signing"


@frozen
class Machine:
    """One machine with its keys and certificates; the keys are drawn once per test run."""

    root_key: Key = field(factory=new_key)
    authority_key: Key = field(factory=new_key)
    pck_key: Key = field(factory=new_key)
    attestation_key: Key = field(factory=new_key)
    tcb_key: Key = field(factory=new_key)
    instance_key: Key = field(factory=new_key)
    root: x509.Certificate = field(init=False)
    authority: x509.Certificate = field(init=False)
    pck: x509.Certificate = field(init=False)
    tcb_signing: x509.Certificate = field(init=False)
    instance: x509.Certificate = field(init=False)

    def __attrs_post_init__(self) -> None:
        issued = {
            "root": certificate(ROOT, self.root_key, ROOT, self.root_key),
            "authority": certificate(AUTHORITY, self.authority_key, ROOT, self.root_key),
            "pck": certificate(PCK, self.pck_key, AUTHORITY, self.authority_key, ca=False, extension=sgx_extension()),
            "tcb_signing": certificate(TCB_SIGNING, self.tcb_key, ROOT, self.root_key, ca=False),
            "instance": certificate("instance", self.instance_key, "instance", self.instance_key, ca=False),
        }
        for attribute, value in issued.items():
            object.__setattr__(self, attribute, value)

    @property
    def root_spki_sha256(self) -> bytes:
        return public_key_hash(self.root)

    @property
    def instance_der(self) -> bytes:
        return self.instance.public_bytes(Encoding.DER)

    def quote(self, **changes: Any) -> "QuoteParts":
        """The pieces of a quote that stands, for NONCE, PUBLIC_KEY and the instance's certificate, changed so."""
        parts = QuoteParts(
            attestation_key=self.attestation_key,
            pck_key=self.pck_key,
            chain=pem(self.pck, self.authority, self.root),
            instance_hash=public_key_hash(self.instance),
        )
        return evolve(parts, **changes)

    def collateral(self, **changes: Any) -> str:
        """What a PCCS says of this machine, as QuoteCollateralV3's JSON; ``tcb`` and ``qe`` change the signed texts."""
        tcb_info = tcb_info_text(**changes.pop("tcb", {}))
        qe_identity = qe_identity_text(**changes.pop("qe", {}))
        signers = pem(self.tcb_signing, self.root).decode()
        members = {
            "pck_crl_issuer_chain": pem(self.authority, self.root).decode(),
            "root_ca_crl": crl(ROOT, self.root_key).hex(),
            "pck_crl": crl(AUTHORITY, self.authority_key).hex(),
            "tcb_info_issuer_chain": signers,
            "tcb_info": tcb_info,
            "tcb_info_signature": raw_signature(self.tcb_key, tcb_info.encode()).hex(),
            "qe_identity_issuer_chain": signers,
            "qe_identity": qe_identity,
            "qe_identity_signature": raw_signature(self.tcb_key, qe_identity.encode()).hex(),
        }
        return json.dumps(members | changes)


@cache
def machine() -> Machine:
    return Machine()


@frozen
class QuoteParts:
    """A quote before it is joined; each part may be given instead of made."""

    attestation_key: Key
    pck_key: Key
    chain: bytes
    instance_hash: bytes
    nonce: str = NONCE
    public_key: str = PUBLIC_KEY
    mrtd: bytes = MRTD
    rtmrs: tuple[bytes, ...] = RTMRS
    td_attributes: bytes = b"\x00\x00\x00\x10" + bytes(4)
    authentication: bytes = bytes(range(32))
    qe_report: bytes | None = None
    qe_changes: tuple[tuple[int, bytes], ...] = ()
    qe_signature: bytes | None = None
    signature: bytes | None = None
    ends: bytes = b"\0"

    def signed(self) -> bytes:
        header = b"\x04\0\x02\0\x81\0\0\0" + bytes(4) + bytes.fromhex("939a7233f79c4ca9940a0db3957f0607") + bytes(20)
        report_data = sha256((self.nonce + self.public_key).encode()).digest() + self.instance_hash
        body = (
            b"\x01" * 16  # tee_tcb_svn
            + bytes(48)  # MRSEAM
            + bytes(48)  # MRSIGNERSEAM
            + bytes(8)
            + self.td_attributes
            + b"\xe7\x02\x06\0\0\0\0\0"
            + self.mrtd
            + bytes(144)
            + b"".join(self.rtmrs)
            + report_data
        )
        return header + body

    def made_qe_report(self) -> bytes:
        if self.qe_report is not None:
            return self.qe_report
        report = bytearray(384)
        report[48] = 0x15 & ~0x02
        report[MRSIGNER_AT : MRSIGNER_AT + 32] = INTEL_QE_MRSIGNER
        report[PRODUCT_AT : PRODUCT_AT + 2] = b"\x02\0"
        report[258:260] = b"\x05\0"  # the enclave's security version
        report[320:352] = sha256(raw_public(self.attestation_key) + self.authentication).digest()
        for offset, value in self.qe_changes:
            report[offset : offset + len(value)] = value
        return bytes(report)

    def join(self) -> bytes:
        signed, qe_report = self.signed(), self.made_qe_report()
        chain = self.chain + self.ends
        enclave = (
            qe_report
            + (self.qe_signature or raw_signature(self.pck_key, qe_report))
            + len(self.authentication).to_bytes(2, "little")
            + self.authentication
            + b"\x05\0"
            + len(chain).to_bytes(4, "little")
            + chain
        )
        signatures = (
            (self.signature or raw_signature(self.attestation_key, signed))
            + raw_public(self.attestation_key)
            + b"\x06\0"
            + len(enclave).to_bytes(4, "little")
            + enclave
        )
        return signed + len(signatures).to_bytes(4, "little") + signatures


def iso(seconds: float) -> str:
    return at(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def tcb_info_text(status: str = "UpToDate", ends: float = NOW + 30 * DAY, fmspc: str = FMSPC, svn: int = 1) -> str:
    components = [{"svn": svn} for _ in range(16)]
    level = {"sgxtcbcomponents": components, "pcesvn": 1, "tdxtcbcomponents": components}
    info = {
        "id": "TDX",
        "version": 3,
        "issueDate": iso(NOW - DAY),
        "nextUpdate": iso(ends),
        "fmspc": fmspc,
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": 17,
        "tdxModule": {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8},
        "tdxModuleIdentities": [
            {
                "id": "TDX_01",
                "mrsigner": "00" * 48,
                "attributes": "00" * 8,
                "attributesMask": "FF" * 8,
                "tcbLevels": [{"tcb": {"isvsvn": 1}, "tcbDate": iso(NOW - 100 * DAY), "tcbStatus": "UpToDate"}],
            }
        ],
        "tcbLevels": [{"tcb": level, "tcbDate": iso(NOW - 100 * DAY), "tcbStatus": status}],
    }
    return json.dumps(info, separators=(",", ":"))


def qe_identity_text(ends: float = NOW + 30 * DAY, product: int = 2) -> str:
    identity = {
        "id": "TD_QE",
        "version": 2,
        "issueDate": iso(NOW - DAY),
        "nextUpdate": iso(ends),
        "tcbEvaluationDataNumber": 17,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11" + "00" * 15,
        "attributesMask": "FB" + "00" * 15,
        "mrsigner": INTEL_QE_MRSIGNER.hex().upper(),
        "isvprodid": product,
        "tcbLevels": [{"tcb": {"isvsvn": 4}, "tcbDate": iso(NOW - 100 * DAY), "tcbStatus": "UpToDate"}],
    }
    return json.dumps(identity, separators=(",", ":"))
