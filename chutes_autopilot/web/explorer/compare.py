"""Two to four models beside each other, and what a given use would cost with each."""

from collections.abc import Callable, Iterator, Sequence

import attrs

from chutes_autopilot.web.explorer import figures
from chutes_autopilot.web.explorer.address import Address
from chutes_autopilot.web.explorer.figures import UNKNOWN
from chutes_autopilot.web.explorer.markup import Html, element, join
from chutes_autopilot.web.explorer.panels import close_link
from chutes_autopilot.web.explorer.rows import Row
from chutes_autopilot.web.explorer.table import tee_mark

MOST = 4
_LARGEST = 10**12
_DEFAULTS = {"requests": 1000, "input": 2000, "cached": 0, "output": 500}
_LABELS = {
    "requests": "Requests a day",
    "input": "Input tokens each",
    "cached": "Of these cached",
    "output": "Output tokens each",
}


@attrs.frozen
class Usage:
    """What the calculator multiplies with: requests a day, and tokens of one request.

    :param cached: how many of the input tokens are read from the cache.
    """

    requests: int
    input: int
    cached: int
    output: int

    @classmethod
    def of(cls, address: Address) -> "Usage":
        """From the address; what is no count there is its default."""
        given = {name: _count(address.get(name), default) for name, default in _DEFAULTS.items()}
        given["cached"] = min(given["cached"], given["input"])
        return cls(**given)

    def daily_cost(self, row: Row) -> float | None:
        """USD a day; None unless the prices of tokens are known.

        Where no price of cached input is known, cached tokens cost what others do.
        """
        if row.input_price is None or row.output_price is None:
            return None
        cached_price = row.input_price if row.cached_price is None else row.cached_price
        each = (
            (self.input - self.cached) * row.input_price + self.cached * cached_price + self.output * row.output_price
        )
        return self.requests * each / 1e6


def _count(value: str | None, default: int) -> int:
    if value is None or not value.isascii() or not value.isdigit() or len(value) > 12:
        return default
    return min(int(value), _LARGEST)


_LINES: tuple[tuple[str, Callable[[Row], object], Callable[[Row], float | None] | None, bool], ...] = (
    ("Kind", lambda row: row.kind or UNKNOWN, None, False),
    ("Hot", lambda row: UNKNOWN if row.hot is None else "yes" if row.hot else "no", None, False),
    ("Input", lambda row: _words(row.inputs), None, False),
    ("Output", lambda row: _words(row.outputs), None, False),
    ("Context", lambda row: figures.count(row.context_length), lambda row: row.context_length, True),
    ("Longest output", lambda row: figures.count(row.max_output_length), lambda row: row.max_output_length, True),
    ("Input, $/1M", lambda row: figures.price(row.input_price, aligned=False), lambda row: row.input_price, False),
    ("Cached, $/1M", lambda row: figures.price(row.cached_price, aligned=False), lambda row: row.cached_price, False),
    ("Output, $/1M", lambda row: figures.price(row.output_price, aligned=False), lambda row: row.output_price, False),
    ("Blended 3:1", lambda row: figures.price(row.blended_price, aligned=False), lambda row: row.blended_price, False),
    ("Load now", lambda row: figures.share(row.utilization), lambda row: row.utilization, False),
    ("Refused, 5 min", lambda row: figures.share(row.rate_limited), lambda row: row.rate_limited, False),
    ("Active instances", lambda row: figures.count(row.active_instances), lambda row: row.active_instances, True),
    ("Requests/h", lambda row: figures.count(row.requests), None, False),
    ("Quantization", lambda row: row.quantization or UNKNOWN, None, False),
    ("Engine", lambda row: row.engine or UNKNOWN, None, False),
    ("Features", lambda row: _words(row.features), None, False),
    ("First seen", lambda row: figures.day(row.first_seen), None, False),
)


def compare_panel(rows: Sequence[Row], address: Address) -> Html:
    """The models of ``?compare=`` beside each other; with one, how to add another."""
    usage = Usage.of(address)
    return element(
        "aside",
        element(
            "header",
            element("h2", f"Compare {len(rows)} models" if len(rows) != 1 else "Compare", id="panel-title"),
            close_link(address.with_(compare=None, **dict.fromkeys(_DEFAULTS))),
        ),
        element("p", "Tick one to three more models in the list.", class_="dim") if len(rows) < 2 else None,
        _calculator(usage, address),
        element(
            "div",
            _side_by_side(rows, usage, address),
            class_="wide",
            tabindex="0",
            role="region",
            aria_label="Comparison",
        ),
        id="panel",
        class_="panel comparing",
        aria_labelledby="panel-title",
        tabindex="-1",
    )


def _calculator(usage: Usage, address: Address) -> Html:
    return element(
        "form",
        element("h3", "Cost of a use"),
        (
            element(
                "label",
                element("span", said),
                element("input", type="number", name=name, id=f"use-{name}", value=getattr(usage, name), min="0",
                        max=str(_LARGEST - 1), step="1", inputmode="numeric"),
            )
            for name, said in _LABELS.items()
        ),
        (
            element("input", type="hidden", name=name, value=value)
            for name, value in address.parameters
            if name not in _DEFAULTS
        ),
        element("button", "Calculate", type="submit", class_="apply"),
        method="get",
        action=address.path,
        class_="calculator",
        id="calculator",
    )  # fmt: skip


def _side_by_side(rows: Sequence[Row], usage: Usage, address: Address) -> Html:
    return element(
        "table",
        element("caption", "Comparison", class_="sr"),
        element("thead", element("tr", element("td"), (_head(row, rows, address) for row in rows))),
        element("tbody", _cost_lines(rows, usage), _lines(rows)),
        class_="comparison",
    )


def _head(row: Row, rows: Sequence[Row], address: Address) -> Html:
    rest = ",".join(other.key for other in rows if other is not row) or None
    return element(
        "th",
        element("span", row.name.rpartition("/")[2], title=row.name),
        " ",
        tee_mark(row),
        element("a", "remove", href=address.with_(compare=rest).href, id=f"drop-{row.key}",
                aria_label=f"Remove {row.name} from the comparison"),
        scope="col",
    )  # fmt: skip


def _cost_lines(rows: Sequence[Row], usage: Usage) -> Iterator[Html]:
    for title, days in (("$ a day", 1), ("$ in 30 days", 30)):
        costs = [None if (cost := usage.daily_cost(row)) is None else cost * days for row in rows]
        cells = [figures.amount(cost) for cost in costs]
        yield _line(title, cells, costs, False, class_="cost")


def _lines(rows: Sequence[Row]) -> Iterator[Html]:
    for title, cell, measure, more_is_better in _LINES:
        measures = [None if measure is None else measure(row) for row in rows]
        yield _line(title, [cell(row) for row in rows], measures, more_is_better)


def _line(
    title: str,
    cells: Sequence[object],
    measures: Sequence[float | None],
    more_is_better: bool,
    class_: str | None = None,
) -> Html:
    known = {value for value in measures if value is not None}
    best = None if len(known) < 2 else max(known) if more_is_better else min(known)
    return element(
        "tr",
        element("th", title, scope="row"),
        (
            element(
                "td",
                cell,
                element("span", " best", class_="sr") if best is not None and measure == best else None,
                class_="best" if best is not None and measure == best else None,
            )
            for cell, measure in zip(cells, measures, strict=True)
        ),
        class_=class_,
    )


def _words(values: Sequence[str] | None) -> Html:
    return UNKNOWN if values is None else join((", ".join(values) or "none",))
