"""The start: command line and environment become checked settings, and those become the running services."""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

from twisted.application.service import MultiService
from twisted.internet import reactor
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import ILogObserver, LegacyLogObserverWrapper, Logger
from twisted.python import usage
from twisted.python.components import Componentized
from twisted.python.logfile import LogFile

from chutes_autopilot import __version__
from chutes_autopilot.composition import build
from chutes_autopilot.listening import check_endpoint
from chutes_autopilot.observe.logs import filtered, log_observer
from chutes_autopilot.settings import Settings, SettingsError, describe, parse_env_file, read_settings

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What ends the service in order."""

_log = Logger()


class Options(usage.Options):
    """The options after ``twistd chutes-autopilot``; after parsing, ``settings`` and ``endpoints`` are checked.

    Whatever is wrong ends the process with exit code 1 and a message on standard error: a UsageError would make
    twistd print its whole usage on standard output first.

    :param environ: where settings come from; the process environment where none is given.
    """

    longdesc = "Settings come from the environment; .env.example lists them."
    optFlags = [
        ["demo", None, "Run against a simulated Chutes in this process: no key, no network."],
        ["check-config", None, "Check everything, print the effective settings with secrets masked, and exit."],
    ]
    optParameters = [
        ["env-file", None, None, "Read settings from this file of NAME=value lines; the environment wins over it."],
    ]

    settings: Settings
    endpoints: tuple[str, ...]

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._environ = os.environ if environ is None else environ
        self._endpoints: list[str] = []

    def opt_endpoint(self, endpoint: str) -> None:
        """Listen here, on any Twisted server endpoint, like tcp:8080 or unix:/run/autopilot.sock; may be repeated,
        LISTEN_ADDR then no longer counts."""
        self._endpoints.append(endpoint)

    def opt_version(self) -> NoReturn:
        """Display the version and exit."""
        print(f"chutes-autopilot {__version__}")
        raise SystemExit(0)

    def getSynopsis(self) -> str:
        """The first line of ``--help``; the inherited one would put twistd's own options into it."""
        return "Usage: twistd -n chutes-autopilot [options], or chutes-autopilot [run] [options]"

    def parseOptions(self, options: list[str] | None = None) -> None:
        """Parse and check; see the class for how faults end."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            _refuse(f"{error} (--help lists the options)")

    def parseArgs(self, *arguments: str) -> None:
        """Refuse what is no option."""
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}")

    def postOptions(self) -> None:
        """Read and check the settings and the endpoints; carry out ``--check-config``."""
        try:
            self.settings = read_settings(self._variables(), _read_file)
        except SettingsError as error:
            _refuse("\n  ".join(["these settings are not valid:", *error.faults]))
        self.endpoints = tuple(self._endpoints) or (self.settings.listen_endpoint,)
        for endpoint in self.endpoints:
            try:
                check_endpoint(reactor, endpoint)
            except ValueError as error:
                _refuse(str(error))
        if self["check-config"]:
            for warning in self.settings.warnings:
                print(f"chutes-autopilot: warning: {warning}", file=sys.stderr)
            print("\n".join(describe(self.settings)))
            raise SystemExit(0)
        if self.parent is not None and self.parent.get("pidfile") == "twistd.pid":
            # twistd's default would be written to the working directory, and keep a second instance from starting
            self.parent["pidfile"] = ""

    def observer(self) -> ILogObserver:
        """The process's log in our format, going where twistd's own options send it."""
        twistd: Mapping[str, Any] = self.parent or {}
        log = partial(log_observer, fmt=self.settings.log_format, level=self.settings.log_level)
        if twistd.get("syslog"):
            from twisted.python.syslog import SyslogObserver  # there is no syslog on every platform

            syslog: Any = SyslogObserver(twistd["prefix"])
            return filtered(LegacyLogObserverWrapper(syslog.emit), self.settings.log_level)
        logfile = twistd.get("logfile") or ("-" if twistd.get("nodaemon", True) else "twistd.log")
        return log(sys.stdout) if logfile == "-" else log(LogFile.fromFullPath(logfile))

    def _variables(self) -> dict[str, str]:
        path = self["env-file"]
        if path is None:
            return dict(self._environ)
        try:
            return {**parse_env_file(_read_file(path)), **self._environ}
        except OSError as error:
            _refuse(f"cannot read the file {path!r} given by --env-file: {error.strerror}")
        except SettingsError as error:
            _refuse("\n  ".join([f"the file {path!r} given by --env-file is not valid:", *error.faults]))


class LoggedService(MultiService):
    """The service twistd runs; it brings its log observer along, so that the log has its format from the first line.

    twistd asks the application for the observer before it logs anything, unless ``--logger`` names another one.
    """

    def __init__(self, observer: Callable[[], ILogObserver]) -> None:
        super().__init__()
        self._observer = observer

    def setServiceParent(self, parent: Any) -> None:
        """Join the application and become the source of its log observer."""
        super().setServiceParent(parent)
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer())


def makeService(options: Options) -> MultiService:
    """What the twistd plugin calls: everything that runs, built from checked options."""
    for warning in options.settings.warnings:
        _log.warn("{warning}", warning=warning)
    root = LoggedService(options.observer)
    build(options.settings, reactor, options.endpoints, demo=bool(options["demo"])).setServiceParent(root)
    exit_zero_on_signals()
    return root


def exit_zero_on_signals() -> None:
    """Make SIGTERM and Ctrl-C an orderly end with exit code 0, from now on: Twisted's own handlers have twistd kill
    itself with the same signal at the very end.
    """
    _take_signals()
    # As it starts, the reactor puts its own handlers in place; no signal may come before ours are back.
    reactor.addSystemEventTrigger("before", "startup", signal.pthread_sigmask, signal.SIG_BLOCK, SIGNALS)
    reactor.callWhenRunning(_take_signals)
    reactor.callWhenRunning(signal.pthread_sigmask, signal.SIG_UNBLOCK, SIGNALS)


def _take_signals() -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # a shell's background job ignores Ctrl-C
            signal.signal(number, _stop_soon)


def _stop_soon(number: int, _frame: object) -> None:
    cast(IReactorFromThreads, reactor).callFromThread(_stop, signal.Signals(number).name)


def _stop(reason: str) -> None:
    _log.info("{reason} received, stopping", reason=reason)
    with suppress(ReactorNotRunning):  # a second signal while stopping
        reactor.stop()


def _read_file(path: str) -> str:
    return Path(path).read_text("utf-8", "surrogateescape")


def _refuse(message: str) -> NoReturn:
    print(f"chutes-autopilot: {message}", file=sys.stderr)
    raise SystemExit(1)
