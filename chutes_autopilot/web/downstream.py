"""The client's side of an exchange over a twisted.web request."""

from collections.abc import Iterable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from chutes_autopilot.interfaces import IDownstream
from chutes_autopilot.web.site import GatewayRequest
from chutes_autopilot.wire.headers import Header


@implementer(IDownstream)
class RequestDownstream:
    """Writes the relayed answer; Klein finishes the request when the route's Deferred fires."""

    def __init__(self, request: GatewayRequest) -> None:
        self._request = request

    def start(self, status: int, reason: bytes, headers: Iterable[Header], producer: IPushProducer) -> None:
        """Write the head as the upstream sent it: twisted.web's own Server and, where there is one, Date give way."""
        request = self._request
        request.setResponseCode(status, reason)
        own = request.responseHeaders
        own.removeHeader(b"Server")
        headers = list(headers)
        if any(name.lower() == b"date" for name, _ in headers):
            own.removeHeader(b"Date")
        for name, value in headers:
            own.addRawHeader(name, value)
        request.registerProducer(producer, True)

    def write(self, data: bytes) -> None:
        self._request.write(data)

    def finish(self) -> None:
        if self._request.channel is not None:
            self._request.unregisterProducer()

    def abort(self) -> None:
        self._request.cut()

    def unsent(self) -> int:
        channel = self._request.channel
        return 0 if channel is None else unsent_bytes(channel.transport)

    def reset(self) -> None:
        if self._request.channel is not None:
            self._request.channel.forceAbortClient()


def unsent_bytes(transport: Any) -> int:
    """What a transport of Twisted's has yet to give to the kernel; a TLS transport answers for the one below it."""
    return len(transport.dataBuffer) - int(transport.offset) + int(transport._tempDataLen)
