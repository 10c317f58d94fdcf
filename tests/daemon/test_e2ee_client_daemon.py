"""The shipped client against the service in demo mode, each a process of its own: encrypted up to the instance."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai
import pytest
from attrs import frozen

ALIAS = "chutesai/AutoPilot"
PROMPT = "marker-of-the-prompt"
TOKEN = "marker-of-the-token"
CLIENT = ("-m", "chutes_autopilot.e2ee_client")


@frozen
class Demo:
    """A running demo whose every request is sealed twice, and the client to ask it with."""

    daemon: Any
    start: Callable[..., Any]
    url: str
    simulator: str

    def client(self, command: str, *arguments: str) -> Any:
        """The client's process."""
        base = ("--base-url", f"{self.url}/v1/chutes")
        return self.start(command, *base, *arguments, command=CLIENT, CHUTES_AUTOPILOT_TOKEN=TOKEN)

    def finished(self, command: str, *arguments: str) -> tuple[str, list[str]]:
        """What a command of the client that went well printed, and what it said of it."""
        code, out, err = self.client(command, *arguments).wait()
        assert code == 0, err
        return out, err.splitlines()

    def seen(self) -> Any:
        """What reached the sealed side of the simulator, and how many chat requests came in clear."""
        with urlopen(f"{self.simulator}/_simulator/sealed_requests") as answer:  # noqa: S310
            sealed = json.load(answer)
        with urlopen(f"{self.simulator}/_simulator/requests") as answer:  # noqa: S310
            return sealed, json.load(answer)["arrived"]


@pytest.fixture
def demo(start: Callable[..., Any]) -> Iterator[Demo]:
    environ = {"CHUTES_TRANSPORT": "e2ee", "E2EE_REQUIRE": "true", "LOG_LEVEL": "debug"}
    daemon = start("--demo", TOKEN=TOKEN, **environ)
    simulator = daemon.wait_for("the simulator listens on ").partition(",")[0]
    url = daemon.wait_for("listening on ")
    daemon.wait_for("utilization: ready")
    running = Demo(daemon, start, url, simulator)
    yield running
    code, out, err = daemon.end()
    assert (code, err) == (0, "")
    assert "marker" not in out


def test_the_sdk_is_encrypted_by_its_base_url(demo: Demo) -> None:
    """A stream, a whole answer, the models and an error, through the local endpoint that knows the token."""
    proxy = demo.client("proxy", "--listen", "127.0.0.1:0")
    while " listening on " not in f" {(line := proxy.process.stderr.readline())}":
        assert line, "the local endpoint did not start"
    messages: Any = [{"role": "user", "content": PROMPT}]
    with openai.OpenAI(base_url=line.split()[2], api_key="unused", max_retries=0) as client:
        chunks = list(client.chat.completions.create(model=ALIAS, messages=messages, stream=True, max_tokens=8))
        whole = client.chat.completions.with_raw_response.create(model=ALIAS, messages=messages, max_tokens=8)
        models = [model.id for model in client.models.list()]
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="nobody/Knows", messages=messages)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "This is a simulated answer from model "
    assert whole.parse().choices[0].message.content == text
    assert whole.headers["x-e2ee-applied"] == "true"
    assert whole.headers["x-chutes-autopilot-selected"] in models
    assert refused.value.code == "unknown_model"
    assert proxy.end()[0] == 0
    sealed, in_clear = demo.seen()
    assert [request["opened"] for request in sealed["requests"]] == [True, True]
    assert in_clear == 0


@pytest.mark.parametrize("arguments", [(), ("--no-stream", "--algo", "ecdsa")], ids=["stream", "whole"])
def test_chat_proves_what_it_prints(demo: Demo, arguments: tuple[str, ...], tmp_path: Path) -> None:
    """The answer, then the service's signature and receipt for it, which a later look at the record confirms."""
    record = str(tmp_path / "record")
    out, said = demo.finished("chat", "--model", ALIAS, "--record", record, *arguments, PROMPT)
    assert out.startswith("This is a simulated answer from model ")
    sealed, _ = demo.seen()
    assert f'  instance_id: "{sealed["requests"][-1]["instance_id"]}"' in said
    assert "signature: the gateway's key signs for exactly the bytes that were sent and received" in said
    assert PROMPT not in "\n".join(said)
    _, again = demo.finished("verify", record, *arguments[1:])
    assert any(line.startswith("receipt: signed by the gateway's key") for line in again)


def test_report_says_what_it_shows(demo: Demo) -> None:
    """Without a trusted execution environment, that is the service's word alone."""
    _, said = demo.finished("report")
    assert said[0].startswith("key: ed25519, signing address ")
    assert "nothing was attested" in said[1]
    code, _, err = demo.client("report", "--trust", "quote").wait()
    assert (code, "e2ee_report_refused" in err) == (1, True)
