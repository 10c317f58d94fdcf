"""The explorer's paths where there is no explorer, or not yet; nothing of it is imported here, as that takes long."""

from collections.abc import Callable, Sequence
from typing import Any

from klein import Klein

from chutes_autopilot.errors import ApiError
from chutes_autopilot.web.explorer.closed_page import STARTING, SWITCHED_OFF, ClosedPage
from chutes_autopilot.web.site import GatewayRequest

_PAGES = ("/", "/live", "/merge", "/changes")
PLACES = (*_PAGES, "/static/<path:rest>", "/feed.atom", "/api", "/api/<path:rest>")


class Closed(ApiError):
    """Why there is no explorer.

    :param page: says it to people.
    """

    def __init__(self, code: str, page: ClosedPage, message: str, **more: Any) -> None:
        super().__init__(code, message, **more)
        self.page = page


def close_explorer(app: Klein, why: Callable[[], ApiError]) -> None:
    """Answer every path of the explorer with an error; to a browser that wants to see one of its pages, as a page."""

    def closed(request: GatewayRequest, **_segments: str) -> Any:
        error = why()
        if isinstance(error, Closed) and request.path.decode("latin-1") in _PAGES and wants_page(request):
            send_page(request, error.page, error)
            return
        raise error

    answer_places(app, closed, PLACES)


def answer_places(app: Klein, answer: Callable[..., Any], places: Sequence[str]) -> None:
    """Answer these paths, whatever the method, in one and the same way."""
    for number, path in enumerate(places):
        app.route(path, endpoint=f"place_{number}")(answer)


def wants_page(request: GatewayRequest) -> bool:
    """Whether a browser asks for a page: it names text/html, which programs that take anything do not."""
    return request.method in (b"GET", b"HEAD") and b"text/html" in (request.getHeader(b"Accept") or b"").lower()


def send_page(request: GatewayRequest, page: ClosedPage, error: ApiError) -> None:
    """Answer with the page in the place of the error's JSON."""
    request.answer(error.status, page.body(), b"text/html; charset=utf-8", (*page.headers, *error.headers))


def switched_off() -> ApiError:
    """EXPLORER_ENABLED is false."""
    return Closed(
        "not_found", SWITCHED_OFF, "The models explorer is switched off; EXPLORER_ENABLED=true switches it on."
    )


def starting() -> ApiError:
    """The service has only just begun."""
    return Closed(
        "not_ready",
        STARTING,
        "The models explorer is starting: try again in a second.",
        headers=((b"Retry-After", b"1"),),
    )
