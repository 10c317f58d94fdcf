"""What goes into the history and what comes out."""

from typing import Any, Literal, get_args

import attrs

Resolution = Literal["minute", "hour"]
Measure = Literal[
    "utilization",
    "active_instances",
    "total_instances",
    "rank",
    "score",
    "price_input",
    "price_output",
    "price_cached",
    "price_step",
    "price_request",
    "price_hour",
]


@attrs.frozen
class HistoryRow:
    """What is known of one chute in one minute; None is unknown, and leaves a gap.

    :param rank: its position in the ranking, from 1.
    :param price_input: USD per 1M tokens, as are ``price_output`` and ``price_cached``.
    :param price_step: USD per step.
    :param price_request: USD per request.
    :param price_hour: USD per hour of GPU time.
    """

    chute_id: str
    name: str
    utilization: float | None = None
    active_instances: int | None = None
    total_instances: int | None = None
    rank: int | None = None
    score: float | None = None
    price_input: float | None = None
    price_output: float | None = None
    price_cached: float | None = None
    price_step: float | None = None
    price_request: float | None = None
    price_hour: float | None = None


MEASURES: tuple[str, ...] = get_args(Measure)


@attrs.frozen
class Point:
    """One minute or hour of a series.

    :param at: where it begins, Unix time in whole seconds.
    """

    at: int
    mean: float
    least: float
    greatest: float


@attrs.frozen
class CatalogChange:
    """Something that happened to a model.

    :param at: Unix time, whole seconds.
    :param kind: a word, such as ``added``.
    :param detail: further facts that JSON can hold.
    """

    at: int
    kind: str
    chute_id: str | None
    name: str
    detail: Any = None


@attrs.frozen
class FailoverCount:
    """How often, in one hour, a model failed for a reason and another was asked; it says nothing of who asked.

    :param at: where the hour begins, Unix time in whole seconds.
    :param next_model: None where there was no other.
    """

    at: int
    model: str
    reason: str
    next_model: str | None
    count: int
