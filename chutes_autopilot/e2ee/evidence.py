"""What the API hands over as evidence of a chute's instances, and the levels of checking it.

One function per question: read_evidence takes the API's answer apart, check_evidence says whether one instance's
evidence stands at a level. Nothing here fetches, waits or remembers.
"""

from hashlib import sha256

import msgspec
from attrs import frozen

from chutes_autopilot.e2ee.measurements import Measurements
from chutes_autopilot.e2ee.quote import Level, Quote, QuoteRefused, check_binding, decode_evidence, parse_quote
from chutes_autopilot.e2ee.quote_chain import INTEL_ROOT_SPKI_SHA256, verify_quote

MAX_INSTANCES = 1024
"""Instances of one answer that are looked at."""

_MAX_TEXT = 128 * 1024


class EvidenceError(ValueError):
    """An answer that is no list of evidence; its text is constant."""


class InstanceEvidence(msgspec.Struct, frozen=True):
    """One instance's evidence as it came, nothing of it decoded; the GPU's part is neither checked nor kept.

    :param quote: base64.
    :param certificate: base64 of DER; None where there was none.
    """

    instance_id: str
    quote: str
    certificate: str | None = None


class _Answer(msgspec.Struct):
    evidence: list[msgspec.Raw]


_ANSWER = msgspec.json.Decoder(_Answer)
_ITEM = msgspec.json.Decoder(InstanceEvidence)


def read_evidence(body: bytes) -> dict[str, InstanceEvidence]:
    """The evidence in the answer of ``/chutes/{chute_id}/evidence``, by instance id.

    A malformed or huge item is left out, as if the instance had failed to answer, and so are both of two that name the
    same instance. Takes about 1 ms per MiB.

    :raises EvidenceError: no such object.
    """
    try:
        answer = _ANSWER.decode(body)
    except (ValueError, RecursionError):
        raise EvidenceError("not an object with a list 'evidence'") from None
    found: dict[str, InstanceEvidence | None] = {}
    for raw in answer.evidence[:MAX_INSTANCES]:
        try:
            item = _ITEM.decode(raw)
        except (ValueError, RecursionError):
            continue
        if len(item.quote) + len(item.certificate or "") <= _MAX_TEXT:
            found[item.instance_id] = None if item.instance_id in found else item
    return {instance_id: item for instance_id, item in found.items() if item is not None}


@frozen
class CheckedEvidence:
    """Evidence that stood at a level.

    :param sha256: of the quote's bytes, in hex: which evidence it was, for receipts.
    :param measurement: name of the matching entry; None below level ``quote``.
    """

    quote: Quote
    sha256: str
    measurement: str | None


def check_evidence(
    evidence: InstanceEvidence,
    level: Level,
    nonce: str,
    public_key: str,
    measurements: Measurements | None,
    at: float,
    root_spki_sha256: bytes = INTEL_ROOT_SPKI_SHA256,
) -> CheckedEvidence:
    """Check one instance's evidence; what each level proves is said in quote's first lines.

    ``quote+tcb`` is ``quote`` here: its further part needs collateral and is tcb.TcbChecker's. Takes about 1 ms.

    :param nonce: what this evidence was asked for with, 64 hexadecimal characters.
    :param public_key: the base64 text of the instance's key, exactly as discovery gave it.
    :param measurements: needed from ``quote`` on.
    :param at: Unix time for which the certificates must be valid.
    :raises QuoteRefused: it does not stand.
    """
    raw = decode_evidence(evidence.quote)
    certificate = decode_evidence(evidence.certificate) if evidence.certificate is not None else None
    quote = parse_quote(raw)
    check_binding(quote, nonce, public_key, certificate)
    measurement = None
    if level != "binding":
        verify_quote(quote, at, root_spki_sha256)
        if measurements is None:
            raise QuoteRefused("measurements")
        measurement = measurements.match(quote).name
    return CheckedEvidence(quote, sha256(raw).hexdigest(), measurement)
