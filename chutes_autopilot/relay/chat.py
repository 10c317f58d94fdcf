"""A chat request from its arrival to its one record, whatever read it from the wire."""

from collections.abc import Callable, Mapping
from typing import Literal

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from chutes_autopilot.control.snapshots import SnapshotHolder
from chutes_autopilot.errors import ApiError, internal_error
from chutes_autopilot.interfaces import IAttemptObserver, IDownstream, IStickyStore, IUpstreamAttempt
from chutes_autopilot.observe import events
from chutes_autopilot.observe.metrics import Metrics
from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.policy.client_address import TrustedProxies, client_address
from chutes_autopilot.policy.model_field import Direct, check_model_value, read_model_field
from chutes_autopilot.policy.plan import Plan, make_plan, mode_of
from chutes_autopilot.policy.stickiness import after_success, bearer_token, client_key, session_value, sticky_model
from chutes_autopilot.relay.exchange import Exchange, Limits
from chutes_autopilot.upstream.chat import UpstreamRequest
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.wire.body import ChatBody, read_chat_body

CHAT_PATH = b"/v1/chat/completions"

OpenUpstream = Callable[[UpstreamRequest, float, IAttemptObserver], IUpstreamAttempt]
"""Makes an attempt, not yet started: the request, seconds its head may take, who hears of it."""


@attrs.frozen
class RoutingRules:
    """What the operator sets of routing.

    :param max_inflight: the most requests at once, from their arrival to the end of their answers.
    :param failback: seconds after which a choice made by failover gives way; 0: never.
    :param client_key_secret: keys the hash that recognises a client.
    :param trusted_proxies: the networks whose X-Forwarded-For is believed, None for no one.
    """

    limits: Limits
    max_inflight: int
    max_list_items: int
    unknown_models: Literal["refuse", "pass"]
    failback: float
    client_key_secret: bytes
    trusted_proxies: TrustedProxies | None


@attrs.define(eq=False)
class Client:
    """What a request says of its sender; used to recognise it, never to admit it.

    :param peer: the other end's address; no IP address for a unix socket.
    :param forwarded_for: the values of X-Forwarded-For in order.
    """

    peer: str
    authorization: bytes | None = None
    forwarded_for: tuple[bytes, ...] = ()
    session_id: bytes | None = None
    session_affinity: bytes | None = None
    _session: bytes | None = attrs.field(default=None, init=False)
    _key: bytes = attrs.field(default=b"", init=False)

    def key(self, rules: "RoutingRules", prompt_cache_key: str) -> bytes:
        """The key by which it is remembered; the last one is kept, for connections that bring many requests."""
        session = session_value(self.session_id, self.session_affinity, prompt_cache_key)
        if session != self._session:
            token = bearer_token(self.authorization)
            # the address counts only where there is no token, and reading it is not for nothing
            address = "" if token else client_address(self.peer, self.forwarded_for, rules.trusted_proxies)
            self._key = client_key(rules.client_key_secret, token=token, address=address, session=session)
            self._session = session
        return self._key


@attrs.frozen
class ChatCall:
    """One chat request as it was read from a client.

    :param target: the request target in origin form, as received.
    :param fields: the header lines that go upstream (wire.headers.upstream_request_headers).
    """

    method: bytes
    target: bytes
    fields: bytes
    body: bytes
    request_id: str
    client: Client


@attrs.define(eq=False)
class ChatRelay:
    """Relays chat requests; one object for the life of the service."""

    rules: RoutingRules
    snapshots: SnapshotHolder
    sticky: IStickyStore
    metrics: Metrics
    clock: IReactorTime
    deadlines: Deadlines
    open_upstream: OpenUpstream
    inflight: int = attrs.field(default=0, init=False)
    """Exchanges whose answer has not ended."""

    def open(
        self, call: ChatCall, downstream: IDownstream, ended: Callable[[RequestRecord, ApiError | None], None]
    ) -> Exchange:
        """The exchange of one request, not yet started. Raises ApiError where it asks for what cannot be tried.

        :param ended: called once, when the request is over and counted: with the error of our own to answer with,
            or None when the answer was relayed, cut or abandoned.
        """
        record = self._begin(call.request_id, len(call.body))
        try:
            if self.inflight >= self.rules.max_inflight:
                raise _overloaded()
            body = read_chat_body(call.body)
            record.stream = body.stream
            plan, succeeded = self._plan(call, body, record)
        except ApiError as error:
            self._refused(record, error)
            raise
        except Exception:  # noqa: BLE001 - reported
            events.failed_unexpectedly(Failure(), "reading a request")
            unexpected = internal_error()
            self._refused(record, unexpected)
            raise unexpected from None
        record.candidates = plan.candidates

        def open_attempt(model: str, header_timeout: float, observer: IAttemptObserver) -> IUpstreamAttempt:
            data = body.data if plan.mode == "direct" else body.with_model(model)
            return self.open_upstream(
                UpstreamRequest(call.method, call.target, call.fields, data), header_timeout, observer
            )

        def over(error: ApiError | None) -> None:
            self.inflight -= 1
            self._finished(record)
            ended(record, error)

        self.inflight += 1
        return Exchange(
            plan, self.rules.limits, record, downstream, self.clock, self.deadlines, open_attempt, succeeded, over
        )

    def refused(self, request_id: str, bytes_in: int, error: ApiError) -> None:
        """Count and log a chat request that was refused before it could be read."""
        self._refused(self._begin(request_id, bytes_in), error)

    def _begin(self, request_id: str, bytes_in: int) -> RequestRecord:
        self.metrics.active += 1
        return RequestRecord(request_id, self.clock.seconds(), bytes_in)

    def _refused(self, record: RequestRecord, error: ApiError) -> None:
        record.status, record.error, record.outcome = error.status, error.code, "refused"
        record.ended = self.clock.seconds()
        self._finished(record)

    def _finished(self, record: RequestRecord) -> None:
        self.metrics.active -= 1
        try:
            self.metrics.finished(record)
            events.request_finished(record)
        except Exception:  # noqa: BLE001 - the client gets its answer all the same
            events.failed_unexpectedly(Failure(), "counting a request")

    def _plan(
        self, call: ChatCall, body: ChatBody, record: RequestRecord
    ) -> tuple[Plan, Callable[[str, Mapping[str, float]], None]]:
        """What to try, and what to do when a model answered with a 2xx; one snapshot serves the whole request."""
        snapshot = self.snapshots.current
        known = snapshot.catalog.ids if snapshot.catalog is not None else frozenset()
        asked = read_model_field(
            check_model_value(body.model),
            known,
            max_items=self.rules.max_list_items,
            unknown=self.rules.unknown_models,
        )
        record.mode = mode_of(asked)
        limit = self.rules.limits.max_attempts
        if isinstance(asked, Direct):
            return make_plan(asked, (), None, limit=limit), lambda model, failures: None
        key = call.client.key(self.rules, body.prompt_cache_key)
        previous = self.sticky.get(key)
        sticky = sticky_model(previous, self.clock.seconds(), self.rules.failback)
        plan = make_plan(asked, snapshot.ranked_models, sticky, limit=limit)

        def succeeded(model: str, failures: Mapping[str, float]) -> None:
            by_base = {plan.base(failed): when for failed, when in failures.items()}
            self.sticky.put(key, after_success(previous, plan, model, by_base))

        return plan, succeeded


def peer_of(address: object) -> str:
    """The host of a Twisted address, or a word that is no IP address where it has none."""
    host: str | None = getattr(address, "host", None)
    return host or "unix"


def _overloaded() -> ApiError:
    return ApiError(
        "overloaded",
        "This gateway answers as many requests as it may at the moment: try again in a second.",
        headers=((b"Retry-After", b"1"),),
    )
