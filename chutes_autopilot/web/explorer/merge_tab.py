"""How the sources were joined, and all that did not fit: where they disagree, what may be one, what stands alone."""

from collections.abc import Iterable, Iterator, Sequence

import attrs

from chutes_autopilot.explorer.conflicts import FieldConflict
from chutes_autopilot.explorer.merge import Merged, Ref
from chutes_autopilot.explorer.records import SOURCES
from chutes_autopilot.web.explorer.links import to_panel
from chutes_autopilot.web.explorer.markup import Html, element
from chutes_autopilot.web.explorer.panels import shown
from chutes_autopilot.web.explorer.states import LONG_NAMES, NAMES

_RULES = {
    "chute_id": "same chute id",
    "name": "same name",
    "casefold": "same name but for case",
    "norm_org": "same organisation and normal form",
    "norm": "same normal form",
    "joined": "same letters and digits",
    "fuzzy": "alike",
}
_MOST = 500


def merge_tab(merged: Merged) -> Html:
    """Everything of the tab."""
    prices = [conflict for conflict in merged.field_conflicts if conflict.delta_abs is not None]
    others = [conflict for conflict in merged.field_conflicts if conflict.delta_abs is None]
    return element(
        "div",
        element(
            "header",
            element("h1", "How the lists were merged"),
            element("a", "The same as JSON", href="/api/merge/report", id="report-json", class_="chip"),
        ),
        _tiles(merged),
        _section("prices", "Prices on which they disagree",
                 "USD per 1M tokens, from 0.01 percent on. The listing counts, for it is computed now.",
                 ("Model", "Price", ">Listing", ">/v1/models", ">Difference", ">%"), map(_price, prices), len(prices)),
        _section("names", "Names and marks on which they disagree",
                 "A model counts as TEE only where no source says otherwise.",
                 ("Model", "Field", "Listing", "/v1/models"),
                 (_line(_Named(c.name, c.chute_id), c.field, c.chutes, c.v1) for c in others), len(others)),
        _section("suggestions", "May be one model",
                 "Their names say so, but they are two chutes, or only alike: nothing is merged.",
                 ("/v1/models", "Listing", "Rule", ">Score", "Held back by"),
                 (_line(_named(s.v1), _named(s.chutes), _RULES[s.rule], _Number(f"{s.score:.1f}"), s.blocked_by)
                  for s in merged.suggestions), len(merged.suggestions)),
        _section("id-conflicts", "One name, two chute ids", "The platform knows two chutes of this name.",
                 ("/v1/models", "Its id", "Listing", "Its id", "Rule"),
                 (_line(_named(c.v1), c.v1.chute_id, _named(c.chutes), c.chutes.chute_id, _RULES[c.rule])
                  for c in merged.id_conflicts), len(merged.id_conflicts)),
        _section("ambiguous", "More than one could be meant", "Several records share the key, so none is joined by it.",
                 ("Key", "Rule", "/v1/models", "Listing"),
                 (_line(a.key, _RULES[a.rule], _names(a.v1), _names(a.chutes)) for a in merged.ambiguous),
                 len(merged.ambiguous)),
        *(_alone(source, merged.only_in.get(source, ())) for source in SOURCES),
        _section("invalid", "Records left out", "One bad record hides nothing else.",
                 ("Source", ">Index", "Reason"),
                 (_line(LONG_NAMES[i.source], _Number(str(i.index)), i.reason) for i in merged.invalid),
                 len(merged.invalid)),
        _section("invalid-fields", "Values of the wrong type", "They count as missing; the record stays.",
                 ("Source", ">Index", "Field"),
                 (_line(LONG_NAMES[i.source], _Number(str(i.index)), i.field) for i in merged.invalid_fields),
                 len(merged.invalid_fields)),
        class_="sheet-page merge",
    )  # fmt: skip


def _tiles(merged: Merged) -> Html:
    rules = ", ".join(f"{count} by {_RULES[rule]}" for rule, count in merged.by_rule.items()) or "none"
    tiles = [("Models", len(merged.records), "merged records")]
    tiles += [(NAMES[source], merged.inputs.get(source, 0), f"records of {LONG_NAMES[source]}") for source in SOURCES]
    tiles += [("Joined", sum(merged.by_rule.values()), rules)]
    tiles += [("Disagreements", len(merged.field_conflicts), "fields, in joined models")]
    return element(
        "dl",
        (
            element("div", element("dt", title), element("dd", f"{count:,}", element("span", said)))
            for title, count, said in tiles
        ),
        class_="tiles",
    )


def _section(id: str, title: str, said: str, heads: Sequence[str], lines: Iterable[Html], count: int) -> Html | None:
    if not count:
        return None
    return element(
        "section",
        element("h2", title, element("span", str(count), class_="count"), id=f"{id}-title"),
        element("p", said, class_="dim"),
        element(
            "div",
            element(
                "table",
                element("thead", element("tr", (_head(head) for head in heads))),
                element("tbody", _first(lines)),
                class_="plain",
                aria_labelledby=f"{id}-title",
            ),
            class_="wide",
            tabindex="0",
            role="region",
            aria_labelledby=f"{id}-title",
        ),
        element("p", f"The first {_MOST} of {count}.", class_="dim") if count > _MOST else None,
        id=id,
    )


def _first(lines: Iterable[Html]) -> Iterator[Html]:
    for number, line in enumerate(lines):
        if number == _MOST:
            return
        yield line


class _Number(str):
    """A cell whose text stands to the right."""

    __slots__ = ()


@attrs.frozen
class _Named:
    """A cell that is a model's name.

    :param chute_id: also its key; a record of the catalog that has none may have a number behind its name.
    """

    name: str
    chute_id: str | None


def _named(ref: Ref) -> _Named:
    return _Named(ref.name, ref.chute_id)


def _head(title: str) -> Html:
    return element("th", title.removeprefix(">"), scope="col", class_="n" if title.startswith(">") else None)


def _line(*cells: object) -> Html:
    return element("tr", map(_cell, cells))


def _cell(cell: object) -> Html:
    if isinstance(cell, _Named):
        return element("td", to_panel(cell.name, cell.chute_id))
    return element("td", shown(cell), class_="n" if isinstance(cell, _Number) else None)


def _price(conflict: FieldConflict) -> Html:
    percent = "–" if conflict.delta_pct is None else f"{conflict.delta_pct:+.1f}"  # noqa: RUF001 - a dash is meant
    return _line(
        _Named(conflict.name, conflict.chute_id),
        conflict.field.removeprefix("price.").replace("_", " "),
        *(_Number(f"{usd:.4f}") for usd in (conflict.chutes, conflict.v1)),
        _Number(f"{conflict.delta_abs:+.4f}"),
        _Number(percent),
    )


def _names(refs: Sequence[Ref]) -> str:
    return ", ".join(ref.name for ref in refs)


def _alone(source: str, refs: Sequence[Ref]) -> Html | None:
    if not refs:
        return None
    return element(
        "details",
        element("summary", f"Only in {LONG_NAMES[source]}", element("span", str(len(refs)), class_="count")),
        element(
            "ul",
            (
                element(
                    "li",
                    to_panel(ref.name, ref.chute_id),
                    element("span", f" {ref.chute_id}", class_="dim") if ref.chute_id else None,
                )
                for ref in refs[:_MOST]
            ),
            class_="names",
        ),
        id=f"only-{source}",
    )
