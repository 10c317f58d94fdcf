import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, deferLater

from chutes_autopilot.upstream.agent import control_plane_client
from chutes_autopilot.upstream.fetch import MAX_ERROR_BYTES, FetchedAnswer, FetchError, fetch_answer, fetch_json_bytes
from chutes_autopilot.upstream.pool import ConnectionPool, endpoints_for


class Peer(Protocol):
    """Answers any request with given bytes; closes only where told to; fires ``gone`` when the connection is closed."""

    factory: "Peers"

    def __init__(self) -> None:
        self.received = b""

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self.received.endswith(b"\r\n\r\n"):
            assert self.transport is not None
            self.transport.write(self.factory.answer)
            if self.factory.close:
                self.transport.loseConnection()
            self.factory.requested.callback(self.received)

    def connectionLost(self, reason: Any = None) -> None:
        self.factory.gone.callback(None)


class Peers(Factory):
    protocol = Peer

    def __init__(self, answer: bytes, close: bool) -> None:
        self.answer = answer
        self.close = close
        self.requested: Deferred[bytes] = Deferred()
        self.gone: Deferred[None] = Deferred()


@asynccontextmanager
async def peer(answer: bytes, *, close: bool = False) -> AsyncIterator[tuple[Peers, str]]:
    """A server for one request; waits at its end until the connection is closed, so hangs where one is left open."""
    from twisted.internet import reactor

    peers = Peers(answer, close)
    port = reactor.listenTCP(0, peers, interface="127.0.0.1")  # type: ignore[attr-defined]
    try:
        yield peers, f"http://127.0.0.1:{port.getHost().port}/list"
        await peers.gone
    finally:
        await port.stopListening()


def fetch(url: str, clock: Clock | None = None, max_bytes: int = 1000, **more: Any) -> Deferred[bytes]:
    from twisted.internet import reactor

    http_client = control_plane_client(ConnectionPool(reactor, endpoints_for(reactor, None), 5.0, max_idle=0))
    return Deferred.fromCoroutine(
        fetch_json_bytes(http_client, url, clock=clock or Clock(), timeout=10.0, max_bytes=max_bytes, **more)
    )


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    head = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


async def failure(url: str, **more: Any) -> FetchError:
    with pytest.raises(FetchError) as caught:
        await fetch(url, **more)
    assert str(caught.value).startswith(f"{url.split('/')[2]}: ")
    assert url not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "response",
    [
        answer(b'["\xc3\xa9"]'),
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n["\xc3\r\n3\r\n\xa9"]\r\n0\r\n\r\n',
        b'HTTP/1.0 200 OK\r\n\r\n["\xc3\xa9"]',
        answer(gzip.compress(b'["\xc3\xa9"]'), b"Content-Encoding: gzip"),
        answer(gzip.compress(gzip.compress(b'["\xc3\xa9"]')), b"Content-Encoding: gzip, gzip"),
    ],
    ids=["length", "chunked", "close", "gzip", "gzip twice"],
)
async def test_a_whole_answer_comes_back(response: bytes) -> None:
    """However the body is framed or zipped, its bytes come back."""
    async with peer(response, close=b"HTTP/1.0" in response) as (_, url):
        clock = Clock()
        assert await fetch(url, clock) == b'["\xc3\xa9"]'
        assert clock.getDelayedCalls() == []


async def test_headers_go_along() -> None:
    """The request asks for JSON and carries the headers given."""
    async with peer(answer(b"[]")) as (peers, url):
        await fetch(url, headers=(("Authorization", "Bearer t"),))
        request = await peers.requested
        assert b"GET /list HTTP/1.1\r\n" in request
        assert b"\r\nAccept: application/json\r\n" in request
        assert b"\r\nAuthorization: Bearer t\r\n" in request


@pytest.mark.parametrize("status", [b"204 No", b"301 Moved", b"307 Moved", b"401 No", b"503 No"])
async def test_every_status_but_200_fails(status: bytes) -> None:
    """No redirect is followed, and the rest of the answer is not waited for."""
    head = b"HTTP/1.1 " + status + b"\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n"
    async with peer(head) as (_, url):
        error = await failure(url)
        assert (error.reason, str(error)) == ("status", f"{url.split('/')[2]}: status {status[:3].decode()}")


async def test_a_refused_answer_is_cut() -> None:
    """The body of an error that never ends does not keep the connection."""
    async with peer(b"HTTP/1.1 503 No\r\nContent-Length: 9\r\n\r\nhalf") as (_, url):
        assert (await failure(url)).reason == "status"


async def test_a_body_over_the_bound_is_cut() -> None:
    """One byte over the bound ends the fetch and the connection; the bound itself passes."""
    response = answer(b" " * 1000)
    async with peer(response) as (_, url):
        assert await fetch(url, max_bytes=1000) == b" " * 1000
    endless = response.replace(b"Content-Length: ", b"Content-Length: 9")
    async with peer(endless) as (_, url):
        assert (await failure(url, max_bytes=999)).reason == "too_large"


async def test_the_bound_counts_what_is_unzipped() -> None:
    """A small zipped body whose content is over the bound is refused; the bound itself passes."""
    response = answer(gzip.compress(b" " * 1000), b"Content-Encoding: gzip")
    async with peer(response) as (_, url):
        assert await fetch(url, max_bytes=1000) == b" " * 1000
    async with peer(response) as (_, url):
        assert (await failure(url, max_bytes=999)).reason == "too_large"


async def test_unzipping_much_gives_way_to_other_work() -> None:
    """What comes out of a small zipped body comes out in pieces, each in a turn of its own."""
    body = b" " * (1024 * 1024 + 1)
    async with peer(answer(gzip.compress(body), b"Content-Encoding: gzip")) as (peers, url):
        clock = Clock()
        fetching = fetch(url, clock, max_bytes=len(body))
        await peers.gone
        assert not fetching.called
        clock.advance(0)
        assert await fetching == body


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
async def test_the_time_limit_covers_head_and_body(sent: bytes) -> None:
    """Silence before the head or in the middle of the body ends the fetch and the connection."""
    async with peer(sent) as (peers, url):
        clock = Clock()
        fetching = fetch(url, clock)
        await peers.requested
        clock.advance(9.9)
        assert not fetching.called
        clock.advance(0.2)
        with pytest.raises(FetchError, match="within 10 seconds") as caught:
            await fetching
        assert caught.value.reason == "timeout"


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
async def test_cancelling_is_no_failure_of_the_fetch(sent: bytes) -> None:
    """Whoever stops the fetch gets CancelledError in every phase, and the connection is closed."""
    async with peer(sent) as (peers, url):
        fetching = fetch(url)
        await peers.requested
        fetching.cancel()
        with pytest.raises(CancelledError):
            await fetching


async def test_cancelling_before_the_connection_is_made() -> None:
    """The same holds while the connection is still being made."""
    from twisted.internet import reactor

    fetching = fetch("http://127.0.0.1:9/list")
    fetching.cancel()
    with pytest.raises(CancelledError):
        await fetching
    await deferLater(reactor, 0)  # the socket that was never connected ends in a turn of its own


@pytest.mark.parametrize("sent", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
async def test_a_broken_answer_is_a_network_failure(sent: bytes) -> None:
    """No answer, no HTTP and a body cut short are all the network's fault."""
    async with peer(sent, close=b"garbage" not in sent) as (_, url):
        assert (await failure(url)).reason == "network"


@pytest.mark.parametrize("body", [b"plain", gzip.compress(b"[]")[:-1]])
async def test_gzip_that_is_none_or_not_whole_is_invalid(body: bytes) -> None:
    """A body that cannot be unzipped is refused, at once and not by the time limit."""
    clock = Clock()
    async with peer(answer(body, b"Content-Encoding: gzip")) as (peers, url):
        failing = fetch(url, clock)
        await peers.gone
        clock.advance(0)
        with pytest.raises(FetchError) as caught:
            await failing
        assert caught.value.reason == "invalid"


async def test_nobody_listening_is_a_network_failure() -> None:
    """A refused connection names neither host nor port."""
    from twisted.internet import reactor

    port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")  # type: ignore[attr-defined]
    number = port.getHost().port
    await port.stopListening()
    assert (await failure(f"http://127.0.0.1:{number}/list")).reason == "network"


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/list", "http:///list"])
async def test_an_impossible_url_is_a_network_failure(url: str) -> None:
    """What cannot be fetched at all fails like everything else."""
    assert (await failure(url)).reason == "network"


async def fetched(url: str, **more: Any) -> FetchedAnswer:
    from twisted.internet import reactor

    http_client = control_plane_client(ConnectionPool(reactor, endpoints_for(reactor, None), 5.0, max_idle=0))
    options = {"timeout": 10.0, "max_bytes": 1000, **more}
    return await fetch_answer(http_client, url, clock=Clock(), **options)


@pytest.mark.parametrize("status", [b"200 OK", b"301 Moved", b"403 No", b"429 Later"])
async def test_an_answer_of_any_status_comes_back_to_who_asked_for_it(status: bytes) -> None:
    """With its body; a redirect is not followed there either."""
    async with peer(answer(b'{"detail": 1}', b"Location: /other", status=status)) as (_, url):
        answered = await fetched(url)
        assert (answered.status, answered.body) == (int(status[:3]), b'{"detail": 1}')
        assert answered.retry_after is None


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ([b"Retry-After: 7"], 7.0),
        ([b"Retry-After: Wed, 21 Oct 2026 07:28:00 GMT"], None),
        ([b"Retry-After: -1"], None),
        ([b"Retry-After: 7", b"Retry-After: 8"], None),
        ([b"Retry-After: 99999999"], None),
    ],
)
async def test_retry_after_is_read_in_seconds(fields: list[bytes], seconds: float | None) -> None:
    """Few digits, once; a date is of no use where the clocks may differ."""
    async with peer(answer(b"", *fields, status=b"429 Later")) as (_, url):
        assert (await fetched(url)).retry_after == seconds


async def test_the_body_of_an_error_is_bounded_more_closely() -> None:
    """However large an answer may be."""
    async with peer(answer(b" " * (MAX_ERROR_BYTES + 1), status=b"500 No")) as (_, url):
        with pytest.raises(FetchError) as caught:
            await fetched(url, max_bytes=10 * MAX_ERROR_BYTES)
        assert caught.value.reason == "too_large"


async def test_nobody_there_is_said_in_words() -> None:
    """Which server and what happened, and nothing of the credentials, the path and the query of the URL."""
    async with peer(b"") as (peers, url):
        peers.gone.callback(None)
    with pytest.raises(FetchError) as caught:
        await fetch(url.replace("http://", "http://me:hunter2@") + "?key=hunter3")
    assert str(caught.value) == f"{url.split('/')[2]}: it refused the connection"


async def test_an_answer_that_breaks_off_is_said_in_words() -> None:
    """However deep the library wraps it."""
    async with peer(answer(b"{}")[:-1], close=True) as (_, url):
        assert str(await failure(url)).endswith(": it closed the connection before the end of its answer")
