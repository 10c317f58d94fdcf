"""One bounded GET for the control plane: the whole answer in memory, in time, or a reason why not."""

import zlib
from typing import Any, Literal, NoReturn

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

FetchReason = Literal["network", "timeout", "status", "too_large", "invalid"]
"""Why a fetch failed: a closed set, for metrics. ``invalid`` is a body whose gzip cannot be undone."""


class FetchError(Exception):
    """A fetch that brought nothing, so that the last known good stays.

    :param message: for logs; holds no URL, address or upstream text.
    """

    def __init__(self, reason: FetchReason, message: str) -> None:
        super().__init__(message)
        self.reason: FetchReason = reason


class _BoundedBody(Protocol):
    """Collects a body until it ends, or cuts the connection where it grows too large or nobody waits any more."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._parts: list[bytes] = []
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
            self._parts.clear()
            self.abort()
            self.complete.errback(FetchError("too_large", "the body is larger than allowed"))
        else:
            self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.complete.called:
            return
        # PotentialDataLoss: ended by closing the connection; a cut there is seen by the JSON parser
        if isinstance(reason.value, ResponseDone | PotentialDataLoss):
            self.complete.callback(b"".join(self._parts))
        else:
            self.complete.errback(reason)


def _is_unzipping(error: BaseException | None) -> bool:
    """Whether a zlib error is among the reasons that Twisted wraps in one another."""
    reasons = getattr(error, "reasons", ())
    return isinstance(error, zlib.error) or any(_is_unzipping(reason.value) for reason in reasons)


async def _fetch(http_client: HTTPClient, url: str, max_bytes: int, headers: Headers) -> bytes:
    try:
        # treq's own timeout ends with the head, its buffering has no bound, and a redirect could lead anywhere
        response: Any = await http_client.get(url, headers=headers, allow_redirects=False, unbuffered=True)
        body = _BoundedBody(max_bytes)
        response.deliverBody(body)
        if response.code != 200:
            body.complete.addErrback(lambda _: None)
            body.complete.cancel()
            raise FetchError("status", f"status {response.code}")
        return await body.complete
    except (FetchError, CancelledError):
        raise
    except Exception as error:  # noqa: BLE001 - every failure of the network, TLS or the URL is one of the fetch
        reason: FetchReason = "invalid" if _is_unzipping(error) else "network"
        raise FetchError(reason, type(error).__name__) from None


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
    :param max_bytes: bound of the body after unzipping.
    """
    wanted = Headers({"Accept": ["application/json"]})
    for name, value in headers:
        wanted.setRawHeaders(name, [value])
    fetching = Deferred.fromCoroutine(_fetch(http_client, url, max_bytes, wanted))
    fetching.addTimeout(timeout, clock, onTimeoutCancel=_timed_out)

    # A cancelled request ends in whatever error its phase makes of that (DNSLookupError, ResponseNeverReceived,
    # ...), so whoever cancels is answered first and the request's own end is dropped.
    def cancel(waiting: Deferred[bytes]) -> None:
        waiting.errback(CancelledError())
        fetching.cancel()

    answer: Deferred[bytes] = Deferred(cancel)
    fetching.addBoth(lambda result: None if answer.called else answer.callback(result))
    return await answer
