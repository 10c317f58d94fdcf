"""``python -m chutes_autopilot.demo``: the simulator alone, in a process of its own, for benchmarks and for a look."""

import argparse
import sys
from typing import cast

from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorTCP, IReactorTime

from chutes_autopilot.demo.service import SimulatedChutesService, listen_simulator
from chutes_autopilot.demo.simulator import SimulatedChutes


def _milliseconds(text: str) -> float:
    seconds = float(text) / 1000
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not within 0 to 3600000 milliseconds")
    return seconds


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port, allowed are 0 (any free one) to 65535")
    return port


def main() -> None:
    """Run until SIGINT or SIGTERM; one line on standard output says where."""
    from twisted.internet import reactor  # noqa: TID251  this is a process of its own

    parser = argparse.ArgumentParser(prog="python -m chutes_autopilot.demo", description=__doc__)
    parser.add_argument("--port", type=_port, default=0, help="port on 127.0.0.1; 0 takes any free one (default)")
    parser.add_argument("--pace-ms", type=_milliseconds, default=0.02, help="between two tokens, default 20")
    parser.add_argument("--first-token-ms", type=_milliseconds, default=0.15, help="until the first one, default 150")
    options = parser.parse_args()
    simulator = SimulatedChutes(cast(IReactorTime, reactor), options.first_token_ms, options.pace_ms)
    try:
        port = listen_simulator(cast(IReactorTCP, reactor), simulator, options.port)
    except CannotListenError as error:
        sys.exit(f"cannot listen on port {options.port}: {error.socketError}")
    service = SimulatedChutesService(simulator, port)
    sys.stdout.write(f"simulated Chutes (not the real platform) on {service.base_url}\n")
    sys.stdout.flush()
    reactor.run()


if __name__ == "__main__":
    main()
