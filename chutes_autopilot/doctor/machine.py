"""What of this machine the gateway needs: settings that fit, descriptors, and its own key file."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from chutes_autopilot.descriptors import connection_limit, enough_descriptors, raise_descriptor_limit
from chutes_autopilot.doctor.findings import Finding, fail, ok, warn
from chutes_autopilot.e2ee_keys import read_keys
from chutes_autopilot.explorer_composition import read_webhooks
from chutes_autopilot.extras import missing_extras
from chutes_autopilot.pinned_measurements import pinned_measurements
from chutes_autopilot.settings import SETTINGS, Settings, SettingsError, describe, read_settings
from chutes_autopilot.workers.link import share_of

PROCESS_MIB = 45
"""What one process of several has for itself alone when it is idle (docs/scaling.md)."""

_SOON = 86_400.0
_REFUSED = "the gateway does not start like this"
_ADVICE = {
    "CLIENT_KEY_SECRET": "give every replica the same (openssl rand -hex 32)",
    "CHUTES_API_KEY": "set it, or CHUTES_API_KEY_FILE",
    "READYZ_MAX_SNAPSHOT_AGE_MS": "set it to four times UTILIZATION_REFRESH_MS",
    "READYZ_MAX_ALLOWLIST_AGE_MS": "set it to twice MODELS_REFRESH_MS",
    "WORKERS": "more make nothing faster: set it to auto",
    "TOKEN": "set it, or TOKEN_FILE, where others than this machine are to be served",
}
"""What to do about the warnings of the start."""


def changed_settings(settings: Settings) -> tuple[str, ...]:
    """The settings that differ from their defaults, as ``NAME=value`` lines, secrets masked."""
    defaults = describe(read_settings({}, lambda path: ""))
    return tuple(line for line, default in zip(describe(settings), defaults, strict=True) if line != default)


def effective_settings(settings: Settings) -> Mapping[str, str]:
    """Every setting in force, secrets masked."""
    return dict(line.split("=", 1) for line in describe(settings))


def check_settings(settings: Settings) -> Iterator[Finding]:
    """What is legal, and yet will not do."""
    changed = len(changed_settings(settings))
    yield ok("settings", "values", f"valid; {changed} of {len(SETTINGS)} differ from their defaults")
    for warning in settings.warnings:
        name, _, rest = warning.partition(" ")
        yield warn("settings", name, rest, _ADVICE.get(name, "see the settings in the README"))
    for variable, extra in missing_extras(settings):
        advice = f"pip install 'chutes-autopilot[{extra}]'"
        yield fail("settings", variable, f"the extra {extra} is not installed", advice)
    if settings.webhooks_file is not None and settings.explorer_enabled:
        try:
            receivers = len(read_webhooks(settings.webhooks_file))
        except SettingsError as error:
            for fault in error.faults:
                yield fail("settings", "WEBHOOKS_FILE", fault.removeprefix("WEBHOOKS_FILE: "), _REFUSED)
        else:
            yield ok("settings", "WEBHOOKS_FILE", f"{receivers} receivers")
    if settings.chutes_enabled:
        yield from _check_measurements(settings)


def _check_measurements(settings: Settings) -> Iterator[Finding]:
    name = "CHUTES_TDX_MEASUREMENTS"
    try:
        pinned = pinned_measurements(settings)
    except SettingsError as error:
        yield fail("settings", name, error.faults[0].removeprefix(f"{name}: "), _REFUSED)
        return
    if pinned is not None:
        yield ok("settings", name, f"{len(pinned.entries)} measurements")


def check_workers(settings: Settings, endpoints: Sequence[str]) -> Iterator[Finding]:
    """Whether so many processes can share the endpoints, and what they take."""
    workers = settings.workers
    if workers == 1:
        return
    for endpoint in endpoints:
        if endpoint.startswith(("systemd:", "haproxy:systemd:")):
            seen = f"the endpoint {endpoint} cannot be shared by {workers} workers"
            yield fail("limits", "WORKERS", seen, "let the service listen itself, or set WORKERS to 1")
    memory = (workers + 2) * PROCESS_MIB
    yield ok("limits", "WORKERS", f"{workers} workers, a spare one and their parent take {memory} MiB when idle")


def check_descriptors(settings: Settings) -> Finding:
    """Whether the service may have as many connections as MAX_CONNECTIONS says; raises this process's limit to see."""
    one = share_of(settings, settings.workers)
    wanted = enough_descriptors(one.max_connections, one.max_inflight_requests)
    raise_descriptor_limit(wanted)
    limit = min(settings.max_connections, settings.workers * connection_limit(one.max_connections))
    if limit < settings.max_connections:
        advice = f"allow {wanted} open files (ulimit -n, LimitNOFILE, ulimits), or set MAX_CONNECTIONS to {limit}"
        return warn("limits", "MAX_CONNECTIONS", f"only {limit} of {settings.max_connections} connections fit", advice)
    return ok("limits", "MAX_CONNECTIONS", f"{limit} connections fit")


def check_key_file(settings: Settings, now: float) -> Iterator[Finding]:
    """Whether E2EE_KEY_FILE can be used, where it counts.

    :param now: Unix time.
    """
    path = settings.e2ee_key_file
    if not path or settings.e2ee_key_source not in ("auto", "file"):
        return
    try:
        keys = read_keys(path)
    except SettingsError as error:
        advice = "chutes-autopilot keygen makes one; only its owner may read it"
        yield fail("keys", "E2EE_KEY_FILE", error.faults[0].removeprefix("E2EE_KEY_FILE: "), advice)
        return
    active = [key for key in keys.keys if key.active(now)]
    ends = [key.not_after for key in active if key.not_after is not None]
    if not active:
        advice = "chutes-autopilot keygen --rotate puts new ones into it"
        yield fail("keys", "E2EE_KEY_FILE", "all keys in it are past their time", advice)
    elif len(ends) == len(active) and min(ends) - now < _SOON:
        until = datetime.fromtimestamp(min(ends), UTC).strftime("%Y-%m-%d %H:%M UTC")
        advice = "chutes-autopilot keygen --rotate puts new ones into it"
        yield warn("keys", "E2EE_KEY_FILE", f"no key is left after {until}", advice)
    else:
        yield ok("keys", "E2EE_KEY_FILE", f"{len(active)} keys in force: {', '.join(keys.identity())}")
