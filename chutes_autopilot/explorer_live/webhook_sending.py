"""One attempt to deliver a webhook: signed, sent to a checked address, and its answer's status, in time."""

from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from chutes_autopilot import __version__
from chutes_autopilot.explorer import addresses
from chutes_autopilot.explorer.webhook_config import WebhookEndpoint
from chutes_autopilot.explorer.webhook_signing import signed_headers
from chutes_autopilot.explorer_live.webhook_connections import AddressRefused, LookUp, Refusal, checked_endpoints
from chutes_autopilot.upstream.agent import PooledAgent
from chutes_autopilot.upstream.pool import ConnectionPool

TIMEOUT = 15.0
"""Seconds from the look-up of the name to the head of the answer, and again to the end of its body."""

CONNECT_TIMEOUT = 10.0
MAX_ANSWER_BYTES = 64 * 1024
"""Of an answer's body, which is not looked at, what is read before the connection is closed."""


class SendFailed(Exception):
    """There was no answer.

    :param reason: for people; holds no URL, no address and nothing of the receiver's.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WebhookSender:
    """Sends messages over connections of its own, one for each: nothing is shared with the traffic.

    :param reactor: provides TCP, TLS and time.
    :param now: Unix time, seconds.
    :param max_open: connections at once.
    :param look_up: finds a receiver's addresses.
    :param refusal: where messages must not go.
    """

    def __init__(
        self,
        reactor: Any,
        trust_root: Any,
        now: Callable[[], float],
        max_open: int,
        look_up: LookUp,
        *,
        refusal: Refusal = addresses.refusal,
    ) -> None:
        self._clock = reactor
        self._now = now
        endpoint_for = checked_endpoints(reactor, trust_root, look_up, refusal)
        self._pool = ConnectionPool(reactor, endpoint_for, CONNECT_TIMEOUT, max_idle=0, max_open=max_open)
        self._agent = PooledAgent(self._pool)

    async def send(self, endpoint: WebhookEndpoint, message_id: str, body: bytes) -> int:
        """The status of the answer, whatever it is; a redirect is an answer like any other.

        :raises SendFailed: there was none.
        """
        headers = Headers({"Content-Type": ["application/json"], "User-Agent": [f"chutes-autopilot/{__version__}"]})
        for name, value in signed_headers(endpoint.key, message_id, int(self._now()), body):
            headers.addRawHeader(name, value)
        answered = self._agent.request(b"POST", endpoint.url.encode(), headers, _Body(body, len(body)))
        try:
            response = await answered.addTimeout(TIMEOUT, self._clock)
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - every failure of the network, TLS or HTTP is one of the attempt
            raise SendFailed(_reason(error)) from None
        discard = _Discard()
        response.deliverBody(discard)
        await discard.ended.addTimeout(TIMEOUT, self._clock)
        return int(response.code)

    def close(self) -> Deferred[None]:
        """Cut every connection; fires when the last one is gone."""
        return self._pool.close()


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, AddressRefused):
        return f"its address is {error.what}"
    if isinstance(error, DNSLookupError):
        return "its name cannot be resolved"
    if isinstance(error, ResponseFailed | ResponseNeverReceived):
        return "no valid answer"
    return f"no connection ({type(error).__name__})"


@implementer(IBodyProducer)
@frozen(eq=False)
class _Body:
    """A message on its way."""

    _data: bytes
    length: int

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """It is written at once."""

    def resumeProducing(self) -> None:
        """It is written at once."""

    def stopProducing(self) -> None:
        """It is written at once."""


class _Discard(Protocol):
    """Reads a body and forgets it: a receiver that still writes is not disturbed, one that never ends is cut off.

    :ivar ended: fires in every case, also when cancelled: the status is known, and that is what counts.
    """

    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred(lambda _: self._cut())
        self._left = MAX_ANSWER_BYTES

    def _cut(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()
        if not self.ended.called:
            self.ended.callback(None)

    def dataReceived(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._cut()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.ended.called:
            self.ended.callback(None)
