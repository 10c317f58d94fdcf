"""The load generator: keep-alive connections that send prebuilt requests and check every answer to its end.

A bare epoll loop, so that one core can drive proxies that are faster than any Python client. Whatever is not a
complete answer with status 200 ends the run with `LoadError`: a benchmark must not average over failures.
"""

import json
import re
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle
from typing import Generic, TypeVar

READ_BYTES = 262144
SILENCE_SECONDS = 20.0
"""How long no connection may receive anything before the run fails."""
CHUNKED_END = b"\r\n0\r\n\r\n"
EVENT_MARK = b"["
"""Stands once in every event and in no head or chunk size, so that events are counted however they are cut up."""

_LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)", re.IGNORECASE)
_WORDS = 'The quick brown fox said \\"hello\\" to a lazy dog, then it went on and on.\\n'

Reading = TypeVar("Reading")


class LoadError(Exception):
    """An answer was not what it should be; the text says what came."""


def chat_request(model: str, behaviour: str, *, size: int = 1024, events: int = 0, client: int = 0) -> bytes:
    """One request's bytes.

    :param behaviour: for the stub upstream, see there.
    :param size: of the body, in bytes.
    :param events: length of the streamed answer; 0: not streamed. The stub takes it from the behaviour, the simulator
        from ``n_tokens``.
    :param client: number of the client; each has a key of its own.
    """
    body = {
        "model": model,
        "user": f"bench {behaviour}",
        "stream": bool(events),
        "max_tokens": events or 150,
        "n_tokens": events or 150,
        "temperature": 0.7,
        "messages": [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "@"}],
    }
    text = json.dumps(body)
    room = size - len(text) + 1
    data = text.replace("@", (_WORDS * (room // len(_WORDS)) + "." * (room % len(_WORDS))), 1).encode()
    token = f"cpk_{client:032x}.{client:032x}.{client:032x}"
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n"
        "Accept-Encoding: gzip, deflate\r\nUser-Agent: benchmark\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


class Connection:
    """One client: sends its request, reads the answer, may send again."""

    __slots__ = ("_head", "_left", "_tail", "_unsent", "address", "begun", "complete", "events", "request", "sock")

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self.address = address
        self.request = request
        self.sock: socket.socket
        self.begun = 0.0
        self.complete = True
        self.events = 0
        self._head = b""
        self._left = 0
        self._tail = b""
        self._unsent = b""

    def connect(self, epoll: select.epoll, source: str = "") -> None:
        """Connect; on loopback that is done at once."""
        self.sock = socket.socket()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source:
            self.sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: choose the port when connecting
            self.sock.bind((source, 0))
        self.sock.settimeout(SILENCE_SECONDS)
        self.sock.connect(self.address)
        self.sock.setblocking(False)
        epoll.register(self.sock, select.EPOLLIN)

    def send(self, epoll: select.epoll) -> None:
        """Send the request."""
        self.complete = False
        self.events = 0
        self._head = b""
        self._left = -2
        self._tail = b""
        self.begun = time.perf_counter()
        sent = self.sock.send(self.request)
        if sent < len(self.request):
            self._unsent = self.request[sent:]
            epoll.modify(self.sock, select.EPOLLIN | select.EPOLLOUT)

    def flush(self, epoll: select.epoll) -> None:
        """Send what the socket did not take before."""
        self._unsent = self._unsent[self.sock.send(self._unsent) :]
        if not self._unsent:
            epoll.modify(self.sock, select.EPOLLIN)

    def receive(self) -> int:
        """Read once; returns the number of events seen and sets ``complete`` when the answer has ended."""
        data = self.sock.recv(READ_BYTES)
        if not data:
            raise LoadError(f"the connection was closed in an answer, after {self._head[:300]!r} {self._tail!r}")
        if self._left == -2:
            data = self._body_begins(data)
        elif self.complete:
            raise LoadError(f"bytes after the end of an answer: {data[:300]!r}")
        if self._left == -2:
            return 0
        self._tail = data[-7:] if len(data) >= 7 else (self._tail + data)[-7:]
        if self._left == -1:
            self.complete = self._tail == CHUNKED_END
            seen = data.count(EVENT_MARK)
            self.events += seen
            return seen
        self._left -= len(data)
        if self._left <= 0:
            if self._left or not self._tail.endswith(b"}"):
                raise LoadError(f"an answer ended with {self._tail!r}, {-self._left} bytes too late")
            self.complete = True
        return 0

    def _body_begins(self, data: bytes) -> bytes:
        """Check the head, once it is complete; returns what came of the body."""
        self._head += data
        end = self._head.find(b"\r\n\r\n") + 4
        if end < 4:
            return b""
        if not self._head.startswith(b"HTTP/1.1 200"):
            raise LoadError(f"not a 200: {self._head[: end + 300]!r}")
        length = _LENGTH.search(self._head, 0, end)
        self._left = int(length[1]) if length else -1
        body = self._head[end:]
        self._head = self._head[:end]
        return body


@dataclass(frozen=True)
class Measured(Generic[Reading]):
    """What happened between two readings.

    :param before: what the probe read when the measuring began, ``after``: when it ended.
    :param open_streams: connections at the end that had received an event and not yet the end.
    :param latencies: seconds, in the order of the answers.
    """

    seconds: float
    answers: int
    events: int
    open_streams: int
    before: Reading
    after: Reading
    latencies: list[float] = field(repr=False)


def run_load(
    addresses: Sequence[tuple[str, int]],
    requests: Sequence[bytes],
    probe: Callable[[], Reading],
    *,
    warmup: float,
    seconds: float,
    once: bool = False,
    spread: float = 0.0,
    reconnect: bool = False,
    events: int = 0,
) -> Measured[Reading]:
    """Send every request on a connection of its own, again and again, and measure after the warm-up.

    :param addresses: the connections take them in turn.
    :param probe: called when the measuring begins and when it ends.
    :param once: send each request once only; the run then lasts until all answers have ended.
    :param spread: seconds over which the connections begin, so that paced streams do not tick together.
    :param reconnect: a new connection for every request, from changing loopback addresses, as their ports would run
        out.
    :param events: marks a streamed answer must hold; 0: not checked.
    :raises LoadError: for anything but complete answers.
    """
    with select.epoll() as epoll:
        connections = [Connection(*each) for each in zip(cycle(addresses), requests, strict=False)]
        run = _Run(epoll, connections, once, reconnect, events)
        try:
            return run.measure(probe, warmup, seconds, spread)
        finally:
            run.close()


class _Run:
    """The loop and its counts."""

    def __init__(
        self, epoll: select.epoll, connections: list[Connection], once: bool, reconnect: bool, events: int
    ) -> None:
        self._epoll = epoll
        self._waiting = connections[::-1]
        self._started: list[Connection] = []
        self._by_fd: dict[int, Connection] = {}
        self._again = not once
        self._reconnect = reconnect
        self._expected = events
        self._sources = _loopback_addresses() if reconnect else None
        self._answers = 0
        self._events = 0
        self._latencies: list[float] = []
        self._heard = time.perf_counter()

    def measure(self, probe: Callable[[], Reading], warmup: float, seconds: float, spread: float) -> Measured[Reading]:
        begin = time.perf_counter()
        every = spread / len(self._waiting)
        while self._waiting:
            self._start(self._waiting.pop())
            self._until(begin + len(self._started) * every)
        self._until(begin + warmup)
        answers, seen, done = self._answers, self._events, len(self._latencies)
        before, since = probe(), time.perf_counter()
        self._until(since + seconds)
        after, until = probe(), time.perf_counter()
        open_streams = sum(bool(c.events) and not c.complete for c in self._started)
        measured = Measured(
            until - since,
            self._answers - answers,
            self._events - seen,
            open_streams,
            before,
            after,
            self._latencies[done:],
        )
        self._again = False  # every answer under way is read and checked to its end
        while not all(connection.complete for connection in self._started):
            self._until(time.perf_counter() + 0.01)
        return measured

    def close(self) -> None:
        for connection in self._by_fd.values():
            connection.sock.close()

    def _start(self, connection: Connection) -> None:
        self._connect(connection)
        self._started.append(connection)
        connection.send(self._epoll)

    def _connect(self, connection: Connection) -> None:
        connection.connect(self._epoll, next(self._sources) if self._sources else "")
        self._by_fd[connection.sock.fileno()] = connection

    def _until(self, moment: float) -> None:
        """Serve the connections until then."""
        while (now := time.perf_counter()) < moment:
            ready = self._epoll.poll(moment - now)
            if ready:
                self._heard = time.perf_counter()
            elif time.perf_counter() - self._heard > SILENCE_SECONDS:
                raise LoadError(f"nothing came for {SILENCE_SECONDS} s")
            for fd, event in ready:
                connection = self._by_fd[fd]
                if event & select.EPOLLOUT:
                    connection.flush(self._epoll)
                if event & ~select.EPOLLOUT:
                    self._events += connection.receive()
                    if connection.complete:
                        self._completed(connection)

    def _completed(self, connection: Connection) -> None:
        self._latencies.append(time.perf_counter() - connection.begun)
        self._answers += 1
        if self._expected and connection.events != self._expected:
            raise LoadError(f"a stream had {connection.events} events and not {self._expected}")
        if self._reconnect or not self._again:
            del self._by_fd[connection.sock.fileno()]
            connection.sock.close()
            if self._again:
                self._connect(connection)
        if self._again:
            connection.send(self._epoll)


def alternate(
    pairs: Sequence[tuple[tuple[str, int], bytes]], *, warmup: float, seconds: float
) -> tuple[list[float], ...]:
    """The latencies of several peers, each on one connection, asked in turn: what differs is the peers alone."""
    with select.epoll() as epoll:
        connections = [Connection(address, request) for address, request in pairs]
        latencies: tuple[list[float], ...] = tuple([] for _ in pairs)
        try:
            for connection in connections:
                connection.connect(epoll)
            begin = time.perf_counter()
            while (now := time.perf_counter()) < begin + warmup + seconds:
                for connection, measured in zip(connections, latencies, strict=True):
                    connection.send(epoll)
                    while not connection.complete:
                        if not epoll.poll(SILENCE_SECONDS):
                            raise LoadError(f"nothing came for {SILENCE_SECONDS} s")
                        connection.receive()
                    if now >= begin + warmup:
                        measured.append(time.perf_counter() - connection.begun)
        finally:
            for connection in connections:
                connection.sock.close()
        return latencies


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _loopback_addresses() -> Iterator[str]:
    for number in count():
        yield f"127.1.{number // 250 % 250}.{1 + number % 250}"
