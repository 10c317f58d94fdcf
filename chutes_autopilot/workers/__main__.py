"""A worker process, as the parent starts it: ``main(descriptor, ...)``, with the channel to it at that number."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.logger import LegacyLogObserverWrapper, globalLogBeginner

from chutes_autopilot.composition import build
from chutes_autopilot.descriptors import enough_descriptors, raise_descriptor_limit
from chutes_autopilot.observe.logs import WRITTEN_WITHIN, Threshold, WholeLines, filtered, log_observer
from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.polling import poll_plainly
from chutes_autopilot.settings import Settings
from chutes_autopilot.signals import take_signals
from chutes_autopilot.steady_time import keep_steady
from chutes_autopilot.tap import spare_the_collector
from chutes_autopilot.workers.channel import Channel
from chutes_autopilot.workers.link import ParentLink
from chutes_autopilot.workers.messages import Begin, Ready, ToWorker
from chutes_autopilot.workers.worker import Gateway, Worker, WorkerLog

SPARED_AFTER = 1.0
"""Seconds from the start of the service until the garbage collector leaves alone what was made for it."""


def main(descriptor: int, ahead: Sequence[str], begun: float | None) -> None:
    """Serve until the parent ends this process, or is gone.

    :param ahead: modules to load before the parent is told that this process is ready.
    :param begun: steady_time.time_begun of the parent.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for module in ahead:
        import_module(module)
    keep_steady(reactor, _left_to_the_parent, begun)
    told = _Begun()
    worker = Worker(reactor, told.log, told.gateway)
    worker.channel = Channel(ToWorker, reactor, worker.received, worker.lost)
    factory: Any = Factory.forProtocol(lambda: worker.channel)
    factory.noisy = False
    socket_reactor: Any = reactor
    socket_reactor.adoptStreamConnection(descriptor, socket.AF_UNIX, factory)
    os.close(descriptor)
    # a terminal's Ctrl-C and hang-up reach the whole group: the parent decides what they mean
    take_signals(reactor, {signal.SIGTERM: worker.drain, signal.SIGINT: _left_to_the_parent, **_HANG_UP})
    reactor.callWhenRunning(spare_the_collector)
    reactor.callWhenRunning(poll_plainly, reactor)
    reactor.callWhenRunning(worker.channel.send, Ready())
    reactor.run()


def _left_to_the_parent(_reason: object) -> None:
    pass


def _nothing_waits() -> None:
    pass


_HANG_UP = {signal.SIGHUP: _left_to_the_parent}


class _Begun:
    """What a worker begins with once it is told what it is: its log, then what serves."""

    def __init__(self) -> None:
        self._requests: Callable[[RequestRecord], object] | None = None

    def log(self, begin: Begin, settings: Settings) -> WorkerLog:
        """Begin the log."""
        threshold = Threshold(settings.log_level)
        observer: Any
        flush: Callable[[], object] = _nothing_waits
        if begin.syslog is not None:
            from twisted.python.syslog import SyslogObserver  # there is no syslog on every platform

            syslog: Any = SyslogObserver(f"{begin.syslog}[worker {begin.number}]")
            observer = filtered(LegacyLogObserverWrapper(syslog.emit), threshold)
        else:
            later = partial(reactor.callLater, WRITTEN_WITHIN)
            observer = log_observer(WholeLines(sys.stdout), settings.log_format, threshold, later, worker=begin.number)
            flush = observer.flush
            reactor.addSystemEventTrigger("after", "shutdown", flush)
            self._requests = observer.request_finished
        globalLogBeginner.beginLoggingTo([observer], discardBuffer=True, redirectStandardIO=False)
        return WorkerLog(lambda settings: threshold.set(settings.log_level), flush)

    def gateway(self, settings: Settings, endpoints: tuple[str, ...], link: ParentLink) -> Gateway:
        """Make what serves."""
        raise_descriptor_limit(enough_descriptors(settings.max_connections, settings.max_inflight_requests))
        timed: Any = reactor
        timed.callLater(SPARED_AFTER, spare_the_collector)  # whoever waits for this worker does not wait for that
        gateway = build(settings, reactor, endpoints, link=link)
        if self._requests is not None:
            gateway.log_requests(self._requests)
        return gateway
