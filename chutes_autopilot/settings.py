"""What an operator may set: one table of settings, read from the environment into one immutable value."""

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from ssl import PROTOCOL_TLS_CLIENT, SSLContext, SSLError
from typing import Any, Literal
from urllib.parse import urlsplit

import attrs

from chutes_autopilot.policy.client_address import parse_cidrs

DAY_MS = 86_400_000
MAX_MS = 7 * DAY_MS
MASK = "********"

BACKLOG = 1024
"""How many connections may wait to be accepted on LISTEN_ADDR."""


class SettingsError(Exception):
    """Raised once for everything that is wrong, so that an operator mends all of it in one go.

    :param faults: one line for each fault: the variable (or line number) and what is allowed; never a secret.
    """

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@attrs.frozen
class Setting:
    """One row of the settings table; parsing, ``--check-config`` and the documentation all come from it.

    :param name: the environment variable.
    :param default: the text that stands for an absent or blank variable.
    :param unit: ``ms``, ``s``, ``bytes``, ``items``, ``entries``, ``attempts``, or the kind of text.
    :param effect: what it does, one sentence for operators.
    :param example: a legal value unlike the default.
    :param parse: text to value; raises ValueError saying what is allowed.
    :param secret: its value is never shown.
    """

    name: str
    default: str
    unit: str
    effect: str
    example: str
    parse: Callable[[str], Any] = attrs.field(repr=False)
    secret: bool = False

    @property
    def field(self) -> str:
        """The attribute of Settings that holds the value; times lose their unit because inside they are seconds."""
        return self.name.lower().removesuffix("_ms").removesuffix("_secs")


@attrs.frozen
class Settings:
    """Every setting, checked; only the composition root gets the whole. Times are float seconds.

    ``client_key_secret`` is None where none was given, and comes from the file where CLIENT_KEY_SECRET_FILE was;
    ``warnings`` are for the log: things that are legal and yet surely not meant.
    """

    listen_addr: str
    backend_base_url: str
    models_url: str
    models_refresh: float
    utilization_url: str
    utilization_refresh: float
    control_plane_timeout: float
    readyz_max_snapshot_age: float
    readyz_max_allowlist_age: float
    upstream_connect_timeout: float
    upstream_header_timeout: float
    upstream_first_body_byte_timeout: float
    upstream_nonstream_header_timeout: float
    sticky_ttl: float
    sticky_max_entries: int
    sticky_failback: float
    client_key_secret: bytes | None = attrs.field(repr=False)
    client_key_secret_file: str | None
    trust_proxy_headers: bool
    trusted_proxy_cidrs: tuple[IPv4Network | IPv6Network, ...]
    max_request_bytes: int
    max_model_list_items: int
    max_failover_attempts: int
    request_deadline: float
    unknown_models: Literal["refuse", "pass"]
    client_header_timeout: float
    client_body_timeout: float
    client_idle_timeout: float
    client_write_stall_timeout: float
    stream_idle_timeout: float
    max_connections: int
    max_inflight_requests: int
    shutdown_grace: float
    log_level: Literal["debug", "info", "warn", "error"]
    log_format: Literal["text", "json"]
    ssl_cert_file: str | None
    warnings: tuple[str, ...] = ()

    @property
    def listen_endpoint(self) -> str:
        """LISTEN_ADDR as a Twisted server endpoint string, its colons escaped."""
        host, _, port = self.listen_addr.rpartition(":")
        interface = host.strip("[]").replace(":", r"\:")
        return f"tcp:{port}:backlog={BACKLOG}:interface={interface}"


def _integer(unit: str, highest: int, *, off: bool = False) -> Callable[[str], int]:
    lowest = 0 if off else 1

    def parse(text: str) -> int:
        if re.fullmatch("[0-9]{1,20}", text) and lowest <= int(text) <= highest:
            return int(text)
        zero = " (0 turns it off)" if off else ""
        raise ValueError(f"must be a whole number of {unit} from {lowest} to {highest}{zero}, not {_quoted(text)}")

    return parse


def _milliseconds(*, off: bool = False) -> Callable[[str], float]:
    parse = _integer("milliseconds", MAX_MS, off=off)
    return lambda text: parse(text) / 1000


def _one_of(*allowed: str, **spellings: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        value = spellings.get(text.lower(), text.lower())
        if value not in allowed:
            raise ValueError(f"must be {' or '.join(allowed)}, not {_quoted(text)}")
        return value

    return parse


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"must be 1, true, yes, on, or 0, false, no, off, not {_quoted(text)}")


def _quoted(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:37] + "...")


def _is_host(text: str, *, bracketed: bool) -> bool:
    if bracketed or re.fullmatch("[0-9.]+", text):
        try:
            return ipaddress.ip_address(text).version == (6 if bracketed else 4)
        except ValueError:
            return False
    return re.fullmatch("[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?", text) is not None


def _listen_addr(text: str) -> str:
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    inner = host[1:-1] if bracketed else host
    if not (_is_host(inner, bracketed=bracketed) and re.fullmatch("[0-9]{1,5}", port) and int(port) <= 65535):
        raise ValueError("must be host:port with a port from 0 to 65535, like 0.0.0.0:8080 or [::]:8080")
    return text


def _url(*, query: bool = False, base: bool = False) -> Callable[[str], str]:
    # What was given is not repeated in the message: a URL may hold a password.
    def parse(text: str) -> str:
        if not re.fullmatch(r"[!-\[\]-~]+", text):
            raise ValueError("must be a URL of printable ASCII characters without spaces or backslashes")
        try:
            url = urlsplit(text)
            port = url.port
        except ValueError:
            raise ValueError("must be a URL with a valid host and a port from 1 to 65535") from None
        if url.scheme not in ("http", "https"):
            raise ValueError("must be a URL that starts with http:// or https://")
        if "@" in url.netloc:
            raise ValueError("must be a URL without user name or password")
        if "#" in text or ("?" in text and not query):
            raise ValueError(f"must be a URL without {'fragment' if query else 'query or fragment'}")
        host = url.hostname or ""
        if not _is_host(host, bracketed="[" in url.netloc) or port == 0 or url.netloc.endswith(":"):
            raise ValueError("must be a URL with a valid host and a port from 1 to 65535")
        return text.rstrip("/") if base else text

    return parse


def _key(text: str) -> bytes:
    if len(text) < 16:
        raise ValueError("must have at least 16 characters")
    return text.encode("utf-8", "surrogateescape")


def _secret(text: str) -> bytes | None:
    return _key(text) if text else None


def _path(text: str) -> str | None:
    return text or None


def _cidrs(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return parse_cidrs(text) if text else ()


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "LISTEN_ADDR",
        "0.0.0.0:8080",
        "host:port",
        "Address to listen on where no --endpoint is given; port 0 takes a free one.",
        "[::]:8443",
        _listen_addr,
    ),
    Setting(
        "BACKEND_BASE_URL",
        "https://llm.chutes.ai",
        "URL",
        "Where requests go; a path prefix is kept.",
        "https://llm.example.org/prefix",
        _url(base=True),
    ),
    Setting(
        "MODELS_URL",
        "https://llm.chutes.ai/v1/models",
        "URL",
        "The catalog: its ids are the allowlist.",
        "https://llm.example.org/v1/models",
        _url(query=True),
    ),
    Setting(
        "MODELS_REFRESH_MS",
        "300000",
        "ms",
        "How often the catalog is fetched.",
        "60000",
        _milliseconds(),
    ),
    Setting(
        "UTILIZATION_URL",
        "https://api.chutes.ai/chutes/utilization",
        "URL",
        "The live feed that models are ranked by.",
        "https://api.example.org/chutes/utilization",
        _url(query=True),
    ),
    Setting(
        "UTILIZATION_REFRESH_MS",
        "5000",
        "ms",
        "How often the live feed is fetched.",
        "15000",
        _milliseconds(),
    ),
    Setting(
        "CONTROL_PLANE_TIMEOUT_MS",
        "10000",
        "ms",
        "Time for one whole fetch of catalog or feed, body included.",
        "20000",
        _milliseconds(),
    ),
    Setting(
        "READYZ_MAX_SNAPSHOT_AGE_MS",
        "20000",
        "ms",
        "A ranking older than this makes /readyz answer 503; it still routes.",
        "60000",
        _milliseconds(),
    ),
    Setting(
        "READYZ_MAX_ALLOWLIST_AGE_MS",
        "600000",
        "ms",
        "A catalog older than this makes /readyz answer 503; it still routes.",
        "900000",
        _milliseconds(),
    ),
    Setting(
        "UPSTREAM_CONNECT_TIMEOUT_MS",
        "2000",
        "ms",
        "Time for a new upstream connection, from the name look-up to the end of the TLS handshake.",
        "5000",
        _milliseconds(),
    ),
    Setting(
        "UPSTREAM_HEADER_TIMEOUT_MS",
        "10000",
        "ms",
        "Time from the last request byte to the response head; for streaming while another candidate remains.",
        "5000",
        _milliseconds(),
    ),
    Setting(
        "UPSTREAM_FIRST_BODY_BYTE_TIMEOUT_MS",
        "120000",
        "ms",
        "Time from the response head to the first body byte; also the last candidate's time for its head.",
        "60000",
        _milliseconds(),
    ),
    Setting(
        "UPSTREAM_NONSTREAM_HEADER_TIMEOUT_MS",
        "600000",
        "ms",
        "Time to the response head of a request that does not stream: the head comes only with the whole answer.",
        "300000",
        _milliseconds(),
    ),
    Setting(
        "STICKY_TTL_SECS",
        "1800",
        "s",
        "How long a client keeps its model after the last success; 0 turns stickiness off.",
        "600",
        lambda text: float(_integer("seconds", 2_592_000, off=True)(text)),
    ),
    Setting(
        "STICKY_MAX_ENTRIES",
        "10000",
        "entries",
        "How many clients are remembered, the least recently seen forgotten first; 0 turns stickiness off.",
        "100000",
        _integer("entries", 10_000_000, off=True),
    ),
    Setting(
        "STICKY_FAILBACK_MS",
        "30000",
        "ms",
        "How long after its last failure the preferred model is tried first again; 0 turns failing back off.",
        "120000",
        _milliseconds(off=True),
    ),
    Setting(
        "CLIENT_KEY_SECRET",
        "",
        "text",
        "Key of the hash that tells clients apart, at least 16 characters; without one it is random per process.",
        "replace-me-with-32-random-characters",
        _secret,
        secret=True,
    ),
    Setting(
        "CLIENT_KEY_SECRET_FILE",
        "",
        "path",
        "A file that holds CLIENT_KEY_SECRET, in its place; a final newline does not count.",
        "/run/secrets/client_key_secret",
        _path,
    ),
    Setting(
        "TRUST_PROXY_HEADERS",
        "false",
        "boolean",
        "Take the client address from X-Forwarded-For where the peer is one of TRUSTED_PROXY_CIDRS.",
        "true",
        _boolean,
    ),
    Setting(
        "TRUSTED_PROXY_CIDRS",
        "",
        "networks",
        "Proxies whose X-Forwarded-For is believed, by commas or spaces; required with TRUST_PROXY_HEADERS.",
        "10.0.0.0/8, fd00::/8",
        _cidrs,
    ),
    Setting(
        "MAX_REQUEST_BYTES",
        "1048576",
        "bytes",
        "Largest request body; images in messages need about 4/3 of their size.",
        "33554432",
        _integer("bytes", 1_073_741_824),
    ),
    Setting(
        "MAX_MODEL_LIST_ITEMS",
        "8",
        "items",
        "Most models a comma-separated model may name.",
        "16",
        _integer("items", 1000),
    ),
    Setting(
        "MAX_FAILOVER_ATTEMPTS",
        "8",
        "attempts",
        "Most upstream attempts for one request.",
        "3",
        _integer("attempts", 1000),
    ),
    Setting(
        "REQUEST_DEADLINE_MS",
        "600000",
        "ms",
        "Time a request has until an answer is committed, over all its attempts.",
        "300000",
        _milliseconds(),
    ),
    Setting(
        "UNKNOWN_MODELS",
        "refuse",
        "refuse or pass",
        "What happens to a model that is not in the catalog: 400, or passed on as it is.",
        "pass",
        _one_of("refuse", "pass"),
    ),
    Setting(
        "CLIENT_HEADER_TIMEOUT_MS",
        "30000",
        "ms",
        "Time a client has to send a whole request head.",
        "10000",
        _milliseconds(),
    ),
    Setting(
        "CLIENT_BODY_TIMEOUT_MS",
        "60000",
        "ms",
        "Time a client has to send a whole request body, from the end of the head.",
        "120000",
        _milliseconds(),
    ),
    Setting(
        "CLIENT_IDLE_TIMEOUT_MS",
        "75000",
        "ms",
        "How long a client's connection is kept open without a request.",
        "300000",
        _milliseconds(),
    ),
    Setting(
        "CLIENT_WRITE_STALL_TIMEOUT_MS",
        "60000",
        "ms",
        "How long a client may take none of an answer that waits for it before its connection is reset.",
        "30000",
        _milliseconds(),
    ),
    Setting(
        "STREAM_IDLE_TIMEOUT_MS",
        "60000",
        "ms",
        "Longest pause between two data events of a stream, comments not counted, before it is cut.",
        "300000",
        _milliseconds(),
    ),
    Setting(
        "MAX_CONNECTIONS",
        "10000",
        "connections",
        "Most client connections at once; never more than 80% of the file descriptors the process may have.",
        "500",
        _integer("connections", 1_000_000),
    ),
    Setting(
        "MAX_INFLIGHT_REQUESTS",
        "2000",
        "requests",
        "Most chat requests at once; further ones get 503 overloaded with Retry-After: 1.",
        "200",
        _integer("requests", 1_000_000),
    ),
    Setting(
        "SHUTDOWN_GRACE_MS",
        "30000",
        "ms",
        "Time streams in flight have to end after SIGTERM.",
        "120000",
        _milliseconds(),
    ),
    Setting(
        "LOG_LEVEL",
        "info",
        "debug, info, warn or error",
        "The least severe events that are logged.",
        "debug",
        _one_of("debug", "info", "warn", "error", warning="warn"),
    ),
    Setting(
        "LOG_FORMAT",
        "text",
        "text or json",
        "Lines for people, or one JSON object a line.",
        "json",
        _one_of("text", "json"),
    ),
    Setting(
        "SSL_CERT_FILE",
        "",
        "path",
        "PEM file of the authorities that upstream certificates are checked against; without one, the system's.",
        "/etc/ssl/private-ca.pem",
        _path,
    ),
)
"""Every setting, in the order of the documentation."""


def read_settings(environ: Mapping[str, str], read_file: Callable[[str], str]) -> Settings:
    """Turn the environment into Settings before anything else starts, so that a mistake is told at once.

    :param environ: variables by name; unknown ones are ignored, blank ones mean the default.
    :param read_file: the text of a file by its path; may raise OSError or ValueError.
    :raises SettingsError: names every faulty variable.
    """
    values: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for setting in SETTINGS:
        given = environ.get(setting.name, "")
        text = (given if setting.secret else given.strip()) if given.strip() else setting.default
        try:
            values[setting.field] = setting.parse(text)
        except ValueError as fault:
            faults[setting.name] = str(fault)

    try:
        if path := values["client_key_secret_file"]:
            if environ.get("CLIENT_KEY_SECRET", "").strip():
                raise ValueError("must not be set together with CLIENT_KEY_SECRET")
            values["client_key_secret"] = _key(_content(read_file, path).removesuffix("\n").removesuffix("\r"))
    except ValueError as fault:
        faults["CLIENT_KEY_SECRET_FILE"] = str(fault)
    try:
        if path := values["ssl_cert_file"]:
            _check_certificates(_content(read_file, path))
    except ValueError as fault:
        faults["SSL_CERT_FILE"] = str(fault)
    if values.get("trust_proxy_headers") and values.get("trusted_proxy_cidrs") == ():
        faults["TRUSTED_PROXY_CIDRS"] = "must name at least one network where TRUST_PROXY_HEADERS is true"
    if faults:
        raise SettingsError(tuple(f"{s.name}: {faults[s.name]}" for s in SETTINGS if s.name in faults))
    return Settings(**values, warnings=tuple(_warnings(environ)))


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


def _warnings(environ: Mapping[str, str]) -> Iterator[str]:
    for name in ("HTTPS_PROXY", "https_proxy"):
        if environ.get(name, "").strip():
            yield f"{name} is set but not supported: connections to Chutes are made directly"


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
        case float():
            return str(round(value * 1000 if unit == "ms" else value))
    return str(value)


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
