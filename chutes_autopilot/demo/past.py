"""A past for the demo, so that charts and the list of changes are not empty at its start: as simulated as all of it."""

from collections.abc import Iterator

from twisted.application.service import Service
from twisted.internet.defer import Deferred

from chutes_autopilot.demo.catalog import SimulatedModel
from chutes_autopilot.demo.feed import simulated_loads
from chutes_autopilot.demo.world import HOUR, PAST_NEWCOMER, PAST_PRICES, SimulatedWorld
from chutes_autopilot.explorer.changes import Change, FieldChange
from chutes_autopilot.explorer.prices import INPUT, OUTPUT, UNITS
from chutes_autopilot.explorer_live.minutes import recorded_change
from chutes_autopilot.observe import events
from chutes_autopilot.storage.history import HistoryStore
from chutes_autopilot.storage.history_rows import HistoryRow

DAYS = 7
STEP = 300
"""Seconds from one minute of the last day to the next that is recorded; before that there is one an hour."""


class SimulatedPast(Service):
    """Puts what was before the start of a simulated world into the history, before anybody asks it."""

    def __init__(self, world: SimulatedWorld, history: HistoryStore) -> None:
        self.world = world
        self._history = history

    def startService(self) -> None:
        """Begin to write it."""
        super().startService()
        changes = map(recorded_change, self.changes())
        filling = Deferred.fromCoroutine(self._history.fill(self.minutes(), changes))
        filling.addErrback(events.failed_unexpectedly, "filling the simulated history")

    def minutes(self) -> Iterator[tuple[int, tuple[HistoryRow, ...]]]:
        """Moments of the last days with a row for each chute, oldest first."""
        now = int(self.world.begun) // 60 * 60
        day, hour = 24 * int(HOUR), int(HOUR)
        for at in (*range(now - DAYS * day, now - day, hour), *range(now - day, now, STEP)):
            models = self.world.models(at)
            priced = {model.chute_id: model for model in models}
            yield (
                at,
                tuple(
                    HistoryRow(
                        load.chute_id,
                        load.name,
                        utilization=load.share(at),
                        active_instances=load.active(at),
                        total_instances=load.active(at),
                        price_input=_price(priced, load.chute_id, "input_usd"),
                        price_output=_price(priced, load.chute_id, "output_usd"),
                    )
                    for load in simulated_loads(models)
                ),
            )

    def changes(self) -> tuple[Change, ...]:
        """What happened to models, oldest first."""
        begun = self.world.begun
        models = {model.name: model for model in self.world.base}
        ago, newcomer = PAST_NEWCOMER
        came = models[newcomer]
        changes = [Change("model.added", begun - ago, came.chute_id, came.chute_id, newcomer)]
        for ago, name, _ in PAST_PRICES:
            before = {model.name: model for model in self.world.models(begun - ago - 1)}[name]
            after = models[name]
            fields = (
                FieldChange(INPUT, before.input_usd, after.input_usd, UNITS[INPUT]),
                FieldChange(OUTPUT, before.output_usd, after.output_usd, UNITS[OUTPUT]),
            )
            changes.append(Change("price.changed", begun - ago, after.chute_id, after.chute_id, name, fields))
        return tuple(sorted(changes, key=lambda change: change.at))


def _price(models: dict[str, SimulatedModel], chute_id: str, name: str) -> float | None:
    model = models.get(chute_id)
    return None if model is None else getattr(model, name)
