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


def rate_limited(request_id: str, model: str, kind: str, sentence: str) -> None:
    """The platform answered 429; of which kind, and what that means."""
    _log.warn(
        "request {request_id}: 429 from {model}: {sentence} ({kind})",
        event="rate_limited",
        request_id=request_id,
        model=model,
        kind=kind,
        sentence=sentence,
    )


def collector_reached(reached: bool) -> None:
    """The collector of traces began or ceased to take them."""
    if reached:
        _log.info("tracing: the collector takes spans again", event="tracing")
    else:
        _log.warn("tracing: the collector takes no spans; they are lost until it does", event="tracing")


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


def clock_set(ahead: float) -> None:
    """Somebody has set the clock of this machine.

    :param ahead: seconds, of the time that this process goes by; below 0: behind.
    """
    if abs(ahead) < 1:
        _log.warn("the clock of this machine agrees again with the time this service goes by", event="clock")
        return
    _log.error(
        "the clock of this machine was set: it is now {seconds} s {direction} the time this service goes by. Polls, "
        "deadlines and ages go on as if nothing had happened; what is dated, in records, history and API, is off by "
        "that much until a restart",
        event="clock",
        seconds=round(abs(ahead)),
        direction="ahead of" if ahead > 0 else "behind",
    )


def cache_unusable(reason: str) -> None:
    """The explorer's cache directory cannot be used; said once."""
    _log.warn(
        "CACHE_DIR cannot be used ({reason}): what cannot be written there is kept in memory only",
        event="cache_unusable",
        reason=reason,
    )


def records_unreadable(count: int, of: int) -> None:
    """Of an answer of the platform for the explorer some records are no JSON, and are left out."""
    _log.warn(
        "{count} of {of} records in an answer of the platform are no JSON: the explorer leaves them out",
        event="records_unreadable",
        count=count,
        of=of,
    )


def chutes_key_refused() -> None:
    """The platform does not take the operator's key, which would also keep public chutes from the explorer."""
    _log.warn("CHUTES_API_KEY is refused by the platform: the explorer asks without it", event="chutes_key_refused")


def history_unavailable(reason: str) -> None:
    """The history's file cannot be used; said once."""
    _log.warn("the history cannot be kept on disk ({reason}): it is in memory only", event="history", reason=reason)


def history_set_aside(reason: str, name: str) -> None:
    """The history's file is damaged or none of ours: a new one takes its place."""
    _log.warn("the history was set aside as {name}: {reason}", event="history", reason=reason, name=name)


def watch_not_kept(reason: str) -> None:
    """What was seen of the models cannot be kept; said once until it can again."""
    _log.warn("what changes while the service is down will not be found: {reason}", event="history", reason=reason)


def history_not_written(reason: str) -> None:
    """A minute is missing from the history; said once until one is written again."""
    _log.warn("the history misses minutes: {reason}", event="history", reason=reason)


def webhook_queue_unavailable(reason: str) -> None:
    """The webhooks' file cannot be used; said once."""
    _log.warn(
        "webhooks cannot be kept on disk ({reason}): what is not delivered is lost at the stop",
        event="webhooks",
        reason=reason,
    )


def webhook_queue_set_aside(reason: str, name: str) -> None:
    """The webhooks' file is damaged or none of ours: a new one takes its place."""
    _log.warn("the webhooks' queue was set aside as {name}: {reason}", event="webhooks", reason=reason, name=name)


def webhook_queue_failing(reason: str) -> None:
    """The queue takes nothing; said once until it does again."""
    _log.error("the webhooks' queue fails: {reason}", event="webhooks", reason=reason)


def webhook_events_lost(count: int, reason: str) -> None:
    """Events that could not be queued are told to nobody."""
    _log.error("{count} webhook messages are lost: {reason}", event="webhooks", count=count, reason=reason)


def webhook_failing(name: str, reason: str) -> None:
    """An endpoint does not take webhooks; said once until it does again."""
    _log.warn("webhook {name} fails: {reason}", event="webhook", name=name, reason=reason)


def webhook_recovered(name: str) -> None:
    """It does again."""
    _log.info("webhook {name} works again", event="webhook", name=name)


def webhook_dead_letter(name: str, message_id: str, attempts: int, reason: str) -> None:
    """A message is given up."""
    _log.warn(
        "webhook {name}: message {message_id} is given up after {attempts} attempts: {reason}",
        event="webhook",
        name=name,
        message_id=message_id,
        attempts=attempts,
        reason=reason,
    )


def webhook_gone(name: str, count: int) -> None:
    """An endpoint says that it wants no more: it gets none until the next start."""
    _log.warn(
        "webhook {name} answered 410 and is disabled; {count} messages that waited are given up",
        event="webhook",
        name=name,
        count=count,
    )


def webhooks_given_up(count: int, reason: str) -> None:
    """Messages that nobody is left to send to, or no room is left for."""
    _log.warn("{count} webhook messages are given up: {reason}", event="webhooks", count=count, reason=reason)


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
