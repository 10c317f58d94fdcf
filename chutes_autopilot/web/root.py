"""The Klein tree: every path of the service, and nothing else."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import attrs
from klein import Klein
from klein.resource import KleinResource
from twisted.internet.defer import Deferred

from chutes_autopilot.errors import ApiError, e2ee_error
from chutes_autopilot.web.answers import install_error_answers
from chutes_autopilot.web.chat import ChatRoute
from chutes_autopilot.web.decisions import DecisionRoutes
from chutes_autopilot.web.explorer.places import PLACES, answer_places, close_explorer, switched_off
from chutes_autopilot.web.models import ModelsRoute
from chutes_autopilot.web.operations import OperationsRoute
from chutes_autopilot.web.site import GatewayRequest

if TYPE_CHECKING:
    from chutes_autopilot.web.explorer.parts import ExplorerParts

ROBOTS = b"User-agent: *\nDisallow: /api/\nDisallow: /v1/\nDisallow: /*?\n"
"""The pages are for everybody; each combination of filters, and what programs ask for, is for no crawler."""
_ICON = Path(__file__).parent / "explorer/static/favicon.svg"
_KEPT_A_DAY = (
    (b"Cache-Control", b"public, max-age=86400"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Content-Security-Policy", b"default-src 'none'"),
)


@attrs.frozen
class ChutesEndpoints:
    """What answers the paths of the Chutes route.

    :param signature: of an answer, by its id; ``receipt`` likewise.
    :param admit: raises the ApiError for whoever may not chat.
    """

    chat: Callable[[GatewayRequest], Deferred[None]]
    models: Callable[[GatewayRequest], Deferred[None]]
    report: Callable[[GatewayRequest], Deferred[None]]
    signature: Callable[[GatewayRequest, str], Deferred[None]]
    receipt: Callable[[GatewayRequest, str], Deferred[None]]
    admit: Callable[[GatewayRequest], object]


NOTHING_RELAYED: Mapping[str, Callable[[GatewayRequest], Deferred[None]]] = MappingProxyType({})
"""No path is relayed but that of chat."""


def no_embeddings(_request: GatewayRequest) -> Any:
    """What /v1/embeddings does where EMBEDDINGS_BASE_URL is not set."""
    raise ApiError(
        "not_found", "There are no embeddings here: the operator of this gateway has not set EMBEDDINGS_BASE_URL."
    )


class RecentRequests(Protocol):
    """What tells the operator of the last requests."""

    def recent(self, request: GatewayRequest, /) -> Any: ...


def _disabled(_request: GatewayRequest, _chat_id: str = "") -> Any:
    raise e2ee_error("chutes_disabled", "Chutes route is disabled")


def admit_to(chutes: ChutesEndpoints, request: GatewayRequest) -> None:
    """Raise what a request for the Chutes route's chat gets before its size is looked at."""
    if request.path == b"/v1/chutes/chat/completions":
        chutes.admit(request)


CHUTES_DISABLED = ChutesEndpoints(_disabled, _disabled, _disabled, _disabled, _disabled, _disabled)
"""Where CHUTES_ENABLED is false."""


def build_root(
    chat: ChatRoute,
    models: ModelsRoute,
    operations: OperationsRoute,
    chutes: ChutesEndpoints = CHUTES_DISABLED,
    explorer: "ExplorerParts | Callable[[], ApiError]" = switched_off,
    *,
    metrics_here: bool = True,
    decisions: DecisionRoutes | None = None,
    relayed: Mapping[str, Callable[[GatewayRequest], Deferred[None]]] = NOTHING_RELAYED,
    forward: Callable[..., Any] | None = None,
) -> KleinResource:
    """The resource that answers every request.

    :param explorer: or why there is none.
    :param metrics_here: whether ``/metrics`` is served here, and not on an endpoint of its own.
    :param decisions: explain requests; without them there is no list for the operator.
    :param relayed: what answers the paths that are relayed beside chat.
    :param forward: of a worker: answers what is the parent's to answer, in the place of the explorer and of what tells
        of the whole service.
    """
    app = _app()

    @app.route("/v1/chat/completions", methods=["POST"])
    def chat_completions(request: GatewayRequest) -> Deferred[None]:
        return chat.answer(request)

    for path, answer in relayed.items():
        app.route(path, methods=["POST"], endpoint=path)(answer)

    told = decisions or DecisionRoutes(chat.relay)

    @app.route("/v1/autopilot/decisions/<path:request_id>", methods=["GET"])
    def one_decision(request: GatewayRequest, request_id: str) -> Deferred[None]:
        return Deferred.fromCoroutine(told.one(request, request_id))

    @app.route("/v1/autopilot/route", methods=["POST"])
    def plan(request: GatewayRequest) -> None:
        told.plan(request)

    @app.route("/v1/models", methods=["GET"])
    def list_models(request: GatewayRequest) -> None:
        models.index(request)

    @app.route("/v1/models/<path:model>", methods=["GET"])
    def one_model(request: GatewayRequest, model: str) -> None:
        models.one(request, model)

    @app.route("/v1/chutes/chat/completions", methods=["POST"])
    def chutes_chat(request: GatewayRequest) -> Deferred[None]:
        return chutes.chat(request)

    @app.route("/v1/chutes/models", methods=["GET"])
    def chutes_models(request: GatewayRequest) -> Deferred[None]:
        return chutes.models(request)

    @app.route("/v1/attestation/report", methods=["GET"])
    def attestation_report(request: GatewayRequest) -> Deferred[None]:
        return chutes.report(request)

    @app.route("/v1/signature/<path:chat_id>", methods=["GET"])
    def signature(request: GatewayRequest, chat_id: str) -> Deferred[None]:
        return chutes.signature(request, chat_id)

    @app.route("/v1/receipts/<path:chat_id>", methods=["GET"])
    def receipt(request: GatewayRequest, chat_id: str) -> Deferred[None]:
        return chutes.receipt(request, chat_id)

    _operations(app, operations, metrics_here=metrics_here and forward is None)
    if forward is not None:
        whole = ("/v1/autopilot/decisions", *(["/metrics"] if metrics_here else []))
        answer_places(app, forward, (*PLACES, *whole))
    else:
        _decisions(app, told)
        _mount_explorer(app, explorer)
    return app.resource()


def build_admin_root(
    operations: OperationsRoute,
    explorer: "ExplorerParts | Callable[[], ApiError]",
    decisions: RecentRequests,
    *,
    metrics_here: bool = True,
) -> KleinResource:
    """The resource of ADMIN_ENDPOINT: what an operator asks for, and nothing that clients need."""
    app = _app()
    _operations(app, operations, metrics_here=metrics_here)
    _decisions(app, decisions)
    _mount_explorer(app, explorer)
    return app.resource()


def _app() -> Klein:
    app = Klein()
    # A redirect would carry a Location made from the client's Host, and few SDKs repeat a POST after one.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.url_map.redirect_defaults = False
    install_error_answers(app)
    _for_visitors(app)
    return app


def _decisions(app: Klein, decisions: RecentRequests) -> None:
    @app.route("/v1/autopilot/decisions", methods=["GET"])
    def recent(request: GatewayRequest) -> Any:
        return decisions.recent(request)


def _for_visitors(app: Klein) -> None:
    """What browsers and crawlers ask for without being told to."""
    icon = _ICON.read_bytes()

    @app.route("/robots.txt", methods=["GET"])
    def robots(request: GatewayRequest) -> None:
        request.answer(200, ROBOTS, b"text/plain; charset=utf-8", _KEPT_A_DAY)

    @app.route("/favicon.ico", methods=["GET"])
    def favicon(request: GatewayRequest) -> None:
        request.answer(200, icon, b"image/svg+xml", _KEPT_A_DAY)


def _operations(app: Klein, operations: OperationsRoute, *, metrics_here: bool) -> None:
    @app.route("/healthz", methods=["GET"])
    def healthz(request: GatewayRequest) -> None:
        operations.healthz(request)

    @app.route("/readyz", methods=["GET"])
    def readyz(request: GatewayRequest) -> None:
        operations.readyz(request)

    if metrics_here:

        @app.route("/metrics", methods=["GET"])
        def metrics(request: GatewayRequest) -> Any:
            return operations.exposition(request)


def _mount_explorer(app: Klein, explorer: "ExplorerParts | Callable[[], ApiError]") -> None:
    if callable(explorer):
        close_explorer(app, explorer)
    else:
        from chutes_autopilot.web.explorer.routes import mount_explorer  # most of a start's time is imports

        mount_explorer(app, explorer)
