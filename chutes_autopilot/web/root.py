"""The Klein tree: every path of the service, and nothing else."""

from klein import Klein
from klein.resource import KleinResource
from twisted.internet.defer import Deferred

from chutes_autopilot.web.answers import install_error_answers
from chutes_autopilot.web.chat import ChatRoute
from chutes_autopilot.web.models import ModelsRoute
from chutes_autopilot.web.operations import OperationsRoute
from chutes_autopilot.web.site import GatewayRequest


def build_root(chat: ChatRoute, models: ModelsRoute, operations: OperationsRoute) -> KleinResource:
    """The resource that answers every request."""
    app = Klein()
    # A redirect would carry a Location made from the client's Host, and few SDKs repeat a POST after one.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.url_map.redirect_defaults = False
    install_error_answers(app)

    @app.route("/v1/chat/completions", methods=["POST"])
    def chat_completions(request: GatewayRequest) -> Deferred[None]:
        return chat.answer(request)

    @app.route("/v1/models", methods=["GET"])
    def list_models(request: GatewayRequest) -> None:
        models.index(request)

    @app.route("/v1/models/<path:model>", methods=["GET"])
    def one_model(request: GatewayRequest, model: str) -> None:
        models.one(request, model)

    @app.route("/healthz", methods=["GET"])
    def healthz(request: GatewayRequest) -> None:
        operations.healthz(request)

    @app.route("/readyz", methods=["GET"])
    def readyz(request: GatewayRequest) -> None:
        operations.readyz(request)

    @app.route("/metrics", methods=["GET"])
    def metrics(request: GatewayRequest) -> None:
        operations.exposition(request)

    return app.resource()
