"""One bounded GET beside the traffic: the whole answer in memory, in time, or a reason why not."""

import zlib
from collections.abc import Coroutine
from io import BytesIO
from typing import Any, Literal, NoReturn, TypeVar

import attrs
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import GzipDecoder, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from chutes_autopilot.upstream.troubles import in_words, server_of

FetchReason = Literal["network", "timeout", "status", "too_large", "invalid"]
"""Why a fetch failed: a closed set, for metrics. ``invalid`` is a body whose gzip cannot be undone."""

MAX_ERROR_BYTES = 64 * 1024
"""Of the body of an answer that is not a 200, where it is read at all, the most that is."""

_ZIPPED_PIECE = 64 * 1024
_UNZIPPED_PIECE = 1024 * 1024
"""At most these many bytes go into and come out of a decompressor in one turn of the reactor: some 3 ms."""


T = TypeVar("T")


@attrs.frozen
class FetchedAnswer:
    """A complete answer of any status.

    :param retry_after: seconds that its Retry-After asks for, where it does so in digits.
    :param body: unzipped.
    """

    status: int
    retry_after: float | None
    body: bytes = attrs.field(repr=False)


class FetchError(Exception):
    """A fetch that brought nothing, so that the last known good stays.

    :param message: for logs and the page: names the server, and holds nothing else of the URL and no upstream text.
    """

    def __init__(self, reason: FetchReason, message: str) -> None:
        super().__init__(message)
        self.reason: FetchReason = reason


class _BoundedBody(Protocol):
    """Collects a body until it ends, or cuts the connection where it grows too large or nobody waits any more."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._body = BytesIO()  # hands its bytes over without the copy that joining 64 MiB would be
        self.complete: Deferred[bytes] = Deferred(lambda _: self.abort())

    def abort(self) -> None:
        # Twisted's proxy for the transport offers loseConnection only, and that waits for the peer of a
        # TLS connection to say goodbye, which a stalled one never does.
        transport: Any = getattr(self.transport, "_producer", None) or self.transport
        getattr(transport, "abortConnection", transport.loseConnection)()

    def dataReceived(self, data: bytes) -> None:
        if self.complete.called:
            return
        self._left -= len(data)
        if self._left < 0:
            self._body.close()
            self.abort()
            self.complete.errback(FetchError("too_large", "the body is larger than allowed"))
        else:
            self._body.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.complete.called:
            return
        # PotentialDataLoss: ended by closing the connection; a cut there is seen by the JSON parser
        if isinstance(reason.value, ResponseDone | PotentialDataLoss):
            self.complete.callback(self._body.getvalue())
        else:
            self.complete.errback(reason)


async def _unzipped(zipped: bytes, max_bytes: int, clock: IReactorTime) -> bytes:
    """Undo gzip without holding up the traffic, however much comes out of however little."""
    unzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
    body, rest, end = BytesIO(), b"", 0
    while True:
        if not rest:
            rest, end = zipped[end : end + _ZIPPED_PIECE], end + _ZIPPED_PIECE
        piece = unzip.decompress(rest, _UNZIPPED_PIECE)
        if body.tell() + len(piece) > max_bytes:
            raise FetchError("too_large", "the body is larger than allowed")
        body.write(piece)
        if unzip.eof:
            return body.getvalue()
        if not rest and not piece:
            raise FetchError("invalid", "the gzip has no end")
        rest = unzip.unconsumed_tail
        await deferLater(clock, 0)


async def _fetch(
    http_client: HTTPClient, url: str, max_bytes: int, headers: Headers, clock: IReactorTime, *, any_status: bool
) -> FetchedAnswer:
    try:
        # treq's own timeout ends with the head, its buffering has no bound, and a redirect could lead anywhere
        answer: Any = await http_client.get(url, headers=headers, allow_redirects=False, unbuffered=True)
        # treq would also unzip each read whole, which may hold the reactor for long
        response, codings = answer.original, 0
        while isinstance(response, GzipDecoder):
            response, codings = response.original, codings + 1
        if response.code != 200:
            max_bytes = min(max_bytes, MAX_ERROR_BYTES)
        reading = _BoundedBody(max_bytes)
        response.deliverBody(reading)
        if response.code != 200 and not any_status:
            reading.complete.addErrback(lambda _: None)
            reading.complete.cancel()
            raise FetchError("status", f"status {response.code}")
        body = await reading.complete
        for _ in range(codings):
            body = await _unzipped(body, max_bytes, clock)
        return FetchedAnswer(response.code, _retry_after(response.headers), body)
    except (FetchError, CancelledError):
        raise
    except zlib.error:
        raise FetchError("invalid", "the body is no gzip") from None
    except Exception as error:  # noqa: BLE001 - every failure of the network, TLS or the URL is one of the fetch
        raise FetchError("network", in_words(error)) from None


def _retry_after(headers: Headers) -> float | None:
    """RFC 9110 section 10.2.3; a date is of no use where the clocks may differ."""
    values = headers.getRawHeaders(b"retry-after", [])
    return float(values[0]) if len(values) == 1 and values[0].isdigit() and len(values[0]) < 7 else None


def _timed_out(_result: object, seconds: float) -> NoReturn:
    raise FetchError("timeout", f"no complete answer within {seconds:g} seconds")


async def fetch_json_bytes(
    http_client: HTTPClient,
    url: str,
    *,
    clock: IReactorTime,
    timeout: float,  # noqa: ASYNC109 - the clock is Twisted's
    max_bytes: int,
    headers: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """GET a JSON document; what comes back is its bytes, unzipped, not yet parsed.

    Only a 200 counts: redirects are not followed. Raises FetchError, and CancelledError when cancelled; in every
    case that is not a complete answer the connection is cut.

    :param timeout: seconds for everything, from name resolution to the body's last byte.
    :param max_bytes: bound of the body, before and after unzipping.
    """
    fetching = _fetch(http_client, url, max_bytes, _wanted(headers), clock, any_status=False)
    return (await _of_server(url, _in_time(fetching, timeout, clock))).body


async def fetch_answer(
    http_client: HTTPClient,
    url: str,
    *,
    clock: IReactorTime,
    timeout: float,  # noqa: ASYNC109 - the clock is Twisted's
    max_bytes: int,
    headers: tuple[tuple[str, str], ...] = (),
) -> FetchedAnswer:
    """The same for whoever must know what an answer other than a 200 says; its body has MAX_ERROR_BYTES at most."""
    fetching = _fetch(http_client, url, max_bytes, _wanted(headers), clock, any_status=True)
    return await _of_server(url, _in_time(fetching, timeout, clock))


async def _of_server(url: str, fetching: Coroutine[Deferred[Any], Any, FetchedAnswer]) -> FetchedAnswer:
    try:
        return await fetching
    except FetchError as error:
        raise FetchError(error.reason, f"{server_of(url)}: {error}") from None


def _wanted(headers: tuple[tuple[str, str], ...]) -> Headers:
    wanted = Headers({"Accept": ["application/json"]})
    for name, value in headers:
        wanted.setRawHeaders(name, [value])
    return wanted


async def _in_time(
    work: Coroutine[Deferred[Any], Any, T],
    timeout: float,  # noqa: ASYNC109 - the clock is Twisted's
    clock: IReactorTime,
) -> T:
    fetching = Deferred.fromCoroutine(work)
    fetching.addTimeout(timeout, clock, onTimeoutCancel=_timed_out)

    # A cancelled request ends in whatever error its phase makes of that (DNSLookupError, ResponseNeverReceived,
    # ...), so whoever cancels is answered first and the request's own end is dropped.
    def cancel(waiting: Deferred[T]) -> None:
        waiting.errback(CancelledError())
        fetching.cancel()

    answer: Deferred[T] = Deferred(cancel)
    fetching.addBoth(lambda result: None if answer.called else answer.callback(result))
    return await answer
