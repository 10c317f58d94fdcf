"""From what happened to a request to the record that explains it; made only when somebody asks."""

import attrs

from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.policy.decision import AttemptView, Decision, Followed
from chutes_autopilot.policy.resilience import HEDGE_LOST
from chutes_autopilot.relay.exchange import Route


@attrs.define(eq=False)
class Explained:
    """One request, under way or over.

    :param route: None where it was refused before anything could be chosen.
    """

    record: RequestRecord
    route: Route | None
    profile: str = "standard"

    @property
    def request_id(self) -> str:
        """By which its client asks for it."""
        return self.record.request_id

    def decision(self) -> Decision:
        """All that is known of it by now."""
        record, route = self.record, self.route
        selected = record.selected
        return Decision(
            record.request_id,
            record.received,
            record.stream,
            self.profile,
            None if route is None or route.why is None else route.why(),
            self._attempts(),
            None if selected is None else self._base(selected),
            record.status,
            self._since(record.first_byte),
            self._since(record.ended),
            record.error,
            record.outcome,
            record.endpoint,
        )

    def _attempts(self) -> tuple[AttemptView, ...]:
        record, views = self.record, []
        started, last = record.first_attempt, len(record.attempts) - 1
        for place, attempt in enumerate(record.attempts):
            followed: Followed | None = "next"
            if attempt.failure == HEDGE_LOST:
                followed = "outrun"
            elif place < last and record.attempts[place + 1].model == attempt.model:
                followed = "again"
            elif place == last:
                followed = "committed" if record.selected is not None else None
                if followed is None and record.outcome is not None:
                    followed = "client_left" if record.outcome == "client_gone" else "gave_up"
            failure = attempt.failure
            if failure is None and attempt.status is None and followed == "gave_up":
                failure = record.error
            views.append(
                AttemptView(
                    self._base(attempt.model),
                    self._since(attempt.started or started) or 0.0,
                    self._since(attempt.failed or record.ended),
                    attempt.status,
                    failure,
                    followed,
                    attempt.detail,
                    probe=attempt.probe,
                    sent=attempt.model,
                    waited=attempt.waited,
                )
            )
            started = attempt.failed
        return tuple(views)

    def _base(self, model: str) -> str:
        return model if self.route is None else self.route.plan.base(model)

    def _since(self, when: float | None) -> float | None:
        return None if when is None else max(0.0, when - self.record.received)
