"""The bound on open connections: who wants one more waits for room, within the time a connection may take."""

import pytest
from test_connection_pool import MemoryEndpoint, Transport
from twisted.internet.task import Clock

from chutes_autopilot.upstream.connection import UpstreamConnection
from chutes_autopilot.upstream.pool import Backend, ConnectionPool

ONE, OTHER = Backend(False, "one.example", 80), Backend(False, "other.example", 80)


class Narrow:
    """A pool for two connections."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.endpoint = MemoryEndpoint()
        self.pool = ConnectionPool(self.clock, lambda backend: self.endpoint, 2.0, max_open=2)
        self.opened: list[UpstreamConnection] = []
        self.failed = 0

    def connect(self, backend: Backend = ONE) -> object:
        return self.pool.connect(backend, self.opened.append, self._failed)

    def _failed(self) -> None:
        self.failed += 1

    def full(self) -> list[Transport]:
        """Two connections in use, and a third one wanted."""
        self.connect()
        self.connect()
        transports = [self.endpoint.accept(), self.endpoint.accept()]
        self.connect()
        assert not self.endpoint.pending
        return transports


@pytest.fixture
def narrow() -> Narrow:
    return Narrow()


def test_a_connection_too_many_waits_until_another_is_gone(narrow: Narrow) -> None:
    """However that one went."""
    first, _ = narrow.full()
    first.abortConnection()
    narrow.endpoint.accept()
    assert (len(narrow.opened), narrow.failed) == (3, 0)


def test_waiting_for_room_is_part_of_connecting(narrow: Narrow) -> None:
    """When the time is over the attempt has failed, and its place is not taken later."""
    first, _ = narrow.full()
    narrow.clock.advance(2.0)
    assert narrow.failed == 1
    first.abortConnection()
    assert not narrow.endpoint.pending


def test_who_gives_up_waiting_leaves_the_queue(narrow: Narrow) -> None:
    """Those behind it move up, and those being connected count as connections."""
    first, second = narrow.full()
    cancel = narrow.connect()
    narrow.connect()
    assert callable(cancel)
    cancel()
    first.abortConnection()
    assert len(narrow.endpoint.pending) == 1
    narrow.connect()
    assert len(narrow.endpoint.pending) == 1
    second.abortConnection()
    assert len(narrow.endpoint.pending) == 2
    assert narrow.failed == 0


def test_an_idle_connection_makes_room(narrow: Narrow) -> None:
    """The oldest to any backend, rather than that anybody waits for it to grow old."""
    narrow.connect(OTHER)
    narrow.connect(OTHER)
    transports = [narrow.endpoint.accept(), narrow.endpoint.accept()]
    for connection in narrow.opened:
        connection.holder.idle(connection)
    narrow.connect(ONE)
    assert [transport.connected for transport in transports] == [False, True]
    assert (len(narrow.endpoint.pending), narrow.pool.idle_count) == (1, 1)


def test_no_connection_is_kept_while_somebody_waits(narrow: Narrow) -> None:
    """It would be of use to nobody else."""
    first, _ = narrow.full()
    narrow.opened[0].holder.idle(narrow.opened[0])
    assert (first.connected, narrow.pool.idle_count) == (False, 0)
    assert len(narrow.endpoint.pending) == 1


def test_each_backend_has_its_own_stack(narrow: Narrow) -> None:
    """A connection is used again for the origin it was made to, and for no other."""
    narrow.connect(ONE)
    narrow.endpoint.accept()
    narrow.opened[0].holder.idle(narrow.opened[0])
    assert narrow.pool.take_idle(OTHER) is None
    assert narrow.pool.take_idle(Backend(False, "one.example", 80)) is narrow.opened[0]
    assert narrow.pool.take_idle(ONE) is None


def test_a_failed_connection_leaves_its_place(narrow: Narrow) -> None:
    """Refused or late, it counts no more."""
    narrow.connect()
    narrow.connect()
    narrow.connect()
    narrow.endpoint.pending[0][1].errback(OSError())
    assert (narrow.failed, len(narrow.endpoint.pending)) == (1, 3)


def test_a_handshake_counts_once(narrow: Narrow) -> None:
    """As a connection, and no more as one that is being made."""
    secure = Backend(True, "one.example", 443)
    narrow.connect(secure)
    narrow.endpoint.accept()
    narrow.connect(secure)
    assert (len(narrow.endpoint.pending), narrow.opened) == (1, [])


def test_closing_ends_the_waiting_too(narrow: Narrow) -> None:
    """Everybody is told, and nothing new is begun."""
    narrow.full()
    assert narrow.pool.close().called
    assert (narrow.failed, narrow.endpoint.pending) == (1, [])
