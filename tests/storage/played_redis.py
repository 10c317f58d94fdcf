"""A Redis that answers when a Clock says, so that one can be late, silent or refuse what a real one would not."""

from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionAborted
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure


@define(eq=False)
class PlayedRedis:
    """Counts as the endpoint that leads to it.

    :ivar delay: seconds before each answer.
    :ivar refuses: the error that a command gets, by its first word.
    :ivar kept: what it was given by SET.
    :ivar connections: all there ever were, in order.
    """

    clock: Clock
    delay: float = 0.0
    refuses: dict[str, str] = field(factory=dict)
    kept: dict[bytes, bytes] = field(factory=dict)
    connections: list["PlayedConnection"] = field(factory=list)

    def connect(self, factory: Factory) -> Deferred[Any]:
        connection = PlayedConnection(self, factory.buildProtocol(None))  # type: ignore[arg-type]
        self.connections.append(connection)
        connection.protocol.makeConnection(connection)
        return succeed(connection.protocol)


class PlayedConnection(StringTransport):
    """One connection.

    :ivar asked: the first words of the commands that came by it.
    :ivar silent: whether it answers no more, as one does of which something on the way has lost track.
    """

    def __init__(self, redis: PlayedRedis, protocol: Any) -> None:
        super().__init__()
        self._redis = redis
        self._subscribed = False
        self.protocol = protocol
        self.asked: list[str] = []
        self.silent = False

    def write(self, data: bytes) -> None:
        """Take commands, which come whole."""
        parts = data.split(b"\r\n")
        while parts[0]:
            count = int(parts[0][1:])
            words, parts = parts[2 : 2 * count + 1 : 2], parts[2 * count + 1 :]
            self.asked.append(words[0].decode())
            self._redis.clock.callLater(self._redis.delay, self._give, self._answer(*words))

    def abortConnection(self) -> None:
        self._redis.clock.callLater(0, self._end)

    def _end(self) -> None:
        if self.connected:
            self.connected = False
            self.protocol.connectionLost(Failure(ConnectionAborted()))

    def _give(self, answer: bytes) -> None:
        if self.connected and not self.silent:
            self.protocol.dataReceived(answer)

    def _answer(self, word: bytes, *rest: bytes) -> bytes:
        error = self._redis.refuses.get(word.decode())
        if error is not None:
            return b"-%b of what was sent\r\n" % error.encode()
        match word, *rest:
            case b"CONFIG", *_:
                return b"*2\r\n$16\r\nmaxmemory-policy\r\n$10\r\nnoeviction\r\n"
            case b"SUBSCRIBE", channel:
                self._subscribed = True
                return b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%b\r\n:1\r\n" % (len(channel), channel)
            case b"CLIENT", b"ID":
                return b":%d\r\n" % len(self._redis.connections)
            case b"SET", key, value, *_:
                self._redis.kept[key] = value
            case b"GET", key:
                value = self._redis.kept.get(key)
                return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)
            case (b"PING",):
                return b"*2\r\n$4\r\npong\r\n$0\r\n\r\n" if self._subscribed else b"+PONG\r\n"
        return b"+OK\r\n"
