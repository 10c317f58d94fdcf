"""When a model that keeps failing is left alone for a while, and how it comes back.

A state machine per model; times are the clock's seconds, handed in.

=========  =======================  ===========================================================================
state      event                    next
=========  =======================  ===========================================================================
closed     failed                   closed; cooling, once there are so many failures in a row within the window
closed     succeeded                closed, nothing counted any more
cooling    its time is over         half open
half open  started                  probing: nobody else tries it until that attempt's end is known
probing    probe lasts too long     half open: whoever had it is gone, and says nothing once there is another probe
probing    the probe failed         cooling, for twice as long as the last time, up to the limit
probing    the probe was abandoned  half open
any        succeeded                closed
not closed another attempt failed   unchanged: it began earlier, or for want of others
=========  =======================  ===========================================================================
"""

import attrs

PROBE_SECONDS = 120.0
"""After so long without an end a probe is taken for lost."""


@attrs.frozen
class CooldownRules:
    """What the operator sets.

    :param failures: in a row, for a model to cool down (COOLDOWN_FAILURES); 0: none ever does.
    :param first: seconds of a model's first time to cool down (COOLDOWN_MS); it doubles with each failed probe.
    :param longest: seconds it grows to.
    :param window: seconds within which the failures must lie.
    """

    failures: int = 3
    first: float = 10.0
    longest: float = 300.0
    window: float = 60.0


@attrs.define(eq=False)
class Cooldown:
    """One model's state."""

    rules: CooldownRules
    troubled: bool = attrs.field(default=False, init=False)
    """Whether there is anything that `succeeded` would forget."""
    _failed_at: list[float] = attrs.field(factory=list, init=False)
    _times: int = attrs.field(default=0, init=False)
    _until: float = attrs.field(default=0.0, init=False)
    _probe_began: float | None = attrs.field(default=None, init=False)
    _probe: int = attrs.field(default=0, init=False)

    def open_at(self, now: float) -> bool:
        """Whether it should be left alone now."""
        if not self._times:
            return False
        return now < self._until or self.probing(now)

    def probing(self, now: float) -> bool:
        """Whether one attempt is finding out if it works again."""
        return self._probe_began is not None and now - self._probe_began < PROBE_SECONDS

    def left(self, now: float) -> float:
        """Seconds until it may be tried again, 0 where it may be."""
        return max(0.0, self._until - now) if self._times else 0.0

    def started(self, now: float) -> int:
        """An attempt begins; the number of the probe that it is, 0 where it is none."""
        if self._times and now >= self._until and not self.probing(now):
            self._probe_began = now
            self._probe += 1
            return self._probe
        return 0

    def failed(self, now: float, *, probe: int = 0) -> bool:
        """An attempt failed through the model's fault; whether it cools down from now on.

        :param probe: what `started` said of that attempt.
        """
        if not self.rules.failures or (self._times and (not probe or probe != self._probe or now < self._until)):
            return False
        self.troubled = True
        if not self._times:
            self._failed_at = [*(at for at in self._failed_at if now - at <= self.rules.window), now]
            if len(self._failed_at) < self.rules.failures:
                return False
        self._failed_at.clear()
        self._probe_began = None
        self._until = now + min(self.rules.longest, self.rules.first * 2.0 ** min(self._times, 30))
        self._times += 1
        return True

    @property
    def found(self) -> tuple[float, int]:
        """Until when it is left alone, and how often in a row it has cooled down."""
        return self._until, self._times

    def heard(self, until: float, times: int) -> None:
        """Another replica found it failing.

        :param times: how often in a row, at least once.
        """
        if (until, times) != (self._until, self._times):
            self._failed_at.clear()
            self._probe_began = None
            self.troubled = True
            self._until, self._times = until, times

    def succeeded(self) -> None:
        """An attempt was answered: all is forgotten."""
        self.troubled = False
        self._failed_at.clear()
        self._times = 0
        self._probe_began = None

    def end_wait(self, now: float) -> None:
        """The platform itself was down, not the model: it may be tried again now."""
        self._until = min(self._until, now)

    def abandoned(self, probe: int | None = None) -> bool:
        """The probe ended without telling anything of the model: the client left. Whether there was one.

        :param probe: what `started` said of it; None: somebody else's.
        """
        was_probing = self._probe_began is not None
        if probe not in (None, self._probe):
            return False
        self._probe_began = None
        return was_probing
