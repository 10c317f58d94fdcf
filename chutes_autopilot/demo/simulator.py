"""The simulated Chutes: one small server that behaves like the platform, for the demo mode, the tests, the benchmarks.

========================================  ==========================================================================
``GET /v1/models``                        the invented catalog
``GET /chutes/utilization``               the moving feed
``GET /chutes/``                          the listing, with page, offset, limit, template and name
``GET /chutes/{chute_id}``                one item of it
``POST /v1/chat/completions``             an answer, streaming or not, or the fault that is due
``POST /v1/completions``                  the same in another shape; so ``/v1/responses`` and ``/v1/messages``
``POST /v1/embeddings``                   vectors without meaning, for the embedding chutes of the listing
``POST /_simulator/faults``               put up a fault: ``{"fault": "503", "model": "*", "requests": 1}``
``GET``, ``DELETE /_simulator/faults``    the faults still due; take them all back
``GET /_simulator/requests``              the last requests to any of these five as they came off the wire
``POST /e2e/invoke`` and others           the sealed side, see chute_peer
========================================  ==========================================================================
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from chutes_autopilot.demo.catalog import SimulatedModel, models_answer, simulated_models
from chutes_autopilot.demo.chat import Asked, ChatRefused, read_chat
from chutes_autopilot.demo.chute_answers import sealed_refusal
from chutes_autopilot.demo.chute_peer import ChutePeer
from chutes_autopilot.demo.completions import Completion, tokens_begun
from chutes_autopilot.demo.control import ControlRefused, add_fault, faults_answer, requests_answer
from chutes_autopilot.demo.delivery import Delivery
from chutes_autopilot.demo.embeddings import EMBEDDING_CHUTES, read_embeddings
from chutes_autopilot.demo.faults import Fault, FaultBoard, FaultKind
from chutes_autopilot.demo.feed import utilization_rows
from chutes_autopilot.demo.listing import ListingRefused, chute_answer, listing_answer
from chutes_autopilot.demo.other_apis import CHAT, MESSAGES, RESPONSES, TEXT, Api
from chutes_autopilot.demo.outcome import GARBAGE, NOT_TEE, Outcome, plain_outcome, refusal_for, whole_outcome
from chutes_autopilot.demo.seen import SeenRequest, SeenRequests, Tally
from chutes_autopilot.demo.site import SimulatorRequest, SimulatorSite
from chutes_autopilot.demo.world import SimulatedWorld


@define(eq=False)
class SimulatedChutes:
    """The platform's behaviour and state; it listens nowhere by itself.

    :param clock: the pace of answers; its time is also the platform's.
    :param first_token: seconds until the first token, and with it the head, of an answer.
    :param token_gap: seconds between two tokens; with 0 an answer comes as fast as it is read.
    :param world: which models there are; without one they stay as they are in `models`.
    :param requests: the last chat requests, oldest first.
    """

    clock: IReactorTime
    first_token: float = 0.0
    token_gap: float = 0.0
    models: tuple[SimulatedModel, ...] = field(factory=simulated_models)
    world: SimulatedWorld | None = None
    faults: FaultBoard = field(init=False)
    chutes: ChutePeer = field(init=False)
    """The sealed side."""
    requests: SeenRequests[SeenRequest] = field(factory=SeenRequests, init=False)
    asked: Counter[str] = field(factory=Counter, init=False)
    """Chat requests in clear by model, those at fault included."""
    answering: Counter[str] = field(factory=Counter, init=False)
    """Chat answers in flight by model, silent ones included."""
    arrived: Tally = field(factory=Tally, init=False)
    disconnected: Tally = field(factory=Tally, init=False)
    _by_name: dict[str, SimulatedModel] = field(init=False)
    resource: Resource = field(init=False)
    _site: SimulatorSite = field(init=False)

    def __attrs_post_init__(self) -> None:
        if self.world is not None:
            self.models = self.world.ever()  # one that is gone answers whoever still asks it
        names = {model.name for model in self.models} | {chute.name for chute in EMBEDDING_CHUTES}
        self.faults = FaultBoard(frozenset(names))
        self._by_name = {key: model for model in self.models for key in (model.name, model.chute_id)}
        by_chute = {model.chute_id: model for model in self.models}
        self.chutes = ChutePeer(self.clock, by_chute, self.faults)
        self.resource = _Routes(
            {
                b"/v1/models": {b"GET": self._list_models},
                b"/chutes/utilization": {b"GET": self._utilization},
                b"/chutes/": {b"GET": self._listing},
                b"/chutes": {b"GET": self._redirect_to_listing},
                b"/chutes/*": {b"GET": self._chute},
                b"/v1/chat/completions": {b"POST": partial(self._generate, CHAT)},
                b"/v1/completions": {b"POST": partial(self._generate, TEXT)},
                b"/v1/responses": {b"POST": partial(self._generate, RESPONSES)},
                b"/v1/messages": {b"POST": partial(self._generate, MESSAGES)},
                b"/v1/embeddings": {b"POST": self._embed},
                b"/e2e/instances/*": {b"GET": self.chutes.discover},
                b"/e2e/invoke": {b"POST": self._invoke},
                b"/chutes/*/evidence": {b"GET": self.chutes.evidence},
                b"/servers/tee/measurements": {b"GET": self.chutes.measurements},
                b"/_simulator/sealed_requests": {b"GET": self.chutes.show_requests},
                b"/_simulator/attestation_root": {b"GET": self.chutes.show_root},
                b"/_simulator/faults": {
                    b"GET": self._show_faults,
                    b"POST": self._add_fault,
                    b"DELETE": self._clear_faults,
                },
                b"/_simulator/requests": {b"GET": self._show_requests},
            }
        )
        self._site = SimulatorSite(self.resource, self.clock)

    @property
    def open_streams(self) -> int:
        """Chat answers in flight, silent ones included."""
        return self.answering.total()

    def site(self) -> SimulatorSite:
        """The one factory of the simulator's connections."""
        return self._site

    def when_request(self, count: int) -> Deferred[int]:
        """Fires once ``count`` chat requests in all have arrived."""
        return self.arrived.when(count)

    def when_disconnected(self, count: int) -> Deferred[int]:
        """Fires once ``count`` clients in all have left before the end of their answer."""
        return self.disconnected.when(count)

    def _there(self) -> tuple[SimulatedModel, ...]:
        return self.models if self.world is None else self.world.models(self.clock.seconds())

    def _list_models(self, request: SimulatorRequest) -> None:
        request.answer_json(200, models_answer(self._there(), self.clock.seconds()))

    def _utilization(self, request: SimulatorRequest) -> None:
        request.answer_json(200, utilization_rows(self._there(), self.clock.seconds()))

    def _listing(self, request: SimulatorRequest) -> None:
        query = {name.decode("latin-1"): values[-1].decode("latin-1") for name, values in request.args.items()}
        try:
            request.answer_json(200, listing_answer(self._there(), query))
        except ListingRefused as refused:
            request.refuse(refused.status, refused.detail)

    def _chute(self, request: SimulatorRequest) -> None:
        answer = chute_answer(self._there(), unquote(request.path.rpartition(b"/")[2].decode("latin-1")))
        if answer is None:
            request.refuse(404, "Chute not found, or does not belong to you")
        else:
            request.answer_json(200, answer)

    def _redirect_to_listing(self, request: SimulatorRequest) -> None:
        request.setHeader(b"Location", request.uri.replace(b"/chutes", b"/chutes/", 1))
        request.answer(307, b"", b"text/plain")

    def _show_faults(self, request: SimulatorRequest) -> None:
        request.answer_json(200, faults_answer(self.faults))

    def _add_fault(self, request: SimulatorRequest) -> None:
        try:
            request.answer_json(201, add_fault(self.faults, request.body()))
        except ControlRefused as refused:
            request.refuse(400, str(refused))

    def _clear_faults(self, request: SimulatorRequest) -> None:
        self.faults.clear()
        request.setResponseCode(204)
        request.finish()

    def _show_requests(self, request: SimulatorRequest) -> None:
        # with prompts and keys, as they came: memory only, loopback only
        counts = {
            "arrived": self.arrived.count,
            "disconnected": self.disconnected.count,
            "open_streams": self.open_streams,
        }
        request.answer_json(200, requests_answer(self.requests, counts))

    def _seen(self, request: SimulatorRequest) -> bytes:
        body = request.body()
        self.requests.keep(SeenRequest(request.method, request.uri, tuple(request.received_headers), body))
        return body

    def _generate(self, api: Api, request: SimulatorRequest) -> None:
        body = self._seen(request)
        try:
            call = read_chat(body, self._by_name, api.limits, tools=api.tools)
        except ChatRefused as refused:
            request.refuse(refused.status, refused.detail)
        else:
            tee_only = (request.getHeader(b"X-TEE-Only") or b"").lower() == b"true"
            if tee_only and not call.model.confidential:
                request.refuse(426, NOT_TEE)
            else:
                self.asked[call.model.name] += 1
                fault = self.faults.take(call.model.name)
                self._answer(request, call, fault, len(body) // 4 + 1, partial(plain_outcome, call, api))
        # last, so that whoever waits for it finds the request in its place
        self.arrived.add()

    def _embed(self, request: SimulatorRequest) -> None:
        body = self._seen(request)
        prompt_tokens = len(body) // 4 + 1
        try:
            call = read_embeddings(body)
        except ChatRefused as refused:
            request.refuse(refused.status, refused.detail)
        else:
            fault = self.faults.take(call.model.name)
            vectors = call.answer(prompt_tokens)
            self._answer(request, call, fault, prompt_tokens, lambda kind, _: whole_outcome(kind, vectors))
        self.arrived.add()

    def _invoke(self, request: SimulatorRequest) -> None:
        sealed = self.chutes.open_invocation(request)
        if sealed is not None:
            self._answer(request, sealed.call, sealed.fault, sealed.prompt_tokens, sealed.reply.outcome)
        self.chutes.invoked.add()

    def _answer(
        self,
        request: SimulatorRequest,
        call: Asked,
        fault: Fault | None,
        prompt_tokens: int,
        outcome_of: Callable[[FaultKind | None, Completion], Outcome],
    ) -> None:
        kind = fault.kind if fault else None
        if refusal := refusal_for(kind, call) or sealed_refusal(kind):
            request.answer(refusal.status, refusal.body, refusal.content_type)
        elif kind is FaultKind.RESET:
            request.reset_connection()
        elif kind is FaultKind.GARBAGE:
            request.close_after(GARBAGE)
        else:
            invocation = str(uuid4())
            now = int(self.clock.seconds())
            model, begun = call.model.name, tokens_begun(call.model.name, call.begun)
            tokens = max(1, call.tokens - begun)
            id = f"chatcmpl-{invocation}"
            answer = Completion(id, model, now, tokens, prompt_tokens, call.finish_reason, begun, call.tool)
            outcome = outcome_of(kind, answer)
            for name, value in outcome.headers:
                request.setHeader(name, value)
            request.setHeader(b"X-Chutes-InvocationID", invocation.encode())
            request.setHeader(b"X-Chutes-RL-User", b"60")
            self._deliver(request, call, fault, outcome)

    def _deliver(self, request: SimulatorRequest, call: Asked, fault: Fault | None, outcome: Outcome) -> None:
        kind = fault.kind if fault else None
        gap = self.token_gap
        if fault and kind in (FaultKind.SLOW, FaultKind.PINGS):
            gap = fault.gap
        elif kind is FaultKind.TINY_WRITES:
            gap = 0.0
        first_token = fault.gap if fault and kind is FaultKind.SLOW_START else self.first_token
        head_delay: float | None = first_token
        if kind is FaultKind.SILENT_HEAD:
            head_delay = None
        elif not call.stream:
            # the platform sends nothing, not even the head, before the last token is there
            head_delay = first_token + gap * (call.tokens - 1)
        self.answering[call.model.name] += 1
        ended = partial(self._ended, call.model.name)
        Delivery(request, self.clock, outcome.pieces, head_delay, gap, outcome.ending, ended, outcome.batch).start()

    def _ended(self, model: str, client_left: bool) -> None:
        self.answering[model] -= 1
        if client_left:
            self.disconnected.add()


class _Routes(Resource):
    """Paths with the platform's own 404 and 405; Klein would redirect and answer in HTML.

    A path is exact, or has a ``*`` in the place of one whole segment.
    """

    isLeaf = True

    def __init__(self, routes: Mapping[bytes, Mapping[bytes, Callable[[SimulatorRequest], None]]]) -> None:
        super().__init__()
        self._routes = routes

    def render(self, request: Any) -> int:
        methods = self._routes.get(request.path) or self._with_a_name(request.path.split(b"/"))
        if request.too_large:
            request.refuse(413, "Request body too large")
        elif methods is None:
            request.refuse(404, "Not Found")
        elif request.method not in methods:
            request.setHeader(b"Allow", b", ".join(methods))
            request.refuse(405, "Method Not Allowed")
        else:
            methods[request.method](request)
        return NOT_DONE_YET

    def _with_a_name(self, segments: list[bytes]) -> Mapping[bytes, Callable[[SimulatorRequest], None]] | None:
        if len(segments) == 3:
            return self._routes.get(b"/%b/*" % segments[1])
        if len(segments) != 4:
            return None
        _, first, second, third = segments
        return self._routes.get(b"/%b/%b/*" % (first, second)) or self._routes.get(b"/%b/*/%b" % (first, third))
