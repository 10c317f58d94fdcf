"""What happens in the demo's world, and before it."""

import json

from twisted.internet.task import Clock

from chutes_autopilot.demo.catalog import SimulatedModel
from chutes_autopilot.demo.past import DAYS, SimulatedPast
from chutes_autopilot.demo.world import (
    EARLY_PRICES,
    GUEST,
    NEWCOMER,
    PAST_NEWCOMER,
    PAST_PRICES,
    PRICE_STEP,
    SimulatedWorld,
)
from chutes_autopilot.storage.history import HistoryStore

BEGUN = 1_760_000_000.0
WORLD = SimulatedWorld(BEGUN)


def at(seconds: float) -> dict[str, SimulatedModel]:
    return {model.name: model for model in WORLD.models(BEGUN + seconds)}


def test_what_happens_at_first_is_the_same_each_time() -> None:
    """Within a minute a price falls, another one rises, a model comes and one goes; later it is back."""
    start, minute = at(0), at(60)
    assert minute.keys() - start.keys() == {NEWCOMER.name}
    assert start.keys() - minute.keys() == {GUEST}
    changed = {name for name in minute.keys() & start.keys() if minute[name].input_usd != start[name].input_usd}
    assert changed == {name for _, name, _ in EARLY_PRICES}
    assert GUEST in at(1000)
    assert at(60) == minute


def test_prices_go_on_to_change_one_at_a_time() -> None:
    """Every step changes one model's price at most, and they stay near what they were for a day."""
    first = {model.name: model.input_usd for model in WORLD.ever()}
    seen = 0
    before = at(PRICE_STEP - 1)
    for step in range(1, 100):
        after = at(step * PRICE_STEP)
        changed = [name for name in before.keys() & after.keys() if before[name].input_usd != after[name].input_usd]
        assert len(changed) <= 1
        assert all(0.6 * first[name] <= model.input_usd <= 1.5 * first[name] for name, model in after.items())
        seen += len(changed)
        before = after
    assert seen > 80


def test_the_past_agrees_with_its_changes() -> None:
    """Each change of a price is a step in the series, and the newcomer of then has none before it came."""
    past = SimulatedPast(WORLD, HistoryStore(Clock(), None, 1, lambda work: work()))
    minutes = dict(past.minutes())
    assert min(minutes) <= BEGUN - DAYS * 86_400 + 3600
    assert sorted(minutes) == list(minutes)
    changes = {change.name: change for change in past.changes()}
    assert len(changes) == len(PAST_PRICES) + 1
    ago, newcomer = PAST_NEWCOMER
    assert all(any(row.name == newcomer for row in rows) == (moment >= BEGUN - ago) for moment, rows in minutes.items())
    for ago, name, _ in PAST_PRICES:
        told = {field.field: (field.before, field.after) for field in changes[name].fields}
        series = {moment: row.price_input for moment, rows in minutes.items() for row in rows if row.name == name}
        assert set(series.values()) == set(told["price.input"])
        assert series[max(moment for moment in series if moment < BEGUN - ago)] == told["price.input"][0]
    assert json.loads(json.dumps([change.as_json() for change in changes.values()]))
