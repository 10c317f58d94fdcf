"""Every log event of the service, one function each, so that what may be logged can be read on one page.

No function takes a body, a token, a key or an address, and none may be given a text that holds one.
"""

import traceback
from time import time

from twisted.logger import Logger, LogLevel, globalLogPublisher
from twisted.python.failure import Failure

from chutes_autopilot.observe.record import RequestRecord

_log = Logger(namespace="chutes_autopilot")


def request_finished(record: RequestRecord) -> None:
    """The one line of a chat request, when its answer has ended.

    It is the only event on the hot path, so it goes to the log's publisher without the checks that a Logger makes for
    everybody, and its text is made by whoever writes it.
    """
    globalLogPublisher(
        {
            "log_level": LogLevel.info,
            "log_namespace": "chutes_autopilot",
            "log_source": None,
            "log_format": "{record}",
            "log_time": time(),
            "event": "request",
            "record": record,
        }
    )


def control_plane_changed(source: str, state: str, detail: str) -> None:
    """The catalog or the utilization feed became ready, failed or recovered."""
    level = LogLevel.warn if state == "failed" else LogLevel.info
    _log.emit(
        level,
        "control plane {source}: {state} ({detail})",
        event="control_plane",
        source=source,
        state=state,
        detail=detail,
    )


def verdict_changed(chute_id: str, instance_id: str, state: str, detail: str) -> None:
    """An instance's evidence stands for the first time, or does not."""
    _log.emit(
        LogLevel.warn if state == "refused" else LogLevel.info,
        "evidence of instance {instance_id} of chute {chute_id}: {state} ({detail})",
        event="verdict",
        chute_id=chute_id,
        instance_id=instance_id,
        state=state,
        detail=detail,
    )


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
