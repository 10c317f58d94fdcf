"""The files that run the service elsewhere agree with the settings and with each other."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from chutes_autopilot.settings import SETTINGS, parse_env_file, read_settings

ROOT = Path(__file__).parent.parent
COMPOSE_DEFAULTS = {"TRUST_PROXY_HEADERS": "true", "TRUSTED_PROXY_CIDRS": "172.30.87.0/24"}
"""What docker-compose.yaml sets because a proxy stands in front there."""


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yaml").read_text())


def instructions(name: str) -> list[str]:
    """Every argument of an instruction in the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M))
    return re.findall(rf"^{name}\s+(.*)$", text, flags=re.M)


def test_env_example_has_every_setting_commented_out() -> None:
    """Each setting stands there in order, with its default, unit and example, and none is switched on."""
    text = (ROOT / ".env.example").read_text()
    assert parse_env_file(text) == {}
    shown = re.findall(r"^# Default: (.*); unit: (.*)\.\n(#[A-Z].*)$", text, flags=re.M)
    assert [(default, unit) for default, unit, _ in shown] == [(s.default or "(none)", s.unit) for s in SETTINGS]
    examples = parse_env_file("\n".join(line.removeprefix("#") for _, _, line in shown))
    assert list(examples.items()) == [(s.name, s.example) for s in SETTINGS]


def test_env_example_explains_every_setting() -> None:
    """What each setting does stands there in the words of the settings table."""
    words = " ".join((ROOT / ".env.example").read_text().replace("\n#", "").split())
    assert [s.name for s in SETTINGS if s.effect not in words] == []


def test_the_readme_has_the_settings_table() -> None:
    """The README's table is the settings table: name, default, unit, effect and example, in order."""
    rows = re.findall(
        r"^\| `([A-Z0-9_]+)` \| (.*) \| (.*) \| (.*) \| (.*) \|$", (ROOT / "README.md").read_text(), flags=re.M
    )
    assert rows == [
        (s.name, f"`{s.default}`" if s.default else "(none)", s.unit, s.effect, f"`{s.example}`") for s in SETTINGS
    ]


def test_compose_exposes_every_setting() -> None:
    """Every setting can be given from outside, and an absent one means the default."""
    environment = compose()["services"]["autopilot"]["environment"]
    assert environment == {s.name: f"${{{s.name}:-{COMPOSE_DEFAULTS.get(s.name, '')}}}" for s in SETTINGS}


def test_compose_trusts_the_network_it_makes() -> None:
    """The proxy in front is believed by default, and nobody else: the defaults are legal and name its network."""
    read_settings(COMPOSE_DEFAULTS, lambda path: "")
    (network,) = compose()["networks"]["edge"]["ipam"]["config"]
    assert network == {"subnet": COMPOSE_DEFAULTS["TRUSTED_PROXY_CIDRS"]}
    assert all(compose()["services"][name]["networks"] == ["edge"] for name in ("autopilot", "caddy"))


def test_compose_locks_the_containers_down() -> None:
    """Both containers have a read-only file system, no capability but Caddy's low ports, and restart by themselves."""
    services = compose()["services"]
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
    assert "cap_add" not in services["autopilot"]
    assert services["caddy"]["cap_add"] == ["NET_BIND_SERVICE"]
    assert "ports" not in services["autopilot"]
    assert services["caddy"]["image"] == "caddy:2"


def test_compose_mounts_what_the_image_writes() -> None:
    """The image's one writable directory is a named volume, and so are Caddy's."""
    described = compose()
    (volume,) = instructions("VOLUME")
    assert described["services"]["autopilot"]["volumes"] == [f"autopilot-data:{volume}"]
    mounted = {v.split(":")[0] for s in described["services"].values() for v in s["volumes"] if not v.startswith(".")}
    assert mounted == set(described["volumes"])


def test_caddy_streams_to_the_service() -> None:
    """Caddy knows the service by its name and port, and does not hold streamed answers back."""
    caddyfile = (ROOT / "Caddyfile").read_text()
    assert "reverse_proxy autopilot:8080 {" in caddyfile
    assert "flush_interval -1" in caddyfile
    assert "{$DOMAIN:localhost}" in caddyfile
    assert compose()["services"]["autopilot"]["expose"] == ["8080"]


def test_the_image_runs_the_plugin_without_root() -> None:
    """The image starts the service as uid 10001 on the default port, and stops by the signal the service ends on."""
    (port,) = instructions("EXPOSE")
    assert SETTINGS[0].default.endswith(f":{port}")
    assert instructions("USER") == ["10001:10001"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["twistd", "-n", "chutes-autopilot"]


def test_the_plugin_cache_step_of_the_image_works() -> None:
    """The command that builds the plugin cache into the image finds our plugin."""
    (step,) = [line for line in instructions("RUN") if "getPlugins" in line]
    code = re.findall(r'python -c "(.*?)"', step)[0]
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/", env={"PYTHONPATH": str(ROOT)}, timeout=60)


class _Readiness(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.server.ready and self.path == "/readyz" else 503)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])  # noqa: S104 - asked as localhost
def test_the_health_check_of_the_image(host: str, ready: bool) -> None:
    """The check asks /readyz at LISTEN_ADDR, past any proxy, and succeeds only when the service is ready."""
    command = json.loads(instructions("HEALTHCHECK")[0].partition("CMD ")[2])
    with HTTPServer(("127.0.0.1", 0), _Readiness) as server:
        server.ready = ready
        server.timeout = 30
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        environ = {
            "PATH": os.path.dirname(sys.executable),
            "LISTEN_ADDR": f"{host}:{server.server_port}",
            "http_proxy": "http://127.0.0.1:1",
        }
        result = subprocess.run([sys.executable, *command[1:]], env=environ, capture_output=True, timeout=30)
        answering.join()
    assert (result.returncode == 0) is ready
