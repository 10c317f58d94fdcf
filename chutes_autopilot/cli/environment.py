"""The settings for sub-commands that run beside the gateway: read as the gateway reads them."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from chutes_autopilot import __version__
from chutes_autopilot.settings import Settings, SettingsError, parse_env_file, read_settings

ENV_FILE_HELP = "read settings from this file of NAME=value lines; the environment wins over it"


def settings_from(environ: Mapping[str, str], env_file: str | None) -> Settings:
    """The settings in force.

    :raises SettingsError: also where the file cannot be read.
    """
    in_file: Mapping[str, str] = {}
    if env_file is not None:
        try:
            in_file = parse_env_file(read_text(env_file))
        except OSError as error:
            raise SettingsError((f"cannot read the file given by --env-file: {error.strerror}",)) from error
    return read_settings({**in_file, **environ}, read_text, tuple(in_file))


def read_text(path: str) -> str:
    """A file's text, whatever its bytes."""
    return Path(path).read_text("utf-8", "surrogateescape")


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """What the parsers of all sub-commands share."""
    parser = argparse.ArgumentParser(f"chutes-autopilot {name}", description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"chutes-autopilot {__version__}")
    return parser


def positive(text: str) -> float:
    """A number above 0, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1e9:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return number
