"""Several worker processes are one service: what clients, the operator and a killed worker see of it."""

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection, IncompleteRead
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import Request, urlopen

import pytest
from daemon_process import ROOT, TWISTD, UNWRITABLE, Daemon
from redis_process import RedisProcess

sys.path.append(str(ROOT / "tests" / "loopback"))
from sealing_client import SealingClient

ALIAS = "chutesai/AutoPilot"
COUNT = 2
TOKEN = "the-operator-s"
CHATS = "/v1/chutes/chat/completions"
BACK_SECONDS = 2.0
PATIENCE = 20.0
"""Seconds that anything may take on a machine with other things to do."""


class Workers:
    """Running workers of one parent."""

    def __init__(self, daemon: Daemon, port: int, count: int = COUNT) -> None:
        self.daemon = daemon
        self.port = port
        self.count = count
        self.opened: list[Any] = []
        self.asked = 0

    def close(self) -> None:
        for opened in self.opened:
            opened.close()
        self.daemon.kill()

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

    def worker_of(self, connection: HTTPConnection) -> int:
        """The id of the process that has accepted a connection."""
        assert self.get(connection, "/healthz") == (200, b"ok")
        ends = f":{self.port:04X}", f":{connection.sock.getsockname()[1]:04X}"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        (inode,) = [row[9] for row in rows if (row[1][-5:], row[2][-5:]) == ends]
        (pid,) = [pid for pid in self.children() if f"socket:[{inode}]" in open_files(pid)]
        return pid

    def each_worker(self) -> dict[int, HTTPConnection]:
        """A kept-alive connection to each worker, by process id; the kernel spreads them by chance."""
        found: dict[int, HTTPConnection] = {}
        until = time.monotonic() + PATIENCE
        while len(found) < self.count and time.monotonic() < until:
            connection = self.connect()
            found.setdefault(self.worker_of(connection), connection)
        assert len(found) == self.count, "no connection came to some worker"
        return found

    def get(self, connection: HTTPConnection, path: str, **headers: str) -> tuple[int, bytes]:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def children(self) -> list[int]:
        """Process ids of the workers, and of the spare one."""
        return children(self.daemon.process.pid)


class Service(Workers):
    """A demo of several workers, all of which serve; its log is read as it comes."""

    def __init__(self, directory: Path, count: int) -> None:
        self.env_file = directory / "env"
        self.env_file.write_text("SHUTDOWN_GRACE_MS=20000\n")
        arguments = ("chutes-autopilot", "--demo", "--workers", str(count), "--env-file", str(self.env_file))
        environ = {
            "EXPLORER_ENABLED": "true",
            "ADMIN_TOKEN": TOKEN,
            "CACHE_DIR": str(directory),
            "E2EE_KEY_SOURCE": "ephemeral",
        }
        daemon = Daemon((*TWISTD, *arguments), UNWRITABLE, environ, lifetime=180)
        self.simulator = daemon.wait_for("the simulator listens on ").partition(",")[0]
        super().__init__(daemon, int(daemon.wait_for("listening on http://127.0.0.1:")), count)
        for number in range(1, count + 1):
            self.log(rf"\[worker {number} listening.ListeningService\] listening on")

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

    def counter(self, name: str) -> float:
        text = self.get(self.connect(), "/metrics")[1].decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    def fault(self, **fault: Any) -> None:
        urlopen(Request(f"{self.simulator}/_simulator/faults", json.dumps(fault).encode())).close()  # noqa: S310


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def open_files(pid: int) -> set[str]:
    """What the descriptors of a process are."""
    directory, found = f"/proc/{pid}/fd", set()
    for number in os.listdir(directory):
        with suppress(FileNotFoundError):
            found.add(os.readlink(f"{directory}/{number}"))
    return found


def soon(holds: Callable[[], bool]) -> bool:
    """Whether it comes about."""
    until = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("workers"), COUNT)
    yield running
    running.close()


class Sharing(Workers):
    """Workers with a Redis, in front of another service's simulator; their log is a file."""

    def __init__(self, daemon: Daemon, log: Path, redis: RedisProcess) -> None:
        super().__init__(daemon, 0)
        self.log_file = log
        self.redis = redis
        lines = [f"[worker {number} listening.ListeningService] listening on" for number in range(1, COUNT + 1)]
        assert soon(lambda: log.exists() and all(line in log.read_text() for line in lines))
        self.port = int(re.findall(r"listening on http://127.0.0.1:(\d+)", log.read_text())[0])


SECRET = "the-secret-of-all-replicas"
CALLER = "alice-token"


@pytest.fixture(scope="module")
def sharing(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharing]:
    """COUNT workers that run beside the demo."""
    with TemporaryDirectory(prefix="redis-") as directory, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.close()
        redis = RedisProcess(Path(directory), "--port", str(port), "--bind", "127.0.0.1")
        redis.start()
        simulator, log = service.simulator, tmp_path_factory.mktemp("sharing") / "log"
        environ = {
            "WORKERS": str(COUNT),
            "REDIS_URL": f"redis://127.0.0.1:{port}/0",
            "CLIENT_KEY_SECRET": SECRET,
            "BACKEND_BASE_URL": simulator,
            "MODELS_URL": f"{simulator}/v1/models",
            "UTILIZATION_URL": f"{simulator}/chutes/utilization",
            "CHUTES_ENABLED": "true",
            "CHUTES_BASE_URL": simulator,
            "CHUTES_API_KEY": "cpk_simulated",
            "TOKEN": CALLER,
            "E2EE_KEY_SOURCE": "ephemeral",
            "E2EE_ATTESTATION": "off",
            "SHUTDOWN_GRACE_MS": "1",
        }
        daemon = Daemon((*TWISTD, "--logfile", str(log), "chutes-autopilot"), UNWRITABLE, environ, lifetime=180)
        try:
            workers = Sharing(daemon, log, redis)
            yield workers
            workers.close()
        finally:
            daemon.kill()
            redis.kill()


def test_a_client_has_one_model_on_every_worker(service: Service) -> None:
    """Where one client's request failed over at one worker, its next ones go at all of them."""
    connections = list(service.each_worker().values())
    service.fault(fault="503", requests=1)
    models = [service.model(each, "sticky") for each in (*connections, connections[0])]
    assert set(models) == {models[0]}
    assert service.model(connections[0], "another") != models[0]


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
    name, answer = service.chat(next(iter(connections.values())), "owner")
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
    assert soon(lambda: service.get(service.connect(), "/api/health")[0] == 200)  # it begins when the service serves
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


def test_encrypted_requests_meet_one_set_of_keys_and_of_nonces(service: Service) -> None:
    """Any worker opens what was sealed to any other's report, a replay is refused wherever it comes, and what was
    signed at one is found at the other, by its caller alone."""
    one, other = service.each_worker().values()
    reports = [service.get(each, "/v1/attestation/report?signing_algo=ed25519")[1] for each in (one, other)]
    keys = {json.loads(report)["signing_public_key"] for report in reports}
    assert len(keys) == 1
    client = SealingClient("ed25519", 2, bytes.fromhex(keys.pop()))
    model = json.loads(service.get(one, "/v1/chutes/models")[1])["data"][0]["id"]
    headers = dict(line.decode().split(": ") for line in client.headers)
    body = client.body(model, "hello", max_tokens=1)
    told = []
    for connection in (one, other, one):
        connection.request("POST", CHATS, body, headers)
        answer = connection.getresponse()
        told.append((answer.status, json.loads(answer.read())))
    assert told[0][0] == 200
    assert [(status, answer["error"]["code"]) for status, answer in told[1:]] == [(400, "e2ee_replay_detected")] * 2
    signed = f"/v1/signature/{told[0][1]['id']}?signing_algo=ed25519"
    caller = {"Authorization": headers["Authorization"]} if "Authorization" in headers else {}
    signatures = {service.get(each, signed, **caller) for each in (other, one)}
    assert [status for status, _ in signatures] == [200]
    assert service.get(other, f"/v1/signature/{told[0][1]['id']}x", **caller)[0] == 404


def test_with_redis_workers_are_like_replicas(service: Service, sharing: Sharing) -> None:
    """A client's model and a nonce are known at each by Redis. While it is gone, requests are served and both workers
    say what is missing; encrypted ones are refused until it is back. Only their parent asks the platform."""
    workers, redis = sharing, sharing.redis
    each = list(workers.each_worker().values())
    assert soon(lambda: all(workers.get(worker, "/readyz") == (200, b"ready") for worker in each))

    def known_at_both(who: str) -> bool:
        service.fault(fault="503", requests=1)
        chosen = workers.model(each[0], who)
        return workers.model(each[1], who) == chosen != workers.model(each[0], f"not {who}")

    # nobody waits long for what others know, so on a busy machine a worker may do without
    client_names = (f"client {number}" for number in count())
    assert soon(lambda: known_at_both(next(client_names)))
    model = workers.model(each[0], "sticky")
    key = json.loads(workers.get(each[0], "/v1/attestation/report?signing_algo=ed25519", **bearer(CALLER))[1])
    client = SealingClient("ed25519", 2, bytes.fromhex(key["signing_public_key"]))
    body = client.body(model, "hello", max_tokens=1)
    assert [sealed(worker, client, body) for worker in (*each, each[0])] == [200, 400, 400]
    redis.kill()
    for worker in each:
        assert soon(lambda worker=worker: b"nothing is shared" in workers.get(worker, "/readyz")[1])
        assert sealed(worker, client, client.body(model, "hello", max_tokens=1)) == 503
    assert workers.model(each[1], "somebody new")
    redis.start()
    assert soon(lambda: all(workers.get(worker, "/readyz") == (200, b"ready") for worker in each))
    again = SealingClient("ed25519", 2, bytes.fromhex(key["signing_public_key"]))
    assert soon(lambda: sealed(each[1], again, again.body(model, "hello", max_tokens=1)) == 200)
    assert set(re.findall(r"\[(.*)\] control plane", sharing.log_file.read_text())) == {"chutes_autopilot"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def sealed(connection: HTTPConnection, client: SealingClient, body: bytes) -> int:
    """The status of an encrypted request."""
    headers = bearer(CALLER) | dict(line.decode().split(": ") for line in client.headers)
    connection.request("POST", CHATS, body, headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def test_a_killed_worker_takes_only_its_own_streams_along(service: Service) -> None:
    """Others' streams end whole, new connections are served meanwhile, nothing counted is uncounted, and the process
    that waited takes its place within two seconds."""
    service.log("a spare worker waits")
    (victim, cut), (witness, kept) = service.each_worker().items()
    short = service.chat(kept, "streaming", stream=True, tokens=25)[1]
    long = service.chat(cut, "streaming", stream=True, tokens=1000)[1]
    long.read(1)
    before = service.counter("chutes_autopilot_requests_total{")
    service.forget_log()
    spare = set(service.children()) - {victim, witness}
    os.kill(victim, signal.SIGKILL)
    number = service.log(r"worker (\d+) has ended \(signal 9\); it is started again at once")[1]
    with pytest.raises(IncompleteRead):
        long.read()
    for _ in range(8):
        assert service.get(service.connect(), "/healthz") == (200, b"ok")
    assert float(service.log(rf"worker {number} is back after ([0-9.]+) s")[1]) < BACK_SECONDS
    assert short.read().endswith(b"data: [DONE]\n\n")
    assert service.counter("chutes_autopilot_requests_total{") >= before
    assert service.counter("chutes_autopilot_worker_restarts_total") == 1
    again = service.each_worker()
    assert set(again) == {witness, *spare}
    assert len({service.model(each, "sticky") for each in again.values()}) == 1
    assert service.get(again[witness], "/readyz") == (200, b"ready")


def test_a_worker_that_drains_is_replaced(service: Service) -> None:
    """New connections are served at once, although its last stream goes on, and soon all workers are there."""
    connections = service.each_worker()
    victim, connection = next(iter(connections.items()))
    stream = service.chat(connection, "streaming", stream=True, tokens=1000)[1]
    stream.read(1)
    service.forget_log()
    os.kill(victim, signal.SIGTERM)
    service.log(r"\[worker \d workers.worker\] stopping")
    began = time.monotonic()
    for _ in range(16):
        assert service.get(service.connect(), "/healthz") == (200, b"ok")
    assert time.monotonic() - began < BACK_SECONDS
    service.log(r"worker \d is back after")
    assert victim not in service.each_worker()
    assert service.get(service.connect(), "/readyz") == (200, b"ready")
    assert service.counter("chutes_autopilot_workers ") == COUNT
    assert len(stream.read(5000)) == 5000
    assert is_running(victim)
    connection.sock.shutdown(socket.SHUT_RDWR)
    service.log(r"worker \d, which drained, has ended")


def test_workers_that_die_together_take_nobody_along(tmp_path: Path) -> None:
    """One that is left accepts for both, what it was answering ends whole, and both are back."""
    service = Service(tmp_path, 4)
    try:
        service.log("a spare worker waits")
        connections = service.each_worker()
        victims, witnesses = set(list(connections)[:2]), set(list(connections)[2:])
        streams = [service.chat(connections[each], "streaming", stream=True, tokens=25)[1] for each in witnesses]
        service.forget_log()
        service.daemon.process.send_signal(signal.SIGSTOP)  # so that it hears of both deaths in one turn
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        service.daemon.process.send_signal(signal.SIGCONT)
        for _ in range(16):
            assert service.get(service.connect(), "/healthz") == (200, b"ok")
        assert all(stream.read().endswith(b"data: [DONE]\n\n") for stream in streams)
        assert soon(lambda: service.get(service.connect(), "/readyz") == (200, b"ready"))
        assert set(service.each_worker()) > witnesses
        assert service.counter("chutes_autopilot_worker_restarts_total") == 2
    finally:
        service.close()


def test_sighup_reaches_every_worker(service: Service) -> None:
    """Changed settings count in all of them."""
    connections = service.each_worker()
    for lines, status in (("MAX_REQUEST_BYTES=10\nMAX_MODEL_LIST_ITEMS=5\n", 413), ("", 200)):
        service.env_file.write_text(f"SHUTDOWN_GRACE_MS=20000\n{lines}")
        service.daemon.process.send_signal(signal.SIGHUP)
        for connection in connections.values():
            assert soon(lambda connection=connection, status=status: answered(service, connection) == status)


def answered(service: Service, connection: HTTPConnection) -> int:
    answer = service.chat(connection, "big")[1]
    answer.read()
    return int(answer.status)


def test_sigterm_drains_all(service: Service) -> None:
    """Streams in flight end whole, kept-alive connections learn of it, nobody connects any more; exit code 0."""
    connections = service.each_worker()
    probes = [service.connect() for _ in range(8)]
    streams = [service.chat(each, "last", stream=True, tokens=40)[1] for each in connections.values()]
    for stream in streams:
        stream.read(1)
    pids = service.children()
    service.forget_log()
    service.daemon.process.send_signal(signal.SIGTERM)
    for number in range(1, COUNT + 1):
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


def test_no_worker_outlives_its_parent(sharing: Sharing) -> None:
    """Where the parent is killed, every worker ends by itself."""
    pids = sharing.children()
    assert len(pids) >= COUNT
    sharing.daemon.process.kill()
    assert soon(lambda: not any(is_running(pid) for pid in pids))


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
