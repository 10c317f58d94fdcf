"""The Chutes route of whole processes: what replicas share, and what outlives a restart, a rotation or Redis."""

import json
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from redis_process import RedisProcess

from chutes_autopilot.cli.keygen import keygen
from chutes_autopilot.e2ee.curves import normal_form
from chutes_autopilot.e2ee_client.exchange import Exchange
from chutes_autopilot.e2ee_client.opening import open_completion

ALIAS = "chutesai/AutoPilot"
CONNECTED = "Redis is connected"


class Service:
    """A running demo."""

    def __init__(self, daemon: Any) -> None:
        self.daemon = daemon
        self.port = int(daemon.wait_for("listening on http://127.0.0.1:").split('"')[0])
        daemon.wait_for("utilization: ready")

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Any:
        """Status and JSON of an answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    @property
    def key(self) -> str:
        """The public key that it reports."""
        status, report = self.ask("GET", "/v1/attestation/report?signing_algo=ed25519")
        assert status == 200
        key: str = report["signing_public_key"]
        return key

    def chat(self, sealed: "Sealed") -> str:
        """The code of the error, or "opened" where the answer could be opened."""
        status, answer = self.ask("POST", "/v1/chutes/chat/completions", sealed.body, sealed.headers)
        if status != 200:
            code: str = answer["error"]["code"]
            return code
        opened = json.loads(open_completion(json.dumps(answer).encode(), sealed.exchange.opener())[0])
        return "opened" if opened["choices"][0]["message"]["content"] else "empty"

    def plain(self) -> int:
        """The status of a request that is not encrypted."""
        status, _ = self.ask("POST", "/v1/chutes/chat/completions", json.dumps(REQUEST).encode())
        assert isinstance(status, int)
        return status


REQUEST: dict[str, Any] = {"model": ALIAS, "messages": [{"role": "user", "content": "Say hello."}], "n_tokens": 2}


class Sealed:
    """A request sealed to a key."""

    def __init__(self, key: str, *, age: float = 0) -> None:
        self.exchange = Exchange.new("ed25519", 2, time.time() - age)
        public = normal_form("ed25519", bytes.fromhex(key))
        content = self.exchange.seal(public, "Say hello.", ALIAS, 0)
        self.body = json.dumps({**REQUEST, "messages": [{"role": "user", "content": content}]}).encode()
        self.headers = dict(self.exchange.headers(key))


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = str(tmp_path / "keys.json")
    keygen([path, "--id=first"])
    return path


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[RedisProcess, str]]:
    """A Redis on a port of loopback, and its URL."""
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    process = RedisProcess(tmp_path, "--unixsocket", "", "--port", str(port), "--bind", "127.0.0.1")
    process.start()
    yield process, f"redis://127.0.0.1:{port}/0"
    process.kill()


Start = Callable[..., Any]


def test_replicas_share_their_nonces_and_fail_closed_without_redis(
    start: Start, key_file: str, redis: tuple[RedisProcess, str]
) -> None:
    """What one process accepted another refuses; with Redis gone no encrypted request is taken, while plain ones and
    the AutoPilot route work; with Redis back all is as before."""
    process, url = redis
    environ = {"E2EE_KEY_FILE": key_file, "REDIS_URL": url}
    daemons = [start("--demo", **environ) for _ in range(2)]
    one, other = (Service(daemon) for daemon in daemons)
    for daemon in daemons:
        if not any(CONNECTED in line for line in daemon.output):
            daemon.wait_for(CONNECTED)
    assert one.key == other.key
    first, second = Sealed(one.key), Sealed(one.key)
    assert [one.chat(first), other.chat(second)] == ["opened", "opened"]
    replayed = [service.chat(sealed) for service in (one, other) for sealed in (first, second)]
    assert replayed == ["e2ee_replay_detected"] * 4
    process.kill()
    daemons[0].wait_for("Redis cannot be used")
    assert [one.chat(Sealed(one.key)), one.chat(first)] == ["e2ee_replay_unavailable"] * 2
    assert one.plain() == 200
    assert one.ask("POST", "/v1/chat/completions", json.dumps(REQUEST).encode())[0] == 200
    process.start()
    daemons[0].wait_for(CONNECTED)
    assert one.chat(Sealed(one.key)) == "opened"


def test_a_restart_keeps_the_key(start: Start, key_file: str) -> None:
    """Clients go on with the key they know; what was recorded before the restart may be a replay and is refused."""
    before = Service(start("--demo", E2EE_KEY_FILE=key_file))
    key = before.key
    assert before.daemon.end()[0] == 0
    after = Service(start("--demo", E2EE_KEY_FILE=key_file))
    assert after.key == key
    assert after.chat(Sealed(key)) == "opened"
    assert after.chat(Sealed(key, age=20)) == "e2ee_invalid_timestamp"


def test_a_rotation_serves_old_clients_until_its_overlap_ends(start: Start, key_file: str) -> None:
    """keygen --rotate and SIGHUP: the report has the new key, both are taken; after the old one's time only one is."""
    service = Service(start("--demo", E2EE_KEY_FILE=key_file))
    old = service.key
    keygen([key_file, "--rotate", "--id=second"])
    service.daemon.process.send_signal(signal.SIGHUP)
    assert service.daemon.wait_for("SIGHUP: E2EE keys from the key file: ").strip() == "second, first"
    new = service.key
    assert new != old
    assert [service.chat(Sealed(key)) for key in (old, new)] == ["opened", "opened"]
    document = json.loads(Path(key_file).read_text())
    document["keys"][1]["not_after"] = int(time.time()) - 1
    Path(key_file).write_text(json.dumps(document))
    service.daemon.process.send_signal(signal.SIGHUP)
    service.daemon.wait_for("SIGHUP: E2EE keys from the key file: ")
    assert [service.chat(Sealed(key)) for key in (old, new)] == ["e2ee_model_key_mismatch", "opened"]
    code, out, err = service.daemon.end()
    assert (code, err, "Traceback" in out) == (0, "", False)
    for entry in document["keys"]:
        assert entry["ecdsa"] not in out
        assert entry["ed25519"] not in out


@pytest.mark.parametrize(("option", "fault"), [("--check-config", "mode"), ("--demo", "content")])
def test_a_key_file_that_cannot_be_used_refuses_the_start(start: Start, key_file: str, fault: str, option: str) -> None:
    """With the variable's name and the fault, and no key; --check-config tells before the start does."""
    secret = json.loads(Path(key_file).read_text())["keys"][0]["ecdsa"]
    if fault == "mode":
        Path(key_file).chmod(0o640)
    else:
        Path(key_file).write_text(Path(key_file).read_text().replace(secret, secret + "00"))
    code, out, err = start(option, E2EE_KEY_FILE=key_file, CHUTES_ENABLED="true").wait()
    assert (code, out) == (1, "")
    assert "E2EE_KEY_FILE: " in err
    assert ("permission" if fault == "mode" else "entry 1, ecdsa") in err
    assert secret not in err
