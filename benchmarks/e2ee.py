"""``python benchmarks/e2ee.py``: what encryption costs, to the service and on to the instance; see README.md here."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from urllib.request import Request, urlopen

from e2ee_costs import costs
from processes import PYTHON, Child, free_port
from report import machine_facts
from targets import ROOT, TWISTD, gateway

from chutes_autopilot.e2ee.curves import Algo, normal_form
from chutes_autopilot.e2ee_client.exchange import Exchange
from chutes_autopilot.e2ee_client.sealing import read_chat_request

TOKEN = "benchmark"
CHAT = "/v1/chutes/chat/completions"
MODEL = "demo-labs/Aurora-32B-TEE"
PROMPT = "p" * 1000
TOKENS = 8
FIELDS = 256
TIMED = Path(__file__).resolve().parent / "timed_twistd.py"
HELD_LIMIT = 0.050
"""Seconds that one request may hold the reactor."""


@dataclass(frozen=True)
class Way:
    """One way of asking.

    :param transport: CHUTES_TRANSPORT of the gateway; None: the simulator itself is asked.
    :param algo: of the encryption to the service; None: in clear.
    """

    name: str
    transport: str | None
    algo: Algo | None = None


WAYS = (
    Way("upstream alone", None),
    Way("plain", "tls"),
    Way("encrypted to the service, ed25519", "tls", "ed25519"),
    Way("encrypted to the service, ecdsa", "tls", "ecdsa"),
    Way("sealed to the instance", "e2ee"),
    Way("double-sealed, ed25519", "e2ee", "ed25519"),
)


class Asker:
    """One keep-alive connection that asks in one way; requests are sealed before the clock runs."""

    def __init__(self, way: Way, port: int) -> None:
        self.way = way
        self._connection = HTTPConnection("127.0.0.1", port, timeout=30)
        self._key = b"" if way.algo is None else reported_key(port, way.algo)

    def prepared(self, messages: int = 1, **members: object) -> tuple[bytes, dict[str, str]]:
        """Body and headers of a request that was never sent."""
        asked = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}] * messages, **members}
        body = json.dumps(asked).encode()
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        if self.way.algo is None:
            return body, headers
        exchange = Exchange.new(self.way.algo, 2, time.time())
        sealed = read_chat_request(body).seal(normal_form(self.way.algo, self._key), exchange)
        return sealed, headers | dict(exchange.headers(self._key.hex()))

    def ask(self, body: bytes, headers: Mapping[str, str]) -> float:
        """Seconds from the request to the last byte of its answer."""
        path = CHAT if self.way.transport else CHAT.replace("/chutes", "", 1)
        begun = time.perf_counter()
        self._connection.request("POST", path, body, dict(headers))
        answer = self._connection.getresponse()
        data = answer.read()
        taken = time.perf_counter() - begun
        if answer.status != 200 or (self.way.algo and answer.headers["X-E2EE-Applied"] != "true"):
            raise RuntimeError(f"{self.way.name}: {answer.status} {data[:300]!r}")
        return taken


def reported_key(port: int, algo: Algo) -> bytes:
    """The service's public key as its report writes it."""
    request = Request(f"http://127.0.0.1:{port}/v1/attestation/report?signing_algo={algo}")
    request.add_header("Authorization", f"Bearer {TOKEN}")
    with urlopen(request) as answer:
        return bytes.fromhex(json.load(answer)["signing_public_key"])


def main() -> int:
    """Measure and print; the exit code is 1 where the reactor was held too long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each step in this process, default 5")
    parser.add_argument("--requests", type=int, default=150, help="of each way through the gateway, default 150")
    options = parser.parse_args()
    if not 10 <= options.requests <= 150:
        parser.error("--requests is 10 to 150: the platform's limit for listings allows no more in a minute")
    for name, fact in machine_facts([gateway("autopilot", ROOT)]).items():
        print(f"{name + ':':<13} {fact}")
    print("\nCPU time of single steps, median in microseconds", flush=True)
    for name, taken in costs(options.rounds):
        print(f"  {name:<46} {taken:>9.1f}", flush=True)
    cores = sorted(os.sched_getaffinity(0))
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as directory,
        upstream(cores[-1], Path(directory)) as port,
        gateways(port, cores[0], Path(directory)) as running,
    ):
        routes(running, port, options.requests)
        held = reactor_held(*running["timed"])
    return 0 if held < HELD_LIMIT else 1


@contextmanager
def upstream(core: int, directory: Path) -> Iterator[int]:
    """The simulator, without a pace of its own; its port."""
    command = [PYTHON, "-m", "chutes_autopilot.demo", "--first-token-ms", "0", "--pace-ms", "0"]
    with Child(command, core, directory / "upstream.log", {"PYTHONPATH": str(ROOT)}) as child:
        yield int(child.wait_for_line("://127.0.0.1:").rpartition(":")[2])


@contextmanager
def gateways(upstream_port: int, core: int, directory: Path) -> Iterator[dict[str, tuple[Child, int]]]:
    """A gateway for each transport, and one whose reactor is timed, each with its port."""
    url = f"http://127.0.0.1:{upstream_port}"
    shared = {
        "PYTHONPATH": str(ROOT),
        "BACKEND_BASE_URL": url,
        "MODELS_URL": f"{url}/v1/models",
        "UTILIZATION_URL": f"{url}/chutes/utilization",
        "CHUTES_ENABLED": "true",
        "CHUTES_BASE_URL": url,
        "CHUTES_API_BASE_URL": url,
        "CHUTES_API_KEY": "cpk_benchmark",
        "CHUTES_E2EE_DISCOVERY_RPM": "10",
        "TOKEN": TOKEN,
    }
    kinds = {"tls": (TWISTD, "tls"), "e2ee": (TWISTD, "e2ee"), "timed": ((PYTHON, str(TIMED)), "tls")}
    with ExitStack() as stack:
        running = {}
        for name, (twistd, transport) in kinds.items():
            port = free_port()
            environ = {**shared, "LISTEN_ADDR": f"127.0.0.1:{port}", "CHUTES_TRANSPORT": transport}
            command = [*twistd, "-n", "chutes-autopilot"]
            running[name] = stack.enter_context(Child(command, core, directory / f"{name}.log", environ)), port
        for child, port in running.values():
            child.wait_for_200(port, "/readyz")
        yield running


def routes(running: Mapping[str, tuple[Child, int]], upstream_port: int, requests: int) -> None:
    """Ask in every way in turn; print latencies, what each adds, and the gateway's CPU time."""
    askers = [Asker(way, upstream_port if way.transport is None else running[way.transport][1]) for way in WAYS]
    latencies: dict[str, list[float]] = {way.name: [] for way in WAYS}
    spent: dict[str, float] = dict.fromkeys(latencies, 0.0)
    for asker in askers:  # connections, pools and code are warm after these
        for _ in range(5):
            asker.ask(*asker.prepared(n_tokens=TOKENS))
    blocks = max(1, requests // 10)
    for _ in range(blocks):
        for asker in askers:
            name = asker.way.name
            prepared = [asker.prepared(n_tokens=TOKENS) for _ in range(requests // blocks)]
            child = None if asker.way.transport is None else running[asker.way.transport][0]
            before = child.cpu_seconds() if child else 0.0
            latencies[name] += [asker.ask(*one) for one in prepared]
            spent[name] += (child.cpu_seconds() if child else 0.0) - before
    print(f"\nrequests of 1 KB, whole answers of {TOKENS} tokens, one connection, {len(latencies['plain'])} of each")
    print(f"  {'':<36} {'p50 us':>8} {'added to plain':>15} {'CPU us':>8}")
    plain = median(latencies["plain"])
    for way in WAYS:
        middle = median(latencies[way.name])
        added = "" if way.transport is None else f"{(middle - plain) * 1e6:+.0f}"
        cpu = "" if way.transport is None else f"{spent[way.name] / len(latencies[way.name]) * 1e6:.0f}"
        print(f"  {way.name:<36} {middle * 1e6:>8.0f} {added:>15} {cpu:>8}")


def reactor_held(child: Child, port: int) -> float:
    """The longest turn of the reactor in CPU seconds while requests with the most ECDSA fields are opened."""
    asker = Asker(Way("many fields", "tls", "ecdsa"), port)
    prepared = [asker.prepared(FIELDS, n_tokens=1) for _ in range(9)]
    begun = time.monotonic()
    taken = [asker.ask(*one) for one in prepared]
    asker.ask(*asker.prepared(n_tokens=1))  # whatever the last of them began has ended
    lines = [line.split()[1:] for line in child.log.read_text().splitlines() if line.startswith("turn ")]
    turns = [(float(wall), float(cpu)) for at, wall, cpu in lines if float(at) >= begun]
    wall, cpu = (max(turn[place] for turn in turns) for place in (0, 1))
    print(f"\nrequests with {FIELDS} ECDSA fields of 1 KB: {median(taken) * 1000:.0f} ms each, in a thread; meanwhile")
    print(f"  the longest turn of the reactor takes {cpu * 1000:.1f} ms of CPU time, {wall * 1000:.1f} ms in all")
    return cpu


if __name__ == "__main__":
    sys.exit(main())
