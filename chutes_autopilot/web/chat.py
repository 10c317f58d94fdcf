"""POST /v1/chat/completions: from a request to a plan, an exchange and its one record."""

from collections.abc import Callable, Mapping
from typing import Literal

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from chutes_autopilot.control.snapshots import SnapshotHolder
from chutes_autopilot.errors import ApiError
from chutes_autopilot.interfaces import IAttemptObserver, IStickyStore, IUpstreamAttempt
from chutes_autopilot.observe import events
from chutes_autopilot.observe.metrics import Metrics
from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.policy.client_address import TrustedProxies, client_address
from chutes_autopilot.policy.model_field import Direct, check_model_value, read_model_field
from chutes_autopilot.policy.plan import Plan, make_plan
from chutes_autopilot.policy.stickiness import after_success, client_key, session_value, sticky_model
from chutes_autopilot.relay.exchange import Exchange, Limits
from chutes_autopilot.upstream.chat import UpstreamRequest
from chutes_autopilot.web.downstream import RequestDownstream
from chutes_autopilot.web.site import GatewayRequest
from chutes_autopilot.wire.body import ChatBody, read_chat_body
from chutes_autopilot.wire.headers import upstream_request_headers

OpenUpstream = Callable[[UpstreamRequest, float, IAttemptObserver], IUpstreamAttempt]
"""Makes an attempt, not yet started: the request, seconds its head may take, who hears of it."""


@attrs.frozen
class RoutingRules:
    """What the operator sets of routing.

    :param failback: seconds after which a choice made by failover gives way; 0: never.
    :param client_key_secret: keys the hash that recognises a client.
    :param trusted_proxies: the networks whose X-Forwarded-For is believed, None for no one.
    """

    limits: Limits
    max_list_items: int
    unknown_models: Literal["refuse", "pass"]
    failback: float
    client_key_secret: bytes
    trusted_proxies: TrustedProxies | None


@attrs.define(eq=False)
class ChatRoute:
    """Answers chat requests; one object for the life of the service."""

    rules: RoutingRules
    snapshots: SnapshotHolder
    sticky: IStickyStore
    metrics: Metrics
    clock: IReactorTime
    open_upstream: OpenUpstream

    def answer(self, request: GatewayRequest) -> Deferred[None]:
        """Relay the request; fires when the answer was relayed, fails with the ApiError to answer with.

        Where the answer was cut the Deferred stays silent, so that nobody ends it cleanly; Klein cancels it when
        the connection is gone.
        """
        record = self._begin(request)
        try:
            body = read_chat_body(request.take_body())
            record.stream = body.stream
            exchange, done = self._exchange(request, record, body)
        except ApiError as error:
            self._refused(record, error)
            raise
        exchange.start()
        return done

    def body_refused(self, request: GatewayRequest, error: ApiError) -> None:
        """Count and log a request whose body was too large to be read."""
        if request.path == b"/v1/chat/completions":
            self._refused(self._begin(request), error)

    def _begin(self, request: GatewayRequest) -> RequestRecord:
        self.metrics.requests_active.inc()
        return RequestRecord(request.request_id, self.clock.seconds(), request.received_bytes)

    def _refused(self, record: RequestRecord, error: ApiError) -> None:
        record.status, record.error, record.outcome = error.status, error.code, "refused"
        record.ended = self.clock.seconds()
        self._finished(record)

    def _finished(self, record: RequestRecord) -> None:
        self.metrics.requests_active.dec()
        self.metrics.finished(record)
        events.request_finished(record)

    def _exchange(
        self, request: GatewayRequest, record: RequestRecord, body: ChatBody
    ) -> tuple[Exchange, Deferred[None]]:
        plan, succeeded = self._plan(request, body)
        record.mode = plan.mode
        record.candidates = plan.candidates
        headers = tuple(upstream_request_headers(_raw_headers(request), record.request_id))
        method, target = request.method, request.uri

        def open_attempt(model: str, header_timeout: float, observer: IAttemptObserver) -> IUpstreamAttempt:
            data = body.data if plan.mode == "direct" else body.with_model(model)
            return self.open_upstream(UpstreamRequest(method, target, headers, data), header_timeout, observer)

        def ended(error: ApiError | None) -> None:
            self._finished(record)
            if error is not None:
                done.errback(error)
            elif record.outcome == "complete":
                done.callback(None)

        downstream = RequestDownstream(request)
        exchange = Exchange(plan, self.rules.limits, record, downstream, self.clock, open_attempt, succeeded, ended)
        done: Deferred[None] = Deferred(lambda _: exchange.client_gone())
        return exchange, done

    def _plan(self, request: GatewayRequest, body: ChatBody) -> tuple[Plan, Callable[[str, Mapping[str, float]], None]]:
        """What to try, and what to do when a model answered with a 2xx; one snapshot serves the whole request."""
        snapshot = self.snapshots.current
        known = snapshot.catalog.ids if snapshot.catalog is not None else frozenset()
        asked = read_model_field(
            check_model_value(body.model),
            known,
            max_items=self.rules.max_list_items,
            unknown=self.rules.unknown_models,
        )
        limit = self.rules.limits.max_attempts
        if isinstance(asked, Direct):
            return make_plan(asked, (), None, limit=limit), lambda model, failures: None
        key = self._client_key(request, body)
        previous = self.sticky.get(key)
        sticky = sticky_model(previous, self.clock.seconds(), self.rules.failback)
        plan = make_plan(asked, snapshot.ranked_models, sticky, limit=limit)

        def succeeded(model: str, failures: Mapping[str, float]) -> None:
            by_base = {plan.base(failed): when for failed, when in failures.items()}
            self.sticky.put(key, after_success(previous, plan, model, by_base))

        return plan, succeeded

    def _client_key(self, request: GatewayRequest, body: ChatBody) -> bytes:
        headers = request.requestHeaders
        peer = getattr(request.getClientAddress(), "host", None) or "unix"
        return client_key(
            self.rules.client_key_secret,
            authorization=request.getHeader(b"authorization"),
            address=client_address(peer, headers.getRawHeaders(b"x-forwarded-for", []), self.rules.trusted_proxies),
            session=session_value(
                request.getHeader(b"x-session-id"), request.getHeader(b"x-session-affinity"), body.prompt_cache_key
            ),
        )


def _raw_headers(request: GatewayRequest) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, values in request.requestHeaders.getAllRawHeaders() for value in values]
