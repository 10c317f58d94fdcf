"""Which instances may be given a request: the verdicts on their keys, and for how long each holds.

A verdict belongs to an instance *and* its key. Whoever shows another key is somebody new: without a verdict, and
without the old one's faults.
"""

from collections.abc import Callable, Iterable
from hashlib import sha256

from attrs import define, field, frozen

from chutes_autopilot.e2ee.measurements import Source
from chutes_autopilot.e2ee.quote import Level, QuoteRefused, Refusal, decode_evidence

KEY_BYTES = 1184
"""Of an instance's public key (ML-KEM-768)."""

MAX_CHUTES = 64
MAX_INSTANCES = 256
"""Instances remembered per chute; the one not seen for longest goes first."""


@frozen
class Verdict:
    """That an instance's key passed the checks of a level, and by what; what a level proves is said in e2ee.quote.

    :param checked_at: Unix time.
    :param expires: on the monotonic clock.
    :param evidence_sha256: of the quote, in hex.
    :param measurement: the entry that matched, and ``measurements``: who asserts the list; None at ``binding``.
    :param tcb_status: of the platform, at ``quote+tcb``.
    """

    level: Level
    checked_at: float
    expires: float
    evidence_sha256: str
    measurement: str | None = None
    measurements: Source | None = None
    tcb_status: str | None = None


@define(eq=False)
class Instance:
    """An instance with one key; with another key it is another object.

    :param public_key: base64 text, exactly as discovery gave it.
    :param key_sha256: of the raw key.
    :param seen_at: when discovery or evidence last named it, on the monotonic clock.
    :param verdict: the last one, which may have expired.
    :param refused: why its evidence did not stand; it is not looked at again.
    :param due: when its evidence is next wanted, on the monotonic clock.
    :param misses: how often in a row nothing could be decided.
    """

    chute_id: str
    instance_id: str
    public_key: str
    key_sha256: bytes
    seen_at: float
    verdict: Verdict | None = None
    refused: Refusal | None = None
    due: float = float("-inf")
    misses: int = 0

    def verified(self, now: float) -> bool:
        """Whether its verdict holds at this moment of the monotonic clock."""
        return self.verdict is not None and now < self.verdict.expires


@define(eq=False)
class VerdictTable:
    """All instances that are known, bounded, with what is known of them.

    :param now: the monotonic clock.
    """

    _now: Callable[[], float]
    _by_id: dict[str, Instance] = field(factory=dict, init=False)
    _by_chute: dict[str, dict[str, Instance]] = field(factory=dict, init=False)
    _chute_until: dict[str, float] = field(factory=dict, init=False)

    def seen(self, chute_id: str, instances: Iterable[tuple[str, str]]) -> bool:
        """Discovery names instances and their keys (base64 text); whether any of them is new or has a new key.

        What is no key is passed over.
        """
        news = False
        for instance_id, public_key in instances:
            known = self._by_id.get(instance_id)
            if known is not None and (known.chute_id, known.public_key) == (chute_id, public_key):
                known.seen_at = self._now()
                continue
            try:
                raw = decode_evidence(public_key)
            except QuoteRefused:
                continue
            if len(raw) != KEY_BYTES:
                continue
            if known is not None:
                self.forget(known)
            self._add(Instance(chute_id, instance_id, public_key, sha256(raw).digest(), self._now()))
            news = True
        return news

    def usable(self, instance_id: str, key_sha256: bytes) -> bool:
        """Whether this instance may be given a request sealed to this key."""
        return self.verdict(instance_id, key_sha256) is not None

    def verdict(self, instance_id: str, key_sha256: bytes) -> Verdict | None:
        """The verdict that holds now."""
        instance = self._by_id.get(instance_id)
        if instance is None or instance.key_sha256 != key_sha256 or not instance.verified(self._now()):
            return None
        return instance.verdict

    def chute_usable(self, chute_id: str) -> bool:
        """Whether any instance of the chute is usable; takes constant time."""
        until = self._chute_until.get(chute_id)
        return until is not None and self._now() < until

    def chutes(self) -> tuple[str, ...]:
        """All chutes with instances."""
        return tuple(self._by_chute)

    def of(self, chute_id: str) -> tuple[Instance, ...]:
        """The chute's instances."""
        return tuple(self._by_chute.get(chute_id, {}).values())

    def accept(self, instance: Instance, verdict: Verdict) -> None:
        """The instance's evidence stood."""
        instance.verdict = verdict
        self._changed(instance.chute_id)

    def refuse(self, instance: Instance, reason: Refusal) -> None:
        """The instance's evidence did not stand: no verdict, until it shows another key."""
        instance.verdict, instance.refused = None, reason
        self._changed(instance.chute_id)

    def forget(self, instance: Instance) -> None:
        """Drop an instance and its verdict."""
        if not self.known(instance):
            return
        del self._by_id[instance.instance_id]
        instances = self._by_chute[instance.chute_id]
        del instances[instance.instance_id]
        if not instances:
            del self._by_chute[instance.chute_id]
        self._changed(instance.chute_id)

    def forget_older(self, seconds: float) -> None:
        """Drop what has no verdict and was not named for so long."""
        now = self._now()
        for instance in [one for one in self._by_id.values() if not one.verified(now) and now - one.seen_at > seconds]:
            self.forget(instance)

    def counts(self) -> tuple[int, int, int]:
        """How many instances are known, how many of them are usable, and how many refused; for gauges."""
        now, known = self._now(), self._by_id.values()
        return len(known), sum(one.verified(now) for one in known), sum(one.refused is not None for one in known)

    def known(self, instance: Instance) -> bool:
        """Whether the instance is still there, with the same key."""
        return self._by_id.get(instance.instance_id) is instance

    def _add(self, instance: Instance) -> None:
        self._by_id[instance.instance_id] = instance
        instances = self._by_chute.setdefault(instance.chute_id, {})
        instances[instance.instance_id] = instance
        if len(instances) > MAX_INSTANCES:
            self.forget(min(instances.values(), key=lambda one: one.seen_at))
        if len(self._by_chute) > MAX_CHUTES:
            oldest = min(self._by_chute, key=lambda chute: max(one.seen_at for one in self.of(chute)))
            for one in self.of(oldest):
                self.forget(one)

    def _changed(self, chute_id: str) -> None:
        ends = [one.verdict.expires for one in self.of(chute_id) if one.verdict is not None]
        if ends:
            self._chute_until[chute_id] = max(ends)
        else:
            self._chute_until.pop(chute_id, None)
