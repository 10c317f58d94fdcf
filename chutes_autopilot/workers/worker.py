"""The life of a worker: told what it is, built, let go, and ended by its parent or with it."""

import os
from collections.abc import Callable
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from chutes_autopilot.listening import ListeningService
from chutes_autopilot.observe import events
from chutes_autopilot.settings import Settings, read_settings
from chutes_autopilot.workers.channel import Channel
from chutes_autopilot.workers.link import ParentLink, share_of
from chutes_autopilot.workers.messages import (
    Begin,
    Changed,
    Drain,
    Draining,
    Go,
    Hurry,
    Keys,
    Lent,
    Message,
    Returned,
    Serving,
    Sources,
)

_log = Logger()


class Gateway(Protocol):
    """What serves: composition.GatewayService."""

    listening: ListeningService

    @property
    def apply(self) -> Callable[[Settings], None]: ...
    def hurry(self) -> None: ...
    def privilegedStartService(self) -> None: ...
    def startService(self) -> None: ...
    def stopService(self) -> Any: ...


@attrs.frozen
class WorkerLog:
    """A log that has begun.

    :ivar set_level: takes it from settings.
    :ivar flush: writes what waits to be written with more.
    """

    set_level: Callable[[Settings], None]
    flush: Callable[[], object]


def settings_from(sources: Sources, workers: int) -> Settings:
    """One worker's settings, the same as its siblings'."""
    variables, files = sources.texts()
    return share_of(read_settings(variables, files.__getitem__), workers)


@attrs.define(eq=False)
class Worker:
    """One worker process.

    :param begin_log: begins the log, by what the worker was told first and its settings.
    :param build: makes the service, not yet started.
    """

    _reactor: Any
    _begin_log: Callable[[Begin, Settings], WorkerLog]
    _build: Callable[[Settings, tuple[str, ...], ParentLink], Gateway]
    channel: Channel = attrs.field(init=False)
    _link: ParentLink = attrs.field(init=False)
    _gateway: Gateway | None = attrs.field(default=None, init=False)
    _own_log: WorkerLog = attrs.field(init=False)
    _lent: dict[int, list[IListeningPort]] = attrs.field(factory=dict, init=False)
    _serving: bool = attrs.field(default=False, init=False)
    _ending: bool = attrs.field(default=False, init=False)

    def received(self, message: Message) -> None:
        """What the parent tells, in its order. A worker that cannot do what it is for ends; the parent says so."""
        try:
            self._received(message)
        except (Exception, SystemExit):  # noqa: BLE001 - reported
            events.failed_unexpectedly(Failure(), "heeding the parent")
            os._exit(1)

    def _received(self, message: Message) -> None:
        match message:
            case Begin():
                self._begin(message)
            case Changed(sources=sources):
                self._change(sources)
            case Keys():
                self._link.handed_keys().hand(message)
            case Go():
                self._serve()
            case Lent(number=number):
                self._take(number)
            case Returned(number=number):
                self._give_back(number)
            case Drain():
                self.drain("the parent")
            case Hurry():
                if self._gateway is not None:
                    self._gateway.hurry()
            case _:
                self._link.heard(message)

    def lost(self) -> None:
        """The parent is gone: there is nobody to serve for; answers in flight have their time."""
        if not self._ending:
            _log.error("the parent is gone, so this worker ends")
            self.drain("the loss of the parent")

    def drain(self, reason: str) -> None:
        """End in order; asked for again, it changes nothing."""
        if self._ending:
            return
        self._ending = True
        _log.info("stopping, by {reason}", reason=reason)
        self.channel.send(Draining())
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            os._exit(0)  # it has not begun

    def _begin(self, begin: Begin) -> None:
        settings = attrs.evolve(settings_from(begin.sources, begin.workers), client_key_secret=begin.client_key_secret)
        self._own_log = self._begin_log(begin, settings)
        descriptors = self.channel.take_descriptors(1 + len(begin.endpoints))
        self._link = ParentLink(begin, self.channel, self._reactor, descriptors)
        self._gateway = self._build(settings, begin.endpoints, self._link)

    def _change(self, sources: Sources) -> None:
        if self._gateway is None:
            return
        settings = settings_from(sources, self._link.begin.workers)
        self._own_log.set_level(settings)
        self._gateway.apply(settings)

    def _serve(self) -> None:
        gateway = self._gateway
        if gateway is None or self._ending:
            return
        gateway.privilegedStartService()
        gateway.startService()
        self._reactor.addSystemEventTrigger("before", "shutdown", self._stop, gateway)
        self._link.adopted()
        self._serving = True
        self.channel.send(Serving())

    def _stop(self, gateway: Gateway) -> Deferred[Any]:
        # the reactor closes the channel next, and a worker without one may be killed: nothing may wait until later
        return maybeDeferred(gateway.stopService).addBoth(self._flushed)

    def _flushed(self, result: Any) -> Any:
        self._own_log.flush()
        return result

    def _take(self, number: int) -> None:
        descriptors = self.channel.take_descriptors(len(self._link.begin.endpoints))
        if self._serving and not self._ending and self._gateway is not None:
            ports = self._link.adopting.adopt_again(descriptors)
            for port in ports:
                self._gateway.listening.add(port)
            self._lent[number] = ports
        for descriptor in descriptors:
            os.close(descriptor)

    def _give_back(self, number: int) -> None:
        for port in self._lent.pop(number, []):
            if self._gateway is not None:
                self._gateway.listening.remove(port)
