"""A relay without sockets under the resilient rules: a test plays the models and the client, and moves the clock."""

import json
from typing import Any

import attrs
from twisted.internet.task import Clock
from zope.interface import implementer

from chutes_autopilot.control.snapshots import Snapshot, SnapshotHolder
from chutes_autopilot.errors import ApiError
from chutes_autopilot.interfaces import IDownstream, IUpstreamAttempt
from chutes_autopilot.observe.metrics import Metrics
from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.policy.catalog import parse_catalog
from chutes_autopilot.policy.failover import Timeouts
from chutes_autopilot.policy.model_offers import offers_of
from chutes_autopilot.policy.ranking import rank
from chutes_autopilot.policy.resilience import Resilience
from chutes_autopilot.policy.utilization import parse_utilization
from chutes_autopilot.relay.call import ChatCall, Client
from chutes_autopilot.relay.chat import ChatRelay, RoutingRules
from chutes_autopilot.relay.exchange import Exchange, Limits
from chutes_autopilot.relay.watch import Patience
from chutes_autopilot.storage.memory import MemoryStickyStore
from chutes_autopilot.upstream.chat import UpstreamRequest
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.wire.http1 import ResponseHead

ALIAS = "chutesai/AutoPilot"
CONTEXTS = {"a/A": 40_000, "b/B": 30_000, "c/C": 128_000}
RESILIENT = Resilience(
    first_event=True, server_errors=True, same_model_retries=2, context_length=True, rate_limits=True
)
CATALOG = parse_catalog(
    json.dumps(
        {
            "data": [
                {"id": n, "chute_id": f"{i}0000000-0000-0000-0000-000000000000", "context_length": c}
                for i, (n, c) in enumerate(CONTEXTS.items())
            ]
        }
    ).encode()
)
FEED = parse_utilization(
    json.dumps(
        [
            {"name": n, "chute_id": f"{i}0000000-0000-0000-0000-000000000000", "active_instance_count": 9 - i}
            for i, n in enumerate(CONTEXTS)
        ]
    ).encode()
)

EVENTS = ResponseHead(200, b"OK", ((b"Content-Type", b"text/event-stream"),))
JSON = ((b"Content-Type", b"application/json"),)
CLIENT = Client("192.0.2.1")
PROMPT = [{"role": "user", "content": "Say hi."}]


def event(**members: Any) -> bytes:
    return b"data: " + json.dumps(members).encode() + b"\n\n"


ROLE = event(choices=[{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
TEXT = event(choices=[{"delta": {"content": "Hi"}, "finish_reason": None}])
END = event(choices=[{"delta": {}, "finish_reason": "stop"}]) + b"data: [DONE]\n\n"


@implementer(IUpstreamAttempt)
@attrs.define(eq=False)
class Attempt:
    """One attempt, played by the test."""

    model: str
    header_timeout: float
    observer: Any
    running: bool = False
    expected: list[float] = attrs.field(factory=list)

    def start(self) -> None:
        self.running = True

    def expect_body(self, timeout: float) -> None:
        self.expected.append(timeout)

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def abort(self) -> None:
        self.running = False

    def answers(self, status: int, body: bytes = b"", *headers: tuple[bytes, bytes]) -> None:
        """A whole answer at once."""
        self.running = False
        self.observer.answer(ResponseHead(status, b"X", headers or JSON), body)


@implementer(IDownstream)
@attrs.define(eq=False)
class Downstream:
    """The client's side: what it was sent."""

    head: ResponseHead | None = None
    own: bytes = b""
    body: bytes = b""
    end: str | None = None
    starts: int = 0

    def start(self, head: ResponseHead, own: bytes, producer: Any, keeps_body: bool = False) -> None:
        self.head, self.own, self.starts = head, own, self.starts + 1

    def write(self, data: bytes, framed: bytes = b"") -> None:
        assert self.starts == 1
        self.body += data

    def answer(self, head: ResponseHead, own: bytes, data: bytes) -> None:
        self.start(head, own, None)
        self.body, self.end = data, "finished"

    def finish(self) -> None:
        self.end = "finished"

    def abort(self) -> None:
        self.end = "cut"

    def unsent(self) -> int:
        return 0

    def reset(self) -> None:
        self.end = "reset"


class Bench:
    """One relay; requests one after another."""

    def __init__(
        self, rules: Resilience | None = RESILIENT, *, max_attempts: int = 8, continue_streams: bool = False
    ) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        snapshot = Snapshot(1, CATALOG, 1000, 1000, tuple(rank(FEED.rows, CATALOG)), 3, 0, offers_of(CATALOG))
        self.metrics = Metrics(lambda model: model)
        self.attempts: list[Attempt] = []
        self.records: list[RequestRecord] = []
        self.relay = ChatRelay(
            RoutingRules(
                limits=Limits(max_attempts, Timeouts(10, 120, 600), 600, Patience(60, 60), rules, continue_streams),
                max_inflight=100,
                max_list_items=8,
                unknown_models="refuse",
                failback=30,
                client_key_secret=b"0123456789abcdef",
                trusted_proxies=None,
                profile="resilient",
            ),
            SnapshotHolder(snapshot),
            MemoryStickyStore(1800, 100, self.clock.seconds),
            self.metrics,
            self.clock,
            Deadlines(self.clock),
            self._open,
            also_finished=self.records.append,
            random=lambda: 0.5,
        )
        self.downstream = Downstream()
        self.error: ApiError | None = None

    def _open(self, model: str, request: UpstreamRequest, header_timeout: float, observer: Any) -> Attempt:
        self.attempts.append(Attempt(model, header_timeout, observer))
        return self.attempts[-1]

    def ask(
        self, model: str = ALIAS, *, stream: bool = True, client: Client = CLIENT, messages: Any = None
    ) -> Exchange:
        """Begin a request."""
        self.attempts.clear()
        self.downstream, self.error = Downstream(), None
        members = {"model": model, "stream": stream}
        body = json.dumps(members if messages is None else {**members, "messages": messages}).encode()
        call = ChatCall(b"POST", b"/v1/chat/completions", b"", body, "r", client)
        exchange = self.relay.open(call, self.downstream, self._ended)
        exchange.start()
        return exchange

    def _ended(self, record: RequestRecord, error: ApiError | None) -> None:
        self.error = error

    def key(self, client: Client = CLIENT) -> bytes:
        """Under which the client's choice is remembered."""
        return client.key(self.relay.rules.client_key_secret, None, "")

    def fails(self, *models: str) -> None:
        """Models fail until they cool down."""
        for model in models:
            for _ in range(3):
                self.relay.health.failed(model, self.clock.seconds())

    @property
    def models(self) -> list[str]:
        """Of the attempts so far."""
        return [attempt.model for attempt in self.attempts]

    @property
    def last(self) -> Attempt:
        return self.attempts[-1]

    def wait(self, seconds: float) -> list[str]:
        """Let time pass; the models asked by then."""
        self.clock.advance(seconds)
        return self.models
