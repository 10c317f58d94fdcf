"""The front channel: reads the one ordinary chat request straight from the bytes.

twisted.web spends many times the CPU of a relay on parsing a request, finding its route and writing its answer. For
the request that is nearly all of the traffic this channel does it in one pass; whatever is not exactly ordinary
(wire.ordinary) goes, with every byte read so far, to twisted.web and Klein, which stay the reference of behaviour.
"""

from collections.abc import Iterator
from os import urandom
from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from chutes_autopilot.edge.downstream import FrontDownstream
from chutes_autopilot.errors import ApiError
from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.relay.call import ChatCall, Client, peer_of
from chutes_autopilot.relay.chat import ChatRelay
from chutes_autopilot.relay.exchange import Exchange
from chutes_autopilot.relay.recall import RecalledExchange
from chutes_autopilot.web.body_room import UNCOUNTED_BYTES, no_room
from chutes_autopilot.web.channel import LINGER_SECONDS, Awaited, GatewayChannel
from chutes_autopilot.web.request import GatewayRequest
from chutes_autopilot.web.site import GatewaySite
from chutes_autopilot.wire.headers import EXPLAIN, REQUEST_ID, acceptable_request_id
from chutes_autopilot.wire.ordinary import REQUEST_LINE_START, OrdinaryHead, read_ordinary_head


class FrontChannel(GatewayChannel):
    """One client connection.

    ::

        BOUNDARY ──ordinary head──▶ BODY ──all of it──▶ BUSY ──answer over──▶ BOUNDARY
                 ──anything else──▶ twisted.web, until it is between two requests again

    While BUSY, the bytes of further requests are kept, and have their turn as with every `GatewayChannel`.
    """

    site: "FrontSite"
    _head: OrdinaryHead | None = None
    """Of the request whose body is being received."""
    _body: list[bytes | memoryview]
    _length = 0
    _missing = 0
    _last_head: OrdinaryHead | None = None
    """Of the last request; the next one mostly differs in its length alone."""
    _exchange: Exchange | RecalledExchange | None = None
    _downstream: FrontDownstream | None = None
    _client: Client
    _named: OrdinaryHead | None = None

    def dataReceived(self, data: bytes) -> None:
        if self._handlingRequest:
            self.keep_ahead(data)
        elif self._head is not None and not self._lingering:
            self._body_received(data)
        elif (
            # twisted.web holds nothing of a request, and another one may come
            not self.requests
            and not self._buffer
            and not self._lingering
            and self.line_mode
            and not self.site.connections.draining
            and self._head_received(data)
        ):
            return
        else:
            super().dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        exchange, self._exchange = self._exchange, None
        try:
            if exchange is not None:
                exchange.client_gone()
        finally:
            super().connectionLost(reason)

    @property
    def idle(self) -> bool:
        """Whether no request is being received or answered."""
        return super().idle and self._head is None

    def awaited(self) -> Awaited | None:
        return super().awaited() if self._head is None else Awaited.BODY

    def incoming(self) -> GatewayRequest:
        request = super().incoming()
        if self._head is not None:
            request.aim(b"POST", self._head.target, b"HTTP/1.1")
            request.received_bytes = self._length - self._missing
        return request

    def abandoned(self) -> None:
        head = self._head
        if head is None:
            super().abandoned()
        else:
            path = head.target.partition(b"?")[0]
            self.site.abandoned(path, self._request_id(head), self._length - self._missing)

    def written(self) -> int | None:
        return super().written() if self._downstream is None else self._downstream.written

    def linger(self, seconds: float = LINGER_SECONDS) -> None:
        self._head, self._body = None, []
        super().linger(seconds)

    def forget_head(self) -> None:
        """Hold that of the request under way no longer: the next one is read anew."""
        self._last_head = self._named = None

    def forget_client(self) -> None:
        """The next request may have the same head, but what it says of its sender is read anew."""
        self._named = None

    def _may_continue(self, written: int | None) -> bool:
        return written == 0 if self._downstream is not None else super()._may_continue(written)

    def _head_received(self, data: bytes) -> bool:
        """Take an ordinary head; False where it is none."""
        head = self._last_head
        framing = None if head is None else head.framing(data)
        if framing is None:
            head = read_ordinary_head(data) if data.startswith(REQUEST_LINE_START) else None
            framing = None if head is None else head.framing(data)
            if framing is not None:
                self._last_head = head
        if head is None or framing is None:
            return False
        length, start = framing
        end = start + length
        if length > self.site.limits.max_request_bytes:
            return False
        if length > UNCOUNTED_BYTES and not self.hold(min(length, len(data) - start)):
            self._head, self._length, self._missing = head, length, max(0, end - len(data))
            self.refuse(no_room())
        elif len(data) == end:
            self._answer(head, data[start:], b"")
        elif len(data) > end:
            self._answer(head, data[start:end], data[end:])
        else:
            self._head = head
            self._body = [memoryview(data)[start:]]
            self._length = length
            self._missing = end - len(data)
            self.watch_client()
        return True

    def _body_received(self, data: bytes) -> None:
        missing = self._missing
        self._body.append(data[:missing])
        self._missing = max(0, missing - len(data))
        if self._length > UNCOUNTED_BYTES and not self.hold(self._length - self._missing):
            self.refuse(no_room())
        elif self._missing == 0 and self._head is not None:
            head, self._head = self._head, None
            body, self._body = b"".join(self._body), []
            self._answer(head, body, data[missing:])

    def _answer(self, head: OrdinaryHead, body: bytes, ahead: bytes) -> None:
        """Relay the request; the channel is busy until its answer is over.

        :param ahead: what came behind the request already.
        """
        self._handlingRequest = True  # twisted.web's own word for it: back-pressure then does not stop our reading
        if self._awaited is not Awaited.NEXT_REQUEST:
            self.pause_time()  # else its time may as well go on: nothing comes of it while a request is answered
        if self._waitingForTransport:
            self._networkProducer.resumeProducing()  # it came though reading was paused; while it is answered it is not
        if ahead:
            self.keep_ahead(ahead)
        client, site = self._client if head is self._named else self._client_of(head), self.site
        sent_id = head.index.get(REQUEST_ID)
        request_id = (acceptable_request_id(sent_id) if sent_id else None) or next(site.random_ids)
        fields = b"%bX-Request-Id: %b\r\n" % (head.upstream_fields, request_id.encode())
        call = ChatCall(b"POST", head.target, fields, body, request_id, client)
        downstream = self._downstream = FrontDownstream(self, self.transport, self.direct_write, request_id)
        try:
            exchange = site.relay.open(call, downstream, self._answer_over)
        except ApiError as error:
            downstream.refuse(error)
            self._answered()
            return
        self._exchange = exchange
        exchange.start()

    def _request_id(self, head: OrdinaryHead) -> str:
        return acceptable_request_id(head.index.get(REQUEST_ID)) or next(self.site.random_ids)

    def _answer_over(self, record: RequestRecord, error: ApiError | None) -> None:
        self._exchange = None
        if error is not None and self._downstream is not None:
            self._downstream.refuse(error)
        if error is not None or record.outcome == "complete":
            self._answered()

    def _client_of(self, head: OrdinaryHead) -> Client:
        """The sender as this head names it; the same object as long as a connection's requests have the same head."""
        index = head.index
        forwarded_for = index.get(b"x-forwarded-for")
        self._client = Client(
            peer_of(self.transport.getPeer()),
            index.get(b"authorization"),
            () if forwarded_for is None else (forwarded_for,),
            index.get(b"x-session-id"),
            index.get(b"x-session-affinity"),
            index.get(EXPLAIN) == b"1",
            index.get(b"traceparent"),
            index.get(b"tracestate"),
        )
        self._named = head
        return self._client

    def _answered(self) -> None:
        """The answer is complete: the next request may come, or is already here."""
        self._downstream = None
        if self._held:
            self.release()
        if self._dataBuffer and self.persistent:
            self.await_turn()
        elif self.site.connections.idle_closed or not self.persistent:
            self.loseConnection()
        else:
            self._handlingRequest = False
            if self._waitingForTransport:
                self._networkProducer.pauseProducing()
            self.resume_time()


class FrontSite(GatewaySite):
    """The listening factory whose channels read ordinary chat requests themselves.

    :param relay: what answers them.
    """

    protocol: Any = FrontChannel

    def __init__(self, relay: ChatRelay, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.relay = relay
        self.random_ids = _random_ids()


def _random_ids() -> Iterator[str]:
    """Request ids, made many at a time: for each one the kernel would be asked anew."""
    while True:
        block = urandom(4096).hex()
        for at in range(0, len(block), 32):
            yield block[at : at + 32]
