"""The explorer's paths where there is no explorer, or not yet; nothing of it is imported here, as that takes long."""

from collections.abc import Callable, Sequence
from typing import Any

from klein import Klein

from chutes_autopilot.errors import ApiError
from chutes_autopilot.web.site import GatewayRequest

PLACES = ("/", "/live", "/merge", "/changes", "/static/<path:rest>", "/feed.atom", "/api", "/api/<path:rest>")


def close_explorer(app: Klein, why: Callable[[], ApiError]) -> None:
    """Answer every path of the explorer with an error."""

    def closed(_request: GatewayRequest, **_segments: str) -> Any:
        raise why()

    answer_places(app, closed, PLACES)


def answer_places(app: Klein, answer: Callable[..., Any], places: Sequence[str]) -> None:
    """Answer these paths, whatever the method, in one and the same way."""
    for number, path in enumerate(places):
        app.route(path, endpoint=f"place_{number}")(answer)


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
