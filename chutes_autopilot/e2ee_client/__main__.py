"""``python -m chutes_autopilot.e2ee_client``: the process around a sub-command."""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning

from chutes_autopilot.e2ee_client.commands import Command, Terminal, say_checked
from chutes_autopilot.e2ee_client.gateway import Gateway
from chutes_autopilot.e2ee_client.options import UsageError, authorization, gateway_options, parser, warnings
from chutes_autopilot.e2ee_client.transport import build_agent

INTERRUPTED = 130


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _out(text: str) -> None:
    if sys.stdout.isatty():  # an answer must not move the cursor or rename the window
        text = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    sys.stdout.write(text)
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a sub-command and end the process: 0 all is well, 1 it is not, 2 for wrong usage, 130 interrupted.

    :param arguments: those of this process where none are given.
    """
    from twisted.internet import reactor as running  # noqa: TID251 - this is a process of its own

    reactor: Any = running
    usage = parser()
    options = usage.parse_args(arguments)
    try:
        if options.command == "chat":
            options.prompt = _prompt(options.prompt)
        header = authorization(options, os.environ, _read)
        how = gateway_options(options, _read)
    except UsageError as error:
        usage.error(str(error))
    for warning in warnings(how.base_url):
        _say(warning)
    agent, pool = build_agent(reactor)
    gateway = Gateway(reactor, agent, how, time.time, say_checked(_say))
    command = Command(options, gateway, header, Terminal(_out, _say))
    code = 0 if options.command == "proxy" else INTERRUPTED

    async def run() -> None:
        nonlocal code
        try:
            code = await command.run()
        except Exception as error:  # noqa: BLE001 - its text may hold anything
            _say(f"failed unexpectedly: {type(error).__name__}")
            code = 1
        await pool.closeCachedConnections()
        with suppress(ReactorNotRunning):  # a signal was faster
            reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(run()))
    reactor.run()
    sys.exit(code)


def _prompt(given: str | None) -> str:
    """Read before the reactor runs: while it waits for a terminal no signal would end it."""
    try:
        if given is None:
            return sys.stdin.buffer.read().decode().removesuffix("\n")
        given.encode()
        return given
    except UnicodeError:
        raise UsageError("the prompt is not UTF-8") from None


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


if __name__ == "__main__":
    main()
