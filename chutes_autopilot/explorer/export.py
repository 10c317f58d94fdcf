"""The models as files: lines of JSON, a table for spreadsheets, a table for people, and the documented export."""

import csv
import re
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any, Literal

import msgspec
from attrs import frozen

from chutes_autopilot.explorer.merge import Merged
from chutes_autopilot.explorer.prices import CACHED, INPUT, OUTPUT
from chutes_autopilot.explorer.provenance import ALIASES, BLENDED, FIELDS, MergedModel
from chutes_autopilot.explorer.records import CHUTES, SOURCES, V1, Source

Format = Literal["json", "ndjson", "csv", "md"]
FORMATS: tuple[Format, ...] = ("json", "ndjson", "csv", "md")

CSV_COLUMNS = ("key", "chute_id", "sources", "conflicts", *FIELDS)

_MD_COLUMNS = (
    ("Model", "name"),
    ("Kind", "kind"),
    ("TEE", "tee"),
    ("Context", "context_length"),
    ("Input $/1M", INPUT),
    ("Cached $/1M", CACHED),
    ("Output $/1M", OUTPUT),
    ("Blended $/1M", BLENDED),
    ("Utilization", "utilization_current"),
    ("Instances", "active_instance_count"),
    ("Quantization", "quantization"),
    ("Engine", "engine"),
    ("Owner", "owner"),
)

# What a spreadsheet takes for the start of a formula, or for the end of the cell before it (OWASP, "CSV injection").
# East Asian ones take the wide forms too.
_FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|~&!:@$#]")
_WWW = re.compile(r"\bwww\.", re.IGNORECASE)
_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def record_json(record: MergedModel) -> dict[str, Any]:
    """A record as the API gives it: as the merge rules have it, with the fields in conflict named."""
    return {**record.as_json(), "conflicts": list(record.conflicts)}


def ndjson(records: Iterable[MergedModel]) -> bytes:
    """One record per line."""
    return msgspec.json.Encoder().encode_lines([record_json(record) for record in records])


def csv_table(records: Iterable[MergedModel]) -> bytes:
    """All fields as a table of RFC 4180, in UTF-8; no cell can be a formula."""
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(CSV_COLUMNS)
    for record in records:
        writer.writerow(
            (
                _cell(record.key),
                _cell(record.chute_id),
                _cell(record.sources),
                _cell(record.conflicts),
                *(_cell(record.fields[field]) for field in FIELDS),
            )
        )
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    text = _plain(value)
    return f"'{text}" if _FORMULA.match(text) else text


def _plain(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case tuple():
            return ";".join(value)
        case float():
            return f"{value:.12g}"  # without the noise of binary fractions
    return str(value)


def markdown_table(records: Iterable[MergedModel]) -> bytes:
    """The fields most asked for as a Markdown table; whatever the texts hold, they are shown as text."""
    lines = [_row(title for title, _ in _MD_COLUMNS), _row("---" for _ in _MD_COLUMNS)]
    lines += [_row(escaped(_plain(record.fields[field])) for _, field in _MD_COLUMNS) for record in records]
    return "".join(f"{line}\n" for line in lines).encode()


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """Text with which nothing in Markdown happens: no mark-up, HTML, link or new line (GitHub's links by themselves
    included)."""
    return _WWW.sub(lambda found: f"{found[0][:-1]}\\.", _MARKDOWN.sub(r"\\\g<0>", _BREAKS.sub(" ", text)))


@frozen
class ExportedSource:
    """One source of the documented export.

    :param body: the platform's answer, valid JSON.
    """

    source: str
    requires_auth: bool
    model_count: int
    body: bytes

    def as_json(self) -> dict[str, Any]:
        """In the documented shape."""
        return {
            "source": self.source,
            "requiresAuth": self.requires_auth,
            "modelCount": self.model_count,
            "data": msgspec.Raw(self.body),
        }


def documented_export(
    timestamp: str,
    chutes: ExportedSource | None,
    v1: ExportedSource | None,
    merged: Merged | None,
    snapshot: str | None,
) -> bytes:
    """The documented answer of /api/export/data; a source that cannot be had is null, and so is then the analysis.

    :param merged: of just these two answers.
    :param snapshot: the id of the explorer's own merged state, our addition.
    """
    sources = {
        "chutesApi": chutes and chutes.as_json(),
        "v1Api": v1 and v1.as_json(),
        "mergeAnalysis": merge_analysis(merged) if merged is not None and chutes and v1 else None,
    }
    return msgspec.json.encode({"timestamp": timestamp, "sources": sources, "snapshot": snapshot})


def merge_analysis(merged: Merged) -> dict[str, Any]:
    """How the two catalogs fit together, in the documented shape and with the rules that joined them."""
    totals = {source: merged.inputs.get(source, 0) for source in (CHUTES, V1)}
    matched = sum(merged.by_rule.values())
    smaller = min(totals.values())
    return {
        "totalInChutesApi": totals[CHUTES],
        "totalInV1Api": totals[V1],
        "matched": matched,
        "matchPercentage": f"{100 * matched / smaller if smaller else 0:.2f}%",
        "onlyInChutesApi": [ref.name for ref in merged.only_in.get(CHUTES, ())],
        "onlyInV1Api": [ref.name for ref in merged.only_in.get(V1, ())],
        "dataGaps": {
            "chutesApiMissing": _only_said_by(V1, merged.records),
            "v1ApiMissing": _only_said_by(CHUTES, merged.records),
        },
        "matchedByRule": dict(merged.by_rule),
    }


def _only_said_by(source: Source, records: Sequence[MergedModel]) -> list[str]:
    """The fields that no other source says anything about."""
    said: dict[str, set[str]] = {each: set() for each in SOURCES}
    for record in records:
        for field, origin in record.provenance.items():
            if not origin.inferred and field != ALIASES:
                for each in (origin.source, *origin.others):
                    said[each].add(field)
    others = set().union(*(fields for each, fields in said.items() if each != source))
    return [field for field in FIELDS if field in said[source] and field not in others]
