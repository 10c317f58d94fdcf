"""One request of the agent and its response: the head when it comes, the body at the pace of whoever reads it."""

from collections import deque

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import IProtocol, IPushProducer
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IClientRequest, IResponse
from zope.interface import implementer

from chutes_autopilot.upstream.connection import UpstreamConnection
from chutes_autopilot.upstream.opening import Opening
from chutes_autopilot.upstream.pool import Backend, ConnectionPool
from chutes_autopilot.wire.http1 import ResponseHead


@implementer(IClientRequest)
@attrs.frozen
class AgentRequest:
    """What was asked, for whoever gets the response."""

    method: bytes
    absoluteURI: bytes
    headers: Headers


@implementer(IResponse)
@attrs.define(eq=False)
class AgentResponse:
    """The head of an answer, and the way to its body."""

    version = (b"HTTP", 1, 1)
    code: int
    phrase: bytes
    headers: Headers
    length: int | str
    request: IClientRequest
    body: "Body" = attrs.field(repr=False)
    previousResponse: IResponse | None = attrs.field(default=None, init=False)

    def deliverBody(self, protocol: IProtocol) -> None:
        """Give the body to ``protocol``, once; its transport pauses, resumes, and closes the connection."""
        self.body.deliver(protocol)

    def setPreviousResponse(self, response: IResponse) -> None:
        """Remember which redirect led here."""
        self.previousResponse = response


@implementer(IPushProducer)
class Body:
    """Brings a body to its reader, and is what the reader sees of the connection.

    Until there is a reader, and while the reader has paused, the connection is not read: only what one read had
    brought by then is kept here.
    """

    disconnecting = False

    def __init__(self, connection: UpstreamConnection | None) -> None:
        self._connection = connection
        self._pieces: deque[bytes] = deque()
        self._end: Exception | None = None
        self._protocol: IProtocol | None = None
        self._paused = True
        self._aborted = False
        self._delivering = False

    def deliver(self, protocol: IProtocol) -> None:
        """The reader is there."""
        if self._protocol is not None:
            raise RuntimeError("a body can be delivered once")
        self._protocol = protocol
        protocol.makeConnection(self)  # type: ignore[arg-type]  # like Twisted's own: reading is all it can
        self.resumeProducing()

    def hold(self) -> None:
        """Read no further while there is no reader."""
        if self._protocol is None and self._connection is not None:
            self._connection.pause()

    def received(self, data: bytes) -> None:
        """The connection brought some of the body."""
        if not self._aborted:
            self._pieces.append(data)
            self._flush()

    def ended(self, end: Exception) -> None:
        """No more will come, for the reason that ``end`` tells; the connection is somebody else's."""
        self._connection = None
        self._end = ResponseFailed([Failure(ConnectionAborted())]) if self._aborted else end
        self._flush()

    def pauseProducing(self) -> None:
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resumeProducing(self) -> None:
        self._paused = False
        self._flush()
        if not self._paused and not self._aborted and self._connection is not None:
            self._connection.resume()

    def stopProducing(self) -> None:
        self.abortConnection()

    def loseConnection(self) -> None:
        self.abortConnection()

    def abortConnection(self) -> None:
        self._aborted = True
        self._pieces.clear()
        if self._connection is not None:
            self._connection.close()
        elif self._end is not None:
            self.ended(self._end)

    def _flush(self) -> None:
        protocol = self._protocol
        if protocol is None or self._delivering:
            return
        self._delivering = True
        try:
            while self._pieces and not self._paused:
                protocol.dataReceived(self._pieces.popleft())
        except Exception as error:  # noqa: BLE001 - a reader that fails, as on broken gzip, fails its response only
            self.abortConnection()
            self._end = error
        self._delivering = False
        if self._end is not None and not self._pieces:
            self._delivering = True  # for good: this is the last the reader hears
            protocol.connectionLost(Failure(self._end))


class AgentExchange:
    """Sends one request and gives its response; a `ResponseReceiver`.

    :param data: the request, head and body.
    """

    def __init__(self, pool: ConnectionPool, backend: Backend, request: AgentRequest, data: bytes) -> None:
        self._pool = pool
        self._backend = backend
        self._request = request
        self._data = data
        self._responded: Deferred[IResponse] = Deferred(self._cancel)
        self._opening: Opening | None = None
        self._connection: UpstreamConnection | None = None
        self._reused = False
        self._response: AgentResponse | None = None
        self._until_close = False

    def start(self) -> Deferred[IResponse]:
        """Send the request, a GET on an idle connection where there is one."""
        idle = self._pool.take_idle(self._backend) if self._request.method == b"GET" else None
        if idle is None:
            self._connect()
        else:
            self._reused = True
            self._send(idle)
        return self._responded

    def _connect(self) -> None:
        self._opening = self._pool.begin(self._backend, self._send, self._not_connected)

    def _not_connected(self) -> None:
        self._responded.errback(self._opening.reason if self._opening is not None else ConnectError())

    def _send(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        connection.send(self._data, self)

    def _cancel(self, _: object) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._connection is not None:
            self._connection.abort()

    def _respond(self, head: ResponseHead, connection: UpstreamConnection | None) -> AgentResponse:
        headers = Headers()
        for name, value in head.headers:
            headers.addRawHeader(name, value)
        length: int | str = UNKNOWN_LENGTH
        if head.status in (204, 304):
            length = 0
        elif b"content-length" in head.index:
            length = int(head.index[b"content-length"])
        self._until_close = length is UNKNOWN_LENGTH and b"transfer-encoding" not in head.index
        self._response = AgentResponse(head.status, head.reason, headers, length, self._request, Body(connection))
        return self._response

    # what the connection reports

    def wrote(self) -> None:
        """The time for the whole is the caller's."""

    def head(self, head: ResponseHead) -> None:
        response = self._respond(head, self._connection)
        self._responded.callback(response)
        if response.length != 0:
            response.body.hold()

    def body(self, data: bytes, framed: bytes) -> None:
        if self._response is not None:
            self._response.body.received(data)

    def answer(self, head: ResponseHead, data: bytes) -> None:
        response = self._respond(head, None)
        self._connection = None
        response.body.received(data)
        response.body.ended(ResponseDone())
        self._responded.callback(response)

    def end(self) -> None:
        self._connection = None
        if self._response is not None:
            self._response.body.ended(PotentialDataLoss() if self._until_close else ResponseDone())

    def broken(self) -> None:
        connection, self._connection = self._connection, None
        lost = [Failure(ConnectionLost())]
        if self._response is not None:
            self._response.body.ended(ResponseFailed(lost, self._response))
        elif self._reused and connection is not None and connection.silent:
            self._reused = False
            self._connect()
        else:
            self._responded.errback(ResponseNeverReceived(lost))
