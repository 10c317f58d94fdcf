"""The listening sockets that several processes share: bound by the parent, which accepts nothing, adopted by workers.

For TCP each worker has a socket of its own on the same address (SO_REUSEPORT), so that the kernel spreads connections
evenly: at one socket that all of them wait on, whoever wakes first takes a whole burst. The parent keeps every socket
open, so what waits in the queue of a worker that died is not lost (docs/scaling.md, "Workers"). A Unix socket cannot
be had twice; there all workers accept from the one.
"""

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.abstract import isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from chutes_autopilot.workers.channel import Handed


@implementer(IListeningPort)
@attrs.define(eq=False)
class BoundSockets:
    """The sockets of one endpoint, one for each worker."""

    sockets: list[socket.socket]

    def startListening(self) -> None:
        """They do."""

    def stopListening(self) -> Deferred[None]:
        """Close the parent's side; workers that have theirs go on."""
        for each in self.sockets:
            each.close()
        return succeed(None)

    def getHost(self) -> IAddress:
        """The address that all of them have."""
        first = self.sockets[0]
        host, port = first.getsockname()[:2]
        kind = IPv6Address if first.family == socket.AF_INET6 else IPv4Address
        return kind("TCP", host, port)


@attrs.define(eq=False)
class Binding:
    """Stands for the reactor where a server endpoint listens in the parent: binds, for so many workers.

    :ivar bound: for each endpoint that listens by now the sockets, one for each worker.
    """

    _reactor: Any
    workers: int
    bound: list[Sequence[Any]] = attrs.field(factory=list, init=False)

    def of(self, worker: int) -> tuple[Handed, ...]:
        """The sockets of one worker, by its index, in the order of the endpoints, for it to adopt.

        :raises OSError: no descriptor is left, or they are closed.
        """
        return tuple(Handed(os.dup(sockets[worker].fileno())) for sockets in self.bound)

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "") -> Any:
        """As of IReactorTCP."""
        family = socket.AF_INET6 if isIPv6Address(interface) else socket.AF_INET
        sockets: list[socket.socket] = []
        try:
            for number in range(self.workers):
                sockets.append(_listening(family, interface, port, backlog, shared=number > 0))
                port = sockets[0].getsockname()[1]
        except OSError as error:
            for each in sockets:
                each.close()
            raise CannotListenError(interface, port, error) from error
        self.bound.append(sockets)
        return BoundSockets(sockets)

    def listenSSL(
        self, port: int, factory: IProtocolFactory, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> Any:
        """As of IReactorSSL."""
        return self.listenTCP(port, factory, backlog, interface)

    def listenUNIX(self, *arguments: Any, **options: Any) -> Any:
        """As of IReactorUNIX."""
        port = self._reactor.listenUNIX(*arguments, **options)
        port.stopReading()
        self.bound.append([port] * self.workers)
        return port

    def adoptStreamPort(self, *_: Any) -> Any:
        """As of IReactorSocket."""
        raise ValueError("a socket that was handed over to this process cannot be shared by WORKERS")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


def _listening(family: int, interface: str, port: int, backlog: int, *, shared: bool) -> socket.socket:
    """One more socket at an address.

    :param shared: there is one already. The first is bound before it may be shared: so an address that another
        process has, even one that would share it, is found to be taken.
    """
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((interface, port))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.listen(backlog)
    except OSError:
        listening.close()
        raise
    return listening


@attrs.define(eq=False)
class Adopting:
    """Stands for the reactor where a server endpoint listens in a worker: takes what the parent has bound.

    :param descriptors: in the order in which endpoints will listen.
    """

    _reactor: Any
    _descriptors: list[int]
    _again: list[Callable[[int], Any]] = attrs.field(factory=list, init=False)

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "") -> Any:
        """As of IReactorTCP."""
        family = socket.AF_INET6 if isIPv6Address(interface) else socket.AF_INET
        return self._adopt(lambda descriptor: self._reactor.adoptStreamPort(descriptor, family, factory))

    def listenSSL(
        self, port: int, factory: IProtocolFactory, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> Any:
        """As of IReactorSSL."""
        return self.listenTCP(port, TLSMemoryBIOFactory(contextFactory, False, factory), backlog, interface)

    def listenUNIX(self, address: Any, factory: IProtocolFactory, backlog: int = 50, **_: Any) -> Any:
        """As of IReactorUNIX."""

        def adopt(descriptor: int) -> Any:
            port = self._reactor.adoptStreamPort(descriptor, socket.AF_UNIX, factory)
            # the others go on to accept: neither the socket may be shut down (as Twisted knows for TCP), nor its file
            # removed, which it leaves alone of what has a name outside the file system
            port._shouldShutdown = False
            port._bindPath = b"\0" + port._bindPath
            port.socket.listen(backlog)
            return port

        return self._adopt(adopt)

    def adopt_again(self, descriptors: Sequence[int]) -> list[Any]:
        """Listen on further sockets for the same endpoints, in their order."""
        return [adopt(descriptor) for adopt, descriptor in zip(self._again, descriptors, strict=True)]

    def _adopt(self, adopt: Callable[[int], Any]) -> Any:
        self._again.append(adopt)
        return adopt(self._descriptors.pop(0))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)
