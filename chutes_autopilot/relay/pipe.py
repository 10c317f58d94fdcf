"""The one byte mover: after the commit boundary only this touches the upstream attempt and the client."""

from collections.abc import Callable

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from chutes_autopilot.interfaces import IAttemptObserver, IDownstream, IUpstreamAttempt
from chutes_autopilot.policy.failover import ConnectFailed, DeadlinePassed, Lost
from chutes_autopilot.wire.http1 import ResponseHead


@implementer(IAttemptObserver, IPushProducer)
class Pipe:
    """Relays body bytes as they arrive, with back-pressure both ways.

    Flow control. The client's transport is the consumer and this pipe its push producer. When the client reads
    more slowly than the upstream writes, the transport's buffer passes its limit and it calls `pauseProducing`:
    the upstream connection stops reading, TCP's window closes and the upstream slows down. When the buffer has
    drained, `resumeProducing` opens it again. Nothing is queued in between, so the memory of a stream is one
    transport buffer plus one read.

    :param ended: called once, with whether the response was relayed to its clean end.
    """

    def __init__(self, attempt: IUpstreamAttempt, downstream: IDownstream, ended: Callable[[bool], None]) -> None:
        self._attempt = attempt
        self._downstream = downstream
        self._ended = ended
        self.bytes_relayed = 0
        """Body bytes given to the client's transport so far."""

    def head(self, head: ResponseHead) -> None:
        raise AssertionError("a committed attempt has had its head")

    def body(self, data: bytes) -> None:
        self.bytes_relayed += len(data)
        self._downstream.write(data)

    def end(self) -> None:
        self._downstream.finish()
        self._ended(True)

    def failed(self, failure: ConnectFailed | Lost | DeadlinePassed) -> None:
        """The upstream died mid-body: the client must see a cut, never a clean end."""
        self._downstream.abort()
        self._ended(False)

    def pauseProducing(self) -> None:
        self._attempt.pause()

    def resumeProducing(self) -> None:
        self._attempt.resume()

    def stopProducing(self) -> None:
        """The client's transport takes no more; its disconnection is reported elsewhere."""
        self._attempt.abort()
