"""twistd that writes down each long turn of its reactor, from one look at the sockets to the next.

A line says when the turn began (time.monotonic), its length and the CPU time of the reactor's thread in it, in seconds.
The length holds what other threads and programs took from it, too.
"""

import os
import time
from typing import Any

from twisted.internet import reactor
from twisted.scripts.twistd import run

LONG = 0.001


class TimedPoller:
    """In the place of the epoll object of Twisted's reactor."""

    def __init__(self, poller: Any) -> None:
        self._poller = poller
        self._begun, self._cpu = time.monotonic(), time.thread_time()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)

    def poll(self, *arguments: Any) -> Any:
        """The end of a turn, the wait, and the begin of the next turn."""
        taken = time.monotonic() - self._begun
        if taken > LONG:
            line = f"turn {self._begun:.6f} {taken:.6f} {time.thread_time() - self._cpu:.6f}\n"
            os.write(2, line.encode())  # sys.stderr is twistd's log by now
        events = self._poller.poll(*arguments)
        self._begun, self._cpu = time.monotonic(), time.thread_time()
        return events


running: Any = reactor
running._poller = TimedPoller(running._poller)
run()
