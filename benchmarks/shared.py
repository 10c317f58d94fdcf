"""``python benchmarks/shared.py``: what it costs a replica to share its state by Redis; see README.md here.

One gateway with REDIS_URL and one without, in turn, each for clients that stay (the same ones all the time) and for
clients that are new with every request; and what Redis itself had to do and to keep.
"""

import argparse
import gc
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from load import chat_request, run_load
from processes import PYTHON, Child, free_port
from targets import ROOT, Command, Upstream, gateway

CLIENTS = 32
NEW_A_SECOND = 300
HERE = Path(__file__).resolve().parent


class Redis:
    """A Redis of the benchmark's own, spoken to without any library."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 5)

    def info(self, section: str) -> dict[str, str]:
        """The lines of INFO."""
        self._socket.sendall(b"INFO %b\r\n" % section.encode())
        data = b""
        while b"\r\n" not in data or len(data) < int(data[1 : data.index(b"\r\n")]) + data.index(b"\r\n") + 4:
            data += self._socket.recv(65536)
        return dict(line.split(":", 1) for line in data.decode().splitlines() if ":" in line)

    def commands(self) -> int:
        """How many it has had so far."""
        return int(self.info("stats")["total_commands_processed"])


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured, default 5")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measuring, default 3")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds of load before it, default 1")
    options = parser.parse_args()
    if shutil.which("redis-server") is None:
        sys.exit("redis-server is not on PATH")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that no child is left behind
    cores = sorted(os.sched_getaffinity(0))
    target_core, other_core, load_core = cores[0], cores[1 % len(cores)], cores[2 if len(cores) > 2 else -1]
    os.sched_setaffinity(0, {load_core})
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    gc.disable()
    found: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        stub = Child([PYTHON, str(HERE / "stub_upstream.py")], other_core, directory / "upstream.log")
        upstream_port = int(stack.enter_context(stub).wait_for_line("://127.0.0.1:").rpartition(":")[2])
        redis_port = free_port()
        words = ["redis-server", "--port", str(redis_port), "--bind", "127.0.0.1", "--save", ""]
        stack.enter_context(Child(words, other_core, directory / "redis.log")).wait_for_line("eady to accept")
        redis, upstream = Redis(redis_port), Upstream(upstream_port, "", None)
        plain = gateway("autopilot", ROOT)
        assert plain.command is not None
        shared_with = {
            "alone": {},
            "shared": {
                "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
                "CLIENT_KEY_SECRET": "a-secret-of-the-benchmark",
            },
        }
        for number in range(options.rounds):
            for name, environ in shared_with.items():
                port = free_port()
                own = directory / f"{name}-{number}"
                own.mkdir()
                command = plain.command(port, upstream, own)
                command = Command(command.words, {**command.environ, **environ})
                with Child(command.words, target_core, own / "output.log", command.environ) as child:
                    child.wait_for_200(port, "/readyz")
                    for kind in ("known", "new"):
                        before = redis.commands()
                        cpu, count = _measure(child, port, kind, options, number)
                        found.setdefault((kind, name), []).append(cpu)
                        if environ:  # the warm-up's are among them: a little too many
                            found.setdefault((kind, "commands"), []).append((redis.commands() - before) / count)
        memory = redis.info("memory"), redis.info("keyspace")
    for kind, title in (("known", "clients that stay"), ("new", "clients that are new with every request")):
        alone, shared = (median(found[kind, name]) for name in ("alone", "shared"))
        commands = median(found[kind, "commands"])
        print(
            f"{title}: {alone:.1f} us CPU/request alone, {shared:.1f} shared ({shared - alone:+.1f}), "
            f"{commands:.3f} Redis commands/request"
        )
    print(f"Redis at the end: {memory[0].get('used_memory_human')} for {memory[1].get('db0', 'no keys')}")
    return 0


def _measure(child: Child, port: int, kind: str, options: argparse.Namespace, number: int) -> tuple[float, int]:
    """CPU microseconds for each request of one kind of clients, and how many there were since the start of the load."""
    addresses, seconds = [("127.0.0.1", port)], options.seconds
    if kind == "known":
        requests = [chat_request("chutesai/AutoPilot", "plain", client=client) for client in range(CLIENTS)]
        run = run_load(addresses, requests, child.cpu_seconds, warmup=options.warmup, seconds=seconds)
        return (run.after - run.before) / run.answers * 1e6, run.answers
    span = options.warmup + seconds
    clients = range(CLIENTS + round(NEW_A_SECOND * span * number), CLIENTS + round(NEW_A_SECOND * span * (number + 1)))
    requests = [chat_request("chutesai/AutoPilot", "plain", client=client) for client in clients]
    before = child.cpu_seconds()
    run_load(addresses, requests, float, warmup=span, seconds=0.2, once=True, spread=span)
    return (child.cpu_seconds() - before) / len(requests) * 1e6, len(requests)


if __name__ == "__main__":
    sys.exit(main())
