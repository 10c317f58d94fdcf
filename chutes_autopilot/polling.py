"""Hand each ready descriptor to its transport without the log context that Twisted puts around every one.

The context tells old log messages which transport was at work. Nothing here reads it, and to make one for each read
costs about a tenth of what relaying a small request does.
"""

from collections.abc import Callable
from errno import EINTR
from typing import Any

_KNOWN = "twisted.internet.epollreactor.EPollReactor"
"""By its name, for it can be imported on Linux only."""


def poll_plainly(reactor: Any) -> bool:
    """Make ``reactor`` do so from its next turn on; False, and nothing changes, where it is no epoll reactor.

    What a descriptor's events mean, and what becomes of exceptions, stays Twisted's.
    """
    if f"{type(reactor).__module__}.{type(reactor).__name__}" != _KNOWN:
        return False
    reactor.doIteration = _turn_of(reactor)
    return True


def _turn_of(reactor: Any) -> Callable[[float | None], None]:
    selectables, do_read_or_write = reactor._selectables, reactor._doReadOrWrite

    def turn(timeout: float | None) -> None:
        try:
            ready = reactor._poller.poll(-1 if timeout is None else timeout, len(selectables))
        except OSError as error:
            if error.errno == EINTR:
                return
            raise
        for descriptor, event in ready:
            selectable = selectables.get(descriptor)
            if selectable is not None:  # else one before it in this turn has closed it
                do_read_or_write(selectable, descriptor, event)

    return turn
