"""A connection to Redis that is always on its way. Needs the extra ``redis``: import it only where Redis is used."""

import re
from typing import Any, NoReturn

from OpenSSL.SSL import Error as TLSError
from twisted.application.service import Service
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from txredisapi import BaseRedisProtocol, RedisError, ResponseError  # type: ignore[import-untyped]

from chutes_autopilot.observe import events
from chutes_autopilot.settings.redis_url import RedisServer
from chutes_autopilot.upstream.certificates import ClientTLS

CONNECT_TIMEOUT = 5.0
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
"""Seconds before the next attempt to connect; doubled each time until a command succeeds."""

LOST = "connection lost"
GOOD_POLICY = [b"maxmemory-policy", b"noeviction"]

_log = Logger()


class RedisUnavailable(Exception):
    """Redis did not do what it was asked, or it is not known whether it did.

    :param reason: for the log.
    :param code: the first word of an error Redis answered with; the rest is left out, because it may repeat what
        Redis was sent.
    """

    def __init__(self, reason: str, code: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


def redis_endpoint(reactor: Any, server: RedisServer, trust_root: Any) -> IStreamClientEndpoint:
    """How Redis is reached; under TLS its certificate and name are checked.

    :param trust_root: the authorities, as ``twisted.internet.ssl.optionsForClientTLS`` takes them.
    """
    plain: IStreamClientEndpoint
    if isIPAddress(server.host):
        plain = TCP4ClientEndpoint(reactor, server.host, server.port, CONNECT_TIMEOUT)
    elif isIPv6Address(server.host):
        plain = TCP6ClientEndpoint(reactor, server.host, server.port, CONNECT_TIMEOUT)
    else:
        plain = HostnameEndpoint(reactor, server.host, server.port, CONNECT_TIMEOUT)
    if not server.tls:
        return plain
    return wrapClientTLS(ClientTLS(server.host, trust_root), plain)


class _RedisProtocol(BaseRedisProtocol):  # type: ignore[misc]
    """One connection: txredisapi's reading and writing of RESP, with the clock given and strings left as bytes.

    :ivar end: a word on how the connection ended.
    """

    def __init__(self, clock: Any) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self.callLater = clock.callLater
        self.end = ""

    def connectionLost(self, why: Failure) -> None:
        self.end = "TLS or certificate" if why.check(TLSError) else type(why.value).__name__
        super().connectionLost(why)

    async def ended(self) -> None:
        """Wait for the end of the connection."""
        if self.connected:
            await self.whenDisconnected()

    async def cut(self) -> None:
        """End the connection, whatever is under way."""
        if self.connected:
            self.transport.abortConnection()
        await self.ended()


class RedisConnection(Service):
    """The one connection to Redis, made in the background and made again whenever it is lost.

    Nothing waits for a connection: what is asked while there is none fails at once, and so does everything under way
    when Redis is late with one answer, because the connection is then given up. Redis answers in the order it is
    asked, so one connection serves everybody.

    txredisapi's own connecting is not used: it stops for good where logging in fails, which it also does while Redis
    is loading its data, and it lets commands wait without limit.

    :param timeout: seconds for an answer; may be changed at any time.
    :param login_timeout: seconds for each step of logging in, the first with the TLS handshake.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        server: RedisServer,
        timeout: float,
        login_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._server = server
        self.timeout = timeout
        self._login_timeout = login_timeout
        self._usable: _RedisProtocol | None = None
        self._fault: str | None = "never connected"
        self._policy: Any = GOOD_POLICY
        self._pause = FIRST_PAUSE
        self._work: Deferred[None] | None = None

    def startService(self) -> None:
        """Begin to connect; what comes of it is told to the log."""
        super().startService()
        self._work = Deferred.fromCoroutine(self._stay_connected())

    def stopService(self) -> Deferred[None] | None:
        """Close the connection and make no other; fires when it is closed."""
        super().stopService()
        work, self._work = self._work, None
        if work is not None:
            work.addErrback(lambda failure: None if failure.check(CancelledError) else failure)
            work.cancel()
        return work

    @property
    def fault(self) -> str | None:
        """Why Redis cannot be used, None where it can be."""
        return self._fault

    def command(self, *words: str | bytes | int) -> Deferred[Any]:
        """Ask Redis; what comes back is None, ``str`` for a status line, ``int``, ``bytes``, or a list of these.

        Fails with RedisUnavailable.
        """
        return Deferred.fromCoroutine(self._command(*words))

    async def _command(self, *words: str | bytes | int) -> Any:
        if self._usable is None:
            raise RedisUnavailable("not connected")
        try:
            answer = await self._ask(self._usable, self.timeout, *words)
        except RedisUnavailable as error:
            self._tell(error.reason)
            raise
        self._pause = FIRST_PAUSE
        self._tell(None)
        return answer

    async def _ask(self, protocol: _RedisProtocol, timeout: float, *words: str | bytes | int) -> Any:  # noqa: ASYNC109
        try:
            return await protocol.execute_command(*words).addTimeout(timeout, self._reactor)
        except TimeoutError:
            # its answer may still come, and all others would wait behind it: better a new connection
            protocol.transport.abortConnection()
            raise RedisUnavailable("timeout") from None
        except ResponseError as error:
            word = re.match("[A-Z]{1,20}(?= |$)", str(error))
            code = word[0] if word else "ERR"
            raise RedisUnavailable(f"{code} to {words[0]!s}", code) from None
        except RedisError:
            raise RedisUnavailable(LOST) from None

    async def _stay_connected(self) -> None:
        while True:
            try:
                await self._use(await self._connected())
            except CancelledError:
                raise
            except RedisUnavailable as error:
                if not self.running:  # endpoints make errors of their own of a cancelled attempt
                    return
                self._tell(error.reason)
            except Exception:  # noqa: BLE001 - told to the log; without this loop Redis would stay away
                events.failed_unexpectedly(Failure(), "connecting to Redis")
            await deferLater(self._reactor, self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    async def _use(self, protocol: _RedisProtocol) -> NoReturn:
        """Let commands use the connection until it ends."""
        self._usable = protocol
        self._tell(None)
        try:
            await protocol.ended()
        finally:
            self._usable = None
            await protocol.cut()
        raise RedisUnavailable(protocol.end)

    async def _connected(self) -> Any:
        """A connection that is logged in and answers."""
        factory = Factory.forProtocol(lambda: _RedisProtocol(self._reactor))
        factory.noisy = False
        try:
            protocol: Any = await self._endpoint.connect(factory)
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - every failure of names, routes and sockets is one of Redis
            raise RedisUnavailable(type(error).__name__) from None
        try:
            await self._log_in(protocol)
        except BaseException as error:
            await protocol.cut()
            if isinstance(error, RedisUnavailable) and error.reason == LOST:
                raise RedisUnavailable(protocol.end) from None
            raise
        return protocol

    async def _log_in(self, protocol: _RedisProtocol) -> None:
        server = self._server
        if server.password is not None:
            login = (server.password,) if server.username is None else (server.username, server.password)
            await self._ask(protocol, self._login_timeout, "AUTH", *login)
        if server.db:
            await self._ask(protocol, self._login_timeout, "SELECT", server.db)
        await self._unless_refused(protocol, "PING")
        policy = await self._unless_refused(protocol, "CONFIG", "GET", "maxmemory-policy")
        if policy != self._policy:
            self._policy = policy
            if policy is None:
                _log.warn("Redis does not tell its maxmemory-policy, which must be noeviction")
            elif policy != GOOD_POLICY:
                _log.warn("Redis may forget what it must keep: its maxmemory-policy is not noeviction")

    async def _unless_refused(self, protocol: _RedisProtocol, *words: str) -> Any:
        # what is not needed for the work may be forbidden to this user, or unknown to what only speaks like Redis
        try:
            return await self._ask(protocol, self._login_timeout, *words)
        except RedisUnavailable as error:
            if error.code in ("NOPERM", "ERR"):
                return None
            raise

    def _tell(self, fault: str | None) -> None:
        """Tell the log whether Redis can be used, when that changed.

        :param fault: why not.
        """
        if fault == self._fault or not self.running:
            return
        self._fault = fault
        if fault is None:
            _log.info("Redis is connected")
        else:
            _log.warn("Redis cannot be used: {reason}", reason=fault)
