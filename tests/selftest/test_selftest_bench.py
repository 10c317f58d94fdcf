"""The bench: what it tests with, and that it does not take a bad gateway for a good one."""

from collections.abc import Mapping

import pytest

from chutes_autopilot.cli.selftest import selftest
from chutes_autopilot.demo.faults import FaultKind
from chutes_autopilot.demo.service import SimulatedChutesService, listen_simulator
from chutes_autopilot.demo.simulator import SimulatedChutes
from chutes_autopilot.selftest.bench import Bench, Score
from chutes_autopilot.selftest.caller import Caller
from chutes_autopilot.selftest.catalogue import YARDSTICK, Trial
from chutes_autopilot.selftest.grades import Grade, Played, Verdict
from chutes_autopilot.selftest.reading import End, Heard
from chutes_autopilot.selftest.rehearsal import rehearsed, replaced
from chutes_autopilot.selftest.scorecard import as_text
from chutes_autopilot.settings import Settings, read_settings

UPSTREAM = "http://127.0.0.1:9"


def settings(**environ: str) -> Settings:
    return read_settings(environ, lambda path: "")


def test_only_what_must_be_replaced_is() -> None:
    """Nothing outside the process is touched, long waiting times are shortened, all else stays and nothing is told."""
    before = settings(
        ADMIN_ENDPOINT="tcp:9090",
        REDIS_URL="redis://:hunter2@localhost",
        UPSTREAM_HEADER_TIMEOUT_MS="700",
        MAX_FAILOVER_ATTEMPTS="2",
        CHUTES_ENABLED="true",
        TRACING_ENABLED="true",
        WORKERS="4",
    )
    after = rehearsed(before, UPSTREAM, 1.5)
    changes: Mapping[str, tuple[str, str]] = replaced(before, after)
    assert changes.pop("MODELS_URL") == ("https://llm.chutes.ai/v1/models", f"{UPSTREAM}/v1/models")
    assert {name: now for name, (_, now) in changes.items()} == {
        "LISTEN_ADDR": "127.0.0.1:0",
        "WORKERS": "1",
        "BACKEND_BASE_URL": UPSTREAM,
        "UTILIZATION_URL": f"{UPSTREAM}/chutes/utilization",
        "UPSTREAM_FIRST_BODY_BYTE_TIMEOUT_MS": "1500",
        "FIRST_EVENT_TIMEOUT_MS": "1500",
        "RETRY_AFTER_MAX_MS": "1500",
        "STREAM_IDLE_TIMEOUT_MS": "1500",
        "STICKY_FAILBACK_MS": "1500",
        "COOLDOWN_MS": "1500",
        "SHUTDOWN_GRACE_MS": "1000",
        "ADMIN_ENDPOINT": "",
        "REDIS_URL": "",
        "CHUTES_ENABLED": "false",
        "EXPLORER_ENABLED": "false",
        "TRACING_ENABLED": "false",
    }
    assert "hunter2" not in repr(changes)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (FaultKind.ERROR_TAIL, "half an answer that looks whole"),
        (FaultKind.NO_INSTANCES, "503 passed on, 1 attempt"),
    ],
)
async def test_no_gateway_is_no_good_one(kind: FaultKind, words: str) -> None:
    """Clients that call the upstream itself suffer its faults, and the grades say so."""
    from twisted.internet import reactor

    bench = Bench(settings(), reactor, 1.0, (Trial("direct", "direct", kind),))
    await bench.start()
    try:
        await bench.caller.close()
        bench.caller = Caller(reactor, bench.in_force.backend_base_url)
        (score,) = await bench.play()
        await bench.caller.close()
    finally:
        await bench.stop()
    assert score.verdict.words == words


@pytest.mark.parametrize(
    ("kind", "patience", "end"),
    [
        (FaultKind.SILENT_HEAD, 0.05, End.HUNG),
        (FaultKind.FROZEN, 0.05, End.HUNG),
        (FaultKind.PINGS, 0.05, End.HUNG),
        (FaultKind.RESET, 5.0, End.CUT),
        (FaultKind.CUT, 5.0, End.CUT),
        (FaultKind.NO_DONE, 5.0, End.CLEAN),
    ],
)
async def test_how_an_answer_ends(kind: FaultKind, patience: float, end: End) -> None:
    """The client tells an end from a cut, and leaves in time what has none, before its head or behind it."""
    from twisted.internet import reactor

    simulator = SimulatedChutes(reactor)
    upstream = SimulatedChutesService(simulator, listen_simulator(reactor, simulator))
    simulator.faults.add(kind)
    caller = Caller(reactor, upstream.base_url)
    heard = await caller.chat({"model": simulator.models[0].name, "stream": True}, "somebody", patience)
    await caller.close()
    await upstream.stopService()
    assert heard.end is end


def test_the_scorecard_says_all() -> None:
    """A line for each fault, the sums, and what was replaced."""
    played = Played((Heard(200, End.CLEAN, 0.25),), 2, 0, 0.25)
    scores = [
        Score(YARDSTICK[0], Verdict(Grade.PASS, "good"), played),
        Score(YARDSTICK[1], Verdict(Grade.SAFE, "not so good"), played),
    ]
    assert as_text(scores, "standard", {"LISTEN_ADDR": ("0.0.0.0:8080", "127.0.0.1:0")}, 3.0).splitlines() == [
        "Profile: standard",
        "",
        "429 once        pass     good           0.25 s",
        "429 persistent  safe     not so good    0.25 s",
        "",
        "16 of the yardstick: 1 pass, 0 partial, 1 safe, 0 fail",
        "all 2: 1 pass, 0 partial, 1 safe, 0 fail",
        "played in 3.0 s",
        "",
        "Replaced for the test:",
        "  LISTEN_ADDR=127.0.0.1:0 (is 0.0.0.0:8080)",
    ]


def test_faulty_settings_end_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is started, with exit code 1 and each fault."""
    with pytest.raises(SystemExit) as ended:
        selftest([], None, {"LOG_LEVEL": "x"})
    assert ended.value.code == 1
    assert "\n  LOG_LEVEL: must be " in capsys.readouterr().err
