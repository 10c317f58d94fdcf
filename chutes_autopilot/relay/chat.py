"""A chat request from its arrival to its one record, whatever read it from the wire."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import random
from typing import Any, Literal

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from chutes_autopilot.control.snapshots import Snapshot, Snapshots
from chutes_autopilot.errors import ApiError, internal_error
from chutes_autopilot.interfaces import IDownstream, IStickyStore
from chutes_autopilot.observe import events
from chutes_autopilot.observe.metrics import Metrics
from chutes_autopilot.observe.record import CLIENT_GONE_STATUS, AttemptRecord, RequestRecord
from chutes_autopilot.policy.alias_file import NO_ALIASES, OwnAliases
from chutes_autopilot.policy.capability import skipped_header
from chutes_autopilot.policy.choice import Choice, Chooser, Reach
from chutes_autopilot.policy.choice import Client as ClientState
from chutes_autopilot.policy.client_address import TrustedProxies
from chutes_autopilot.policy.decision import RecentDecisions
from chutes_autopilot.policy.failover import begin
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.policy.hedging import HedgeBudget
from chutes_autopilot.policy.model_field import check_model_value, read_model_field
from chutes_autopilot.policy.plan import mode_of
from chutes_autopilot.policy.ranking import Ranked
from chutes_autopilot.policy.rate_limits import SENTENCES, RateLimit
from chutes_autopilot.policy.reasons import Reasons, reasons
from chutes_autopilot.policy.request_needs import Need, read_need
from chutes_autopilot.policy.resilience import begin as begin_resilient
from chutes_autopilot.policy.retry_shield import BanFuse, ban_refusal, no_retry_headers, wait_when_exhausted
from chutes_autopilot.policy.stickiness import StickyChoice, after_success, sticky_model
from chutes_autopilot.relay.call import ChatCall, Client
from chutes_autopilot.relay.endpoint import CHAT, Endpoint
from chutes_autopilot.relay.exchange import Exchange, Limits, OpenUpstream, Route
from chutes_autopilot.relay.explain import Explained
from chutes_autopilot.relay.recall import Recall, RecalledExchange
from chutes_autopilot.relay.resilient_exchange import ResilientExchange
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.wire.body import ChatBody, read_chat_body
from chutes_autopilot.wire.headers import EXPLAIN, header_lines
from chutes_autopilot.wire.http1 import ResponseHead

_NO_NEED = Need()
_NONE_COOL: frozenset[str] = frozenset()

MAX_ROUTES = 256
"""How many answers to "what is tried for this" are kept until the snapshot changes."""


@attrs.frozen
class RoutingRules:
    """What the operator sets of routing.

    :param max_inflight: the most requests at once, from their arrival to the end of their answers.
    :param failback: seconds after which a choice made by failover gives way; 0: never.
    :param client_key_secret: keys the hash that recognises a client.
    :param trusted_proxies: the networks whose X-Forwarded-For is believed, None for no one.
    :param own_aliases: the operator's.
    :param require_tee: an alias stands for confidential models only.
    :param ban_fuse: a client that the platform's edge has banned is answered here for a while.
    :param spread: whether each client has an order of its own.
    :param profile: what decided the defaults, for the records.
    """

    limits: Limits
    max_inflight: int
    max_list_items: int
    unknown_models: Literal["refuse", "pass"]
    failback: float
    client_key_secret: bytes
    trusted_proxies: TrustedProxies | None
    own_aliases: OwnAliases = NO_ALIASES
    require_tee: bool = False
    ban_fuse: bool = True
    spread: Literal["off", "rendezvous"] = "off"
    profile: Literal["standard", "resilient"] = "standard"


@attrs.define(eq=False)
class ChatRelay:
    """Relays the requests of one endpoint, chat where nothing else is said; one object for the life of the service."""

    rules: RoutingRules
    snapshots: Snapshots
    sticky: IStickyStore
    metrics: Metrics
    clock: IReactorTime
    deadlines: Deadlines
    open_upstream: OpenUpstream
    health: FleetHealth = attrs.field(factory=FleetHealth)
    """What its own traffic says of the models."""
    feed_interval: float = 5.0
    """Seconds from one poll of utilization to the next."""
    fuse: BanFuse = attrs.field(factory=BanFuse)
    """Which clients the platform's edge has banned."""
    decisions: RecentDecisions[Explained] = attrs.field(factory=RecentDecisions)
    """The last requests, to be explained."""
    log_request: Callable[[RequestRecord], object] = attrs.field(factory=lambda: events.request_finished)
    """Writes the line of every request that is over."""
    also_finished: Callable[[RequestRecord], None] | None = None
    """Told of every request that is over."""
    endpoint: Endpoint = CHAT
    """Which requests these are."""
    random: Callable[[], float] = random
    """Gives numbers from 0 to below 1, for waits that are not to be alike."""
    hedges: HedgeBudget = attrs.field(factory=HedgeBudget)
    """How many streams may have a second attempt."""
    stopping: bool = False
    """Whether the gateway stops and cuts what has taken too long: it is not the models that fail then."""
    waiting: set[Callable[[], object]] = attrs.field(factory=set, init=False)
    """What ends the requests that are between two attempts, now that the gateway is `stopping`."""
    key_of_the_operator: bytes | None = None
    """Stands for the operator's API key, where all requests are sent with that."""
    reach: Reach | None = None
    """Which models can be asked at this moment; None: all."""
    recall: Recall | None = None
    """Asks other replicas what they know of a client; None where there are none."""
    _routes: dict[tuple[object, ...], Route] = attrs.field(factory=dict, init=False)
    _routes_of: tuple[Snapshot | None, RoutingRules | None] = attrs.field(default=(None, None), init=False)

    @property
    def inflight(self) -> int:
        """Requests whose answer has not ended."""
        return self.metrics.active

    def stop(self) -> None:
        """Nothing may take longer: whoever waits to try again is refused, and so is each whose attempt fails now."""
        self.stopping = True
        for cut_short in tuple(self.waiting):
            cut_short()

    def open(
        self,
        call: ChatCall,
        downstream: IDownstream,
        ended: Callable[[RequestRecord, ApiError | None], None],
        open_upstream: OpenUpstream | None = None,
        read: ChatBody | None = None,
    ) -> Exchange | RecalledExchange:
        """The exchange of one request, not yet started. Raises ApiError where it asks for what cannot be tried.

        :param ended: called once, when the request is over and counted: with the error of our own to answer with,
            or None when the answer was relayed, cut or abandoned.
        :param open_upstream: makes this request's attempts, where they are not the usual ones.
        :param read: the call's body, where it has been read already.
        """
        record, rules = self._begin(call.request_id, len(call.body)), self.rules
        if open_upstream is None:
            open_upstream = self.open_upstream
        try:
            if self.metrics.active > rules.max_inflight:
                raise _overloaded()
            body = read_chat_body(call.body) if read is None else read
            record.stream = body.stream
            explained = Explained(record, None, rules.profile)
            exchange = self._routed(call, body, explained, downstream, open_upstream, ended)
            if rules.ban_fuse and self.fuse.bans:  # by now it is sound: it may be the one that finds out
                banned = self.fuse.admit(self.payer(call.client), record.received)
                if banned:
                    raise ban_refusal(banned)
            owner = call.client.credential_key(rules.client_key_secret, rules.trusted_proxies)
            self.decisions.keep(explained, owner)
            if self.recall is None or exchange.key is None:
                return exchange
            recalling = self.recall(exchange.key, exchange.previous is not None)
            if recalling is None:
                return exchange
            again = partial(self._routed, call, body, explained, downstream, open_upstream, ended)
            return RecalledExchange(exchange, recalling, again)
        except ApiError as error:
            self._refused(record, error)
            refused = Explained(record, None, self.rules.profile, self._reasons_against(error, call, record))
            self.decisions.keep(refused, self.owner(call.client))
            if call.client.explain:
                error.headers += ((EXPLAIN, refused.decision().summary()),)
            raise
        except Exception:  # noqa: BLE001 - reported
            events.failed_unexpectedly(Failure(), "reading a request")
            unexpected = internal_error()
            self._refused(record, unexpected)
            raise unexpected from None

    def explain(self, call: ChatCall) -> dict[str, Any]:
        """What would be tried for a request now, and why; nobody is called.

        :raises ApiError: as `open` does; where no model is left, its body has the reasons too.
        """
        body, record = read_chat_body(call.body), RequestRecord(call.request_id, self.clock.seconds())
        try:
            route = self._route(call, body, record)[2]
        except ApiError as error:
            against = self._reasons_against(error, call, record)
            if against is not None:
                error.beside = {**against.as_json(), "candidates_sent": []}
            raise
        assert route.why is not None  # noqa: S101 - every route made here has reasons
        return {**route.why().as_json(), "candidates_sent": list(route.plan.candidates)}

    def summary(self, exchange: Exchange) -> bytes:
        """What was decided so far, for a header."""
        return Explained(exchange.record, exchange.route, self.rules.profile).decision().summary()

    def find(self, request_id: str, client: Client) -> Explained | None:
        """A request of this client's, by its id."""
        return self.decisions.find(request_id, self.owner(client))

    async def find_elsewhere(self, request_id: str, client: Client) -> dict[str, Any] | None:
        """The same of a request that another replica had, as `Decision.as_json` gives it."""
        return await self.decisions.find_elsewhere(request_id, self.owner(client))

    def recent(self, count: int) -> dict[str, Any]:
        """The last requests, newest first, and how each model fares: for the operator, as JSON."""
        newest = [each.decision().as_json() for each in self.decisions.newest(count)]
        return {"decisions": newest, "health": self.health.as_json(self.clock.seconds())}

    def owner(self, client: Client) -> bytes:
        """By which a client's requests are its own, whatever the session."""
        return client.credential_key(self.rules.client_key_secret, self.rules.trusted_proxies)

    def payer(self, client: Client) -> bytes:
        """Whose credential the upstream sees: whom it bans."""
        return self.owner(client) if self.key_of_the_operator is None else self.key_of_the_operator

    def check_room(self) -> None:
        """Raise ApiError overloaded where no further request may be taken now."""
        if self.metrics.active >= self.rules.max_inflight:
            raise _overloaded()

    def abandoned(self, request_id: str, bytes_in: int) -> None:
        """Count and log a chat request whose client left while it was being read."""
        record = self._begin(request_id, bytes_in)
        record.status, record.outcome, record.ended = CLIENT_GONE_STATUS, "client_gone", self.clock.seconds()
        self.finished(record)

    def refused(self, request_id: str, bytes_in: int, error: ApiError) -> None:
        """Count and log a chat request that was refused before it could be read."""
        self._refused(self._begin(request_id, bytes_in), error)

    def succeeded(self, exchange: Exchange, model: str, failures: Mapping[str, float]) -> None:
        """A model answered with a 2xx: its client's next request goes there.

        :param failures: model -> when it failed, within this request.
        """
        if exchange.key is None:
            return
        route, previous = exchange.route, exchange.previous
        plan = route.plan
        if (
            previous is not None
            and previous.model == plan.bases.get(model, model)
            and not (failures or route.cooling or previous.from_failover)
        ):
            self.sticky.put(exchange.key, previous)  # nearly every time
            return
        by_base = {plan.base(failed): when for failed, when in failures.items()} if failures else failures
        preferred, base = plan.base(plan.preferred[0]), plan.base(model)
        kept = previous is not None and previous.model == base and not previous.from_failover
        if preferred != base and not kept:
            now = self.clock.seconds()
            # since the plan it may have begun to cool down: who goes on with a stream is chosen later
            if preferred in route.cooling or self.health.is_cooling(preferred, now):
                # left out for its failures is as good as failed: the client comes back to it
                by_base = {preferred: now, **by_base}
        self.sticky.put(exchange.key, after_success(previous, plan, model, by_base))

    def rate_limited(self, exchange: Exchange, limit: RateLimit, attempt: AttemptRecord) -> None:
        """Count and log a 429 by its kind; a ban is remembered."""
        self.metrics.rate_limits[limit.kind] += 1
        attempt.detail = attempt.detail or limit.kind
        model = exchange.route.plan.base(attempt.model)
        events.rate_limited(exchange.record.request_id, model, limit.kind, SENTENCES[limit.kind])
        if limit.kind == "edge" and self.rules.ban_fuse:
            self.fuse.banned(exchange.payer, limit.retry_after, self.clock.seconds())

    def shield(self, exchange: Exchange, head: ResponseHead, limit: RateLimit | None) -> bytes:
        """Header lines that keep an SDK from asking again at once, where all failed or the platform's edge refuses.

        Each takes the place of the upstream's own.
        """
        if limit is None:
            wait = self.wait(exchange)
        elif limit.kind == "edge":
            if self.rules.ban_fuse:  # told by now: as long as the client will be refused here, whatever the page says
                wait = self.fuse.banned(exchange.payer, limit.retry_after, self.clock.seconds())
                return header_lines(no_retry_headers(wait))
            wait = limit.retry_after or self.fuse.rules.first
        elif self._failed_over(exchange, limit):
            wait = limit.retry_after or self.wait(exchange)
        else:
            return b""
        lines = no_retry_headers(wait)
        return header_lines(lines[:1] if b"retry-after" in head.index else lines)

    def _failed_over(self, exchange: Exchange, limit: RateLimit) -> bool:
        """Whether such a 429 is what remains after every candidate."""
        rules = self.rules.limits.resilience
        given_up = rules is not None and rules.rate_limits and exchange.route.plan.mode != "direct"
        return given_up and rules is not None and limit.moves_on(rules.longest_wait)

    def wait(self, exchange: Exchange) -> float:
        """Seconds after which another try makes sense, all candidates having failed."""
        now, route = self.clock.seconds(), exchange.route
        plan = route.plan
        tried = [base for base in map(plan.base, plan.preferred) if base not in route.closed]
        age = self.snapshots.current.feed_age(now)
        until_feed = 0.0 if age is None else self.feed_interval - age
        return wait_when_exhausted(self.health.left(tried, now), until_feed, exchange.client)

    def continued(self, outcome: str) -> None:
        """Count a stream that broke off, by what became of it."""
        self.metrics.continued[outcome] += 1

    def finished(self, record: RequestRecord) -> None:
        """Count and log a request that is over."""
        self.metrics.active -= 1
        try:
            self.metrics.finished(record)
            self.log_request(record)
            if self.also_finished is not None:
                self.also_finished(record)
        except Exception:  # noqa: BLE001 - the client gets its answer all the same
            events.failed_unexpectedly(Failure(), "counting a request")

    def _begin(self, request_id: str, bytes_in: int) -> RequestRecord:
        self.metrics.active += 1
        return RequestRecord(request_id, self.clock.seconds(), bytes_in, endpoint=self.endpoint.name)

    def _refused(self, record: RequestRecord, error: ApiError) -> None:
        record.status, record.error, record.outcome = error.status, error.code, "refused"
        record.ended = self.clock.seconds()
        self.finished(record)

    def _reasons_against(self, error: ApiError, call: ChatCall, record: RequestRecord) -> Reasons | None:
        """Why there was nothing to choose from, where that is why a request was refused."""
        if error.left_out is None:
            return None
        unwanted, incapable = error.left_out
        body, snapshot = read_chat_body(call.body), self.snapshots.current
        model = check_model_value(body.model)
        return reasons(
            asked=model,
            mode=record.mode,
            planned=(),
            ranking=snapshot.ranking,
            considered=(),
            incapable=incapable,
            unwanted=unwanted,
            cooling=(),
            needs=read_need(body.members, len(call.body), body.flat).requires,
            snapshot=snapshot.id,
        )

    def _routed(
        self,
        call: ChatCall,
        body: ChatBody,
        explained: Explained,
        downstream: IDownstream,
        open_upstream: OpenUpstream,
        ended: Callable[[RequestRecord, ApiError | None], None],
    ) -> Exchange:
        """What to try by what is known of the client here."""
        record = explained.record
        key, previous, route = self._route(call, body, record)
        explained.route, plan = route, route.plan
        if route.closed and self.reach is not None:
            self.reach.passed_over(route.closed)
        record.mode = mode = plan.mode
        record.candidates = plan.candidates
        kept_as = None if mode == "direct" else key
        if route.resilient is None:
            return Exchange(
                self, call, body, route, kept_as, previous, record, downstream, open_upstream, ended, route.state
            )
        # elsewhere a second attempt would spend what is scarce: sessions with instances
        hedges = self.hedges if open_upstream is self.open_upstream else None
        return ResilientExchange(
            self,
            call,
            body,
            route,
            kept_as,
            previous,
            record,
            downstream,
            open_upstream,
            ended,
            route.state,
            resilient=route.resilient,
            random=self.random,
            hedges=hedges,
        )

    def _route(self, call: ChatCall, body: ChatBody, record: RequestRecord) -> tuple[bytes, StickyChoice | None, Route]:
        """The client's key, its remembered choice, and the route; one snapshot serves the whole request."""
        snapshot, rules = self.snapshots.current, self.rules
        if self._routes_of[0] is not snapshot or self._routes_of[1] is not rules:
            self._routes.clear()
            self._routes_of = (snapshot, rules)
        key = call.client.key(rules.client_key_secret, rules.trusted_proxies, body.prompt_cache_key)
        previous: StickyChoice | None = self.sticky.get(key)
        sticky: str | None = None
        remembered: str | tuple[str] | None = None
        if previous is not None:
            sticky = remembered = previous.model
            if previous.from_failover and sticky_model(previous, record.received, rules.failback) is None:
                sticky, remembered = None, (previous.model,)  # it gave way, and counts again if it has to
        model, offers = body.model, snapshot.offers
        # what has a route has been checked; whatever is no string cannot have one
        route, kind, need = None, None, _NO_NEED
        if type(model) is str:
            if model not in offers.by_model:
                need = read_need(body.members, len(call.body), body.flat)
            # nothing but numbers and names: equal for all requests that are routed alike
            health = self.health
            cooling = health.cooling(record.received) if health.cooling_down else _NONE_COOL
            kind = model, remembered, body.stream, offers.key(need), cooling
            route = self._routes.get(kind)
        if route is None:
            spread_by = key if rules.spread == "rendezvous" else None
            state = ClientState(None if previous is None else previous.model, sticky is None, spread_by)
            route = self._new_route(check_model_value(model), need, state, body.stream, snapshot, record)
            if kind is not None and route.lasting:
                if len(self._routes) >= MAX_ROUTES:
                    self._routes.clear()
                self._routes[kind] = route
        return key, previous, route

    def _new_route(
        self, model: str, need: Need, client: ClientState, stream: bool, snapshot: Snapshot, record: RequestRecord
    ) -> Route:
        rules = self.rules
        known = snapshot.catalog.ids if snapshot.catalog is not None else frozenset()
        own = rules.own_aliases
        meant = own.expand(model, known)
        asked = read_model_field(model, known, max_items=rules.max_list_items, unknown=rules.unknown_models, own=own)
        self.endpoint.check(asked)
        record.mode = mode_of(asked)
        limit = rules.limits.max_attempts
        resilience = rules.limits.resilience
        spare = resilience is not None and resilience.context_length
        chooser = Chooser(snapshot, self.health, limit, rules.require_tee, spare, self.reach)
        choice = chooser.choose(asked, need, client, record.received)
        timeouts = rules.limits.timeouts
        state, first = begin(choice.plan, stream=stream, timeouts=timeouts, max_attempts=limit)
        resilient = None
        if resilience is not None:
            resilient, _ = begin_resilient(
                choice.plan,
                stream=stream,
                timeouts=timeouts,
                max_attempts=limit,
                rules=resilience,
                context_of=lambda model: snapshot.offers.of(model).context,
            )
        return Route(
            choice.plan,
            state,
            first,
            skipped_header(choice.skipped),
            frozenset((*choice.cooling, *choice.closed)),
            choice.lasting,
            # kept with each decision: of the snapshot no more than that needs, for a catalog is large
            partial(_reasons, meant, need, client, snapshot.ranking, snapshot.id, choice),
            resilient,
            choice.closed,
        )


def _reasons(
    asked: str, need: Need, client: ClientState, ranking: Sequence[Ranked], snapshot: int, choice: Choice
) -> Reasons:
    """Why a route is what it is.

    :param ranking: of the snapshot with this id.
    """
    plan = choice.plan
    return reasons(
        asked=asked,
        mode=plan.mode,
        planned=[plan.base(model) for model in plan.candidates],
        ranking=ranking,
        considered=choice.considered,
        incapable=choice.incapable,
        unwanted=choice.unwanted,
        cooling=choice.cooling,
        closed=choice.closed,
        sticky=None if plan.mode == "direct" else client.sticky,
        gave_way=client.gave_way,
        spread=client.spread_by is not None,
        needs=need.requires,
        snapshot=snapshot,
        sorted_by=choice.order,
        measured=choice.measured,
    )


def _overloaded() -> ApiError:
    return ApiError(
        "overloaded",
        "This gateway answers as many requests as it may at the moment: try again in a second.",
        headers=((b"Retry-After", b"1"),),
    )
