"""A Chutes that costs next to nothing: the peer that lets a benchmark see the gateway and not the upstream.

``python benchmarks/stub_upstream.py [--tls CA_FILE]`` listens on a free port of 127.0.0.1, prints its URL in one line
and runs until SIGTERM. Every byte it sends is made before it listens. It answers

- ``GET /v1/models`` and ``GET /chutes/utilization`` in the platform's shape and size,
- any other GET with ``200 ok``, for the health checks of routers,
- POST with what the request's ``user`` member asks for:

  - ``bench plain``: 1 KB of JSON with a Content-Length;
  - ``bench paced EVENTS GAP_US``: an event stream, each event a write of its own, GAP_US microseconds apart; the head
    comes with the first event, as on the platform;
  - ``bench burst EVENTS``: an event stream as fast as the reader takes it.

A ``model`` that only the gateway knows (its alias) gets the platform's 404, so that a gateway which does not rewrite
it cannot look fast.

It is a bare epoll loop, as frameworks would cost more than some of the proxies measured here.
"""

import argparse
import gc
import heapq
import json
import re
import select
import signal
import socket
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from ipaddress import ip_address
from pathlib import Path
from random import Random
from tempfile import NamedTemporaryFile
from uuid import NAMESPACE_OID, uuid5

MODELS = tuple(f"bench/Model-{number:02}-TEE" for number in range(14))
PRIVATE_ROWS = 440
"""Rows of the feed that stand for private chutes; the real one has about as many."""
ALIAS = b"chutesai/AutoPilot"
PLAIN_BYTES = 1024
EVENT_BYTES = 300
READ_BYTES = 262144

_LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)", re.IGNORECASE)
_ASKED = re.compile(rb'"user": ?"bench (plain|paced|burst) ?(\d*) ?(\d*)"')
_NEVER = 3600.0


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _response(status: bytes, body: bytes, content_type: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (status, content_type, len(body), body)


_INVOCATION = (
    b"Cache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    b"X-Chutes-InvocationID: 00000000-0000-4000-8000-000000000000\r\n"
    b"X-Chutes-Quota-Total: 5000\r\nX-Chutes-Quota-Used: 1\r\nX-Chutes-Quota-Remaining: 4999\r\n"
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    + _INVOCATION
    + b"Transfer-Encoding: chunked\r\n\r\n"
)
_HEALTHY = _response(b"200 OK", b"ok", b"text/plain")
_NO_SUCH_MODEL = _response(b"404 Not Found", _json({"detail": f"model not found: {ALIAS.decode()}"}))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(number: int, finish_reason: str | None = None) -> bytes:
    """One SSE event of EVENT_BYTES; it holds exactly one ``[``, by which the load generator counts events."""
    event = {
        "id": "chatcmpl-00000000000000000000000000000000",
        "object": "chat.completion.chunk",
        "created": 1767225600,
        "model": MODELS[0],
        "choices": [{"index": 0, "delta": {"content": " token"}, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 250, "completion_tokens": number, "total_tokens": 250 + number},
        "pad": "",
    }
    event["pad"] = "x" * (EVENT_BYTES - len(_json(event)) - len(b"data: \n\n"))
    return b"data: " + _json(event) + b"\n\n"


_EVENT = _chunk(_event(1000))
_LAST = _chunk(_event(1000, "stop")) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


@cache
def _burst(events: int) -> bytes:
    return _STREAM_HEAD + _EVENT * (events - 1) + _LAST


def _plain() -> bytes:
    answer = {
        "id": "chatcmpl-00000000000000000000000000000000",
        "object": "chat.completion",
        "created": 1767225600,
        "model": MODELS[0],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 250, "completion_tokens": 150, "total_tokens": 400},
    }
    answer["choices"][0]["message"]["content"] = "words " * ((PLAIN_BYTES - len(_json(answer))) // 6)
    return _response(b"200 OK", _json(answer)).replace(b"\r\n\r\n", b"\r\n" + _INVOCATION + b"\r\n", 1)


def _catalog() -> bytes:
    entries = [
        {
            "id": name,
            "chute_id": str(uuid5(NAMESPACE_OID, name)),
            "root": name,
            "object": "model",
            "parent": None,
            "created": 1767225600,
            "owned_by": "vllm",
            "max_model_len": 131072,
            "context_length": 131072,
            "max_output_length": 65536,
            "quantization": "fp8",
            "input_modalities": ["text"],
            "output_modalities": ["text"],
            "supported_features": ["json_mode", "tools", "structured_outputs", "reasoning"],
            "supported_sampling_parameters": ["temperature", "top_p", "top_k", "stop", "seed"],
            "confidential_compute": True,
            "pricing": {"prompt": 0.1, "completion": 0.4, "input_cache_read": 0.05},
        }
        for name in MODELS
    ]
    return _json({"object": "list", "data": entries})


def _utilization() -> bytes:
    names = [*MODELS, *["[private chute]"] * PRIVATE_ROWS]
    windows = ("5m", "15m", "1h")
    rows = [
        {
            "chute_id": str(uuid5(NAMESPACE_OID, name if name in MODELS else f"private {place}")),
            "name": name,
            "timestamp": "2026-01-01T00:00:00.000000",
            "utilization_current": 0.25,
            **{f"utilization_{window}": 0.25 for window in windows},
            **{f"rate_limit_ratio_{window}": 0.0 for window in windows},
            **{
                f"{kind}_requests_{window}": 11616.25
                for kind in ("total", "completed", "rate_limited")
                for window in windows
            },
            "instance_count": 8,
            "active_instance_count": 1 + place % 8,
            "total_instance_count": 8,
            "target_count": 8,
            "scalable": False,
            "scale_allowance": 0,
            "action_taken": "no_action",
            "effective_multiplier": 1.0,
            "avg_busy_ratio": 0.25,
            "total_invocations": 11616.25,
            "total_rate_limit_errors": 0.0,
        }
        for place, name in enumerate(names)
    ]
    return _json(rows)


_PLAIN = _plain()
_LISTS = {
    b"/v1/models": _response(b"200 OK", _catalog()),
    b"/chutes/utilization": _response(b"200 OK", _utilization()),
}


def answer_to(target: bytes) -> bytes:
    """The whole response to a GET."""
    return _LISTS.get(target.partition(b"?")[0], _HEALTHY)


class Connection:
    """One accepted connection: requests in, one at a time; responses out."""

    __slots__ = ("_epoll", "_received", "_sock", "_stub", "_unsent", "_wants_handshake", "closed", "events_left", "gap")

    def __init__(self, stub: "StubUpstream", epoll: select.epoll, sock: socket.socket) -> None:
        self._stub = stub
        self._epoll = epoll
        self._sock = sock
        self._wants_handshake = isinstance(sock, ssl.SSLSocket)
        self._received = b""
        self._unsent = memoryview(b"")
        self.closed = False
        self.events_left = 0
        self.gap = 0.0

    def ready(self, event: int) -> None:
        """The socket can be read or written, or is broken."""
        try:
            if self._wants_handshake:
                self._sock.do_handshake()
                self._wants_handshake = False
            if event & select.EPOLLOUT:
                self._flush()
            if event & ~select.EPOLLOUT:
                self._read()
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except OSError:
            self.close()

    def send(self, data: bytes) -> None:
        """Send now what the socket takes, the rest when it takes more."""
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            self._epoll.modify(self._sock, select.EPOLLIN | select.EPOLLOUT)

    def close(self) -> None:
        """Forget the connection; a stream under way ends with it."""
        if not self.closed:
            self.closed = True
            self._stub.forget(self._sock)
            self._sock.close()

    def tick(self) -> None:
        """Send the next event of the paced stream under way."""
        self.events_left -= 1
        try:
            if self._unsent:
                raise ConnectionAbortedError("the reader of a paced stream is too slow")
            self.send(_EVENT if self.events_left else _LAST)
        except OSError:
            self.close()

    def _flush(self) -> None:
        try:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            return
        if not self._unsent:
            self._epoll.modify(self._sock, select.EPOLLIN)

    def _read(self) -> None:
        while True:
            data = self._sock.recv(READ_BYTES)
            if not data:
                self.close()
                return
            self._received = self._received + data if self._received else data
            self._answer_complete_requests()
            if not isinstance(self._sock, ssl.SSLSocket):  # epoll tells whether there is more, unless TLS holds it
                return

    def _answer_complete_requests(self) -> None:
        while self._received and not self.closed:
            data = self._received
            head = data.find(b"\r\n\r\n") + 4
            if head < 4:
                return
            if data.startswith(b"GET "):
                self._received = data[head:]
                self.send(answer_to(data[4 : data.index(b" ", 4)]))
                continue
            length = _LENGTH.search(data, 0, head)
            if length is None:
                raise ConnectionAbortedError("a request without Content-Length")
            end = head + int(length[1])
            if len(data) < end:
                return
            self._received = data[end:]
            self._chat(data, head, end)

    def _chat(self, data: bytes, start: int, end: int) -> None:
        place = data.find(b'"user":', start, end)
        asked = _ASKED.match(data, place) if place >= 0 else None
        if asked is None:
            raise ConnectionAbortedError("a request that asks for nothing")
        if data.find(ALIAS, start, start + 256) >= 0:
            self.send(_NO_SUCH_MODEL)
        elif asked[1] == b"plain":
            self.send(_PLAIN)
        elif asked[1] == b"burst":
            self.send(_burst(int(asked[2])))
        else:
            self.events_left = int(asked[2]) - 1
            self.gap = int(asked[3]) / 1e6
            self.send(_STREAM_HEAD + (_EVENT if self.events_left else _LAST))
            if self.events_left:
                self._stub.pace(self)


class StubUpstream:
    """The listening socket, its connections and the clock of the paced streams."""

    def __init__(self, listener: socket.socket, wrap: Callable[[socket.socket], socket.socket]) -> None:
        self._listener = listener
        self._wrap = wrap
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._due: list[tuple[float, int, Connection]] = []
        self._paced = 0
        self._random = Random(1).random

    def run(self) -> None:
        """Serve for ever."""
        self._epoll.register(self._listener, select.EPOLLIN)
        listening = self._listener.fileno()
        while True:
            # epoll waits for whole milliseconds, which would send paced events in bunches; select is finer.
            select.select([self._epoll], [], [], self._send_due())
            for fd, event in self._epoll.poll(0):
                if fd == listening:
                    self._accept()
                elif fd in self._connections:
                    self._connections[fd].ready(event)

    def pace(self, connection: Connection) -> None:
        """Have the connection's events sent from now on, at a phase of its own, so that streams do not tick at once."""
        self._paced += 1  # keeps the heap from comparing connections
        heapq.heappush(self._due, (time.monotonic() + connection.gap * self._random(), self._paced, connection))

    def forget(self, sock: socket.socket) -> None:
        """The connection is being closed."""
        del self._connections[sock.fileno()]

    def _send_due(self) -> float:
        """Send the events whose time has come; seconds until the next one."""
        now = time.monotonic()
        while self._due:
            when, _, connection = self._due[0]
            if when > now:
                return when - now
            heapq.heappop(self._due)
            if connection.closed:
                continue
            connection.tick()
            if connection.events_left:
                self._paced += 1
                heapq.heappush(self._due, (when + connection.gap, self._paced, connection))
        return _NEVER

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            sock = self._wrap(sock)
            self._connections[sock.fileno()] = Connection(self, self._epoll, sock)
            self._epoll.register(sock, select.EPOLLIN)


def tls_context(ca_file: Path) -> ssl.SSLContext:
    """A server context for localhost and 127.0.0.1, under a new authority whose certificate goes into ``ca_file``."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name, name = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in ("benchmark CA", "localhost")
    )
    now = datetime.now(UTC)

    def certificate(subject: x509.Name, of: ec.EllipticCurvePrivateKey, *extensions: tuple[x509.ExtensionType, bool]):
        builder = x509.CertificateBuilder(ca_name, subject, of.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(ca_key, SHA256()).public_bytes(Encoding.PEM)

    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    ca_file.write_bytes(certificate(ca_name, ca_key, (x509.BasicConstraints(ca=True, path_length=0), True)))
    leaf = certificate(name, key, (x509.SubjectAlternativeName(names), False))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    with NamedTemporaryFile(suffix=".pem") as pem:  # the standard library loads keys from files only
        pem.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + leaf)
        pem.flush()
        context.load_cert_chain(pem.name)
    return context


def main() -> None:
    """Listen, say where, serve."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tls", type=Path, metavar="CA_FILE", help="speak TLS; the authority is written to this file")
    options = parser.parse_args()
    wrap: Callable[[socket.socket], socket.socket] = lambda sock: sock  # noqa: E731
    if options.tls:
        wrap = partial(tls_context(options.tls).wrap_socket, server_side=True, do_handshake_on_connect=False)
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    scheme = "https" if options.tls else "http"
    print(f"stub upstream on {scheme}://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    gc.disable()
    StubUpstream(listener, wrap).run()


if __name__ == "__main__":
    main()
