"""How long a client may take, and the closing of its connection: a twisted.web channel with total times.

twisted.web's one timeout begins anew with every byte, so a client that drips could hold a connection for ever.
"""

from enum import Enum
from typing import Any

import attrs
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from chutes_autopilot.errors import ApiError
from chutes_autopilot.upstream.deadlines import Deadline
from chutes_autopilot.upstream.direct import untaken_bytes
from chutes_autopilot.web.request import CUT_SECONDS

ARRIVAL_SECONDS = 0.05
"""How often it is looked whether everything has arrived."""


@attrs.frozen
class ClientLimits:
    """What a client may take: bytes of a body, and seconds.

    :param header_timeout: for a whole head from its first byte; for the first one, from the connection on.
    :param body_timeout: for a whole body from the end of its head.
    :param idle_timeout: between an answer and the next request.
    """

    max_request_bytes: int
    header_timeout: float
    body_timeout: float
    idle_timeout: float


class Awaited(Enum):
    """What the gateway waits for from a client."""

    HEAD = "head"
    BODY = "body"
    NEXT_REQUEST = "next request"


class TimedChannel(HTTPChannel):
    """One client connection, which waits for its client no longer than the site's limits allow."""

    requests: list[Any]
    site: Any  # a GatewaySite
    transport: Any
    callLater: Any
    _abortingCall: IDelayedCall | None
    _deadline: Deadline | None = None
    _awaited: Awaited | None = None
    _fresh = True  # no request has been read yet
    _lingering = False  # the connection is ending: nothing that comes is read
    _resetting = False  # with a reset

    @property
    def limits(self) -> ClientLimits:
        """The limits in force."""
        limits: ClientLimits = self.site.limits
        return limits

    @property
    def idle(self) -> bool:
        """Whether no request is being received or answered."""
        return not (self.requests or self._handlingRequest or self._buffer or self._lingering)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end_time()
        super().connectionLost(reason)

    def refuse(self, error: ApiError) -> None:
        """Answer a request before all of it was received; nothing that follows is read as a request."""
        raise NotImplementedError

    def awaited(self) -> Awaited | None:
        """What is waited for now; None while a request is being answered."""
        if self._lingering or self._handlingRequest:
            return None
        if not self.line_mode:
            return Awaited.BODY
        return Awaited.HEAD if self._fresh or self.requests or self._buffer else Awaited.NEXT_REQUEST

    def watch_client(self) -> None:
        """Begin the time of what is waited for, unless it runs already."""
        awaited = self.awaited()
        if awaited is self._awaited:
            return
        self._end_time()
        limits = self.limits
        match awaited:
            case Awaited.HEAD:
                self._begin_time(awaited, limits.header_timeout)
            case Awaited.BODY:
                self._begin_time(awaited, limits.body_timeout)
            case Awaited.NEXT_REQUEST:
                self._begin_time(awaited, limits.idle_timeout)

    def _begin_time(self, awaited: Awaited, seconds: float) -> None:
        self._awaited = awaited
        self._deadline = self.site.deadlines.start(seconds, self._too_slow)

    def _end_time(self) -> None:
        self._awaited = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def setTimeout(self, period: float | None) -> float | None:
        """twisted.web says here when it begins and ends to wait for a client; the times are those above."""
        if period is None:
            self._fresh = False
            self._end_time()
        else:
            self.watch_client()
        timeout: float | None = self.timeOut
        return timeout

    def pause_time(self) -> None:
        """A request has arrived whole: nothing is waited for until `resume_time`."""
        self._fresh = False
        self._end_time()

    def resume_time(self) -> None:
        """The request is answered: the next one is waited for."""
        if self._deadline is not None and self._deadline.restart(self.site.limits.idle_timeout):
            self._awaited = Awaited.NEXT_REQUEST
        else:
            self._end_time()  # it is of another duration: the limits were changed
            self.watch_client()

    def resetTimeout(self) -> None:
        """No byte prolongs anything."""

    def _too_slow(self) -> None:
        awaited = self._awaited
        self._end_time()
        if awaited is None:
            return
        if awaited is not self.awaited():
            self.watch_client()
        elif not self._receives(awaited):
            self.close_soon(CUT_SECONDS)  # nothing was asked, so there is nothing to answer
        else:
            what = "head" if awaited is Awaited.HEAD else "body"
            self.refuse(ApiError("request_timeout", f"The request's {what} took too long to arrive; send it again."))

    def _receives(self, awaited: Awaited | None) -> bool:
        """Whether some of what is awaited is here."""
        return awaited is Awaited.BODY or (awaited is Awaited.HEAD and bool(self.requests or self._buffer))

    def refuse_unread(self, error: ApiError) -> None:
        """Refuse the request that is being received, where one is."""
        if self._receives(self.awaited()):
            self.refuse(error)

    def close_soon(self, seconds: float) -> None:
        """Close when everything written was sent, by force after ``seconds``."""
        self._lingering = True  # over TLS the client can go on sending
        if self._abortingCall is None:
            self._abortingCall = self.callLater(seconds, self.forceAbortClient)
        if self._waitingForTransport and self.isSecure():
            self._networkProducer.resumeProducing()  # the client's goodbye has to be read
        super().loseConnection()

    def reset_soon(self, seconds: float) -> None:
        """Reset when everything written has arrived, at the latest after ``seconds``."""
        self._lingering = self._resetting = True
        self._abortingCall = self.callLater(ARRIVAL_SECONDS, self._reset_on_arrival, seconds - ARRIVAL_SECONDS)

    def _reset_on_arrival(self, seconds: float) -> None:
        self._abortingCall = None
        if seconds > 0 and untaken_bytes(self.transport):
            self.reset_soon(seconds)
        else:
            self.forceAbortClient()

    def loseConnection(self) -> None:
        """Close when everything written was sent, which a client that does not read cannot delay for ever."""
        if self._resetting:
            return  # it would look like an orderly end
        self.close_soon(self.limits.idle_timeout)

    def close_if_idle(self) -> None:
        """Close, unless a request is being received or answered."""
        if self.idle:
            self.close_soon(CUT_SECONDS)

    def forget_client(self) -> None:
        """Find out anew with the next request who the client is, as is done here with each."""

    def forceAbortClient(self) -> None:
        """As in twisted.web, without its log line, which holds the client's address."""
        if self._abortingCall is not None and self._abortingCall.active():
            self._abortingCall.cancel()
        self._abortingCall = None
        self._lingering = True
        self.transport.abortConnection()
