"""``python benchmarks/run.py``: what the gateway costs, beside nginx and vllm-router; see README.md here."""

import argparse
import gc
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from ssl import create_default_context

from load import LoadError
from processes import PYTHON, Child, StartError, free_port
from report import as_json, machine_facts, table
from rounds import by_round
from scenarios import SCENARIOS, Bench, Scenario
from targets import ROOT, Target, Upstream, find_targets, first_model

TARGETS = "autopilot,nginx,vllm-router,haproxy,direct"
FURTHER_TARGETS = "workers,pair"
HERE = Path(__file__).resolve().parent


def main() -> int:
    """Measure and print; the exit code is 1 where anything failed."""
    options = _options()
    _raise_descriptor_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that no child is left behind
    cores = sorted(os.sched_getaffinity(0))
    target_core, upstream_core, load_core = cores[0], cores[1 % len(cores)], cores[2 if len(cores) > 2 else -1]
    targets, missing = find_targets(options.targets, options.vllm_router, options.baseline)
    facts = machine_facts(targets)
    print("\n".join(f"{name + ':':<13} {fact}" for name, fact in facts.items()))
    print(f"{'cores:':<13} target {target_core}, upstream {upstream_core}, load {load_core}")
    if len(cores) == 1:
        print("only one core: rates and latencies mean little, CPU time still does")
    print(missing, end="\n\n" if missing else "\n", flush=True)
    os.sched_setaffinity(0, {load_core})
    gc.disable()

    rounds: dict[str, dict[str, dict[str, list[float]]]] = {}
    failures: list[str] = []
    for name in options.scenarios:
        scenario = SCENARIOS[name]
        if scenario.tls and options.upstream == "simulator":
            print(f"{name} is left out: the simulator speaks no TLS", flush=True)
            continue
        rounds[name] = {}
        broken: set[str] = set()
        with (
            tempfile.TemporaryDirectory(prefix="benchmark-") as directory,
            _upstream(options.upstream, scenario, upstream_core, Path(directory)) as upstream,
            ExitStack() as together,
        ):
            up: dict[str, Bench] = {}
            for number in range(options.rounds):
                for target in targets:  # in turn, so that a slow minute of the machine does not hit one target alone
                    if target.name in broken or (target.command is None and not scenario.direct):
                        continue
                    _say(f"{name}, round {number + 1} of {options.rounds}: {target.name}")
                    try:
                        with ExitStack() as alone:
                            bench = up.get(target.name) or (together if options.together else alone).enter_context(
                                _started(target, upstream, target_core, Path(directory), options)
                            )
                            if options.together:
                                up[target.name] = bench
                            numbers = scenario.measure(bench)
                    except (LoadError, StartError, OSError, RuntimeError) as error:
                        broken.add(target.name)
                        failures.append(f"{name}, {target.name}: {error}")
                        continue
                    finally:
                        gc.collect()
                    for measure, value in numbers.items():
                        rounds[name].setdefault(measure, {}).setdefault(target.name, []).append(value)
    _say("")
    print(table(rounds))
    if options.together:
        print(by_round(rounds, options.quiet))
    for failure in failures:
        print(f"\nFAILED {failure}")
    if options.json:
        options.json.write_text(json.dumps(as_json(facts, rounds, failures), indent=2) + "\n")
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    def names(allowed: Sequence[str]):
        def parse(text: str) -> list[str]:
            given = [name.strip() for name in text.split(",") if name.strip()]
            if unknown := [name for name in given if name not in allowed]:
                raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(allowed)}")
            return given

        return parse

    known = TARGETS.split(",")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenarios", type=names(list(SCENARIOS)), default=list(SCENARIOS), help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured, default 3")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measuring, default 3")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds of load before it, default 1")
    parser.add_argument(
        "--targets",
        type=names([*known, *FURTHER_TARGETS.split(",")]),
        default=known,
        help=f"default: {TARGETS}, those that are here; there are also {FURTHER_TARGETS}",
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="start every target once and let all stay up, so that a round can be as short as half a second",
    )
    parser.add_argument(
        "--quiet",
        type=float,
        metavar="US",
        help="with --together: tell too what came of the rounds around which the first target took at most US",
    )
    parser.add_argument(
        "--slice-ms",
        type=float,
        metavar="MS",
        help="how long a target's process keeps the core where others want it (0.1 to 100; default: the kernel's)",
    )
    parser.add_argument("--upstream", choices=["stub", "simulator"], default="stub")
    parser.add_argument(
        "--vllm-router",
        metavar="FILE",
        default=os.environ.get("VLLM_ROUTER"),
        help="its executable, for example in a virtual environment; default: $VLLM_ROUTER, else on PATH",
    )
    parser.add_argument(
        "--baseline", type=Path, metavar="DIR", help="another checkout of this project, measured as target baseline"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, every round included")
    return parser.parse_args()


@contextmanager
def _upstream(kind: str, scenario: Scenario, core: int, directory: Path) -> Iterator[Upstream]:
    """The upstream of one scenario."""
    ca_file = directory / "ca.pem" if scenario.tls else None
    if kind == "simulator":
        pace = ["--first-token-ms", "0", "--pace-ms", str(scenario.pace * 1000)]
        command = [PYTHON, "-m", "chutes_autopilot.demo", *pace]
    else:
        command = [PYTHON, str(HERE / "stub_upstream.py"), *(["--tls", str(ca_file)] if ca_file else [])]
    with Child(command, core, directory / "upstream.log", {"PYTHONPATH": str(ROOT)}) as child:
        port = int(child.wait_for_line("://127.0.0.1:").rpartition(":")[2])
        context = create_default_context(cafile=str(ca_file)) if ca_file else None
        connection = (
            HTTPSConnection("127.0.0.1", port, context=context) if context else HTTPConnection("127.0.0.1", port)
        )
        connection.request("GET", "/v1/models")
        model = first_model(connection.getresponse().read())
        connection.close()
        yield Upstream(port, model, ca_file)


@contextmanager
def _started(
    target: Target, upstream: Upstream, core: int, directory: Path, options: argparse.Namespace
) -> Iterator[Bench]:
    """A target that is up, and is ended with the ``with`` block."""

    def bench(children: Sequence[Child], started: float, ports: Sequence[int]) -> Bench:
        return Bench(
            target=children,
            started=started,
            addresses=[("127.0.0.1", port) for port in ports],
            upstream=("127.0.0.1", upstream.port),
            model=target.model or upstream.model,
            upstream_model=upstream.model,
            end_mark=options.upstream == "stub",
            warmup=options.warmup,
            seconds=options.seconds,
            processes=target.processes,
        )

    if target.command is None:
        yield bench((), 0.0, (upstream.port,))
        return
    with ExitStack() as stack:
        children, ports, started = [], [], 0.0
        for _ in range(target.instances):
            own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{target.name}-", dir=directory)))
            port = free_port()
            command = target.command(port, upstream, own)
            log = own / "output.log"
            child = stack.enter_context(Child(command.words, core, log, command.environ, options.slice_ms))
            started = max(started, child.wait_for_200(port, target.health))
            child.wait_for_200(port, target.ready)
            for text in target.said:
                child.wait_for_line(text)
            children.append(child)
            ports.append(port)
        yield bench(children, started, ports)


def _raise_descriptor_limit() -> None:
    """Descriptors for a thousand streams, each of which is two in a target; children inherit it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _say(text: str) -> None:
    """Show progress where somebody looks."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
