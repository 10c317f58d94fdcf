"""How twisted.web is bent to a gateway: strict and bounded channels, no access log, no HTML, no invented headers."""

from collections.abc import Callable
from time import time
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.web.http import datetimeToString
from twisted.web.resource import IResource
from twisted.web.server import Site

from chutes_autopilot.errors import ApiError
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.web.channel import GatewayChannel
from chutes_autopilot.web.connections import ClientConnections
from chutes_autopilot.web.request import CUT_SECONDS, GatewayRequest
from chutes_autopilot.web.timed import ClientLimits

__all__ = ["CUT_SECONDS", "ClientLimits", "GatewayChannel", "GatewayRequest", "GatewaySite"]


def _anybody(_request: GatewayRequest) -> None:
    """Where nobody has to be admitted."""


class DateLine:
    """The Date header of answers (RFC 9110 section 6.6.1), made once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def line(self) -> bytes:
        """As it is now, with its line end."""
        second = int(time())
        if second != self._second:
            self._second = second
            self._line = b"Date: %b\r\n" % datetimeToString(second)
        return self._line


class GatewaySite(Site):
    """The listening factory.

    :param limits: what a client may take; may be replaced at any time.
    :param refused: told of each request that was refused before all of it was received.
    :param connections: every channel is in it while it is open.
    """

    protocol: Any = GatewayChannel
    noisy = False

    def __init__(
        self,
        resource: IResource,
        clock: IReactorTime,
        limits: ClientLimits,
        refused: Callable[[GatewayRequest, ApiError], None],
        connections: ClientConnections,
        deadlines: Deadlines,
    ) -> None:
        super().__init__(resource, requestFactory=GatewayRequest, reactor=clock, parsePOSTFormSubmission=False)
        self.limits = limits
        self.refused = refused
        self.connections = connections
        self.deadlines = deadlines
        self.date = DateLine()
        self.admit: Callable[[GatewayRequest], object] = _anybody
        """Raises the ApiError that a request gets before it is told that its body is too large."""
        self.abandoned: Callable[[bytes, str, int], object] = lambda path, request_id, received: None
        """Told of each request whose client left while it was being received: path, id, bytes of its body."""

    @property
    def max_request_bytes(self) -> int:
        """The largest body that is read."""
        return self.limits.max_request_bytes

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 alone: twisted.web would offer HTTP/2 over TLS wherever the h2 package happens to be installed."""
        return [b"http/1.1"]

    def startFactory(self) -> None:
        """No log file, and no clock ticking for its time stamps."""

    def log(self, request: Any) -> None:
        """No access log: its lines hold client addresses."""
