"""What the log looks like, and what must never be in it."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.logger import LegacyLogObserverWrapper, Logger, LogLevel, globalLogPublisher
from twisted.python import log as legacy_log
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from chutes_autopilot.observe.logs import filtered, log_observer
from chutes_autopilot.observe.record import AttemptRecord, RequestRecord

TIME = 1763716328.123456  # 2025-11-21T09:12:08.123456Z


def written(fmt: str, events: Callable[[Logger], object], level: str = "info", namespace: str = "x.y") -> str:
    stream = io.StringIO()
    observer = log_observer(stream, fmt, level)
    events(Logger(namespace, observer=lambda event: observer({**event, "log_time": TIME})))
    return stream.getvalue()


def records(events: Callable[[Logger], object], level: str = "info") -> list[dict[str, Any]]:
    return [json.loads(line) for line in written("json", events, level).splitlines()]


def a_failure(text: str = "no\nsuch thing") -> Failure:
    try:
        raise LookupError(text)
    except LookupError:
        return Failure()


def test_a_text_line() -> None:
    """Time in UTC, level, the module without our package's name, message."""
    line = written("text", lambda log: log.warn("gone {n} times", n=3), namespace="chutes_autopilot.control.refresh")
    assert line == "2025-11-21T09:12:08.123Z warn  [control.refresh] gone 3 times\n"


def test_other_packages_are_named_shortly_in_text() -> None:
    """A line of a library names only its package; JSON has the whole namespace."""
    assert "[twisted] m" in written("text", lambda log: log.info("m"), namespace="twisted.web.client.Agent")


def test_control_characters_stay_on_the_line() -> None:
    """A message cannot forge another line or steer a terminal."""
    line = written("text", lambda log: log.info("{a}", a="x\ny\r\x1b[31m\u2028é"))
    assert line == "2025-11-21T09:12:08.123Z info  [x] x\\ny\\r\\x1b[31m\\u2028é\n"


def test_a_failure_in_text_is_an_error_with_an_indented_traceback() -> None:
    """An unexpected failure is one error line, then its traceback, so indented that no line looks like an event."""
    lines = written("text", lambda log: log.failure("it broke", a_failure()), "error").splitlines()
    assert lines[0] == "2025-11-21T09:12:08.123Z error [x] it broke"
    assert any("LookupError" in line for line in lines[1:])
    assert all(line.startswith("    ") for line in lines[1:])


def test_a_failure_without_words_is_named() -> None:
    """A failure that was logged with no message of its own still says what it is."""
    assert "unexpected failure: LookupError" in written("text", lambda log: log.failure("", a_failure()))


def test_a_json_line() -> None:
    """One object a line: the four fixed fields, then the event's own plain values."""
    (record,) = records(
        lambda log: log.info("{model} failed", model="a/b", status=503, ms=1.5, ok=False, none=None, list=["x", 1])
    )
    assert record == {
        "time": "2025-11-21T09:12:08.123Z",
        "level": "info",
        "logger": "x.y",
        "message": "a/b failed",
        "model": "a/b",
        "status": 503,
        "ms": 1.5,
        "ok": False,
        "none": None,
        "list": ["x", 1],
    }


def test_json_keeps_out_what_is_not_plain() -> None:
    """Objects are left out, numbers that JSON lacks are null, and no field replaces a fixed one."""
    (record,) = records(
        lambda log: log.info(
            "m", thing=object(), things=[object()], nan=float("nan"), nested={"a": [1]}, logger="x", time="y"
        )
    )
    assert record == {
        "time": "2025-11-21T09:12:08.123Z",
        "level": "info",
        "logger": "x.y",
        "message": "m",
        "nan": None,
        "nested": {"a": [1]},
    }


def test_a_failure_in_json_has_its_traceback() -> None:
    """The traceback is a field of the one line; of the exception it has the type, and not the text, which may quote a
    request."""
    (record,) = records(lambda log: log.failure("it broke", a_failure()))
    assert (record["level"], record["message"]) == ("error", "it broke")
    assert "a_failure" in record["traceback"]
    assert record["traceback"].endswith("LookupError:")


def test_texts_of_errors_reach_no_observer(logged_errors: Any) -> None:
    """Neither in the old nor in the new way of logging failures, nor through the filter before other observers."""
    seen: list[dict[str, Any]] = []
    syslog = filtered(LegacyLogObserverWrapper(seen.append), "debug")
    globalLogPublisher.addObserver(syslog)
    try:
        logged = global_log("text", lambda: legacy_log.err(a_failure())) + global_log(
            "json", lambda: (legacy_log.err(a_failure(), "why"), Logger("n").failure("it broke", a_failure()))
        )
    finally:
        globalLogPublisher.removeObserver(syslog)
    logged += "".join(str(legacy_log.textFromEventDict(event)) for event in seen)
    assert logged.count("LookupError") >= 6
    assert all(word in logged for word in ("unhandled error", "why", "it broke"))
    assert "such thing" not in logged
    assert len(logged_errors.flush(LookupError)) == 3


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warn", "error", "critical"]),
        ("info", ["info", "warn", "error", "critical"]),
        ("warn", ["warn", "error", "critical"]),
        ("error", ["error", "critical"]),
    ],
)
def test_the_level_is_the_least_that_is_logged(level: str, expected: list[str]) -> None:
    """Events below LOG_LEVEL are not written."""

    def each(log: Logger) -> None:
        for name in LogLevel.iterconstants():
            log.emit(name, "m")

    assert [record["level"] for record in records(each, level)] == expected


def global_log(fmt: str, do: Callable[[], object]) -> str:
    stream = io.StringIO()
    observer = log_observer(stream, fmt, "debug")
    globalLogPublisher.addObserver(observer)
    try:
        do()
    finally:
        globalLogPublisher.removeObserver(observer)
    return stream.getvalue()


def test_legacy_events_are_formatted() -> None:
    """Libraries that still use twisted.python.log get the same lines."""
    line = global_log("text", lambda: legacy_log.msg("hello", "there"))
    assert line.endswith(" info  [twisted] hello there\n")
    record = json.loads(global_log("json", lambda: legacy_log.msg(format="%(a)s!", a="hello")))
    assert record == {
        "time": record["time"],
        "level": "info",
        "logger": "twisted",
        "message": "hello!",
        "a": "hello",
    }


def test_client_addresses_of_twisted_web_are_dropped() -> None:
    """The server's line about a client that timed out holds its address, so it is not logged."""
    channel = HTTPChannel()
    channel.makeConnection(StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 1234)))
    line = global_log("text", channel.timeoutConnection)
    channel.connectionLost(Failure(ConnectionError()))
    assert line == ""


@pytest.mark.filterwarnings("ignore:X509.get_.* is deprecated:DeprecationWarning")  # in Twisted's own tls: endpoint
def test_hashes_of_keys_are_dropped(tmp_path: Path) -> None:
    """The line of Twisted's tls: endpoint about a key without a certificate holds a hash of it, so it is not logged."""
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "key.pem")
    assert global_log("text", lambda: serverFromString(MemoryReactor(), f"tls:{tmp_path}:port=0")) == ""


def test_factories_start_silently() -> None:
    """Twisted's "Starting factory" is not logged: our own listening line says more."""
    assert global_log("text", Factory().doStart) == ""


class _Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("kind", ["broken pipe", "closed"])
def test_a_log_that_cannot_be_written_hurts_nobody(kind: str) -> None:
    """Whoever logs never sees an error of the log."""
    stream = _Broken() if kind == "broken pipe" else io.StringIO()
    if kind == "closed":
        stream.close()
    log_observer(stream, "text", "info")({"log_level": LogLevel.info, "log_format": "m", "log_time": TIME})


def test_a_terminal_that_lacks_a_letter_gets_an_escape() -> None:
    """A line is written also where the stream's encoding cannot hold all of it."""
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, "ascii")
    log_observer(stream, "text", "info")(
        {"log_level": LogLevel.info, "log_format": "é", "log_time": TIME, "log_namespace": "n"}
    )
    assert buffer.getvalue() == b"2025-11-21T09:12:08.123Z info  [n] \\xe9\n"


def test_the_filter_stands_before_other_observers() -> None:
    """The level, and the filter for addresses, can be put before syslog too."""
    seen: list[dict[str, Any]] = []
    log = Logger("twisted.web.http", observer=filtered(LegacyLogObserverWrapper(seen.append), "warn"))
    log.error("{peer}", peer="192.0.2.1")
    log.info("low")
    log.warn("high")
    assert [event["log_format"] for event in seen] == ["high"]


class _Stream(io.StringIO):
    """Counts how often it is written to."""

    writes = 0

    def write(self, text: str, /) -> int:
        self.writes += 1
        return super().write(text)


def test_lines_of_requests_wait_for_one_another_and_are_one_write() -> None:
    """A burst of requests costs one write, in the order in which they ended, and one call later."""
    stream, turns = _Stream(), list[Callable[[], None]]()
    log = log_observer(stream, "text", "info", turns.append)
    for name in ("one", "two", "three"):
        log({"log_level": LogLevel.info, "log_time": TIME, "record": RequestRecord(name, 0.0)})
    assert stream.writes == 0
    (flush,) = turns
    flush()
    assert stream.writes == 1
    assert [line.split(" id=")[1].split(" ")[0] for line in stream.getvalue().splitlines()] == ["one", "two", "three"]
    log({"log_level": LogLevel.info, "log_time": TIME, "record": RequestRecord("four", 0.0)})
    assert len(turns) == 2


def test_another_event_is_never_written_before_requests_that_ended_before_it() -> None:
    """Lines that wait go out first, and not once more in their turn."""
    stream, turns = _Stream(), list[Callable[[], None]]()
    log = log_observer(stream, "json", "info", turns.append)
    log({"log_level": LogLevel.info, "log_time": TIME, "record": RequestRecord("one", 0.0)})
    log({"log_level": LogLevel.info, "log_namespace": "x", "log_format": "after", "log_time": TIME})
    turns[0]()
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["request_id"], second["message"]) == ("one", "after")


_NAMES = st.text(st.sampled_from(["a", "/", "é", "\n", "\x1b", "\u2028"]), max_size=3)
_TIMES = st.none() | st.floats(-5, 1000)
_ATTEMPTS = st.builds(
    AttemptRecord,
    _NAMES,
    status=st.none() | st.sampled_from([0, 200, 429]),
    failure=st.none() | st.sampled_from(["upstream_503"]),
    waited=st.none() | st.floats(0, 5),
)
_RECORDS = st.builds(
    RequestRecord,
    _NAMES,
    st.floats(0, 10),
    bytes_in=st.integers(0, 10**12),
    mode=st.sampled_from(["none", "alias"]),
    stream=st.booleans(),
    candidates=st.lists(_NAMES, max_size=3).map(tuple),
    attempts=st.lists(_ATTEMPTS, max_size=2),
    selected=st.none() | _NAMES,
    status=st.sampled_from([200, 499]),
    error=st.none() | st.sampled_from(["overloaded"]),
    outcome=st.sampled_from(["complete", "cut"]),
    first_attempt=_TIMES,
    first_byte=_TIMES,
    ended=_TIMES,
    continuations=st.lists(_ATTEMPTS, max_size=1).map(tuple),
)


@given(st.lists(_RECORDS, min_size=1, max_size=4))
def test_every_record_is_one_line_whatever_was_logged_before(found: list[RequestRecord]) -> None:
    """What is remembered of other requests changes nothing in a line, and no name breaks it."""
    stream = io.StringIO()
    log = log_observer(stream, "text", "info")
    for record in found * 2:
        log({"log_level": LogLevel.info, "log_time": TIME, "record": record})
    start = "2025-11-21T09:12:08.123Z info  [chutes_autopilot] "
    escaped = [re.sub(r"[\n\x1b\u2028]", lambda c: _ESCAPES[c[0]], str(record)) for record in found]
    assert stream.getvalue().split("\n") == [start + line for line in escaped * 2] + [""]


_ESCAPES = {"\n": "\\n", "\x1b": "\\x1b", "\u2028": "\\u2028"}
