"""Errors below /api/, which have a shape of their own: ``{"error": what is wrong, "message": what to do}``."""

from collections.abc import Iterable

import msgspec

from chutes_autopilot.errors import ApiError
from chutes_autopilot.wire.headers import Header

JSON = b"application/json"
SAFE_HEADERS: tuple[Header, ...] = (
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Content-Security-Policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Of every answer below /api/: no browser takes it for a page, whatever is in it."""
NOT_STORED: Header = (b"Cache-Control", b"no-store")


class ExplorerError(Exception):
    """An error answer below /api/.

    :param error: short.
    :param message: what to do; it names the parameter at fault, and holds no key, token or upstream text.
    """

    def __init__(self, status: int, error: str, message: str, headers: Iterable[Header] = ()) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.message = message
        self.headers = tuple(headers)

    def body(self) -> bytes:
        """The JSON body."""
        return error_body(self.error, self.message)


def error_body(error: str, message: str) -> bytes:
    """The JSON body of an error below /api/."""
    return msgspec.json.encode({"error": error, "message": message})


def body_of_api_error(error: ApiError) -> bytes:
    """The JSON body of an error that is not the explorer's own, such as a request body that is too large."""
    return error_body(error.code.replace("_", " "), error.message)


def is_explorer_path(path: bytes | None) -> bool:
    """Whether errors at this path have the explorer's shape."""
    return path is not None and (path == b"/api" or path.startswith(b"/api/"))


def not_found(message: str) -> ExplorerError:
    """There is no such thing."""
    return ExplorerError(404, "not found", message)


def not_ready(message: str) -> ExplorerError:
    """It will be there in a moment."""
    return ExplorerError(503, "not ready", message, ((b"Retry-After", b"2"),))
