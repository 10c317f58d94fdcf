"""Settings are read from text into checked values, and every mistake is told at once without telling secrets."""

from ipaddress import ip_network

import attrs
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.settings import (
    SETTINGS,
    Setting,
    Settings,
    SettingsError,
    describe,
    parse_env_file,
    read_settings,
)
from chutes_autopilot.settings.redis_url import RedisServer

PEM = trustme.CA().cert_pem.bytes().decode()
SECRET = "a-secret-of-more-than-16"
SECRETS = {
    "CLIENT_KEY_SECRET": SECRET,
    "CHUTES_API_KEY": "cpk_hunter2",
    "TOKEN": "hunter2,hunter3",
    "REDIS_URL": "redis://me:hunter2@example.org:6380/1",
    "ADMIN_TOKEN": "hunter4",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20hunter5,x-two=hunter6",
}


def read(environ: dict[str, str], files: dict[str, str] | None = None) -> Settings:
    def read_file(path: str) -> str:
        if "\0" in path:
            raise ValueError("embedded null byte")
        try:
            return (files or {})[path]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory", path) from None

    return read_settings(environ, read_file)


def faults(environ: dict[str, str], files: dict[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        read(environ, files)
    return caught.value.faults


def test_the_defaults_are_the_documented_ones() -> None:
    """An empty environment gives the defaults, times in seconds."""
    assert attrs.asdict(read({})) == {
        "listen_addr": "0.0.0.0:8080",
        "workers": 1,
        "backend_base_url": "https://llm.chutes.ai",
        "embeddings_base_url": None,
        "models_url": "https://llm.chutes.ai/v1/models",
        "models_refresh": 300.0,
        "utilization_url": "https://api.chutes.ai/chutes/utilization",
        "utilization_refresh": 5.0,
        "control_plane_timeout": 10.0,
        "readyz_max_snapshot_age": 20.0,
        "readyz_max_allowlist_age": 600.0,
        "upstream_connect_timeout": 2.0,
        "upstream_header_timeout": 10.0,
        "upstream_first_body_byte_timeout": 120.0,
        "upstream_nonstream_header_timeout": 600.0,
        "sticky_ttl": 1800.0,
        "sticky_max_entries": 10000,
        "sticky_failback": 30.0,
        "client_key_secret": None,
        "client_key_secret_file": None,
        "trust_proxy_headers": False,
        "trusted_proxy_cidrs": (),
        "max_request_bytes": 1048576,
        "max_model_list_items": 8,
        "max_failover_attempts": 8,
        "request_deadline": 600.0,
        "unknown_models": "refuse",
        "aliases_file": None,
        "autopilot_require_tee": False,
        "autopilot_spread": "off",
        "ban_fuse": True,
        "cooldown_failures": 3,
        "cooldown": 10.0,
        "client_header_timeout": 30.0,
        "client_body_timeout": 60.0,
        "client_idle_timeout": 75.0,
        "client_write_stall_timeout": 60.0,
        "stream_idle_timeout": 60.0,
        "stream_continue": False,
        "max_connections": 10000,
        "max_inflight_requests": 2000,
        "max_buffered_request_bytes": 268435456,
        "shutdown_grace": 30.0,
        "log_level": "info",
        "log_format": "text",
        "ssl_cert_file": None,
        "autopilot_profile": "standard",
        "first_event_commit": False,
        "first_event_timeout": 10.0,
        "server_error_failover": False,
        "same_model_retries": 0,
        "context_length_failover": False,
        "rate_limit_retry": False,
        "retry_after_max": 5.0,
        "hedge": False,
        "chutes_enabled": False,
        "chutes_base_url": "https://llm.chutes.ai",
        "chutes_api_key": None,
        "chutes_api_key_file": None,
        "chutes_transport": "tls",
        "token": (),
        "token_file": None,
        "chutes_allow_anonymous": False,
        "e2ee_require": False,
        "e2ee_allow_v1": True,
        "e2ee_strict": False,
        "e2ee_uncovered_fields": "reject",
        "e2ee_replay_window": 300,
        "e2ee_replay_skew": 30,
        "e2ee_replay_max_entries": 100000,
        "redis_url": None,
        "redis_url_file": None,
        "e2ee_redis_timeout": 0.25,
        "e2ee_max_fields": 256,
        "e2ee_max_event_bytes": 1048576,
        "e2ee_max_response_bytes": 33554432,
        "e2ee_stream_coalesce": 0.0,
        "e2ee_key_source": "auto",
        "e2ee_key_file": None,
        "e2ee_key_generation": 1,
        "e2ee_previous_key_until": 0,
        "e2ee_attestation": "auto",
        "dstack_simulator_endpoint": None,
        "dstack_agent_timeout": 10.0,
        "chat_cache_expiration": 1200.0,
        "signature_max_entries": 10000,
        "e2ee_trust_request_hash": False,
        "chutes_api_base_url": "https://api.chutes.ai",
        "chutes_e2ee_discovery_rpm": 6,
        "chutes_e2ee_discovery_wait": 5.0,
        "chutes_e2ee_nonce_margin": 5.0,
        "chutes_e2ee_instance_429": "relay",
        "chutes_e2ee_max_instance_tries": 2,
        "chutes_e2ee_max_response_bytes": 8388608,
        "chutes_e2ee_max_event_bytes": 4194304,
        "chutes_e2ee_max_records": 1000000,
        "chutes_attestation": "off",
        "chutes_attestation_ttl": 3600.0,
        "chutes_tdx_measurements": None,
        "chutes_tdx_tcb_status": ("UpToDate",),
        "chutes_pccs_url": None,
        "explorer_enabled": True,
        "cache_duration": 600.0,
        "cache_dir": "cache",
        "explorer_cors_origins": (),
        "explorer_max_streams": 500,
        "explorer_history_max_mb": 256,
        "explorer_show_private": False,
        "merge_fuzzy": "suggest",
        "webhooks_file": None,
        "admin_token": None,
        "admin_token_file": None,
        "admin_endpoint": None,
        "tracing_enabled": False,
        "otel_service_name": "chutes-autopilot",
        "otel_exporter_otlp_endpoint": "http://localhost:4318",
        "otel_exporter_otlp_headers": (),
        "otel_exporter_otlp_headers_file": None,
        "otel_traces_sampler": "parentbased_always_on",
        "otel_traces_sampler_arg": 1.0,
        "warnings": (),
    }


def test_every_row_has_a_default_and_an_example_that_differs() -> None:
    """Each documented example is legal, alone, and changes the setting it stands for."""
    defaults = read({})
    needed = {
        "TRUST_PROXY_HEADERS": ("TRUSTED_PROXY_CIDRS", "::/0"),
        "CHUTES_ATTESTATION": ("CHUTES_TRANSPORT", "e2ee"),
    }
    files = {s.example: SECRETS[s.name.removesuffix("_FILE")] for s in SETTINGS if s.name.startswith(tuple(SECRETS))}
    files["/etc/ssl/private-ca.pem"] = PEM
    files["/etc/chutes-autopilot/aliases.json"] = '{"house": ":tee"}'
    for setting in SETTINGS:
        environ = dict([needed[setting.name]]) if setting.name in needed else {}
        environ[setting.name] = setting.example
        assert getattr(read(environ, files), setting.field) != getattr(defaults, setting.field), setting.name


def test_the_profile_decides_defaults_and_nothing_else() -> None:
    """In the resilient profile the settings that say so have another default; what is set counts all the same."""
    others = [s for s in SETTINGS if s.resilient is not None]
    assert {s.name for s in SETTINGS if "(resilient: " in s.effect} == {s.name for s in others}
    standard, resilient = read({}), read({"AUTOPILOT_PROFILE": " Resilient "})
    expected = {s.field: s.parse(str(s.resilient)) for s in others} | {"autopilot_profile": "resilient"}
    assert resilient == attrs.evolve(standard, **expected)
    assert all(s.effect.endswith(f"(resilient: {s.resilient}).") for s in others)
    assert read({"AUTOPILOT_PROFILE": "resilient"} | {s.name: s.default for s in others}) == attrs.evolve(
        standard, autopilot_profile="resilient"
    )


def test_the_table_and_the_value_have_the_same_settings() -> None:
    """Every row of the table is an attribute of Settings, and the other way round."""
    assert [s.field for s in SETTINGS] == [f.name for f in attrs.fields(Settings) if f.name != "warnings"]


@pytest.mark.parametrize("blank", ["", " ", "\t \n"])
def test_blank_means_default(blank: str) -> None:
    """An empty or blank variable is the same as an absent one, for every setting."""
    assert read({s.name: blank for s in SETTINGS}) == read({})


def test_unknown_variables_are_ignored() -> None:
    """A variable that is no setting changes nothing."""
    assert read({"LISTEN_ADDRESS": "x", "listen_addr": "y"}) == read({})


@pytest.mark.parametrize("text", ["1", "true", "YES", "On", " tRuE "])
def test_booleans_that_mean_yes(text: str) -> None:
    """1, true, yes and on mean yes in any case."""
    assert read({"TRUST_PROXY_HEADERS": text, "TRUSTED_PROXY_CIDRS": "10.0.0.0/8"}).trust_proxy_headers is True


@pytest.mark.parametrize("text", ["0", "false", "NO", "Off"])
def test_booleans_that_mean_no(text: str) -> None:
    """0, false, no and off mean no in any case."""
    assert read({"TRUST_PROXY_HEADERS": text}).trust_proxy_headers is False


@pytest.mark.parametrize("text", ["2", "t", "y", "enabled", "truefalse"])
def test_other_booleans_are_refused(text: str) -> None:
    """Any other word for a boolean is a fault that lists the legal words."""
    assert faults({"TRUST_PROXY_HEADERS": text}) == (
        f"TRUST_PROXY_HEADERS: must be 1, true, yes, on, or 0, false, no, off, not '{text}'",
    )


NUMBERS = [s for s in SETTINGS if s.default.isdigit()]
RANGES = {
    "STICKY_TTL_SECS": (0, 2_592_000),
    "STICKY_MAX_ENTRIES": (0, 10_000_000),
    "STICKY_FAILBACK_MS": (0, 604_800_000),
    "COOLDOWN_FAILURES": (0, 1000),
    "SAME_MODEL_RETRIES": (0, 10),
    "RETRY_AFTER_MAX_MS": (1, 60_000),
    "E2EE_REPLAY_WINDOW_SECONDS": (30, 3600),
    "E2EE_REPLAY_SKEW_SECONDS": (0, 300),
    "E2EE_STREAM_COALESCE_MS": (0, 10_000),
    "E2EE_PREVIOUS_KEY_UNTIL": (0, 253_402_300_799),
    "CHUTES_E2EE_DISCOVERY_RPM": (1, 10),
    "CHUTES_E2EE_NONCE_MARGIN_SECONDS": (0, 30),
    "CHUTES_E2EE_MAX_INSTANCE_TRIES": (1, 5),
    "CHUTES_ATTESTATION_TTL_SECONDS": (300, 86_400),
    "CACHE_DURATION_MINUTES": (1, 10_080),
    "EXPLORER_HISTORY_MAX_MB": (8, 1_048_576),
}
"""What differs from "at least one, and some bound"."""


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda s: s.name)
def test_numbers_have_a_range(setting: Setting) -> None:
    """Both ends of the documented range are legal, what is beyond is a fault that states the range."""
    lowest, highest = RANGES.get(setting.name, (1, int(setting.default)))
    scale = {"ms": 1000, "min": 1 / 60}.get(setting.unit, 1)
    for number in (lowest, highest):
        assert getattr(read({setting.name: str(number)}), setting.field) == number / scale
    if lowest:
        assert f"from {lowest} to" in faults({setting.name: str(lowest - 1)})[0]
    if setting.name in RANGES:
        assert f"to {highest}" in faults({setting.name: str(highest + 1)})[0]


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda s: s.name)
@pytest.mark.parametrize("text", ["-1", "+1", "1.5", "1e3", "0x10", "1_000", "١٢", "9" * 19, "9" * 5000, "abc"])
def test_numbers_are_plain_decimal_digits_with_a_bound(setting: Setting, text: str) -> None:
    """Signs, points, exponents, separators, other digits and huge numbers are faults that state the range."""
    (fault,) = faults({setting.name: text})
    assert fault.startswith(f"{setting.name}: must be a whole number of ")
    assert len(fault) < 200


def test_milliseconds_become_seconds() -> None:
    """Times are given in milliseconds and kept in seconds."""
    settings = read({"MODELS_REFRESH_MS": "1500", "STICKY_TTL_SECS": "90", "REQUEST_DEADLINE_MS": "1"})
    assert (settings.models_refresh, settings.sticky_ttl, settings.request_deadline) == (1.5, 90.0, 0.001)


def test_a_base_url_keeps_its_prefix_and_loses_its_final_slash() -> None:
    """The path prefix of BACKEND_BASE_URL stays, so that request paths can be appended to it."""
    assert read({"BACKEND_BASE_URL": "http://[::1]:8000/a/b//"}).backend_base_url == "http://[::1]:8000/a/b"


def test_feed_urls_may_have_a_query() -> None:
    """The catalog and the feed may need a query; a backend's base cannot have one."""
    url = "https://example.org/models?page=0"
    assert read({"MODELS_URL": url, "UTILIZATION_URL": url}).models_url == url
    assert faults({"BACKEND_BASE_URL": url}) == ("BACKEND_BASE_URL: must be a URL without query or fragment",)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("example.org", "http://"),
        ("ftp://example.org", "http://"),
        ("https://", "valid host"),
        ("https:///path", "valid host"),
        ("https://:443", "valid host"),
        ("https://example.org:", "valid host"),
        ("https://example.org:0", "valid host"),
        ("https://example.org:65536", "valid host"),
        ("https://example.org:x", "valid host"),
        ("https://256.1.1.1", "valid host"),
        ("https://[::g]", "valid host"),
        ("https://[::1", "valid host"),
        ("https://exa$mple.org", "valid host"),
        ("https://example.org/a b", "printable"),
        ("https://example.org/a\tb", "printable"),
        ("https://example.org\\@b", "printable"),
        ("https://exämple.org", "printable"),
        ("https://example.org/#a", "fragment"),
        ("https://example.org/#", "fragment"),
    ],
)
def test_urls_that_are_refused(url: str, fault: str) -> None:
    """A URL without http(s), a valid host and port, or with a fragment or odd characters is a fault."""
    (line,) = faults({"MODELS_URL": url})
    assert line.startswith("MODELS_URL: must be a URL")
    assert fault in line


@pytest.mark.parametrize("name", [s.name for s in SETTINGS if s.unit == "URL" and not s.secret])
def test_credentials_in_a_url_are_refused_and_not_shown(name: str) -> None:
    """A URL with user and password is a fault whose message does not repeat them."""
    assert faults({name: "https://user:hunter2@example.org"}) == (
        f"{name}: must be a URL without user name or password",
    )


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:0", "tcp:0:backlog=1024:interface=127.0.0.1"),
        ("localhost:65535", "tcp:65535:backlog=1024:interface=localhost"),
        ("[::]:8080", r"tcp:8080:backlog=1024:interface=\:\:"),
        ("[fe80::1%eth0]:80", r"tcp:80:backlog=1024:interface=fe80\:\:1%eth0"),
    ],
)
def test_listen_addr_becomes_an_endpoint(text: str, endpoint: str) -> None:
    """LISTEN_ADDR is turned into a Twisted endpoint string whose colons are escaped."""
    assert read({"LISTEN_ADDR": text}).listen_endpoint == endpoint


@pytest.mark.parametrize(
    "text",
    ["8080", ":8080", "a:", "a:65536", "a:-1", "a:x", "::1:80", "[1.2.3.4]:80", "[::1]", "1.2.3:80", "a b:80", "a=b:8"],
)
def test_listen_addr_that_is_refused(text: str) -> None:
    """Anything but host:port with a port from 0 to 65535 is a fault with two examples."""
    assert faults({"LISTEN_ADDR": text}) == (
        "LISTEN_ADDR: must be host:port with a port from 0 to 65535, like 0.0.0.0:8080 or [::]:8080",
    )


def test_choices_take_any_case() -> None:
    """Words are accepted in any case, and "warning" is another spelling of "warn"."""
    settings = read({"UNKNOWN_MODELS": "Pass", "LOG_LEVEL": "WARNING", "LOG_FORMAT": "JSON"})
    assert (settings.unknown_models, settings.log_level, settings.log_format) == ("pass", "warn", "json")


def test_choices_that_do_not_exist() -> None:
    """A fault lists the words there are."""
    assert faults({"LOG_LEVEL": "verbose"}) == ("LOG_LEVEL: must be debug or info or warn or error, not 'verbose'",)


def test_trusted_proxies_are_networks() -> None:
    """Networks may stand between commas or white space."""
    settings = read({"TRUST_PROXY_HEADERS": "on", "TRUSTED_PROXY_CIDRS": "10.0.0.0/8, fd00::/8 192.0.2.1"})
    assert settings.trusted_proxy_cidrs == tuple(map(ip_network, ["10.0.0.0/8", "fd00::/8", "192.0.2.1/32"]))


@pytest.mark.parametrize("text", ["", " , "])
def test_trust_needs_networks(text: str) -> None:
    """To trust proxy headers without saying whose is a fault."""
    assert faults({"TRUST_PROXY_HEADERS": "true", "TRUSTED_PROXY_CIDRS": text}) == (
        "TRUSTED_PROXY_CIDRS: must name at least one network where TRUST_PROXY_HEADERS is true",
    )


def test_a_faulty_network_is_named() -> None:
    """A list of networks with one mistake says which part it is."""
    (fault,) = faults({"TRUSTED_PROXY_CIDRS": "10.0.0.0/8 10.0.0.0/33"})
    assert fault.startswith("TRUSTED_PROXY_CIDRS: ")
    assert "10.0.0.0/33" in fault


def test_the_secret_may_come_from_a_file() -> None:
    """A secret file counts without its final line end, and keeps everything else."""
    for end in ("", "\n", "\r\n"):
        settings = read({"CLIENT_KEY_SECRET_FILE": "/key"}, {"/key": f" {SECRET} {end}"})
        assert settings.client_key_secret == f" {SECRET} ".encode()


def test_the_secret_keeps_its_bytes() -> None:
    """A secret in the environment is used as it is, also where it is not UTF-8."""
    assert read({"CLIENT_KEY_SECRET": f" {SECRET}\udcff "}).client_key_secret == f" {SECRET}".encode() + b"\xff "


@pytest.mark.parametrize(
    ("environ", "fault"),
    [
        ({"CLIENT_KEY_SECRET": "hunter2"}, "CLIENT_KEY_SECRET: must have at least 16 characters"),
        ({"CLIENT_KEY_SECRET_FILE": "/short"}, "CLIENT_KEY_SECRET_FILE: must have at least 16 characters"),
        ({"CLIENT_KEY_SECRET_FILE": "/empty"}, "CLIENT_KEY_SECRET_FILE: the file must not be empty"),
        ({"CHUTES_API_KEY": "hunter 2"}, "CHUTES_API_KEY: must be printable ASCII characters without spaces"),
        ({"CHUTES_API_KEY_FILE": "/lines"}, "CHUTES_API_KEY_FILE: must be printable ASCII characters without spaces"),
        ({"CHUTES_API_KEY_FILE": "/empty"}, "CHUTES_API_KEY_FILE: the file must not be empty"),
        (
            {"TOKEN": "hunter2,,hunter3"},
            "TOKEN: must be tokens of printable ASCII characters without spaces, by commas",
        ),
        ({"TOKEN_FILE": "/none"}, "TOKEN_FILE: cannot read the file: No such file or directory"),
        ({"TOKEN_FILE": "/short", "TOKEN": "x"}, "TOKEN_FILE: must not be set together with TOKEN"),
        ({"REDIS_URL_FILE": "/short"}, "REDIS_URL_FILE: must be a URL that starts with redis:// or rediss://"),
        (
            {"CLIENT_KEY_SECRET_FILE": "/none"},
            "CLIENT_KEY_SECRET_FILE: cannot read the file: No such file or directory",
        ),
        ({"CLIENT_KEY_SECRET_FILE": "/\0"}, "CLIENT_KEY_SECRET_FILE: must be the path of a readable text file"),
        (
            {"CLIENT_KEY_SECRET_FILE": "/short", "CLIENT_KEY_SECRET": SECRET},
            "CLIENT_KEY_SECRET_FILE: must not be set together with CLIENT_KEY_SECRET",
        ),
    ],
)
def test_secrets_that_are_refused(environ: dict[str, str], fault: str) -> None:
    """A short, unreadable or doubly given secret is a fault that never shows it."""
    assert faults(environ, {"/short": "hunter2\n", "/empty": "\n", "/lines": "hunter2\nhunter3\n"}) == (fault,)


@pytest.mark.parametrize("name", SECRETS)
def test_every_secret_may_come_from_a_file(name: str) -> None:
    """What a secret's file holds is what the variable would have held, but for one final line end."""
    assert name in {s.name for s in SETTINGS if s.secret}
    field = name.lower()
    given = getattr(read({name: SECRETS[name]}), field)
    assert given
    for end in ("", "\n", "\r\n"):
        assert getattr(read({f"{name}_FILE": "/key"}, {"/key": SECRETS[name] + end}), field) == given


def test_every_secret_is_among_the_tested() -> None:
    """A new secret comes with a file setting, and with the tests of this module."""
    assert {s.name for s in SETTINGS if s.secret} == set(SECRETS)
    assert {f"{name}_FILE" for name in SECRETS} <= {s.name for s in SETTINGS}


def test_there_may_be_many_tokens() -> None:
    """Tokens stand between commas, with or without spaces."""
    assert read({"TOKEN": "a, b,c+/=~"}).token == (b"a", b"b", b"c+/=~")


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("redis://example.org", RedisServer("example.org")),
        ("redis://127.0.0.1:6380/", RedisServer("127.0.0.1", 6380)),
        ("rediss://[::1]:1/15", RedisServer("::1", 1, 15, tls=True)),
        ("redis://:p%40ss%2F@h/2", RedisServer("h", db=2, password="p@ss/")),
        ("REDIS://me:p:q@h", RedisServer("h", username="me", password="p:q")),
    ],
)
def test_redis_urls(text: str, server: RedisServer) -> None:
    """A Redis URL names host, port, database and login, with %XX where a character would mean something else."""
    assert read({"REDIS_URL": text}).redis_url == server


@pytest.mark.parametrize(
    "text",
    [
        "redis",
        "http://hunter2@h",
        "redis://",
        "redis://:hunter2@",
        "redis://h:0",
        "redis://h:65536",
        "redis://h:",
        "redis://[::1",
        "redis://me@h",
        "redis://:hunter2/@h",
        "redis://:hunter2?@h",
        "redis://:hunter2#@h",
        "redis://:hunter2%ff@h",
        "redis://:hunter2 @h",
        "redis://h/hunter2",
        "redis://h/1/2",
        "unix:///run/redis.sock",
    ],
)
def test_redis_urls_that_are_refused(text: str) -> None:
    """Anything else is a fault that says what is allowed, and repeats nothing that may be a password."""
    (fault,) = faults({"REDIS_URL": text})
    assert fault.startswith("REDIS_URL: must be a URL")
    assert "hunter2" not in fault


@pytest.mark.parametrize("text", ["/run/dstack.sock", "http://127.0.0.1:8090", "https://agent.example.org/prefix"])
def test_the_agent_is_a_url_or_a_socket(text: str) -> None:
    """The dstack agent is found by a URL or by the path of its socket."""
    assert read({"DSTACK_SIMULATOR_ENDPOINT": text}).dstack_simulator_endpoint == text


def test_the_collectors_headers_are_decoded() -> None:
    """Headers for the collector are pairs by commas, as OpenTelemetry has them; what no header may be is a fault."""
    headers = read({"OTEL_EXPORTER_OTLP_HEADERS": " Authorization=Bearer%20a%2Cb , x=,"}).otel_exporter_otlp_headers
    assert headers == (("authorization", "Bearer a,b"), ("x", ""))
    for text in ("hunter2", "=hunter2", "a b=hunter2", "a=hunter2%0d%0a"):
        assert faults({"OTEL_EXPORTER_OTLP_HEADERS": text}) == (
            "OTEL_EXPORTER_OTLP_HEADERS: must be headers by commas, like name=value, their values percent-encoded",
        )


@pytest.mark.parametrize("text", ["1.1", "-0.5", "nan", "1e-3", "50%"])
def test_a_ratio_is_a_part_of_one(text: str) -> None:
    """The part of the traces that is taken is from 0 to 1."""
    assert read({"OTEL_TRACES_SAMPLER_ARG": "0.25"}).otel_traces_sampler_arg == 0.25
    assert faults({"OTEL_TRACES_SAMPLER_ARG": text}) == ("OTEL_TRACES_SAMPLER_ARG: must be a number from 0 to 1",)


def test_origins_are_as_browsers_send_them() -> None:
    """Case and default ports do not count, and there may be several; paths and patterns are no origins."""
    text = "HTTPS://App.Example.org:443, http://localhost:3000,http://[::1]:80"
    expected = ("https://app.example.org", "http://localhost:3000", "http://[::1]")
    assert read({"EXPLORER_CORS_ORIGINS": text}).explorer_cors_origins == expected
    for text in ("*", "null", "example.org", "https://a/", "https://a/b", "https://a?b", "https://a,", "https://*.a"):
        (fault,) = faults({"EXPLORER_CORS_ORIGINS": text})
        assert fault.startswith("EXPLORER_CORS_ORIGINS: must be origins by commas")


def test_tcb_statuses_are_intels() -> None:
    """Statuses are taken in any case and kept in Intel's spelling; one that Intel does not know is a fault."""
    statuses = read({"CHUTES_TDX_TCB_STATUS": "uptodate, SWHardeningNeeded"}).chutes_tdx_tcb_status
    assert statuses == ("UpToDate", "SWHardeningNeeded")
    for text in ("UpToDate,", "Revoked", "up to date"):
        assert faults({"CHUTES_TDX_TCB_STATUS": text})[0].startswith("CHUTES_TDX_TCB_STATUS: must be names by commas")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"CHUTES_ATTESTATION": "binding"}, ("CHUTES_ATTESTATION: must be off where CHUTES_TRANSPORT is not e2ee",)),
        (
            {"CHUTES_ATTESTATION": "quote+tcb", "CHUTES_TRANSPORT": "e2ee"},
            ("CHUTES_PCCS_URL: must be set where CHUTES_ATTESTATION is quote+tcb",),
        ),
        ({"E2EE_KEY_SOURCE": "file"}, ("E2EE_KEY_FILE: must be set where E2EE_KEY_SOURCE is file",)),
    ],
)
def test_settings_that_contradict_each_other(environ: dict[str, str], expected: tuple[str, ...]) -> None:
    """What is legal alone and makes no sense together is a fault of the setting to mend."""
    assert faults(environ) == expected


def test_what_contradicts_nothing() -> None:
    """Each of those settings is accepted with what it needs."""
    sealed = {"CHUTES_TRANSPORT": "e2ee", "CHUTES_ATTESTATION": "Quote+TCB", "CHUTES_PCCS_URL": "https://pccs.example"}
    assert read(sealed).chutes_attestation == "quote+tcb"
    assert read({"E2EE_KEY_SOURCE": "file", "E2EE_KEY_FILE": "/keys"}).e2ee_key_file == "/keys"


def test_redis_without_the_key_of_clients_shares_nonces_alone() -> None:
    """What replicas share of clients is found under CLIENT_KEY_SECRET: without it that is said, and no fault."""
    (warning,) = read({"REDIS_URL": "redis://h"}).warnings
    assert warning.startswith("CLIENT_KEY_SECRET is not configured")
    assert not read({"REDIS_URL": "redis://h"}).shares
    both = read({"REDIS_URL": "redis://h", "CLIENT_KEY_SECRET": SECRET})
    assert (both.shares, both.warnings) == (True, ())
    assert not read({"CLIENT_KEY_SECRET": SECRET}).shares


def test_a_route_that_cannot_serve_is_warned_about() -> None:
    """The service starts without what the Chutes route needs, and the log names the missing variables."""
    missing = read({"CHUTES_ENABLED": "1"}).warnings
    assert [warning.partition(" ")[0] for warning in missing] == ["CHUTES_API_KEY", "TOKEN"]
    assert read({"CHUTES_ENABLED": "1", "CHUTES_API_KEY": "k", "TOKEN": "t"}).warnings == ()
    assert read({"CHUTES_ENABLED": "1", "CHUTES_API_KEY": "k", "CHUTES_ALLOW_ANONYMOUS": "1"}).warnings == ()


@pytest.mark.parametrize(
    ("refresh", "max_age"),
    [("UTILIZATION_REFRESH_MS", "READYZ_MAX_SNAPSHOT_AGE_MS"), ("MODELS_REFRESH_MS", "READYZ_MAX_ALLOWLIST_AGE_MS")],
)
def test_a_source_that_is_asked_too_seldom_is_warned_about(refresh: str, max_age: str) -> None:
    """The service would get no traffic between two polls; one that is a tenth of the interval late is in time."""
    (warning,) = read({refresh: "20000", max_age: "22000"}).warnings
    assert warning == (
        f"{max_age} is too short for {refresh}: /readyz answers 503 between two polls, which are up to 22000 ms apart"
    )
    assert read({refresh: "20000", max_age: "22001"}).warnings == ()


def test_a_certificate_file_must_hold_a_certificate() -> None:
    """SSL_CERT_FILE is read at the start, so that a wrong path is not found out at the first connection."""
    assert read({"SSL_CERT_FILE": "/ca"}, {"/ca": PEM}).ssl_cert_file == "/ca"
    assert faults({"SSL_CERT_FILE": "/ca"}) == ("SSL_CERT_FILE: cannot read the file: No such file or directory",)
    for text in ("", "x", PEM[:100], PEM + PEM.replace("M", "", 1)):
        assert faults({"SSL_CERT_FILE": "/ca"}, {"/ca": text}) == (
            "SSL_CERT_FILE: must be a PEM file of certificates, each of them readable",
        )


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_a_proxy_is_warned_about(name: str) -> None:
    """A proxy for outgoing connections is not supported, which the log should say."""
    (warning,) = read({name: "http://user:hunter2@proxy"}).warnings
    assert warning == f"{name} is set but not supported: connections to Chutes are made directly"


def test_all_faults_are_told_at_once() -> None:
    """One error lists every faulty variable in the order of the documentation, one line each."""
    any_text_will_do = {"CHUTES_API_KEY", "TOKEN", "E2EE_KEY_FILE", "CHUTES_TDX_MEASUREMENTS"}
    any_text_will_do |= {"CACHE_DIR", "WEBHOOKS_FILE", "ADMIN_TOKEN", "ADMIN_ENDPOINT", "OTEL_SERVICE_NAME"}
    names = [s.name for s in SETTINGS if s.name not in any_text_will_do]
    assert [line.partition(":")[0] for line in faults(dict.fromkeys(names, "!"))] == names


def test_secrets_are_masked() -> None:
    """Neither the description nor the repr of settings shows a secret."""
    settings = read(SECRETS)
    assert {f"{name}=********" for name in SECRETS} <= set(describe(settings))
    assert {f"{name}=" for name in SECRETS} <= set(describe(read({})))
    shown = repr(settings) + repr(settings.redis_url) + "\n".join(describe(settings))
    assert SECRET not in shown
    assert "hunter" not in shown


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "LISTEN_ADDR": st.sampled_from(["[::]:0", "localhost:1"]),
            "BACKEND_BASE_URL": st.sampled_from(["http://a", "https://b:1/c"]),
            "UTILIZATION_REFRESH_MS": st.integers(1, 604_800_000).map(str),
            "STICKY_TTL_SECS": st.integers(0, 2_592_000).map(str),
            "STICKY_FAILBACK_MS": st.integers(0, 604_800_000).map(str),
            "MAX_REQUEST_BYTES": st.integers(1, 2**30).map(str),
            "TRUSTED_PROXY_CIDRS": st.lists(st.sampled_from(["10.0.0.0/8", "::/0", "192.0.2.1"])).map(" ".join),
            "TRUST_PROXY_HEADERS": st.just("no"),
            "LOG_LEVEL": st.sampled_from(["debug", "error"]),
            "E2EE_STREAM_COALESCE_MS": st.integers(0, 10_000).map(str),
            "CHUTES_TDX_TCB_STATUS": st.sampled_from(["UpToDate", "outofdate, UpToDate"]),
            "CHUTES_PCCS_URL": st.sampled_from(["", "https://pccs.example"]),
            "CACHE_DURATION_MINUTES": st.integers(1, 10_080).map(str),
            "EXPLORER_CORS_ORIGINS": st.lists(st.sampled_from(["https://a", "http://[::1]:80"])).map(", ".join),
        },
    )
)
def test_the_description_reads_back_as_the_same_settings(environ: dict[str, str]) -> None:
    """The effective settings are printed as lines that an --env-file may hold."""
    settings = read(environ)
    assert read(parse_env_file("\n".join(describe(settings)))) == settings


def test_an_env_file() -> None:
    """Names, comments, blank lines, export and quotes are understood; the last of equal names wins."""
    text = "\n".join(
        [
            "\ufeff# a comment",
            "",
            "  PLAIN = a=b c#d   # comment\r",
            "export EXPORTED=yes",
            "EMPTY=",
            "EMPTY_COMMENT= # nothing",
            "SINGLE='a \\n # \"b' # comment",
            'DOUBLE="a \\"b\\" \\\\ \\n # c"',
            "TWICE=1",
            "TWICE=2",
        ]
    )
    assert parse_env_file(text) == {
        "PLAIN": "a=b c#d",
        "EXPORTED": "yes",
        "EMPTY": "",
        "EMPTY_COMMENT": "",
        "SINGLE": 'a \\n # "b',
        "DOUBLE": 'a "b" \\ \n # c',
        "TWICE": "2",
    }


@pytest.mark.parametrize("line", ["hunter2", "1A=b", "A B=c", "A='hunter2", 'A="hunter2', "A='b'c", '="x"', "export"])
def test_faulty_lines_of_an_env_file_are_numbered(line: str) -> None:
    """What is no assignment is a fault that names the line and not its text."""
    with pytest.raises(SettingsError) as caught:
        parse_env_file(f"GOOD=1\n{line}\nALSO=2\n{line}")
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["line 2", "line 4"]
    assert "hunter2" not in str(caught.value)


@given(st.text())
def test_any_env_file_is_read_or_refused(text: str) -> None:
    """No text makes the reader of env files fail in another way than it says."""
    try:
        values = parse_env_file(text)
    except SettingsError:
        return
    assert all(name.isidentifier() for name in values)


@given(st.dictionaries(st.sampled_from([s.name for s in SETTINGS]), st.text()))
def test_any_environment_is_read_or_refused(environ: dict[str, str]) -> None:
    """No text in any variable makes reading the settings fail in another way than it says."""
    named: set[str] = set()
    try:
        read(environ)
    except SettingsError as error:
        named = {line.partition(":")[0] for line in error.faults}
    assert named <= {s.name for s in SETTINGS}


def test_own_aliases_are_read_at_the_start() -> None:
    """Each faulty entry of ALIASES_FILE is named; a changed file is a changed setting."""
    one, two = (read({"ALIASES_FILE": "/a"}, {"/a": text}).aliases_file for text in ('{"x": ":tee"}', '{"x": ":fast"}'))
    assert str(one) == str(two) == "/a"
    assert one != two
    assert faults({"ALIASES_FILE": "/a"}) == ("ALIASES_FILE: cannot read the file: No such file or directory",)
    (fault,) = faults({"ALIASES_FILE": "/a"}, {"/a": '{"x": ":nonsense"}'})
    assert fault.startswith("ALIASES_FILE: 'x'")


def test_workers_are_a_number_or_the_cores() -> None:
    """auto is at least one process; none, and more than anybody has cores for, are refused."""
    assert (read({"WORKERS": "3"}).workers, read({"WORKERS": "auto"}).workers >= 1) == (3, True)
    for wrong in ("0", "257", "many"):
        assert faults({"WORKERS": wrong})[0].startswith("WORKERS: must be a whole number of processes from 1 to 256")


def test_more_workers_than_cores_are_surely_not_meant() -> None:
    """They would only take turns; auto never is too many."""
    (warning,) = read({"WORKERS": "256"}).warnings
    assert warning.startswith("WORKERS is 256, more than the cores this service may use: ")
    assert read({"WORKERS": "auto"}).warnings == ()


def test_feeds_asked_for_too_often_are_warned_of() -> None:
    """From one second on an interval is nobody's mistake."""
    asked = {"MODELS_REFRESH_MS": "5", "UTILIZATION_REFRESH_MS": "999"}
    assert read(asked).warnings == (
        "MODELS_REFRESH_MS is 5: the platform is asked oftener than once a second",
        "UTILIZATION_REFRESH_MS is 999: the platform is asked oftener than once a second",
    )
    assert read(dict.fromkeys(asked, "1000")).warnings == ()
