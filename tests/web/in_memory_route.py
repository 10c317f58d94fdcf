"""A Klein app behind the gateway's own site, asked over a connection in memory."""

import json
from typing import Any

import attrs
from klein import Klein
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from chutes_autopilot.errors import ApiError
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.web.answers import install_error_answers
from chutes_autopilot.web.connections import ClientConnections
from chutes_autopilot.web.site import ClientLimits, GatewayRequest, GatewaySite

LIMITS = ClientLimits(max_request_bytes=1000, header_timeout=30, body_timeout=60, idle_timeout=75)


@attrs.define(eq=False)
class Asked:
    """One request and what has been answered so far."""

    channel: Any
    transport: StringTransport

    @property
    def answered(self) -> bool:
        return bool(self.transport.value())

    @property
    def status(self) -> int:
        return int(self.transport.value().split(b" ", 2)[1])

    @property
    def body(self) -> bytes:
        head, _, body = self.transport.value().partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head.lower()
        return body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str | None]:
        """Status, code and parameter of an error of the Chutes route, whose type is its code."""
        error = self.json["error"]
        assert error["type"] == error["code"]
        return self.status, error["code"], error["param"]

    def header(self, name: str) -> str | None:
        head = self.transport.value().partition(b"\r\n\r\n")[0].decode()
        return dict(line.lower().split(": ", 1) for line in head.splitlines()[1:]).get(name)

    def leave(self) -> None:
        self.channel.connectionLost()


def app() -> Klein:
    """An app without routes, with the gateway's error answers."""
    made = Klein()
    install_error_answers(made)
    return made


def get(app: Klein, target: str, *headers: str) -> Asked:
    """Ask for a target; what waits for something is answered when that has come."""

    def refused(request: GatewayRequest, error: ApiError) -> None:
        raise AssertionError(error)

    clock = Clock()
    site = GatewaySite(app.resource(), clock, LIMITS, refused, ClientConnections(1), Deadlines(clock))
    channel = site.buildProtocol(None)
    transport = StringTransport()
    channel.makeConnection(transport)
    lines = [f"GET {target} HTTP/1.1", "Host: x", *headers, "Connection: close"]
    channel.dataReceived("\r\n".join(lines).encode() + b"\r\n\r\n")
    return Asked(channel, transport)
