"""``chutes-autopilot doctor``: look for what keeps this configuration from working, and say what to do about it."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from chutes_autopilot import __version__
from chutes_autopilot.cli.environment import ENV_FILE_HELP, command_parser, positive, read_text, settings_from
from chutes_autopilot.doctor.diagnosis import Diagnosis
from chutes_autopilot.doctor.findings import Finding, counts, fail, lines
from chutes_autopilot.doctor.key import key_in
from chutes_autopilot.doctor.machine import changed_settings, effective_settings
from chutes_autopilot.settings import SETTINGS, Settings, SettingsError

DESCRIPTION = """Looks at names, certificates, catalog and utilization, aliases and other rules of routing, the key, the
clock, Redis, the key file and the endpoints, with the settings that the gateway would have. It sends no prompt and
changes nothing. Exit code: 0, or 1 where anything fails; warnings do not."""


def doctor(arguments: Sequence[str], reactor: Any, environ: Mapping[str, str] = os.environ) -> None:
    """Examine, print and exit: with 0, with 1 where anything failed, with 2 where the options make no sense."""
    parser = command_parser("doctor", DESCRIPTION)
    parser.add_argument("--demo", action="store_true", help="look at the demo mode: no key, no network")
    parser.add_argument("--env-file", metavar="FILE", help=ENV_FILE_HELP)
    parser.add_argument(
        "--endpoint", action="append", metavar="ENDPOINT", help="where the gateway listens, in place of LISTEN_ADDR"
    )
    parser.add_argument("--key-file", metavar="FILE", help="a file with the platform's key, in place of CHUTES_API_KEY")
    parser.add_argument(
        "--timeout", type=positive, default=20.0, metavar="SECONDS", help="for everything (default: %(default)g)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)

    def examine(reactor: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(_examine(options, reactor, environ))

    react(examine, (), reactor)


async def _examine(options: Any, reactor: Any, environ: Mapping[str, str]) -> None:
    settings, key, findings = None, None, []
    try:
        settings = settings_from(environ, options.env_file)
        key = settings.chutes_api_key
    except SettingsError as error:
        findings += [_faulty(fault) for fault in error.faults]
    if options.key_file is not None:
        found = key_in(options.key_file, read_text)
        if isinstance(found, Finding):
            findings.append(found)
        else:
            key = found
    if settings is not None:
        endpoints = options.endpoint or [settings.listen_endpoint]
        if settings.admin_endpoint:
            endpoints = [*endpoints, settings.admin_endpoint]
        diagnosis = Diagnosis(settings, endpoints, reactor, key, options.timeout)
        findings += await diagnosis.findings(demo=options.demo)
    print(_as_json(findings, settings) if options.json else _as_text(findings, settings), flush=True)
    raise SystemExit(1 if counts(findings)["fail"] else 0)


def _faulty(fault: str) -> Finding:
    name, colon, rest = fault.partition(": ")
    if not colon:
        return fail("settings", "file", fault, "the gateway does not start like this")
    return fail("settings", name, rest, "the gateway does not start like this")


def _as_json(findings: Sequence[Finding], settings: Settings | None) -> str:
    report = {
        "version": __version__,
        "summary": counts(findings),
        "findings": [
            {
                "level": finding.level,
                "check": finding.check,
                "subject": finding.subject,
                "message": finding.message,
                "advice": finding.advice,
            }
            for finding in findings
        ],
        "settings": None if settings is None else effective_settings(settings),
    }
    return json.dumps(report, indent=2)


def _as_text(findings: Sequence[Finding], settings: Settings | None) -> str:
    summary = counts(findings)
    text = [*lines(findings), "", f"{summary['fail']} failed, {summary['warn']} warnings, {summary['ok']} ok"]
    if settings is not None:
        changed = changed_settings(settings)
        rest = len(SETTINGS) - len(changed)
        text += ["", "Settings in force:", *(f"  {line}" for line in changed)]
        text += [f"  {rest} more at their defaults (--json or --check-config show all)"]
    return "\n".join(text)
