"""What the doctor finds, check by check and all together, on loopback."""

import json
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme
from doctor_platform import NOW, Platform, answer, models, row
from OpenSSL.SSL import TLS_METHOD
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.web.http_headers import Headers

from chutes_autopilot.cli.keygen import keygen
from chutes_autopilot.doctor.clock import check_clock, offset_of
from chutes_autopilot.doctor.connections import check_connection
from chutes_autopilot.doctor.diagnosis import Diagnosis
from chutes_autopilot.doctor.feeds import check_age
from chutes_autopilot.doctor.findings import Finding
from chutes_autopilot.doctor.key import check_form, key_in
from chutes_autopilot.doctor.listeners import check_endpoint_free
from chutes_autopilot.doctor.machine import check_descriptors, check_key_file, check_settings, check_workers
from chutes_autopilot.doctor.routing import check_models, check_rules
from chutes_autopilot.policy.catalog import parse_catalog
from chutes_autopilot.policy.ranking import rank
from chutes_autopilot.policy.utilization import parse_utilization
from chutes_autopilot.settings import Settings, read_settings
from chutes_autopilot.upstream.certificates import CertificateFile

KEY = b"cpk_" + b"0" * 32 + b"." + b"1" * 32 + b"." + b"Z" * 32
AUTHORITY = trustme.CA()
MakeSettings = Callable[..., Settings]


async def examined(
    settings: Settings, key: bytes | None = None, limit: float = 8.0, **options: Any
) -> dict[str, Finding]:
    """The findings by check and subject, the last of each."""
    from twisted.internet import reactor

    findings = await Diagnosis(settings, (), reactor, key, limit, **options).findings()
    return {f"{finding.check} {finding.subject}": finding for finding in findings}


def levels(findings: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.level for name, finding in findings.items() if finding.level != "ok"}


async def test_a_sound_configuration(settings_for: MakeSettings, platform: Platform) -> None:
    """Every check is ok, and says what it saw; the key goes to the one call that needs it."""
    found = await examined(settings_for(), KEY)
    assert levels(found) == {}
    assert {"catalog shape", "utilization shape", "utilization age", "ranking candidates", "clock offset"} <= set(found)
    assert found["catalog shape"].message == "2 models, 0 records skipped, 0 KiB"
    assert found["ranking candidates"].message.startswith("2, the first a/A (score 3.0, 4 instances, 25% busy)")
    asked = [head for head in platform.heads if KEY in head]
    assert [head.split(b" ")[1] for head in asked] == [b"/model_aliases/"]


@pytest.mark.parametrize(
    ("path", "said", "name", "level", "message"),
    [
        ("/v1/models", answer(b"<html>"), "catalog shape", "fail", "unexpected JSON"),
        ("/v1/models", answer({"data": []}), "catalog shape", "fail", "0 models"),
        ("/v1/models", answer(b"", 403), "catalog fetch", "fail", "status 403"),
        ("/v1/models", answer({"data": [{"id": "a/A"}, 7]}), "catalog shape", "warn", "1 records skipped"),
        ("/v1/models", answer(models("c/C")), "ranking candidates", "fail", "no model can be chosen"),
        ("/chutes/utilization", answer(b"{}"), "utilization shape", "fail", "unexpected JSON"),
        ("/chutes/utilization", answer([row(), {}]), "utilization shape", "warn", "1 records skipped"),
        ("/chutes/utilization", answer([row(utilization_5m=None)]), "ranking candidates", "warn", "1 without"),
        ("/chutes/utilization", answer([row(timestamp=5)]), "utilization age", "warn", "no readable time stamp"),
        ("/model_aliases/", answer({"detail": "x"}, 401), "key account", "fail", "does not know it"),
        ("/model_aliases/", answer({"detail": "x"}, 403), "key account", "warn", "may not read"),
        ("/model_aliases/", answer(b"", 500), "key account", "warn", "not known: status 500"),
    ],
)
async def test_what_the_platform_says_wrongly(
    settings_for: MakeSettings, platform: Platform, path: str, said: bytes, name: str, level: str, message: str
) -> None:
    """Each wrong answer is one finding, with a word on what to do."""
    platform.answers[path] = said
    finding = (await examined(settings_for(), KEY))[name]
    assert (finding.level, message in finding.message, bool(finding.advice)) == (level, True, True)


async def test_a_clock_that_is_wrong(settings_for: MakeSettings, platform: Platform) -> None:
    """It is told by the platform's Date headers, and the age of the feed is counted by the platform's clock."""
    ahead = datetime.now(UTC) + timedelta(hours=1)
    stamp = (ahead - timedelta(seconds=90)).replace(tzinfo=None).isoformat()
    for path in platform.answers:
        body = [row(timestamp=stamp)] if path == "/chutes/utilization" else models("a/A")
        platform.answers[path] = answer(body, 200, ahead)
    found = await examined(settings_for())
    assert levels(found) == {"clock offset": "fail"}
    assert "behind the platform" in found["clock offset"].message
    assert 60 < float(found["utilization age"].message.split(" ")[0]) < 120


@pytest.mark.parametrize(
    ("offsets", "level"), [([0.4, -2], "ok"), ([-20, -21], "warn"), ([61], "fail"), ([], "warn"), ([0, 0, 3600], "ok")]
)
def test_how_far_a_clock_may_be_off(offsets: list[float], level: str) -> None:
    """Seconds do no harm, a minute does; one odd answer among others does not count."""
    assert check_clock(offsets).level == level


def test_dates_that_tell_nothing() -> None:
    """A cached answer is of another time, and a broken Date of none."""
    dated = {"Date": ["Sat, 21 Nov 2026 12:00:00 GMT"]}
    assert offset_of(Headers(dated), 1795262400.5) == 0.0
    assert offset_of(Headers({**dated, "Age": ["9"]}), 0.0) is None
    assert offset_of(Headers({"Date": ["noon"]}), 0.0) is None


@pytest.mark.parametrize(
    ("ages", "level", "message"),
    [([5], "ok", "5 s"), ([5, 40], "ok", "5 to 40 s"), ([301], "warn", "301 s"), ([-400], "warn", "400 s in the")],
)
def test_the_age_of_a_feed(ages: list[int], level: str, message: str) -> None:
    """Its newest time stamp counts; those without a zone are UTC."""
    stamps = [datetime.fromtimestamp(10_000 - age, UTC).replace(tzinfo=None).isoformat() for age in ages]
    rows = [{"name": "a", "timestamp": stamp} for stamp in stamps]
    finding = check_age(json.dumps(rows).encode(), 10_000.0)
    assert (finding.level, message in finding.message) == (level, True)


@pytest.mark.parametrize("key", [KEY[:-1], KEY[4:], b"sk-1", KEY.upper()])
def test_the_form_of_a_key(key: bytes) -> None:
    """An unlikely key is told without a word of it."""
    finding = check_form(key)
    assert (check_form(KEY).level, finding.level) == ("ok", "warn")
    assert key.decode() not in repr(finding)


@pytest.mark.parametrize("text", [f"{KEY!r}\n{KEY!r}\n", "cpk_1\x07", "cl\u00e9", "", None])
def test_a_key_file_that_the_gateway_would_refuse_fails(text: str | None) -> None:
    """Without a word of what it holds."""

    def read(path: str) -> str:
        if text is None:
            raise FileNotFoundError(2, "No such file or directory")
        return text

    found = key_in("/run/key", read)
    assert isinstance(found, Finding)
    assert (found.level, found.check, found.subject) == ("fail", "key", "file")
    assert KEY.decode() not in repr(found)
    assert key_in("/run/key", lambda path: KEY.decode() + "\n") == KEY


async def test_a_key_is_never_sent_in_the_clear(settings_for: MakeSettings, platform: Platform) -> None:
    """Where CHUTES_API_BASE_URL is plain http to another machine, the call is not made."""
    settings = settings_for(CHUTES_API_BASE_URL="http://nowhere.invalid")

    def look_up(host: str) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    found = await examined(settings, KEY, look_up=look_up)
    assert levels(found) == {"dns nowhere.invalid": "fail", "key account": "fail"}
    assert not [head for head in platform.heads if KEY in head]


async def test_a_name_that_is_not_found_is_one_finding(settings_for: MakeSettings, platform: Platform) -> None:
    """What needs it is not tried."""

    def look_up(host: str) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    found = await examined(settings_for(UTILIZATION_URL="https://nowhere.invalid/"), look_up=look_up)
    assert levels(found) == {"dns nowhere.invalid": "fail"}
    assert platform.heads == []


async def test_a_hanging_look_up_ends_in_time(settings_for: MakeSettings) -> None:
    """The whole is bounded whatever the system's resolver does."""
    hanging = threading.Event()
    started = time.monotonic()
    found = await examined(
        settings_for(UTILIZATION_URL="https://nowhere.invalid/"), limit=0.4, look_up=lambda host: [str(hanging.wait(5))]
    )
    took = time.monotonic() - started
    hanging.set()
    assert levels(found) == {"time nowhere.invalid": "fail"}
    assert took < 2


async def test_a_silent_platform_ends_in_time(settings_for: MakeSettings, platform: Platform) -> None:
    """Feeds that never come are findings, within the limit."""
    platform.answers.clear()
    started = time.monotonic()
    found = await examined(settings_for(), limit=0.5)
    assert time.monotonic() - started < 3
    assert found["catalog fetch"].level == found["utilization fetch"].level == "fail"


@pytest.mark.parametrize(
    ("name", "valid_days", "authority", "level", "message"),
    [
        ("localhost", 30, AUTHORITY, "ok", "certificate valid for 30 more days"),
        ("localhost", 3, AUTHORITY, "warn", "certificate valid for 3 more days"),
        ("localhost", -1, AUTHORITY, "fail", "the certificate has expired"),
        ("example.org", 30, AUTHORITY, "fail", "for another name"),
        ("localhost", 30, trustme.CA(), "fail", "is not trusted here"),
    ],
)
async def test_certificates(
    platform: Platform, tmp_path: Path, name: str, valid_days: int, authority: trustme.CA, level: str, message: str
) -> None:
    """What is wrong with one is said in words."""
    from twisted.internet import reactor

    until = datetime.now(UTC) + timedelta(days=valid_days, minutes=1)
    leaf = authority.issue_cert(name, not_before=datetime(2020, 1, 1, tzinfo=UTC), not_after=until)
    leaf.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    pem = str(tmp_path / "server.pem")
    port = platform.listen(DefaultOpenSSLContextFactory(pem, pem, TLS_METHOD))
    root = CertificateFile(str(tmp_path / "ca.pem"))
    findings = await check_connection(reactor, "localhost", port, True, root, time.time())
    assert [finding.check for finding in findings] == ["connect", "tls"]
    assert (findings[1].level, message in findings[1].message) == (level, True), findings[1]


async def test_no_tls_and_no_connection(platform: Platform, tmp_path: Path) -> None:
    """A port without TLS, and one where nobody listens, are told apart."""
    from twisted.internet import reactor

    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    root = CertificateFile(str(tmp_path / "ca.pem"))
    port = platform.listen()
    platform.answers["*"] = b""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        (nobody,) = await check_connection(reactor, "127.0.0.1", unused.getsockname()[1], True, root, 0.0)
    assert (nobody.check, nobody.level) == ("connect", "fail")
    (plain,) = await check_connection(reactor, "127.0.0.1", port, False, root, 0.0)
    assert (plain.check, plain.level) == ("connect", "ok")


READY = answer(b"ready")
STALE = answer({"error": {"message": "x", "type": "not_ready", "param": None, "code": "stale_snapshot"}}, 503)


@pytest.mark.parametrize(
    ("said", "level", "message"),
    [
        (READY, "ok", "a gateway listens there, and is ready"),
        (answer(b"ready; 1 of 2 workers is missing"), "warn", "is ready, but: 1 of 2 workers is missing"),
        (STALE, "warn", "not ready: stale_snapshot"),
        (answer(b"", 500, NOW, "x-request-id: 1"), "warn", "/readyz: 500"),
        (answer(b"It works!"), "fail", "another program"),
        (b"SSH-2.0\r\n", "fail", "another program"),
    ],
)
async def test_who_listens_where_the_gateway_should(platform: Platform, said: bytes, level: str, message: str) -> None:
    """A gateway that runs is asked whether it is ready; anybody else is in the way."""
    from twisted.internet import reactor

    platform.answers["/readyz"] = said.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    port = platform.listen()

    class Closing(dict[str, bytes]):
        def get(self, path: str, default: Any = None) -> bytes | None:
            reactor.callLater(0.01, platform.sides[-1].transport.loseConnection)
            return platform_answers.get(path)

    platform_answers, platform.answers = platform.answers, Closing()
    finding = await check_endpoint_free(reactor, f"tcp:{port}:interface=127.0.0.1")
    assert (finding.level, message in finding.message) == (level, True), finding


async def test_endpoints_of_other_kinds(platform: Platform, tmp_path: Path) -> None:
    """A free port, a unix socket with somebody at it, an address of another machine, and what is no endpoint."""
    from twisted.internet import reactor

    path = str(tmp_path / "s")
    assert (await check_endpoint_free(reactor, f"unix:{path}")).message == "free"
    assert (await check_endpoint_free(reactor, "tcp:0:interface=127.0.0.1")).message == "free"
    assert "cannot be listened on" in (await check_endpoint_free(reactor, "tcp:0:interface=192.0.2.1")).message
    assert (await check_endpoint_free(reactor, "tcp:x")).level == "fail"
    assert (await check_endpoint_free(reactor, "systemd:domain=INET:index=0")).level == "ok"


def test_the_key_file(tmp_path: Path) -> None:
    """One that others may read is refused; one whose keys end soon is told of."""
    path = tmp_path / "keys.json"
    settings = read_settings({"E2EE_KEY_FILE": str(path)}, lambda path: "")
    assert [finding.level for finding in check_key_file(settings, time.time())] == ["fail"]
    keygen([str(path), "--id", "one"])
    (finding,) = check_key_file(settings, time.time())
    assert (finding.level, finding.message) == ("ok", "2 keys in force: one")
    path.chmod(0o644)
    (finding,) = check_key_file(settings, time.time())
    assert (finding.level, "chmod 600" in finding.message) == ("fail", True)


def test_settings_that_are_legal_and_will_not_do() -> None:
    """The start's warnings are findings here."""
    environ = {"CHUTES_ENABLED": "true", "HTTPS_PROXY": "x", "REDIS_URL": "redis://r"}
    found = {finding.subject: finding.level for finding in check_settings(read_settings(environ, lambda path: ""))}
    warned = dict.fromkeys(("HTTPS_PROXY", "CHUTES_API_KEY", "TOKEN", "CLIENT_KEY_SECRET"), "warn")
    assert found == {"values": "ok", **warned}


def test_what_would_keep_the_gateway_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extras that are missing, by name, and faulty files of webhooks and measurements."""
    monkeypatch.setattr("chutes_autopilot.extras.find_spec", lambda name: None)
    environ = {
        "TRACING_ENABLED": "true",
        "WEBHOOKS_FILE": "/nowhere",
        "CHUTES_ENABLED": "true",
        "CHUTES_TRANSPORT": "e2ee",
        "CHUTES_ATTESTATION": "quote",
        "CHUTES_TDX_MEASUREMENTS": "/nowhere",
    }
    failed = [f for f in check_settings(read_settings(environ, lambda path: "")) if f.level == "fail"]
    assert [(finding.subject, finding.message) for finding in failed] == [
        ("TRACING_ENABLED", "the extra tracing is not installed"),
        ("WEBHOOKS_FILE", "cannot read the file: No such file or directory"),
        ("CHUTES_TDX_MEASUREMENTS", "cannot read the file: No such file or directory"),
    ]
    assert failed[0].advice == "pip install 'chutes-autopilot[tracing]'"


@pytest.mark.parametrize(
    ("environ", "profile", "warned"),
    [
        ({}, "standard", []),
        (
            {"AUTOPILOT_PROFILE": "resilient", "HEDGE": "true", "STREAM_CONTINUE": "false"},
            "resilient, but for STREAM_CONTINUE=false, HEDGE=true",
            [],
        ),
        ({"MAX_FAILOVER_ATTEMPTS": "1"}, "standard", ["MAX_FAILOVER_ATTEMPTS"]),
        (
            {"RATE_LIMIT_RETRY": "true", "REQUEST_DEADLINE_MS": "5000"},
            "standard, but for RATE_LIMIT_RETRY=true",
            ["RETRY_AFTER_MAX_MS"],
        ),
        ({"AUTOPILOT_SPREAD": "rendezvous"}, "standard", ["AUTOPILOT_SPREAD"]),
        ({"AUTOPILOT_SPREAD": "rendezvous", "CLIENT_KEY_SECRET": "x" * 16}, "standard", []),
    ],
)
def test_the_rules_of_routing(environ: dict[str, str], profile: str, warned: list[str]) -> None:
    """The profile in force is told with what differs from it, and what can have no effect."""
    first, *others = check_rules(read_settings(environ, lambda path: ""))
    assert (first.level, first.message) == ("ok", profile)
    assert [finding.subject for finding in others if finding.level == "warn" and finding.advice] == warned


async def test_what_the_settings_say_of_models(settings_for: MakeSettings, platform: Platform, tmp_path: Path) -> None:
    """Aliases that would be refused or are never used are named, and an alias that stands for no model at all."""
    path = tmp_path / "aliases.json"
    path.write_text(json.dumps({"good": ["a/A"], "bad": ["a/A", "gone/X"], "b/B": ["a/A"], "some": ":tee"}))
    environ = {"ALIASES_FILE": str(path), "AUTOPILOT_REQUIRE_TEE": "true"}
    catalog = parse_catalog(json.dumps(models("a/A", "b/B")).encode())
    ranking = rank(parse_utilization(json.dumps([row("a/A")]).encode()).rows, catalog)
    found = list(check_models(read_settings(environ, lambda path: Path(path).read_text()), catalog, ranking))
    assert [(finding.subject, finding.level, finding.message.split(":")[0]) for finding in found] == [
        ("AUTOPILOT_REQUIRE_TEE", "warn", "0 of 1 candidates are confidential"),
        ("ALIASES_FILE", "warn", "bad is refused"),
        ("ALIASES_FILE", "warn", "b/B is never used, it is a model's name"),
        ("ALIASES_FILE", "ok", "2 of 4 aliases can be used"),
    ]
    platform.answers["/v1/models"] = answer({"data": [{**models("a/A")["data"][0], "confidential_compute": True}]})
    examination = await examined(settings_for(AUTOPILOT_REQUIRE_TEE="true"))
    assert examination["routing AUTOPILOT_REQUIRE_TEE"].message == "1 of 1 candidates are confidential"


async def test_the_collector_of_traces_is_looked_for_too(settings_for: MakeSettings) -> None:
    """Where tracing is on."""
    collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    assert "connect 127.0.0.1:1" not in await examined(settings_for(**collector))
    assert (await examined(settings_for(TRACING_ENABLED="true", **collector)))["connect 127.0.0.1:1"].level == "fail"


def test_what_several_workers_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their memory is told, a socket of systemd cannot be theirs, and each needs descriptors for its share alone."""
    several = read_settings({"WORKERS": "4", "MAX_CONNECTIONS": "4000"}, lambda path: "")
    refused, memory = check_workers(several, ("systemd:domain=INET:index=0", "tcp:8080"))
    assert (refused.level, memory.level) == ("fail", "ok")
    assert "systemd:domain=INET:index=0" in refused.message
    assert memory.message == "4 workers, a spare one and their parent take 270 MiB when idle"
    assert list(check_workers(read_settings({}, lambda path: ""), ("systemd:x",))) == []
    monkeypatch.setattr("chutes_autopilot.descriptors.resource.getrlimit", lambda _: (1500, 1500))
    monkeypatch.setattr("chutes_autopilot.descriptors.resource.setrlimit", lambda *_: None)
    assert check_descriptors(several).level == "ok"
    one = check_descriptors(attrs.evolve(several, workers=1))
    assert (one.level, one.message) == ("warn", "only 1200 of 4000 connections fit")
