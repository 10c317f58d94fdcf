"""The service as a process: how it starts, how it refuses to, and how it ends."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest
import trustme

from chutes_autopilot import __version__

SCRIPT = ("-c", "from chutes_autopilot.cli.main import main; main()")
"""What the console script runs."""


def test_it_serves_from_an_unwritable_directory_until_sigterm(start: Callable) -> None:
    """twistd finds the plugin, the service answers, SIGTERM ends it with 0, and standard error stays empty."""
    daemon = start()
    url = daemon.wait_for("listening on ")
    with urlopen(f"{url}/healthz", timeout=10) as answer:  # noqa: S310
        assert (answer.status, answer.read()) == (200, b"ok")
    code, out, err = daemon.end()
    assert (code, err) == (0, "")
    assert "Traceback" not in out


def test_ctrl_c_is_a_quiet_end(start: Callable) -> None:
    """SIGINT ends the service with 0 and no traceback."""
    daemon = start()
    daemon.wait_for("listening on ")
    code, out, err = daemon.end(signal.SIGINT)
    assert (code, err) == (0, "")
    assert "Traceback" not in out


@pytest.mark.parametrize("arguments", [(), ("run",)])
def test_the_console_script_does_the_same(start: Callable, arguments: tuple[str, ...]) -> None:
    """chutes-autopilot, with or without "run", serves in the foreground and takes the same options."""
    daemon = start(*arguments, "--endpoint", r"tcp6:0:interface=\:\:1", command=SCRIPT)
    assert daemon.wait_for("listening on ").startswith("http://[::1]:")
    assert daemon.end()[0] == 0


@pytest.mark.parametrize("arguments", [("--version",), ("run", "--version")])
def test_the_console_script_tells_its_version(start: Callable, arguments: tuple[str, ...]) -> None:
    """--version of the console script is the version of the service."""
    assert start(*arguments, command=SCRIPT).wait() == (0, f"chutes-autopilot {__version__}\n", "")


def test_two_instances_side_by_side_leave_no_files(start: Callable, tmp_path: Path) -> None:
    """Instances that share a directory do not hinder each other, and leave nothing there."""
    daemons = [start(cwd=str(tmp_path)), start(cwd=str(tmp_path))]
    for daemon in daemons:
        daemon.wait_for("listening on ")
    assert list(tmp_path.iterdir()) == []
    assert [daemon.end()[0] for daemon in daemons] == [0, 0]
    assert list(tmp_path.iterdir()) == []


SET_BACK = """
import os, time, twisted.internet.base
from chutes_autopilot import steady_time
def clock(now=time.time, set_back=SET_BACK):
    return now() - 7200 * os.path.exists(set_back)
twisted.internet.base.ReactorBase.seconds = staticmethod(clock)
steady_time.keep_steady.__kwdefaults__["unix_time"] = clock
steady_time.LOOK_SECONDS = 0.05
from twisted.scripts.twistd import run
run()
"""
"""twistd, going by a clock that is two hours behind as soon as the file SET_BACK is there."""


def test_a_clock_that_is_set_back_is_told_and_stops_no_poll(start: Callable, tmp_path: Path) -> None:
    """For two hours nothing would happen, and nobody would know."""
    set_back = tmp_path / "set-back"
    command = ("-c", SET_BACK.replace("SET_BACK", repr(str(set_back))), "-n", "chutes-autopilot", "--demo")
    daemon = start(command=command, UTILIZATION_REFRESH_MS="400")
    url = daemon.wait_for("listening on ")

    def polls() -> float:
        with urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310
            told = answer.read().decode()
        return float(told.partition('refresh_total{outcome="ok",source="utilization"} ')[2].partition("\n")[0] or 0)

    def wait_for_polls(count: float) -> None:
        until = time.monotonic() + 10
        while polls() < count:
            assert time.monotonic() < until
            time.sleep(0.02)

    wait_for_polls(1)  # now the next one is what is waited for
    set_back.touch()
    assert daemon.wait_for("the clock of this machine was set: it is now ").startswith("7200 s behind")
    wait_for_polls(polls() + 2)
    assert daemon.end()[0] == 0


def test_a_taken_port_is_one_line_and_exit_code_1(start: Callable) -> None:
    """A port that another process has ends the start, also when another endpoint could be bound."""
    first = start()
    port = first.wait_for("listening on http://127.0.0.1:")
    taken = f"tcp:{port}:interface=127.0.0.1"
    code, out, err = start("--endpoint", "tcp:0:interface=127.0.0.1", "--endpoint", taken).wait()
    assert (code, err) == (1, f"chutes-autopilot: cannot listen on '{taken}': Address already in use\n")
    assert "Traceback" not in out
    assert first.end()[0] == 0


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        ((), {"LOG_LEVEL": "loud"}, "these settings are not valid:\n  LOG_LEVEL: "),
        (("--endpoint", "tcp:x"), {}, "these settings are not valid:\n  --endpoint: cannot use the endpoint 'tcp:x': "),
        (("--endpoint", "ssl:0:privateKey=/nowhere/a.pem"), {}, "these settings are not valid:\n  --endpoint: "),
        (("--endpoint", "unix:/nowhere/socket"), {}, "cannot listen on 'unix:/nowhere/socket': "),
        (("--nonsense",), {}, "option --nonsense not recognized"),
    ],
)
def test_a_wrong_start_is_told_without_traceback_or_usage(
    start: Callable, arguments: tuple[str, ...], environ: dict[str, str], message: str
) -> None:
    """Whatever is wrong with the start is said on standard error, and the exit code is 1."""
    code, out, err = start(*arguments, **environ).wait()
    assert (code, err[: len(message) + 18]) == (1, f"chutes-autopilot: {message}")
    assert not any(word in out + err for word in ("Traceback", "Usage", "--pidfile"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_key_that_only_root_can_read_is_no_key_for_workers(start: Callable, tmp_path: Path) -> None:
    """They read it themselves, as the user that --uid names: better no start than one that nobody answers after."""
    issued = trustme.CA().issue_cert("localhost")
    pem = tmp_path / "both.pem"
    pem.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    pem.chmod(0o600)
    endpoint = f"ssl:0:interface=127.0.0.1:privateKey={pem}"
    options = ("--uid", "65534", "--gid", "65534", "chutes-autopilot", "--workers", "2", "--endpoint", endpoint)
    code, _, err = start(*options).wait()
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"chutes-autopilot: cannot use the endpoint '{endpoint}': Permission denied: {pem} (worker")


def test_the_log_is_json_from_the_first_line_to_the_last(start: Callable) -> None:
    """With LOG_FORMAT=json every line of standard output is an object, Twisted's own lines too."""
    daemon = start(LOG_FORMAT="json")
    daemon.wait_for("listening on ")
    code, out, _ = daemon.end()
    assert code == 0
    assert all({"time", "level", "logger", "message"} <= json.loads(line).keys() for line in out.splitlines())


def test_the_log_level_holds_from_the_first_line(start: Callable) -> None:
    """With LOG_LEVEL=warn the first line is a warning, and Twisted's talk about its own start is not there."""
    daemon = start(LOG_LEVEL="warn", HTTPS_PROXY="http://proxy")
    daemon.wait_for("HTTPS_PROXY is set but not supported")
    code, out, err = daemon.end()
    assert (code, err) == (0, "")
    assert {line.split()[1] for line in out.splitlines()} == {"warn"}


def test_the_log_goes_to_a_file_in_our_format(start: Callable, tmp_path: Path) -> None:
    """twistd's --logfile is respected, the lines in it are ours, and why a start failed is there too."""
    log = tmp_path / "autopilot.log"
    daemon = start("--logfile", str(log), "chutes-autopilot", "--endpoint", "unix:/nowhere/socket")
    assert daemon.wait()[:2] == (1, "")
    assert (
        log.read_text()
        .splitlines()[-1]
        .endswith(
            " error [listening.ListeningService] cannot listen on unix:/nowhere/socket: "
            "No such file or directory: /nowhere/socket.lock"
        )
    )


def test_the_log_holds_no_client_address(start: Callable) -> None:
    """A request leaves no trace of where it came from."""
    daemon = start()
    port = daemon.wait_for("listening on http://127.0.0.1:")
    with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as client:
        own_port = client.getsockname()[1]
        client.sendall(b"GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        while client.recv(4096):
            pass
    _, out, _ = daemon.end()
    assert str(own_port) not in out.replace(f"127.0.0.1:{port}", "")
