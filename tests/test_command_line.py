"""The command line: what is asked for, what is refused, and in which words."""

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from twisted.logger import Logger
from twisted.scripts.twistd import ServerOptions

from chutes_autopilot import __version__
from chutes_autopilot.cli.doctor import doctor
from chutes_autopilot.cli.environment import settings_from
from chutes_autopilot.cli.main import main
from chutes_autopilot.cli.selftest import selftest
from chutes_autopilot.tap import Options


def parse(*arguments: str, **environ: str) -> Options:
    options = Options(environ)
    options.parseOptions(list(arguments))
    return options


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, **environ: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(*arguments, **environ)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (1, "")
    return err


def test_listen_addr_is_the_default_endpoint() -> None:
    """Without --endpoint the service listens on LISTEN_ADDR."""
    assert parse(LISTEN_ADDR="127.0.0.1:81").endpoints == ("tcp:81:backlog=1024:interface=127.0.0.1",)


def test_endpoints_may_be_repeated(tmp_path: Path) -> None:
    """Each --endpoint counts, of whatever kind, and LISTEN_ADDR no longer does."""
    pem = tmp_path / "server.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
    given = ("tcp:0", "tcp6:port=65535", f"unix:{tmp_path}/s", "haproxy:tcp:80", f"ssl:0:privateKey={pem}")
    arguments = [f"--endpoint={endpoint}" for endpoint in given]
    assert parse(*arguments, LISTEN_ADDR="127.0.0.1:81").endpoints == given


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("tcp:x", "'x' is not a whole number"),
        ("unix:/s:mode=x", "'x' is not a whole number"),
        ("tcp", "an argument is missing, or there is one too many"),
        ("tcp:65536", "the port must be from 0 to 65535"),
        ("tcp:-1", "the port must be from 0 to 65535"),
        ("tcp:interface=127.0.0.1:port=70000", "the port must be from 0 to 65535"),
        ("haproxy:tcp:70000", "the port must be from 0 to 65535"),
        ("tls:/dir:70000", "the port must be from 0 to 65535"),
        ("tcp:80:nonsense=1", "an argument is missing, or there is one too many"),
        ("ssl:443:privateKey=/nowhere/a.pem", "No such file or directory: /nowhere/a.pem"),
        ("ssl:443:privateKey=/dev/null", "the certificate or the key cannot be read"),
        ("systemd:domain=INET:index=0", "no such socket was handed over to this process"),
        ("systemd:domain=INET:name=web", "no such socket was handed over to this process"),
        ("quic:443", "Unknown endpoint type: 'quic'"),
        ("", "Unknown endpoint type: ''"),
    ],
)
def test_bad_endpoints_are_refused_in_one_line(capsys: pytest.CaptureFixture[str], endpoint: str, reason: str) -> None:
    """An endpoint that cannot work ends the start with the option, its own text and the reason."""
    assert refusal(capsys, "--endpoint", "tcp:0", "--endpoint", endpoint) == (
        "chutes-autopilot: these settings are not valid:\n"
        f"  --endpoint: cannot use the endpoint {endpoint!r}: {reason}\n"
    )


def test_all_faulty_settings_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong settings end the start with one message that lists them all."""
    assert refusal(capsys, MAX_REQUEST_BYTES="0", LOG_FORMAT="xml") == (
        "chutes-autopilot: these settings are not valid:\n"
        "  MAX_REQUEST_BYTES: must be a whole number of bytes from 1 to 1073741824, not '0'\n"
        "  LOG_FORMAT: must be text or json, not 'xml'\n"
    )


def test_one_refusal_names_every_fault(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Faulty settings, endpoints and files of what is switched on are told together, each with its variable."""
    (tmp_path / "measurements").write_text("{}")
    err = refusal(
        capsys,
        LOG_FORMAT="xml",
        LISTEN_ADDR="0.0.0.0:1",
        ADMIN_ENDPOINT="bogus",
        WEBHOOKS_FILE="/nope",
        E2EE_KEY_FILE="/nope",
        CHUTES_ENABLED="1",
        CHUTES_TRANSPORT="e2ee",
        CHUTES_ATTESTATION="quote",
        CHUTES_TDX_MEASUREMENTS=str(tmp_path / "measurements"),
    )
    assert err.splitlines() == [
        "chutes-autopilot: these settings are not valid:",
        "  LOG_FORMAT: must be text or json, not 'xml'",
        "  ADMIN_ENDPOINT: cannot use the endpoint 'bogus': Unknown endpoint type: 'bogus'",
        "  WEBHOOKS_FILE: cannot read the file: No such file or directory",
        "  E2EE_KEY_FILE: cannot read the file: No such file or directory",
        "  CHUTES_TDX_MEASUREMENTS: not a list",
    ]


def test_endpoints_are_judged_where_the_settings_make_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    """What contradicts itself without the faulty setting leaves the rest of the settings out of the judgement."""
    err = refusal(capsys, "--endpoint=quic:1", CHUTES_TRANSPORT="x", CHUTES_ATTESTATION="quote")
    assert err.splitlines()[1:] == [
        "  CHUTES_TRANSPORT: must be tls or e2ee, not 'x'",
        "  --endpoint: cannot use the endpoint 'quic:1': Unknown endpoint type: 'quic'",
    ]


@pytest.mark.parametrize("option", [["--demo"], []])
def test_faulty_measurements_are_refused(capsys: pytest.CaptureFixture[str], option: list[str]) -> None:
    """As with every other file, before anything is put together; where nothing is attested they are not read."""
    wanted = {"CHUTES_ENABLED": "true", "CHUTES_TDX_MEASUREMENTS": "/nowhere", "CHUTES_TRANSPORT": "e2ee"}
    parse(*option, **wanted)
    assert refusal(capsys, *option, **wanted, CHUTES_ATTESTATION="quote") == (
        "chutes-autopilot: these settings are not valid:\n"
        "  CHUTES_TDX_MEASUREMENTS: cannot read the file: No such file or directory\n"
    )


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        (
            {"REDIS_URL": "redis://:hunter2@h"},
            "REDIS_URL: needs the extra redis: pip install 'chutes-autopilot[redis]'",
        ),
        (
            {
                "CHUTES_TRANSPORT": "e2ee",
                "CHUTES_ATTESTATION": "quote+tcb",
                "CHUTES_PCCS_URL": "https://pccs.example.org",
            },
            "CHUTES_ATTESTATION: needs the extra attestation: pip install 'chutes-autopilot[attestation]'",
        ),
        (
            {"TRACING_ENABLED": "true"},
            "TRACING_ENABLED: needs the extra tracing: pip install 'chutes-autopilot[tracing]'",
        ),
    ],
)
def test_an_extra_that_is_missing_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], complaint: str
) -> None:
    """What needs an extra ends the start where it is not installed, and says how to install it."""
    parse(CHUTES_ENABLED="true", **environ)
    monkeypatch.setattr("chutes_autopilot.extras.find_spec", lambda name: None)
    assert refusal(capsys, CHUTES_ENABLED="true", **environ) == (
        f"chutes-autopilot: these settings are not valid:\n  {complaint}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--nonsense"], "option --nonsense not recognized"),
        (["--endpoint"], "option --endpoint requires argument"),
        (["--demo=1"], "option --demo must not have an argument"),
        (["stop"], "unexpected argument 'stop'"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    """A wrong command line is answered by what is wrong with it, not by the whole usage."""
    assert refusal(capsys, *arguments) == f"chutes-autopilot: {complaint} (--help lists the options)\n"


def test_the_environment_wins_over_the_env_file(tmp_path: Path) -> None:
    """--env-file fills in what the environment does not say, and a blank variable says: the default."""
    file = tmp_path / "env"
    file.write_text("MAX_REQUEST_BYTES=5\nMAX_MODEL_LIST_ITEMS=5\nMAX_FAILOVER_ATTEMPTS=5\n")
    settings = parse("--env-file", str(file), MAX_REQUEST_BYTES="7", MAX_FAILOVER_ATTEMPTS="").settings
    assert (settings.max_request_bytes, settings.max_model_list_items, settings.max_failover_attempts) == (7, 5, 8)


def test_a_stranger_in_the_env_file_is_warned_of(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With the nearest setting, if there is one; the environment may have any, and a proxy has a warning of its own."""
    file = tmp_path / "env"
    file.write_text("BACKEND_URL=x\nutilisation_url=x\nQQQ=x\nMAX_REQUEST_BYTES=5\nHTTPS_PROXY=p\nhttps_proxy=p\n")
    settings = parse("--env-file", str(file), MODEL_URL="x").settings
    assert settings.warnings[2:] == (
        "BACKEND_URL in the file of --env-file is no setting; is BACKEND_BASE_URL meant?",
        "utilisation_url in the file of --env-file is no setting; is UTILIZATION_URL meant?",
        "QQQ in the file of --env-file is no setting",
    )
    assert "QQQ" in answer(capsys, "--check-config", "--env-file", str(file))[1]
    file.write_text("".join(f"Q{number}=1\n" for number in range(25)))
    assert settings_from({"Q99": "x"}, str(file)).warnings[-1] == "--env-file names 5 more that are no settings"


def test_there_is_something_to_read_again_where_a_file_is_named(tmp_path: Path) -> None:
    """The env file or ALIASES_FILE, whose content of the moment counts."""
    aliases = tmp_path / "aliases.json"
    aliases.write_text('{"house": ["a/A"]}')
    options = parse(ALIASES_FILE=str(aliases))
    aliases.write_text('{"house": ["b/B"]}')
    again = options.read_again().aliases_file
    assert again is not None
    assert again.aliases.expand("house", set()) == "b/B"
    (tmp_path / "env").write_text("")
    named = [parse(), options, parse("--env-file", str(tmp_path / "env"))]
    assert [each.reads_files for each in named] == [False, True, True]


def test_a_missing_env_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """An --env-file that is not there ends the start in one line."""
    assert refusal(capsys, "--env-file=/nowhere/env") == (
        "chutes-autopilot: cannot read the file '/nowhere/env' given by --env-file: No such file or directory\n"
    )


def test_a_faulty_env_file_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The faulty lines of an --env-file are numbered."""
    file = tmp_path / "env"
    file.write_text("A=1\nB\n")
    assert refusal(capsys, f"--env-file={file}") == (
        f"chutes-autopilot: the file '{file}' given by --env-file is not valid:\n"
        "  line 2: must be NAME=value, a # comment or blank; quotes must be closed\n"
    )


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, **environ: str) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ended:
        parse(*arguments, **environ)
    assert not ended.value.code
    return capsys.readouterr()


def test_check_config_prints_the_effective_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """--check-config shows what counts, secrets masked and warnings on standard error, and exits with 0."""
    out, err = answer(
        capsys, "--check-config", CLIENT_KEY_SECRET="hunter2-hunter2-hunter2", MAX_REQUEST_BYTES="", HTTPS_PROXY="p"
    )
    assert "CLIENT_KEY_SECRET=********\n" in out
    assert "MAX_REQUEST_BYTES=1048576\n" in out
    assert "hunter2" not in out + err
    assert err.startswith("chutes-autopilot: warning: HTTPS_PROXY is set")


def test_check_config_refuses_what_the_start_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    """--check-config checks endpoints too."""
    assert "tcp:x" in refusal(capsys, "--check-config", "--endpoint=tcp:x")


def test_workers_of_the_command_line_win(capsys: pytest.CaptureFixture[str]) -> None:
    """--workers is WORKERS, checked as it is; what several processes cannot listen on is refused."""
    assert "\nWORKERS=3\n" in answer(capsys, "--check-config", "--workers=3", WORKERS="2")[0]
    assert "WORKERS: must be a whole number" in refusal(capsys, "--check-config", "--workers=x")
    assert "cannot be shared by WORKERS" in refusal(capsys, "--check-config", "--workers=2", "--endpoint=systemd:x")


def test_an_unknown_command_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """The commands are named where the first word is none of them."""
    with pytest.raises(SystemExit) as ended:
        main(["doktor", "--json"])
    commands = "run, doctor, selftest, keygen, record and replay"
    assert (ended.value.code, capsys.readouterr().err) == (
        1,
        f"chutes-autopilot: there is no command 'doktor'; there are {commands} (--help tells more)\n",
    )


@pytest.mark.parametrize(
    ("command", "option", "reason"),
    [
        (doctor, "--timeout", "must be a number above 0"),
        (selftest, "--longest-wait", "must be from 0.2 to 10 seconds"),
    ],
)
@pytest.mark.parametrize("text", ["x", "0", "nan"])
def test_a_number_that_is_none_is_refused_by_what_it_must_be(
    capsys: pytest.CaptureFixture[str], command: Callable[..., None], option: str, reason: str, text: str
) -> None:
    """A word is told the same as a number that will not do."""
    with pytest.raises(SystemExit):
        command([option, text], None)
    assert capsys.readouterr().err.endswith(f"argument {option}: {reason}\n")


def test_version_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    """--version tells our version, not Twisted's, also where settings are wrong."""
    assert answer(capsys, "--version", LOG_LEVEL="x") == (f"chutes-autopilot {__version__}\n", "")


def test_help_lists_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    """--help prints usage and every option on standard output."""
    out, err = answer(capsys, "--help")
    assert out.startswith("Usage: twistd -n chutes-autopilot [options], or chutes-autopilot [run] [options]\n")
    options = set(re.findall(r"--[a-z-]+", out))
    assert options == {"--endpoint", "--env-file", "--workers", "--demo", "--check-config", "--version", "--help"}
    assert err == ""


class Twistd(ServerOptions):
    """twistd's own options, with ours as its one command."""

    def __init__(self, **environ: str) -> None:
        super().__init__()
        self.ours = Options(environ)

    @property
    def subCommands(self) -> Iterator[tuple[str, None, Callable[[], Options], str]]:
        yield "chutes-autopilot", None, lambda: self.ours, ""


def under_twistd(*arguments: str, **environ: str) -> Twistd:
    twistd = Twistd(**environ)
    twistd.parseOptions([*arguments, "chutes-autopilot"])
    return twistd


def test_twistd_leaves_no_pid_file() -> None:
    """twistd's default pid file is switched off, and one that was asked for stays."""
    assert under_twistd("-n")["pidfile"] == ""
    assert under_twistd("-n", "--pidfile=/run/autopilot.pid")["pidfile"] == "/run/autopilot.pid"


def log_one_event(twistd: Twistd) -> None:
    Logger("chutes_autopilot.x", observer=twistd.ours.observer()).info("hello")


@pytest.mark.parametrize("arguments", [["-n"], ["-n", "--logfile=-"]])
def test_the_log_goes_to_standard_output(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """In the foreground the log is on standard output, in the format of the settings."""
    monkeypatch.setattr("sys.stdout", stdout := io.StringIO())
    log_one_event(under_twistd(*arguments, LOG_FORMAT="json"))
    assert json.loads(stdout.getvalue())["message"] == "hello"
