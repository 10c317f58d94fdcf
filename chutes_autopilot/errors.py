"""Every error answer of our own: one table of codes, one body shape, one exception."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

STATUS_BY_CODE: Mapping[str, int] = MappingProxyType(
    {
        "invalid_json": 400,
        "invalid_body": 400,
        "missing_model": 400,
        "invalid_model": 400,
        "invalid_model_list": 400,
        "unknown_model": 400,
        "no_capable_candidate": 400,
        "bad_request": 400,
        "not_found": 404,
        "method_not_allowed": 405,
        "request_timeout": 408,
        "request_too_large": 413,
        "uri_too_long": 414,
        "expectation_failed": 417,
        "upstream_ban": 429,
        "headers_too_large": 431,
        "unsupported_content_encoding": 415,
        "invalid_api_key": 401,
        "e2ee_header_missing": 400,
        "e2ee_invalid_signing_algo": 400,
        "e2ee_invalid_public_key": 400,
        "e2ee_model_key_mismatch": 400,
        "e2ee_invalid_version": 400,
        "e2ee_invalid_nonce": 400,
        "e2ee_invalid_timestamp": 400,
        "e2ee_replay_detected": 400,
        "e2ee_decryption_failed": 400,
        "invalid_e2ee_request": 400,
        "e2ee_uncovered_field": 400,
        "e2ee_required": 400,
        "invalid_signing_algo": 400,
        "invalid_nonce": 400,
        "e2ee_too_many_fields": 413,
        "e2ee_encryption_failed": 502,
        "upstream_response_too_large": 502,
        "chutes_upstream_auth": 502,
        "chutes_e2ee_protocol": 502,
        "chutes_disabled": 503,
        "chutes_misconfigured": 503,
        "chutes_upstream_quota": 503,
        "chutes_e2ee_no_session": 503,
        "no_attested_candidate": 503,
        "e2ee_replay_unavailable": 503,
        "e2ee_replay_cache_full": 503,
        "attestation_unavailable": 503,
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

NOT_READY = frozenset(
    {"draining", "missing_allowlist", "allowlist_empty", "stale_allowlist", "not_ready", "stale_snapshot"}
)
"""The reasons of /readyz. Wherever one of these codes is answered, its ``type`` is ``not_ready``."""


class ApiError(Exception):
    """An answer of our own in OpenAI's error shape, raised wherever a request cannot go on.

    :param code: a key of STATUS_BY_CODE; stable, for programs.
    :param message: what is wrong and what to do, for people; never holds a prompt, key, token or address.
    :param param: the request parameter at fault, where there is one.
    :param headers: extra response headers, for example Allow or Retry-After.
    :param error_type: overrides the type that code and status give.
    """

    beside: Mapping[str, Any] = MappingProxyType({})
    """What the body says beside the error, as JSON values."""

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
        self.type = error_type or _type(code)
        self.left_out: tuple[Mapping[str, str], Mapping[str, str]] | None = None
        """Where no model is left: each that was passed over, by the part of an alias or the requirement it lacks."""

    def body(self) -> bytes:
        """The JSON body; all four keys are always there (OpenAI API reference, error object)."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error, **self.beside}).encode()


def _type(code: str) -> str:
    if code in NOT_READY:
        return "not_ready"
    return "invalid_request_error" if STATUS_BY_CODE[code] < 500 else "server_error"


def e2ee_error(
    code: str, message: str, *, param: str | None = None, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> ApiError:
    """An error of the Chutes route, whose clients look at ``type``: it is the code."""
    return ApiError(code, message, param=param, headers=headers, error_type=code)


def draining(message: str) -> ApiError:
    """The answer to a request that a stop leaves no time for; another replica may take it at once."""
    return ApiError("draining", message, headers=((b"Retry-After", b"1"),))


def internal_error() -> ApiError:
    """The answer to whatever nobody foresaw; what it was is told to the log alone."""
    return ApiError("internal_error", "The gateway failed on this request.")
