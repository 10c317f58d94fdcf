"""What is measured: each scenario puts one kind of load on one target and returns its numbers."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from load import Measured, alternate, chat_request, percentile, run_load
from processes import Child

KEEP_ALIVE_CONNECTIONS = 32
LARGE_BYTES = 65536
PACED_STREAMS = 100
EVENTS_A_SECOND = 50
BURST_STREAMS = 8
BURST_EVENTS = 2000
OPEN_STREAMS = 1000
OPEN_SPREAD_SECONDS = 3.0
"""Time over which the open streams begin, slow enough for every target."""

CPU_REQUEST = "CPU us/request"
CPU_EVENT = "CPU us/event"
REQUESTS = "requests/s"
EVENTS = "events/s"
BUSY = "core busy %"
"""Share of the target's core that it used; near 100 means that the target was the limit."""


@dataclass(frozen=True)
class Bench:
    """A target that is up, and how long to measure it.

    :param target: its process, or the processes of several side by side; empty: the load goes to the upstream itself.
    :param started: seconds from its start to its first 200.
    :param model: what to ask the target for, ``upstream_model``: what to ask the upstream for.
    :param processes: that share the load, which is so many times as much: how many requests a turn of an event loop
        finds decides what each of them costs.
    :param end_mark: whether the upstream ends streams as the stub does, so that events can be checked by number.
    """

    target: Sequence[Child]
    started: float
    addresses: Sequence[tuple[str, int]]
    upstream: tuple[str, int]
    model: str
    upstream_model: str
    end_mark: bool
    warmup: float
    seconds: float
    processes: int = 1

    def cpu(self) -> float:
        """CPU seconds of the target so far."""
        return sum(child.cpu_seconds() for child in self.target)

    def process(self) -> Child:
        """The target's process, where there must be one alone."""
        (child,) = self.target
        return child


Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Scenario:
    """One line of the README's table.

    :param pace: seconds between two events that the upstream must keep to, where it cannot be asked in the request.
    :param direct: whether it says something without any target between load and upstream.
    :param tls: whether the upstream speaks TLS.
    """

    title: str
    measure: Callable[[Bench], Numbers]
    pace: float = 0.0
    direct: bool = True
    tls: bool = False


def _small(bench: Bench) -> Numbers:
    return _requests(bench, size=1024)


def _large(bench: Bench) -> Numbers:
    return _requests(bench, size=LARGE_BYTES)


def _connect(bench: Bench) -> Numbers:
    return _requests(bench, size=1024, reconnect=True)


def _requests(bench: Bench, *, size: int, reconnect: bool = False) -> Numbers:
    connections = KEEP_ALIVE_CONNECTIONS * bench.processes
    requests = [chat_request(bench.model, "plain", size=size, client=number) for number in range(connections)]
    measured = run_load(
        bench.addresses, requests, bench.cpu, warmup=bench.warmup, seconds=bench.seconds, reconnect=reconnect
    )
    numbers = _numbers(bench, measured, CPU_REQUEST, REQUESTS, measured.answers)
    return {**numbers, "p99 ms": percentile(measured.latencies, 0.99) * 1000}


def _paced(bench: Bench) -> Numbers:
    events = round((bench.warmup + bench.seconds + 1) * EVENTS_A_SECOND)
    behaviour = f"paced {events} {1_000_000 // EVENTS_A_SECOND}"
    requests = [chat_request(bench.model, behaviour, events=events, client=number) for number in range(PACED_STREAMS)]
    measured = run_load(
        bench.addresses,
        requests,
        bench.cpu,
        warmup=bench.warmup,
        seconds=bench.seconds,
        once=True,
        spread=bench.warmup / 2,
        events=events + 1 if bench.end_mark else 0,
    )
    if measured.open_streams != PACED_STREAMS:
        raise RuntimeError(f"{measured.open_streams} of {PACED_STREAMS} streams were open to the end")
    return _numbers(bench, measured, CPU_EVENT, EVENTS, measured.events)


def _burst(bench: Bench) -> Numbers:
    requests = [
        chat_request(bench.model, f"burst {BURST_EVENTS}", events=BURST_EVENTS, client=number)
        for number in range(BURST_STREAMS)
    ]
    measured = run_load(
        bench.addresses,
        requests,
        bench.cpu,
        warmup=bench.warmup,
        seconds=bench.seconds,
        events=BURST_EVENTS + 1 if bench.end_mark else 0,
    )
    return _numbers(bench, measured, CPU_EVENT, EVENTS, measured.events)


def _open(bench: Bench) -> Numbers:
    memory = bench.process().memory
    few = [chat_request(bench.model, "burst 50", events=50, client=number) for number in range(4)]
    run_load(bench.addresses, few, memory, warmup=0.0, seconds=bench.warmup)
    before = memory()
    settled = OPEN_SPREAD_SECONDS + 1
    events = ceil(settled + bench.seconds) + 4  # one a second, and some seconds more than are measured
    requests = [
        chat_request(bench.model, f"paced {events} 1000000", events=events, client=number)
        for number in range(OPEN_STREAMS)
    ]
    measured = run_load(
        bench.addresses,
        requests,
        memory,
        warmup=settled,
        seconds=bench.seconds,
        once=True,
        spread=OPEN_SPREAD_SECONDS,
        events=events + 1 if bench.end_mark else 0,
    )
    if measured.open_streams != OPEN_STREAMS:
        raise RuntimeError(f"{measured.open_streams} of {OPEN_STREAMS} streams were open when memory was read")
    return {"PSS KiB/stream": (measured.after.pss - before.pss) / OPEN_STREAMS}


def _latency(bench: Bench) -> Numbers:
    peers = [
        (bench.addresses[0], chat_request(bench.model, "plain")),
        (bench.upstream, chat_request(bench.upstream_model, "plain")),
    ]
    through, direct = alternate(peers, warmup=bench.warmup, seconds=bench.seconds)
    numbers = {}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        beyond = percentile(through, share) - percentile(direct, share)
        numbers[f"added {name} us"] = beyond * 1e6
    return {**numbers, "direct p50 us": percentile(direct, 0.5) * 1e6}


def _tls(bench: Bench) -> Numbers:
    return {CPU_REQUEST: _small(bench)[CPU_REQUEST], CPU_EVENT: _paced(bench)[CPU_EVENT]}


def _startup(bench: Bench) -> Numbers:
    time.sleep(1)  # until the catalog and the feed are in
    memory = bench.process().memory()
    return {
        "ms to first 200": bench.started * 1000,
        "idle RSS MiB": memory.rss / 1024,
        "idle PSS MiB": memory.pss / 1024,
    }


def _numbers(bench: Bench, measured: Measured[float], cpu_name: str, rate_name: str, count: int) -> Numbers:
    if not count:
        raise RuntimeError("nothing was completed in the measured time; give it more --seconds")
    rate = {rate_name: count / measured.seconds}
    if not bench.target:
        return rate
    used = measured.after - measured.before
    return {cpu_name: used / count * 1e6, **rate, BUSY: used / measured.seconds * 100}


SCENARIOS = {
    "small": Scenario(f"1 KB requests, {KEEP_ALIVE_CONNECTIONS} keep-alive connections", _small),
    "large": Scenario(f"64 KB requests, {KEEP_ALIVE_CONNECTIONS} keep-alive connections", _large),
    "connect": Scenario(f"1 KB requests, a new connection each, {KEEP_ALIVE_CONNECTIONS} at once", _connect),
    "paced": Scenario(
        f"{PACED_STREAMS} streams of {EVENTS_A_SECOND} events/s each", _paced, 1 / EVENTS_A_SECOND, direct=False
    ),
    "burst": Scenario(f"{BURST_STREAMS} streams of {BURST_EVENTS} events back to back", _burst),
    "open": Scenario(f"{OPEN_STREAMS} open streams of one event/s", _open, 1.0, direct=False),
    "latency": Scenario("one connection, 1 KB requests, in turn with the upstream itself", _latency, direct=False),
    "tls": Scenario("TLS upstream: small, then paced", _tls, 1 / EVENTS_A_SECOND, direct=False, tls=True),
    "startup": Scenario("start of the process, then idle", _startup, direct=False),
}
