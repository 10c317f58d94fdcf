"""Why a client that is refused is told not to call again at once: its SDK would, three times in a second.

After a platform's ban page that makes it worse, for each further call lengthens the ban. So a client whose calls end
there is answered here for a while, without a call, one attempt at a time finding out whether the ban is over.
"""

from collections import OrderedDict

import attrs

from chutes_autopilot.errors import ApiError

Header = tuple[bytes, bytes]

SHOULD_RETRY = b"x-should-retry"
"""By which SDKs are told whether to ask again by themselves."""
LONGEST_RETRY_AFTER = 60
"""Seconds a client is told to wait at most, but for a ban: SDKs take longer ones for a mistake."""
JITTER = 0.25
"""By what part the waits of different clients differ, or they would all return at once."""


@attrs.frozen
class BanRules:
    """How long a client is answered here.

    :param first: seconds after the first ban page; it doubles with each further one.
    :param longest: seconds it grows to; after so long a quiet time it begins small again.
    :param hold: seconds the one attempt that finds out has for its answer.
    """

    first: float = 60.0
    longest: float = 3600.0
    hold: float = 30.0


@attrs.define(eq=False)
class _Ban:
    until: float = 0.0
    times: int = 0
    held_until: float = 0.0
    met_at: float = 0.0


@attrs.define(eq=False)
class BanFuse:
    """Which clients the platform's edge has banned, as far as its answers tell; at most so many, the oldest forgotten.

    A client is its credential: the key is policy.stickiness.client_key without a session, or a new session would be a
    way around the fuse.
    """

    rules: BanRules = attrs.field(factory=BanRules)
    max_clients: int = 10_000
    bans: OrderedDict[bytes, _Ban] = attrs.field(factory=OrderedDict, init=False, repr=False)
    """By client; empty nearly always, which whoever asks may see for itself."""

    def admit(self, client: bytes, now: float) -> float:
        """Whether a client may call: 0, or the seconds after which it may be asked again.

        After the time of a ban the first call is let through and the others wait for its answer.
        """
        if not self.bans or (ban := self.bans.get(client)) is None:
            return 0.0
        if now >= max(ban.until, ban.held_until):
            ban.held_until = now + self.rules.hold
            return 0.0
        return max(ban.until, ban.held_until) - now

    def banned(self, client: bytes, retry_after: float | None, now: float) -> float:
        """A call ended at a ban page; the seconds during which this client is answered here.

        A page that was on its way while the client was banned already changes nothing.

        :param retry_after: what the page says.
        """
        ban = self._of(client, now)
        if now >= ban.until:
            wait = min(self.rules.longest, max(self.rules.first * 2.0 ** min(ban.times, 30), retry_after or 0.0))
            ban.until, ban.met_at = now + wait, now
            ban.times += 1
        return ban.until - now

    def heard(self, client: bytes, wait: float, times: int, now: float) -> None:
        """Somebody else has met a ban of a client's, the so many-th in a row; of one that is known nothing changes."""
        ban = self._of(client, now)
        if now >= ban.until:
            ban.until, ban.times, ban.met_at = now + wait, times, now

    def _of(self, client: bytes, now: float) -> _Ban:
        """A client's, whose latest attempt is over."""
        ban = self.bans.get(client)
        if ban is None or now - ban.until > self.rules.longest:
            ban = self.bans[client] = _Ban()
        ban.held_until = 0.0
        self.bans.move_to_end(client)
        while len(self.bans) > self.max_clients:
            self.bans.popitem(last=False)
        return ban

    def answered(self, client: bytes, began: float) -> None:
        """A call got another answer, whatever it said: there is no ban.

        :param began: when; a call that was under way when the ban was met says nothing of it.
        """
        ban = self.bans.get(client)
        if ban is not None and began > ban.met_at:
            del self.bans[client]


def wait_when_exhausted(cooling: float, until_feed: float, client: bytes) -> float:
    """Seconds after which another try makes sense once every candidate has failed.

    :param cooling: until the first candidate's cooldown is over; 0: none cools down.
    :param until_feed: until the next poll of utilization may change the ranking.
    :param client: its key; equal waits would bring all clients back at once.
    """
    soonest = min((wait for wait in (cooling, until_feed) if wait > 0), default=1.0)
    return min(float(LONGEST_RETRY_AFTER), max(1.0, soonest)) * (1 + JITTER * _fraction(client))


def no_retry_headers(seconds: float) -> tuple[Header, Header]:
    """Tell SDKs to leave it, and everybody else when to come back (RFC 9110 section 10.2.3)."""
    return (SHOULD_RETRY, b"false"), (b"Retry-After", b"%d" % max(1, -int(-seconds // 1)))


def without_wait(headers: tuple[Header, ...]) -> tuple[Header, ...]:
    """Headers without a Retry-After, where another one takes its place."""
    return tuple(header for header in headers if header[0].lower() != b"retry-after")


def ban_refusal(seconds: float) -> ApiError:
    """The answer to a banned client, made here."""
    return ApiError(
        "upstream_ban",
        "The platform's edge has refused this client's recent calls with a ban page, and calling on would make the ban "
        "longer: this gateway asks again after the time in Retry-After. Check the API key meanwhile.",
        headers=no_retry_headers(seconds),
        error_type="rate_limit_error",
    )


def _fraction(client: bytes) -> float:
    return int.from_bytes(client[:2].ljust(2, b"\0"), "big") / 65536
