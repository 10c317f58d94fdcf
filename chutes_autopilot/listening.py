"""The listening sockets: checked before the start, all bound or none, closed first at the end."""

import os
import re
import sys
from typing import Any

from attrs import define
from OpenSSL import SSL, crypto
from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory, IReactorCore
from twisted.internet.tcp import Port
from twisted.logger import Logger
from twisted.python.failure import Failure

from chutes_autopilot.web.connections import ClientConnections

FULL_LOG_SECONDS = 60.0
"""How often, at most, the log says that no further connection is taken."""

_PORT = re.compile(r"(?:haproxy:)?(?:tcp:|tcp6:|ssl:|tls:(?:[^:]*:)?)(?:(?:.*[^\\]:)?port=)?(-?[0-9]+)(?![^:])")
_TLS = re.compile("(?:haproxy:)?tls:")
_NO_NUMBER = re.compile(r"invalid literal for int\(\) with base \d+: (.*)", re.DOTALL)
_TLS_USAGE = (
    "tls: takes a directory that has certificates for host names, and their keys, in .pem files, "
    "as in tls:/dir:port=8443; for single files there is ssl:8443:privateKey=key.pem:certKey=cert.pem"
)


def check_endpoint(reactor: IReactorCore, endpoint: str) -> None:
    """Find out before the start whether an endpoint string is usable, as far as that can be known without listening.

    :raises ValueError: one readable line.
    """
    port = _PORT.match(endpoint)
    if port and not 0 <= int(port[1]) <= 65535:
        raise ValueError(f"cannot use the endpoint {endpoint!r}: the port must be from 0 to 65535")
    tls = _TLS.match(endpoint)
    try:
        server: Any = serverFromString(reactor, endpoint.removeprefix("haproxy:") if tls else endpoint)
        if tls:  # Twisted would also listen without a certificate, and fail each client
            server.connectionCreator.serverConnectionForTLS(None).get_context().check_privatekey()
    except Exception as error:  # every kind of endpoint fails in its own way
        reason = _TLS_USAGE if tls and isinstance(error, TypeError | SSL.Error) else _reason(error)
        raise ValueError(f"cannot use the endpoint {endpoint!r}: {reason}") from error


def _reason(error: BaseException | None) -> str:
    match error:
        case CannotListenError(socketError=OSError() as cause) | (OSError() as cause):
            # A unix socket's lock is a symbolic link, whose own path comes second.
            path = os.fsdecode(cause.filename2 or cause.filename or "")
            return f"{cause.strerror or cause}" + (f": {path}" if path else "")
        case TypeError():
            return "an argument is missing, or there is one too many"
        case LookupError():
            return "no such socket was handed over to this process"
        case crypto.Error() | SSL.Error():
            return "the certificate or the key cannot be read"
        case ValueError() if number := _NO_NUMBER.fullmatch(str(error)):
            return f"{number[1]} is not a whole number"
    return str(error) or type(error).__name__


def stop_as_failed(reactor: Any) -> None:
    """Have the running process end in order, with exit code 1."""
    # a running twistd always exits with 0, and nothing that is raised in the reactor gets out of it
    reactor.addSystemEventTrigger("after", "shutdown", os._exit, 1)
    reactor.callWhenRunning(reactor.stop)


@define(eq=False)
class EndpointsOfWorkers(Service):
    """Ends the process with exit code 1 where its workers could not use an endpoint: they read certificates and keys
    themselves, as the user that the process has become by now, which may not be the one that has read them before.
    """

    _reactor: Any
    _endpoints: tuple[str, ...]

    def startService(self) -> None:
        """Raises SystemExit(1)."""
        super().startService()
        for endpoint in self._endpoints:
            try:
                check_endpoint(self._reactor, endpoint)
            except ValueError as error:
                told = f"{error} (worker processes read it, as the user that --uid names)"
                # twistd has sent sys.stderr into the log by now
                print(f"chutes-autopilot: {told}", file=sys.__stderr__, flush=True)
                Logger().error("{reason}", reason=told)
                raise SystemExit(1) from None


class ListeningService(Service):
    """Listens on every endpoint, or ends the process with exit code 1: a service without a listener is a defect.

    While `connections` are full the sockets stop accepting: further clients wait in the kernel's backlog, as long as
    it has room, and are served in turn; nobody who is connected notices. That holds for every endpoint of Twisted's
    own; what a plugin listens on may do as it likes.

    :param endpoints: Twisted server endpoint strings.
    :param connections: where the factory's protocols say that they are open and closed.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoints: tuple[str, ...],
        factory: IProtocolFactory,
        connections: ClientConnections,
    ) -> None:
        self._reactor = reactor
        self._endpoints = endpoints
        self._factory = factory
        self._connections = connections
        connections.when_full.append(self._full_changed)
        self._full_logged: float | None = None
        self._waiting: list[Deferred[None]] = []
        self._ports: list[IListeningPort] = []
        self._starting = False
        self._failed = False

    @property
    def addresses(self) -> tuple[IAddress, ...]:
        """Where it listens by now."""
        return tuple(port.getHost() for port in self._ports)

    def privilegedStartService(self) -> None:
        """Bind everything while the process may still bind low ports; raises SystemExit(1) where one cannot be."""
        super().privilegedStartService()
        self._starting, self._failed = True, False
        for endpoint in self._endpoints:
            waiting = maybeDeferred(self._listen, endpoint)
            self._waiting.append(
                waiting.addCallbacks(self._bound, self._not_bound, (endpoint,), errbackArgs=(endpoint,))
            )
        self._starting = False
        if self._failed:
            self._close().addErrback(self._close_failed)
            raise SystemExit(1)

    def stopService(self) -> Deferred[Any]:
        """Stop accepting; fires when every port is closed.

        Whoever had connected by now is still taken: closing resets what waits in the backlog.
        """
        super().stopService()
        for port in self._ports:
            if isinstance(port, Port):
                port.numberAccepts = sys.maxsize
                port.doRead()
        return self._close()

    def _listen(self, endpoint: str) -> Deferred[IListeningPort]:
        listening: Deferred[IListeningPort] = serverFromString(self._reactor, endpoint).listen(self._factory)
        return listening

    def _bound(self, port: IListeningPort, endpoint: str) -> None:
        self.add(port)
        self._log.info("listening on {url}", url=_url(port.getHost(), endpoint))

    def add(self, port: IListeningPort) -> None:
        """Accept from one more port, until `remove` or the end."""
        self._ports.append(port)
        if isinstance(port, Port):
            self._bound_accepts(port)

    def remove(self, port: IListeningPort) -> None:
        """Accept from it no more; what waits there is somebody else's."""
        if port in self._ports:
            self._ports.remove(port)
            maybeDeferred(port.stopListening).addErrback(self._close_failed)

    def _bound_accepts(self, port: Port) -> None:
        # Twisted accepts several connections in a turn: too many may have come by the time the port can be paused.
        accept = port.doRead

        def accept_free() -> None:
            port.numberAccepts = min(port.numberAccepts, self._connections.free)
            accept()

        port.doRead = accept_free  # type: ignore[method-assign]
        if self._connections.full:
            port.pauseProducing()

    def _full_changed(self, full: bool) -> None:
        now = self._reactor.seconds()
        if full and (self._full_logged is None or now - self._full_logged >= FULL_LOG_SECONDS):
            self._full_logged = now
            self._log.warn("{count} clients are connected: others have to wait", count=len(self._connections))
        for port in self._ports:
            if isinstance(port, Port):
                if full:
                    port.pauseProducing()
                else:
                    port.resumeProducing()

    def _not_bound(self, failure: Failure, endpoint: str) -> None:
        if failure.check(CancelledError):
            return
        reason = _reason(failure.value)
        # twistd has sent sys.stderr into the log by now
        print(f"chutes-autopilot: cannot listen on {endpoint!r}: {reason}", file=sys.__stderr__, flush=True)
        self._log.error("cannot listen on {endpoint}: {reason}", endpoint=endpoint, reason=reason)
        already, self._failed = self._failed, True
        if not (self._starting or already):
            stop_as_failed(self._reactor)

    def _close(self) -> Deferred[Any]:
        waiting, self._waiting = self._waiting, []
        for listening in waiting:
            listening.cancel()
        ports, self._ports = self._ports, []
        return gatherResults([maybeDeferred(port.stopListening) for port in ports], consumeErrors=True)

    def _close_failed(self, failure: Failure) -> None:
        self._log.failure("a port could not be closed", failure)


def _url(address: IAddress, endpoint: str) -> str:
    scheme = "https" if re.match("(haproxy:)?(ssl|tls):", endpoint) else "http"
    match address:
        case IPv4Address(host=host, port=port):
            return f"{scheme}://{host}:{port}"
        case IPv6Address(host=host, port=port):
            return f"{scheme}://[{host}]:{port}"
        case UNIXAddress(name=bytes(name)):
            return f"{scheme}+unix:{os.fsdecode(name)}"
    return f"{scheme} on {address}"
