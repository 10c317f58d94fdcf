"""A platform on loopback that answers each path as a test says."""

import json
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

NOW = "@the time of the answer@"


def answer(body: Any, status: int = 200, date: datetime | str | None = NOW, *headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    said = format_datetime(date, usegmt=True) if isinstance(date, datetime) else date
    dated = [f"Date: {said}"] if said else []
    lines = [f"HTTP/1.1 {status} X", *dated, *headers, f"Content-Length: {len(data)}", "", ""]
    return "\r\n".join(lines).encode() + data


def row(name: str = "a/A", **changes: Any) -> dict[str, Any]:
    timestamp = datetime.now(UTC).replace(tzinfo=None).isoformat()
    numbers = {"active_instance_count": 4, "utilization_5m": 0.25, "timestamp": timestamp}
    return {"name": name, "chute_id": f"id of {name}", **numbers, **changes}


def models(*names: str) -> dict[str, Any]:
    return {"data": [{"id": name, "chute_id": f"id of {name}"} for name in names]}


class _Side(Protocol):
    def __init__(self, platform: "Platform") -> None:
        self.platform = platform
        self.buffer = b""
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.platform.sides.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            self.platform.heads.append(head)
            said = self.platform.answers.get(head.split(b" ")[1].decode())
            if said is not None:
                now = format_datetime(datetime.now(UTC), usegmt=True)
                self.transport.write(said.replace(NOW.encode(), now.encode()))

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.lost.callback(None)


@define(eq=False)
class Platform:
    """Silent on every path that has no answer."""

    answers: dict[str, bytes] = field(
        factory=lambda: {
            "/v1/models": answer(models("a/A", "b/B")),
            "/chutes/utilization": answer([row("a/A"), row("b/B", utilization_5m=0.5)]),
            "/model_aliases/": answer([]),
        }
    )
    heads: list[bytes] = field(factory=list)
    sides: list[_Side] = field(factory=list)
    ports: list[Any] = field(factory=list)

    def listen(self, context: Any = None) -> int:
        from twisted.internet import reactor

        factory = Factory.forProtocol(lambda: _Side(self))
        factory.noisy = False
        where = {"interface": "127.0.0.1"}
        port = reactor.listenSSL(0, factory, context, **where) if context else reactor.listenTCP(0, factory, **where)
        self.ports.append(port)
        number: int = port.getHost().port
        return number

    def listen_unix(self, path: str) -> None:
        from twisted.internet import reactor

        factory = Factory.forProtocol(lambda: _Side(self))
        factory.noisy = False
        self.ports.append(reactor.listenUNIX(path, factory))
