"""A request body out of whatever produces it, whole before it is sent."""

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

MAX_BODY_BYTES = 1024 * 1024


@implementer(IConsumer)
class _Collector:
    """Takes what a producer writes."""

    def __init__(self, producer: IBodyProducer) -> None:
        self._producer = producer
        self.pieces: list[bytes] = []
        self.left = MAX_BODY_BYTES

    def write(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left >= 0:
            self.pieces.append(data)
        else:
            self.pieces.clear()

    def registerProducer(self, producer: object, streaming: bool) -> None:
        pass

    def unregisterProducer(self) -> None:
        pass


def collect_body(producer: IBodyProducer) -> Deferred[bytes]:
    """Everything the producer has. Fails with ValueError over MAX_BODY_BYTES, and where its length proves wrong.

    Cancelling stops the producer.
    """
    collector = _Collector(producer)
    collected: Deferred[bytes] = Deferred(lambda _: producer.stopProducing())

    def produced(_: object) -> None:
        if collected.called:
            return
        body = b"".join(collector.pieces)
        if collector.left < 0 or producer.length not in (UNKNOWN_LENGTH, len(body)):
            collected.errback(ValueError("a body that is too large, or not of the length it should have"))
        else:
            collected.callback(body)

    producer.startProducing(collector).addCallbacks(
        produced, lambda failure: None if collected.called else collected.errback(failure)
    )
    return collected
