"""A chat request from its arrival to its one record, whatever read it from the wire."""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import attrs
from twisted.internet.interfaces import IReactorTime

from chutes_autopilot.control.snapshots import SnapshotHolder
from chutes_autopilot.errors import ApiError
from chutes_autopilot.interfaces import IAttemptObserver, IDownstream, IStickyStore, IUpstreamAttempt
from chutes_autopilot.observe import events
from chutes_autopilot.observe.metrics import Metrics
from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.policy.client_address import TrustedProxies, client_address
from chutes_autopilot.policy.model_field import Direct, check_model_value, read_model_field
from chutes_autopilot.policy.plan import Plan, make_plan
from chutes_autopilot.policy.stickiness import after_success, client_key, session_value, sticky_model
from chutes_autopilot.relay.exchange import Exchange, Limits
from chutes_autopilot.upstream.chat import UpstreamRequest
from chutes_autopilot.wire.body import ChatBody, read_chat_body
from chutes_autopilot.wire.headers import Header, upstream_request_headers

CHAT_PATH = b"/v1/chat/completions"

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


@attrs.frozen
class ChatCall:
    """One chat request as it was read from a client.

    :param target: the request target in origin form, as received.
    :param headers: in the order received, whatever the case of their names.
    :param peer: the other end's address; no IP address for a unix socket.
    """

    method: bytes
    target: bytes
    headers: tuple[Header, ...]
    body: bytes
    request_id: str
    peer: str

    def values(self, name: bytes) -> list[bytes]:
        """Every value of a header, given by its lower-case name."""
        return [value for key, value in self.headers if key.lower() == name]

    def value(self, name: bytes) -> bytes | None:
        """The last value of a header, given by its lower-case name."""
        return next(iter(self.values(name)[::-1]), None)


@attrs.define(eq=False)
class ChatRelay:
    """Relays chat requests; one object for the life of the service."""

    rules: RoutingRules
    snapshots: SnapshotHolder
    sticky: IStickyStore
    metrics: Metrics
    clock: IReactorTime
    open_upstream: OpenUpstream

    def open(
        self, call: ChatCall, downstream: IDownstream, ended: Callable[[RequestRecord, ApiError | None], None]
    ) -> Exchange:
        """The exchange of one request, not yet started. Raises ApiError where it asks for what cannot be tried.

        :param ended: called once, when the request is over and counted: with the error of our own to answer with,
            or None when the answer was relayed, cut or abandoned.
        """
        record = self._begin(call.request_id, len(call.body))
        try:
            body = read_chat_body(call.body)
            record.stream = body.stream
            plan, succeeded = self._plan(call, body)
        except ApiError as error:
            self._refused(record, error)
            raise
        record.mode = plan.mode
        record.candidates = plan.candidates
        headers = tuple(upstream_request_headers(call.headers, call.request_id))

        def open_attempt(model: str, header_timeout: float, observer: IAttemptObserver) -> IUpstreamAttempt:
            data = body.data if plan.mode == "direct" else body.with_model(model)
            return self.open_upstream(
                UpstreamRequest(call.method, call.target, headers, data), header_timeout, observer
            )

        def over(error: ApiError | None) -> None:
            self._finished(record)
            ended(record, error)

        return Exchange(plan, self.rules.limits, record, downstream, self.clock, open_attempt, succeeded, over)

    def refused(self, request_id: str, bytes_in: int, error: ApiError) -> None:
        """Count and log a chat request that was refused before it could be read."""
        self._refused(self._begin(request_id, bytes_in), error)

    def _begin(self, request_id: str, bytes_in: int) -> RequestRecord:
        self.metrics.requests_active.inc()
        return RequestRecord(request_id, self.clock.seconds(), bytes_in)

    def _refused(self, record: RequestRecord, error: ApiError) -> None:
        record.status, record.error, record.outcome = error.status, error.code, "refused"
        record.ended = self.clock.seconds()
        self._finished(record)

    def _finished(self, record: RequestRecord) -> None:
        self.metrics.requests_active.dec()
        self.metrics.finished(record)
        events.request_finished(record)

    def _plan(self, call: ChatCall, body: ChatBody) -> tuple[Plan, Callable[[str, Mapping[str, float]], None]]:
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
        key = self._client_key(call, body)
        previous = self.sticky.get(key)
        sticky = sticky_model(previous, self.clock.seconds(), self.rules.failback)
        plan = make_plan(asked, snapshot.ranked_models, sticky, limit=limit)

        def succeeded(model: str, failures: Mapping[str, float]) -> None:
            by_base = {plan.base(failed): when for failed, when in failures.items()}
            self.sticky.put(key, after_success(previous, plan, model, by_base))

        return plan, succeeded

    def _client_key(self, call: ChatCall, body: ChatBody) -> bytes:
        return client_key(
            self.rules.client_key_secret,
            authorization=call.value(b"authorization"),
            address=client_address(call.peer, call.values(b"x-forwarded-for"), self.rules.trusted_proxies),
            session=session_value(
                call.value(b"x-session-id"), call.value(b"x-session-affinity"), body.prompt_cache_key
            ),
        )


def peer_of(address: object) -> str:
    """The host of a Twisted address, or a word that is no IP address where it has none."""
    host: str | None = getattr(address, "host", None)
    return host or "unix"


def all_headers(raw: Iterable[tuple[bytes, Iterable[bytes]]]) -> tuple[Header, ...]:
    """One pair for each value of a twisted.web Headers' ``getAllRawHeaders()``."""
    return tuple((name, value) for name, values in raw for value in values)
