"""The servers that are compared: how each is started in front of the upstream, with what, and on which port."""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from processes import PYTHON, free_port, output_of

ROOT = Path(__file__).resolve().parent.parent
ALIAS = "chutesai/AutoPilot"
TWISTD = (PYTHON, "-c", "from twisted.scripts.twistd import run; run()")
MAX_CONNECTIONS = 8192
LISTED = "/v1/models"
"""What a plain proxy is asked for to see whether it runs: any upstream answers it."""


@dataclass(frozen=True)
class Upstream:
    """Where targets send what they get.

    :param model: a name it knows, for the targets that do not rewrite the model.
    :param ca_file: the authority of its certificate; None: plain HTTP.
    """

    port: int
    model: str
    ca_file: Path | None

    @property
    def url(self) -> str:
        """Its origin; under TLS by name, as the platform is."""
        return f"https://localhost:{self.port}" if self.ca_file else f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Command:
    """A command line, and what is special in its environment."""

    words: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """One server under measurement.

    :param command: from a port, the upstream and a directory for its files; None: there is no server, the load goes
        to the upstream itself.
    :param processes: how many of them serve requests.
    :param instances: how many of the target run side by side, each on a port of its own.
    :param said: what its output has to say before it is measured.
    :param health: a path that answers 200 as soon as the server listens, ``ready``: as soon as it can relay.
    :param model: the model to ask for; None: whatever the upstream knows.
    """

    name: str
    version: str
    command: Callable[[int, Upstream, Path], Command] | None
    health: str = "/healthz"
    ready: str = "/healthz"
    model: str | None = None
    said: tuple[str, ...] = ()
    processes: int = 1
    instances: int = 1


def gateway(name: str, tree: Path, **settings: str) -> Target:
    """The gateway of a source tree, with the settings' defaults, asked for its alias; its log goes to a file.

    :param settings: what is unlike the defaults.
    """

    def command(port: int, upstream: Upstream, directory: Path) -> Command:
        environ = {
            "PYTHONPATH": str(tree),
            "LISTEN_ADDR": f"127.0.0.1:{port}",
            "BACKEND_BASE_URL": upstream.url,
            "MODELS_URL": f"{upstream.url}/v1/models",
            "UTILIZATION_URL": f"{upstream.url}/chutes/utilization",
            **settings,
        }
        if upstream.ca_file:
            environ["SSL_CERT_FILE"] = str(upstream.ca_file)
        return Command([*TWISTD, "-n", "chutes-autopilot"], environ)

    git = output_of("git", "-C", str(tree), "describe", "--always", "--dirty")
    found = re.search(r'__version__ = "(.+)"', (tree / "chutes_autopilot/__init__.py").read_text())
    version = f"{found[1] if found else '?'} {git}".strip()
    return Target(name, version, command, ready="/readyz", model=ALIAS)


def nginx(executable: str) -> Target:
    """nginx as a plain reverse proxy: one worker, keep-alive to the upstream, no buffering, access log on."""

    def command(port: int, upstream: Upstream, directory: Path) -> Command:
        secure = (
            f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {upstream.ca_file}; proxy_ssl_name localhost;"
            " proxy_ssl_server_name on;"
            if upstream.ca_file
            else ""
        )
        config = directory / "nginx.conf"
        temporary = "".join(
            f"{kind}_temp_path {directory}/{kind};\n    "
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config.write_text(f"""\
{"user root;" if os.geteuid() == 0 else ""}
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
worker_processes 1;
worker_rlimit_nofile {2 * MAX_CONNECTIONS};
events {{ worker_connections {2 * MAX_CONNECTIONS}; }}
http {{
    access_log {directory}/access.log combined;
    {temporary}
    keepalive_requests 1000000000;
    upstream chutes {{
        server 127.0.0.1:{upstream.port};
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        client_max_body_size 1m;
        client_body_buffer_size 1m;
        location / {{
            proxy_pass {"https" if upstream.ca_file else "http"}://chutes;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 600s;
            {secure}
        }}
    }}
}}
""")
        return Command([executable, "-e", str(directory / "error.log"), "-c", str(config)])

    return Target("nginx", output_of(executable, "-v").rpartition("/")[2], command, LISTED, LISTED)


def haproxy(executable: str) -> Target:
    """HAProxy as a plain reverse proxy: one thread, connections to the upstream reused, request line logged."""

    def command(port: int, upstream: Upstream, directory: Path) -> Command:
        secure = f" ssl verify required ca-file {upstream.ca_file} sni str(localhost)" if upstream.ca_file else ""
        config = directory / "haproxy.cfg"
        config.write_text(f"""\
global
    nbthread 1
    maxconn {MAX_CONNECTIONS}
    log stdout format raw local0 info
defaults
    mode http
    log global
    option httplog
    option http-no-delay
    timeout connect 5s
    timeout client 600s
    timeout server 600s
frontend clients
    bind 127.0.0.1:{port} backlog 4096
    default_backend chutes
backend chutes
    http-reuse always
    server chutes 127.0.0.1:{upstream.port}{secure}
""")
        return Command([executable, "-db", "-f", str(config)])

    found = re.search(r"version (\S+)", output_of(executable, "-v"))
    return Target("haproxy", found[1] if found else "?", command, LISTED, LISTED)


def vllm_router(executable: str) -> Target:
    """The Rust router of the vLLM project in front of one worker, otherwise as it comes."""

    def command(port: int, upstream: Upstream, directory: Path) -> Command:
        words = f"--host 127.0.0.1 --port {port} --worker-urls {upstream.url} --policy round_robin"
        words += f" --worker-startup-check-interval 1 --prometheus-port {free_port()}"
        return Command(
            [executable, *words.split()], {"SSL_CERT_FILE": str(upstream.ca_file)} if upstream.ca_file else {}
        )

    python = str(Path(executable).with_name("python"))
    version = output_of(python, "-c", "from importlib.metadata import version; print(version('vllm-router'))")
    return Target("vllm-router", version or "?", command, health="/health", ready="/readiness")


DIRECT = Target("direct", "", None)


def find_targets(names: Sequence[str], vllm_router_path: str | None, baseline: Path | None) -> tuple[list[Target], str]:
    """Those of ``names`` that are here, in their order, and what to say of the others.

    :param vllm_router_path: the executable; None: on PATH.
    :param baseline: another checkout, whose gateway is one more target.
    """
    found: list[Target] = []
    missing: list[str] = []
    for name in names:
        if name == "autopilot":
            found.append(gateway(name, ROOT))
        elif name == "workers":
            # by then the spare one has loaded its modules, which are no part of what a request costs
            found.append(replace(gateway(name, ROOT, WORKERS="2"), said=("a spare worker waits",), processes=2))
        elif name == "pair":
            found.append(replace(gateway(name, ROOT), processes=2, instances=2))
        elif name == "direct":
            found.append(DIRECT)
        else:
            executable = shutil.which(vllm_router_path or name if name == "vllm-router" else name)
            if executable is None:
                missing.append(f"{name} is left out: it is not on PATH")
            else:
                start = {"nginx": nginx, "haproxy": haproxy, "vllm-router": vllm_router}[name]
                found.append(start(str(Path(executable).absolute())))  # children have another working directory
    if baseline is not None:
        found.insert(1 if names[:1] == ["autopilot"] else 0, gateway("baseline", baseline.resolve()))
    return found, "\n".join(missing)


def first_model(catalog: bytes) -> str:
    """A model of a catalog."""
    return str(json.loads(catalog)["data"][0]["id"])
