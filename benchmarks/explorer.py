"""``python benchmarks/explorer.py``: the explorer's answers, its followers, and what they cost the proxy.

Three numbers: catalog answers with If-None-Match a second; how long it takes until every one of many followers has a
new ranking; and the latency that the gateway adds to a chat request, without followers and with them.

Each round measures the latency three times: without followers, with them, and without them again. The two outer ones
should be the same, so how far they differ says what the machine's noise is worth: a difference that is no larger than
that is none.
"""

import argparse
import json
import os
import select
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from subprocess import PIPE, Popen
from typing import Any

from load import alternate, chat_request, percentile
from processes import PYTHON, Child, free_port, on_core
from report import machine_facts
from targets import ALIAS, ROOT, TWISTD, Upstream, gateway

CONNECTIONS = 16
SETTLING = 2.0
"""Seconds after followers have come or gone."""
ENOUGH_REQUESTS = 5000
"""Of one measurement, so that fifty of them make its last percentile."""
ALLOWED = 0.1
"""By how much followers may move the 99th percentile."""
RANKING = b"event: ranking\nid: ranking-"


def catalog_rate(port: int, seconds: float) -> float:
    """304 answers of GET /api/catalog a second, over CONNECTIONS keep-alive connections in a closed loop."""
    first = HTTPConnection("127.0.0.1", port)
    first.request("GET", "/api/catalog")
    answer = first.getresponse()
    answer.read()
    tag = answer.getheader("ETag") or ""
    first.close()
    request = f"GET /api/catalog HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\n\r\n".encode()
    sockets = {}
    with select.epoll() as epoll:
        for _ in range(CONNECTIONS):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sockets[sock.fileno()] = sock
            epoll.register(sock, select.EPOLLIN)
            sock.sendall(request)
        statuses: Counter[bytes] = Counter()
        begin = time.perf_counter()
        while (passed := time.perf_counter() - begin) < seconds:
            for fd, _ in epoll.poll(1):
                head = sockets[fd].recv(65536)
                if not head.endswith(b"\r\n\r\n") and head[9:12] == b"304":
                    raise RuntimeError("an answer came in pieces")
                statuses[head[9:12]] += 1
                if head[9:12] != b"304":  # the catalog has changed: its body is not what is measured
                    sockets[fd].close()
                    return catalog_rate(port, seconds)
                sockets[fd].sendall(request)
        for sock in sockets.values():
            sock.close()
    return statuses[b"304"] / passed


def follow(port: int, count: int) -> None:
    """Follow ``count`` times until a line comes on standard input, then say what came: run as a process of its own."""
    counts: dict[int, Counter[bytes]] = {}
    arrivals: dict[bytes, list[float]] = {}
    tails: dict[int, bytes] = {}
    sockets = []
    received = 0
    with select.epoll() as epoll:
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(b"GET /api/events HTTP/1.1\r\nHost: x\r\n\r\n")
            sock.setblocking(False)
            sockets.append(sock)
            epoll.register(sock, select.EPOLLIN)
            tails[sock.fileno()] = b""
            counts[sock.fileno()] = Counter()
        by_fd = {sock.fileno(): sock for sock in sockets}
        epoll.register(sys.stdin, select.EPOLLIN)
        sys.stdout.write("following\n")
        sys.stdout.flush()
        while True:
            ready = epoll.poll(1)
            now = time.perf_counter()
            if any(fd == sys.stdin.fileno() for fd, _ in ready):
                break
            for fd, _ in ready:
                data = by_fd[fd].recv(1 << 18)
                if not data:
                    raise RuntimeError("a follower was closed")
                received += len(data)
                text = tails[fd] + data
                place = 0
                while (found := text.find(RANKING, place)) >= 0 and (end := text.find(b"\n", found + 15)) >= 0:
                    id = text[found + len(RANKING) : end]
                    counts[fd][id] += 1
                    arrivals.setdefault(id, []).append(now)
                    place = end
                tails[fd] = text[max(place, len(text) - 64) :]
    # the first is what everybody begins with, and the last may be under way
    told = [arrivals[id] for id in sorted(arrivals, key=lambda id: min(arrivals[id]))][1:]
    whole = [times for times in told if len(times) == count]
    twice = sum(n > 1 for counter in counts.values() for n in counter.values())
    print(
        json.dumps(
            {
                "rankings": len(whole),
                "incomplete": sum(len(times) != count for times in told[:-1]),
                "twice": twice,
                "spread": [max(times) - min(times) for times in whole],
                "bytes": received,
            }
        )
    )


@contextmanager
def followers(port: int, count: int, core: int) -> Iterator[list[dict[str, Any]]]:
    """Follow while the block runs; afterwards the list holds what came."""
    came: list[dict[str, Any]] = []
    with on_core(core):
        # where the load has the same core, it comes first: what is measured is the gateway, not who waits for whom
        command = ["nice", "-n", "19", PYTHON, __file__, "--follow", str(port), str(count)]
        process = Popen(command, stdin=PIPE, stdout=PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "following\n":
            raise RuntimeError("the followers did not start")
        yield came
        process.stdin.write("stop\n")
        process.stdin.flush()
        came.append(json.loads(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.wait(20)


def added(port: int, upstream: Upstream, seconds: float) -> dict[str, float]:
    """What the gateway adds to one request at a time, in microseconds; and of how many requests."""
    peers = [
        (("127.0.0.1", port), chat_request(ALIAS, "plain")),
        (("127.0.0.1", upstream.port), chat_request(upstream.model, "plain")),
    ]
    through, direct = alternate(peers, warmup=1.0, seconds=seconds)
    return {
        name: (percentile(through, share) - percentile(direct, share)) * 1e6
        for name, share in (("p50", 0.5), ("p99", 0.99))
    } | {"p99 in all": percentile(through, 0.99) * 1e6, "requests": len(through)}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, against a gateway in front of the simulator, whose feed moves every 5 seconds."""
    cores = sorted(os.sched_getaffinity(0))
    own, other = cores[0], cores[1 % len(cores)]
    third = cores[2] if len(cores) > 2 else other
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        directory = Path(name)
        pace = ["--first-token-ms", "0", "--pace-ms", "0"]
        simulator = Child(
            [PYTHON, "-m", "chutes_autopilot.demo", *pace], other, directory / "upstream.log", {"PYTHONPATH": str(ROOT)}
        )
        with simulator as platform:
            upstream = Upstream(int(platform.wait_for_line("://127.0.0.1:").rpartition(":")[2]), options.model, None)
            port = free_port()
            make = gateway("autopilot", ROOT).command
            assert make is not None
            environ = {
                **make(port, upstream, directory).environ,
                "CHUTES_API_BASE_URL": upstream.url,
                "CACHE_DIR": str(directory / "cache"),
                "EXPLORER_MAX_STREAMS": str(options.followers),
            }
            with Child([*TWISTD, "-n", "chutes-autopilot"], own, directory / "gateway.log", environ) as child:
                child.wait_for_200(port, "/readyz")
                child.wait_for_200(port, "/api/catalog")
                with on_core(other):
                    for _ in range(options.rounds):
                        rate = catalog_rate(port, options.seconds)
                        without = added(port, upstream, options.seconds)
                        with followers(port, options.followers, third) as came:
                            time.sleep(SETTLING)
                            with_them = added(port, upstream, options.seconds)
                        time.sleep(SETTLING)
                        again = added(port, upstream, options.seconds)
                        rounds.append({"304/s": rate, "without": without, "with": with_them, "again": again, **came[0]})
                        print(json.dumps(rounds[-1]), file=sys.stderr)
    return {"machine": machine_facts(()), "followers": options.followers, "rounds": rounds}


def compared(rounds: list[dict[str, Any]], name: str) -> tuple[float, float, float, float]:
    """Median without followers, median with them, the median change, and the noise: how far the outer ones differ.

    Each round is compared in itself, so that a machine which slows down in the course of the run changes nothing.
    """
    pairs = [((each["without"][name] + each["again"][name]) / 2, each["with"][name]) for each in rounds]
    before, after = (median(side) for side in zip(*pairs, strict=True))
    noise = median(abs(each["again"][name] / each["without"][name] - 1) for each in rounds)
    return before, after, median(there / usual - 1 for usual, there in pairs), noise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--followers", type=int, default=500)
    parser.add_argument("--model", default="demo-labs/Aurora-32B-TEE", help="a model of the simulator's")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--follow", nargs=2, type=int, metavar=("PORT", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.follow:
        follow(*options.follow)
        return 0
    result = measure(options)
    rounds = result["rounds"]
    spreads = [spread for each in rounds for spread in each["spread"]]
    print(f"catalog answers with If-None-Match: {median(each['304/s'] for each in rounds):,.0f} a second")
    print(
        f"followers: {options.followers}; rankings delivered to all: {sum(each['rankings'] for each in rounds)}, "
        f"to some only: {sum(each['incomplete'] for each in rounds)}; "
        f"from the first to the last: median {median(spreads) * 1000:.0f} ms, at most {max(spreads) * 1000:.0f} ms"
    )
    least = min(each[when]["requests"] for each in rounds for when in ("without", "with", "again"))
    print(f"proxy: medians of {len(rounds)} rounds of at least {least:,} requests")
    for name in ("p50", "p99", "p99 in all"):
        before, after, change, noise = compared(rounds, name)
        print(
            f"proxy, {name}: {before:.0f} us without followers, {after:.0f} us with them ({change:+.1%}; "
            f"without and again without: {noise:.1%} apart)"
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    _, _, change, noise = compared(rounds, "p99 in all")
    if least < ENOUGH_REQUESTS or noise > ALLOWED:
        print("inconclusive: too few requests, or the machine does other work")
        return 2
    print(f"p99 {'moves' if change > ALLOWED else 'does not move'} by more than {ALLOWED:.0%}")
    return 1 if change > ALLOWED else 0


if __name__ == "__main__":
    sys.exit(main())
