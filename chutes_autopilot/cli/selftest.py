"""``chutes-autopilot selftest``: play what goes wrong upstream, with this configuration, and grade what clients get."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from chutes_autopilot import __version__
from chutes_autopilot.cli.environment import ENV_FILE_HELP, command_parser, settings_from
from chutes_autopilot.selftest.bench import Bench, NotReady
from chutes_autopilot.selftest.grades import Grade
from chutes_autopilot.selftest.rehearsal import LONGEST_WAIT, replaced
from chutes_autopilot.selftest.scorecard import as_json, as_text
from chutes_autopilot.settings import Settings, SettingsError

DESCRIPTION = """Starts a gateway with the settings in force and a misbehaving upstream, both in this process and on
loopback, plays the faults that upstreams have, and grades what a client gets: pass, partial, safe (a clear error) or
fail. It calls nobody and touches no file, no Redis and no gateway that is running. Exit code: 0, or 1 where anything
fails."""


def selftest(arguments: Sequence[str], reactor: Any, environ: Mapping[str, str] = os.environ) -> None:
    """Play, print and exit: with 0, with 1 where anything failed, with 2 where the options make no sense."""
    parser = command_parser("selftest", DESCRIPTION)
    parser.add_argument("--env-file", metavar="FILE", help=ENV_FILE_HELP)
    parser.add_argument(
        "--profile",
        choices=("standard", "resilient"),
        help="in place of AUTOPILOT_PROFILE; what is set by itself stays",
    )
    parser.add_argument(
        "--longest-wait",
        type=_seconds,
        default=LONGEST_WAIT,
        metavar="SECONDS",
        help="shorten waiting times that are longer, 0.2 to 10 (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    variables = dict(environ)
    if options.profile is not None:
        variables["AUTOPILOT_PROFILE"] = options.profile
    try:
        settings = settings_from(variables, options.env_file)
    except SettingsError as error:
        lines = ["chutes-autopilot selftest: these settings are not valid:", *error.faults]
        print("\n  ".join(lines), file=sys.stderr)
        raise SystemExit(1) from None

    def play(reactor: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(_play(settings, options, reactor))

    react(play, (), reactor)


async def _play(settings: Settings, options: argparse.Namespace, reactor: Any) -> None:
    began = reactor.seconds()
    bench = Bench(settings, reactor, options.longest_wait)
    try:
        await bench.start()
        scores = await bench.play()
    except NotReady:
        print("chutes-autopilot selftest: the gateway does not get ready", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        await bench.stop()
    report = (scores, settings.autopilot_profile, replaced(settings, bench.in_force), reactor.seconds() - began)
    if options.json:
        print(json.dumps({"version": __version__, **as_json(*report)}, indent=2), flush=True)
    else:
        print(as_text(*report), flush=True)
    raise SystemExit(1 if any(score.verdict.grade is Grade.FAIL for score in scores) else 0)


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.2 <= number <= LONGEST_WAIT:
        raise argparse.ArgumentTypeError(f"must be from 0.2 to {LONGEST_WAIT:g} seconds")
    return number
