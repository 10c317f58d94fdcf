"""A file of ``NAME=value`` lines, read without a library."""

import re

from chutes_autopilot.settings.values import SettingsError

_ENV_LINE = re.compile(
    r"""(?:export[ \t]+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*
        (?: '(?P<single>[^']*)' | "(?P<double>(?:[^"\\]|\\.)*)" | (?P<bare>(?!['"]).*?) )
        [ \t]* (?:(?<=[ \t])\#.*)?""",
    re.VERBOSE,
)


def parse_env_file(text: str) -> dict[str, str]:
    r"""Read ``--env-file`` without a library: ``KEY=value`` lines, a later one wins.

    Blank lines, ``# comments`` (also after a value and a space), a leading ``export`` and quotes are understood;
    in double quotes ``\"``, ``\\`` and ``\n`` are escapes, in single quotes nothing is. No value spans lines.

    :raises SettingsError: names the lines that are none of these, never their text.
    """
    values: dict[str, str] = {}
    faults = []
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        parsed = _ENV_LINE.fullmatch(line)
        if parsed is None:
            faults.append(f"line {number}: must be NAME=value, a # comment or blank; quotes must be closed")
            continue
        value = parsed["single"] if parsed["double"] is None else _unescaped(parsed["double"])
        values[parsed["name"]] = parsed["bare"] if value is None else value
    if faults:
        raise SettingsError(tuple(faults))
    return values


def _unescaped(text: str) -> str:
    return re.sub(r'\\([n"\\])', lambda escape: "\n" if escape[1] == "n" else escape[1], text)
