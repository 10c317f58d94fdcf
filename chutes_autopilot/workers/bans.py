"""The bans that workers of one machine know in common: the parent hears of each and tells all."""

from collections.abc import Callable

from attrs import define, field

from chutes_autopilot.policy.retry_shield import BanFuse
from chutes_autopilot.workers.messages import Banned, Message


@define(eq=False)
class SharedBanFuse(BanFuse):
    """A worker's: a ban that one meets keeps all from calling."""

    tell: Callable[[Message], None] = field(kw_only=True)

    def banned(self, client: bytes, retry_after: float | None, now: float) -> float:
        """As of BanFuse; the others hear of it, once for each page that changes anything."""
        known = self.bans.get(client)
        until = 0.0 if known is None else known.until
        wait = super().banned(client, retry_after, now)
        ban = self.bans[client]
        if ban.until != until:
            self.tell(Banned(client, wait, ban.times))
        return wait


@define(eq=False)
class KnownBans:
    """The parent's: for workers that begin."""

    _fuse: BanFuse = field(init=False, factory=BanFuse)

    def take(self, message: Banned, now: float) -> None:
        """What a worker has told."""
        self._fuse.heard(message.client, message.wait, message.times, now)

    def lasting(self, now: float) -> list[Banned]:
        """Every ban that is not over, as it would be told now."""
        bans = self._fuse.bans.items()
        return [Banned(client, ban.until - now, ban.times) for client, ban in bans if ban.until > now]
