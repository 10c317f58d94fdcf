"""What workers tell the explorer of the requests they have routed, where one process would have looked itself."""

from heapq import nlargest

import attrs

from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.policy.client_address import TrustedProxies
from chutes_autopilot.policy.decision import Decision, RecentDecisions
from chutes_autopilot.relay.explain import Explained
from chutes_autopilot.web.forwarding import LINES
from chutes_autopilot.workers.figures import ToldHealth
from chutes_autopilot.workers.messages import Finished


@attrs.frozen
class ToldRequest:
    """One request of a worker's that is over.

    :param told: why it went where it went; None where there were too many to tell that of each.
    """

    record: RequestRecord
    told: Decision | None

    @property
    def request_id(self) -> str:
        """As its client named it."""
        return self.record.request_id

    def decision(self) -> Decision:
        """All that is known of it."""
        return self.told or Explained(self.record, None).decision()


class ToldDecisions(RecentDecisions[ToldRequest]):
    """The last requests of all workers, each of which tells of its own from time to time."""

    def newest(self, count: int) -> list[ToldRequest]:
        """The last ones by their arrival, newest first."""
        return nlargest(count, super().newest(self.limit), key=lambda told: told.record.received)


@attrs.frozen
class _Rules:
    trusted_proxies: TrustedProxies | None = LINES


@attrs.define(eq=False)
class ToldRouting:
    """What the explorer reads of a ChatRelay."""

    health: ToldHealth = attrs.field(factory=ToldHealth)
    decisions: ToldDecisions = attrs.field(factory=ToldDecisions)
    rules: _Rules = attrs.field(factory=_Rules)

    def hear(self, message: Finished) -> None:
        """Take what a worker has told."""
        self.decisions.seen += message.further
        told = {decision.request_id: decision for decision in reversed(message.decisions)}
        for number, record in enumerate(message.records, self.decisions.seen):
            # two clients may have named their requests alike
            self.decisions.keep(ToldRequest(record, told.get(record.request_id)), number.to_bytes(8, "big"))
