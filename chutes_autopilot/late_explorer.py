"""The explorer comes up when the service already serves: its modules take as long to load as all the rest."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from twisted.application.service import Service
from twisted.internet.threads import deferToThreadPool

from chutes_autopilot.control.refresh import BodyListener
from chutes_autopilot.observe import events

MODULES = ("chutes_autopilot.explorer_composition", "chutes_autopilot.web.explorer.routes")


def is_loaded() -> bool:
    """Whether nothing need be waited for."""
    return all(module in sys.modules for module in MODULES)


class LateExplorer(Service):
    """Loads the explorer's modules in a thread, from the start of the service on.

    :param loaded: called then, in the reactor's thread, unless the service has ended.
    """

    def __init__(self, reactor: Any, loaded: Callable[[], None]) -> None:
        self._reactor = reactor
        self._loaded = loaded

    def startService(self) -> None:
        """Begin to load."""
        super().startService()
        loading = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), _load)
        loading.addCallback(lambda _: self._loaded() if self.running else None)
        loading.addErrback(events.failed_unexpectedly, "loading the explorer")


def _load() -> None:
    for module in MODULES:
        import_module(module)


class KeptAnswers:
    """A BodyListener that keeps the last answer of each source until there is somebody to tell."""

    def __init__(self) -> None:
        self._listener: BodyListener | None = None
        self._last: dict[str, Callable[[BodyListener], None]] = {}

    def tell(self, listener: BodyListener) -> None:
        """From now on, and of what came before."""
        self._listener = listener
        last, self._last = self._last, {}
        for told in last.values():
            told(listener)

    def fetched(self, source: str, body: bytes, at: float) -> None:
        """An answer is in force."""
        self._take(source, lambda listener: listener.fetched(source, body, at))

    def failed(self, source: str, reason: str) -> None:
        """There is no new answer."""
        self._take(source, lambda listener: listener.failed(source, reason))

    def _take(self, source: str, told: Callable[[BodyListener], None]) -> None:
        if self._listener is None:
            self._last[source] = told
        else:
            told(self._listener)
