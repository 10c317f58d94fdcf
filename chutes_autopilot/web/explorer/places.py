"""The explorer's paths where there is no explorer, or not yet; nothing of it is imported here, as that takes long."""

from collections.abc import Callable
from typing import Any

from klein import Klein

from chutes_autopilot.errors import ApiError
from chutes_autopilot.web.site import GatewayRequest

_PLACES = ("/", "/live", "/merge", "/changes", "/static/<path:rest>", "/feed.atom", "/api", "/api/<path:rest>")


def close_explorer(app: Klein, why: Callable[[], ApiError]) -> None:
    """Answer every path of the explorer with an error."""

    def closed(_request: GatewayRequest, **_segments: str) -> Any:
        raise why()

    for number, path in enumerate(_PLACES):
        app.route(path, endpoint=f"no_explorer_{number}")(closed)


def switched_off() -> ApiError:
    """EXPLORER_ENABLED is false."""
    return ApiError("not_found", "The models explorer is switched off; EXPLORER_ENABLED=true switches it on.")


def starting() -> ApiError:
    """The service has only just begun."""
    return ApiError(
        "not_ready",
        "The models explorer is starting: try again in a second.",
        headers=((b"Retry-After", b"1"),),
        error_type="not_ready",
    )
