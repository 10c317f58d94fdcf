"""What clients send, and who they are, is in no output, log, metric, error or file of the service."""

import json
import re
import socket
import sys
from collections.abc import Callable
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from chutes_autopilot.policy.stickiness import client_key

ALIAS = "chutesai/AutoPilot"
CLIENT = "127.77.66.55" if sys.platform == "linux" else "127.0.0.1"
"""The client's address; on other systems loopback has only one, which proves nothing."""
FORWARDED = "198.51.100.77"
SECRETS = {
    "authorization": "cpk_MarkAuthorization",
    "api key": "MarkApiKey",
    "prompt": "MarkPrompt",
    "query": "MarkQuery",
    "cookie": "MarkCookie",
    "session": "MarkSession",
    "affinity": "MarkAffinity",
    "cache key": "MarkCacheKey",
    "malformed": "MarkMalformed",
    "client key secret": "MarkClientKeySecret",
    "forwarded for": FORWARDED,
}
HEADERS = {
    "Authorization": f"Bearer {SECRETS['authorization']}",
    "X-Api-Key": SECRETS["api key"],
    "Cookie": f"id={SECRETS['cookie']}",
    "X-Forwarded-For": FORWARDED,
    "X-Session-Id": SECRETS["session"],
    "X-Session-Affinity": SECRETS["affinity"],
}
TARGET = f"/v1/chat/completions?q={SECRETS['query']}"
HELD = (CLIENT, *SECRETS.values()) if CLIENT != "127.0.0.1" else tuple(SECRETS.values())
KEYS = [  # what the service knows a client by
    client_key(SECRETS["client key secret"].encode(), token=token, address=address, session=session).hex()
    for token in (SECRETS["authorization"].encode(), SECRETS["api key"].encode(), b"")
    for address in (CLIENT, FORWARDED)
    for session in (b"", *(SECRETS[name].encode() for name in ("session", "affinity", "cache key")))
]


def found_in(text: str | bytes) -> list[str]:
    """Which secrets, or hashes of them, a text holds."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    return [secret for secret in (*HELD, *KEYS) if secret.lower() in text.lower()]


def chat(model: str, **more: Any) -> bytes:
    prompt = [{"role": "user", "content": SECRETS["prompt"]}]
    return json.dumps(
        {"model": model, "messages": prompt, "prompt_cache_key": SECRETS["cache key"], "n_tokens": 3, **more}
    ).encode()


class Service:
    """A running demo, and the answers of the gateway itself that came so far."""

    def __init__(self, daemon: Any) -> None:
        self.daemon = daemon
        self.simulator = daemon.wait_for("the simulator listens on ").split(",")[0]
        self.port = int(daemon.wait_for("listening on http://127.0.0.1:").split('"')[0])
        daemon.wait_for("utilization: ready")
        self.told: list[str | bytes] = []
        self.names = [model["id"] for model in json.loads(self.ask("GET", "/v1/models", b"")[1])["data"][1:]]

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=20, source_address=(CLIENT, 0))

    def ask(self, method: str, target: str, body: bytes, **headers: str) -> tuple[int, bytes]:
        """One request with every secret in its headers; of what is relayed from the upstream only the head counts."""
        connection = self.connect()
        try:
            connection.request(method, target, body, {**HEADERS, **headers})
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        self.told += [str(answer.headers), data if answer.status >= 400 else b""]
        return answer.status, data

    def raw(self, data: bytes) -> bytes:
        """Whatever comes back for these bytes."""
        with socket.create_connection(("127.0.0.1", self.port), 20, (CLIENT, 0)) as client:
            client.sendall(data)
            answer = b""
            while piece := client.recv(65536):
                answer += piece
        self.told.append(answer)
        return answer

    def stream(self, tokens: int) -> tuple[HTTPConnection, HTTPResponse]:
        """A stream of which the first bytes have come."""
        connection = self.connect()
        connection.request("POST", TARGET, chat(ALIAS, stream=True, n_tokens=tokens), HEADERS)
        answer = connection.getresponse()
        answer.read(1)
        return connection, answer

    def simulate(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Ask the simulator, whose answers are not the gateway's."""
        connection = HTTPConnection(self.simulator.removeprefix("http://"), timeout=20)
        try:
            connection.request(method, path, body)
            return connection.getresponse().read()
        finally:
            connection.close()


def ordinary_and_odd(service: Service) -> None:
    """Alias, list and direct, both ways of reading requests, and what is refused."""
    first, second = service.names[:2]
    for model in (ALIAS, f"{second}, {first}", first):
        for odd in ({}, {"TE": "trailers"}):
            for stream in (True, False):
                assert service.ask("POST", TARGET, chat(model, stream=stream), **odd)[0] == 200
    for odd in ({}, {"TE": "trailers"}):
        for body, status in [
            (b'{"model": "%b", "x": "%b' % (ALIAS.encode(), SECRETS["prompt"].encode()), 400),
            (b'["%b"]' % SECRETS["prompt"].encode(), 400),
            (b'{"messages": "%b"}' % SECRETS["prompt"].encode(), 400),
            (b'{"model": {"x": "%b"}}' % SECRETS["prompt"].encode(), 400),
            (chat("nobody/Knows"), 400),
            (chat(ALIAS, x="y" * 5000), 413),
        ]:
            assert service.ask("POST", TARGET, body, **odd)[0] == status
    for path, model, status in [
        ("completions", ALIAS, 200),
        ("responses", service.names[-1], 200),
        ("messages", service.names[-1], 200),
        ("messages", ALIAS, 400),
        ("embeddings", ALIAS, 400),
        ("embeddings", service.names[-1], 404),
    ]:
        body = chat(model, input=SECRETS["prompt"], stream=path != "embeddings")
        assert service.ask("POST", f"/v1/{path}?q={SECRETS['query']}", body)[0] == status
    mark = SECRETS["malformed"]
    for method, target, status in [
        ("GET", f"/{mark}?q={mark}", 404),
        ("GET", f"/v1/models/{mark}", 404),
        ("GET", TARGET, 405),
        (mark, TARGET, 405),
        ("GET", f"/healthz?q={mark}", 200),
    ]:
        assert service.ask(method, target, b"")[0] == status


def malformed(service: Service) -> None:
    """Heads that are not HTTP, and heads and bodies that take too long."""
    mark = SECRETS["malformed"].encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n" % mark
    for data, status in [
        (b"%b\r\n\r\n" % mark, b"400"),
        (head + b"%b\r\n\r\n" % mark, b"400"),
        (head + b"X: %b\0\r\n\r\n" % mark, b"400"),
        (head + b"Content-Length: %b\r\n\r\n" % mark, b"400"),
        (head + b"Expect: %b\r\n\r\n" % mark, b"417"),
        (head + b"Transfer-Encoding: chunked\r\n\r\n%b\r\n" % mark, b"400"),
        (head + b"X: %b\r\n\r\n" % (mark * 4000), b"431"),
        (b"GET /%b HTTP/1.1\r\n" % (mark * 4000), b"414"),
        (head, b"408"),
        (head + b"Content-Length: 99\r\n\r\n%b" % mark, b"408"),
    ]:
        assert service.raw(data).startswith(b"HTTP/1.1 " + status)


def upstream_faults(service: Service) -> None:
    """The simulator fails in every way it knows that ends by itself, before an answer and in it, once for each."""
    for fault in (
        "cut",
        "cut_before_body",
        "garbage",
        "reset",
        "error_tail",
        "error_event_first",
        "empty",
        "401",
        "429",
    ):
        for stream in (True, False):
            put = json.dumps({"fault": fault, "requests": 1}).encode()
            assert b'"simulated"' in service.simulate("POST", "/_simulator/faults", put)
            connection = service.connect()
            connection.request("POST", TARGET, chat(service.names[0], stream=stream, n_tokens=6), HEADERS)
            answer = b""
            while piece := connection.sock.recv(65536):
                answer += piece
                if b"\r\n0\r\n\r\n" in answer or _is_whole(answer):
                    break
            connection.close()
            service.told.append(answer)


def _is_whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return length is not None and len(body) >= int(length[1])


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_leaves_the_service_but_to_its_upstream(
    start: Callable[..., Any], tmp_path: Path, log_format: str
) -> None:
    """A whole life, to the end of a drain, at the lowest log level: of credentials, prompts, addresses and keys, and of
    hashes of them, nothing is in what it writes or tells."""
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    service = Service(
        start(
            "--demo",
            cwd=str(here),
            TMPDIR=str(temporary),
            HOME=str(here),
            PYTHONDONTWRITEBYTECODE="1",
            LOG_LEVEL="debug",
            LOG_FORMAT=log_format,
            CLIENT_KEY_SECRET=SECRETS["client key secret"],
            TRUST_PROXY_HEADERS="true",
            TRUSTED_PROXY_CIDRS="127.0.0.0/8",
            MAX_REQUEST_BYTES="5000",
            CLIENT_HEADER_TIMEOUT_MS="500",
            CLIENT_BODY_TIMEOUT_MS="500",
            SHUTDOWN_GRACE_MS="300",
        )
    )
    ordinary_and_odd(service)
    malformed(service)
    upstream_faults(service)
    seen = service.simulate("GET", "/_simulator/requests")
    assert set(HELD) - set(found_in(seen)) == {CLIENT, SECRETS["malformed"], SECRETS["client key secret"]} & set(HELD)
    service.ask("GET", "/metrics", b"")
    metrics = service.ask("GET", "/metrics", b"")[1]
    assert b"chutes_autopilot_requests_active 0.0" in metrics

    leaver, answer = service.stream(5000)
    answer.close()
    leaver.close()
    service.daemon.wait_for("client_gone")
    connection, answer = service.stream(5000)
    code, out, err = service.daemon.end()
    answer.close()
    connection.close()
    outcomes = ("complete", "refused", "cut", "client_gone")
    codes = ("invalid_json", "request_too_large", "request_timeout", "upstream_stream_truncated", "bad_request")
    assert [word for word in (*outcomes, *codes) if word not in out] == []
    assert (code, err) == (0, "")
    assert found_in(out) == []
    assert found_in(metrics) == []
    assert [found for told in service.told if (found := found_in(told))] == []
    assert [path for path in tmp_path.rglob("*") if path not in (here, temporary)] == []
