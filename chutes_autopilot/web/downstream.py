"""The client's side of an exchange over a twisted.web request."""

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from chutes_autopilot.interfaces import IDownstream
from chutes_autopilot.upstream.direct import unsent_bytes
from chutes_autopilot.web.site import GatewayRequest
from chutes_autopilot.wire.headers import downstream_response_headers
from chutes_autopilot.wire.http1 import ResponseHead


@implementer(IDownstream)
class RequestDownstream:
    """Writes the relayed answer; Klein finishes the request when the route's Deferred fires."""

    def __init__(self, request: GatewayRequest) -> None:
        self._request = request

    def start(self, head: ResponseHead, own: bytes, producer: IPushProducer, keeps_body: bool = False) -> None:
        self._begin(head, own)
        self._request.registerProducer(producer, True)
        if self._request.channel is not None and not keeps_body:
            self._request.channel.release()

    def answer(self, head: ResponseHead, own: bytes, data: bytes) -> None:
        self._begin(head, own)
        self._request.write(data)

    def _begin(self, head: ResponseHead, own: bytes) -> None:
        """Set the head as the upstream sent it: twisted.web's own Server and, where there is one, Date give way."""
        request = self._request
        request.setResponseCode(head.status, head.reason)
        set_here = request.responseHeaders
        set_here.removeHeader(b"Server")
        if b"date" in head.index:
            set_here.removeHeader(b"Date")
        for name, value in downstream_response_headers(head.headers, head.status):
            set_here.addRawHeader(name, value)
        for line in own.split(b"\r\n")[:-1]:
            name, _, value = line.partition(b": ")
            set_here.addRawHeader(name, value)

    def write(self, data: bytes, framed: bytes = b"") -> None:
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
