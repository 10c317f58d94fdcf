"""The four tabs as routes: what each request sees of the current state, rendered, tagged and compressed."""

import gzip
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import attrs

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
from chutes_autopilot.web.explorer import states
from chutes_autopilot.web.explorer.address import Address
from chutes_autopilot.web.explorer.answers import REVALIDATED, Prepared, send
from chutes_autopilot.web.explorer.changes_tab import changes_tab
from chutes_autopilot.web.explorer.columns import USUAL, chosen_columns
from chutes_autopilot.web.explorer.compare import MOST, compare_panel
from chutes_autopilot.web.explorer.errors import NOT_STORED
from chutes_autopilot.web.explorer.filters import toolbar
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
from chutes_autopilot.web.explorer.table import DrawnCells, Loads, Selection, models_table, pager
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


@attrs.define(eq=False, kw_only=True)
class ExplorerPages:
    """Answers ``/``, ``/live``, ``/merge``, ``/changes`` and ``/static/...``.

    :param truth: what the sources were merged to; None before the first one came.
    :param ranking: the router's own snapshot.
    :param sparklines: by chute id: the busy share over the last 24 hours, oldest first.
    :param freshness: of each source.
    :param changes: up to so many, newest first.
    :param now: the clock's seconds.
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
    files: StaticFiles
    measured: Callable[[], Mapping[str, Measured]] = dict
    failovers: Callable[[], Sequence[Failover]] = tuple
    picks: Callable[[int], Sequence[Pick]] = lambda limit: ()
    totals: Callable[[], Totals] = Totals
    simulated: bool = False
    streams: bool = True
    trusted: Callable[[], TrustedProxies | None] = lambda: None
    _drawn: DrawnCells = attrs.field(factory=DrawnCells, init=False)
    _rendered: dict[tuple[int, Address, str], Prepared] = attrs.field(factory=dict, init=False)

    def models(self, request: GatewayRequest) -> None:
        """The list of models, with the panel of one or of several."""
        origin = origin_of(request, self.trusted()) if b"model" in request.args else ""
        self._answer(request, "/", partial(self._models, origin), origin)

    def live(self, request: GatewayRequest) -> None:
        """The ranking as it moves."""
        self._answer(request, "/live", self._live)

    def merge(self, request: GatewayRequest) -> None:
        """How the sources were joined."""
        self._answer(request, "/merge", self._merge)

    def changes_page(self, request: GatewayRequest) -> None:
        """What happened to the models."""
        self._answer(request, "/changes", self._changes)

    def static(self, request: GatewayRequest, name: str) -> None:
        """A file of the page's own."""
        self.files.answer(request, name)

    def _answer(
        self, request: GatewayRequest, path: str, render: Callable[[Address], tuple[bytes, int]], origin: str = ""
    ) -> None:
        address = _usual(Address.of(path, request.args))
        moment = int(self.now() // _MOMENT), address, origin
        prepared = self._rendered.get(moment)
        if prepared is None:
            body, status = render(address)
            if status != 200:
                request.answer(status, body, HTML, (NOT_STORED, *_HEADERS))
                return
            prepared = _prepared(body)
            while len(self._rendered) >= _KEPT:
                del self._rendered[next(iter(self._rendered))]
            self._rendered[moment] = prepared
        send(request, prepared, (REVALIDATED, *_HEADERS))

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
    ) -> tuple[bytes, int]:
        """:param feed_age: of the live feed, where the page shows the router's reading of it and not the merged one."""
        sources = self.freshness()
        if feed_age is not None:
            sources = [attrs.evolve(each, age=feed_age) if each.source == UTILIZATION else each for each in sources]
        warned = () if self.truth() is None else sources  # the page itself says it where there is nothing else
        frame = Frame(self.files, self.simulated)
        page = frame.page(tab, content, sources=sources, warned=warned, said=said, title=title, marks=marks)
        return page, status

    def _models(self, origin: str, address: Address) -> tuple[bytes, int]:
        truth = self.truth()
        if truth is None:
            content = join((_HEADING, states.nothing_yet(self.freshness())))
            return self._frame("/", content, said="No list yet", title="Models")
        try:
            selection = select_rows(truth, address)
        except BadQuery as fault:
            refused = join((_HEADING, states.refused(fault.parameter, fault.message, address)))
            return self._frame("/", refused, said="This address cannot be read", title="Models", status=400)
        panel, name = self._panel(address, truth, origin)
        content = element(
            "div",
            element(
                "section",
                toolbar(selection, chosen_columns(address.all("cols")), address),
                self._table(selection, address),
                class_="list",
            ),
            panel,
            class_="split open" if panel else "split",
            id="content",
        )
        said = f"{selection.total} of {selection.everything} models"
        return self._frame("/", join((_HEADING, content)), said=said, title=name or "Models", marks="app")

    def _table(self, selection: Selection, address: Address) -> Html:
        if not selection.everything:
            return states.empty()
        if not selection.total:
            return states.filtered_to_nothing(address, selection.everything)
        return element(
            "div",
            models_table(selection, chosen_columns(address.all("cols")), address, self.sparklines(), self._drawn),
            pager(selection, address),
            class_="scroll",
            tabindex="0",
            role="region",
            aria_label="List of models",
            id="results",
        )

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

    def _live(self, address: Address) -> tuple[bytes, int]:
        snapshot = self.ranking()
        age = snapshot.feed_age(self.now())
        content = live_tab(
            snapshot.ranking,
            excluded(snapshot.ranking, snapshot.catalog, self.truth()),
            self.measured(),
            self.failovers(),
            self.picks(SHOWN),
            self.totals(),
            snapshot=snapshot.id,
            age=age,
            streams=self.streams,
        )
        said = f"Snapshot {snapshot.id}: {len(snapshot.ranking)} candidates"
        return self._frame("/live", content, said=said, title="Live", marks="app", feed_age=age)

    def _merge(self, address: Address) -> tuple[bytes, int]:
        truth = self.truth()
        content = states.nothing_yet(self.freshness()) if truth is None else merge_tab(truth)
        return self._frame("/merge", content, said="Merge report", title="Merge")

    def _changes(self, address: Address) -> tuple[bytes, int]:
        changes = self.changes(CHANGES)
        return self._frame("/changes", changes_tab(changes), said=f"{len(changes)} changes", title="Changes")


def _usual(address: Address) -> Address:
    """Without a choice of columns that is the usual one, as forms send it."""
    return address.with_(cols=None) if chosen_columns(address.all("cols")) == USUAL else address


def _prepared(body: bytes) -> Prepared:
    # level 3, for this is done on the way: a fifth larger than at level 6, in a third of the time
    return Prepared(
        body, gzip.compress(body, compresslevel=3, mtime=0), hashlib.sha256(body).hexdigest()[:32].encode(), HTML
    )
