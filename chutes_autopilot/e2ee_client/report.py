"""Whether a gateway's key may be trusted: what its attestation report shows, and no more than that."""

import secrets
from binascii import unhexlify
from typing import Any, Literal, get_args

import msgspec
from attrs import field, frozen

from chutes_autopilot.e2ee.curves import Algo, InvalidKey, address_bytes, normal_form, signing_address, wire_hex
from chutes_autopilot.e2ee.measurements import Measurements
from chutes_autopilot.e2ee.quote import Quote, QuoteRefused, parse_quote
from chutes_autopilot.e2ee.quote_chain import INTEL_ROOT_SPKI_SHA256, verify_quote
from chutes_autopilot.e2ee_client.errors import ReportRefused

Trust = Literal["any", "bound", "quote"]
TRUSTS: tuple[Trust, ...] = get_args(Trust)
"""What a user may ask for, the weakest first; each contains the ones before it.

- ``any``: the gateway's word. It keeps everyone out who only listens between client and gateway.
- ``bound``: there is a quote and it names this key and our nonce. Nobody's signature is checked, so it finds mistakes
  and stale keys, not a lie.
- ``quote``: Intel's signatures hold too: a trust domain on genuine hardware, not in debug mode, holds the key.
"""

Transport = Literal["tls", "e2ee"]

_REFUSED = {
    "malformed": "its quote cannot be read",
    "measurements": "the trust domain is not among those of the measurements file",
}


@frozen
class TrustPolicy:
    """What a report must show before anything is sent.

    :param measurements: trust domains that are acceptable; only at level ``quote``, None takes any.
    :param root_spki_sha256: of the only root certificate that is trusted.
    """

    trust: Trust = "any"
    measurements: Measurements | None = None
    root_spki_sha256: bytes = INTEL_ROOT_SPKI_SHA256


@frozen
class CheckedReport:
    """A gateway's key with what was checked of it.

    :param public: normal form.
    :param not_after: Unix time from which the key is refused; None if that is not known.
    :param transport: how the gateway says that it reaches the model; None where it does not.
    :param trust: the level that was checked, which is the one that was asked for.
    :param measured_as: the entry of the measurements file that matched.
    :param quote: where there is one; it names the key and our nonce.
    """

    algo: Algo
    public: bytes
    address: str
    not_after: int | None
    transport: Transport | None
    trust: Trust
    measured_as: str | None
    quote: Quote | None = field(repr=False)

    @property
    def attested(self) -> bool:
        """Whether a quote names the key and our nonce; who signed it is another matter, see ``trust``."""
        return self.quote is not None

    @property
    def wire_hex(self) -> str:
        """The key as headers and reports write it."""
        return wire_hex(self.algo, self.public)

    def lines(self) -> list[str]:
        """What was checked and what was not, in plain words, one fact a line."""
        lines = [f"key: {self.algo}, signing address {self.address}"]
        if self.quote is None:
            lines.append("no quote: only the gateway's word says who holds the key; nothing was attested")
        else:
            lines.append("checked: the quote names this key and a nonce made for this call")
        if self.quote is not None and self.trust != "quote":
            lines.append("not checked: who signed the quote; as it stands anybody could have written it")
            if self.quote.debug:
                lines.append("beware: the quote is of a trust domain in debug mode, whose memory its host can read")
        if self.trust == "quote":
            lines.append("checked: Intel's signatures on the quote; the trust domain is not in debug mode")
            lines.append(
                "not checked: which software runs in the trust domain (no measurements were given)"
                if self.measured_as is None
                else f"checked: its measurements are those pinned as {self.measured_as!r}"
            )
            lines.append("not checked: whether the machine is patched, or its certificate revoked")
        if self.transport == "e2ee":
            lines.append("the gateway says: it seals requests again for the GPU instance")
        elif self.transport == "tls":
            lines.append("the gateway says: it sends requests on by TLS, so the model's platform can read them")
        return lines


def new_report_nonce() -> str:
    """A fresh nonce for a report, so that an old one cannot be played back."""
    return secrets.token_hex(32)


def check_report(body: bytes, algo: Algo, nonce: str, policy: TrustPolicy, now: float) -> CheckedReport:
    """The key of a report, if the report shows what ``policy`` asks for; raises ReportRefused.

    A quote that is there must name this key and our nonce at every level: one that does not is worse than none.

    :param nonce: what the report was asked with.
    :param now: Unix time.
    """
    report = _object(body)
    if report.get("signing_algo") != algo:
        raise ReportRefused(f"it is not about a key for {algo}")
    if _text(report, "request_nonce").lower() != nonce:
        raise ReportRefused("it does not answer our nonce, so it may be an old one")
    public = _public_key(algo, _text(report, "signing_public_key"))
    address = signing_address(algo, public)
    if _text(report, "signing_address").lower() != address.lower():
        raise ReportRefused("its signing address is not that of its public key")
    not_after = report.get("not_after")
    if not_after is not None and (not isinstance(not_after, int) or isinstance(not_after, bool)):
        raise ReportRefused("not_after is no time")
    if not_after is not None and not_after <= now:
        raise ReportRefused("its key is no longer in use, or this machine's clock is wrong")
    quote = _quote(report)
    attested = report.get("attested")
    if isinstance(attested, bool) and attested != (quote is not None):
        raise ReportRefused("it says that it is attested and has no quote, or the reverse")
    if quote is not None:
        expected = address_bytes(algo, public).ljust(32, b"\0") + bytes.fromhex(nonce)
        if quote.report_data != expected:
            raise ReportRefused("its quote is for another key or another nonce")
    measured_as = None
    if policy.trust != "any" and quote is None:
        raise ReportRefused(f"it has no quote, which the level of trust {policy.trust!r} needs")
    if policy.trust == "quote" and quote is not None:
        measured_as = _verify(quote, policy, now)
    said = report.get("transport")
    transport: Transport | None = "e2ee" if said == "e2ee" else "tls" if said == "tls" else None
    return CheckedReport(algo, public, address, not_after, transport, policy.trust, measured_as, quote)


def _verify(quote: Quote, policy: TrustPolicy, now: float) -> str | None:
    try:
        if quote.debug:
            raise QuoteRefused("debug")
        verify_quote(quote, now, policy.root_spki_sha256)
        return None if policy.measurements is None else policy.measurements.match(quote).name
    except QuoteRefused as refused:
        raise ReportRefused(_REFUSED.get(refused.reason, f"its quote does not stand ({refused.reason})")) from None


def _public_key(algo: Algo, text: str) -> bytes:
    try:
        return normal_form(algo, unhexlify(text))
    except (ValueError, InvalidKey):
        raise ReportRefused("its public key is none") from None


def _quote(report: dict[str, Any]) -> Quote | None:
    texts = {text for name in ("intel_quote", "quote") if isinstance(text := report.get(name), str)}
    if not texts:
        return None
    if len(texts) > 1:
        raise ReportRefused("it has two different quotes")
    try:
        return parse_quote(unhexlify(texts.pop().removeprefix("0x")))
    except ValueError:  # of the hex; QuoteRefused is one too
        raise ReportRefused(_REFUSED["malformed"]) from None


def _text(report: dict[str, Any], name: str) -> str:
    value = report.get(name)
    if not isinstance(value, str):
        raise ReportRefused(f"it has no {name}")
    return value


def _object(body: bytes) -> dict[str, Any]:
    try:
        report = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        report = None
    if not isinstance(report, dict):
        raise ReportRefused("it is no JSON object")
    return report
