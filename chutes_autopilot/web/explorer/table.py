"""The list of models: one semantic table, which a narrow screen shows as cards."""

from collections.abc import Iterator, Mapping, Sequence

import attrs

from chutes_autopilot.web.explorer import figures
from chutes_autopilot.web.explorer.address import Address
from chutes_autopilot.web.explorer.columns import Column
from chutes_autopilot.web.explorer.markup import Html, element, join
from chutes_autopilot.web.explorer.rows import Row

Loads = Mapping[str, Sequence[float | None]]
"""By chute id: the busy share over the last 24 hours, oldest first."""

FORM = "filters"
"""The one form of the page; whatever stands elsewhere belongs to it by name."""


@attrs.frozen
class Selection:
    """What a query left of all records.

    :param total: how many match; ``rows`` are those of this page.
    :param facets: by parameter: how many records each value would leave.
    :param everything: how many records there are.
    :param sort: the order they are in, with ``-`` in front where it is descending.
    """

    rows: tuple[Row, ...]
    total: int
    everything: int
    limit: int
    offset: int
    facets: Mapping[str, Mapping[str, int]]
    sort: str


@attrs.define(eq=False)
class DrawnCells:
    """Keeps the cells of rows as they were last drawn: most of a page is the same for every address that asks."""

    _kept: dict[tuple[str, int], tuple[Row, Sequence[float | None], Html]] = attrs.field(factory=dict, init=False)
    most: int = 5000

    def cells(self, row: Row, columns: Sequence[Column], load: Sequence[float | None]) -> Html:
        """All cells of one row but that of the name."""
        place = row.key, hash(tuple(column.key for column in columns))
        kept = self._kept.get(place)
        if kept is not None and kept[1] is load and kept[0] == row:
            return kept[2]
        if len(self._kept) >= self.most:
            self._kept.clear()
        drawn = join(_cells(row, columns, load))
        self._kept[place] = row, load, drawn
        return drawn


def models_table(selection: Selection, columns: Sequence[Column], rows: Sequence[Html], address: Address) -> Html:
    """The table with its heads, and with its rows as model_row drew them."""
    return element(
        "table",
        element("caption", f"Models, {_order(selection.sort, columns)}", class_="sr"),
        element("thead", element("tr", _heads(columns, selection.sort))),
        element("tbody", rows, id="rows"),
        class_="models picked" if address.get("cols") else "models",
    )


def _order(sort: str, columns: Sequence[Column]) -> str:
    key = sort.removeprefix("-")
    title = next((column.full for column in columns if column.sort == key), key)
    return f"sorted by {title[:1].lower()}{title[1:]}, {'descending' if sort.startswith('-') else 'ascending'}"


def _heads(columns: Sequence[Column], sort: str) -> Iterator[Html]:
    yield _head("model", "Model", "Name", "name", False, False, sort)
    for column in columns:
        yield _head(column.key, column.title, column.full, column.sort, column.number, column.descending_first, sort)


def _head(key: str, title: str, full: str, name: str, number: bool, descending_first: bool, sort: str) -> Html:
    current = sort.removeprefix("-") == name
    descending = sort.startswith("-")
    following = name if (descending if current else not descending_first) else f"-{name}"
    return element(
        "th",
        element(
            "button",
            element("span", title),
            element("span", f": {full}", class_="sr") if full != title else None,
            element("span", ("▼" if descending else "▲") if current else "", class_="order", aria_hidden="true"),
            type="submit",
            form=FORM,
            name="sort",
            value=following,
            id=f"sort-{key}",
            title=full,
        ),
        scope="col",
        class_=f"c-{key} n" if number else f"c-{key}",
        aria_sort=("descending" if descending else "ascending") if current else None,
    )


def model_row(row: Row, columns: Sequence[Column], address: Address, loads: Loads, drawn: DrawnCells) -> Html:
    """One model."""
    return element(
        "tr",
        _name_cell(row, address),
        drawn.cells(row, columns, loads.get(row.chute_id or "", ())),
        id=f"row-{row.key}",
        class_="chosen" if address.get("model") == row.key else None,
    )


def _name_cell(row: Row, address: Address) -> Html:
    owner, slash, base = row.name.rpartition("/")
    return element(
        "th",
        element(
            "div",
            element(
                "input",
                type="checkbox",
                form=FORM,
                name="compare",
                value=row.key,
                id=f"pick-{row.key}",
                checked=row.key in address.all("compare"),
                aria_label=f"Compare {row.name}",
            ),
            hot_mark(row),
            element(
                "a",
                element("span", owner + slash, class_="org") if slash else None,
                element("span", base, class_="base"),
                href=address.with_(model=row.key, compare=None).href,
                id=f"open-{row.key}",
                class_="name",
                title=row.name,
            ),
            conflict_mark(row),
            tee_mark(row),
            copy_button(row.name, f"copy-{row.key}", f"Copy the name {row.name}"),
        ),
        scope="row",
        class_="c-model",
    )


def _cells(row: Row, columns: Sequence[Column], load: Sequence[float | None]) -> Iterator[Html]:
    priced = sum(column.priced for column in columns)
    for column in columns:
        class_ = f"c-{column.key} n" if column.number else f"c-{column.key}"
        if column.priced and row.sold_by is not None:
            if priced:
                usd, unit = row.sold_by
                yield element(
                    "td",
                    figures.usd(usd),
                    element("span", f" / {unit}", class_="unit"),
                    class_="c-price n",
                    colspan=priced,
                    data_label="Price, $",
                )
            priced = 0
            continue
        label = f"{column.title}, $/1M" if column.priced else column.title  # a card has no head that says it
        yield element("td", column.cell(row, load), class_=class_, data_label=label)


def hot_mark(row: Row) -> Html:
    """A dot: some instance is ready, none is, or nobody knows."""
    state, said = {True: ("hot", "hot"), False: ("cold", "cold: no instance is ready"), None: ("", "not known")}[
        row.hot
    ]
    return element("span", element("span", said, class_="sr"), class_=f"dot {state}".strip(), title=said)


def tee_mark(row: Row) -> Html | None:
    """Whether it runs in a trusted execution environment; sources that disagree are no yes."""
    if row.tee_conflict:
        return element("span", "TEE?", class_="mark warn", title="the sources disagree, so it does not count as TEE")
    if row.tee:
        return element("span", "TEE", class_="mark tee", title="runs in a trusted execution environment")
    return None


def conflict_mark(row: Row) -> Html | None:
    """That the sources disagree on some field."""
    fields = [field for field in row.conflicts if field not in ("tee", "name")]
    if not fields:
        return None
    said = "the sources disagree on " + ", ".join(fields)
    return element("span", "≠", element("span", f" {said}", class_="sr"), class_="mark warn", title=said)


def copy_button(value: str, id: str, label: str) -> Html:
    """A button that copies ``value``; it is shown only where scripts run."""
    return element(
        "button", element("span", "", aria_hidden="true"), type="button", class_="copy", id=id,
        data_copy=value, aria_label=label, title="Copy",
    )  # fmt: skip


def pager(selection: Selection, address: Address) -> Html | None:
    """The way to the rows before and after these."""
    if selection.total <= selection.limit and not selection.offset:
        return None
    last = min(selection.total, selection.offset + selection.limit)
    before = max(0, selection.offset - selection.limit) or None
    return element(
        "nav",
        element("a", "Previous", href=address.with_(offset=before).href, id="previous", rel="prev")
        if selection.offset
        else element("span", "Previous"),
        element("span", f"{selection.offset + 1}–{last} of {selection.total}"),  # noqa: RUF001
        element("a", "Next", href=address.with_(offset=last).href, id="next", rel="next")
        if last < selection.total
        else element("span", "Next"),
        class_="pager",
        aria_label="Pages of the list",
    )
