"""Every log event of the service, one function each, so that what may be logged can be read on one page.

No function takes a body, a token, a key or an address, and none may be given a text that holds one.
"""

import traceback

from twisted.logger import Logger
from twisted.python.failure import Failure

from chutes_autopilot.observe.record import RequestRecord

_log = Logger(namespace="chutes_autopilot")


def request_finished(record: RequestRecord) -> None:
    """The one line of a chat request, when its answer has ended."""
    attempts = [_attempt(a.model, a.failure or (str(a.status) if a.status else "open")) for a in record.attempts]
    _log.info(
        "request id={request_id} status={status} outcome={outcome} mode={mode} stream={stream} error={error} "
        "selected={selected} candidates={candidates} attempts={attempts} first_byte_ms={first_byte_ms} "
        "total_ms={total_ms} overhead_ms={overhead_ms} bytes_in={bytes_in} bytes_out={bytes_out}",
        event="request",
        request_id=record.request_id,
        status=record.status,
        outcome=record.outcome,
        mode=record.mode,
        stream=record.stream,
        error=record.error or "-",
        selected=record.selected or "-",
        candidates=list(record.candidates),
        attempts=attempts,
        first_byte_ms=_milliseconds(record.received, record.first_byte),
        total_ms=_milliseconds(record.received, record.ended),
        overhead_ms=_milliseconds(record.received, record.first_attempt),
        bytes_in=record.bytes_in,
        bytes_out=record.bytes_out,
    )


def control_plane_changed(source: str, state: str, detail: str) -> None:
    """The catalog or the utilization feed became ready, failed or recovered."""
    _log.info(
        "control plane {source}: {state} ({detail})", event="control_plane", source=source, state=state, detail=detail
    )


def setting_warned(warning: str) -> None:
    """A setting that is legal but will not do what was hoped."""
    _log.warn("{warning}", event="setting", warning=warning)


def simulator_started(url: str) -> None:
    """Demo mode: everything upstream is simulated."""
    _log.warn(
        "DEMO MODE: every model and answer is simulated; the simulator listens on {url}, "
        "faults are asked for at {url}/_simulator/faults",
        event="demo",
        url=url,
    )


def failed_unexpectedly(failure: Failure, what: str) -> None:
    """An error nobody foresaw: its type and where it came from, not its text, which may quote a request."""
    frames = traceback.extract_tb(failure.getTracebackObject())
    _log.error(
        "unexpected {error} while {what} at {where}",
        event="unexpected",
        error=failure.type.__name__ if failure.type else "error",
        what=what,
        where=[f"{frame.name} ({frame.filename.rpartition('/')[2]}:{frame.lineno})" for frame in frames],
    )


def _attempt(model: str, result: str) -> str:
    return f"{model}={result}"


def _milliseconds(start: float, end: float | None) -> float | None:
    return None if end is None else round(max(0.0, end - start) * 1000, 3)
