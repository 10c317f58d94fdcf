"""From what happened to a request to the record that explains it; made only when somebody asks."""

from collections.abc import Sequence

import msgspec

from chutes_autopilot.observe.record import AttemptRecord, RequestRecord
from chutes_autopilot.policy.decision import AttemptView, Decision, Followed
from chutes_autopilot.policy.reasons import Reasons
from chutes_autopilot.policy.resilience import HEDGE_LOST
from chutes_autopilot.relay.exchange import Route


class Explained(msgspec.Struct, eq=False):
    """One request, under way or over.

    :param route: None where it was refused before anything could be chosen.
    :param refusal: the reasons for that, where there are some.
    """

    record: RequestRecord
    route: Route | None
    profile: str = "standard"
    refusal: Reasons | None = None

    @property
    def request_id(self) -> str:
        """By which its client asks for it."""
        return self.record.request_id

    def decision(self) -> Decision:
        """All that is known of it by now."""
        record, selected = self.record, self.record.selected
        return Decision(
            record.request_id,
            record.received,
            record.stream,
            self.profile,
            self._reasons(),
            self._attempts(),
            None if selected is None else self._base(selected),
            record.status,
            self._since(record.first_byte),
            self._since(record.ended),
            record.error,
            record.outcome,
            record.endpoint,
        )

    def _reasons(self) -> Reasons | None:
        route = self.route
        if route is None or route.why is None:
            return self.refusal
        return route.why().without({route.plan.base(model) for model in self.record.too_long_for})

    def _attempts(self) -> tuple[AttemptView, ...]:
        record, views = self.record, []
        attempts, started = (*record.attempts, *record.continuations), record.first_attempt
        for place, attempt in enumerate(attempts):
            followed = self._followed(place, attempts)
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
                    probe=attempt.probe > 0,
                    sent=attempt.model,
                    waited=attempt.waited,
                )
            )
            started = attempt.failed
        return tuple(views)

    def _followed(self, place: int, attempts: Sequence[AttemptRecord]) -> Followed | None:
        """What came after one of the attempts; the last ones may be those to continue the stream of another."""
        record, last, committed = self.record, len(attempts) - 1, len(self.record.attempts) - 1
        if attempts[place].failure == HEDGE_LOST:
            return "outrun"
        if place == committed and record.selected is not None:
            return "committed" if record.continued_by is None else "continued"
        # the earlier one of two that were under way to the end neither failed nor was followed
        if place == last or (place < committed and attempts[place].failed is None):
            if record.continued_by is not None:
                return "committed"
            if record.outcome is None:
                return None
            return "client_left" if record.outcome == "client_gone" else "gave_up"
        return "again" if attempts[place].model == attempts[place + 1].model else "next"

    def _base(self, model: str) -> str:
        return model if self.route is None else self.route.plan.base(model)

    def _since(self, when: float | None) -> float | None:
        return None if when is None else max(0.0, when - self.record.received)
