"""An explorer over small data of its own, asked over connections in memory; its platform answers as a test says."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from klein import Klein
from twisted.internet.defer import execute
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from chutes_autopilot.control.snapshots import Snapshot, SnapshotHolder
from chutes_autopilot.errors import ApiError
from chutes_autopilot.explorer.cache_names import is_known
from chutes_autopilot.explorer.listing import read_listing
from chutes_autopilot.explorer.loads import read_loads
from chutes_autopilot.explorer.merge import Merged, merge
from chutes_autopilot.explorer.models import read_models
from chutes_autopilot.explorer.records import Source
from chutes_autopilot.explorer.report import Freshness
from chutes_autopilot.explorer_live.proxied import ProxiedJson
from chutes_autopilot.explorer_live.published import Published
from chutes_autopilot.policy.catalog import parse_catalog
from chutes_autopilot.policy.ranking import rank
from chutes_autopilot.policy.utilization import parse_utilization
from chutes_autopilot.storage.disk_cache import DiskCache
from chutes_autopilot.storage.history_rows import CatalogChange, FailoverCount, Point
from chutes_autopilot.storage.webhook_queue import DeadLetter, Message
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.upstream.fetch import FetchedAnswer, FetchError
from chutes_autopilot.web.answers import install_error_answers
from chutes_autopilot.web.connections import ClientConnections
from chutes_autopilot.web.explorer.parts import ExplorerParts
from chutes_autopilot.web.explorer.places import close_explorer, switched_off
from chutes_autopilot.web.explorer.routes import mount_explorer
from chutes_autopilot.web.site import ClientLimits, GatewayRequest, GatewaySite

NOW = 1_800_000_000.0
KEY = b"cpk_hunter2"
TOKEN = b"open sesame"
ADMIN = "Authorization: Bearer open sesame"
BASE = "https://api.example.org"
MODELS_URL = "https://llm.example.org/v1/models"
LIMITS = ClientLimits(max_request_bytes=1000, header_timeout=30, body_timeout=60, idle_timeout=75)


def uuid(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def chute(number: int, name: str, **members: Any) -> dict[str, Any]:
    return {"chute_id": uuid(number), "name": name, "public": True, "standard_template": "vllm", **members}


CHUTES = [
    chute(1, "acme/Alpha", user={"username": "chutes"}, tagline="first"),
    chute(2, "acme/Beta", standard_template="diffusion"),
    chute(3, "<script>alert(1)</script>|=1+1"),
    chute(4, "twice"),
    chute(5, "twice"),
    chute(66, "my secret", public=False),
]
MODELS = [
    {"id": "acme/Alpha", "chute_id": uuid(1), "context_length": 8000, "pricing": {"prompt": 0.5, "completion": 1.0}},
    {"id": "acme/Gamma", "chute_id": uuid(9)},
]
LOADS = [
    {"chute_id": uuid(1), "name": "acme/Alpha", "active_instance_count": 2, "utilization_current": 0.25},
    {"chute_id": uuid(2), "name": "acme/Beta", "active_instance_count": 0},
]
LISTING_BODY = json.dumps({"total": len(CHUTES), "items": CHUTES, "cord_refs": {}}).encode()
MODELS_BODY = json.dumps({"object": "list", "data": MODELS}).encode()
LOADS_BODY = json.dumps(LOADS).encode()


@attrs.frozen
class SampleTruth:
    id: str
    merged: Merged
    generated_at: float
    freshness: dict[Source, Freshness]


def sample_truth(id: str = "s1", *, stale: bool = False) -> SampleTruth:
    merged = merge(read_listing(LISTING_BODY, show_private=False), read_models(MODELS_BODY), read_loads(LOADS_BODY))
    fresh = Freshness("2027-01-15T08:00:00Z")
    return SampleTruth(
        id, merged, NOW, {"chutes": Freshness("2027-01-15T08:00:00Z", stale), "v1": fresh, "utilization": fresh}
    )


def sample_snapshot() -> Snapshot:
    catalog = parse_catalog(MODELS_BODY)
    ranking = rank(parse_utilization(LOADS_BODY).rows, catalog)
    return Snapshot(id=7, catalog=catalog, catalog_fetched_at=NOW - 5, feed_fetched_at=NOW - 1, ranking=ranking)


class SampleHistory:
    """Answers what the test put in; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.points: dict[str, tuple[Point, ...]] = {}
        self.changed: tuple[CatalogChange, ...] = ()
        self.failed: tuple[FailoverCount, ...] = ()
        self.fault: Exception | None = None

    async def series(self, *asked: Any) -> tuple[Point, ...]:
        return self._answer(asked, self.points.get(asked[1], ()))

    async def changes(self, *asked: Any, kinds: Any = (), chute_id: Any = None) -> tuple[CatalogChange, ...]:
        return self._answer((*asked, tuple(kinds), chute_id), self.changed)

    async def failovers(self, *asked: Any) -> tuple[FailoverCount, ...]:
        return self._answer(asked, self.failed)

    def _answer(self, asked: tuple[Any, ...], answer: Any) -> Any:
        self.asked.append(asked)
        if self.fault is not None:
            raise self.fault
        return answer


class SampleViews:
    """Stands for the page and for the streams: says what was called."""

    def __getattr__(self, name: str) -> Any:
        def view(request: GatewayRequest, *given: str, **named: str) -> None:
            request.answer(200, json.dumps([name, *given, *named.values()]).encode(), b"application/json")

        return view


class SampleDeadLetters:
    """Two letters, the second of an endpoint that is no more; remembers what it was asked to do."""

    def __init__(self) -> None:
        self.waiting = 3
        self.asked: list[tuple[str, int | None]] = []
        self.fault: Exception | None = None
        body = b'{"type":"model.added","timestamp":"2027-01-15T07:00:00Z","data":{"name":"acme/Alpha"}}'
        self.letters = tuple(
            DeadLetter(number, Message(f"msg_{number}", name, "model.added", body), NOW - 60, 8, NOW, "status 500")
            for number, name in ((9, "prices"), (4, "gone"))
        )

    async def dead_letters(self) -> tuple[DeadLetter, ...]:
        if self.fault is not None:
            raise self.fault
        return self.letters

    async def retry(self, number: int | None) -> int:
        self.asked.append(("retry", number))
        return 1 if number in (None, 9) else 0

    async def forget(self, number: int | None) -> int:
        self.asked.append(("forget", number))
        return sum(number in (None, letter.number) for letter in self.letters)


@attrs.define(eq=False)
class Answer:
    """What one request was answered, so far."""

    channel: Any
    transport: StringTransport

    @property
    def raw(self) -> bytes:
        return self.transport.value()

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        """By lower-case name; repeated ones joined by commas."""
        found: dict[str, str] = {}
        for line in self.raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]:
            name, _, value = line.partition(": ")
            found[name.lower()] = f"{found[name.lower()]}, {value}" if name.lower() in found else value
        return found

    @property
    def body(self) -> bytes:
        body = self.raw.partition(b"\r\n\r\n")[2]
        assert int(self.headers["content-length"]) == len(body)
        return body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        """Status and short text of an error, which must be of the documented shape and kept by nobody."""
        assert set(self.json) == {"error", "message"}
        assert all(isinstance(text, str) and text for text in self.json.values())
        assert self.headers["cache-control"] == "no-store"
        assert self.headers["content-type"] == "application/json"
        assert "etag" not in self.headers
        return self.status, self.json["error"]


class Service:
    """The routes over a cache in a directory and a platform that answers as ``answers`` says.

    :ivar answers: by URL without its parameters: (status, body), or the reason why there is none.
    :ivar asked: every call of the platform, in full.
    """

    def __init__(self, directory: Path, *, truth: SampleTruth | None = None, **parts: Any) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.asked: list[tuple[str, tuple[tuple[str, str], ...]]] = []
        self.answers: dict[str, Any] = {
            f"{BASE}/chutes/": (200, LISTING_BODY),
            MODELS_URL: (200, MODELS_BODY),
            **{f"{BASE}/chutes/{each['chute_id']}": (200, json.dumps(each).encode()) for each in CHUTES},
        }
        self.needs_key = False
        self.waiting: list[Any] | None = None
        self.directory = directory
        self.truth = sample_truth() if truth is None else truth
        self.history = SampleHistory()
        self.documents = ProxiedJson(
            DiskCache(directory, execute, known=is_known), self._fetch, 600.0, self.clock.seconds, execute, KEY
        )
        self.documents.startService()
        has_key, show_private = parts.get("api_key_configured", True), parts.get("show_private", False)
        self.published = Published(self.documents, BASE, has_key, show_private, self.clock.seconds, execute)
        self.parts = ExplorerParts(
            **{
                "truth": lambda: self.truth,
                "snapshots": SnapshotHolder(sample_snapshot()),
                "documents": self.documents,
                "published": self.published,
                "history": self.history,
                "pages": SampleViews(),
                "in_thread": execute,
                "now": self.clock.seconds,
                "chutes_api_base_url": BASE,
                "models_url": MODELS_URL,
                "api_key_configured": True,
                "dead_letters": SampleDeadLetters(),
                "streams": SampleViews(),
                **parts,
            }
        )
        self.app = mounted(self.parts)
        self.get = partial(self.ask, "GET")
        self.post = partial(self.ask, "POST")

    async def _fetch(self, url: str, headers: tuple[tuple[str, str], ...]) -> FetchedAnswer:
        self.asked.append((url, headers))
        if self.needs_key and not headers:
            return FetchedAnswer(401, None, b'{"detail":"no"}')
        answer = self.answers.get(url.partition("?")[0], (404, b'{"detail":"Chute not found"}'))
        if isinstance(answer, Awaitable):
            await answer
            answer = (200, LISTING_BODY)
        if isinstance(answer, str):
            raise FetchError(answer, "no")  # type: ignore[arg-type]
        status, body = answer if headers else without_private(*answer)
        return FetchedAnswer(status, None, body)

    def ask(self, method: str, target: str, *headers: str, body: bytes = b"") -> Answer:
        answer = ask(self.app, method, target, *headers, body=body)
        for secret in (KEY, TOKEN, b"hunter2"):
            assert secret not in answer.raw
        return answer


def without_private(status: int, body: bytes) -> tuple[int, bytes]:
    """What the platform answers to who asks without a key."""
    try:
        answer = json.loads(body)
    except ValueError:
        return status, body
    if isinstance(answer, dict) and answer.get("public") is False:
        return 404, b'{"detail":"Chute not found"}'
    if isinstance(answer, dict) and isinstance(answer.get("items"), list):
        public = [each for each in answer["items"] if not isinstance(each, dict) or each.get("public") is not False]
        if len(public) < len(answer["items"]):
            body = json.dumps({**answer, "items": public, "total": len(public)}).encode()
    return status, body


def mounted(parts: ExplorerParts | None, why: Callable[[], ApiError] = switched_off) -> Klein:
    """An app as the service's root is one, with nothing but the explorer."""
    app = Klein()
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.url_map.redirect_defaults = False
    install_error_answers(app)
    if parts is None:
        close_explorer(app, why)
    else:
        mount_explorer(app, parts)
    return app


def ask(app: Klein, method: str, target: str, *headers: str, body: bytes = b"") -> Answer:
    """One request on a connection of its own."""

    def refused(request: GatewayRequest, error: ApiError) -> None:
        pass

    clock = Clock()
    site = GatewaySite(app.resource(), clock, LIMITS, refused, ClientConnections(1), Deadlines(clock))
    channel = site.buildProtocol(None)
    transport = StringTransport()
    channel.makeConnection(transport)
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *headers, f"Content-Length: {len(body)}", "Connection: close"]
    channel.dataReceived("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    return Answer(channel, transport)
