"""The page's own files, read once at start: named by content, compressed ahead, and kept by browsers for good."""

import gzip
import hashlib
from collections.abc import Mapping
from importlib.resources import files

import attrs

from chutes_autopilot.errors import ApiError
from chutes_autopilot.web.site import GatewayRequest

NAMES = ("app.css", "app.js", "favicon.svg", "uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE")

_TYPES = {
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
    "LICENSE": b"text/plain; charset=utf-8",
}
_YEAR = b"public, max-age=31536000, immutable"


@attrs.frozen
class StaticFile:
    """One file as it is sent.

    :param name: with the first 12 hex digits of its SHA-256, so that another content has another address.
    :param tag: strong, of the plain form; the compressed form has its own (RFC 9110 section 8.8.1).
    """

    name: str
    content_type: bytes
    body: bytes
    compressed: bytes
    tag: bytes

    @classmethod
    def of(cls, name: str, body: bytes) -> "StaticFile":
        """The file ``name`` with the content ``body``."""
        stem, _, ending = name.rpartition(".")
        digest = hashlib.sha256(body).hexdigest()
        return cls(
            f"{stem}.{digest[:12]}.{ending}",
            _TYPES[ending],
            body,
            gzip.compress(body, compresslevel=9, mtime=0),
            digest[:32].encode(),
        )


@attrs.define(eq=False)
class StaticFiles:
    """All files, by the name they are asked for."""

    _by_plain_name: Mapping[str, StaticFile]
    _by_name: Mapping[str, StaticFile] = attrs.field(init=False)

    @_by_name.default
    def _hashed(self) -> Mapping[str, StaticFile]:
        return {file.name: file for file in self._by_plain_name.values()}

    @classmethod
    def load(cls) -> "StaticFiles":
        """Read what the package brings along; a file that is missing there raises FileNotFoundError."""
        folder = files("chutes_autopilot.web.explorer") / "static"
        return cls({name: StaticFile.of(name, (folder / name).read_bytes()) for name in NAMES})

    def path(self, name: str) -> str:
        """Where a page finds the file: below /static/, by its hashed name."""
        return f"/static/{self._by_plain_name[name].name}"

    def answer(self, request: GatewayRequest, name: str) -> None:
        """Send the file of this hashed name, or 304; ApiError ``not_found`` for any other name."""
        file = self._by_name.get(name)
        if file is None:
            raise ApiError("not_found", "There is no such file; the page at / names the ones there are.")
        compress = accepts_gzip(request.getHeader(b"Accept-Encoding"))
        tag = b'"%s-gzip"' % file.tag if compress else b'"%s"' % file.tag
        headers = [
            (b"ETag", tag),
            (b"Cache-Control", _YEAR),
            (b"Vary", b"Accept-Encoding"),
            (b"X-Content-Type-Options", b"nosniff"),
            (b"Content-Security-Policy", b"default-src 'none'"),
        ]
        if request.setETag(tag):  # the client has it: the answer will be 304
            for key, value in headers:
                request.setHeader(key, value)
            return
        if compress:
            headers.append((b"Content-Encoding", b"gzip"))
        request.answer(200, file.compressed if compress else file.body, file.content_type, headers)


def accepts_gzip(header: bytes | None) -> bool:
    """Whether a client's Accept-Encoding takes gzip (RFC 9110 section 12.5.3)."""
    for item in (header or b"").lower().split(b","):
        coding, _, weight = item.partition(b";")
        if coding.strip() in (b"gzip", b"*"):
            return weight.replace(b" ", b"").removeprefix(b"q=").rstrip(b"0.") != b"" or not weight
    return False
