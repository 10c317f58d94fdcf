"""Connections for webhooks: the name is looked up once, every address judged, and a judged address connected to."""

import socket
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from ipaddress import IPv4Address, ip_address
from threading import Thread
from typing import Any

from attrs import define
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
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


LookUp = Callable[[str], Deferred[tuple[IPAddress, ...]]]
"""The addresses of a name; none where it cannot be resolved. Whoever gives up waiting cancels."""


class LookUps:
    """Asks the system for addresses in threads of its own, one for each name that is being looked up.

    A resolver that leaves a question unanswered has its thread for half a minute. In the reactor's pool, of ten, some
    such names would hold up whatever else needs a thread, the look-ups of upstreams first of all. Nor does the end of
    the process wait for these threads.

    :param getaddrinfo: the system's; blocks.
    """

    def __init__(self, reactor: Any, getaddrinfo: Callable[..., list[Any]] = socket.getaddrinfo) -> None:
        self._reactor = reactor
        self._getaddrinfo = getaddrinfo
        self._waiting: dict[str, list[Deferred[tuple[IPAddress, ...]]]] = {}

    def look_up(self, hostname: str) -> Deferred[tuple[IPAddress, ...]]:
        """Look a name up, or wait for the answer that somebody else waits for; the names are few."""
        if hostname not in self._waiting:
            Thread(target=self._ask, args=(hostname,), daemon=True).start()
            self._waiting[hostname] = []
        waiting = self._waiting[hostname]
        answer: Deferred[tuple[IPAddress, ...]] = Deferred(waiting.remove)
        waiting.append(answer)
        return answer

    def _ask(self, hostname: str) -> None:
        addresses: tuple[IPAddress, ...] = ()
        with suppress(OSError, ValueError):  # a name that cannot be encoded is a ValueError
            found = self._getaddrinfo(hostname, None, type=socket.SOCK_STREAM)
            addresses = tuple(ip_address(address[0]) for *_, address in found)
        self._reactor.callFromThread(self._answered, hostname, addresses)

    def _answered(self, hostname: str, addresses: tuple[IPAddress, ...]) -> None:
        for answer in tuple(self._waiting.pop(hostname)):
            if not answer.called:  # one who was answered before it may have called it off
                answer.callback(addresses)


def checked_endpoints(
    reactor: Any, trust_root: Any, look_up: LookUp, refusal: Refusal
) -> Callable[[Backend], IStreamClientEndpoint]:
    """How a pool reaches its backends; certificate and name are checked under TLS."""

    @cache  # a TLS context reads the whole certificate store
    def endpoint(backend: Backend) -> IStreamClientEndpoint:
        plain = CheckedHost(reactor, backend.hostname, backend.port, look_up, refusal)
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
    _look_up: LookUp
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
            return await self._look_up(self._hostname)
