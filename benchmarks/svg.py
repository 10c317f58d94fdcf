"""Line charts as SVG, written by hand: a picture for a document needs no library."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

COLOURS = ("#1f6feb", "#d1242f", "#8250df", "#bf8700", "#1a7f37", "#57606a")
_WIDTH, _HEIGHT, _GAP = 400, 270, 30
_LEFT, _TOP, _BOTTOM = 62, 62, 52


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    :param lines: name to the points (x, lowest, middle, highest y); the same names in every panel.
    :param top: the upper end of the y axis.
    :param format: of the numbers at the y axis, such as ``{:.0%}``.
    """

    title: str
    x_title: str
    x_ticks: Sequence[tuple[float, str]]
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]]
    bottom: float
    top: float
    format: str


def chart(title: str, panels: Sequence[Panel]) -> str:
    """The whole picture: the panels side by side, one legend; points are drawn evenly spaced, in their order."""
    width = len(panels) * (_LEFT + _WIDTH + _GAP)
    height = _TOP + _HEIGHT + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12" role="img"><title>{escape(title)}</title>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, name in enumerate(panels[0].lines):
        x = _LEFT + number * 150
        parts.append(_line([(x, 18), (x + 24, 18)], COLOURS[number % len(COLOURS)]))
        parts.append(_text(x + 30, 22, name))
    for number, panel in enumerate(panels):
        parts += _panel(panel, number * (_LEFT + _WIDTH + _GAP) + _LEFT)
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel, left: float) -> list[str]:
    places = {x: left + _WIDTH * (n + 0.5) / len(panel.x_ticks) for n, (x, _) in enumerate(panel.x_ticks)}

    def y_of(value: float) -> float:
        inside = min(max(value, panel.bottom), panel.top)
        return _TOP + _HEIGHT * (panel.top - inside) / (panel.top - panel.bottom)

    parts = [_text(left, _TOP - 12, panel.title, weight="bold")]
    for step in range(6):
        value = panel.bottom + (panel.top - panel.bottom) * step / 5
        parts.append(_line([(left, y_of(value)), (left + _WIDTH, y_of(value))], "#d0d7de", 1))
        parts.append(_text(left - 6, y_of(value) + 4, panel.format.format(value), "end"))
    for x, label in panel.x_ticks:
        parts.append(_text(places[x], _TOP + _HEIGHT + 18, label, "middle"))
    parts.append(_text(left + _WIDTH / 2, _TOP + _HEIGHT + 38, panel.x_title, "middle"))
    for number, points in enumerate(panel.lines.values()):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(_line([(places[x], y_of(middle)) for x, _, middle, _ in points], colour))
        for x, lowest, middle, highest in points:
            parts.append(_line([(places[x], y_of(lowest)), (places[x], y_of(highest))], colour, 1))
            parts.append(f'<circle cx="{places[x]:.1f}" cy="{y_of(middle):.1f}" r="3" fill="{colour}"/>')
    return parts


def _line(points: Sequence[tuple[float, float]], colour: str, width: float = 2) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="#1f2328">'
        f"{escape(text)}</text>"
    )
