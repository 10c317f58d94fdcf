"""Several worker processes are one service: what clients, the operator and a killed worker see of it."""

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from daemon_process import ROOT, TWISTD, UNWRITABLE, Daemon

sys.path.append(str(ROOT / "tests" / "loopback"))
from sealing_client import SealingClient

ALIAS = "chutesai/AutoPilot"
COUNT = 2
TOKEN = "the-operator-s"
PATIENCE = 20.0
"""Seconds that anything may take on a machine with other things to do."""


class Service:
    """A running demo of COUNT workers, whose log is read as it comes."""

    def __init__(self, directory: Path) -> None:
        self.env_file = directory / "env"
        self.env_file.write_text("SHUTDOWN_GRACE_MS=20000\n")
        arguments = ("chutes-autopilot", "--demo", "--workers", str(COUNT), "--env-file", str(self.env_file))
        environ = {"EXPLORER_ENABLED": "true", "ADMIN_TOKEN": TOKEN, "CACHE_DIR": str(directory)}
        self.daemon = Daemon((*TWISTD, *arguments), UNWRITABLE, environ, lifetime=180)
        self.simulator = self.daemon.wait_for("the simulator listens on ").partition(",")[0]
        self.port = int(self.daemon.wait_for("listening on http://127.0.0.1:"))
        self.opened: list[Any] = []
        self.asked = 0

    def log(self, pattern: str) -> re.Match[str]:
        """The first line so far, or to come, in which a pattern is found."""
        for line in self.daemon.output:
            if found := re.search(pattern, line):
                return found
        for line in self.daemon.process.stdout:
            self.daemon.output.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"no {pattern!r} in {''.join(self.daemon.output)}")

    def forget_log(self) -> None:
        self.daemon.output.clear()

    def connect(self) -> HTTPConnection:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.connect()
        self.opened += [connection.sock, connection]
        return connection

    def chat(self, connection: HTTPConnection, who: str, *, stream: bool = False, tokens: int = 1) -> tuple[str, Any]:
        """Ask as somebody; the request's id, and the answer."""
        self.asked += 1
        name = f"request-{self.asked}"
        body = {"model": ALIAS, "stream": stream, "messages": [{"role": "user", "content": "x"}], "n_tokens": tokens}
        headers = {"Authorization": f"Bearer {who}", "X-Request-Id": name}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        self.opened.append(answer)
        return name, answer

    def model(self, connection: HTTPConnection, who: str) -> str:
        """Which one answers somebody."""
        return str(json.loads(self.chat(connection, who)[1].read())["model"])

    def worker_of(self, request_id: str) -> int:
        return int(self.log(rf"\[worker (\d+) chutes_autopilot\] request id={request_id} ")[1])

    def each_worker(self, who: str = "scout") -> dict[int, HTTPConnection]:
        """A kept-alive connection to each worker; the kernel spreads them by chance."""
        found: dict[int, HTTPConnection] = {}
        until = time.monotonic() + PATIENCE
        while len(found) < COUNT and time.monotonic() < until:
            connection = self.connect()
            name, answer = self.chat(connection, who)
            answer.read()
            found.setdefault(self.worker_of(name), connection)
        assert len(found) == COUNT, "no connection came to some worker"
        return found

    def get(self, connection: HTTPConnection, path: str, **headers: str) -> tuple[int, bytes]:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def counter(self, name: str) -> float:
        text = self.get(self.connect(), "/metrics")[1].decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    def fault(self, **fault: Any) -> None:
        urlopen(Request(f"{self.simulator}/_simulator/faults", json.dumps(fault).encode())).close()  # noqa: S310

    def workers(self) -> list[int]:
        """Process ids."""
        children = Path(f"/proc/{self.daemon.process.pid}/task/{self.daemon.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("workers"))
    try:
        for number in range(1, COUNT + 1):
            running.log(rf"\[worker {number} listening.ListeningService\] listening on")
        yield running
    finally:
        for opened in running.opened:
            opened.close()
        running.daemon.kill()


def test_a_client_has_one_model_on_every_worker(service: Service) -> None:
    """Where one client's request failed over at one worker, its next ones go at all of them."""
    connections = service.each_worker()
    service.fault(fault="503", requests=1)
    models = [service.model(each, "sticky") for _ in range(2) for each in connections.values()]
    assert set(models) == {models[0]}
    assert service.model(connections[1], "another") != models[0]


def test_metrics_are_the_sum(service: Service) -> None:
    """A scrape tells of the requests of all workers, and the parent's gauges once."""
    for connection in service.each_worker().values():
        service.chat(connection, "counted")[1].read()
    assert service.counter("chutes_autopilot_requests_total{") == service.asked
    assert service.counter("chutes_autopilot_workers ") == COUNT
    catalog = json.loads(service.get(service.connect(), "/v1/models")[1])["data"]
    listed = [model for model in catalog if not model["id"].startswith(ALIAS)]
    assert service.counter("chutes_autopilot_ready_allowlist_size ") == len(listed)


def test_what_is_asked_of_any_worker_is_answered(service: Service) -> None:
    """readyz, a decision of whichever worker, the operator's list, the page, its API and its streams."""
    connections = service.each_worker()
    name, answer = service.chat(connections[1], "owner")
    answer.read()
    for connection in connections.values():
        assert service.get(connection, "/readyz") == (200, b"ready")
        found = service.get(connection, f"/v1/autopilot/decisions/{name}", Authorization="Bearer owner")
        assert (found[0], json.loads(found[1])["request_id"]) == (200, name)
        assert service.get(connection, f"/v1/autopilot/decisions/{name}", Authorization="Bearer thief")[0] == 404
    service.log("DEMO MODE")
    for connection in connections.values():
        status, recent = service.get(connection, "/v1/autopilot/decisions", Authorization=f"Bearer {TOKEN}")
        assert (status, name in {each["request_id"] for each in json.loads(recent)["decisions"]}) == (200, True)
    for connection in service.each_worker().values():
        assert wait_for_200(service, connection, "/api/health")
    for connection in service.each_worker().values():
        status, page = service.get(connection, "/")
        assert (status, b"<!doctype html>" in page) == (200, True)
    for connection in service.each_worker().values():
        connection.request("GET", "/api/events")
        answer = connection.getresponse()
        assert (answer.status, answer.read(6)) == (200, b"retry:")
        connection.close()
    for connection in service.each_worker().values():
        handshake = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        connection.request("GET", "/api/ws", headers=handshake | {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="})
        assert connection.sock.recv(12) == b"HTTP/1.1 101"
        connection.close()


def wait_for_200(service: Service, connection: HTTPConnection, path: str) -> bool:
    """Whether it is there soon: the explorer begins when the service serves already."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if service.get(connection, path)[0] == 200:
            return True
        time.sleep(0.05)
    return False


def test_encrypted_requests_meet_one_set_of_keys_and_of_nonces(service: Service) -> None:
    """Any worker opens what was sealed to any other's report, and a replay is refused wherever it comes."""
    connections = service.each_worker()
    reports = [service.get(each, "/v1/attestation/report?signing_algo=ed25519")[1] for each in connections.values()]
    keys = {json.loads(report)["signing_public_key"] for report in reports}
    assert len(keys) == 1
    client = SealingClient("ed25519", 2, bytes.fromhex(keys.pop()))
    model = json.loads(service.get(connections[1], "/v1/chutes/models")[1])["data"][0]["id"]
    headers = dict(line.decode().split(": ") for line in client.headers)
    body = client.body(model, "hello", max_tokens=1)
    statuses = []
    for connection in (connections[1], connections[2], connections[1]):
        connection.request("POST", "/v1/chutes/chat/completions", body, headers)
        answer = connection.getresponse()
        told = json.loads(answer.read())
        statuses.append((answer.status, told.get("error", {}).get("code")))
    assert statuses == [(200, None)] + [(400, "e2ee_replay_detected")] * 2


def test_a_killed_worker_takes_only_its_own_streams_along(service: Service) -> None:
    """Others' streams end whole, new connections are served meanwhile, nothing counted is uncounted, and it is back."""
    streams = {}
    for number, connection in service.each_worker().items():
        streams[number] = service.chat(connection, "streaming", stream=True, tokens=100)[1]
        streams[number].read(1)
    before = service.counter("chutes_autopilot_requests_total{")
    service.forget_log()
    old = service.workers()
    os.kill(old[0], signal.SIGKILL)
    number = int(service.log(r"worker (\d+) has ended \(signal 9\)")[1])
    with pytest.raises(IncompleteRead):
        streams.pop(number).read()
    for _ in range(8):
        assert service.get(service.connect(), "/healthz") == (200, b"ok")
    (whole,) = streams.values()
    assert whole.read().endswith(b"data: [DONE]\n\n")
    service.log(rf"\[worker {number} listening.ListeningService\] listening on")
    assert service.counter("chutes_autopilot_requests_total{") >= before
    assert service.counter("chutes_autopilot_worker_restarts_total") == 1
    again = service.each_worker()
    assert (
        json.loads(service.chat(again[number], "sticky")[1].read())["model"]
        == json.loads(service.chat(again[3 - number], "sticky")[1].read())["model"]
    )


def test_sighup_reaches_every_worker(service: Service) -> None:
    """Changed settings count in all of them."""
    connections = service.each_worker()
    service.env_file.write_text("SHUTDOWN_GRACE_MS=20000\nMAX_REQUEST_BYTES=10\nMAX_MODEL_LIST_ITEMS=5\n")
    service.daemon.process.send_signal(signal.SIGHUP)
    service.log("settings changed")
    for connection in connections.values():
        until = time.monotonic() + PATIENCE
        while (status := refused(service, connection)) != 413 and time.monotonic() < until:
            time.sleep(0.02)
        assert status == 413
    service.env_file.write_text("SHUTDOWN_GRACE_MS=20000\n")
    service.forget_log()
    service.daemon.process.send_signal(signal.SIGHUP)
    service.log("settings changed")


def refused(service: Service, connection: HTTPConnection) -> int:
    answer = service.chat(connection, "big")[1]
    answer.read()
    return int(answer.status)


def test_sigterm_drains_all(service: Service) -> None:
    """Streams in flight end whole, kept-alive connections learn of it, nobody connects any more; exit code 0."""
    connections = service.each_worker()
    probes = [service.connect() for _ in range(8)]
    streams = [service.chat(each, "last", stream=True, tokens=60)[1] for each in connections.values()]
    for stream in streams:
        stream.read(1)
    pids = service.workers()
    service.daemon.process.send_signal(signal.SIGTERM)
    for number in connections:
        service.log(rf"\[worker {number} workers.worker\] stopping")
    for probe in probes:
        status, told = service.get(probe, "/readyz")
        assert (status, json.loads(told)["error"]["code"]) == (503, "draining")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", service.port))
    assert all(stream.read().endswith(b"data: [DONE]\n\n") for stream in streams)
    code, out, err = service.daemon.wait()
    assert (code, err, "Traceback" in out) == (0, "", False)
    assert not any(is_running(pid) for pid in pids)


def test_no_worker_outlives_its_parent() -> None:
    """Where the parent is killed, every worker ends by itself."""
    arguments = ("chutes-autopilot", "--workers", "2")
    daemon = Daemon((*TWISTD, *arguments), UNWRITABLE, {})
    try:
        for _ in range(3):  # the parent, and each worker
            daemon.wait_for("listening.ListeningService] listening on")
        children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
        daemon.process.kill()
        until = time.monotonic() + PATIENCE
        while any(is_running(int(pid)) for pid in children) and time.monotonic() < until:
            time.sleep(0.02)
        assert len(children) == 2
        assert not any(is_running(int(pid)) for pid in children)
    finally:
        daemon.kill()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
