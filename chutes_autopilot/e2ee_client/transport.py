"""HTTP to the gateway as the encryption needs it: the exact bytes of every body, bounded, and nothing remembered.

This is Twisted's Agent and not treq's client on top of it: that one always asks for gzip and unpacks what comes
without a bound, while signatures are over the wire bytes, and it keeps cookies, by which whoever sits in between could
tell one exchange's client from another's.
"""

from collections.abc import Iterable
from io import BytesIO
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IConsumer, IReactorTCP, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from chutes_autopilot.e2ee_client.errors import GatewayFailed

CONNECT_SECONDS = 15.0
IDLE_CONNECTION_SECONDS = 20
"""How long an unused connection is kept: less than servers do, for a request is never repeated on another one."""


def build_agent(reactor: Any) -> tuple[Agent, HTTPConnectionPool]:
    """What requests go through, and the pool to close in the end; TLS is checked against the system's roots."""
    pool = HTTPConnectionPool(cast(IReactorTCP, reactor))
    pool.retryAutomatically = False
    pool.cachedConnectionTimeout = IDLE_CONNECTION_SECONDS
    return Agent(reactor, connectTimeout=CONNECT_SECONDS, pool=pool), pool


@implementer(IBodyProducer)
class BytesBody:
    """A request body that is in memory."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """All of it was written at once."""

    def resumeProducing(self) -> None:
        """All of it was written at once."""

    def stopProducing(self) -> None:
        """All of it was written at once."""


async def send(
    agent: IAgent, method: bytes, url: str, headers: Iterable[tuple[str, str]], body: bytes | None = None
) -> IResponse:
    """The head of the answer; its body waits to be read.

    Raises GatewayFailed where no answer came, and for a body that is coded: what is hashed and opened is the bytes.
    """
    sent = Headers({"Accept-Encoding": ["identity"]})
    for name, value in headers:
        sent.addRawHeader(name, value)
    try:
        response: IResponse = await agent.request(
            method, url.encode("ascii"), sent, None if body is None else BytesBody(body)
        )
    except CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 - every failure of the network or of TLS is this one to the user
        raise unreachable(error) from None
    coding = header(response, "Content-Encoding")
    if coding is not None and coding.lower() != "identity":
        abandon(response)
        raise GatewayFailed("gateway_answer_coded", "The gateway's answer is compressed, which was not asked for.")
    return response


def unreachable(error: Exception) -> GatewayFailed:
    """The gateway could not be reached or the connection broke; names the kind of failure and no address."""
    inner = getattr(error, "reasons", None)
    kind = type(inner[0].value if inner else error).__name__
    return GatewayFailed("gateway_unreachable", f"The gateway could not be reached, or it hung up ({kind}).")


def header(response: IResponse, name: str) -> str | None:
    """A header's value; where there are several of the name, none of them can be relied on."""
    values = response.headers.getRawHeaders(name, ())
    return values[0] if len(values) == 1 else None


class BodyReceiver(Protocol):
    """Reads a body that can be left at any time; subclasses say what for."""

    def abort(self) -> None:
        """Cut the connection, also where the peer does not answer any more."""
        if self.transport is None:
            return
        # Twisted's proxy for the transport has loseConnection only, and over TLS that waits for the peer's goodbye
        transport: Any = getattr(self.transport, "_producer", None) or self.transport
        getattr(transport, "abortConnection", transport.loseConnection)()


class _WholeBody(BodyReceiver):
    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._body = BytesIO()
        self.complete: Deferred[bytes] = Deferred(lambda _: self.abort())

    def dataReceived(self, data: bytes) -> None:
        if self.complete.called:
            return
        self._left -= len(data)
        if self._left < 0:
            self._body.close()
            self.complete.errback(GatewayFailed("gateway_answer_too_large", "The gateway's answer is too large."))
            self.abort()
        else:
            self._body.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.complete.called:
            return
        if ended_whole(reason):
            self.complete.callback(self._body.getvalue())
        else:
            self.complete.errback(unreachable(cast(Exception, reason.value)))


def ended_whole(reason: Failure) -> bool:
    """Whether a body ended where HTTP says so, or by the close of a connection that gave no length."""
    return isinstance(reason.value, ResponseDone | PotentialDataLoss)


def read_whole(response: IResponse, max_bytes: int) -> Deferred[bytes]:
    """The body; fails with GatewayFailed. Cancelling cuts the connection."""
    reading = _WholeBody(max_bytes)
    response.deliverBody(reading)
    return reading.complete


def abandon(response: IResponse) -> None:
    """Read nothing of an answer's body and cut its connection."""
    receiver = BodyReceiver()
    response.deliverBody(receiver)
    receiver.abort()


def within(clock: IReactorTime, seconds: float, answer: Deferred[Any]) -> Deferred[Any]:
    """The same Deferred, which fails with GatewayFailed unless it fires in time."""

    def late(_result: object, _seconds: float) -> None:
        raise GatewayFailed("gateway_timeout", f"The gateway did not answer within {seconds:g} seconds.")

    return answer.addTimeout(seconds, clock, onTimeoutCancel=late)
