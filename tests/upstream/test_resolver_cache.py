"""Remembered addresses: when a look-up is waited for, when it runs beside, and what a failed one leaves."""

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError, DNSLookupError
from twisted.internet.interfaces import IReactorPluggableNameResolver, IResolutionReceiver
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from zope.interface import implementer

from chutes_autopilot.upstream.resolver import (
    FRESH_SECONDS,
    LAST_RESORT_SECONDS,
    LOST_SECONDS,
    PAUSE_SECONDS,
    SLOW_SECONDS,
    STALE_SECONDS,
    YOUNG_SECONDS,
    RememberedHost,
)


@implementer(IReactorPluggableNameResolver)
class Network(MemoryReactorClock):  # type: ignore[misc]
    """A reactor whose look-ups wait for `answer`."""

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver = self
        self.lookups: list[IResolutionReceiver] = []
        self.host = RememberedHost(self, "up.example", 443, 0.1)

    def installNameResolver(self, resolver: Any) -> Any:
        raise NotImplementedError

    def resolveHostName(self, receiver: IResolutionReceiver, name: str, portNumber: int = 0) -> None:
        assert (name, portNumber) == ("up.example", 443)
        self.lookups.append(receiver)

    def answer(self, *addresses: str) -> None:
        receiver = self.lookups.pop(0)
        for address in addresses:
            receiver.addressResolved(IPv4Address("TCP", address, 443))
        receiver.resolutionComplete()

    def connect(self) -> Deferred[Any]:
        connecting = self.host.connect(Factory.forProtocol(Protocol))
        connecting.addErrback(lambda failure: failure.trap(DNSLookupError, ConnectionRefusedError))
        return connecting

    @property
    def dialled(self) -> list[str]:
        """The addresses that were tried since the last look."""
        hosts = [host for host, *_ in self.tcpClients]
        self.tcpClients.clear()
        return hosts

    def refuse(self) -> None:
        """Every connection that was tried since the last look is refused."""
        for _, _, factory, *_ in self.tcpClients:
            factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        self.tcpClients.clear()
        self.advance(0.2)


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def known(network: Network) -> Network:
    """The name is known to be 10.0.0.1."""
    network.connect()
    network.answer("10.0.0.1")
    assert network.dialled == ["10.0.0.1"]
    return network


def test_whoever_comes_first_shares_one_look_up(network: Network) -> None:
    """It takes a thread, and there are few."""
    network.connect()
    network.connect()
    assert len(network.lookups) == 1
    network.answer("10.0.0.1")
    assert network.dialled == ["10.0.0.1", "10.0.0.1"]


def test_all_addresses_are_tried_with_happy_eyeballs(known: Network) -> None:
    """The next one 0.1 seconds after the one before it, remembered or not."""
    known.advance(STALE_SECONDS + 1)
    known.connect()
    known.answer("10.0.0.2", "10.0.0.3")
    for _ in range(2):
        assert known.dialled == ["10.0.0.2"]
        known.advance(0.1)
        assert known.dialled == ["10.0.0.3"]
        known.connect()


def test_a_fresh_answer_is_given_without_asking(known: Network) -> None:
    """Neither now nor beside."""
    known.advance(FRESH_SECONDS)
    known.connect()
    assert (known.dialled, known.lookups) == (["10.0.0.1"], [])


def test_an_older_answer_is_given_while_a_new_one_is_fetched(known: Network) -> None:
    """Nobody waits for it, and the next one gets it."""
    known.advance(STALE_SECONDS)
    known.connect()
    assert (known.dialled, len(known.lookups)) == (["10.0.0.1"], 1)
    known.answer("10.0.0.2")
    known.connect()
    assert known.dialled == ["10.0.0.2"]


def test_an_answer_too_old_is_not_given(known: Network) -> None:
    """As long as resolution works."""
    known.advance(STALE_SECONDS + 1)
    known.connect()
    assert known.dialled == []
    known.answer("10.0.0.2")
    assert known.dialled == ["10.0.0.2"]


def test_a_failed_connection_asks_anew(known: Network) -> None:
    """The next one goes where the name points now."""
    known.advance(YOUNG_SECONDS + 0.1)
    known.connect()
    known.refuse()
    known.connect()
    assert known.dialled == []
    known.answer("10.0.0.2")
    assert known.dialled == ["10.0.0.2"]


def test_a_new_answer_is_believed_again(known: Network) -> None:
    """One failed connection costs one look-up."""
    distrusted(known)
    known.connect()
    known.answer("10.0.0.2")
    known.connect()
    assert (known.dialled, known.lookups) == (["10.0.0.2", "10.0.0.2"], [])


def test_a_dead_upstream_is_looked_up_once_a_second(known: Network) -> None:
    """However often it is tried."""
    for _ in range(4):
        known.connect()
        known.refuse()
    assert known.lookups == []


def test_giving_up_counts_as_a_failed_connection(known: Network) -> None:
    """That is what a dead address looks like: the pool's deadline ends it."""
    known.advance(2)
    known.connect().addErrback(lambda failure: None).cancel()
    known.connect()
    assert len(known.lookups) == 1


def old(network: Network) -> None:
    network.advance(STALE_SECONDS + 1)


def distrusted(network: Network) -> None:
    network.advance(2)
    network.connect()
    network.refuse()


@pytest.mark.parametrize("how", [old, distrusted])
def test_without_a_new_answer_the_old_one_serves(known: Network, how: Callable[[Network], None]) -> None:
    """Whether the look-up fails or hangs; after a failure it is not repeated for every connection."""
    how(known)
    known.connect()
    known.answer()
    assert known.dialled == ["10.0.0.1"]
    known.connect()
    assert (known.dialled, known.lookups) == (["10.0.0.1"], [])
    known.advance(PAUSE_SECONDS)
    known.connect()
    assert (known.dialled, len(known.lookups)) == (["10.0.0.1"], 1)


def test_nobody_waits_for_a_look_up_that_hangs(known: Network) -> None:
    """Those who come when it has taken a second get the old answer; at last it is made again."""
    old(known)
    known.connect()
    known.advance(SLOW_SECONDS)
    assert known.dialled == []
    known.connect()
    assert known.dialled == ["10.0.0.1"]
    known.advance(LOST_SECONDS)
    known.connect()
    assert len(known.lookups) == 2
    known.lookups.reverse()
    known.answer("10.0.0.2")
    known.answer("10.0.0.3")
    known.connect()
    assert known.dialled[-1] == "10.0.0.2"


def test_the_old_answer_does_not_serve_for_ever(known: Network) -> None:
    """The address may be somebody else's by now."""
    known.advance(LAST_RESORT_SECONDS + 1)
    connecting = known.connect()
    known.answer()
    assert (known.dialled, connecting.called) == ([], True)


def test_a_name_that_never_resolved_is_asked_for_each_time(network: Network) -> None:
    """There is nothing to go by instead."""
    for _ in range(2):
        connecting = network.connect()
        network.answer()
        assert connecting.called
    assert network.dialled == []
