"""The explorer's page over small data of its own, asked over a connection in memory, and read as a browser would."""

import json
from html.parser import HTMLParser
from typing import Any

import attrs
from klein import Klein
from twisted.internet.defer import execute, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from chutes_autopilot.control.snapshots import Snapshot
from chutes_autopilot.explorer.listing import read_listing
from chutes_autopilot.explorer.loads import read_loads
from chutes_autopilot.explorer.merge import Merged, merge
from chutes_autopilot.explorer.models import read_models
from chutes_autopilot.policy.catalog import parse_catalog
from chutes_autopilot.policy.ranking import rank
from chutes_autopilot.policy.utilization import parse_utilization
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.web.answers import install_error_answers
from chutes_autopilot.web.connections import ClientConnections
from chutes_autopilot.web.explorer.pages import ExplorerPages
from chutes_autopilot.web.explorer.states import Freshness
from chutes_autopilot.web.explorer.static_files import StaticFiles
from chutes_autopilot.web.site import ClientLimits, GatewaySite

LIMITS = ClientLimits(max_request_bytes=1000, header_timeout=30, body_timeout=60, idle_timeout=75)
FRESH = tuple(Freshness(source, 4, "fresh") for source in ("chutes", "v1", "utilization"))


def uuid(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def chute(number: int, name: str, **members: Any) -> dict[str, Any]:
    return {"chute_id": uuid(number), "name": name, "public": True, "standard_template": "vllm", **members}


def model(number: int, name: str, **members: Any) -> dict[str, Any]:
    known = {"input_modalities": ["text"], "output_modalities": ["text"], "context_length": 1000 * number}
    return {"id": name, "chute_id": uuid(number), **known, **members}


def load(number: int, name: str, **members: Any) -> dict[str, Any]:
    known = {"active_instance_count": 2, "total_instance_count": 2, "utilization_current": 0.5}
    return {"chute_id": uuid(number), "name": name, **known, "total_requests_1h": 100 * number, **members}


CHUTES = [
    chute(1, "acme/Alpha", user={"username": "acme"}, created_at="2026-01-02T03:04:05"),
    chute(2, "acme/Beta", tee=True, current_estimated_price={"per_million_tokens": {"input": {"usd": 0.25}}}),
    chute(3, "painter", standard_template="diffusion", current_estimated_price={"per_step": {"usd": 0.002}}),
]
MODELS = [
    model(1, "acme/Alpha", pricing={"prompt": 0.5, "completion": 1.5, "input_cache_read": 0}),
    model(2, "acme/Beta", confidential_compute=True, quantization="fp8", pricing={"prompt": 0.2}),
]
LOADS = [load(1, "acme/Alpha"), load(2, "acme/Beta", utilization_current=0.9, rate_limit_ratio_5m=0.25)]


def merged(chutes: list[Any] = CHUTES, models: list[Any] = MODELS, loads: list[Any] = LOADS) -> Merged:
    return merge(
        read_listing(json.dumps({"items": chutes}).encode(), show_private=False),
        read_models(json.dumps({"data": models}).encode()),
        read_loads(json.dumps(loads).encode()),
    )


def snapshot(models: list[Any] = MODELS, loads: list[Any] = LOADS) -> Snapshot:
    catalog = parse_catalog(json.dumps({"object": "list", "data": models}).encode())
    return Snapshot(id=7, catalog=catalog, ranking=rank(parse_utilization(json.dumps(loads).encode()).rows, catalog))


@attrs.define(eq=False)
class Node:
    """An element: what it holds, as far as tests look."""

    name: str
    attributes: dict[str, str | None]
    children: list["Node"]
    texts: list[str]

    @property
    def text(self) -> str:
        """All text in it, as it is read."""
        return " ".join(" ".join(self.texts).split())

    def find(self, name: str = "", /, **attributes: str) -> list["Node"]:
        """All elements inside of this name that have these attributes; ``class_`` needs one of the classes."""
        found = []
        for child in self.children:
            if name in ("", child.name) and all(child.has(key, value) for key, value in attributes.items()):
                found.append(child)
            found += child.find(name, **attributes)
        return found

    def one(self, name: str = "", /, **attributes: str) -> "Node":
        """The only such element."""
        (found,) = self.find(name, **attributes)
        return found

    def has(self, key: str, value: str | None) -> bool:
        given = self.attributes.get(key.rstrip("_").replace("_", "-"))
        return value in (given or "").split() if key == "class_" else given == value


class Reader(HTMLParser):
    """Makes a tree of HTML; fails where an element is not closed."""

    _void = frozenset({"input", "link", "meta", "br"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("", {}, [], [])
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs), [], [])
        self._open[-1].children.append(node)
        if tag not in self._void:
            self._open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().name == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        for node in self._open:
            node.texts.append(data)


def tree(html: bytes) -> Node:
    reader = Reader()
    reader.feed(html.decode())
    reader.close()
    assert len(reader._open) == 1
    return reader.root


@attrs.define(eq=False)
class Answer:
    raw: bytes

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        lines = self.raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def page(self) -> Node:
        return tree(self.body)


class PageService:
    """The pages with what a test changes of what they are given."""

    def __init__(self, **given: Any) -> None:
        self.clock = Clock()
        usual: dict[str, Any] = {
            "truth": merged,
            "ranking": snapshot,
            "sparklines": dict,
            "freshness": lambda: FRESH,
            "changes": lambda limit: (),
            "now": self.clock.seconds,
            "in_thread": execute,
            "pause": lambda: succeed(None),
            "files": StaticFiles.load(),
        }
        self.pages = ExplorerPages(**{**usual, **given})
        self.app = Klein()
        install_error_answers(self.app)
        self.app.route("/", endpoint="/")(lambda request: self.pages.models(request))
        self.app.route("/live", endpoint="/live")(lambda request: self.pages.live(request))
        self.app.route("/merge", endpoint="/merge")(lambda request: self.pages.merge(request))
        self.app.route("/changes", endpoint="/changes")(lambda request: self.pages.changes_page(request))
        self.app.route("/static/<path:name>", endpoint="/static/<path:name>")(
            lambda request, name: self.pages.static(request, name)
        )

    def get(self, target: str, *headers: str, host: str = "x") -> Answer:
        return Answer(self.ask(target, *headers, host=host).value())

    def ask(self, target: str, *headers: str, host: str = "x") -> StringTransport:
        """Where the answer comes to, which may take a while."""
        clock = Clock()
        site = GatewaySite(
            self.app.resource(), clock, LIMITS, lambda *refused: None, ClientConnections(1), Deadlines(clock)
        )
        channel = site.buildProtocol(None)
        transport = StringTransport()
        channel.makeConnection(transport)
        lines = [f"GET {target} HTTP/1.1", f"Host: {host}", *headers, "Connection: close"]
        channel.dataReceived("\r\n".join(lines).encode() + b"\r\n\r\n")
        return transport

    def page(self, target: str) -> Node:
        """The page there, which must be one."""
        answer = self.get(target)
        assert answer.status == 200
        return answer.page
