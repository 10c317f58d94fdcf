"""What webhooks tell of a timeline of catalogs: every real event once, and nothing else."""

import json
from typing import Any

from explorer_samples import chutes, models, uuid

from chutes_autopilot.explorer.changes import Change, FieldChange, Watch, observe
from chutes_autopilot.explorer.listing import ListedChute, read_listing
from chutes_autopilot.explorer.merge import Merged, merge
from chutes_autopilot.explorer.models import ModelRecord
from chutes_autopilot.explorer.webhook_events import EVENT_TYPES, event_of

AT = 1_795_219_200.75


def test_a_changed_price_is_told_with_what_it_was() -> None:
    """In the unit that it has; the time is the event's, in whole seconds of UTC."""
    field = FieldChange("price.input", 0.25, 0.5, "usd_per_1m_tokens")
    event = event_of(Change("price.changed", AT, uuid(1), uuid(1), "org/caf\u00e9", (field,)))
    assert event is not None
    assert (event.type, json.loads(event.body)) == (
        "price.changed",
        {
            "type": "price.changed",
            "timestamp": "2026-11-21T00:00:00Z",
            "data": {
                "key": uuid(1),
                "chute_id": uuid(1),
                "name": "org/caf\u00e9",
                "fields": [{"field": "price.input", "before": 0.25, "after": 0.5, "unit": "usd_per_1m_tokens"}],
            },
        },
    )


def test_a_model_is_told_by_its_id_and_name() -> None:
    """One that has no id is told by its key."""
    for kind in ("model.added", "model.removed"):
        event = event_of(Change(kind, AT, "v1:org/a", None, "org/a"))  # type: ignore[arg-type]
        assert event is not None
        assert json.loads(event.body)["data"] == {"key": "v1:org/a", "chute_id": None, "name": "org/a"}
        assert event.type in EVENT_TYPES


def test_other_changes_are_not_told() -> None:
    """They are in the feed of changes."""
    assert event_of(Change("model.changed", AT, "k", None, "n", (FieldChange("tee", True, False),))) is None


def listed(number: int, tao: float, **members: Any) -> dict[str, Any]:
    """An item of the listing whose price in TAO moves."""
    tokens = {
        "input": {"usd": 0.1, "tao": 0.1 / tao},
        "output": {"usd": members.pop("output", 0.2), "tao": 0.2 / tao},
    }
    return {
        "chute_id": uuid(number),
        "name": f"org/{number}",
        "public": True,
        "standard_template": "vllm",
        "current_estimated_price": {"usd": {"hour": 1.0}, "tao": {"hour": 1 / tao}, "per_million_tokens": tokens},
        **members,
    }


def timeline() -> list[Merged]:
    """Twelve states of a small catalog, a minute apart."""

    def state(tao: float, *numbers: int, **members: Any) -> Merged:
        items = [listed(number, tao, **(members if number == 1 else {})) for number in numbers]
        body = json.dumps({"total": len(items), "page": 0, "items": items, "cord_refs": {}}).encode()
        return merge(read_listing(body, show_private=False), None, None)

    return [
        state(250, 1, 2, 3),  # the first state: nothing is new
        state(251, 1, 2, 3),  # the rate of TAO moved
        state(251, 1, 2, 3, output=0.2000001),  # noise
        state(249, 1, 2, 3, 4),  # 4 is new
        state(252, 1, 2, 4),  # 3 blinks
        state(250, 1, 2, 3, 4),
        state(250, 1, 2, 3, 4, output=0.3),  # a price changed
        state(248, 4),  # half an answer
        state(248, 1, 2, 3, 4, output=0.3),
        state(248, 1, 3, 4, output=0.3),  # 2 goes, and stays away
        state(247, 1, 3, 4, output=0.3),
        state(247, 1, 3, 4, output=0.3),
    ]


def test_the_replay_of_a_timeline_gives_exactly_the_real_events() -> None:
    """One addition, one price, one removal, which is dated to when it began."""
    watch, told = Watch(), []
    for minute, merged in enumerate(timeline()):
        watch, changes = observe(watch, merged, AT + 60 * minute)
        told += [json.loads(event.body) for event in map(event_of, changes) if event is not None]
    assert [(event["type"], event["timestamp"][11:16], event["data"]["name"]) for event in told] == [
        ("model.added", "00:03", "org/4"),
        ("price.changed", "00:06", "org/1"),
        ("model.removed", "00:09", "org/2"),
    ]
    changed = told[1]["data"]["fields"]
    assert changed == [{"field": "price.output", "before": 0.2, "after": 0.3, "unit": "usd_per_1m_tokens"}]


def test_a_source_that_comes_late_or_goes_tells_nothing() -> None:
    """What it brings was there before, and what it takes along may still be."""
    listing = chutes(ListedChute("a", uuid(1)), ListedChute("b", uuid(2)))
    catalog = models(ModelRecord("a", uuid(1)))
    states = [merge(None, catalog, None), *[merge(listing, catalog, None)] * 2, *[merge(None, catalog, None)] * 4]
    watch = Watch()
    for minute, merged in enumerate(states):
        watch, changes = observe(watch, merged, AT + 60 * minute)
        assert changes == ()
