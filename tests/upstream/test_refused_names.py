"""An upstream whose name resolves and whose port is closed: how soon that is known."""

from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.interfaces import IReactorPluggableNameResolver
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from zope.interface import implementer

from chutes_autopilot.upstream.pool import Backend, ConnectionPool, endpoints_for

ADDRESSES = (IPv6Address("TCP", "::1", 9), IPv4Address("TCP", "127.0.0.1", 9))


@implementer(IReactorPluggableNameResolver)
class ClosedPorts(MemoryReactorClock):
    """Resolves every name to these addresses at once, and refuses every connection at once."""

    def __init__(self, *addresses: Any) -> None:
        super().__init__()
        self.addresses = addresses
        self.tried: list[str] = []
        self.nameResolver = self

    def resolveHostName(self, receiver: Any, *_: Any, **__: Any) -> None:
        for address in self.addresses:
            receiver.addressResolved(address)
        receiver.resolutionComplete()

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None) -> Any:
        connector = super().connectTCP(host, port, factory, timeout, bindAddress)
        self.tried.append(host)
        self.callLater(0, factory.clientConnectionFailed, connector, Failure(Refused()))
        return connector

    def installNameResolver(self, resolver: Any) -> Any:
        raise AssertionError("nobody does")


@pytest.mark.parametrize(
    ("addresses", "seconds"), [(ADDRESSES[1:], 0.1), (ADDRESSES, 0.2)], ids=["one address", "two addresses"]
)
def test_a_refused_name_is_reported_without_waiting(addresses: tuple[Any, ...], seconds: float) -> None:
    """A tenth of a second for each address, and not the third of one that Twisted waits: failover begins that much
    sooner, long before the connect deadline."""
    reactor = ClosedPorts(*addresses)
    pool = ConnectionPool(reactor, endpoints_for(reactor, None), connect_timeout=2.0)
    reported: list[float] = []
    pool.connect(
        Backend(False, "up.example", 9), lambda _: reported.append(-1), lambda: reported.append(reactor.seconds())
    )
    reactor.pump([0.01] * 100)
    assert reported == [pytest.approx(seconds, abs=0.02)]
    assert len(reactor.tried) == len(addresses)
    assert not reactor.getDelayedCalls()


def test_an_address_is_refused_at_once() -> None:
    """No name, nothing to wait for."""
    reactor = ClosedPorts()
    pool = ConnectionPool(reactor, endpoints_for(reactor, None), connect_timeout=2.0)
    reported: list[str] = []
    pool.connect(Backend(False, "127.0.0.1", 9), lambda _: reported.append("made"), lambda: reported.append("refused"))
    reactor.advance(0)
    assert (reported, reactor.tried) == (["refused"], ["127.0.0.1"])
