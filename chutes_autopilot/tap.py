"""The start: command line and environment become checked settings, and those become the running services."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.application.service import MultiService
from twisted.internet import reactor
from twisted.internet.error import ReactorNotRunning
from twisted.logger import ILogObserver, LegacyLogObserverWrapper, Logger
from twisted.python import usage
from twisted.python.components import Componentized
from twisted.python.logfile import LogFile

from chutes_autopilot import __version__
from chutes_autopilot.composition import GatewayService, build
from chutes_autopilot.descriptors import connection_limit, enough_descriptors, raise_descriptor_limit
from chutes_autopilot.observe import events
from chutes_autopilot.observe.logs import (
    WRITTEN_WITHIN,
    ProcessLog,
    TextStream,
    Threshold,
    WholeLines,
    filtered,
    log_observer,
)
from chutes_autopilot.polling import poll_plainly
from chutes_autopilot.reload import Reload
from chutes_autopilot.settings import Settings, SettingsError, describe, parse_env_file, read_settings
from chutes_autopilot.signals import take_signals
from chutes_autopilot.start_faults import faults_of_endpoints, faults_of_parts, without_faults
from chutes_autopilot.steady_time import keep_steady

if TYPE_CHECKING:
    from chutes_autopilot.workers.parent import ParentService

GC_THRESHOLD = 50_000
"""Objects made, less those freed, between two collections of the youngest generation."""

_log = Logger()


class Options(usage.Options):
    """The options after ``twistd chutes-autopilot``; after parsing, ``settings`` and ``endpoints`` are checked.

    Whatever is wrong ends the process with exit code 1 and a message on standard error: a UsageError would make
    twistd print its whole usage on standard output first.

    :param environ: where settings come from; the process environment where none is given.
    """

    longdesc = (
        "Settings come from the environment; .env.example lists them. Beside running, chutes-autopilot knows the "
        "commands doctor, selftest, keygen, record and replay; each tells its own options by --help."
    )
    optFlags = [
        ["demo", None, "Run against a simulated Chutes in this process: no key, no network."],
        ["check-config", None, "Check everything, print the effective settings with secrets masked, and exit."],
    ]
    optParameters = [
        ["env-file", None, None, "Read settings from this file of NAME=value lines; the environment wins over it."],
        ["workers", None, None, "Processes that serve requests, or auto; wins over WORKERS."],
    ]

    settings: Settings
    endpoints: tuple[str, ...]
    log_threshold: Threshold
    sources: tuple[Mapping[str, str], Mapping[str, str]]
    """What the settings were read from when that went well last: variables, and the texts of files by their paths."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._environ = os.environ if environ is None else environ
        self._endpoints: list[str] = []
        self._in_env_file: tuple[str, ...] = ()
        self.log_stream: TextStream | None = None
        self.log: ProcessLog | None = None

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
        """Read and check the settings and all that they name, refuse once; carry out ``--check-config``."""
        try:
            variables = self._variables()
        except OSError as error:
            _refuse(f"cannot read the file {self['env-file']!r} given by --env-file: {error.strerror}")
        except SettingsError as error:
            _refuse("\n  ".join([f"the file {self['env-file']!r} given by --env-file is not valid:", *error.faults]))
        faults: list[str] = []
        rest: Settings | None
        try:
            rest = self.settings = self._read(variables)
        except SettingsError as error:
            faults, rest = [*error.faults], without_faults(variables, error, _read_file)
        faults += self._further_faults(rest)
        if faults:
            _refuse("\n  ".join(["these settings are not valid:", *faults]))
        self.log_threshold = Threshold(self.settings.log_level)
        self.endpoints = tuple(self._endpoints) or (self.settings.listen_endpoint,)
        if self["check-config"]:
            for warning in self.settings.warnings:
                print(f"chutes-autopilot: warning: {warning}", file=sys.stderr)
            print("\n".join(describe(self.settings)))
            raise SystemExit(0)
        if self.parent is not None and self.parent.get("pidfile") == "twistd.pid":
            # twistd's default would be written to the working directory, and keep a second instance from starting
            self.parent["pidfile"] = ""

    def _further_faults(self, settings: Settings | None) -> Iterator[str]:
        """What is wrong beside the settings themselves: endpoints, extras, and the files of what is switched on.

        :param settings: None where they do not make sense even without the faulty ones.
        """
        named = [("--endpoint", endpoint) for endpoint in self._endpoints]
        if settings is not None:
            named = named or [("LISTEN_ADDR", settings.listen_endpoint)]
            if settings.admin_endpoint is not None:
                named.append(("ADMIN_ENDPOINT", settings.admin_endpoint))
        yield from faults_of_endpoints(reactor, named, 1 if settings is None else settings.workers)
        if settings is not None:
            yield from faults_of_parts(settings, demo=bool(self["demo"]))

    def read_again(self) -> Settings:
        """The settings as the env file has them now; the environment still wins over it.

        :raises SettingsError: also where the file cannot be read.
        """
        try:
            return self._read(self._variables())
        except OSError as error:
            raise SettingsError((f"cannot read the file given by --env-file: {error.strerror}",)) from error

    @property
    def reads_files(self) -> bool:
        """Whether there is anything that can have changed since the start."""
        return self["env-file"] is not None or self.settings.aliases_file is not None

    @property
    def syslog(self) -> str | None:
        """The prefix of log lines where twistd's own options send them to syslog."""
        twistd: Mapping[str, Any] = self.parent or {}
        return twistd["prefix"] if twistd.get("syslog") else None

    @property
    def logfile(self) -> str:
        """Where the log goes where it does not go to syslog; ``-`` is standard output."""
        twistd: Mapping[str, Any] = self.parent or {}
        return twistd.get("logfile") or ("-" if twistd.get("nodaemon", True) else "twistd.log")

    def observer(self) -> ILogObserver:
        """The process's log in our format, going where twistd's own options send it."""
        if self.syslog is not None:
            from twisted.python.syslog import SyslogObserver  # there is no syslog on every platform

            syslog: Any = SyslogObserver(self.syslog)
            return filtered(LegacyLogObserverWrapper(syslog.emit), self.log_threshold)
        stream: TextStream = sys.stdout if self.logfile == "-" else LogFile.fromFullPath(self.logfile)
        if self.settings.workers > 1:
            stream = self.log_stream = WholeLines(stream)
        later = partial(reactor.callLater, WRITTEN_WITHIN)
        self.log = log_observer(stream, self.settings.log_format, self.log_threshold, later)
        reactor.addSystemEventTrigger("after", "shutdown", self.log.flush)
        return self.log

    def write_line(self, lines: str) -> None:
        """Write lines that a worker has made to where the log goes."""
        if self.log_stream is not None:
            self.log_stream.write(lines)
            self.log_stream.flush()

    def _variables(self) -> dict[str, str]:
        path = self["env-file"]
        in_file = parse_env_file(_read_file(path)) if path is not None else {}
        self._in_env_file = tuple(in_file)
        variables = {**in_file, **self._environ}
        return variables if self["workers"] is None else {**variables, "WORKERS": self["workers"]}

    def _read(self, variables: Mapping[str, str]) -> Settings:
        files: dict[str, str] = {}

        def read_file(path: str) -> str:
            files[path] = _read_file(path)
            return files[path]

        settings = read_settings(variables, read_file, self._in_env_file)
        self.sources = variables, files
        return settings


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
    raise_descriptor_limit(_descriptors_for(options.settings))
    root = LoggedService(options.observer)
    keep_steady(reactor, events.clock_set)
    gateway = _build(options)
    gateway.setServiceParent(root)
    _tell_limit(options.settings)
    stop = partial(_stop, gateway)
    reload = _reload(options, gateway)
    take_signals(reactor, {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: reload})
    reactor.callWhenRunning(_log_requests, options, gateway)
    reactor.callWhenRunning(spare_the_collector)
    reactor.callWhenRunning(poll_plainly, reactor)
    return root


def _descriptors_for(settings: Settings) -> int:
    return enough_descriptors(settings.max_connections, settings.max_inflight_requests)


def _tell_limit(settings: Settings) -> None:
    """Log how many clients may be connected."""
    asked, workers = settings.max_connections, settings.workers
    limit = min(asked, workers * connection_limit(-(-asked // workers)))
    if limit < asked:
        _log.warn(
            "at most {limit} client connections at once: MAX_CONNECTIONS={asked} needs {wanted} file descriptors",
            limit=limit,
            asked=asked,
            wanted=-(-_descriptors_for(settings) // workers),
        )
    else:
        _log.info("at most {limit} client connections at once", limit=limit)


def _build(options: Options) -> "GatewayService | ParentService":
    settings, demo = options.settings, bool(options["demo"])
    if settings.workers == 1:
        return build(settings, reactor, options.endpoints, demo=demo)
    from chutes_autopilot.workers.parent_composition import build_parent  # only where there are several

    write = None if options.logfile == "-" else options.write_line
    return build_parent(
        settings, reactor, options.endpoints, lambda: options.sources, demo=demo, write=write, syslog=options.syslog
    )


def _log_requests(options: Options, gateway: "GatewayService | ParentService") -> None:
    """Write the lines of requests without a detour, where twistd uses our observer and no other."""
    twistd: Any = options.parent or {}
    if isinstance(gateway, GatewayService) and options.log is not None and not twistd.get("logger"):
        gateway.log_requests(options.log.request_finished)


def _stop(gateway: "GatewayService | ParentService", reason: str) -> None:
    try:
        reactor.stop()
    except ReactorNotRunning:
        _log.info("{reason} received again, waiting for nothing more", reason=reason)
        gateway.hurry()
    else:
        _log.info("{reason} received, stopping", reason=reason)


def _reload(options: Options, gateway: "GatewayService | ParentService") -> Callable[[str], None]:
    told = options.settings.max_connections, options.settings.max_inflight_requests

    def apply(settings: Settings) -> None:
        options.log_threshold.set(settings.log_level)
        nonlocal told
        gateway.apply(settings)
        asked = settings.max_connections, settings.max_inflight_requests
        if asked != told:
            told = asked
            _tell_limit(settings)

    settings = Reload(options.settings, options.read_again if options.reads_files else None, apply)

    def reload(reason: str) -> None:
        settings(reason)
        if gateway.keys is not None:
            gateway.keys.reload(reason)

    return reload


def spare_the_collector() -> None:
    """Modules, routes and settings live as long as the process: the garbage collector need not look at them again
    and again. What a request leaves behind is freed by its reference counts; cycles are few and can wait.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


def _read_file(path: str) -> str:
    return Path(path).read_text("utf-8", "surrogateescape")


def _refuse(message: str) -> NoReturn:
    print(f"chutes-autopilot: {message}", file=sys.stderr)
    raise SystemExit(1)
