"""The signals of a running service: an end that owes nobody an answer, and settings read again."""

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, IncompleteRead, RemoteDisconnected
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import openai
import pytest

ALIAS = "chutesai/AutoPilot"
HELLO: Any = [{"role": "user", "content": "Say hello."}]


def with_descriptors(soft: int, hard: int) -> tuple[str, ...]:
    """twistd with these limits of open files."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))"
    return ("-c", f"{limit}; from twisted.scripts.twistd import run; run()", "-n")


def chat(tokens: int = 48) -> bytes:
    return json.dumps({"model": ALIAS, "stream": True, "messages": HELLO, "n_tokens": tokens}).encode()


class Demo:
    """A running demo."""

    def __init__(self, daemon: Any) -> None:
        self.daemon = daemon
        self.port = int(daemon.wait_for("listening on http://127.0.0.1:"))
        daemon.wait_for("utilization: ready")
        self.opened: list[Any] = []

    def connect(self) -> HTTPConnection:
        """A connection that stays open between requests, and is open already."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.connect()
        self.opened += [connection.sock, connection]
        return connection

    def stream(self, tokens: int) -> Any:
        """A raw stream of which the first bytes have come."""
        connection = self.connect()
        connection.request("POST", "/v1/chat/completions", chat(tokens))
        answer = connection.getresponse()
        self.opened.append(answer)
        answer.read(1)
        return answer

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send it, and wait until the service has said that it came."""
        self.daemon.process.send_signal(number)
        self.daemon.wait_for("received")

    def cut(self) -> int:
        """How many answers were cut, by the log; the service has ended."""
        return sum("outcome=cut" in line for line in self.daemon.wait()[1].splitlines())


@pytest.fixture
def demo(start: Callable[..., Any]) -> Iterator[Callable[..., Demo]]:
    demos: list[Demo] = []

    def start_demo(*arguments: str, **environ: str) -> Demo:
        demos.append(Demo(start("--demo", *arguments, **environ)))
        return demos[-1]

    yield start_demo
    for opened in [opened for demo in demos for opened in demo.opened]:
        opened.close()


def test_a_stream_in_flight_is_answered_whole(demo: Callable[..., Demo]) -> None:
    """The SDK, streaming through a SIGTERM, reads to the finish reason; then the process ends with 0."""
    running = demo()
    with openai.OpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key="cpk_demo", max_retries=0) as client:
        stream = client.chat.completions.create(
            model=ALIAS,
            messages=HELLO,
            stream=True,
            extra_body={"n_tokens": 90},
            stream_options={"include_usage": True},
        )
        chunks = [next(stream)]
        running.signal()
        chunks += list(stream)
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]
    assert sum(bool(choice.delta.content) for chunk in chunks for choice in chunk.choices) >= 90
    code, out, err = running.daemon.wait()
    assert (code, err, "outcome=complete" in out, "Traceback" in out) == (0, "", True, False)


def test_open_connections_get_one_more_answer_and_new_ones_none(demo: Callable[..., Demo]) -> None:
    """While a stream is still running: readyz is 503 draining, requests on kept-alive connections are answered with
    Connection: close and the connection closes; nobody can connect any more."""
    running = demo()
    stream = running.stream(80)
    probe, chatting = running.connect(), running.connect()
    running.signal()
    probe.request("GET", "/readyz")
    answer = probe.getresponse()
    error = json.loads(answer.read())["error"]
    assert (answer.status, error["code"], error["type"]) == (503, "draining", "not_ready")
    assert (answer.getheader("Connection"), probe.sock) == ("close", None)
    chatting.request("POST", "/v1/chat/completions", chat(1))
    answer = chatting.getresponse()
    assert (answer.status, answer.getheader("Connection")) == (200, "close")
    assert answer.read().endswith(b"data: [DONE]\n\n")
    with pytest.raises(ConnectionRefusedError):
        running.connect()
    assert stream.read().endswith(b"data: [DONE]\n\n")
    assert running.daemon.wait()[0] == 0


def test_an_idle_connection_does_not_hold_up_the_end(demo: Callable[..., Demo]) -> None:
    """Kept-alive connections without a request, before their first or after one, are closed after a moment."""
    running = demo()
    untouched, used = running.connect(), running.connect()
    used.request("GET", "/healthz")
    assert used.getresponse().read() == b"ok"
    began = time.monotonic()
    running.signal()
    assert (untouched.sock.recv(1), used.sock.recv(1)) == (b"", b"")
    assert running.daemon.wait()[0] == 0
    assert time.monotonic() - began < 5


def test_what_outlasts_the_grace_is_cut(demo: Callable[..., Demo]) -> None:
    """After SHUTDOWN_GRACE_MS an answer ends without its end, so that no client takes it for whole; exit code 0."""
    running = demo(SHUTDOWN_GRACE_MS="300")
    stream = running.stream(5000)
    running.signal()
    with pytest.raises(IncompleteRead):
        stream.read()
    assert running.cut() == 1
    assert running.daemon.process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_wait(demo: Callable[..., Demo], number: int) -> None:
    """The first drains for SHUTDOWN_GRACE_MS, the second cuts what is left at once; exit code 0."""
    running = demo(SHUTDOWN_GRACE_MS="50000")
    stream = running.stream(5000)
    began = time.monotonic()
    running.signal(number)
    running.signal(number)
    with pytest.raises(IncompleteRead):
        stream.read()
    assert running.cut() == 1
    assert running.daemon.process.returncode == 0
    assert time.monotonic() - began < 10


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    file = tmp_path / "env"
    file.write_text("MAX_CONNECTIONS=2\nLOG_LEVEL=info\nCLIENT_KEY_SECRET=before-before-before\n")
    return file


def test_sighup_applies_what_can_change(demo: Callable[..., Demo], env_file: Path) -> None:
    """Changed limits hold from now on, what needs a restart is named without its value."""
    running = demo("--env-file", str(env_file))
    running.connect(), running.connect()
    env_file.write_text(
        "MAX_CONNECTIONS=50\nMAX_REQUEST_BYTES=10\nLOG_LEVEL=warn\nCLIENT_KEY_SECRET=after-after-after\n"
    )
    running.daemon.process.send_signal(signal.SIGHUP)
    assert running.daemon.wait_for("it needs a restart: ") == "CLIENT_KEY_SECRET"
    third = running.connect()
    third.request("POST", "/v1/chat/completions", chat())
    assert third.getresponse().status == 413
    code, out, err = running.daemon.end()
    assert (code, err) == (0, "")
    assert "after-after" not in out
    assert "settings changed: MAX_REQUEST_BYTES, MAX_CONNECTIONS, LOG_LEVEL\n" in out
    after = out.partition("needs a restart")[2]
    assert " info " not in after  # LOG_LEVEL


def test_sighup_refuses_a_faulty_file_whole(demo: Callable[..., Demo], env_file: Path) -> None:
    """Every fault is named, and not even the sound lines of the file count; the next one that is sound does."""
    running = demo("--env-file", str(env_file))
    running.connect(), running.connect()
    for faulty, told in [
        ("MAX_CONNECTIONS=50\nSTICKY_TTL_SECS=never\nLOG_LEVEL=loud\n", ("STICKY_TTL_SECS: ", "LOG_LEVEL: ")),
        ("MAX_CONNECTIONS=50\nrubbish\n", ("line 2: ",)),
        (None, ("cannot read the file",)),
    ]:
        env_file.unlink() if faulty is None else env_file.write_text(faulty)
        running.daemon.process.send_signal(signal.SIGHUP)
        refusal = running.daemon.wait_for("the settings stay as they were: ")
        assert all(part in refusal for part in told)
    waiting = running.connect()
    waiting.request("GET", "/healthz")
    waiting.sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        waiting.sock.recv(1)
    waiting.sock.settimeout(10)
    env_file.write_text("MAX_CONNECTIONS=50\n")
    running.daemon.process.send_signal(signal.SIGHUP)
    assert waiting.getresponse().read() == b"ok"
    assert running.daemon.end()[0] == 0


def test_sighup_without_an_env_file_is_ignored(start: Callable[..., Any]) -> None:
    """It is no reason to die."""
    daemon = start()
    url = daemon.wait_for("listening on ")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("SIGHUP ignored: there is no --env-file and no ALIASES_FILE to read again")
    with urlopen(f"{url}/healthz", timeout=10) as answer:  # noqa: S310
        assert answer.read() == b"ok"
    assert daemon.end()[0] == 0


def test_the_log_tells_how_many_clients_may_connect(start: Callable[..., Any]) -> None:
    """The limit of open files is raised as far as it may be, and 80% of it bound MAX_CONNECTIONS."""
    few = start("chutes-autopilot", command=with_descriptors(64, 1000))
    enough = start(
        "chutes-autopilot", command=with_descriptors(64, 1000), MAX_CONNECTIONS="700", MAX_INFLIGHT_REQUESTS="200"
    )
    assert few.wait_for("at most ") == (
        "800 client connections at once: MAX_CONNECTIONS=10000 needs 12500 file descriptors"
    )
    assert enough.wait_for("at most ") == "700 client connections at once"
    for daemon in (few, enough):
        daemon.wait_for("listening on ")
        assert daemon.end()[0] == 0


def test_sighup_tells_it_again_where_it_changed(start: Callable[..., Any], tmp_path: Path) -> None:
    """More clients take more descriptors, which are there up to the hard limit."""
    path = tmp_path / "env"
    path.write_text("MAX_CONNECTIONS=10\nMAX_INFLIGHT_REQUESTS=5\n")
    daemon = start("chutes-autopilot", "--env-file", str(path), command=with_descriptors(64, 1000))
    assert daemon.wait_for("at most ") == "10 client connections at once"
    daemon.wait_for("listening on ")
    path.write_text("MAX_CONNECTIONS=700\nMAX_INFLIGHT_REQUESTS=5\n")
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.wait_for("at most ") == "700 client connections at once"
    assert daemon.end()[0] == 0


@pytest.fixture
def crowd() -> Iterator[Callable[[int, int], list[socket.socket]]]:
    """Connects many clients that say nothing."""
    sockets: list[socket.socket] = []

    def connect_all(port: int, count: int) -> list[socket.socket]:
        sockets.extend(socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(count))
        return sockets

    yield connect_all
    for each in sockets:
        each.close()


def answers_again(url: str) -> bool:
    """Whether it does within ten seconds; until the last of the crowd has gone a client may still be reset."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            with urlopen(url, timeout=10) as answer:  # noqa: S310
                return bool(answer.read() == b"ok")
        except (ConnectionResetError, RemoteDisconnected, URLError):
            time.sleep(0.01)
    return False


def test_it_survives_the_end_of_its_descriptors(
    start: Callable[..., Any], crowd: Callable[[int, int], list[socket.socket]]
) -> None:
    """Out of file descriptors it resets clients it cannot take, logs no address, and serves again when some leave."""
    daemon = start("chutes-autopilot", command=with_descriptors(40, 40))
    port = int(daemon.wait_for("listening on http://127.0.0.1:"))
    clients = crowd(port, 70)
    daemon.wait_for("EMFILE")
    own_ports = [str(client.getsockname()[1]) for client in clients]
    for client in clients:
        client.close()
    assert answers_again(f"http://127.0.0.1:{port}/healthz")
    code, out, err = daemon.end()
    assert (code, err, "Traceback" in out) == (0, "", False)
    assert not any(own in line for own in own_ports for line in out.splitlines())
