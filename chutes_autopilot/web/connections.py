"""The open client connections: counted, bounded, and brought to their end when the service stops."""

from collections.abc import Callable
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred, succeed

from chutes_autopilot.errors import ApiError, draining
from chutes_autopilot.web.body_room import BodyRoom


class ClientConnection(Protocol):
    """What the channels of a listening site have in common."""

    def close_if_idle(self) -> None:
        """Close, unless a request is being received or answered."""

    def forget_client(self) -> None:
        """Find out anew with the next request who the client is."""

    def refuse_unread(self, error: ApiError) -> None:
        """Refuse the request that is being received, where one is."""

    def forceAbortClient(self) -> None:
        """Reset at once."""


@attrs.define(eq=False)
class ClientConnections:
    """Every channel says here when it is `opened` and `closed`; one object for all listening sockets.

    :param bodies: for the bodies of the requests on all of them.
    :ivar draining: the service is stopping: every answer is now the last one of its connection, and says so.
    :ivar idle_closed: and connections without a request are closed, from now on as soon as their answer is over.
    :ivar when_full: called with whether no further connection may be taken, each time that changes.
    """

    _limit: int
    bodies: BodyRoom = attrs.field(factory=BodyRoom)
    draining: bool = attrs.field(default=False, init=False)
    idle_closed: bool = attrs.field(default=False, init=False)
    when_full: list[Callable[[bool], None]] = attrs.field(factory=list, init=False)
    _open: set[ClientConnection] = attrs.field(factory=set, init=False)
    _waiting: list[Deferred[None]] = attrs.field(factory=list, init=False)

    @property
    def limit(self) -> int:
        """The most connections at once; may change at any time, what is open stays open."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        was_full, self._limit = self.full, limit
        if was_full != self.full:
            self._full_changed()

    @property
    def free(self) -> int:
        """How many more connections may be taken."""
        return max(0, self._limit - len(self._open))

    @property
    def full(self) -> bool:
        """Whether no further connection may be taken."""
        return len(self._open) >= self._limit

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, connection: ClientConnection) -> None:
        """A connection was taken."""
        self._open.add(connection)
        if len(self._open) == self._limit:
            self._full_changed()

    def closed(self, connection: ClientConnection) -> None:
        """A connection is gone."""
        was_full = self.full
        self._open.discard(connection)
        if was_full and not self.full:
            self._full_changed()
        if not self._open:
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                waiter.callback(None)

    def _full_changed(self) -> None:
        full = self.full
        for listener in self.when_full:
            listener(full)

    def gone(self) -> Deferred[None]:
        """Fires when no connection is open; may be cancelled."""
        if not self._open:
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        return waiter

    def close_idle(self) -> None:
        """Close every connection on which no request has begun."""
        self.idle_closed = True
        for connection in tuple(self._open):
            connection.close_if_idle()

    def forget_clients(self) -> None:
        """What tells clients apart has changed."""
        for connection in tuple(self._open):
            connection.forget_client()

    def refuse_unread(self) -> None:
        """Nothing more is received: a request that is not here whole by now is refused."""
        for connection in tuple(self._open):
            connection.refuse_unread(draining("This gateway stops, and the request was not here whole; try again."))

    def abort(self) -> None:
        """Reset every connection."""
        for connection in tuple(self._open):
            connection.forceAbortClient()
