"""What an operator's tools look at: /healthz, /readyz and /metrics."""

from collections.abc import Callable, Sequence

import attrs
from twisted.internet.defer import Deferred

from chutes_autopilot.errors import ApiError
from chutes_autopilot.observe.metrics import CONTENT_TYPE, Metrics
from chutes_autopilot.web.site import GatewayRequest

TEXT = b"text/plain; charset=utf-8"

_NOT_READY = {
    "draining": "The service is stopping and takes no new connections.",
    "missing_allowlist": "The catalog of models has not been fetched yet.",
    "allowlist_empty": "The catalog of models is empty.",
    "stale_allowlist": "The catalog of models has not been refreshed for too long; requests are still routed by it.",
    "not_ready": "There is no live utilization yet, or no model can be chosen.",
    "stale_snapshot": "The live utilization has not been refreshed for too long; requests are still routed by it.",
}


@attrs.define(eq=False)
class OperationsRoute:
    """Liveness, readiness and metrics.

    :param readiness: why the service is not ready (a code of the error table), None when it is.
    :param details: what is wrong although the service is ready; each gives None where nothing is.
    """

    readiness: Callable[[], str | None]
    metrics: Metrics
    details: Sequence[Callable[[], str | None]] = ()

    def healthz(self, request: GatewayRequest) -> None:
        """200 ``ok`` while the process serves requests at all."""
        request.answer(200, b"ok", TEXT)

    def readyz(self, request: GatewayRequest) -> None:
        """200 ``ready``, and what is wrong all the same; or 503 in error shape with the first reason."""
        reason = self.readiness()
        if reason is not None:
            raise ApiError(reason, _NOT_READY[reason])
        said = "; ".join(filter(None, ("ready", *(detail() for detail in self.details))))
        request.answer(200, said.encode(), TEXT)

    def exposition(self, request: GatewayRequest) -> Deferred[None] | None:
        """All metrics in Prometheus' text format."""
        request.answer(200, self.metrics.exposition(), CONTENT_TYPE)
        return None
