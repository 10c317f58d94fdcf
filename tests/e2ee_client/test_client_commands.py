"""The command line: what each sub-command says, how it ends, and what it keeps to itself."""

import json
import os
import stat
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quote_factory import MEASUREMENTS
from scripted_gateway import ANSWER_ID, MODEL, TOKEN, Asked, ScriptedGateway, refuse, said
from twisted.internet.threads import deferToThread

from chutes_autopilot.e2ee_client.commands import Command, Terminal, say_checked
from chutes_autopilot.e2ee_client.gateway import Gateway
from chutes_autopilot.e2ee_client.options import (
    TOKEN_VARIABLE,
    Address,
    UsageError,
    authorization,
    gateway_options,
    parser,
    warnings,
)

URL = "https://gateway.example/v1/chutes"
PROMPT = "Marker of a prompt"
ROOT = Path(__file__).parent.parent.parent


class Run:
    """A sub-command against the scripted gateway, with what it printed."""

    def __init__(self, connect: Callable[..., Gateway], url: str) -> None:
        self._connect, self._url = connect, url
        self.out = ""
        self.lines: list[str] = []

    async def __call__(self, command: str, *arguments: str) -> int:
        self.out, self.lines = "", []
        if command == "chat":
            arguments = (*arguments, PROMPT)
        options = parser().parse_args([command, "--base-url", self._url, *arguments])
        terminal = Terminal(self._print, self.lines.append)
        how = gateway_options(options, lambda path: Path(path).read_bytes())
        gateway = self._connect(
            say_checked(self.lines.append), algo=how.algo, version=how.version, policy=how.policy, in_clear=how.in_clear
        )
        return await Command(options, gateway, f"Bearer {TOKEN}", terminal).run()

    def _print(self, text: str) -> None:
        self.out += text

    @property
    def said(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def run(connect: Callable[..., Gateway], scripted: ScriptedGateway) -> Run:
    return Run(connect, scripted.url)


@pytest.mark.parametrize("arguments", [(), ("--no-stream",), ("--algo", "ecdsa"), ("--e2ee-version", "1")])
async def test_chat_prints_the_answer_and_what_was_verified(run: Run, arguments: tuple[str, ...]) -> None:
    """The answer alone goes to standard output; key, signature and receipt are spoken of beside it."""
    assert await run("chat", "--model", MODEL, *arguments) == 0
    assert run.out.strip() == PROMPT
    assert "nothing was attested" in run.said
    assert "signature: the gateway's key signs for exactly the bytes" in run.said
    assert "receipt: signed by the gateway's key" in run.said
    assert PROMPT not in run.said
    assert TOKEN not in run.said


async def test_chat_fails_where_the_answer_is_not_proven(run: Run, scripted: ScriptedGateway) -> None:
    """An answer whose bytes are other than the signed ones is printed, and its exit code says what it is worth."""

    def forge(asked: Asked) -> None:
        asked.head()
        sealer = asked.sealer()
        asked.write(sealer.feed(said("x")))
        asked.request.write(b": something the service never wrote\n\n")
        asked.write(sealer.feed(b"data: [DONE]\n\n"))
        asked.finish()

    scripted.scripts = iter([forge])
    assert await run("chat", "--model", MODEL) == 1
    assert "signature: NOT VALID. The gateway signed other bytes" in run.said
    assert "receipt: signed" not in run.said


async def test_chat_says_why_it_failed(run: Run, scripted: ScriptedGateway) -> None:
    """A refused request, a broken stream, a report that is not enough: one line and exit code 1."""

    def broken(asked: Asked) -> None:
        asked.head()
        asked.write(asked.sealer().feed(said("part")))
        asked.finish()

    scripted.scripts = iter([refuse(429, "rate_limit_exceeded"), broken])
    assert await run("chat", "--model", MODEL) == 1
    assert "rate_limit_exceeded: The gateway answered 429" in run.lines[-1]
    assert await run("chat", "--model", MODEL) == 1
    assert run.out == "part"
    assert "upstream_stream_truncated" in run.lines[-1]
    assert await run("chat", "--model", MODEL, "--trust", "bound") == 1
    assert len(run.lines) == 1
    assert run.said.startswith("e2ee_report_refused: The gateway's report was refused: it has no quote")


async def test_report_says_what_was_checked(run: Run) -> None:
    """In plain words, and its exit code says whether it is enough."""
    assert await run("report") == 0
    assert run.lines[0].startswith("key: ed25519, signing address ")
    assert "no quote: only the gateway's word" in run.said
    assert await run("report", "--trust", "quote") == 1


async def test_a_recorded_exchange_is_verified_later(run: Run, scripted: ScriptedGateway, tmp_path: Path) -> None:
    """The file holds hashes of ciphertext only, and nobody else may read it."""
    record = tmp_path / "exchanges"
    assert await run("chat", "--model", MODEL, "--record", str(record)) == 0
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert PROMPT not in record.read_text()
    assert json.loads(record.read_text())["id"] == ANSWER_ID
    assert await run("verify", str(record)) == 0
    assert await run("verify", str(record), "--id", ANSWER_ID) == 0
    assert "signature: the gateway's key signs" in run.said
    assert "receipt: signed by" in run.said
    assert await run("verify", str(record), "--id", "another") == 1

    scripted.asked[-1].written += b"x"
    assert await run("verify", str(record)) == 1
    assert "signature: NOT VALID" in run.said
    scripted.asked.clear()
    assert await run("verify", str(record)) == 1
    assert "signature: not verified, for it could not be fetched. The gateway answered 404" in run.said


async def test_an_answer_is_worth_more_than_its_record(run: Run, tmp_path: Path) -> None:
    """Where the record cannot be written, this is said and the answer verified all the same."""
    assert await run("chat", "--model", MODEL, "--record", str(tmp_path)) == 0
    assert "the exchange was not recorded: Is a directory" in run.said


async def test_verify_says_what_it_cannot_read(run: Run, tmp_path: Path) -> None:
    """No file, or one that is none of ours."""
    assert await run("verify", str(tmp_path / "none")) == 1
    assert "No such file" in run.said
    (tmp_path / "other").write_text("{}\n")
    assert await run("verify", str(tmp_path / "other")) == 1
    assert "has no id" in run.said


def _child(arguments: list[str], prompt: str = "") -> "subprocess.CompletedProcess[str]":
    environ = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), TOKEN_VARIABLE: TOKEN}
    command = [sys.executable, "-m", "chutes_autopilot.e2ee_client", *arguments]
    return subprocess.run(command, input=prompt, capture_output=True, text=True, env=environ, check=False, timeout=30)


@pytest.mark.wait(40)
async def test_the_module_runs_as_a_program(scripted: ScriptedGateway) -> None:
    """The prompt by standard input, the token by the environment, the answer on standard output alone."""
    done = await deferToThread(_child, ["chat", "--base-url", scripted.url, "--model", MODEL], PROMPT)
    assert (done.returncode, done.stdout.strip()) == (0, PROMPT)
    assert "signature: the gateway's key signs" in done.stderr
    assert TOKEN not in done.stderr
    done = await deferToThread(_child, ["chat", "--base-url", scripted.url, "--model", MODEL, "from the command line"])
    assert (done.returncode, done.stdout.strip()) == (0, "from the command line")
    wrong = await deferToThread(_child, ["report", "--base-url", scripted.url, "--measurements", "x"])
    assert wrong.returncode == 2
    assert "--measurements needs --trust quote" in wrong.stderr


@pytest.mark.wait(40)
async def test_the_proxy_runs_until_it_is_told_to_end(scripted: ScriptedGateway) -> None:
    """It says where it listens, answers, and ends with 0 at a signal."""
    import openai

    def run() -> tuple[int, str, str]:
        environ = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), TOKEN_VARIABLE: TOKEN}
        arguments = ["proxy", "--base-url", scripted.url, "--listen", "127.0.0.1:0"]
        command = [sys.executable, "-m", "chutes_autopilot.e2ee_client", *arguments]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
            try:
                assert process.stderr is not None
                lines = ""
                while "listening on " not in lines:
                    lines += process.stderr.readline() or pytest.fail(lines)
                url = lines.partition("listening on ")[2].split()[0]
                with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
                    said = [{"role": "user", "content": PROMPT}]
                    answer = client.chat.completions.create(model=MODEL, messages=said)  # type: ignore[arg-type]
                process.terminate()
                lines += process.stderr.read()
            finally:
                process.kill()
            return process.wait(), str(answer.choices[0].message.content), lines

    code, text, lines = await deferToThread(run)
    assert (code, text) == (0, PROMPT)
    assert "nothing was attested" in lines
    assert PROMPT not in lines
    assert TOKEN not in lines


def parsed(*arguments: str, command: str = "report") -> Namespace:
    return parser().parse_args([command, "--base-url", URL, *arguments])


def read_nothing(path: str) -> bytes:
    raise FileNotFoundError(2, "No such file", path)


def test_the_token_comes_from_option_file_or_environment() -> None:
    """In this order; an empty variable is none."""
    environ = {TOKEN_VARIABLE: "of-environ"}
    assert (
        authorization(parsed("--token", "of-option", "--token-file", "f"), environ, read_nothing) == "Bearer of-option"
    )
    assert authorization(parsed("--token-file", "f"), environ, lambda _: b"of-file\n") == "Bearer of-file"
    assert authorization(parsed(), environ, read_nothing) == "Bearer of-environ"
    assert authorization(parsed(), {TOKEN_VARIABLE: ""}, read_nothing) is None


@pytest.mark.parametrize("token", ["two words", "ä", "a\nb", ""])
def test_a_token_that_is_none_is_not_repeated(token: str) -> None:
    """The message does not hold it."""
    with pytest.raises(UsageError, match="the token must be visible") as refused:
        authorization(parsed("--token-file", "f"), {}, lambda _: token.encode())
    assert not token or token not in str(refused.value)


USAGE: list[tuple[tuple[str, ...], str]] = [
    (("--measurements", "f"), "needs --trust quote"),
    (("--measurements", "f", "--trust", "quote"), "No such file"),
    (("--in-clear", "a b"), "names of members"),
    (("--in-clear", "tools,content"), "cannot turn off"),
    (("--in-clear", "messages"), "cannot turn off"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_options_that_contradict_are_refused(arguments: tuple[str, ...], message: str) -> None:
    """Before anything is sent."""
    with pytest.raises(UsageError, match=message):
        gateway_options(parsed(*arguments), read_nothing)


def test_measurements_are_read() -> None:
    """Pinned ones, all of which must be right."""
    arguments = parsed("--trust", "quote", "--measurements", "f", "--in-clear", "tools,stop", "--in-clear", "user")
    options = gateway_options(arguments, lambda _: json.dumps(MEASUREMENTS).encode())
    assert options.policy.measurements is not None
    assert len(options.policy.measurements.entries) == 2
    assert options.in_clear == {"tools", "stop", "user"}
    with pytest.raises(UsageError, match="not JSON"):
        gateway_options(arguments, lambda _: b"x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8788", Address("127.0.0.1", 8788)),
        ("localhost:0", Address("127.0.0.1", 0)),
        ("[::1]:1", Address("::1", 1)),
        ("0.0.0.0:8788", None),
        ("192.0.2.1:8788", None),
        ("example.org:1", None),
        ("127.0.0.1", None),
        ("127.0.0.1:65536", None),
        (":8788", None),
    ],
)
def test_the_proxy_listens_on_loopback_only(text: str, expected: Address | None) -> None:
    """Whoever reaches it speaks to the gateway in its user's name, and in clear."""
    arguments = ["proxy", "--base-url", URL, "--listen", text]
    if expected is None:
        with pytest.raises(SystemExit):
            parser().parse_args(arguments)
    else:
        assert parser().parse_args(arguments).listen == expected


@pytest.mark.parametrize(
    "url",
    [
        "https://gateway.example/v1",
        "gateway.example/v1/chutes",
        "ftp://gateway.example/v1/chutes",
        "https:///v1/chutes",
        "https://user:password@gateway.example/v1/chutes",
        "https://gateway.example/v1/chutes?x=1",
        "https://gateway.example:x/v1/chutes",
    ],
)
def test_a_base_url_that_is_not_of_the_route_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It must lead to the encrypted route, and carry no password."""
    with pytest.raises(SystemExit):
        parser().parse_args(["report", "--base-url", url])
    assert "password" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "warned"),
    [("http://gateway.example/v1/chutes", True), (URL, False), ("http://[::1]:80/v1/chutes", False)],
)
def test_a_way_on_which_the_token_can_be_read_is_warned_of(url: str, warned: bool) -> None:
    """Plain HTTP to another machine."""
    assert bool(warnings(url)) == warned


def test_what_stands_beside_the_route_is_found() -> None:
    """Reports, signatures and receipts are one level up, behind any prefix."""
    options: Any = gateway_options(
        parser().parse_args(["report", "--base-url", "https://g.example/a/v1/chutes/"]), read_nothing
    )
    assert options.url("chat/completions") == "https://g.example/a/v1/chutes/chat/completions"
    assert options.document_url("attestation/report") == "https://g.example/a/v1/attestation/report"
