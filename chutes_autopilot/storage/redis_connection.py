"""A connection to Redis that is always on its way. Needs the extra ``redis``: import it only where Redis is used."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from OpenSSL.SSL import Error as TLSError
from twisted.application.service import Service
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred, DeferredList, FirstError, TimeoutError
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall, deferLater
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

PING_SECONDS = 10.0
"""Between two questions whether there is still a Redis at the other end."""

NOT_CONNECTED = "not connected"
UNKNOWN = "never connected"
CHANGED_KEYS = "__redis__:invalidate"
"""The channel on which Redis names the keys that others have changed."""

CLAIMS = "e2ee:claim:"
"""What the names of claimed nonces begin with; the protocol of encrypted requests lays it down."""

Words = tuple[str | bytes | int, ...]
"""One command."""

TRIAL: Words = ("SET", f"{CLAIMS}trial", "1", "PX", 1)
"""Whoever may write anything at all may write this; no nonce has such a name."""

UNFIT = frozenset({"LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "READONLY"})
"""Errors that say that a server is none to work with now, as a primary that has become a replica: another one may be
where the name leads to by then."""

GROWING = frozenset({"SET", "HSET"})
"""Commands that Redis takes only while it has memory."""

GOOD_POLICY = [b"maxmemory-policy", b"noeviction"]

_log = Logger()


ErrorKind = Literal["timeout", "refused", "lost", "connect"]
"""What went wrong, for metrics."""


class RedisUnavailable(Exception):
    """Redis did not do what it was asked, or it is not known whether it did.

    :param reason: for the log.
    """

    def __init__(self, reason: str, kind: ErrorKind) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kind: ErrorKind = kind


class RedisRefusal(RedisUnavailable):
    """Redis answered one command with an error; others it may do.

    :param code: the first word of the error; the rest is left out, because it may repeat what Redis was sent.
    """

    def __init__(self, code: str, command: str) -> None:
        super().__init__(f"{code} to {command}", "refused")
        self.code = code
        self.command = command


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
    :ivar given_up: whether it was ended here, because of how Redis answered.
    """

    def __init__(self, clock: Any) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self.callLater = clock.callLater
        self.end = ""
        self.given_up = False

    def _build_command(self, *words: str | bytes | int) -> bytes:
        # txredisapi's own takes ten times as long, which is felt where records of many requests are written
        encoded = [word if type(word) is bytes else str(word).encode() for word in words]
        return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded])

    def connectionLost(self, why: Failure) -> None:
        if not self.given_up:
            self.end = "TLS or certificate" if why.check(TLSError) else type(why.value).__name__
        super().connectionLost(why)

    def give_up(self, reason: str) -> None:
        """End the connection, as Redis is of no use by it."""
        self.end, self.given_up = reason, True
        self.transport.abortConnection()

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

    It is also given up when Redis answers with an error that is none of the command (UNFIT). Then the name is resolved
    anew, so that where another server takes over it is found.

    What lies between may drop a connection that is idle without a word, and one by which changes are told is silent as
    long as there are none. So both are asked for a sign of life from time to time.

    The log has one line when Redis cannot be used any more and one when it can be again, whatever happens between. It
    can be again when it has taken a write within ``timeout``: one that is always late, or that lets us in and takes
    none, would otherwise come and go with every connection.

    :param timeout: seconds for an answer; may be changed at any time.
    :param login_timeout: seconds for each step of logging in, the first with the TLS handshake, and for a sign of life.
    :param changed: told of changed keys (Redis's client-side caching), for which there is a second connection that
        lives and ends with the first.
    :param errors: counts what went wrong, by ErrorKind.
    :ivar epoch: counts the connections so far; while it stays, `changed` has missed nothing.
    :ivar tracking: whether Redis names changed keys.
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
        self._refused: dict[str, RedisRefusal] = {}
        self._refused_in = 0
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
    def refusal(self) -> str | None:
        """What Redis refuses while it can be used, until it takes such a command; None where nothing."""
        return next((error.reason for error in self._refused.values()), None)

    @property
    def usable(self) -> bool:
        """Whether it makes sense to ask."""
        return self._usable is not None

    def command(self, *words: str | bytes | int) -> Deferred[Any]:
        """Ask Redis; what comes back is None, ``str`` for a status line, ``int``, ``bytes``, or a list of these.

        Fails with RedisUnavailable.
        """
        return self.pipeline(words).addCallback(_first)

    def pipeline(self, *commands: Words) -> Deferred[list[Any]]:
        """Ask several things in one go; their answers in order.

        Fails with RedisUnavailable where one of them fails; the others may have been done all the same. A RedisRefusal
        is told to the log once for each connection, and does not count as an outage.
        """
        return Deferred.fromCoroutine(self._pipeline(commands))

    async def _pipeline(self, commands: Sequence[Words]) -> list[Any]:
        try:
            answers = await self._answers(commands)
        except RedisRefusal as error:
            self._refused[error.command] = error
            if self._refused_in != self.epoch:
                self._refused_in = self.epoch
                _log.warn("Redis refuses what replicas share: {reason}", reason=error.reason)
            raise
        except RedisUnavailable as error:
            self._tell(error.reason)
            raise
        if self._refused:
            self._taken({str(words[0]) for words in commands})
        return answers

    def _taken(self, commands: set[str]) -> None:
        """Redis refuses these no more, and where one of them needs memory there is some for all."""
        memory = not commands.isdisjoint(GROWING)
        for command, error in tuple(self._refused.items()):
            if command in commands or (memory and error.code == "OOM"):
                del self._refused[command]

    async def _answers(self, commands: Sequence[Words]) -> list[Any]:
        if self._usable is None:
            raise RedisUnavailable(NOT_CONNECTED, "connect")
        try:
            answers = await self._ask(self._usable, self.timeout, commands)
        except RedisUnavailable as error:
            self._errors[error.kind] += 1
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
            raise RedisUnavailable(protocol.end, "lost") from None
        if any(isinstance(outcome, Failure) for outcome in outcomes):
            raise self._fault_of(protocol, commands, outcomes)
        return outcomes

    def _fault_of(self, protocol: _RedisProtocol, commands: Sequence[Words], outcomes: list[Any]) -> BaseException:
        """What to raise where not everything was answered."""
        number, failed = next((n, each.value) for n, each in enumerate(outcomes) if isinstance(each, Failure))
        if isinstance(failed, TimeoutError):
            # its answer may still come, and all others would wait behind it: better a new connection
            protocol.give_up("timeout")
            return RedisUnavailable("timeout", "timeout")
        if isinstance(failed, ResponseError):
            word = re.match("[A-Z]{1,20}(?= |$)", str(failed))
            refusal = RedisRefusal(word[0] if word else "ERR", str(commands[number][0]))
            if refusal.code not in UNFIT:
                return refusal
            protocol.give_up(refusal.reason)
            return RedisUnavailable(refusal.reason, "refused")
        return failed if isinstance(failed, CancelledError) else RedisUnavailable(protocol.end, "lost")

    async def _stay_connected(self) -> None:
        while True:
            try:
                await self._use(await self._connected())
            except CancelledError:
                raise
            except RedisUnavailable as error:
                self._errors[error.kind] += 1
                self._tell(error.reason)
            except Exception:  # noqa: BLE001 - told to the log; without this loop Redis would stay away
                events.failed_unexpectedly(Failure(), "connecting to Redis")
            if not self.running:  # endpoints make errors of their own of a cancelled attempt
                return
            await deferLater(self._reactor, self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    async def _use(self, protocol: _RedisProtocol) -> None:
        """Let commands use the connection until it ends."""
        listener, self._listener = self._listener, None
        both = [protocol] if listener is None else [protocol, listener]
        self._usable = protocol
        self._refused.clear()
        self.epoch += 1
        self._tell(None)
        pings = LoopingCall(lambda: Deferred.fromCoroutine(self._ping(both)))
        pings.clock = self._reactor
        pinging = pings.start(PING_SECONDS, now=False)
        pinging.addErrback(events.failed_unexpectedly, "looking whether Redis is there")
        try:
            for told in self.connected:
                told()
            ended = await _first_ended(both)
        finally:
            if pings.running:
                pings.stop()
            self._usable = None
            self.tracking = False
            for each in both:
                await each.cut()
            await pinging
        self._tell(ended.end)
        if not ended.given_up:  # else that which was answered so is counted
            self._errors["lost"] += 1

    async def _ping(self, protocols: Sequence[_RedisProtocol]) -> None:
        """Give a connection up by which Redis is not reached any more."""
        try:
            for protocol in protocols:
                await self._unless_refused(protocol, self._login_timeout, "PING")
        except RedisUnavailable as error:
            self._errors[error.kind] += 1

    async def _connected(self) -> Any:
        """A connection that is logged in and answers, with its listener where one is wanted and allowed."""
        protocol = await self._open(_RedisProtocol(self._reactor))
        try:
            await self._log_in(protocol)
            await self._unless_refused(protocol, self.timeout, *TRIAL)
            await self._look_at_policy(protocol)
            if self._changed is not None:
                await self._track(protocol, self._changed)
        except BaseException as error:
            await protocol.cut()
            if isinstance(error, RedisUnavailable) and error.kind == "lost":
                raise RedisUnavailable(error.reason, "connect") from None
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
            raise RedisUnavailable(type(error).__name__, "connect") from None

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
            if isinstance(error, RedisRefusal) and error.code in ("NOPERM", "ERR"):
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
        *words: str | bytes | int,
    ) -> Any:
        # what is not needed for the work may be forbidden to this user, or unknown to what only speaks like Redis; one
        # without memory for more may have some in a moment
        try:
            return _first(await self._ask(protocol, timeout, [words]))
        except RedisRefusal as error:
            if error.code in ("NOPERM", "ERR", "OOM"):
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


async def _first_ended(protocols: Sequence[_RedisProtocol]) -> _RedisProtocol:
    """Wait for the end of one of these connections."""
    ends = [Deferred.fromCoroutine(each.ended()) for each in protocols]
    try:
        _, index = await DeferredList(ends, fireOnOneCallback=True, fireOnOneErrback=True, consumeErrors=True)
    except FirstError:  # nothing but a cancellation, which it wraps
        raise CancelledError from None
    return protocols[index]
