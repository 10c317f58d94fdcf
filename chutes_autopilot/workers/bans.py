"""The bans that workers of one machine know in common: the parent hears of each and tells all."""

from collections.abc import Callable

from attrs import define, field

from chutes_autopilot.policy.retry_shield import BanFuse
from chutes_autopilot.workers.messages import Banned, Message


@define(eq=False)
class SharedBanFuse(BanFuse):
    """A worker's: a ban that one meets keeps all from calling."""

    tell: Callable[[Message], None] = field(kw_only=True)
    now: Callable[[], float] = field(kw_only=True)

    def banned(self, client: bytes, retry_after: float | None, now: float) -> float:
        """As of BanFuse; the others hear of it."""
        wait = super().banned(client, retry_after, now)
        self.tell(Banned(client, wait))
        return wait

    def heard(self, message: Banned) -> None:
        """Some worker has met a ban; of one that this worker knows already, nothing changes."""
        super().banned(message.client, message.retry_after, self.now())
