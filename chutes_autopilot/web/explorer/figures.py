"""How numbers, times and drawn lines look on the page: short, of one width, and a dash for what nobody knows."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise

from chutes_autopilot.web.explorer.markup import Html, element, svg

UNKNOWN = element("span", "–", class_="none", title="not known")  # noqa: RUF001 - a dash is meant
_FIGURE_SPACE = "\u2007"
_MARKS = 48
"""How many points of a sparkline are drawn; more would be closer than its pixels."""


def count(value: float | None) -> Html:
    """A count in three figures: 812, 14.2k, 145k, 1.05M."""
    if value is None:
        return UNKNOWN
    return element("span", short(value), title=f"{value:,.0f}")


def short(value: float) -> str:
    """``value`` in about three figures with k, M or G."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit * 0.9995:
            scaled = value / limit
            figures = f"{scaled:.0f}" if scaled >= 99.95 else f"{scaled:.1f}" if scaled >= 9.995 else f"{scaled:.2f}"
            return (figures.rstrip("0").rstrip(".") if "." in figures else figures) + unit
    return f"{value:.0f}"


def share(value: float | None, digits: int = 0) -> Html:
    """A share of 0..1 as a percentage."""
    return UNKNOWN if value is None else Html(percent(value, digits))


def percent(value: float, digits: int = 0) -> str:
    """The same as a string; what is not zero never reads as zero."""
    figures = f"{value * 100:.{digits}f}"
    return f"<{10**-digits:g}%" if value > 0 and float(figures) == 0 else figures + "%"


def usd(value: float) -> str:
    """US dollars with two to four decimals, as short as is exact to four."""
    if value >= 1000:
        return f"{value:,.0f}"
    whole, _, decimals = f"{value:.4f}".partition(".")
    if value and float(f"{value:.4f}") == 0:
        return f"{value:.1g}"
    return f"{whole}.{decimals.rstrip('0').ljust(2, '0')}"


def amount(value: float | None) -> Html:
    """A sum of money."""
    return UNKNOWN if value is None else Html(f"{value:,.2f}" if value >= 0.1 or not value else usd(value))


def price(value: float | None, *, aligned: bool = True) -> Html:
    """A price, with room to the right so that decimal points stand under each other; 0 is a real price."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return element("span", "free", class_="free")
    figures = usd(value)
    if not aligned:
        return Html(figures)
    decimals = len(figures.partition(".")[2]) if "." in figures else 0
    return Html(figures + _FIGURE_SPACE * max(0, 4 - decimals))


def age(seconds: float | None) -> str:
    """A span of time in its largest unit: 4 s, 12 min, 3 h, 5 d."""
    if seconds is None:
        return "never"
    for limit, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= limit:
            return f"{seconds / limit:.0f} {unit}"
    return f"{seconds:.0f} s"


def day(value: str | None) -> Html:
    """The date of an ISO time."""
    return UNKNOWN if not value else element("time", value[:10], datetime=value, title=value)


def clock(unix: float) -> Html:
    """A moment (Unix seconds) in UTC."""
    moment = datetime.fromtimestamp(unix, UTC)
    return element("time", f"{moment:%H:%M:%S}", datetime=f"{moment:%Y-%m-%dT%H:%M:%SZ}", title=f"{moment:%F %T} UTC")


def sparkline(values: Sequence[float | None], *, width: int = 72, height: int = 18, label: str | None = None) -> Html:
    """Shares of 0..1 as a line over an area; a gap where nothing is known. Without a label it is decoration."""
    points = thinned(values)
    step = width / max(1, len(points) - 1)
    runs: list[list[str]] = []
    joined = False
    for number, value in enumerate(points):
        if value is not None:
            if not joined:
                runs.append([])
            y = height - 1 - (0.0 if value < 0 else 1.0 if value > 1 else value) * (height - 2)
            runs[-1].append(f"{number * step:.1f} {y:.1f}")
        joined = value is not None
    # what is known of one moment only is a short dash, for a point would not be seen
    lines = [f"M{'L'.join(run) if len(run) > 1 else _dash(run[0], width)}" for run in runs]
    areas = [f"{line}V{height}H{line[1:].partition(' ')[0]}Z" for line in lines]
    return svg(
        element("path", d="".join(areas), class_="area"),
        element("path", d="".join(lines), class_="line", vector_effect="non-scaling-stroke"),
        view_box=f"0 0 {width} {height}",
        class_="spark",
        role="img" if label else None,
        aria_label=label,
        aria_hidden=None if label else "true",
        focusable="false",
    )


def _dash(point: str, width: int) -> str:
    x, _, y = point.partition(" ")
    start = min(float(x), width - 4)
    return f"{start:.1f} {y}L{start + 4:.1f} {y}"


def score_bar(idle: float, room: float, refusals: float, widest: float) -> Html:
    """The parts of a score to one scale: what adds above, what takes off below. The figures stand beside it."""
    scale = 100 / widest if widest > 0 else 0.0
    return svg(
        element("rect", x="0", y="0", width=f"{idle * scale:.1f}", height="5", class_="idle"),
        element("rect", x=f"{idle * scale:.1f}", y="0", width=f"{room * scale:.1f}", height="5", class_="room"),
        element("rect", x="0", y="6", width=f"{refusals * scale:.1f}", height="3", class_="refusals"),
        view_box="0 0 100 9",
        class_="bar",
        aria_hidden="true",
        focusable="false",
    )


def thinned(values: Sequence[float | None]) -> Sequence[float | None]:
    """The means of at most as many spans as a sparkline has marks; None where nothing is known of a span."""
    if len(values) <= _MARKS:
        return values
    edges = [mark * len(values) // _MARKS for mark in range(_MARKS + 1)]
    spans = ([value for value in values[start:end] if value is not None] for start, end in pairwise(edges))
    return [sum(span) / len(span) if span else None for span in spans]
