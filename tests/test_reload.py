"""Settings read again: each is applied or named as needing a restart, and a faulty set changes nothing."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import formatEvent, globalLogPublisher

from chutes_autopilot.composition import build
from chutes_autopilot.control.periodic import PeriodicRefresh
from chutes_autopilot.listening import ListeningService
from chutes_autopilot.reload import NEEDS_RESTART, Reload
from chutes_autopilot.settings import Settings, SettingsError, read_settings
from chutes_autopilot.workers.parent_composition import build_parent

READ_WHEN_NEEDED = {"readyz_max_snapshot_age", "readyz_max_allowlist_age", "control_plane_timeout"}
"""What is read from the settings in force each time anew."""

ELSEWHERE = {"log_level", "warnings"}
"""The level is applied beside the service; warnings are for the start."""


def settings(**environ: str) -> Settings:
    return read_settings(environ, lambda path: Path(path).read_text())


class Noting:
    """Settings that note which of their values were asked for."""

    def __init__(self, values: Settings) -> None:
        self._values = values
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.asked.add(name)
        return getattr(self._values, name)


def test_every_setting_is_applied_or_needs_a_restart() -> None:
    """A new setting that is forgotten on one of the two sides is found here."""
    service = build(settings(EXPLORER_ENABLED="false"), MemoryReactorClock(), ())
    noting: Any = Noting(settings(TRUST_PROXY_HEADERS="true", TRUSTED_PROXY_CIDRS="10.0.0.0/8"))
    service.apply(noting)
    fields = {field.name for field in attrs.fields(Settings)}
    assert noting.asked == fields - NEEDS_RESTART - READ_WHEN_NEEDED - ELSEWHERE


@pytest.mark.parametrize("workers", ["1", "2"])
def test_changed_settings_count_in_the_control_plane_too(workers: str) -> None:
    """In the one process of a plain service, and in the parent of several workers: for polls, and for the operator."""
    reactor = MemoryReactorClock()
    unreachable = dict.fromkeys(("MODELS_URL", "UTILIZATION_URL"), "http://127.0.0.1:9")
    before = settings(**unreachable, EXPLORER_ENABLED="false", UPSTREAM_CONNECT_TIMEOUT_MS="1000")
    after = attrs.evolve(before, upstream_connect_timeout=4.0, max_connections=5)
    service: Any
    if workers == "1":
        service = build(before, reactor, ())
        service.apply(after)
    else:
        service = build_parent(attrs.evolve(before, workers=2), reactor, (), lambda: ({}, {}))
        service.changed_settings(after)
    assert service.connections.limit == 5
    polls = [each for each in service if isinstance(each, PeriodicRefresh)]
    for poll in polls:
        poll.startService()
    reactor.advance(3.9)
    given_up = [connector.stoppedConnecting for connector in reactor.connectors]
    reactor.advance(0.2)
    assert (given_up, [each.stoppedConnecting for each in reactor.connectors]) == ([False] * 2, [True] * 2)
    for poll in polls:
        poll.stopService()


@pytest.mark.parametrize("workers", [1, 2])
def test_more_connections_take_more_descriptors(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """In a process that serves, and in the parent of those that do."""
    limits = [(64, 1000)]
    monkeypatch.setattr("chutes_autopilot.descriptors.resource.getrlimit", lambda _: limits[-1])
    monkeypatch.setattr("chutes_autopilot.descriptors.resource.setrlimit", lambda _, limit: limits.append(limit))
    few = settings(EXPLORER_ENABLED="false", MAX_CONNECTIONS="10", WORKERS=str(workers))
    service = running(few)
    service.apply(attrs.evolve(few, max_connections=100, max_inflight_requests=20))
    assert limits[1:] == [(220, 1000)]
    assert service.connections.limit == 100


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_client_may_take_changes_on_every_endpoint(workers: int) -> None:
    """The operator's own too."""
    reactor = MemoryReactorClock()
    before = settings(EXPLORER_ENABLED="false", ADMIN_ENDPOINT="tcp:9", ADMIN_TOKEN="t" * 40, WORKERS=str(workers))
    service = running(before, reactor)
    for part in service:
        if isinstance(part, ListeningService):
            part.privilegedStartService()
    service.apply(attrs.evolve(before, client_idle_timeout=1.0))
    sites = [server[1] for server in reactor.tcpServers]
    if workers > 1:
        sites.append(service.site)
    assert [site.limits.idle_timeout for site in sites] == [1.0] * 2


def running(settings: Settings, reactor: Any = None) -> Any:
    """The service as one process, or as the parent of several."""
    reactor = reactor or MemoryReactorClock()
    if settings.workers == 1:
        return build(settings, reactor, ("tcp:8",))
    return build_parent(settings, reactor, (), lambda: ({}, {}))


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("log_namespace") == "chutes_autopilot.reload":
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def test_what_needs_a_restart_stays_and_is_named_until_it_came(log: list[str]) -> None:
    """The rest of the same file is applied; secrets are named, never shown."""
    applied: list[Settings] = []
    new = settings(MAX_REQUEST_BYTES="5", LOG_FORMAT="json", CLIENT_KEY_SECRET="a-new-secret-0123")
    reload = Reload(settings(), lambda: new, applied.append)
    reload("SIGHUP")
    reload("SIGHUP")
    assert [(s.max_request_bytes, s.log_format, s.client_key_secret) for s in applied] == [(5, "text", None)] * 2
    later = "SIGHUP: changed, but it needs a restart: CLIENT_KEY_SECRET, LOG_FORMAT"
    assert log == [
        "SIGHUP: settings changed: MAX_REQUEST_BYTES",
        later,
        "SIGHUP: settings changed: none",
        later,
    ]


@pytest.mark.parametrize(("before", "after", "line"), [("info", "warn", 0), ("warn", "info", 1)])
def test_a_change_of_what_the_log_shows_is_told_while_it_shows_it(
    log: list[str], before: str, after: str, line: int
) -> None:
    """Before it shows less, or after it shows more."""
    Reload(settings(LOG_LEVEL=before), partial(settings, LOG_LEVEL=after), lambda _: log.append("applied"))("HUP")
    assert log[line] == "HUP: settings changed: LOG_LEVEL"
    assert log[1 - line] == "applied"


def test_the_size_of_the_memory_that_workers_share_needs_a_restart(log: list[str]) -> None:
    """One process has a memory of its own, which takes its new size at once."""
    applied: list[int] = []

    def apply(new: Settings) -> None:
        applied.append(new.sticky_max_entries)

    for workers in ("1", "2"):
        read = partial(settings, WORKERS=workers, STICKY_MAX_ENTRIES="5")
        Reload(settings(WORKERS=workers), read, apply)("HUP")
    assert applied == [5, 10_000]
    assert log == [
        "HUP: settings changed: STICKY_MAX_ENTRIES",
        "HUP: settings changed: none",
        "HUP: changed, but it needs a restart: STICKY_MAX_ENTRIES",
    ]


def test_changed_aliases_are_a_changed_setting(log: list[str], tmp_path: Path) -> None:
    """The file is read again though its name has not changed, and the log tells the one from the other."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text('{"house": ["a/A"]}')
    two.write_text('{"house": ["c/C"]}')
    files = iter([one, one, one, two])
    applied: list[str] = []

    def apply(new: Settings) -> None:
        assert new.aliases_file is not None
        applied.append(new.aliases_file.aliases.expand("house", set()))

    reload = Reload(settings(ALIASES_FILE=str(next(files))), lambda: settings(ALIASES_FILE=str(next(files))), apply)
    one.write_text('{"house": ["b/B"]}')
    reload("SIGHUP")
    one.write_text('{"house": ["b/B"')
    reload("SIGHUP")
    reload("SIGHUP")
    assert applied == ["b/B", "c/C"]
    assert log[0] == "SIGHUP: settings changed: ALIASES_FILE (content)"
    assert "the settings stay as they were" in log[1]
    assert log[2] == "SIGHUP: settings changed: ALIASES_FILE"


def test_faulty_settings_are_refused_whole(log: list[str]) -> None:
    """All faults are named, and nothing is applied."""

    def faulty() -> Settings:
        raise SettingsError(("A: must be x", "B: must be y"))

    before = settings()
    reload = Reload(before, faulty, lambda new: pytest.fail("applied"))
    reload("SIGHUP")
    assert reload.settings is before
    assert log == ["SIGHUP: the settings stay as they were: A: must be x; B: must be y"]
