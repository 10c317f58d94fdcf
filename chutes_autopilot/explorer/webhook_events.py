"""What a webhook says: one event of one model as JSON, in the shape that Standard Webhooks 1.0.0 recommends."""

from datetime import UTC, datetime
from typing import Literal, get_args

import msgspec
from attrs import field, frozen

from chutes_autopilot.explorer.changes import Change

EventType = Literal["price.changed", "model.added", "model.removed"]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)
"""The changes that are told; the same names as everywhere else in the API."""


@frozen
class WebhookEvent:
    """An event ready to be sent to whoever wants events of its type.

    :param body: ``{"type", "timestamp", "data"}`` in UTF-8.
    """

    type: EventType
    body: bytes = field(repr=False)


def event_of(change: Change) -> WebhookEvent | None:
    """The event that tells of a change; None where webhooks do not tell of changes of this type.

    Whether something is worth telling at all was decided in changes.observe.
    """
    if change.type == "model.changed":
        return None
    data = change.as_json()
    del data["type"], data["at"]
    if change.type != "price.changed":
        del data["fields"]
    when = datetime.fromtimestamp(change.at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return WebhookEvent(change.type, msgspec.json.encode({"type": change.type, "timestamp": when, "data": data}))
