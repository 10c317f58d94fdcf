"""Time after the commit boundary: how long an upstream may be silent, and a client take nothing."""

from collections.abc import Callable
from typing import Protocol

import attrs

from chutes_autopilot.upstream.deadlines import Deadline, Deadlines

LOOKS = 8
"""How often within the shorter of the two times a stream is looked at: that part of it is how late one can end."""


@attrs.frozen
class Patience:
    """Seconds an upstream may send no data, and seconds a client may take none of what waits for it."""

    stream_idle: float
    write_stall: float


class Watched(Protocol):
    """What relays, and is told when it has waited long enough."""

    def unsent(self) -> int:
        """Bytes that the client has yet to take."""

    def upstream_idle(self) -> None:
        """The upstream's time is over; called once."""

    def client_stalled(self) -> None:
        """The client's time is over; called once."""


class Watch:
    """Two deadlines that cost nothing while bytes flow: nothing is set anew for a piece of a body.

    Whoever relays sets ``heard_at`` to the clock's time at each piece, and every now and then a look is taken at it.
    While the client's back-pressure has paused the upstream, the upstream's time stands still, and the looks are at
    the client: whether ``unsent()`` changes. (A transport resumes its producer only when its buffer is empty. To a
    client that reads slowly that may be long, but it does take something.)

    :param now: the clock of ``deadlines``.
    """

    __slots__ = (
        "_deadlines",
        "_left",
        "_next_look",
        "_now",
        "_patience",
        "_paused_at",
        "_step",
        "_taken_at",
        "_watched",
        "heard_at",
    )

    def __init__(self, now: Callable[[], float], deadlines: Deadlines, patience: Patience, watched: Watched) -> None:
        self._now = now
        self._deadlines = deadlines
        self._patience = patience
        self._watched: Watched | None = watched
        self._step = min(patience.stream_idle, patience.write_stall) / LOOKS
        self._paused_at: float | None = None
        self._left = 0
        self._taken_at = 0.0
        self.heard_at = now()
        """When the upstream last sent what counts as data."""
        self._next_look: Deadline | None = None

    @property
    def paused(self) -> bool:
        """Whether the client has yet to take what was written."""
        return self._paused_at is not None

    def pause(self) -> None:
        """The client's transport holds as much as it may."""
        if self._paused_at is None:
            self._paused_at = self._taken_at = self._now()
            self._left = 0 if self._watched is None else self._watched.unsent()

    def resume(self) -> None:
        """The client has taken everything."""
        if self._paused_at is not None:
            self.heard_at += self._now() - self._paused_at
            self._paused_at = None

    def start(self) -> None:
        """Begin to look; an answer that came whole has no time to be late in."""
        if self._next_look is None:
            self._next_look = self._deadlines.start(self._step, self._look)

    def again(self) -> None:
        """Another upstream takes the place of the one that was watched: its time begins now."""
        self.heard_at = self._now()
        if self._paused_at is not None:
            self._paused_at = self.heard_at
        self.start()

    def stop(self) -> None:
        """Look no more, and forget who would have been told."""
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        self._watched = None

    def _look(self) -> None:
        self._next_look = None
        now, watched = self._now(), self._watched
        if watched is None:
            return
        if self._paused_at is None:
            if now - self.heard_at >= self._patience.stream_idle:
                watched.upstream_idle()
                return
        elif (left := watched.unsent()) != self._left:
            self._left, self._taken_at = left, now
        elif now - self._taken_at >= self._patience.write_stall:
            watched.client_stalled()
            return
        self._next_look = self._deadlines.start(self._step, self._look)
