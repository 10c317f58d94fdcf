"""What happened to the models: added, removed, and prices and fields that changed, newest first."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby

from chutes_autopilot.explorer.changes import Change, FieldChange
from chutes_autopilot.explorer.prices import UNITS
from chutes_autopilot.web.explorer import figures
from chutes_autopilot.web.explorer.links import to_panel
from chutes_autopilot.web.explorer.markup import Html, element
from chutes_autopilot.web.explorer.panels import shown

_WORDS = {
    "model.added": ("added", "good"),
    "model.removed": ("removed", "bad"),
    "price.changed": ("price", "warn"),
    "model.changed": ("changed", ""),
}
_UNITS = {
    "usd_per_1m_tokens": "$/1M tokens",
    "usd_per_step": "$/step",
    "usd_per_request": "$/request",
    "usd_per_hour": "$/GPU hour",
}


def changes_tab(changes: Sequence[Change]) -> Html:
    """Everything of the tab.

    :param changes: those told of last come first; they are shown by their own times.
    """
    return element(
        "div",
        element(
            "header",
            element("h1", "What changed"),
            element("span", "times in UTC", class_="dim"),
            element("a", "Atom feed", href="/feed.atom", id="feed", class_="chip"),
            element("a", "Price changes as JSON", href="/api/prices/changes", id="prices-json", class_="chip"),
        ),
        _days(changes) if changes else _none(),
        class_="sheet-page changes",
    )


def _none() -> Html:
    return element(
        "section",
        element("h2", "Nothing has changed"),
        element("p", "Models that come and go and prices in USD that change appear here. The first lists after a start "
                     "say nothing, and a model that is missing for a moment was never removed."),
        class_="state empty",
    )  # fmt: skip


def _days(changes: Sequence[Change]) -> Iterator[Html]:
    # a removal is told of when it is sure, and dated when the model was first missing
    newest = sorted(changes, key=lambda change: change.at, reverse=True)
    for day, group in groupby(newest, key=lambda change: datetime.fromtimestamp(change.at, UTC).date()):
        yield element(
            "section",
            element("h2", element("time", f"{day:%A}, {day.day} {day:%B %Y}", datetime=day.isoformat())),
            element("ul", map(_change, group), class_="timeline"),
        )


def _change(change: Change) -> Html:
    word, tone = _WORDS[change.type]
    return element(
        "li",
        figures.clock(change.at),
        element("span", word, class_=f"mark {tone}".strip()),
        to_panel(change.name, change.key),
        element("ul", map(_field, change.fields), class_="deltas") if change.fields else None,
    )


def _field(change: FieldChange) -> Html:
    if change.field in UNITS:
        before, after = figures.usd(change.before), figures.usd(change.after)
        unit = _UNITS.get(change.unit or "", "")
        rise = change.after > change.before
        delta = f"{(change.after / change.before - 1) * 100:+.0f}%" if change.before else "was free"
        trend = element("span", delta, class_="up" if rise else "down")
        name = change.field.removeprefix("price.").replace("_", " ")
    else:
        before, after, unit, trend, name = shown(change.before), shown(change.after), "", None, change.field
    return element(
        "li",
        element("span", name, class_="dim"),
        " ",
        element("del", before),
        element("span", " → ", class_="arrow", aria_label="became"),
        element("ins", after),
        element("span", f" {unit}", class_="dim") if unit else None,
        " ",
        trend,
    )
