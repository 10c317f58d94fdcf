"""What happened between merged states, and what is not worth telling."""

from collections.abc import Sequence
from typing import Any

from explorer_samples import chutes, loads, models, uuid

from chutes_autopilot.explorer.changes import Change, FieldChange, Watch, observe, shrunk
from chutes_autopilot.explorer.listing import ListedChute
from chutes_autopilot.explorer.merge import Merged, merge
from chutes_autopilot.explorer.models import ModelRecord


def state(*numbers: int, **members: Any) -> Merged:
    """A catalog of models named by their numbers; members are the first one's."""
    first = ModelRecord(**{"name": str(numbers[0]), "chute_id": uuid(numbers[0]), **members})
    return merge(None, models(first, *((number, str(number)) for number in numbers[1:])), None)


def replay(*states: Merged, patience: int = 3) -> list[list[tuple[str, str]]]:
    """Type and name of what each state tells, one second apart."""
    return [[(change.type, change.name) for change in changes] for changes in changes_of(states, patience)]


def changes_of(states: Sequence[Merged], patience: int = 3) -> list[tuple[Change, ...]]:
    watch, told = Watch(), []
    for at, merged in enumerate(states):
        watch, changes = observe(watch, merged, at, patience=patience)
        told.append(changes)
    return told


def price(**usd: float) -> dict[str, Any]:
    return {"prices": {f"price.{field}": value for field, value in usd.items()}}


def test_the_first_state_tells_nothing_and_later_ones_what_is_new() -> None:
    """A model added is told at once, a repeated state tells nothing."""
    assert replay(state(1, 2), state(1, 2, 3), state(1, 2, 3)) == [[], [("model.added", "3")], []]


def test_a_removal_is_told_after_some_states_and_dated_to_the_first() -> None:
    """It is certain only after a while."""
    told = changes_of([state(1, 2, 3), *[state(1, 2)] * 4])
    assert [len(changes) for changes in told] == [0, 0, 0, 1, 0]
    assert told[3] == (Change("model.removed", 1, uuid(3), uuid(3), "3"),)


def test_a_model_that_blinks_was_never_gone() -> None:
    """Back in time it is neither removed nor added, however often; once told as removed it is added anew."""
    full, less = state(1, 2, 3), state(1, 2)
    assert replay(full, less, less, full, less, less, full) == [[]] * 7
    assert replay(full, less, less, less, full)[3:] == [[("model.removed", "3")], [("model.added", "3")]]


def test_a_price_that_changed_while_a_model_blinked_is_told() -> None:
    """It is compared with what was last known."""
    other = state(2, 3)
    told = replay(state(1, 2, 3, **price(input=1)), other, state(1, 2, 3, **price(input=2)))
    assert told == [[], [], [("price.changed", "1")]]


def test_a_sudden_loss_must_be_seen_twice() -> None:
    """One state without most models tells nothing at all; when it stays, counting begins."""
    full, few = state(1, 2, 3, 4), state(1, **price(input=1))
    assert replay(full, few, full) == [[], [], []]
    gone = [("model.removed", name) for name in "234"]
    assert replay(full, *[few] * 5) == [[], [], [], [], gone, []]
    assert replay(full, state(1, 2), state(1, 2), patience=1) == [
        [],
        [("model.removed", "3"), ("model.removed", "4")],
        [],
    ]


def test_a_new_catalog_is_believed_after_all() -> None:
    """All models exchanged for others: told once it has lasted."""
    told = replay(state(1, 2), *[state(3, 4)] * 4)
    added = [("model.added", "3"), ("model.added", "4")]
    assert told == [[], [], added, [], [("model.removed", "1"), ("model.removed", "2")]]


def test_price_changes_name_the_fields_and_units() -> None:
    """One event for a model, whichever of its prices changed."""
    told = changes_of(
        [state(1, **price(input=1, output=2, per_hour=5)), state(1, **price(input=1.5, output=2.5, per_hour=5))]
    )
    assert told[1] == (
        Change(
            "price.changed",
            1,
            uuid(1),
            uuid(1),
            "1",
            (
                FieldChange("price.input", 1, 1.5, "usd_per_1m_tokens"),
                FieldChange("price.output", 2, 2.5, "usd_per_1m_tokens"),
            ),
        ),
    )
    assert told[1][0].as_json()["fields"][0] == {
        "field": "price.input",
        "before": 1,
        "after": 1.5,
        "unit": "usd_per_1m_tokens",
    }


def test_noise_and_missing_prices_are_no_changes() -> None:
    """Floats wobble, and a price that becomes unknown or known did not change; one that comes back changed did."""
    one, noisy, none = price(input=0.0104), price(input=0.010399999999999998), price()
    assert replay(state(1, **one), state(1, **noisy), state(1, **none), state(1, **one)) == [[]] * 4
    assert replay(state(1, **one), state(1, **none), state(1, **price(input=1)))[2] == [("price.changed", "1")]
    assert replay(state(1), state(1, **one)) == [[], []]


def test_another_source_of_a_price_is_no_change() -> None:
    """When the listing arrives and has always said something else, nobody changed a price."""
    model = ModelRecord("m", uuid(1), prices={"price.input": 0.28})
    chute = ListedChute("m", uuid(1), prices={"price.input": 0.308})
    both, alone = merge(chutes(chute), models(model), None), merge(None, models(model), None)
    assert replay(alone, both, both) == [[], [], []]


def test_other_fields_are_told_apart_from_prices() -> None:
    """A renamed chute keeps its id; a lost protection is told with what it was."""
    told = changes_of(
        [state(1, tee=True, name="old", **price(input=1)), state(1, tee=False, name="new", **price(input=2))]
    )
    assert [(change.type, change.fields) for change in told[1]] == [
        ("model.changed", (FieldChange("name", "old", "new"), FieldChange("tee", True, False))),
        ("price.changed", (FieldChange("price.input", 1, 2, "usd_per_1m_tokens"),)),
    ]


def test_a_flag_that_one_source_withdraws_is_told() -> None:
    """Protection is lost when either catalog says so."""
    told = changes_of(
        [
            merge(chutes(ListedChute("m", uuid(1), tee=True)), models(ModelRecord("m", uuid(1), tee=tee)), None)
            for tee in (True, False)
        ]
    )
    assert [change.fields for change in told[1]] == [(FieldChange("tee", True, False),)]


def test_a_source_that_arrives_late_brings_no_additions() -> None:
    """What is new in a source is what it did not have before, not all that it has."""
    catalog = models((1, "1"), (None, "unnamed"))
    with_listing = merge(chutes((1, "1"), (2, "2"), (9, "unnamed")), catalog, None)
    more = merge(chutes((1, "1"), (2, "2"), (3, "3"), (9, "unnamed")), catalog, None)
    told = replay(merge(None, catalog, None), with_listing, with_listing, with_listing, more)
    assert told == [[], [], [], [], [("model.added", "3")]]


def test_models_are_not_missed_while_their_source_is_away() -> None:
    """Nobody was there who could tell."""
    both = merge(chutes((1, "1"), (2, "2"), (3, "3")), models((1, "1"), (2, "2")), None)
    assert replay(both, *[merge(None, models((1, "1"), (2, "2")), None)] * 5) == [[]] * 6


def test_rows_of_the_feed_alone_are_no_models() -> None:
    """They come and go untold."""
    catalog = models((1, "1"))
    assert replay(merge(None, catalog, loads()), merge(None, catalog, loads((7, "7")))) == [[], []]


def test_more_than_half_is_a_sudden_loss() -> None:
    """Exactly half is not, and nothing cannot shrink."""
    assert shrunk(["a", "b", "c"], ["a"])
    assert not shrunk(["a", "b"], {"a", "z"})
    assert not shrunk([], [])
