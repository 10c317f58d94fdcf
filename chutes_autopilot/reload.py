"""SIGHUP: what changed in the env file or in ALIASES_FILE takes effect without a restart, as far as it can."""

from collections.abc import Callable
from functools import partial

import attrs
from twisted.logger import Logger, LogLevel

from chutes_autopilot.policy.alias_file import AliasFile
from chutes_autopilot.settings import SETTINGS, Settings, SettingsError
from chutes_autopilot.settings.chutes import CHUTES_SETTINGS
from chutes_autopilot.settings.explorer import EXPLORER_SETTINGS
from chutes_autopilot.settings.tracing import TRACING_SETTINGS
from chutes_autopilot.settings.values import Setting

NEEDS_RESTART = frozenset(
    {
        "listen_addr",
        "workers",
        "backend_base_url",
        "embeddings_base_url",
        "models_url",
        "models_refresh",
        "utilization_url",
        "utilization_refresh",
        "client_key_secret",
        "client_key_secret_file",
        "redis_url",
        "redis_url_file",
        "log_format",
        "ssl_cert_file",
        *(setting.field for setting in (*CHUTES_SETTINGS, *EXPLORER_SETTINGS, *TRACING_SETTINGS)),
    }
)
"""Fields of Settings that are read once, at the start."""

NEEDS_RESTART_WITH_WORKERS = NEEDS_RESTART | {"sticky_max_entries"}
"""The same where there are several workers: the memory that they share keeps its size."""

_log = Logger()


@attrs.define(eq=False)
class Reload:
    """Reads the settings again, and aliases, and applies them; faulty ones are refused whole, those in force stay.

    :param settings: in force.
    :param read: gives the settings anew, or raises SettingsError; None where there is no file to read.
    :param apply: puts settings into force; heeds no field that needs a restart.
    """

    settings: Settings
    read: Callable[[], Settings] | None
    apply: Callable[[Settings], None]

    def __call__(self, reason: str) -> None:
        """Do it, and say in the log what came of it.

        :param reason: what asked for it: the name of the signal.
        """
        if self.read is None:
            _log.warn("{reason} ignored: there is no --env-file and no ALIASES_FILE to read again", reason=reason)
            return
        try:
            new = self.read()
        except SettingsError as error:
            _log.error(
                "{reason}: the settings stay as they were: {faults}", reason=reason, faults="; ".join(error.faults)
            )
            return
        fixed = NEEDS_RESTART if self.settings.workers == 1 else NEEDS_RESTART_WITH_WORKERS
        changed = [s for s in SETTINGS if getattr(new, s.field) != getattr(self.settings, s.field)]
        later = [s.name for s in changed if s.field in fixed]
        now = [self._told(s, new) for s in changed if s.field not in fixed]
        said = partial(
            _log.info, "{reason}: settings changed: {changed}", reason=reason, changed=", ".join(now) or "none"
        )
        quieter = LogLevel.levelWithName(new.log_level) > LogLevel.levelWithName(self.settings.log_level)
        self.settings = attrs.evolve(new, **{field: getattr(self.settings, field) for field in fixed})
        if quieter:  # afterwards the log would not show that it shows less
            said()
        self.apply(self.settings)
        if not quieter:
            said()
        if later:
            _log.warn("{reason}: changed, but it needs a restart: {changed}", reason=reason, changed=", ".join(later))

    def _told(self, setting: Setting, new: Settings) -> str:
        """A changed setting's name, and whether it is only the file it names that says something else."""
        values = (getattr(self.settings, setting.field), getattr(new, setting.field))
        files = [value.path for value in values if isinstance(value, AliasFile)]
        return f"{setting.name} (content)" if len(files) == 2 and files[0] == files[1] else setting.name
