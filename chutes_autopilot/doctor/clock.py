"""How far this machine's clock is off, by what the platform writes into its answers."""

from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from statistics import median
from typing import Any

from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from chutes_autopilot.doctor.findings import Finding, fail, ok, warn

WARN_SECONDS = 5.0
FAIL_SECONDS = 60.0
"""From here on, encrypted requests of clients with a right clock are soon refused, and certificates misjudged."""

_ADVICE = "set this machine's clock by NTP (timedatectl set-ntp true; for a container that is its host)"


@implementer(IAgent)
class DatedAgent:
    """An agent that notes how far the Date (RFC 9110 section 6.6.1) of each answer is ahead of our clock.

    :param now: Unix time.
    :ivar offsets: seconds, one for each answer that told.
    """

    def __init__(self, agent: Any, now: Callable[[], float]) -> None:
        self._agent = agent
        self._now = now
        self.offsets: list[float] = []

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """Pass the request on."""
        asked_at = self._now()

        def note(response: Any) -> Any:
            offset = offset_of(response.headers, (asked_at + self._now()) / 2)
            if offset is not None:
                self.offsets.append(offset)
            return response

        asked: Deferred[Any] = self._agent.request(method, uri, headers, bodyProducer)
        return asked.addCallback(note)


def offset_of(headers: Headers, now: float) -> float | None:
    """How far the answer's time is ahead of ours; None where it does not tell, or came out of some cache.

    Date has whole seconds, so half of one is the best guess of what is missing.
    """
    dates = headers.getRawHeaders("date", [])
    if len(dates) != 1 or headers.hasHeader("age"):
        return None
    try:
        return parsedate_to_datetime(dates[0]).timestamp() + 0.5 - now
    except ValueError:
        return None


def check_clock(offsets: Sequence[float]) -> Finding:
    """What the offsets say together."""
    if not offsets:
        return warn("clock", "offset", "no answer told its time", "compare this machine's clock with a right one")
    offset = median(offsets)
    if abs(offset) < WARN_SECONDS:
        return ok("clock", "offset", f"within {max(1.0, abs(offset)):.0f} s of the platform's")
    side = "behind" if offset > 0 else "ahead of"
    seen = f"this machine is {abs(offset):.0f} s {side} the platform"
    return (warn if abs(offset) < FAIL_SECONDS else fail)("clock", "offset", seen, _ADVICE)
