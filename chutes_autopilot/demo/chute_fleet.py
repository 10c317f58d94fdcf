"""The simulated instances behind the chutes, and what it takes to reach them: keys, nonces, a scarce listing."""

from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random
from secrets import token_urlsafe
from typing import Any

from attrs import define, field, frozen
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from chutes_autopilot.demo.catalog import SimulatedModel

LISTED_INSTANCES = 5
NONCES_EACH = 10
NONCE_TOLD = 60
"""Seconds for which clients are told that a nonce is good."""
NONCE_KEPT = 75.0
"""Seconds for which it is; each listing renews all of the same account and chute."""
NONCE_LIMIT = 2000
"""Nonces held per account and chute; the oldest give way."""
ACCOUNT_LIMIT = 4096
"""Pairs of account and chute that hold nonces at once."""
VALID = (datetime(1970, 1, 1, tzinfo=UTC), datetime(2049, 12, 31, tzinfo=UTC))
"""Every simulated certificate's time: good under a clock that begins at 0 and under the real one."""


@frozen
class Instance:
    """One process of a chute; a restart makes another with the same name and another key.

    :param key_text: the public key in the base64 that the listing gives.
    :param certificate: of the instance's own TLS key, DER.
    """

    instance_id: str
    chute_id: str
    private: MLKEM768PrivateKey = field(repr=False)
    key_text: str = field(repr=False)
    certificate: bytes = field(repr=False)

    @classmethod
    def started(cls, instance_id: str, chute_id: str) -> "Instance":
        """A process with new keys."""
        private = MLKEM768PrivateKey.generate()
        key_text = b64encode(private.public_key().public_bytes_raw()).decode()
        return cls(instance_id, chute_id, private, key_text, _own_certificate(instance_id))

    @property
    def certificate_key(self) -> bytes:
        """The certificate's SubjectPublicKeyInfo, DER."""
        public = x509.load_der_x509_certificate(self.certificate).public_key()
        return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _own_certificate(instance_id: str) -> bytes:
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"simulated {instance_id}")])
    certificate = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number(), *VALID)
        .sign(private, SHA256())
    )  # fmt: skip
    return certificate.public_bytes(Encoding.DER)


@define(eq=False)
class Fleet:
    """All instances, each chute's made when somebody first asks for them."""

    random: Random = field(factory=Random)
    _by_chute: dict[str, tuple[Instance, ...]] = field(factory=dict, init=False, repr=False)
    _by_id: dict[str, Instance] = field(factory=dict, init=False, repr=False)

    def of(self, model: SimulatedModel) -> tuple[Instance, ...]:
        """The chute's instances; none of a cold one, and none with a key of one whose runtime knows no sealing."""
        if model.chute_id not in self._by_chute:
            self.restart(model)
        return self._by_chute[model.chute_id]

    def restart(self, model: SimulatedModel) -> None:
        """Give every instance of the chute new keys; what was sealed to the former ones cannot be opened any more."""
        names = model.instance_ids if model.sealable else ()
        started = tuple(Instance.started(name, model.chute_id) for name in names)
        self._by_chute[model.chute_id] = started
        self._by_id.update({instance.instance_id: instance for instance in started})

    def find(self, instance_id: str) -> Instance | None:
        """The instance of this name, or None."""
        return self._by_id.get(instance_id)

    def some(self, model: SimulatedModel) -> list[Instance]:
        """At most LISTED_INSTANCES of the chute, at random."""
        instances = self.of(model)
        return self.random.sample(instances, min(LISTED_INSTANCES, len(instances)))


@define(eq=False)
class NonceBook:
    """The nonces that may still be used, each once, by the account and for the chute that they were given to.

    :ivar refused: requests that came with a nonce that was unknown, expired or used.
    """

    refused: int = field(default=0, init=False)
    _given: dict[tuple[bytes, str], tuple[float, dict[str, None]]] = field(factory=dict, init=False, repr=False)

    def give(self, account: bytes, chute_id: str, count: int, now: float) -> list[str]:
        """New nonces; the account's others for the chute live as long as these from now on."""
        self._given = {pair: held for pair, held in self._given.items() if held[0] > now}
        _, nonces = self._given.pop((account, chute_id), (0.0, {}))
        new = [token_urlsafe(18) for _ in range(count)]
        nonces.update(dict.fromkeys(new))
        for oldest in list(nonces)[: max(0, len(nonces) - NONCE_LIMIT)]:
            del nonces[oldest]
        if len(self._given) >= ACCOUNT_LIMIT:
            del self._given[next(iter(self._given))]
        self._given[account, chute_id] = (now + NONCE_KEPT, nonces)
        return new

    def use(self, account: bytes, chute_id: str, nonce: str, now: float) -> bool:
        """Whether the nonce was good; it is not any more."""
        until, nonces = self._given.get((account, chute_id), (now, {}))
        good = now < until and nonce in nonces
        nonces.pop(nonce, None)
        self.refused += not good
        return good

    def forget(self, account: bytes, chute_id: str) -> None:
        """Let all nonces of the account for the chute expire now."""
        self._given.pop((account, chute_id), None)


@define(eq=False)
class MinuteLimit:
    """So many calls in each minute of the clock, whoever makes them.

    :ivar refused: calls beyond it so far.
    """

    limit: int
    refused: int = field(default=0, init=False)
    _minute: int = field(default=-1, init=False)
    _calls: int = field(default=0, init=False)

    def allows(self, now: float) -> bool:
        """Count a call at this Unix time; False if it is one too many."""
        minute = int(now // 60)
        if minute != self._minute:
            self._minute, self._calls = minute, 0
        self._calls += 1
        allowed = self._calls <= self.limit
        self.refused += not allowed
        return allowed


def listed(instances: Sequence[Instance], nonces: Sequence[str], now: float) -> dict[str, Any]:
    """The answer of the listing; every instance gets its share of the nonces."""
    shares = [nonces[place : place + NONCES_EACH] for place in range(0, len(nonces), NONCES_EACH)]
    return {
        "instances": [
            {"instance_id": instance.instance_id, "e2e_pubkey": instance.key_text, "nonces": share}
            for instance, share in zip(instances, shares, strict=True)
        ],
        "nonce_expires_in": NONCE_TOLD,
        "nonce_expires_at": int(now) + NONCE_TOLD,
    }
