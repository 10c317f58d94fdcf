"""The last requests as the page shows them, made of the records that routing leaves, when somebody looks."""

from collections import Counter
from collections.abc import Callable

from attrs import define

from chutes_autopilot.explorer.picks import Pick, Totals, unanswered, without_client
from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.policy.decision import RecentDecisions
from chutes_autopilot.policy.resilience import HEDGE_LOST
from chutes_autopilot.relay.explain import Explained


@define(eq=False)
class Decided:
    """Reads the records that requests leave.

    :param listed: the catalog's name that a name stands for, or None.
    """

    _decisions: RecentDecisions[Explained]
    _listed: Callable[[str], str | None]

    @property
    def seen(self) -> int:
        """Requests so far, those under way included."""
        return self._decisions.seen

    def picks(self, limit: int) -> tuple[Pick, ...]:
        """The last requests, the newest first."""
        newest = self._decisions.newest(limit)
        return tuple(
            Pick(self._decisions.seen - place, without_client(each.decision(), self._listed))
            for place, each in enumerate(newest)
        )

    def totals(self) -> Totals:
        """How all that are remembered went."""
        records = [each.record for each in self._decisions.newest(self._decisions.limit)]
        ways = Counter(map(_way, records))
        return Totals(len(records), **ways)


def _way(record: RequestRecord) -> str:
    """How the answer was come by: a name of Totals; the last attempt is the one that answered."""
    lacking = unanswered(record.status, record.outcome, record.error)
    if lacking is not None:
        return lacking
    if record.selected is None:
        return "under_way" if record.outcome is None else "left"
    attempts = record.attempts
    first = min(attempts, key=lambda each: each.started or 0.0)  # one that went on alone is the last, whenever it began
    tries = [each for each in attempts if each.model == first.model]
    if attempts[-1].model == first.model:
        return "at_once" if len(tries) == 1 else "again"
    return "hedged" if first.failure == HEDGE_LOST else "moved_on"
