"""``chutes-autopilot doctor``, ``record`` and ``replay`` as processes, the way an operator runs them."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

SCRIPT = ("-c", "from chutes_autopilot.cli.main import main; main()")
KEY = "cpk_7c0ffee7c0ffee"


def test_the_doctor_of_the_demo_mode_finds_nothing_wrong(start: Callable) -> None:
    """Exit code 0, standard error empty, and the settings in force behind the findings."""
    code, out, err = start("doctor", "--demo", command=SCRIPT).wait()
    assert (code, err) == (0, "")
    assert "\n0 failed, 0 warnings, " in out
    assert "  LISTEN_ADDR=127.0.0.1:0\n" in out


def test_the_doctor_of_a_gateway_that_runs(start: Callable) -> None:
    """It says who listens there, and how that gateway is."""
    daemon = start("--demo", "--endpoint", "tcp:0:interface=127.0.0.1")
    port = daemon.wait_for("listening on http://127.0.0.1:")
    daemon.wait_for("utilization: ready")
    endpoint = f"tcp:{port}:interface=127.0.0.1"
    code, out, _ = start("doctor", "--demo", "--endpoint", endpoint, command=SCRIPT).wait()
    assert (code, daemon.end()[0]) == (0, 0)
    assert f"listen {endpoint}: a gateway listens there, and is ready" in out


def test_what_fails_is_exit_code_1_and_no_secret(start: Callable, tmp_path: Path) -> None:
    """Also as JSON, and with settings from a file; the key is looked at, and never shown."""
    file = tmp_path / "env"
    file.write_text(f"CHUTES_API_KEY={KEY}\nCLIENT_KEY_SECRET=hunter2-hunter2-hunter2\nTOKEN=hunter2\n")
    code, out, err = start("doctor", "--json", "--env-file", str(file), "--timeout", "9", command=SCRIPT).wait()
    report = json.loads(out)
    found = {(each["check"], each["subject"]): each["level"] for each in report["findings"]}
    assert (code, err) == (1, "")
    assert found["connect", "127.0.0.1:1"] == found["catalog", "fetch"] == "fail"
    assert found["key", "form"] == "warn"
    assert report["summary"]["fail"] == sum(level == "fail" for level in found.values())
    assert report["settings"]["CHUTES_API_KEY"] == report["settings"]["CLIENT_KEY_SECRET"] == "********"
    assert not any(secret in out for secret in (KEY, "c0ffee", "hunter2"))


def test_faulty_settings_are_findings(start: Callable) -> None:
    """Each of them; nothing else can be looked at then."""
    code, out, err = start("doctor", "--key-file=/nowhere", command=SCRIPT, LOG_LEVEL="x", MAX_REQUEST_BYTES="0").wait()
    assert (code, err) == (1, "")
    assert [line.partition(":")[0] for line in out.splitlines() if line.startswith("FAIL")] == [
        "FAIL  settings MAX_REQUEST_BYTES",
        "FAIL  settings LOG_LEVEL",
        "FAIL  key file",
    ]


def test_recording_until_a_signal_and_replaying(start: Callable, tmp_path: Path) -> None:
    """A recording ends in order at SIGTERM, is refused a second time meanwhile, and can be replayed."""
    directory = str(tmp_path / "feeds")
    recording = start("record", directory, "--demo", "--interval", "5", command=SCRIPT)
    recording.wait_for("utilization: ")
    code, _, err = start("record", directory, "--demo", "--count", "1", command=SCRIPT).wait()
    assert (code, "another process records into" in err) == (1, True)
    code, out, err = recording.end(signal.SIGTERM)
    assert (code, err) == (0, "")
    assert "1 answers; 2 snapshots" in out
    code, out, _ = start("replay", directory, "--json", command=SCRIPT).wait()
    rankings = json.loads(out)["rankings"]
    assert (code, rankings["default"]["first_share"]) == (0, 1.0)
    assert rankings["rendezvous"]["effective_models"] > 5


def test_recording_politely_or_not_at_all(start: Callable, tmp_path: Path) -> None:
    """An interval that would be rude is refused."""
    code, _, err = start("record", str(tmp_path), "--interval", "1", command=SCRIPT).wait()
    assert (code, "must be at least 5 seconds" in err) == (2, True)
