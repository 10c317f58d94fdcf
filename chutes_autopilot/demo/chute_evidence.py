"""What simulated TEE instances say of themselves: a quote that binds their key and a fresh nonce, or a faulty one."""

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256, sha384
from os import urandom
from typing import Any

from attrs import define, evolve, field, frozen

from chutes_autopilot.demo.chute_fleet import Instance
from chutes_autopilot.demo.chute_quote import Measurement, Platform, with_changed_signature
from chutes_autopilot.demo.faults import FaultKind

_GPU = {"arch": "HOPPER", "certificate": "c2ltdWxhdGVk", "evidence": "c2ltdWxhdGVk"}
_IMAGES = ("simulated-8xh200", "simulated-8xb200")


def _register(image: str, name: str) -> bytes:
    return sha384(f"{name} of {image}".encode()).digest()


def measurement_of(image: str) -> Measurement:
    """What the image measures, the same in every process."""
    zero, one, two, three = (_register(image, f"RTMR{number}") for number in range(4))
    return Measurement(_register(image, "MRTD"), (zero, one, two, three))


def measurements_answer() -> list[dict[str, Any]]:
    """The answer of ``GET /servers/tee/measurements``; one entry has capital hex digits."""
    return [_measured(_IMAGES[0], capital=True), _measured(_IMAGES[1], capital=False)]


def _measured(image: str, *, capital: bool) -> dict[str, Any]:
    def written(raw: bytes) -> str:
        return raw.hex().upper() if capital else raw.hex()

    measurement = measurement_of(image)
    names = [f"RTMR{number}" for number in range(4)]
    return {
        "name": image,
        "version": "0.0.0-simulated",
        "mrtd": written(measurement.mrtd),
        "boot_rtmrs": {name: written(_register(image, f"{name} at boot")) for name in names},
        "runtime_rtmrs": {name: written(raw) for name, raw in zip(names, measurement.rtmrs, strict=True)},
    }


@frozen
class _Claim:
    """What goes into one instance's evidence; each fault changes one part of it."""

    nonce: str
    key_text: str
    certificate_key: bytes
    measurement: Measurement
    platform: Platform
    debug: bool = False

    def quote(self) -> bytes:
        """The quote that says all this."""
        bound = sha256((self.nonce + self.key_text).encode()).digest()
        report_data = bound + sha256(self.certificate_key).digest()
        return self.platform.quote(report_data, self.measurement, debug=self.debug)


@define(eq=False)
class Attestation:
    """The simulated machines; their keys and certificates are made when the first quote is asked for."""

    _platform: Platform | None = field(default=None, init=False, repr=False)

    @property
    def platform(self) -> Platform:
        """The machine that all instances run on."""
        if self._platform is None:
            self._platform = Platform.made()
        return self._platform

    def answer(self, instances: Sequence[Instance], nonce: str, kind: FaultKind | None) -> dict[str, Any]:
        """The answer of ``GET /chutes/{chute_id}/evidence``: all instances, not in the listing's order."""
        if kind is FaultKind.EVIDENCE_FAILED:
            return {"evidence": [], "failed_instance_ids": [instance.instance_id for instance in instances]}
        platform = self._signing(kind)
        evidence = [self._of(instance, nonce, kind, platform) for instance in reversed(instances)]
        return {"evidence": evidence, "failed_instance_ids": []}

    def _signing(self, kind: FaultKind | None) -> Platform:
        match kind:
            case FaultKind.EVIDENCE_ROOT:
                return Platform.made()
            case FaultKind.EVIDENCE_EXPIRED:
                return self.platform.expired()
            case FaultKind.EVIDENCE_ENCLAVE:
                return self.platform.with_another_enclave()
            case _:
                return self.platform

    def _of(self, instance: Instance, nonce: str, kind: FaultKind | None, platform: Platform) -> dict[str, Any]:
        measurement = measurement_of(_IMAGES[int(instance.instance_id[-1], 16) % len(_IMAGES)])
        claim = _Claim(nonce, instance.key_text, instance.certificate_key, measurement, platform)
        match kind:
            case FaultKind.EVIDENCE_KEY:
                claim = evolve(claim, key_text=b64encode(urandom(1184)).decode())
            case FaultKind.EVIDENCE_NONCE:
                claim = evolve(claim, nonce=urandom(32).hex())
            case FaultKind.EVIDENCE_CERTIFICATE:
                claim = evolve(claim, certificate_key=urandom(91))
            case FaultKind.EVIDENCE_MEASUREMENT:
                claim = evolve(claim, measurement=evolve(measurement, mrtd=urandom(48)))
            case FaultKind.EVIDENCE_DEBUG:
                claim = evolve(claim, debug=True)
        quote = claim.quote()
        if kind is FaultKind.EVIDENCE_SIGNATURE:
            quote = with_changed_signature(quote)
        return {
            "instance_id": instance.instance_id,
            "quote": b64encode(quote).decode(),
            "certificate": b64encode(instance.certificate).decode(),
            "gpu_evidence": [_GPU],
            "signature": "simulated",
        }
