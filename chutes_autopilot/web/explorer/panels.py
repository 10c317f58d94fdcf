"""The side panel of one model: charts, how to call it, and every field with the source it comes from."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from chutes_autopilot.web.explorer import figures
from chutes_autopilot.web.explorer.address import Address
from chutes_autopilot.web.explorer.markup import Html, element
from chutes_autopilot.web.explorer.rows import Row
from chutes_autopilot.web.explorer.table import conflict_mark, copy_button, hot_mark, tee_mark

_SOURCES = {"chutes": "listing", "v1": "/v1/models", "utilization": "live feed", "history": "history here"}
_RELAYED = ("chat", "vision")
_CHARTS = (("utilization", "Utilization"), ("instances", "Instances"), ("price", "Price, USD per 1M tokens"))
_SPANS = (("24h", "24 h"), ("7d", "7 d"), ("90d", "90 d"))


def model_panel(row: Row, address: Address, load: Sequence[float | None], service_url: str, why: str | None) -> Html:
    """One model.

    :param load: its busy share over 24 hours, drawn where scripts do not run.
    :param service_url: where this service is reached, without a path.
    :param why: the sentence of the ranking, where it is ranked.
    """
    return element(
        "aside",
        _head(row, address),
        element("p", element("strong", "In the ranking: "), why, class_="why") if why else None,
        _charts(row, load),
        _snippets(row, service_url),
        _fields(row),
        id="panel",
        class_="panel",
        aria_labelledby="panel-title",
        tabindex="-1",
    )


def missing_panel(address: Address) -> Html:
    """For a key that no record has (any more)."""
    return element(
        "aside",
        element(
            "header",
            element("h2", "No such model", id="panel-title"),
            close_link(address.with_(model=None)),
        ),
        element("p", "It is in none of the lists now; it may have been removed."),
        id="panel",
        class_="panel",
        aria_labelledby="panel-title",
        tabindex="-1",
    )


def close_link(to: Address) -> Html:
    """Takes the panel away."""
    return element("a", element("span", "×", aria_hidden="true"), href=to.href, id="close", class_="close",  # noqa: RUF001
                   aria_label="Close the panel", title="Close (Esc)")  # fmt: skip


def _head(row: Row, address: Address) -> Html:
    return element(
        "header",
        element(
            "h2",
            hot_mark(row),
            element("span", row.name, class_="name"),
            id="panel-title",
        ),
        close_link(address.with_(model=None)),
        element(
            "p",
            tee_mark(row),
            conflict_mark(row),
            element("span", row.kind, class_="mark") if row.kind else None,
            copy_button(row.name, "copy-panel-name", "Copy the name"),
            element("a", "Compare", href=address.with_(compare=row.key, model=None).href, id="panel-compare"),
        ),
    )


def _charts(row: Row, load: Sequence[float | None]) -> Html | None:
    if row.chute_id is None:
        return element("p", "No history: it is in one list only, without a chute id.", class_="dim")
    known = [value for value in load if value is not None]
    fallback = (
        figures.sparkline(load, width=400, height=72, label=f"Utilization over 24 hours, at most {max(known):.0%}")
        if known
        else element("span", "No history yet; it is recorded every minute.", class_="dim")
    )
    return element(
        "section",
        element("h3", "History", id="history"),
        element(
            "div",
            (
                element(
                    "button", said, type="button", data_span=span, id=f"span-{span}", aria_pressed=_flag(span == "24h")
                )
                for span, said in _SPANS
            ),
            class_="spans scripted",
            role="group",
            aria_label="Time span of the charts",
        ),
        (
            element(
                "figure",
                element("figcaption", title, _legend(name), element("span", class_="readout scripted")),
                element("div", fallback if name == "utilization" else None, class_="plot", data_chart=name),
                class_=None if name == "utilization" else "scripted",
            )
            for name, title in _CHARTS
            if name != "price" or row.input_price is not None
        ),
        class_="charts",
        id=f"charts-{row.key}",
        data_history=f"/api/history/{row.chute_id}",
        data_prices=json.dumps({"input": row.input_price, "output": row.output_price}),
    )


def _legend(chart: str) -> Html | None:
    if chart != "price":
        return None
    return element(
        "span", element("i", class_="first"), " input ", element("i", class_="second"), " output", class_="dim"
    )


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _snippets(row: Row, service_url: str) -> Html:
    if row.kind not in _RELAYED or "v1" not in row.sources:
        return element(
            "section",
            element("h3", "Call it"),
            element("p", "This service relays chat completions; this model is called at the platform itself.",
                    class_="dim"),
        )  # fmt: skip
    model = json.dumps(row.name, ensure_ascii=False)
    shell = f'{{"model": {model},\n       "messages": [{{"role": "user", "content": "Hello"}}]}}'
    curl = (
        f'curl {service_url}/v1/chat/completions \\\n  -H "Authorization: Bearer $CHUTES_API_KEY" \\\n'
        f'  -H "Content-Type: application/json" \\\n  -d {_shell_quoted(shell)}'
    )
    python = (
        "from openai import OpenAI\n\n"
        f'client = OpenAI(\n    base_url="{service_url}/v1",\n    api_key="cpk_...",\n)\n'
        "answer = client.chat.completions.create(\n"
        f"    model={model},\n"
        '    messages=[{"role": "user", "content": "Hello"}],\n)\n'
        "print(answer.choices[0].message.content)"
    )
    return element(
        "section",
        element("h3", "Call it through this service"),
        _snippet("curl", "curl", curl, service_url),
        _snippet("python", "Python (openai SDK)", python, service_url),
    )


def _snippet(id: str, title: str, code: str, service_url: str) -> Html:
    return element(
        "figure",
        element("figcaption", title, copy_button(code, f"copy-{id}", f"Copy the {title} lines")),
        element("pre", element("code", code), tabindex="0", aria_label=title),
        class_="snippet",
        data_origin=service_url,
    )


def _shell_quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"


def _fields(row: Row) -> Html:
    return element(
        "section",
        element("h3", "Every field and its source"),
        element(
            "table",
            element(
                "thead",
                element("tr", (element("th", title, scope="col") for title in ("Field", "Value", "From"))),
            ),
            element("tbody", _field_rows(row)),
            class_="fields",
        ),
    )


def _field_rows(row: Row) -> Iterator[Html]:
    for name, value in row.record.fields.items():
        if value is None or value == ():
            continue
        origin = row.record.provenance.get(name)
        others = {} if origin is None else origin.others
        yield element(
            "tr",
            element("th", name, scope="row"),
            element(
                "td",
                shown(value),
                (
                    element("div", _source(source), ": ", shown(other), class_="other")
                    for source, other in others.items()
                    if other != value
                ),
            ),
            element(
                "td",
                _source(None if origin is None else origin.source),
                element("div", "inferred", class_="dim") if origin is not None and origin.inferred else None,
            ),
            class_="disputed" if name in row.conflicts else None,
        )


def _source(name: str | None) -> str:
    return "computed" if name is None else _SOURCES.get(name, name)


def shown(value: Any) -> str:
    """Any value of a record in one line."""
    if value is None:
        return "–"  # noqa: RUF001
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {shown(item)}" for key, item in value.items())
    return str(value)
