"""What a check says: how bad it is, what was seen, and what to do about it."""

from collections.abc import Iterable, Iterator
from typing import Literal

import attrs

Level = Literal["ok", "warn", "fail"]


@attrs.frozen
class Finding:
    """One line of the report. None of its texts holds a secret.

    :param level: ``fail``: the gateway, or a part of it that is switched on, will not work.
    :param check: what kind of check: a word that stays the same.
    :param subject: what was looked at: a host, a setting, a feed.
    :param message: what was seen.
    :param advice: what to do; empty only where all is well.
    """

    level: Level
    check: str
    subject: str
    message: str
    advice: str = ""


def ok(check: str, subject: str, message: str) -> Finding:
    """All is well."""
    return Finding("ok", check, subject, message)


def warn(check: str, subject: str, message: str, advice: str) -> Finding:
    """It works, but not as it should, or not for long."""
    return Finding("warn", check, subject, message, advice)


def fail(check: str, subject: str, message: str, advice: str) -> Finding:
    """It does not work."""
    return Finding("fail", check, subject, message, advice)


def counts(findings: Iterable[Finding]) -> dict[Level, int]:
    """How many findings there are of each level."""
    result: dict[Level, int] = {"ok": 0, "warn": 0, "fail": 0}
    for finding in findings:
        result[finding.level] += 1
    return result


def lines(findings: Iterable[Finding]) -> Iterator[str]:
    """The report for people."""
    for finding in findings:
        mark = finding.level if finding.level != "fail" else "FAIL"
        yield f"{mark:<4}  {finding.check} {finding.subject}: {finding.message}"
        if finding.advice:
            yield f"      -> {finding.advice}"
