"""What an operator may set: one table of settings, read from the environment into one immutable value."""

from chutes_autopilot.settings.env_file import parse_env_file
from chutes_autopilot.settings.reading import SETTINGS, describe, read_settings
from chutes_autopilot.settings.values import BACKLOG, Setting, Settings, SettingsError

__all__ = [
    "BACKLOG",
    "SETTINGS",
    "Setting",
    "Settings",
    "SettingsError",
    "describe",
    "parse_env_file",
    "read_settings",
]
