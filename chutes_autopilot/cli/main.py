"""The console script: ``chutes-autopilot [run]`` is ``twistd -n chutes-autopilot`` for those who do not know twistd,
and ``chutes-autopilot keygen`` makes a key file."""

import sys
from collections.abc import Sequence

from twisted.application.service import ServiceMaker
from twisted.scripts.twistd import ServerOptions, runApp  # type: ignore[attr-defined]

from chutes_autopilot.cli.keygen import keygen

SERVICE = ServiceMaker("Chutes AutoPilot", "chutes_autopilot.tap", "Run the gateway", "chutes-autopilot")


class Foreground(ServerOptions):
    """twistd's options with our service as the only command: this one does not depend on plugins being found."""

    _getPlugins = staticmethod(lambda _interface: [SERVICE])  # type: ignore[assignment]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the service until a signal ends it, or do what a sub-command says.

    :param arguments: the options after the script's name; those of this process where none are given.
    """
    options = list(sys.argv[1:] if arguments is None else arguments)
    if options[:1] == ["keygen"]:
        keygen(options[1:])
        return
    if options[:1] == ["run"]:
        del options[0]
    twistd = Foreground()
    twistd.parseOptions(["--nodaemon", "chutes-autopilot", *options])
    runApp(twistd)
