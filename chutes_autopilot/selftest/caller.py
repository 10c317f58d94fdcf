"""The client of the test: it sends one request, takes the whole answer, and notices an end that is none."""

import json
from collections.abc import Mapping
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, RequestTransmissionFailed, ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from chutes_autopilot.selftest.reading import End, Heard, read_answer

MAX_BYTES = 1024 * 1024
"""Of an answer; one that has more never comes to its end here."""


@define(eq=False)
class Caller:
    """One gateway's client; its connections are kept alive, as those of SDKs are.

    It speaks HTTP by twisted.web, which shares nothing with the gateway's own reading of it.

    :param reactor: provides TCP and time.
    """

    reactor: Any
    base_url: str
    _pool: HTTPConnectionPool = field(init=False)
    _agent: Agent = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._pool = HTTPConnectionPool(self.reactor)
        self._pool.maxPersistentPerHost = 64
        self._agent = Agent(self.reactor, pool=self._pool)

    async def status(self, path: str) -> int:
        """The status of a GET, 0 where there is none."""
        return (await self._call(b"GET", path, Headers(), None, 5.0)).status

    async def chat(self, body: Mapping[str, Any], who: str, patience: float) -> Heard:
        """One chat request, for a stream.

        :param who: its client, which no other one is taken for.
        :param patience: seconds after which the client leaves.
        """
        headers = Headers({"Content-Type": ["application/json"], "Authorization": [f"Bearer selftest-{who}"]})
        producer = _Body(json.dumps(body).encode())
        return await self._call(b"POST", "/v1/chat/completions", headers, producer, patience)

    def close(self) -> Deferred[Any]:
        """Close what is idle; fires when it is."""
        closed: Deferred[Any] = self._pool.closeCachedConnections()
        return closed

    async def _call(
        self, method: bytes, path: str, headers: Headers, producer: "_Body | None", patience: float
    ) -> Heard:
        began = self.reactor.seconds()
        asking: Deferred[Any] = self._agent.request(method, (self.base_url + path).encode(), headers, producer)
        collector = _Collector(asking)
        leaving = self.reactor.callLater(patience, collector.leave)
        status, end = 0, End.CUT
        try:
            response = await asking
            status = response.code
            response.deliverBody(collector)
            end = await collector.ended
        except (ConnectError, RequestTransmissionFailed, ResponseFailed):
            pass
        if leaving.active():
            leaving.cancel()
        if collector.left:
            end = End.HUNG
        return read_answer(status, b"".join(collector.received), end, self.reactor.seconds() - began)


class _Collector(Protocol):
    """Takes a body to its end, or until it is enough.

    :param asking: fires with the head; what waits for it can leave as well.
    :ivar left: whether the client left before the end.
    """

    def __init__(self, asking: Deferred[Any]) -> None:
        self.received: list[bytes] = []
        self.ended: Deferred[End] = Deferred()
        self.left = False
        self._asking = asking
        self._size = 0

    def dataReceived(self, data: bytes) -> None:
        self.received.append(data)
        self._size += len(data)
        if self._size > MAX_BYTES and not self.left:
            self.leave()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        whole = reason.check(ResponseDone, PotentialDataLoss) is not None
        self.ended.callback(End.CLEAN if whole else End.CUT)

    def leave(self) -> None:
        """Wait no longer."""
        self.left = True
        if self.transport is None:
            self._asking.cancel()
        else:
            self.transport.loseConnection()


@implementer(IBodyProducer)
class _Body:
    """A request body, sent at once."""

    def __init__(self, body: bytes) -> None:
        self.length = len(body)
        self._body = body

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        pass

    def resumeProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        pass
