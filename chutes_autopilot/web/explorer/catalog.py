"""The merged models: lists, counts, facets, files, and how the sources were joined."""

from functools import partial
from typing import Any

from chutes_autopilot.explorer.export import FORMATS, Format, csv_table, markdown_table, ndjson, record_json
from chutes_autopilot.explorer.facets import facets
from chutes_autopilot.explorer.parameters import Parameters
from chutes_autopilot.explorer.query import Query, links, read_query
from chutes_autopilot.explorer.records import SOURCES
from chutes_autopilot.explorer.report import Freshness, merge_report
from chutes_autopilot.explorer.selection import matching, ordered, select
from chutes_autopilot.web.explorer.answers import Prepared, PreparedAnswers, attachment, iso_time, send
from chutes_autopilot.web.explorer.errors import not_ready
from chutes_autopilot.web.explorer.parts import ExplorerParts, Truth
from chutes_autopilot.web.site import GatewayRequest

PATH = "/api/catalog"

_CONTENT_TYPES: dict[Format, bytes] = {
    "ndjson": b"application/x-ndjson",
    "csv": b"text/csv; charset=utf-8; header=present",
    "md": b"text/markdown; charset=utf-8",
}


class CatalogRoutes:
    """Answers from the current merged state; each answer is made once per state."""

    def __init__(self, parts: ExplorerParts, prepared: PreparedAnswers) -> None:
        self._parts = parts
        self._prepared = prepared

    async def index(self, request: GatewayRequest) -> None:
        """GET /api/catalog: a page of what the query asks for, or with ``format`` all of it as a file."""
        given = Parameters.decoded(request.args)
        format: Any = given.word("format", FORMATS) or "json"
        query = read_query(given, further=("format",))
        truth = self._truth()
        make = partial(_page, truth, query) if format == "json" else partial(_file, truth, query, format)
        send(request, await self._prepared.get((PATH, truth.id, format, query), make))

    async def count(self, request: GatewayRequest) -> None:
        """GET /api/catalog/count: how many models pass the filters."""
        await self._counted(request, with_facets=False)

    async def facets(self, request: GatewayRequest) -> None:
        """GET /api/catalog/facets: how many each further filter would leave."""
        await self._counted(request, with_facets=True)

    async def _counted(self, request: GatewayRequest, *, with_facets: bool) -> None:
        query = read_query(Parameters.decoded(request.args))
        truth = self._truth()
        make = partial(_counts, truth, query, with_facets)
        send(request, await self._prepared.get(("counts", truth.id, with_facets, query), make))

    async def report(self, request: GatewayRequest) -> None:
        """GET /api/merge/report: how the sources were joined, and what does not fit."""
        Parameters.decoded(request.args).refuse_others(())
        truth = self._truth()
        send(request, await self._prepared.get(("report", truth.id), partial(_report, truth)))

    def _truth(self) -> Truth:
        truth = self._parts.truth()
        if truth is None:
            raise not_ready("The catalogs are still being read: ask again in some seconds.")
        return truth


def _page(truth: Truth, query: Query) -> Prepared:
    page = select(truth.merged.records, query)
    related = links(query, page.total, PATH)
    answer = {
        **_head(truth),
        "total": page.total,
        "everything": page.everything,
        "count": len(page.items),
        "limit": page.limit,
        "offset": page.offset,
        "links": related,
        "items": [record_json(record) for record in page.items],
    }
    link = ", ".join(f'<{href}>; rel="{relation}"' for relation, href in related.items() if relation != "self")
    return Prepared.of_json(answer, ((b"Link", link.encode("ascii")),))


def _file(truth: Truth, query: Query, format: Format) -> Prepared:
    records = ordered(matching(truth.merged.records, query), query.sort)
    end = None if query.limit is None else query.offset + query.limit
    make = {"ndjson": ndjson, "csv": csv_table, "md": markdown_table}[format]
    body = make(records[query.offset : end])
    return Prepared.of(body, _CONTENT_TYPES[format], (attachment(f"chutes-models.{format}"),))


def _counts(truth: Truth, query: Query, with_facets: bool) -> Prepared:
    records = truth.merged.records
    answer = {**_head(truth), "total": len(matching(records, query)), "everything": len(records)}
    if with_facets:
        answer["facets"] = facets(records, query)
    return Prepared.of_json(answer)


def _report(truth: Truth) -> Prepared:
    generated_at = iso_time(truth.generated_at) or ""
    return Prepared.of_json(
        merge_report(truth.merged, generated_at=generated_at, snapshot=truth.id, freshness=truth.freshness)
    )


def _head(truth: Truth) -> dict[str, Any]:
    never = Freshness(None)
    sources = {
        source: {
            "count": truth.merged.inputs.get(source, 0),
            "fetched_at": truth.freshness.get(source, never).fetched_at,
            "stale": truth.freshness.get(source, never).stale,
        }
        for source in SOURCES
    }
    return {"snapshot": truth.id, "generated_at": iso_time(truth.generated_at), "sources": sources}
