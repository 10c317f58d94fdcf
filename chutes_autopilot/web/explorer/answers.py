"""How answers below /api/ are sent: made once and kept, tagged, compressed ahead, and read by no site uninvited."""

import gzip
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Iterable
from datetime import UTC, datetime
from typing import Any

import attrs
import msgspec
from twisted.internet.defer import Deferred
from twisted.web.http import NOT_MODIFIED

from chutes_autopilot.storage.disk_cache import InThread
from chutes_autopilot.web.explorer.errors import JSON, NOT_STORED, SAFE_HEADERS, ExplorerError
from chutes_autopilot.web.explorer.flights import Flights
from chutes_autopilot.web.explorer.static_files import accepts_gzip
from chutes_autopilot.web.site import GatewayRequest
from chutes_autopilot.wire.headers import REQUEST_ID, Header

REVALIDATED: Header = (b"Cache-Control", b"no-cache")
"""Browsers may keep it, and ask each time whether it is still true."""

KEPT_BYTES = 64 * 1024 * 1024
"""Of all kept answers together, both forms."""
KEPT_LARGEST = 32 * 1024 * 1024
"""Of one answer; a larger one is made anew for each visitor."""

_SMALLEST_COMPRESSED = 512
_EXPOSED = b"ETag, Link, Retry-After, X-Cache, X-Cache-Age, X-Cache-Duration, X-Request-Id"


@attrs.frozen
class Prepared:
    """An answer ready to be sent, in one form or the other.

    :param compressed: gzip; None where that would save nothing.
    :param tag: strong and of the plain form; the compressed one has its own (RFC 9110 section 8.8.1).
    :param headers: further ones that belong to this very answer.
    """

    body: bytes = attrs.field(repr=False)
    compressed: bytes | None = attrs.field(repr=False)
    tag: bytes
    content_type: bytes
    headers: tuple[Header, ...] = ()

    @classmethod
    def of(cls, body: bytes, content_type: bytes = JSON, headers: tuple[Header, ...] = ()) -> "Prepared":
        """Tag and compress; takes some 10 ms per MB, so it belongs in a thread."""
        compressed = gzip.compress(body, compresslevel=6, mtime=0) if len(body) >= _SMALLEST_COMPRESSED else None
        tag = hashlib.sha256(body).hexdigest()[:32].encode()
        return cls(body, compressed, tag, content_type, headers)

    @classmethod
    def of_json(cls, value: Any, headers: tuple[Header, ...] = ()) -> "Prepared":
        """The same of what JSON can hold."""
        return cls.of(msgspec.json.encode(value), JSON, headers)

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return len(self.body) + len(self.compressed or b"")


class PreparedAnswers:
    """Keeps answers for as long as there is room; each is made once for all who want it at the same time.

    :param in_thread: where they are made.
    """

    def __init__(self, in_thread: InThread, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._in_thread = in_thread
        self._kept_bytes = kept_bytes
        self._kept: OrderedDict[Hashable, Prepared] = OrderedDict()
        self._size = 0
        self._flights: Flights[Hashable, Prepared] = Flights()

    async def get(self, key: Hashable, make: Callable[[], Prepared]) -> Prepared:
        """The answer of this key.

        :param key: names all that the answer depends on.
        :param make: called in a thread; must not touch anything that changes.
        """

        async def made() -> Prepared:
            prepared: Prepared = await self._in_thread(make)
            return prepared

        return await self.get_by(key, made)

    async def get_by(self, key: Hashable, make: Callable[[], Coroutine[Deferred[Any], Any, Prepared]]) -> Prepared:
        """The same, made by a coroutine that sees to its threads itself."""
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept

        async def made() -> Prepared:
            prepared = await make()
            self._keep(key, prepared)
            return prepared

        return await self._flights.result(key, made)

    def _keep(self, key: Hashable, prepared: Prepared) -> None:
        if prepared.size > min(KEPT_LARGEST, self._kept_bytes):
            return
        self._kept[key] = prepared
        self._size += prepared.size
        while self._size > self._kept_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._size -= dropped.size


def begin(request: GatewayRequest, cors_origins: Iterable[str]) -> None:
    """What every answer of a request will say, whatever it becomes.

    :param cors_origins: sites whose pages may read it; none: no header speaks of them.
    """
    for name, value in SAFE_HEADERS:
        request.setHeader(name, value)
    if cors_origins:
        vary(request, b"Origin")
        origin = request.getHeader(b"Origin")
        if origin is not None and origin.decode("latin-1") in cors_origins:
            request.setHeader(b"Access-Control-Allow-Origin", origin)
            request.setHeader(b"Access-Control-Expose-Headers", _EXPOSED)


def allow_preflight(request: GatewayRequest, methods: bytes) -> None:
    """Answer a browser that asks before it calls for a page of another site (the Fetch standard's CORS-preflight)."""
    if request.responseHeaders.hasHeader(b"Access-Control-Allow-Origin"):
        request.setHeader(b"Access-Control-Allow-Methods", methods)
        request.setHeader(b"Access-Control-Allow-Headers", b"Authorization, If-None-Match")
        request.setHeader(b"Access-Control-Max-Age", b"3600")
    _without_body(request, 204)


def vary(request: GatewayRequest, name: bytes) -> None:
    """Say that the answer depends on this header of the request too."""
    request.responseHeaders.addRawHeader(b"Vary", name)


def send(request: GatewayRequest, prepared: Prepared, headers: Iterable[Header] = (REVALIDATED,)) -> None:
    """Send an answer in the form the client takes, or 304 where it has that already."""
    vary(request, b"Accept-Encoding")
    compressed = prepared.compressed if accepts_gzip(request.getHeader(b"Accept-Encoding")) else None
    tag = b'"%s"' % prepared.tag if compressed is None else b'"%s-gzip"' % prepared.tag
    headers = [*headers, *prepared.headers, (b"ETag", tag)]
    if has_already(request.getHeader(b"If-None-Match"), tag):
        for name, value in headers:
            request.setHeader(name, value)
        _without_body(request, NOT_MODIFIED)
        return
    if compressed is not None:
        headers.append((b"Content-Encoding", b"gzip"))
    request.answer(200, prepared.body if compressed is None else compressed, prepared.content_type, headers)


def send_error(request: GatewayRequest, error: ExplorerError) -> None:
    """Send an error; nobody may keep it."""
    request.answer(error.status, error.body(), JSON, (NOT_STORED, *error.headers))


def has_already(if_none_match: bytes | None, tag: bytes) -> bool:
    """Whether If-None-Match names a tag (RFC 9110 section 13.1.2; a proxy may have marked it as weak)."""
    if if_none_match is None:
        return False
    given = [each.strip().removeprefix(b"W/") for each in if_none_match.split(b",")]
    return tag in given or given == [b"*"]


def attachment(name: str) -> Header:
    """Have browsers keep the answer as a file; the name is our own and plain."""
    return b"Content-Disposition", f'attachment; filename="{name}"'.encode("ascii")


def iso_time(unix: float | None) -> str | None:
    """A moment (Unix seconds) as ISO 8601 in UTC, to the millisecond."""
    if unix is None:
        return None
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _without_body(request: GatewayRequest, status: int) -> None:
    request.setResponseCode(status)
    request.responseHeaders.removeHeader(b"Server")
    request.setHeader(REQUEST_ID, request.request_id.encode())
