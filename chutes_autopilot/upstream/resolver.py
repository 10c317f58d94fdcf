"""Addresses remembered: a look-up takes a thread and sometimes seconds, and connections are wanted by the dozen."""

from collections.abc import Sequence
from math import inf
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IProtocol,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from zope.interface import implementer

NO_TIMEOUT: Any = None
"""Of an endpoint's own, which would be a delayed call for each connection: its pool has one."""

FRESH_SECONDS = 30.0
"""An answer of this age is given without asking anew."""

STALE_SECONDS = 300.0
"""An answer of this age is still given at once, while a new one is fetched in the background."""

LAST_RESORT_SECONDS = 3600.0
"""An answer of this age is given only while there is no new one to be had (RFC 8767)."""

SLOW_SECONDS = 1.0
"""A look-up that takes longer is taken for one that fails: nobody else waits for it who can do without."""

PAUSE_SECONDS = 5.0
"""How long after a look-up that failed the next one is made, where there is an old answer to give."""

YOUNG_SECONDS = 1.0
"""An answer of this age is believed although a connection failed: so a dead upstream is looked up once a second."""

LOST_SECONDS = 60.0
"""A look-up that takes longer is given up, and another one made."""


@implementer(IHostnameResolver)
class RememberingResolver:
    """Resolves one name for one endpoint, off the way of those who connect wherever that can be.

    Whoever asks while a look-up is under way shares it. A failed look-up takes nothing away.

    :param reactor: its name resolver is asked, and its clock.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._addresses: tuple[IAddress, ...] = ()
        self._resolved_at = -inf
        self._distrusted = False
        self._lookup: _Lookup | None = None
        self._asked_at = -inf
        self._failed = False
        self._waiting: list[IResolutionReceiver] = []

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """Always asked for the same name and port; the other parameters are not heeded."""
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        if self._age > FRESH_SECONDS or self._distrusted:
            self._refresh(hostName, portNumber)
        if self._must_wait:
            self._waiting.append(resolutionReceiver)
        else:
            self._tell(resolutionReceiver)
        return resolution

    def distrust(self) -> None:
        """No connection came about: the addresses are looked up again before they are given to anybody."""
        self._distrusted = self._age > YOUNG_SECONDS

    def looked_up(self, lookup: "_Lookup") -> None:
        """A look-up has ended, without addresses where it failed."""
        if lookup is not self._lookup:
            return
        self._lookup = None
        self._failed = not lookup.addresses
        if lookup.addresses:
            self._addresses = tuple(lookup.addresses)
            self._resolved_at = self._reactor.seconds()
            self._distrusted = False
        waiting, self._waiting = self._waiting, []
        for receiver in waiting:
            self._tell(receiver)

    @property
    def _age(self) -> float:
        return float(self._reactor.seconds() - self._resolved_at)

    @property
    def _must_wait(self) -> bool:
        """Whether only the look-up that is under way can answer."""
        if self._lookup is None:
            return False
        if self._failed or self._reactor.seconds() - self._asked_at >= SLOW_SECONDS:
            return self._age > LAST_RESORT_SECONDS
        return self._age > STALE_SECONDS or self._distrusted

    def _refresh(self, name: str, port: int) -> None:
        passed = self._reactor.seconds() - self._asked_at
        if self._lookup is not None:
            due = passed > LOST_SECONDS
        else:
            due = passed >= PAUSE_SECONDS or not self._failed or self._age > LAST_RESORT_SECONDS
        if due:
            self._asked_at = self._reactor.seconds()
            self._lookup = _Lookup(self)
            self._reactor.nameResolver.resolveHostName(self._lookup, name, portNumber=port)

    def _tell(self, receiver: IResolutionReceiver) -> None:
        if self._age <= LAST_RESORT_SECONDS:
            for address in self._addresses:
                receiver.addressResolved(address)
        receiver.resolutionComplete()


@implementer(IResolutionReceiver)
class _Lookup:
    """Collects what one question brings."""

    def __init__(self, resolver: RememberingResolver) -> None:
        self._resolver = resolver
        self.addresses: list[IAddress] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        pass

    def addressResolved(self, address: IAddress) -> None:
        self.addresses.append(address)

    def resolutionComplete(self) -> None:
        self._resolver.looked_up(self)


@implementer(IHostResolution)
class _Resolution:
    """Names what is being resolved; that is shared, and so not cancelled."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        pass


@implementer(IReactorPluggableNameResolver)
class _ReactorWithNames:
    """What HostnameEndpoint needs of a reactor, the names from elsewhere."""

    def __init__(self, reactor: Any, resolver: IHostnameResolver) -> None:
        self.nameResolver = resolver
        self.connectTCP = reactor.connectTCP
        self.callLater = reactor.callLater
        self.seconds = reactor.seconds

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        before, self.nameResolver = self.nameResolver, resolver
        return before


@implementer(IStreamClientEndpoint)
class RememberedHost:
    """Connects to a host by its name: happy eyeballs over addresses that are remembered while they work.

    :param attempt_delay: seconds between two addresses.
    """

    def __init__(self, reactor: Any, hostname: str, port: int, attempt_delay: float) -> None:
        self._resolver = RememberingResolver(reactor)
        names = _ReactorWithNames(reactor, self._resolver)
        self._endpoint = HostnameEndpoint(names, hostname, port, NO_TIMEOUT, attemptDelay=attempt_delay)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; whoever gives up waiting is taken for a failure too."""
        connecting: Deferred[IProtocol] = self._endpoint.connect(protocolFactory)
        return connecting.addErrback(self._failed)

    def _failed(self, failure: Failure) -> Failure:
        self._resolver.distrust()
        return failure
