"""The console script: ``chutes-autopilot [run]`` is ``twistd -n chutes-autopilot`` for those who do not know twistd,
and its sub-commands are what an operator does beside running it."""

import sys
from collections.abc import Sequence

from twisted.application.service import ServiceMaker
from twisted.scripts.twistd import ServerOptions, runApp  # type: ignore[attr-defined]

from chutes_autopilot.cli.keygen import keygen

SERVICE = ServiceMaker("Chutes AutoPilot", "chutes_autopilot.tap", "Run the gateway", "chutes-autopilot")

COMMANDS = "run, doctor, selftest, keygen, record and replay"


class Foreground(ServerOptions):
    """twistd's options with our service as the only command: this one does not depend on plugins being found."""

    _getPlugins = staticmethod(lambda _interface: [SERVICE])  # type: ignore[assignment]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the service until a signal ends it, or do what a sub-command says.

    :param arguments: the options after the script's name; those of this process where none are given.
    """
    options = list(sys.argv[1:] if arguments is None else arguments)
    match options:
        case ["keygen", *rest]:
            keygen(rest)
        case ["doctor", *rest]:
            from twisted.internet import reactor

            from chutes_autopilot.cli.doctor import doctor  # with all that the gateway is made of

            doctor(rest, reactor)
        case ["record", *rest]:
            from twisted.internet import reactor

            from chutes_autopilot.cli.record import record

            record(rest, reactor)
        case ["replay", *rest]:
            from chutes_autopilot.cli.replay import replay

            replay(rest)
        case ["selftest", *rest]:
            from twisted.internet import reactor

            from chutes_autopilot.cli.selftest import selftest

            selftest(rest, reactor)
        case ["run", *rest]:
            _run(rest)
        case [word, *_] if not word.startswith("-"):
            print(f"chutes-autopilot: there is no command {word!r}; there are {COMMANDS} (--help tells more)",
                  file=sys.stderr)  # fmt: skip
            raise SystemExit(1)
        case _:
            _run(options)


def _run(options: Sequence[str]) -> None:
    twistd = Foreground()
    twistd.parseOptions(["--nodaemon", "chutes-autopilot", *options])
    runApp(twistd)
