"""What the explorer's routes are given, and nothing else: they know neither the settings nor where it comes from."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import attrs

from chutes_autopilot.control.snapshots import Snapshots
from chutes_autopilot.explorer.merge import Merged
from chutes_autopilot.explorer.records import Source
from chutes_autopilot.explorer.report import Freshness
from chutes_autopilot.explorer_live.measured import Failover, Measured
from chutes_autopilot.explorer_live.proxied import ProxiedJson
from chutes_autopilot.explorer_live.published import Published
from chutes_autopilot.storage.disk_cache import InThread
from chutes_autopilot.storage.history_rows import CatalogChange, FailoverCount, Measure, Point, Resolution
from chutes_autopilot.storage.webhook_queue import DeadLetter
from chutes_autopilot.web.site import GatewayRequest


class Truth(Protocol):
    """One merged state, immutable."""

    @property
    def id(self) -> str:
        """Changes with anything below."""

    @property
    def merged(self) -> Merged:
        """The models."""

    @property
    def generated_at(self) -> float:
        """When it was put together, Unix seconds."""

    @property
    def freshness(self) -> Mapping[Source, Freshness]:
        """How old each source is."""


class History(Protocol):
    """What was (storage.history.HistoryStore); every method may raise HistoryUnavailable."""

    async def series(
        self, chute_id: str, measure: Measure, since: float, until: float, resolution: Resolution
    ) -> tuple[Point, ...]:
        """One measure of one chute in time."""

    async def changes(
        self, since: float, limit: int, *, kinds: Collection[str] = (), chute_id: str | None = None
    ) -> tuple[CatalogChange, ...]:
        """What happened to models, the newest first."""

    async def failovers(self, since: float, limit: int) -> tuple[FailoverCount, ...]:
        """Failovers by hour, the newest first."""


class Pages(Protocol):
    """The page's tabs and its own files."""

    def models(self, request: GatewayRequest) -> Any:
        """``/``"""

    def live(self, request: GatewayRequest) -> Any:
        """``/live``"""

    def merge(self, request: GatewayRequest) -> Any:
        """``/merge``"""

    def changes_page(self, request: GatewayRequest) -> Any:
        """``/changes``"""

    def static(self, request: GatewayRequest, name: str) -> Any:
        """``/static/<name>``"""


class Streams(Protocol):
    """What goes on for as long as the visitor stays; each returns what Klein takes, or raises ExplorerError."""

    def events(self, request: GatewayRequest) -> Any:
        """``/api/events``"""

    def websocket(self, request: GatewayRequest) -> Any:
        """``/api/ws``"""

    def feed(self, request: GatewayRequest) -> Any:
        """``/feed.atom``"""


class DeadLetters(Protocol):
    """Webhooks that were given up (explorer_live.webhooks.Webhooks); every method may raise DatabaseUnavailable."""

    @property
    def waiting(self) -> int:
        """Messages that are still to be delivered."""

    async def dead_letters(self) -> tuple[DeadLetter, ...]:
        """The latest first."""

    async def retry(self, number: int | None) -> int:
        """Send one again, or all; how many."""

    async def forget(self, number: int | None) -> int:
        """Drop one, or all; how many."""


def _nothing_to_refresh() -> Awaitable[None]:
    async def nothing() -> None:
        pass

    return nothing()


@attrs.define(eq=False, kw_only=True)
class ExplorerParts:
    """Everything the routes use.

    :param truth: the current merged state; None before the first.
    :param snapshots: where the router's own current snapshot is found.
    :param documents: the platform's answers, cached.
    :param published: what of them is for everybody.
    :param in_thread: where long work is done.
    :param now: Unix time, seconds.
    :param api_key_configured: whether there is a CHUTES_API_KEY.
    :param admin_token: None: there is no way in for the operator here.
    :param refresh_sources: fetch what the merged state is made of anew; ends when that is done.
    :param measured: by model.
    :param recent_failovers: the newest first, a bounded number of them.
    :param dead_letters: None: nobody is told by webhooks.
    :param streams: None: there are no live updates.
    """

    truth: Callable[[], Truth | None]
    snapshots: Snapshots
    documents: ProxiedJson
    published: Published
    history: History
    pages: Pages
    in_thread: InThread
    now: Callable[[], float]
    chutes_api_base_url: str
    models_url: str
    api_key_configured: bool
    admin_token: bytes | None = attrs.field(default=None, repr=False)
    cors_origins: tuple[str, ...] = ()
    show_private: bool = False
    refresh_sources: Callable[[], Awaitable[None]] = _nothing_to_refresh
    measured: Callable[[], Mapping[str, Measured]] = dict
    recent_failovers: Callable[[], Sequence[Failover]] = tuple
    dead_letters: DeadLetters | None = None
    streams: Streams | None = None
