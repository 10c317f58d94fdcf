"""The environment in, Settings out, and back into lines that an operator can read."""

from collections.abc import Callable, Collection, Iterator, Mapping
from ssl import PROTOCOL_TLS_CLIENT, SSLContext, SSLError
from typing import Any

from chutes_autopilot.policy.alias_file import AliasFile, read_alias_file
from chutes_autopilot.settings.chutes import CHUTES_SETTINGS
from chutes_autopilot.settings.explorer import EXPLORER_SETTINGS
from chutes_autopilot.settings.gateway import GATEWAY_SETTINGS
from chutes_autopilot.settings.parsing import available_cores
from chutes_autopilot.settings.resilience import PROFILE, RESILIENCE_SETTINGS
from chutes_autopilot.settings.tracing import TRACING_SETTINGS
from chutes_autopilot.settings.values import Setting, Settings, SettingsError

MASK = "********"

_POLLED = (
    ("models_refresh", "readyz_max_allowlist_age"),
    ("utilization_refresh", "readyz_max_snapshot_age"),
)
"""How often a source is asked, and how old what it said may be."""

_LATEST_POLL = 1.1
"""Intervals: polls are that far apart at the most (control.periodic), their own time not counted."""

LEAST_REFRESH = 1.0
"""Seconds between two fetches of a feed, below which a warning is due."""

_TOLD_OF = frozenset({"HTTPS_PROXY"})
_MOST_STRANGERS = 20

_PER_SECOND = {"ms": 1000, "min": 1 / 60}

SETTINGS: tuple[Setting, ...] = (
    *GATEWAY_SETTINGS,
    *RESILIENCE_SETTINGS,
    *CHUTES_SETTINGS,
    *EXPLORER_SETTINGS,
    *TRACING_SETTINGS,
)
"""Every setting, in the order of the documentation."""


def read_settings(
    environ: Mapping[str, str], read_file: Callable[[str], str], in_env_file: Collection[str] = ()
) -> Settings:
    """Turn the environment into Settings before anything else starts, so that a mistake is told at once.

    :param environ: variables by name; unknown ones are ignored, blank ones mean the default.
    :param read_file: the text of a file by its path; may raise OSError or ValueError.
    :param in_env_file: the names in a file that is for settings alone: a stranger there is warned of.
    :raises SettingsError: names every faulty variable.
    """
    values: dict[str, Any] = {}
    faults: dict[str, str] = {}
    resilient = environ.get(PROFILE.name, "").strip().lower() == "resilient"
    for setting in SETTINGS:
        given = environ.get(setting.name, "")
        default = setting.resilient if resilient and setting.resilient is not None else setting.default
        text = (given if setting.secret else given.strip()) if given.strip() else default
        try:
            values[setting.field] = setting.parse(text)
        except ValueError as fault:
            faults[setting.name] = str(fault)

    for setting in filter(lambda setting: setting.secret, SETTINGS):
        try:
            if path := values[f"{setting.field}_file"]:
                values[setting.field] = _secret_in_file(setting, environ, read_file, path)
        except ValueError as fault:
            faults[f"{setting.name}_FILE"] = str(fault)
    try:
        if path := values["ssl_cert_file"]:
            _check_certificates(_content(read_file, path))
    except ValueError as fault:
        faults["SSL_CERT_FILE"] = str(fault)
    try:
        if path := values["aliases_file"]:
            values["aliases_file"] = AliasFile(path, read_alias_file(_content(read_file, path).encode()))
    except ValueError as fault:
        faults["ALIASES_FILE"] = str(fault)
    for name, fault_between in _contradictions(values):
        faults.setdefault(name, fault_between)
    if faults:
        raise SettingsError(tuple(f"{s.name}: {faults[s.name]}" for s in SETTINGS if s.name in faults))
    return Settings(**values, warnings=(*_warnings(environ, values), *_strangers(in_env_file)))


def _secret_in_file(setting: Setting, environ: Mapping[str, str], read_file: Callable[[str], str], path: str) -> Any:
    if environ.get(setting.name, "").strip():
        raise ValueError(f"must not be set together with {setting.name}")
    text = _content(read_file, path).removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError("the file must not be empty")
    return setting.parse(text)


def _contradictions(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings that are legal each for itself and not together; a faulty one is missing from ``values``."""
    if values.get("trust_proxy_headers") and values.get("trusted_proxy_cidrs") == ():
        yield "TRUSTED_PROXY_CIDRS", "must name at least one network where TRUST_PROXY_HEADERS is true"
    if values.get("e2ee_key_source") == "file" and values["e2ee_key_file"] is None:
        yield "E2EE_KEY_FILE", "must be set where E2EE_KEY_SOURCE is file"
    attestation = values.get("chutes_attestation", "off")
    if attestation != "off" and values.get("chutes_transport") == "tls":
        yield "CHUTES_ATTESTATION", "must be off where CHUTES_TRANSPORT is not e2ee"
    if attestation == "quote+tcb" and "chutes_pccs_url" in values and values["chutes_pccs_url"] is None:
        yield "CHUTES_PCCS_URL", "must be set where CHUTES_ATTESTATION is quote+tcb"


def _content(read_file: Callable[[str], str], path: str) -> str:
    try:
        return read_file(path)
    except OSError as error:
        raise ValueError(f"cannot read the file: {error.strerror or type(error).__name__}") from error
    except ValueError as error:
        raise ValueError("must be the path of a readable text file") from error


def _check_certificates(text: str) -> None:
    try:
        # OpenSSL's own judgement: stricter readers refuse authorities that are in use
        SSLContext(PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (SSLError, ValueError) as error:
        raise ValueError("must be a PEM file of certificates, each of them readable") from error


def _warnings(environ: Mapping[str, str], values: Mapping[str, Any]) -> Iterator[str]:
    for name in ("HTTPS_PROXY", "https_proxy"):
        if environ.get(name, "").strip():
            yield f"{name} is set but not supported: connections to Chutes are made directly"
    if values["chutes_enabled"] and not values["chutes_api_key"]:
        yield "CHUTES_API_KEY is not configured: the Chutes route answers 503 chutes_misconfigured"
    if values["chutes_enabled"] and not values["token"] and not values["chutes_allow_anonymous"]:
        yield "TOKEN is not configured: the Chutes route serves direct requests from this machine only"
    if values["redis_url"] is not None and values["client_key_secret"] is None:
        yield "CLIENT_KEY_SECRET is not configured: by REDIS_URL replicas share nothing but nonces"
    if values["workers"] > (there := available_cores()):
        yield f"WORKERS is {values['workers']}, more than the cores this service may use: {there}"
    for refresh, max_age in _POLLED:
        apart = values[refresh] * _LATEST_POLL
        if values[max_age] <= apart:
            yield (
                f"{max_age.upper()}_MS is too short for {refresh.upper()}_MS: /readyz answers 503 between two polls, "
                f"which are up to {apart * 1000:.0f} ms apart"
            )
    for name in ("MODELS_REFRESH_MS", "UTILIZATION_REFRESH_MS"):
        if (interval := values[name.lower().removesuffix("_ms")]) < LEAST_REFRESH:
            yield f"{name} is {interval * 1000:.0f}: the platform is asked oftener than once a second"


def _strangers(names: Collection[str]) -> Iterator[str]:
    """Warnings of names that are no settings, with the nearest one."""
    settings = [setting.name for setting in SETTINGS]
    strangers = [name for name in names if name not in settings and name.upper() not in _TOLD_OF]
    if not strangers:
        return
    from difflib import get_close_matches  # loaded at no start but a mistaken one

    for name in strangers[:_MOST_STRANGERS]:
        near = get_close_matches(name.upper(), settings, 1)
        yield f"{name} in the file of --env-file is no setting" + (f"; is {near[0]} meant?" if near else "")
    if len(strangers) > _MOST_STRANGERS:
        yield f"--env-file names {len(strangers) - _MOST_STRANGERS} more that are no settings"


def describe(settings: Settings) -> tuple[str, ...]:
    """The effective settings as ``NAME=value`` lines, secrets masked, for ``--check-config``."""

    def line(setting: Setting) -> str:
        value = getattr(settings, setting.field)
        return f"{setting.name}={MASK if setting.secret and value else _text_of(value, setting.unit)}"

    return tuple(map(line, SETTINGS))


def _text_of(value: Any, unit: str) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case tuple():
            return ",".join(map(str, value))
        case float() if unit == "ratio":
            return str(value)
        case float():
            return str(round(value * _PER_SECOND.get(unit, 1)))
    return str(value)
