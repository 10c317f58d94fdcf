"""The compose profile ``scale``: three replicas that differ only where they must, one Redis, and their Caddy."""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from chutes_autopilot.settings import SETTINGS, SettingsError, read_settings

ROOT = Path(__file__).parent.parent.parent
CADDYFILE = ROOT / "deploy" / "caddy" / "scale.Caddyfile"
REPLICAS = ("autopilot-1", "autopilot-2", "autopilot-3")
OWN = ("CLIENT_KEY_SECRET", "REDIS_URL", "READYZ_MAX_SNAPSHOT_AGE_MS", "READYZ_MAX_ALLOWLIST_AGE_MS", "CACHE_DIR")
"""Settings that replicas have otherwise than a service that is alone."""
RETRIES_POST = (2, 11, 2)
"""Caddy's release after which a POST survives a replica that cannot be connected to."""
CADDY = shutil.which("caddy")

needs_caddy = pytest.mark.skipif(CADDY is None, reason="caddy is not installed (package caddy)")


def caddy_version() -> tuple[int, ...]:
    said = subprocess.run([CADDY or "caddy", "version"], check=True, capture_output=True, text=True, timeout=60).stdout
    return tuple(map(int, re.search(r"(\d+)\.(\d+)\.(\d+)", said).groups()))


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yaml").read_text())


def environment(replica: str, **given: str) -> dict[str, str]:
    """What the replica's container gets where only these variables are set."""
    return {
        name: re.sub(r"\$\{(\w+):-(.*)\}", lambda match: given.get(match[1]) or match[2], value)
        for name, value in compose()["services"][replica]["environment"].items()
    }


def test_the_profile_adds_to_the_default_and_changes_nothing() -> None:
    """Without the profile there are the service and its Caddy as ever; with it, five more."""
    services = compose()["services"]
    assert {name for name, service in services.items() if "profiles" not in service} == {"autopilot", "caddy"}
    scale = {name for name, service in services.items() if service.get("profiles") == ["scale"]}
    assert scale == {*REPLICAS, "redis", "balancer"} == set(services) - {"autopilot", "caddy"}
    assert not {name for name in scale for needed in services[name].get("depends_on", ()) if needed not in scale}


def test_replicas_are_the_service_with_shared_state() -> None:
    """Image, limits and settings are the default service's, but for what several of them must have otherwise."""
    services = compose()["services"]
    alone = services["autopilot"]
    for replica in REPLICAS:
        one = services[replica]
        different = {"profiles", "environment", "networks", "depends_on"}
        assert {k: v for k, v in one.items() if k not in different} == {
            k: v for k, v in alone.items() if k not in different
        }
        assert one["environment"].keys() == {setting.name for setting in SETTINGS}
        assert {name for name in OWN if one["environment"][name] == alone["environment"][name]} == set()
        assert {n: v for n, v in one["environment"].items() if n not in OWN} == {
            n: v for n, v in alone["environment"].items() if n not in OWN
        }


def test_replicas_start_with_a_secret_and_nothing_else() -> None:
    """CLIENT_KEY_SECRET is all that must be given: the rest is legal as it is, and Redis is the one of the profile."""
    for replica in REPLICAS:
        settings = read_settings(environment(replica, CLIENT_KEY_SECRET="0123456789abcdef"), lambda path: "")
        assert (settings.redis_url.host, settings.redis_url.port) == ("redis", 6379)
        assert settings.client_key_secret == b"0123456789abcdef"


def test_without_a_secret_no_replica_starts() -> None:
    """A forgotten CLIENT_KEY_SECRET is told, not replaced by a random one in each of them."""
    with pytest.raises(SettingsError, match="CLIENT_KEY_SECRET") as refused:
        read_settings(environment(REPLICAS[0]), lambda path: "")
    assert len(refused.value.faults) == 1


def test_replicas_share_the_volume_but_no_cache() -> None:
    """The key file is there for all of them; each has a directory of its own for what it keeps."""
    (volume,) = compose()["services"]["autopilot"]["volumes"]
    directories = [environment(replica)["CACHE_DIR"] for replica in REPLICAS]
    assert len(set(directories)) == len(REPLICAS)
    assert all(Path(directory).parent == Path(volume.partition(":")[2]) for directory in directories)


def test_redis_keeps_what_it_is_given() -> None:
    """It pushes nothing out, survives a restart, and only the replicas share its network."""
    described = compose()
    redis = described["services"]["redis"]
    options = dict(zip(redis["command"][1::2], redis["command"][2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--appendonly"] == "yes"
    assert redis["volumes"] == ["redis-data:/data"]
    assert described["networks"]["store"] == {"internal": True}
    on_store = {name for name, service in described["services"].items() if "store" in service["networks"]}
    assert on_store == {"redis", *REPLICAS}
    assert "ports" not in redis


def test_the_balancer_is_the_default_caddy_with_another_file() -> None:
    """Same ports and locks, a Caddy that can retry a POST; it waits for the replicas and knows each at its port."""
    services = compose()["services"]
    caddy, balancer = services["caddy"], services["balancer"]
    different = {"image", "profiles", "environment", "volumes", "depends_on"}
    assert {k: v for k, v in balancer.items() if k not in different} == {
        k: v for k, v in caddy.items() if k not in different
    }
    assert balancer["volumes"] == [f"./{CADDYFILE.relative_to(ROOT)}:/etc/caddy/Caddyfile:ro", *caddy["volumes"][1:]]
    assert tuple(map(int, balancer["image"].removeprefix("caddy:").split("."))) >= RETRIES_POST[:2]
    assert balancer["depends_on"] == {replica: {"condition": "service_healthy"} for replica in REPLICAS}
    (port,) = services["autopilot"]["expose"]
    assert f"reverse_proxy {' '.join(f'{replica}:{port}' for replica in REPLICAS)} {{" in CADDYFILE.read_text()


def test_caddy_gives_up_an_idle_connection_before_the_service_does() -> None:
    """No request meets a connection that is being closed, and draining is seen while idle connections are kept."""
    text = CADDYFILE.read_text()
    idle = next(int(setting.default) for setting in SETTINGS if setting.name == "CLIENT_IDLE_TIMEOUT_MS")
    assert int(re.search(r"keepalive ([0-9]+)s", text)[1]) * 1000 < idle
    assert int(re.search(r"health_interval ([0-9]+)ms", text)[1]) <= 500
    assert "flush_interval -1" in text
    assert "health_uri /readyz" in text


class _Replica(ThreadingHTTPServer):
    """Says its name to every POST, and to /readyz what it is told to."""

    daemon_threads = True

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.name = name
        self.ready = True
        self.asked = 0
        self._serving = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._serving.start()

    def close(self) -> None:
        """Stop listening; what is connected stays."""
        if self._serving.is_alive():
            self.shutdown()
            self._serving.join()
            self.server_close()


class _Answers(BaseHTTPRequestHandler):
    server: _Replica

    def do_GET(self) -> None:
        self._answer(200 if self.server.ready and self.path == "/readyz" else 503, b"")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        self._answer(200, self.server.name.encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def replicas() -> Iterator[dict[str, _Replica]]:
    with ExitStack() as stack:
        made = {name: _Replica(name) for name in REPLICAS}
        for replica in made.values():
            stack.callback(replica.close)
        yield made


@pytest.fixture
def ask(replicas: dict[str, _Replica], tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """The real Caddy with our file, but no TLS and the replicas on loopback; ``ask(key)`` names who answered."""
    environ = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    adapt = [CADDY or "caddy", "adapt", "--config", str(CADDYFILE), "--adapter", "caddyfile"]
    text = subprocess.run(adapt, check=True, capture_output=True, text=True, env=environ, timeout=60).stdout
    for name, replica in replicas.items():
        text = text.replace(f"{name}:8080", f"127.0.0.1:{replica.server_port}")
    described = json.loads(text)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (server,) = described["apps"]["http"]["servers"].values()
    server.update(listen=[f"127.0.0.1:{port}"], automatic_https={"disable": True})
    described["admin"] = {"disabled": True}
    (tmp_path / "caddy.json").write_text(json.dumps(described))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(key: str) -> str:
        url, headers = f"http://127.0.0.1:{port}/v1/chat/completions", {"Host": "localhost", "Authorization": key}
        with opener.open(urllib.request.Request(url, b"{}", headers), timeout=10) as answer:
            return answer.read().decode()

    run = [CADDY or "caddy", "run", "--config", str(tmp_path / "caddy.json")]
    with (tmp_path / "caddy.log").open("w") as log, subprocess.Popen(run, env=environ, stderr=log) as process:
        try:
            until(lambda: can_connect(port))
            yield ask
        finally:
            process.kill()


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def until(true: Callable[[], bool]) -> None:
    """Wait for what another process does, ten seconds at most."""
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@needs_caddy
def test_a_client_stays_with_its_replica(ask: Callable[[str], str]) -> None:
    """Requests with one key meet one replica, and many keys meet all of them."""
    met = {number: {ask(f"Bearer {number}") for _ in range(3)} for number in range(20)}
    assert all(len(names) == 1 for names in met.values())
    assert set().union(*met.values()) == set(REPLICAS)


@needs_caddy
def test_a_draining_replica_gets_no_more_requests(ask: Callable[[str], str], replicas: dict[str, _Replica]) -> None:
    """Its clients go to another while /readyz says no, and come back afterwards."""
    home = ask("Bearer one")
    replicas[home].ready = False
    until(lambda: ask("Bearer one") != home)
    replicas[home].ready = True
    until(lambda: ask("Bearer one") == home)


@needs_caddy
def test_a_replica_that_is_gone_costs_no_request(ask: Callable[[str], str], replicas: dict[str, _Replica]) -> None:
    """A POST that could not be delivered goes to another replica, before any health check has noticed."""
    if caddy_version() < RETRIES_POST:
        pytest.skip("this caddy is too old to send a POST again")
    home = ask("Bearer one")
    replicas[home].close()
    seen = {name: replica.asked for name, replica in replicas.items()}
    assert ask("Bearer two") in REPLICAS
    assert ask("Bearer one") != home
    assert sum(replica.asked - seen[name] for name, replica in replicas.items()) == 2
