"""The columns of the list of models: what each is called, how it is sorted, and how one cell looks."""

from collections.abc import Callable, Sequence

import attrs

from chutes_autopilot.web.explorer import figures
from chutes_autopilot.web.explorer.figures import UNKNOWN
from chutes_autopilot.web.explorer.markup import Html, element, join
from chutes_autopilot.web.explorer.rows import Row

BUSY = 0.75
"""From this busy share on a model is shown as nearly full."""
REFUSING = 0.01
"""From this share of refused requests on a model is shown as rate limited."""


@attrs.frozen
class Column:
    """One column.

    :param title: in its head; ``full`` is what a screen reader and the picker say.
    :param sort: the sort key of the query; a leading ``-`` in ``first`` means that the first press sorts descending.
    :param group: the prices' columns share one cell where a model is not sold by tokens.
    """

    key: str
    title: str
    full: str
    sort: str
    cell: Callable[[Row, Sequence[float | None]], Html]
    number: bool = False
    descending_first: bool = False
    priced: bool = False
    shown: bool = True


def _word(value: str | None) -> Html:
    return UNKNOWN if value is None else element("span", value, title=value)


def _modalities(row: Row, _load: Sequence[float | None]) -> Html:
    if row.inputs is None and row.outputs is None:
        return UNKNOWN
    inward, outward = ("+".join(side) if side else "?" for side in (row.inputs, row.outputs))
    return element(
        "span",
        inward,
        element("span", " → ", class_="arrow", aria_label=" to "),
        outward,
        class_="inferred" if row.modalities_inferred else None,
        title=f"{inward} to {outward}" + (" (inferred from the template)" if row.modalities_inferred else ""),
    )


def _first_seen(row: Row, _load: Sequence[float | None]) -> Html:
    day = figures.day(row.first_seen)
    return element("span", day, class_="inferred") if row.recorded_since else day  # nobody says when it was made


def _utilization(row: Row, load: Sequence[float | None]) -> Html:
    known = any(value is not None for value in load)
    drawing = figures.sparkline(load) if known else element("span", class_="spark")
    if row.utilization is None:
        return join((UNKNOWN, drawing))
    level = "full" if row.utilization >= BUSY else None
    return join((element("span", figures.percent(row.utilization), class_=level), drawing))


def _rate_limited(row: Row, _load: Sequence[float | None]) -> Html:
    if row.rate_limited is None:
        return UNKNOWN
    level = "limited" if row.rate_limited >= REFUSING else "zero" if row.rate_limited == 0 else None
    return element("span", figures.percent(row.rate_limited), class_=level)


def _instances(row: Row, _load: Sequence[float | None]) -> Html:
    if row.active_instances is None:
        return UNKNOWN
    total = row.total_instances
    if total is None or total == row.active_instances:
        return Html(f"{row.active_instances:g}")
    said = f"{row.active_instances:g} of {total:g} active"
    return element("span", f"{row.active_instances:g}", element("span", f"/{total:g}", class_="dim"), title=said)


COLUMNS: tuple[Column, ...] = (
    Column("kind", "Kind", "Kind", "kind", lambda row, _: _word(row.kind)),
    Column("modalities", "In → out", "Input and output modalities", "modality", _modalities),
    Column("context", "Context", "Context length, tokens", "context_length",
           lambda row, _: figures.count(row.context_length), number=True, descending_first=True),
    Column("max_output", "Max out", "Longest output, tokens", "max_output_length",
           lambda row, _: figures.count(row.max_output_length), number=True, descending_first=True, shown=False),
    Column("input", "Input", "Input price, USD per 1M tokens", "price_input",
           lambda row, _: figures.price(row.input_price), number=True, priced=True),
    Column("cached", "Cached", "Price of cached input, USD per 1M tokens", "price_cached",
           lambda row, _: figures.price(row.cached_price), number=True, priced=True),
    Column("output", "Output", "Output price, USD per 1M tokens", "price_output",
           lambda row, _: figures.price(row.output_price), number=True, priced=True),
    Column("blended", "3:1", "Blended price of 3 input tokens to 1 output token, USD per 1M tokens", "price_blended",
           lambda row, _: figures.price(row.blended_price), number=True, priced=True),
    Column("utilization", "Load, 24 h", "Utilization now, and over 24 hours", "utilization", _utilization,
           number=True, descending_first=True),
    Column("rate_limited", "Refused", "Share of requests refused for rate limits, 5 minutes", "rate_limited",
           _rate_limited, number=True, descending_first=True),
    Column("instances", "Inst.", "Active instances", "instances", _instances, number=True, descending_first=True),
    Column("requests", "Req/h", "Requests in the last hour", "requests",
           lambda row, _: figures.count(row.requests), number=True, descending_first=True),
    Column("quantization", "Quant", "Quantization", "quantization", lambda row, _: _word(row.quantization)),
    Column("engine", "Engine", "Inference engine", "engine", lambda row, _: _word(row.engine)),
    Column("first_seen", "Since", "First seen", "first_seen",
           _first_seen, descending_first=True),
    Column("owner", "Owner", "Owner", "owner", lambda row, _: _word(row.owner), shown=False),
    Column("template", "Template", "Template", "template", lambda row, _: _word(row.template), shown=False),
    Column("features", "Features", "Features", "features",
           lambda row, _: _word(", ".join(row.features) if row.features else None), shown=False),
    Column("gpus", "GPUs", "GPU models", "gpus",
           lambda row, _: _word(", ".join(row.gpus) if row.gpus else None), shown=False),
    Column("invocations", "Calls", "Invocations so far", "invocations",
           lambda row, _: figures.count(row.invocations), number=True, descending_first=True, shown=False),
)  # fmt: skip
"""All but the model itself, which always is the first."""


USUAL: tuple[Column, ...] = tuple(column for column in COLUMNS if column.shown)
"""The ones that are shown where none is named."""


def chosen_columns(keys: Sequence[str]) -> tuple[Column, ...]:
    """The columns of these keys in their own order; the usual ones where none is named."""
    return tuple(column for column in COLUMNS if column.key in keys) or USUAL
