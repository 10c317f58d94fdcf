"""Connections for webhooks: the name is looked up once, every address judged, and a judged address connected to."""

from collections.abc import Callable
from functools import cache
from ipaddress import IPv4Address, ip_address
from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IHostResolution,
    IProtocol,
    IProtocolFactory,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from zope.interface import implementer

from chutes_autopilot.explorer.addresses import IPAddress
from chutes_autopilot.upstream.certificates import ClientTLS
from chutes_autopilot.upstream.pool import Backend

CONNECT_SECONDS = 4.0
"""How long one address may take."""

MAX_ADDRESSES = 3
"""Addresses of one name that are tried, one after the other."""

Refusal = Callable[[IPAddress], str | None]
"""What an address is that may not be connected to; None for one that may be. See explorer.addresses."""


class AddressRefused(Exception):
    """A host that may not be connected to.

    :param what: what one of its addresses is; not the address itself.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def checked_endpoints(reactor: Any, trust_root: Any, refusal: Refusal) -> Callable[[Backend], IStreamClientEndpoint]:
    """How a pool reaches its backends; certificate and name are checked under TLS."""

    @cache  # a TLS context reads the whole certificate store
    def endpoint(backend: Backend) -> IStreamClientEndpoint:
        plain = CheckedHost(reactor, backend.hostname, backend.port, refusal)
        if not backend.secure:
            return plain
        return wrapClientTLS(ClientTLS(backend.hostname, trust_root, [b"http/1.1"]), plain)

    return endpoint


@implementer(IStreamClientEndpoint)
@define(eq=False)
class CheckedHost:
    """Connects to a host if all its addresses may be connected to.

    Between the look-up and the connection nothing is looked up again, so the name's owner cannot answer differently
    the second time (DNS rebinding).

    :param hostname: a name or an address, without brackets.
    """

    _reactor: Any
    _hostname: str
    _port: int
    _refusal: Refusal

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; fails with AddressRefused, DNSLookupError, or why the last address could not be reached."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        addresses = await self._addresses()
        for address in addresses:
            what = self._refusal(address)
            if what is not None:
                raise AddressRefused(what)
        failed: Exception = DNSLookupError()
        for address in addresses[:MAX_ADDRESSES]:
            kind = TCP4ClientEndpoint if isinstance(address, IPv4Address) else TCP6ClientEndpoint
            endpoint = kind(self._reactor, str(address), self._port, CONNECT_SECONDS)
            try:
                return await endpoint.connect(factory)
            except CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one address, the next may do
                failed = error
        raise failed

    async def _addresses(self) -> tuple[IPAddress, ...]:
        try:
            return (ip_address(self._hostname),)
        except ValueError:
            lookup = _Lookup()
            self._reactor.nameResolver.resolveHostName(lookup, self._hostname, portNumber=self._port)
            return await lookup.complete


@implementer(IResolutionReceiver)
@define(eq=False)
class _Lookup:
    """Collects what a name resolves to; whoever gives up waiting stops nothing."""

    complete: Deferred[tuple[IPAddress, ...]] = field(factory=Deferred, init=False)
    _found: list[IPAddress] = field(factory=list, init=False)

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        pass

    def addressResolved(self, address: IAddress) -> None:
        self._found.append(ip_address(address.host))  # type: ignore[attr-defined]

    def resolutionComplete(self) -> None:
        if not self.complete.called:
            self.complete.callback(tuple(self._found))
