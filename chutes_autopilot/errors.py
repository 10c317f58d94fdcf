"""Every error answer of our own: one table of codes, one body shape, one exception."""

import json
from collections.abc import Mapping
from types import MappingProxyType

STATUS_BY_CODE: Mapping[str, int] = MappingProxyType(
    {
        "invalid_json": 400,
        "invalid_body": 400,
        "missing_model": 400,
        "invalid_model": 400,
        "invalid_model_list": 400,
        "unknown_model": 400,
        "bad_request": 400,
        "not_found": 404,
        "method_not_allowed": 405,
        "request_timeout": 408,
        "request_too_large": 413,
        "uri_too_long": 414,
        "expectation_failed": 417,
        "headers_too_large": 431,
        "internal_error": 500,
        "upstream_connect_error": 502,
        "upstream_first_body_byte_error": 502,
        "upstream_stream_truncated": 502,
        "overloaded": 503,
        "no_candidates": 503,
        "missing_allowlist": 503,
        "allowlist_empty": 503,
        "stale_allowlist": 503,
        "draining": 503,
        "not_ready": 503,
        "stale_snapshot": 503,
        "deadline_exceeded": 504,
        "upstream_header_timeout": 504,
        "upstream_first_body_byte_timeout": 504,
    }
)
"""HTTP status of each error code; a code that is not here cannot be raised."""


class ApiError(Exception):
    """An answer of our own in OpenAI's error shape, raised wherever a request cannot go on.

    :param code: a key of STATUS_BY_CODE; stable, for programs.
    :param message: what is wrong and what to do, for people; never holds a prompt, key, token or address.
    :param param: the request parameter at fault, where there is one.
    :param headers: extra response headers, for example Allow or Retry-After.
    :param error_type: overrides the type derived from the status (readiness uses ``not_ready``).
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        error_type: str | None = None,
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.status = STATUS_BY_CODE[code]
        self.message = message
        self.param = param
        self.headers = headers
        self.type = error_type or ("invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> bytes:
        """The JSON body; all four keys are always there (OpenAI API reference, error object)."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()


def internal_error() -> ApiError:
    """The answer to whatever nobody foresaw; what it was is told to the log alone."""
    return ApiError("internal_error", "The gateway failed on this request.")
