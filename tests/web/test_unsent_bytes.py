"""What a client's connection has yet to take."""

from twisted.internet.abstract import FileDescriptor
from twisted.internet.task import Clock

from chutes_autopilot.upstream.direct import unsent_bytes


class SlowSocket(FileDescriptor):
    """Takes ten bytes at a time."""

    SEND_LIMIT = 100
    connected = True

    def startWriting(self) -> None:
        """Whoever holds it calls `doWrite`."""

    def writeSomeData(self, data: bytes) -> int:
        return min(len(data), 10)


def test_unsent_bytes_fall_by_what_the_socket_takes() -> None:
    """Every write to the socket shows, also before Twisted's buffers are joined and while they are."""
    transport = SlowSocket(Clock())
    left = []
    transport.write(b"x" * 95)
    for more in (0, 30, 0, 0):
        transport.write(b"x" * more)
        transport.doWrite()
        left.append(unsent_bytes(transport))
    assert left == [85, 105, 95, 85]
