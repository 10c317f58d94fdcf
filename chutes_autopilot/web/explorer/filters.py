"""What narrows the list: the search field, chips with counts, the other filters, the columns, and what leaves here."""

from collections.abc import Iterator, Mapping, Sequence

from chutes_autopilot.web.explorer import figures
from chutes_autopilot.web.explorer.address import FILTERS, Address
from chutes_autopilot.web.explorer.columns import COLUMNS, Column
from chutes_autopilot.web.explorer.markup import Html, element
from chutes_autopilot.web.explorer.table import FORM, Selection

_SELECTS = (
    ("modality", "Modality"),
    ("feature", "Feature"),
    ("quantization", "Quantization"),
    ("template", "Template"),
    ("owner", "Owner"),
    ("source", "Source"),
)
_SOURCES = {"chutes": "listing", "v1": "/v1/models", "utilization": "live feed"}
_CONTEXTS = (8_000, 32_000, 64_000, 128_000, 200_000, 1_000_000)
_PRICES = ("0", "0.1", "0.25", "0.5", "1", "2", "5")
_CHIPS = frozenset({"kind", "tee", "hot", "conflict"})
_NAMES = {
    "q": "Search", "kind": "Kind", "tee": "TEE", "hot": "Hot", "conflict": "Conflicts", "context_min": "Context from",
    "price_max": "Input price up to", **dict(_SELECTS),
}  # fmt: skip
_EXPORTS = (("csv", "CSV"), ("ndjson", "NDJSON"), ("md", "Markdown"))


def toolbar(selection: Selection, columns: Sequence[Column], address: Address) -> Html:
    """The form and the chips; the table's heads and the pick boxes are parts of the form too."""
    return element(
        "div",
        element(
            "form",
            _search(selection, address),
            _more(selection, address),
            _columns(columns),
            _exports(address),
            _summary(selection),
            (
                element("input", type="hidden", name=name, value=value)
                for name, value in address.parameters
                if name in _CHIPS or name in ("model", "limit")
            ),
            id=FORM,
            method="get",
            action="/",
            role="search",
        ),
        _chips(selection, address),
        class_="toolbar",
    )


def _summary(selection: Selection) -> Html:
    some = selection.total != selection.everything
    said = f"{selection.total} of {selection.everything} models" if some else f"{selection.total} models"
    return element(
        "div",
        element("p", "USD per 1M tokens unless another unit is named", class_="dim"),
        element("p", said, class_="total"),
        element("button", "Compare ticked", type="submit", name="sort", value=selection.sort, id="compare-ticked",
                class_="apply"),
        class_="summary",
    )  # fmt: skip


def _search(selection: Selection, address: Address) -> Html:
    # what Enter presses is the form's first button: it must keep the order
    return element(
        "div",
        element("label", "Search models", for_="q", class_="sr"),
        element(
            "input", type="search", name="q", id="q", value=address.get("q") or "", maxlength="200",
            placeholder="Search models", autocomplete="off", spellcheck="false",
        ),
        element("kbd", "/", aria_hidden="true"),
        element("button", "Search", type="submit", name="sort", value=selection.sort, id="apply", class_="apply"),
        class_="search",
    )  # fmt: skip


def _menu(id: str, title: str, content: object, *, count: int = 0) -> Html:
    return element(
        "details",
        element("summary", title, element("span", str(count), class_="count") if count else None),
        element("div", content, class_="sheet"),
        class_="menu",
        id=id,
    )


def _more(selection: Selection, address: Address) -> Html:
    active = sum(name not in _CHIPS and name != "q" for name, _ in address.filters)
    fields = [
        _select(name, title, _facet_options(selection.facets.get(name, {}), name, address.get(name)), address)
        for name, title in _SELECTS
    ]
    contexts = [(str(value), f"{figures.short(value)} tokens") for value in _CONTEXTS]
    fields.append(_select("context_min", "Context from", contexts, address))
    fields.append(_select("price_max", "Input price up to", [(p, f"${p} / 1M") for p in _PRICES], address))
    return _menu("more", "Filters", (fields, _apply()), count=active)


def _facet_options(facet: Mapping[str, int], name: str, chosen: str | None) -> list[tuple[str, str]]:
    values = dict(facet)
    if chosen is not None:
        values.setdefault(chosen, 0)
    ordered = sorted(values, key=lambda value: (-values[value], value))
    return [
        (value, f"{_SOURCES.get(value, value) if name == 'source' else value} ({values[value]})") for value in ordered
    ]


def _select(name: str, title: str, options: Sequence[tuple[str, str]], address: Address) -> Html:
    chosen = address.get(name)
    if chosen is not None and chosen not in dict(options):
        options = [*options, (chosen, chosen)]
    return element(
        "label",
        element("span", title),
        element(
            "select",
            element("option", "any", value=""),
            (element("option", said, value=value, selected=value == chosen) for value, said in options),
            name=name,
            id=f"filter-{name}",
        ),
    )


def _columns(columns: Sequence[Column]) -> Html:
    boxes = (
        element(
            "label",
            element("input", type="checkbox", name="cols", value=column.key, id=f"col-{column.key}",
                    checked=column in columns, data_usual=column.shown),
            column.full,
        )
        for column in COLUMNS
    )  # fmt: skip
    return _menu("columns", "Columns", (boxes, _apply()))


def _apply() -> Html:
    return element("button", "Apply", type="submit", class_="apply")


def _exports(address: Address) -> Html:
    wanted = address.only((*FILTERS, "sort"))
    links = (
        element(
            "a", title, id=f"export-{name}", download=True,
            href=Address("/api/catalog", (*wanted.parameters, ("format", name))).href,
        )
        for name, title in _EXPORTS
    )  # fmt: skip
    return _menu("export", "Export", links)


def _chips(selection: Selection, address: Address) -> Html:
    return element("ul", _each_chip(selection, address), class_="chips", aria_label="Quick filters")


def _each_chip(selection: Selection, address: Address) -> Iterator[Html]:
    facets = selection.facets
    kinds = facets.get("kind", {})
    chosen = address.get("kind")
    everything = selection.total if chosen is None else sum(kinds.values())
    yield _chip("All", everything, address.with_(kind=None, offset=None), chosen is None, "all")
    for kind, count in kinds.items():
        yield _chip(kind, count, address.toggled("kind", kind), chosen == kind, f"kind-{kind}")
    if chosen is not None and chosen not in kinds:
        yield _chip(chosen, 0, address.toggled("kind", chosen), True, f"kind-{chosen}")
    for name, title in (("tee", "TEE"), ("hot", "Hot"), ("conflict", "Conflicts")):
        count = facets.get(name, {}).get("true", 0)
        yield _chip(title, count, address.toggled(name, "true"), address.get(name) == "true", name, apart=name == "tee")
    if address.filters:
        everything_again = address.with_(**dict.fromkeys((*FILTERS, "offset")))
        yield element("li", element("a", "Clear", href=everything_again.href, id="clear-filters", class_="clear"))


def _chip(title: str, count: int, to: Address, active: bool, id: str, *, apart: bool = False) -> Html:
    link = element(
        "a",
        title,
        element("span", str(count), class_="count"),
        href=to.href,
        id=f"chip-{id}",
        class_="chip",
        aria_current="true" if active else None,
    )
    return element("li", link, class_="apart" if apart else None)


def active_filters(address: Address) -> Html:
    """Each filter with a link that takes it off again."""
    links = (
        element(
            "a",
            f"{_NAMES.get(name, name)}: {value}" if value != "true" else _NAMES.get(name, name),
            element("span", " ×", aria_hidden="true"),  # noqa: RUF001
            href=address.with_(**{name: None, "offset": None}).href,
            class_="chip",
            aria_label=f"Remove the filter {_NAMES.get(name, name)}: {value}",
        )
        for name, value in address.filters
    )
    everything = address.with_(**dict.fromkeys((*FILTERS, "offset")))
    return element("p", links, element("a", "Clear all", href=everything.href, id="clear", class_="chip strong"))
