"""Which models an address asks for, as the page shows them: the API's own query with the page's order and counts."""

from attrs import evolve

from chutes_autopilot.explorer.facets import facets
from chutes_autopilot.explorer.merge import Merged
from chutes_autopilot.explorer.parameters import Parameters
from chutes_autopilot.explorer.query import QUERY_PARAMETERS, SortKey, read_query
from chutes_autopilot.explorer.selection import select
from chutes_autopilot.web.explorer.address import Address
from chutes_autopilot.web.explorer.rows import row_of
from chutes_autopilot.web.explorer.table import Selection

USUAL_ORDER = SortKey("requests", descending=True)
"""Where an address names none: what most people use comes first."""


def select_rows(merged: Merged, address: Address) -> Selection:
    """The rows that the address asks for.

    :raises BadQuery: one of its parameters cannot be understood.
    """
    query = read_query(Parameters(address.only(QUERY_PARAMETERS).parameters))
    if not query.sort:
        query = evolve(query, sort=(USUAL_ORDER,))
    page = select(merged.records, query)
    return Selection(
        rows=tuple(map(row_of, page.items)),
        total=page.total,
        everything=page.everything,
        limit=page.limit,
        offset=page.offset,
        facets=facets(merged.records, query),
        sort=str(query.sort[0]),
    )
