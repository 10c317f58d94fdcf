"""The live feed (GET /chutes/utilization) with all its numbers; the router's own parser keeps the few it ranks by."""

from attrs import frozen

from chutes_autopilot.explorer.records import UTILIZATION, Admission, Fields, Invalid, InvalidField
from chutes_autopilot.policy.feed_json import records_of_list
from chutes_autopilot.policy.utilization import PRIVATE


@frozen
class LoadRow:
    """How busy one chute is; None is unknown.

    :param measured_at: time of the platform's record, ISO 8601 with zone.
    :param utilization_current: busy share 0..1 now; ``_5m``, ``_15m``, ``_1h`` over these spans.
    :param rate_limit_ratio_5m: share of requests refused, 0..1.
    :param total_requests_5m: extrapolated, so not whole; completed plus rate limited ones.
    :param target_count: instances the platform's scaler wants.
    :param scale_allowance: instances that may still be started.
    """

    name: str
    chute_id: str
    measured_at: str | None = None
    utilization_current: float | None = None
    utilization_5m: float | None = None
    utilization_15m: float | None = None
    utilization_1h: float | None = None
    rate_limit_ratio_5m: float | None = None
    rate_limit_ratio_15m: float | None = None
    rate_limit_ratio_1h: float | None = None
    total_requests_5m: float | None = None
    total_requests_15m: float | None = None
    total_requests_1h: float | None = None
    completed_requests_5m: float | None = None
    completed_requests_15m: float | None = None
    completed_requests_1h: float | None = None
    rate_limited_requests_5m: float | None = None
    rate_limited_requests_15m: float | None = None
    rate_limited_requests_1h: float | None = None
    active_instance_count: float | None = None
    total_instance_count: float | None = None
    target_count: float | None = None
    scalable: bool | None = None
    scale_allowance: float | None = None
    action_taken: str | None = None
    effective_multiplier: float | None = None


@frozen
class Loads:
    """What one answer of the feed said.

    :param items: the rows that count, in the upstream's order; of private chutes nothing is kept.
    """

    items: tuple[LoadRow, ...] = ()
    invalid: tuple[Invalid, ...] = ()
    invalid_fields: tuple[InvalidField, ...] = ()


_NUMBERS = (
    *(f"utilization_{span}" for span in ("current", "5m", "15m", "1h")),
    *(f"rate_limit_ratio_{span}" for span in ("5m", "15m", "1h")),
    *(f"{kind}_requests_{span}" for kind in ("total", "completed", "rate_limited") for span in ("5m", "15m", "1h")),
    "active_instance_count",
    "total_instance_count",
    "target_count",
    "scale_allowance",
    "effective_multiplier",
)


def _row(name: str, chute_id: str, fields: Fields) -> LoadRow:
    return LoadRow(
        name=name,
        chute_id=chute_id,
        measured_at=fields.time("timestamp"),
        scalable=fields.flag("scalable"),
        action_taken=fields.text("action_taken"),
        **{field: fields.number(field) for field in _NUMBERS},
    )


def read_loads(body: bytes) -> Loads:
    """The rows of the feed, a bare JSON list, from the same bytes as the router's; may run in a thread.

    Raises FeedError where the body is no list, or where it has records and every one is malformed.
    """
    admission = Admission(UTILIZATION)
    records = (raw for raw in records_of_list(body) if raw is not None)
    admitted = admission.admit(records, skip=frozenset({PRIVATE}))
    rows = tuple(_row(name, chute_id, fields) for name, chute_id, _, fields in admitted if chute_id is not None)
    return Loads(rows, tuple(admission.invalid), tuple(admission.invalid_fields))
