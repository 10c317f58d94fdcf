"""A connection to Redis that is always on its way. Needs the extra ``redis``: import it only where Redis is used."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from OpenSSL.SSL import Error as TLSError
from twisted.application.service import Service
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred, DeferredList, TimeoutError
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
NOT_CONNECTED = "not connected"
UNKNOWN = "never connected"
CHANGED_KEYS = "__redis__:invalidate"
"""The channel on which Redis names the keys that others have changed."""

Words = tuple[str | bytes | int, ...]
"""One command."""

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

    def _build_command(self, *words: str | bytes | int) -> bytes:
        # txredisapi's own takes ten times as long, which is felt where records of many requests are written
        encoded = [word if type(word) is bytes else str(word).encode() for word in words]
        return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded])

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


class _Listener(_RedisProtocol):
    """A connection on which Redis says which keys have changed."""

    def __init__(self, clock: Any, changed: "Changed") -> None:
        super().__init__(clock)
        self._changed = changed

    def replyReceived(self, reply: Any) -> None:
        if isinstance(reply, list) and len(reply) == 3 and reply[0] == b"message":
            self._changed(reply[2])
        else:
            super().replyReceived(reply)


Changed = Callable[[list[bytes] | None], object]
"""Told of keys that were read here and that somebody else has changed or that are gone since; None: all of them."""


class RedisConnection(Service):
    """The one connection to Redis, made in the background and made again whenever it is lost.

    Nothing waits for a connection: what is asked while there is none fails at once, and so does everything under way
    when Redis is late with one answer, because the connection is then given up. Redis answers in the order it is
    asked, so one connection serves everybody.

    txredisapi's own connecting is not used: it stops for good where logging in fails, which it also does while Redis
    is loading its data, and it lets commands wait without limit.

    The log has one line when Redis cannot be used any more and one when it can be again, whatever happens between. It
    can be again when it has answered within ``timeout``: logging in may take longer, and a Redis that is always late
    would otherwise come and go with every connection.

    :param timeout: seconds for an answer; may be changed at any time.
    :param login_timeout: seconds for each step of logging in, the first with the TLS handshake.
    :param changed: told of changed keys (Redis's client-side caching), for which there is a second connection that
        lives and ends with the first.
    :param errors: counts what went wrong: ``timeout``, ``refused``, ``lost`` or ``connect``.
    :ivar epoch: counts the connections so far; while it stays, `changed` has missed nothing.
    :ivar tracking: whether Redis names changed keys.
    :ivar refusal: why the last pipeline was refused, None where it was not.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        server: RedisServer,
        timeout: float,
        login_timeout: float = CONNECT_TIMEOUT,
        changed: Changed | None = None,
        errors: Counter[str] | None = None,
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._server = server
        self.timeout = timeout
        self._login_timeout = login_timeout
        self._changed = changed
        self._errors: Counter[str] = Counter() if errors is None else errors
        self.epoch = 0
        self.tracking = False
        self.connected: list[Callable[[], object]] = []
        """Called each time commands can be given again."""
        self._usable: _RedisProtocol | None = None
        self._listener: _Listener | None = None
        self._fault: str | None = UNKNOWN
        self._policy: Any = GOOD_POLICY
        self._untracked = False
        self._refused_in = 0
        self.refusal: str | None = None
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

    @property
    def usable(self) -> bool:
        """Whether it makes sense to ask."""
        return self._usable is not None

    def command(self, *words: str | bytes | int) -> Deferred[Any]:
        """Ask Redis; what comes back is None, ``str`` for a status line, ``int``, ``bytes``, or a list of these.

        Fails with RedisUnavailable.
        """
        return Deferred.fromCoroutine(self._command(words))

    async def _command(self, words: Words) -> Any:
        try:
            (answer,) = await self._answers((words,))
        except RedisUnavailable as error:
            self._tell(error.reason)
            raise
        self._tell(None)
        return answer

    def pipeline(self, *commands: Words) -> Deferred[list[Any]]:
        """Ask several things in one go, which nobody depends on; their answers in order.

        Fails with RedisUnavailable where one of them fails; the others may have been done all the same. What Redis
        refuses is told to the log once for each connection, and does not count as an outage.
        """
        return Deferred.fromCoroutine(self._pipeline(commands))

    async def _pipeline(self, commands: Sequence[Words]) -> list[Any]:
        try:
            answers = await self._answers(commands)
        except RedisUnavailable as error:
            self.refusal = error.reason if error.code is not None else None
            if error.code is None:
                self._tell(error.reason)
            elif self._refused_in != self.epoch:
                self._refused_in = self.epoch
                _log.warn("Redis refuses what replicas share: {reason}", reason=error.reason)
            raise
        self.refusal = None
        return answers

    async def _answers(self, commands: Sequence[Words]) -> list[Any]:
        if self._usable is None:
            raise RedisUnavailable(NOT_CONNECTED)
        try:
            answers = await self._ask(self._usable, self.timeout, commands)
        except RedisUnavailable as error:
            self._count(error)
            raise
        self._pause = FIRST_PAUSE
        return answers

    async def _ask(
        self,
        protocol: _RedisProtocol,
        timeout: float,  # noqa: ASYNC109
        commands: Sequence[Words],
    ) -> list[Any]:
        outcomes: list[Any] = []
        try:
            for number, words in enumerate(commands, 1):
                answer = protocol.execute_command(*words)
                if number == len(commands):  # answers come in order, so with the last one all are there
                    answer.addTimeout(timeout, self._reactor)
                answer.addBoth(outcomes.append)
            await answer
        except RedisError:
            raise RedisUnavailable(LOST) from None
        if any(isinstance(outcome, Failure) for outcome in outcomes):
            raise self._fault_of(protocol, commands, outcomes)
        return outcomes

    def _fault_of(self, protocol: _RedisProtocol, commands: Sequence[Words], outcomes: list[Any]) -> BaseException:
        """What to raise where not everything was answered."""
        number, failed = next((n, each.value) for n, each in enumerate(outcomes) if isinstance(each, Failure))
        if isinstance(failed, TimeoutError):
            # its answer may still come, and all others would wait behind it: better a new connection
            protocol.transport.abortConnection()
            return RedisUnavailable("timeout")
        if isinstance(failed, ResponseError):
            word = re.match("[A-Z]{1,20}(?= |$)", str(failed))
            code = word[0] if word else "ERR"
            return RedisUnavailable(f"{code} to {commands[number][0]!s}", code)
        return failed if isinstance(failed, CancelledError) else RedisUnavailable(LOST)

    def _count(self, error: RedisUnavailable) -> None:
        kinds = {"timeout": "timeout", LOST: "lost"}
        self._errors["refused" if error.code is not None else kinds.get(error.reason, "connect")] += 1

    async def _stay_connected(self) -> None:
        while True:
            try:
                await self._use(await self._connected())
            except CancelledError:
                raise
            except RedisUnavailable as error:
                if not self.running:  # endpoints make errors of their own of a cancelled attempt
                    return
                self._count(error)
                self._tell(error.reason)
            except Exception:  # noqa: BLE001 - told to the log; without this loop Redis would stay away
                events.failed_unexpectedly(Failure(), "connecting to Redis")
            await deferLater(self._reactor, self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    async def _use(self, protocol: _RedisProtocol) -> NoReturn:
        """Let commands use the connection until it ends."""
        listener, self._listener = self._listener, None
        self._usable = protocol
        self.epoch += 1
        self._tell(None)
        try:
            for told in self.connected:
                told()
            await (protocol.ended() if listener is None else _either(protocol, listener))
        finally:
            self._usable = None
            self.tracking = False
            await protocol.cut()
            if listener is not None:
                await listener.cut()
        raise RedisUnavailable(protocol.end)

    async def _connected(self) -> Any:
        """A connection that is logged in and answers, with its listener where one is wanted and allowed."""
        protocol = await self._open(_RedisProtocol(self._reactor))
        try:
            await self._log_in(protocol)
            await self._unless_refused(protocol, self.timeout, "PING")  # it is of use only where it is not late
            await self._look_at_policy(protocol)
            if self._changed is not None:
                await self._track(protocol, self._changed)
        except BaseException as error:
            await protocol.cut()
            if isinstance(error, RedisUnavailable) and error.reason == LOST:
                raise RedisUnavailable(protocol.end) from None
            raise
        return protocol

    async def _open(self, protocol: _RedisProtocol) -> Any:
        factory = Factory.forProtocol(lambda: protocol)
        factory.noisy = False
        try:
            return await self._endpoint.connect(factory)
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - every failure of names, routes and sockets is one of Redis
            raise RedisUnavailable(type(error).__name__) from None

    async def _track(self, protocol: _RedisProtocol, changed: Changed) -> None:
        """Have Redis name the keys read here that others change; without that, what replicas know drifts apart."""
        listener = await self._open(_Listener(self._reactor, changed))
        try:
            await self._log_in(listener)
            (number,) = await self._ask(listener, self._login_timeout, [("CLIENT", "ID")])
            await self._ask(listener, self._login_timeout, [("SUBSCRIBE", CHANGED_KEYS)])
            words: Words = ("CLIENT", "TRACKING", "ON", "REDIRECT", number, "NOLOOP")
            await self._ask(protocol, self._login_timeout, [words])
        except BaseException as error:
            await listener.cut()
            if isinstance(error, RedisUnavailable) and error.code in ("NOPERM", "ERR"):
                if not self._untracked:
                    self._untracked = True
                    _log.warn("Redis refuses CLIENT TRACKING: stickiness stays in each process")
                return
            raise
        self._listener, self.tracking = listener, True

    async def _log_in(self, protocol: _RedisProtocol) -> None:
        server = self._server
        if server.password is not None:
            login = (server.password,) if server.username is None else (server.username, server.password)
            await self._ask(protocol, self._login_timeout, [("AUTH", *login)])
        if server.db:
            await self._ask(protocol, self._login_timeout, [("SELECT", server.db)])
        await self._unless_refused(protocol, self._login_timeout, "PING")

    async def _look_at_policy(self, protocol: _RedisProtocol) -> None:
        policy = await self._unless_refused(protocol, self._login_timeout, "CONFIG", "GET", "maxmemory-policy")
        if policy != self._policy:
            self._policy = policy
            if policy is None:
                _log.warn("Redis does not tell its maxmemory-policy, which must be noeviction")
            elif policy != GOOD_POLICY:
                _log.warn("Redis may forget what it must keep: its maxmemory-policy is not noeviction")

    async def _unless_refused(
        self,
        protocol: _RedisProtocol,
        timeout: float,  # noqa: ASYNC109
        *words: str,
    ) -> Any:
        # what is not needed for the work may be forbidden to this user, or unknown to what only speaks like Redis
        try:
            return _first(await self._ask(protocol, timeout, [words]))
        except RedisUnavailable as error:
            if error.code in ("NOPERM", "ERR"):
                return None
            raise

    def _tell(self, fault: str | None) -> None:
        """Tell the log whether Redis can be used, when that changed.

        :param fault: why not.
        """
        if fault in (self._fault, NOT_CONNECTED) or not self.running:
            return
        told, self._fault = self._fault, fault
        if fault is None:
            _log.info("Redis is connected")
        elif told is None or told == UNKNOWN:
            _log.warn("Redis cannot be used: {reason}", reason=fault)


def _first(answers: list[Any]) -> Any:
    return answers[0]


async def _either(one: _RedisProtocol, other: _RedisProtocol) -> None:
    """Wait for the end of one of two connections."""
    ends = [Deferred.fromCoroutine(each.ended()) for each in (one, other)]
    await DeferredList(ends, fireOnOneCallback=True, consumeErrors=True)
