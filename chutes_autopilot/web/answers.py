"""The one place where errors become answers, for every route of the service."""

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from chutes_autopilot.errors import ApiError, internal_error
from chutes_autopilot.observe import events
from chutes_autopilot.web.explorer.closed_page import NOT_FOUND
from chutes_autopilot.web.explorer.errors import is_explorer_path
from chutes_autopilot.web.explorer.places import send_page, wants_page
from chutes_autopilot.web.site import GatewayRequest

_PLACES = "POST /v1/chat/completions and GET /v1/models"


def install_error_answers(app: Klein) -> None:
    """Give ``app`` handlers for everything a route can raise; after them nothing reaches Klein's HTML."""

    @app.handle_errors(ApiError)
    def api_error(request: GatewayRequest, failure: Failure) -> None:
        assert isinstance(failure.value, ApiError)  # noqa: S101 - what this handler is for
        request.refuse(failure.value)

    @app.handle_errors(MethodNotAllowed)
    def method_not_allowed(request: GatewayRequest, failure: Failure) -> None:
        allowed = ", ".join(sorted(getattr(failure.value, "valid_methods", None) or ()))
        error = ApiError(
            "method_not_allowed",
            f"This path takes {allowed} only.",
            headers=((b"Allow", allowed.encode()),),
        )
        request.refuse(error)

    @app.handle_errors(NotFound, HTTPException)
    def not_found(request: GatewayRequest, failure: Failure) -> None:
        is_api = is_explorer_path(request.path)
        there_is = "GET /api/openapi.json, which lists what there is" if is_api else _PLACES
        error = ApiError("not_found", f"There is nothing at this path; see {there_is}.")
        if wants_page(request) and not (is_api or request.path.startswith(b"/v1/")):
            send_page(request, NOT_FOUND, error)
        else:
            request.refuse(error)

    @app.handle_errors(CancelledError)
    def cancelled(request: GatewayRequest, failure: Failure) -> Failure:
        return failure

    @app.handle_errors(Exception)
    def unexpected(request: GatewayRequest, failure: Failure) -> Deferred[None] | None:
        events.failed_unexpectedly(failure, "answering a request")
        if request.startedWriting:
            request.cut()
            return Deferred()  # never fires: Klein would end the answer cleanly
        request.refuse(internal_error())
        return None
