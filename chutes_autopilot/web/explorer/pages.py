"""The four tabs as routes: what each request sees of the current state, rendered, tagged and compressed."""

import gzip
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import attrs
from twisted.internet.defer import DeferredLock

from chutes_autopilot.control.snapshots import Snapshot
from chutes_autopilot.explorer.changes import Change
from chutes_autopilot.explorer.eligibility import excluded
from chutes_autopilot.explorer.merge import Merged
from chutes_autopilot.explorer.picks import Pick, Totals
from chutes_autopilot.explorer.query import BadQuery
from chutes_autopilot.explorer.reasons import sentence
from chutes_autopilot.explorer.records import UTILIZATION
from chutes_autopilot.explorer_live.measured import Failover, Measured
from chutes_autopilot.policy.client_address import TrustedProxies
from chutes_autopilot.storage.disk_cache import InThread
from chutes_autopilot.web.explorer import states
from chutes_autopilot.web.explorer.address import Address
from chutes_autopilot.web.explorer.answers import REVALIDATED, Prepared, send
from chutes_autopilot.web.explorer.changes_tab import changes_tab
from chutes_autopilot.web.explorer.closed_page import BUSY
from chutes_autopilot.web.explorer.columns import USUAL, Column, chosen_columns
from chutes_autopilot.web.explorer.compare import MOST, compare_panel
from chutes_autopilot.web.explorer.errors import NOT_STORED
from chutes_autopilot.web.explorer.filters import toolbar
from chutes_autopilot.web.explorer.flights import Flights
from chutes_autopilot.web.explorer.live import live_tab
from chutes_autopilot.web.explorer.markup import Html, element, join
from chutes_autopilot.web.explorer.merge_tab import merge_tab
from chutes_autopilot.web.explorer.origin import origin_of
from chutes_autopilot.web.explorer.page import CONTENT_SECURITY_POLICY, Frame
from chutes_autopilot.web.explorer.panels import missing_panel, model_panel
from chutes_autopilot.web.explorer.picks import SHOWN
from chutes_autopilot.web.explorer.rows import Row, row_of
from chutes_autopilot.web.explorer.selecting import select_rows
from chutes_autopilot.web.explorer.states import Freshness
from chutes_autopilot.web.explorer.static_files import StaticFiles
from chutes_autopilot.web.explorer.table import DrawnCells, Loads, Selection, model_row, models_table, pager
from chutes_autopilot.web.site import GatewayRequest
from chutes_autopilot.wire.headers import Header

HTML = b"text/html; charset=utf-8"
CHANGES = 500
"""How many changes are shown."""
_HEADING = element("h1", "Models", class_="sr")
_KEPT = 8
"""Pages kept rendered, so that many readers of one moment cost one rendering."""
_HEADERS: tuple[Header, ...] = (
    (b"Content-Security-Policy", CONTENT_SECURITY_POLICY),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"same-origin"),
    (b"X-Frame-Options", b"DENY"),
)
_MOMENT = 2.0
"""Seconds for which a rendered page is sent again."""

ROWS_A_TURN = 8
"""Rows drawn in one turn of the reactor, one to three milliseconds of it: streams go on in between."""

MAX_WAITING = 32
"""Different pages that are rendered or wait for it; most take some hundredths of a second."""

_Key = tuple[Address, str]
"""What is asked for, and the origin that it names."""

_Page = tuple[bytes, int]
"""A body and its status."""


@attrs.define(eq=False, kw_only=True)
class ExplorerPages:
    """Answers ``/``, ``/live``, ``/merge``, ``/changes`` and ``/static/...``.

    A list of thousands of models takes a second to draw, in which the reactor would move no byte of any stream. So what
    needs no care is done in threads, and rows are drawn some in each turn, of one page at a time. Not in a thread: that
    would hold the interpreter for five milliseconds at every byte the reactor moves.

    :param truth: what the sources were merged to; None before the first one came.
    :param ranking: the router's own snapshot.
    :param sparklines: by chute id: the busy share over the last 24 hours, oldest first.
    :param freshness: of each source.
    :param changes: up to so many, newest first.
    :param now: the clock's seconds.
    :param in_thread: where what takes long and touches nothing that changes is done.
    :param pause: fires in the reactor's next turn.
    :param measured: by model: what this service itself saw.
    :param failovers: newest first.
    :param picks: up to so many of the last requests, newest first; ``totals`` of all that are remembered.
    :param simulated: none of it is real, which every page says.
    :param streams: whether /api/events serves anybody.
    :param trusted: the proxies that are believed where this service is reached.
    """

    truth: Callable[[], Merged | None]
    ranking: Callable[[], Snapshot]
    sparklines: Callable[[], Loads]
    freshness: Callable[[], Sequence[Freshness]]
    changes: Callable[[int], Sequence[Change]]
    now: Callable[[], float]
    in_thread: InThread
    pause: Callable[[], Awaitable[object]]
    files: StaticFiles
    measured: Callable[[], Mapping[str, Measured]] = dict
    failovers: Callable[[], Sequence[Failover]] = tuple
    picks: Callable[[int], Sequence[Pick]] = lambda limit: ()
    totals: Callable[[], Totals] = Totals
    simulated: bool = False
    streams: bool = True
    trusted: Callable[[], TrustedProxies | None] = lambda: None
    _drawn: DrawnCells = attrs.field(factory=DrawnCells, init=False)
    _rendered: dict[tuple[int, _Key], Prepared] = attrs.field(factory=dict, init=False)
    _flights: Flights[_Key, tuple[Prepared, int]] = attrs.field(factory=Flights, init=False)
    _drawing: DeferredLock = attrs.field(factory=DeferredLock, init=False)

    async def models(self, request: GatewayRequest) -> None:
        """The list of models, with the panel of one or of several."""
        origin = origin_of(request, self.trusted()) if b"model" in request.args else ""
        await self._answer(request, "/", partial(self._models, origin), origin)

    async def live(self, request: GatewayRequest) -> None:
        """The ranking as it moves."""
        await self._answer(request, "/live", self._live)

    async def merge(self, request: GatewayRequest) -> None:
        """How the sources were joined."""
        await self._answer(request, "/merge", self._merge)

    async def changes_page(self, request: GatewayRequest) -> None:
        """What happened to the models."""
        await self._answer(request, "/changes", self._changes)

    def static(self, request: GatewayRequest, name: str) -> None:
        """A file of the page's own."""
        self.files.answer(request, name)

    async def _answer(
        self, request: GatewayRequest, path: str, render: Callable[[Address], Awaitable[_Page]], origin: str = ""
    ) -> None:
        address = _usual(Address.of(path, request.args))
        key = address, origin
        prepared, status = self._rendered.get((self._moment(), key)), 200
        if prepared is None:
            # who leaves does not end what was begun for them, so that alone would bound nothing
            if len(self._flights) >= MAX_WAITING and key not in self._flights:
                request.answer(503, BUSY.body(), HTML, (*BUSY.headers, (b"Retry-After", b"2")))
                return
            prepared, status = await self._flights.result(key, partial(self._made, key, render))
        if status == 200:
            send(request, prepared, (REVALIDATED, *_HEADERS))
        else:
            request.answer(status, prepared.body, HTML, (NOT_STORED, *_HEADERS))

    async def _made(self, key: _Key, render: Callable[[Address], Awaitable[_Page]]) -> tuple[Prepared, int]:
        body, status = await render(key[0])
        if status != 200:
            return Prepared(body, None, b"", HTML), status
        prepared: Prepared = await self.in_thread(_prepared, body)
        while len(self._rendered) >= _KEPT:
            del self._rendered[next(iter(self._rendered))]
        self._rendered[self._moment(), key] = prepared
        return prepared, status

    def _moment(self) -> int:
        return int(self.now() // _MOMENT)

    def _frame(
        self,
        tab: str,
        content: Html,
        *,
        said: str,
        title: str,
        marks: str | None = None,
        status: int = 200,
        feed_age: float | None = None,
    ) -> _Page:
        """:param feed_age: of the live feed, where the page shows the router's reading of it and not the merged one."""
        return self._framed(tab, said=said, title=title, marks=marks, feed_age=feed_age)(content), status

    def _framed(
        self, tab: str, *, said: str, title: str, marks: str | None = None, feed_age: float | None = None
    ) -> Callable[[Html], bytes]:
        """What makes a page of a content, as things are now; may be called in a thread."""
        sources = self.freshness()
        if feed_age is not None:
            sources = [attrs.evolve(each, age=feed_age) if each.source == UTILIZATION else each for each in sources]
        warned = () if self.truth() is None else sources  # the page itself says it where there is nothing else
        page = Frame(self.files, self.simulated).page
        return lambda content: page(tab, content, sources=sources, warned=warned, said=said, title=title, marks=marks)

    async def _models(self, origin: str, address: Address) -> _Page:
        async with self._drawing:
            return await self._listed(origin, address)

    async def _listed(self, origin: str, address: Address) -> _Page:
        truth = self.truth()
        if truth is None:
            content = join((_HEADING, states.nothing_yet(self.freshness())))
            return self._frame("/", content, said="No list yet", title="Models")
        try:
            selection: Selection = await self.in_thread(select_rows, truth, address)
        except BadQuery as fault:
            refused = join((_HEADING, states.refused(fault.parameter, fault.message, address)))
            return self._frame("/", refused, said="This address cannot be read", title="Models", status=400)
        panel, name = self._panel(address, truth, origin)
        columns = chosen_columns(address.all("cols"))
        above = toolbar(selection, columns, address)
        rows = await self._rows(selection, columns, address)
        said = f"{selection.total} of {selection.everything} models"
        framed = self._framed("/", said=said, title=name or "Models", marks="app")

        def page() -> bytes:
            table = _table(selection, columns, rows, address)
            return framed(
                join(
                    (
                        _HEADING,
                        element(
                            "div",
                            element("section", above, table, class_="list"),
                            panel,
                            class_="split open" if panel else "split",
                            id="content",
                        ),
                    )
                )
            )

        body: bytes = await self.in_thread(page)
        return body, 200

    async def _rows(self, selection: Selection, columns: Sequence[Column], address: Address) -> list[Html]:
        loads, rows = self.sparklines(), []
        for place, row in enumerate(selection.rows):
            if place and place % ROWS_A_TURN == 0:
                await self.pause()
            rows.append(model_row(row, columns, address, loads, self._drawn))
        return rows

    def _panel(self, address: Address, truth: Merged, origin: str) -> tuple[Html | None, str | None]:
        records = truth.by_key
        compared = [row_of(records[key]) for key in address.all("compare") if key in records][:MOST]
        if compared:
            return compare_panel(compared, address), "Compare"
        key = address.get("model")
        if key is None:
            return None, None
        if key not in records:
            return missing_panel(address), "No such model"
        row = row_of(records[key])
        load = self.sparklines().get(row.chute_id or "", ())
        return model_panel(row, address, load, origin, self._why(row)), row.name

    def _why(self, row: Row) -> str | None:
        ranking = self.ranking().ranking
        for place, ranked in enumerate(ranking):
            if ranked.chute_id == row.chute_id and row.chute_id is not None:
                return f"number {place + 1} of {len(ranking)}: {sentence(ranking, place)}"
        return None

    async def _live(self, address: Address) -> _Page:
        snapshot = self.ranking()
        age = snapshot.feed_age(self.now())
        content = live_tab(
            snapshot.ranking,
            excluded(snapshot.ranking, snapshot.catalog, self.truth()),
            self.measured(),
            self.failovers(),
            self.picks(SHOWN),
            self.totals(),
            keys={} if snapshot.catalog is None else snapshot.catalog.chute_ids,
            snapshot=snapshot.id,
            age=age,
            streams=self.streams,
        )
        said = f"Snapshot {snapshot.id}: {len(snapshot.ranking)} candidates"
        return self._frame("/live", content, said=said, title="Live", marks="app", feed_age=age)

    async def _merge(self, address: Address) -> _Page:
        truth = self.truth()
        content = states.nothing_yet(self.freshness()) if truth is None else merge_tab(truth)
        return self._frame("/merge", content, said="Merge report", title="Merge")

    async def _changes(self, address: Address) -> _Page:
        changes = self.changes(CHANGES)
        nothing = self.truth() is None and not changes
        content = states.nothing_yet(self.freshness()) if nothing else changes_tab(changes)
        return self._frame("/changes", content, said=f"{len(changes)} changes", title="Changes")


def _usual(address: Address) -> Address:
    """Without a choice of columns that is the usual one, as forms send it."""
    return address.with_(cols=None) if chosen_columns(address.all("cols")) == USUAL else address


def _table(selection: Selection, columns: Sequence[Column], rows: Sequence[Html], address: Address) -> Html:
    if not selection.everything:
        return states.empty()
    if not selection.total:
        return states.filtered_to_nothing(address, selection.everything)
    return element(
        "div",
        models_table(selection, columns, rows, address),
        pager(selection, address),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label="List of models",
        id="results",
    )


def _prepared(body: bytes) -> Prepared:
    # level 3, for this is done on the way: a fifth larger than at level 6, in a third of the time
    return Prepared(
        body, gzip.compress(body, compresslevel=3, mtime=0), hashlib.sha256(body).hexdigest()[:32].encode(), HTML
    )
