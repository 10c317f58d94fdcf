"""Three replicas behind the HAProxy of deploy/, restarted one after the other under load."""

import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from threading import Condition, Event, Thread
from typing import Any
from urllib.request import urlopen

import pytest
from daemon_process import ROOT

CONFIGURATION = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
HAPROXY = shutil.which("haproxy")
KEYS = 12
"""Clients by their keys, enough that each replica has some."""


class Replica:
    """A demo that can be started again at the same address."""

    def __init__(self, start: Callable[..., Any]) -> None:
        self._start = start
        self.begin(0)
        self.port = int(self.daemon.wait_for("listening on http://127.0.0.1:"))

    def begin(self, port: int) -> None:
        self.daemon = self._start("--demo", LISTEN_ADDR=f"127.0.0.1:{port}")

    def restart(self) -> str:
        """SIGTERM, the orderly end, and a new process; what the old one wrote."""
        code, out, err = self.daemon.end()
        assert (code, err) == (0, "")
        self.begin(self.port)
        self.daemon.wait_for("utilization: ready")
        return str(out)


class Load:
    """Clients that ask without a pause, each in a thread, until they are told to stop.

    :ivar failures: what was not a whole answer.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = Event()
        self._numbers = count()
        self.failures: list[str] = []
        self.answered = 0
        self._one_more = Condition()
        self._threads = [Thread(target=self._ask, args=(place % 2 == 0,)) for place in range(6)]
        for thread in self._threads:
            thread.start()

    def until(self, answered: int) -> None:
        """Wait until so many requests have had an answer."""
        with self._one_more:
            assert self._one_more.wait_for(lambda: self.answered >= answered, timeout=30), self.failures

    def stop(self) -> None:
        """Let each client have its last answer."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, stream: bool) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=30)
        hello = [{"role": "user", "content": "Say hello."}]
        body = {"model": "chutesai/AutoPilot", "messages": hello, "stream": stream, "n_tokens": 15 if stream else 2}
        while not self._stop.is_set():
            key = {"Authorization": f"Bearer key-{next(self._numbers) % KEYS}"}
            try:
                connection.request("POST", "/v1/chat/completions", json.dumps(body), key)
                answer = connection.getresponse()
                text = answer.read()
            except OSError as error:
                self.failures.append(repr(error))
                connection.close()
                continue
            except Exception as error:  # noqa: BLE001 - a failure, whatever it is
                self.failures.append(repr(error))
                break
            whole = text.endswith(b"data: [DONE]\n\n") if stream else b'"finish_reason"' in text
            if answer.status != 200 or not whole:
                self.failures.append(f"{answer.status} {text[-200:]!r}")
            with self._one_more:
                self.answered += 1
                self._one_more.notify_all()
        connection.close()


@pytest.fixture
def balance(tmp_path: Path) -> Iterator[Callable[[list[int]], int]]:
    """Starts HAProxy with our configuration in front of these ports; gives its own."""
    with ExitStack() as stack:

        def run(ports: list[int]) -> int:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            bind = f"\n    bind fd@{listening.fileno()}\n"
            text, bound = re.subn(r"\n    bind :\d+\n", bind, CONFIGURATION.read_text())
            left = iter(ports)
            text, served = re.subn(r"(?m)^(    server \S+) \S+$", lambda m: f"{m[1]} 127.0.0.1:{next(left)}", text)
            assert (bound, served) == (1, len(ports))
            file = tmp_path / "haproxy.cfg"
            file.write_text(text)
            command = [HAPROXY or "haproxy", "-db", "-f", str(file)]
            log = stack.enter_context((tmp_path / "haproxy.log").open("w"))
            process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=[listening.fileno()])
            stack.callback(process.wait)
            stack.callback(process.kill)
            port = int(listening.getsockname()[1])
            with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
                assert answer.read() == b"ready"
            return port

        yield run


@pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed (package haproxy)")
def test_a_rolling_restart_costs_no_request(start: Callable[..., Any], balance: Callable[[list[int]], int]) -> None:
    """Streams and plain requests through HAProxy while each of three replicas gets a SIGTERM and starts anew: every
    answer is whole, each replica has given some of them, and none has cut one."""
    replicas = [Replica(start) for _ in range(3)]
    for replica in replicas:
        replica.daemon.wait_for("utilization: ready")
    load = Load(balance([replica.port for replica in replicas]))
    try:
        load.until(2 * KEYS)
        logs = [replica.restart() for replica in replicas]
    finally:
        load.stop()
    for replica in replicas:
        replica.daemon.process.send_signal(signal.SIGTERM)
    logs += [replica.daemon.wait()[1] for replica in replicas]
    assert load.failures == []
    outcomes = [re.findall(r" request id=.* status=(\d+) outcome=(\w+)", log) for log in logs]
    assert all(outcomes[:3])
    assert {outcome for found in outcomes for outcome in found} == {("200", "complete")}
    assert sum(map(len, outcomes)) == load.answered
