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

PEM = trustme.CA().cert_pem.bytes().decode()
SECRET = "a-secret-of-more-than-16"


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
        "backend_base_url": "https://llm.chutes.ai",
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
        "client_header_timeout": 30.0,
        "client_body_timeout": 60.0,
        "client_idle_timeout": 75.0,
        "client_write_stall_timeout": 60.0,
        "stream_idle_timeout": 60.0,
        "max_connections": 10000,
        "max_inflight_requests": 2000,
        "shutdown_grace": 30.0,
        "log_level": "info",
        "log_format": "text",
        "ssl_cert_file": None,
        "warnings": (),
    }


def test_every_row_has_a_default_and_an_example_that_differs() -> None:
    """Each documented example is legal, alone, and changes the setting it stands for."""
    defaults = read({})
    for setting in SETTINGS:
        environ = {setting.name: setting.example}
        if setting.name == "TRUST_PROXY_HEADERS":
            environ["TRUSTED_PROXY_CIDRS"] = "10.0.0.0/8"
        files = {"/run/secrets/client_key_secret": SECRET, "/etc/ssl/private-ca.pem": PEM}
        assert getattr(read(environ, files), setting.field) != getattr(defaults, setting.field), setting.name


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


NUMBERS = [s for s in SETTINGS if s.unit in ("ms", "s", "bytes", "items", "entries", "attempts")]


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda s: s.name)
def test_zero_is_legal_for_stickiness_only(setting: Setting) -> None:
    """Zero turns stickiness settings off and is a fault everywhere else."""
    if setting.name.startswith("STICKY_"):
        assert getattr(read({setting.name: "0"}), setting.field) == 0
    else:
        assert "from 1 to" in faults({setting.name: "0"})[0]


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


@pytest.mark.parametrize("name", ["BACKEND_BASE_URL", "MODELS_URL", "UTILIZATION_URL"])
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
        ({"CLIENT_KEY_SECRET_FILE": "/empty"}, "CLIENT_KEY_SECRET_FILE: must have at least 16 characters"),
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
    assert faults(environ, {"/short": "hunter2\n", "/empty": "\n"}) == (fault,)


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
    lines = faults({s.name: "!" for s in SETTINGS})
    assert [line.partition(":")[0] for line in lines] == [s.name for s in SETTINGS]


def test_secrets_are_masked() -> None:
    """Neither the description nor the repr of settings shows a secret."""
    settings = read({"CLIENT_KEY_SECRET": SECRET})
    assert "CLIENT_KEY_SECRET=********" in describe(settings)
    assert "CLIENT_KEY_SECRET=" in describe(read({}))
    assert SECRET not in repr(settings) + "\n".join(describe(settings))


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
