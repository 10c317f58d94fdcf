"""How the log looks: an observer that writes one line for each event, as text or as JSON, and keeps addresses out."""

import json
import math
import select
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from time import time
from typing import Any, Literal, Protocol

from twisted.logger import (
    FilteringLogObserver,
    ILogFilterPredicate,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    PredicateResult,
    formatEvent,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from chutes_autopilot.observe.record import RequestRecord

RESERVED = frozenset({"time", "level", "logger", "message", "traceback", "worker"})
LEGACY = frozenset({"system", "isError", "failure", "why", "format", "printed", "logLevel", "eventSource"})
"""Keys that twisted.python.log adds to the events it hands on; they say nothing the other fields do not."""


WRITTEN_WITHIN = 0.02
"""Seconds that the line of a request may wait for others."""

MAX_KINDS = 1000
"""Kinds of requests whose common part is remembered; a few hundred bytes each."""


class TextStream(Protocol):
    """What a log can be written to: standard output, or Twisted's rotating LogFile."""

    def write(self, text: str, /) -> Any: ...
    def flush(self) -> Any: ...


Level = Literal["debug", "info", "warn", "error"]


class Threshold(LogLevelFilterPredicate):
    """The least severe level that is written; it may change while the process runs.

    :ivar shows_requests: whether the lines of requests are.
    """

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.set(level)

    def set(self, level: Level) -> None:
        """Write from now on what is at least so severe."""
        least = LogLevel.lookupByName(level)
        self.setLogLevelForNamespace("", least)
        self.shows_requests = least <= LogLevel.info


def log_observer(
    stream: TextStream,
    fmt: Literal["text", "json"],
    level: Level | Threshold,
    later: Callable[[Callable[[], None]], object] | None = None,
    worker: int | None = None,
) -> "ProcessLog":
    """The whole log of the process: events of at least ``level``, as lines on ``stream``.

    A line that cannot be written (a broken pipe, a full disk) is lost; the service goes on.

    :param later: calls a function a little later (`WRITTEN_WITHIN`): the lines of requests are then kept until it does,
        and written together, as one write for each costs as much as sending an answer. None: every line is written at
        once.
    :param worker: the number of this process among several that write to the same place; every line says it.
    """
    if isinstance(level, str):
        level = Threshold(level)
    return ProcessLog(_Lines(stream), fmt, level, later, worker)


def filtered(observer: ILogObserver, level: Level | Threshold) -> ILogObserver:
    """Put the level, and the filters that keep peer addresses and error texts out, before any observer (syslog's, for
    one)."""
    if isinstance(level, str):
        level = Threshold(level)
    return FilteringLogObserver(_WithoutErrorTexts(observer), [_Noise(), level])


@implementer(ILogFilterPredicate)
class _Noise:
    """Stops Twisted's events that hold client addresses or hashes of keys, or that only name an object in memory."""

    def __call__(self, event: LogEvent) -> Any:
        namespace = str(event.get("log_namespace", ""))
        noise = (
            # "Timing out client: {peer}", "EMFILE recovery: Closed socket from {address}" and their kin
            (namespace.startswith("twisted.") and ("peer" in event or "address" in event))
            # "unused private key at {path} with hash {hash}", and a warning for each client without a known host name
            or namespace == "twisted.protocols._sni"
            or event.get("log_format") in ("Starting factory {factory!r}", "Stopping factory {factory!r}")
        )
        return PredicateResult.no if noise else PredicateResult.maybe


@implementer(ILogObserver)
class _WithoutErrorTexts:
    """Takes the texts of exceptions out of failures, as they may quote a request; type and traceback stay."""

    def __init__(self, observer: ILogObserver) -> None:
        self._observer = observer

    def __call__(self, event: LogEvent) -> None:
        failure = event.get("log_failure") or event.get("failure")
        if isinstance(failure, Failure):
            failure = Failure("", failure.type, failure.getTracebackObject())
            event = {**event, "log_failure": failure}
            if "failure" in event:  # from twisted.python.log, whose text has the exception's in it
                event |= {"failure": failure, "log_text": event.get("why") or "unhandled error"}
        self._observer(event)


@implementer(ILogObserver)
class ProcessLog:
    """Writes events as lines, in their order; the one of a request, the only one on the hot path, without detours."""

    def __init__(
        self,
        lines: "_Lines",
        fmt: Literal["text", "json"],
        threshold: Threshold,
        later: Callable[[Callable[[], None]], object] | None,
        worker: int | None = None,
    ) -> None:
        self._lines = lines
        self._own: dict[str, Any] = {} if worker is None else {"worker": worker}
        name = "" if worker is None else f"worker {worker} "
        self._requests = RequestLines(f" info  [{name}chutes_autopilot] ")
        self._later = later
        self._waiting: list[tuple[float, RequestRecord]] = []
        self._json = fmt == "json"
        self._threshold = threshold
        line = partial(_json_line, self._own) if self._json else partial(_text_line, name)
        self._others = filtered(_LineObserver(lines, line), threshold)
        self._second = 0
        self._second_text = ""
        self._millisecond = -1
        self._time_text = ""

    def __call__(self, event: LogEvent) -> None:
        record = event.get("record")
        if type(record) is not RequestRecord:
            self.flush()
            self._others(event)
        else:
            self.request_finished(record, event["log_time"])

    def request_finished(self, record: RequestRecord, at: float | None = None) -> None:
        """The same as `events.request_finished`, where nobody else is to hear of it.

        :param at: Unix time, now if it is left out.
        """
        waiting = self._waiting
        waiting.append((time() if at is None else at, record))
        if len(waiting) > 1:
            return  # as most do under load
        if self._later is not None:
            self._later(self.flush)
        else:
            self.flush()

    def flush(self) -> None:
        """Write the lines that wait."""
        waiting, self._waiting = self._waiting, []
        if waiting and self._threshold.shows_requests:
            line_of = self._json_line if self._json else self._requests.line
            self._lines.write("\n".join([line_of(self._time(at), record) for at, record in waiting]))

    def _json_line(self, time: str, record: RequestRecord) -> str:
        plain = {"time": time, "level": "info", "logger": "chutes_autopilot", "message": str(record)}
        return json.dumps(plain | self._own | {"event": "request"} | record.fields())

    def _time(self, now: float) -> str:
        millisecond = int(now * 1000)
        if millisecond != self._millisecond:  # lines that are written together are often of the same
            self._millisecond = millisecond
            second, rest = divmod(millisecond, 1000)
            if second != self._second:
                self._second = second
                self._second_text = datetime.fromtimestamp(second, UTC).isoformat()[:19]
            self._time_text = f"{self._second_text}.{rest:03d}Z"
        return self._time_text


class RequestLines:
    """Makes the lines of finished requests, and remembers what those of ordinary ones have in common.

    :param start: what stands between the time and the record.
    """

    def __init__(self, start: str) -> None:
        self._start = start
        self._common: dict[tuple[object, ...], str] = {}

    def line(self, time: str, record: RequestRecord) -> str:
        """The line of a record: `str` of it, where nothing can break the line or steer a terminal.

        (A request's id cannot: wire.headers.acceptable_request_id.)
        """
        begun, first_byte, ended, attempts = record.first_attempt, record.first_byte, record.ended, record.attempts
        request_id, received = record.request_id, record.received
        if begun is None or first_byte is None or ended is None or len(attempts) != 1 or record.continuations:
            return f"{time}{self._start}{_escaped(str(record))}"
        only = attempts[0]
        if only.failure is not None or only.waited is not None or not received <= begun <= first_byte <= ended:
            return f"{time}{self._start}{_escaped(str(record))}"
        kind = (
            record.selected,
            record.status,
            record.candidates,
            only.model,
            only.status,
            record.stream,
            record.mode,
            record.outcome,
            record.error,
            record.endpoint,
        )
        common = self._common.get(kind)
        if common is None:
            if len(self._common) >= MAX_KINDS:
                self._common.clear()
            common = self._common[kind] = _escaped(record.common())
        return (
            f"{time}{self._start}request id={request_id}{common}{(first_byte - received) * 1000:.3f} "
            f"total_ms={(ended - received) * 1000:.3f} overhead_ms={(begun - received) * 1000:.3f} "
            f"bytes_in={record.bytes_in} bytes_out={record.bytes_out}"
        )


@implementer(ILogObserver)
class _LineObserver:
    """Writes what ``line`` makes of an event."""

    def __init__(self, lines: "_Lines", line: Callable[[LogEvent], str]) -> None:
        self._lines = lines
        self._line = line

    def __call__(self, event: LogEvent) -> None:
        self._lines.write(self._line(event))


class _Lines:
    """Writes lines, and never raises to the code that logged them."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, line: str) -> None:
        """Write one line at once."""
        if not line.isascii():
            line = line.encode(self._encoding, "backslashreplace").decode(self._encoding)
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream is closed
            pass


class WholeLines:
    """A stream that several processes write to, so that no line is torn: a pipe takes so many bytes in one piece."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None)

    def write(self, text: str) -> None:
        """Write lines, each of them to its end; as many at once as a pipe takes."""
        while len(text) > select.PIPE_BUF:
            end = text.rfind("\n", 0, select.PIPE_BUF) + 1 or text.find("\n") + 1
            self._stream.write(text[:end])
            self._stream.flush()
            text = text[end:]
        self._stream.write(text)

    def flush(self) -> None:
        """Let go of what was written."""
        self._stream.flush()


def _text_line(name: str, event: LogEvent) -> str:
    time, level, logger, message, traceback = _parts(event)
    package, _, rest = logger.partition(".")
    short = rest if package == "chutes_autopilot" and rest else package
    line = f"{time} {level:<5} [{name}{short}] {_escaped(message)}"
    return "\n    ".join([line, *map(_escaped, traceback.rstrip().split("\n"))]) if traceback else line


def _json_line(own: Mapping[str, Any], event: LogEvent) -> str:
    time, level, logger, message, traceback = _parts(event)
    record: dict[str, Any] = {"time": time, "level": level, "logger": logger, "message": message, **own}
    for key, value in event.items():
        if not key.startswith("log_") and key not in RESERVED and not (key in LEGACY and _is_legacy(event)):
            plain = _plain(value)
            if plain is not _NOT_PLAIN:
                record[key] = plain
    if traceback:
        record["traceback"] = traceback.rstrip()
    return json.dumps(record)


def _parts(event: LogEvent) -> tuple[str, str, str, str, str]:
    """Time, level, logger, message and traceback (empty where nothing failed)."""
    time = datetime.fromtimestamp(event.get("log_time", 0.0), UTC).isoformat(timespec="milliseconds")[:23] + "Z"
    failure = event.get("log_failure")
    level = event.get("log_level") or LogLevel.info
    name = "error" if failure is not None else level.name
    message = event.get("log_text") or formatEvent(event)  # log_text: from twisted.python.log
    traceback = ""
    if failure is not None:
        traceback = failure.getTraceback()
        message = message or f"unexpected failure: {failure.type.__name__}"
    return time, name, "twisted" if _is_legacy(event) else str(event["log_namespace"]), message, traceback


def _is_legacy(event: LogEvent) -> bool:
    return event.get("log_namespace") in (None, "log_legacy")


def _escaped(text: str) -> str:
    """Keep an event on its line, and terminals safe: control characters become ``\\n``, ``\\x1b`` and the like."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


_NOT_PLAIN = object()


def _plain(value: object) -> object:
    """The JSON form of a scalar, or of a list or mapping of such; ``_NOT_PLAIN`` for anything else."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case list() | tuple():
            items = [_plain(item) for item in value]
            return _NOT_PLAIN if _NOT_PLAIN in items else items
        case dict():
            fields = {str(key): _plain(item) for key, item in value.items()}
            return _NOT_PLAIN if _NOT_PLAIN in fields.values() else fields
    return _NOT_PLAIN
