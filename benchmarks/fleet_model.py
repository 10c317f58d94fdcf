"""A simulated fleet of models under load, seen through a feed that is late: which order of candidates serves best?

Discrete events, no sockets, no clock of the machine: the same seed gives the same numbers. What is the product's own is
used as it is: the ranking, the rendezvous order, the plan of attempts, stickiness. README.md says what is simplified.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count
from math import cos, log, pi, sin, tau
from random import Random
from statistics import mean, quantiles

from chutes_autopilot.demo.catalog import simulated_models
from chutes_autopilot.policy.catalog import Catalog, CatalogEntry
from chutes_autopilot.policy.model_field import Direct
from chutes_autopilot.policy.plan import Plan, make_plan
from chutes_autopilot.policy.ranking import Ranked, rank
from chutes_autopilot.policy.stickiness import StickyChoice, after_success, sticky_model
from chutes_autopilot.policy.utilization import UtilizationRow
from chutes_autopilot.policy.variants import VARIANTS

SLOTS_PER_INSTANCE = 4
QUEUE_SHARE = 0.25
"""Requests that may wait at a full model, as a share of its slots; further ones are refused."""
SERVICE_SECONDS = 20.0
"""Average time a request holds its slot after the first token."""
THINK_SECONDS = 15.0
SESSION_REQUESTS = 6.0
TICK = 5.0
"""Seconds between two records of the feed, and two changes of the other traffic."""
WARM_UP = 300.0
"""Seconds that do not count."""
HEADER_TIMEOUT = 10.0
LAST_TIMEOUT = 120.0
FAILBACK = 30.0
MAX_ATTEMPTS = 8
_PASSED_ON = 0.05
"""Seconds that an attempt costs which is refused at once."""

ORACLE = "oracle"
ORDERS = (*VARIANTS, ORACLE)


@dataclass(frozen=True)
class Scenario:
    """One run.

    :param order: one of ORDERS.
    :param load: what the gateway's clients ask for, as a share of what the other traffic leaves free.
    :param lag: seconds from a record of the feed to the gateway's ranking by it.
    :param resilient: a model that is full (429) fails over, in place of being the answer.
    """

    order: str
    load: float
    lag: float
    seed: int
    minutes: float = 15.0
    resilient: bool = False


@dataclass(frozen=True)
class Result:
    """What the clients got; times in seconds.

    :param success: share of the requests that were answered.
    :param first_token_p50: of the answered ones, failed attempts included; likewise p95.
    :param attempts: average number.
    :param top_share: of each minute's requests, the share of the model that got most; average over the minutes.
    """

    requests: int
    success: float
    first_token_p50: float
    first_token_p95: float
    attempts: float
    top_share: float


@dataclass(eq=False)
class _Model:
    name: str
    instances: int
    slots: int
    usual: float  # busy share of the other traffic
    first_token: float  # seconds, idle
    phase: float
    others: int = 0  # slots held by the other traffic
    noise: float = 0.0
    own: int = 0  # slots held by our requests
    refused: int = 0  # since the last tick
    served: int = 0
    waiting: deque["_Attempt"] = field(default_factory=deque)
    busy: list[float] = field(default_factory=lambda: [0.0])  # sums up to each tick
    total: list[float] = field(default_factory=lambda: [0.0])
    limited: list[float] = field(default_factory=lambda: [0.0])

    @property
    def free(self) -> int:
        return self.slots - self.others - self.own

    @property
    def share(self) -> float:
        return min(1.0, (self.others + self.own) / self.slots)

    def expected(self) -> float:
        """Seconds to the first token of a request that gets a slot now."""
        return self.first_token * (1 + 3 * self.share**2)


@dataclass(eq=False)
class _Client:
    key: bytes
    random: Random
    left: int
    choice: StickyChoice | None = None


@dataclass(eq=False)
class _Request:
    client: _Client
    asked_at: float
    service: float
    noise: float
    think: float
    plan: Plan
    attempts: int = 0
    failures: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class _Attempt:
    request: _Request
    model: _Model
    deadline: float
    settled: bool = False


class Fleet:
    """One run of one scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._events: list[tuple[float, int, Callable[..., None], tuple]] = []
        self._numbers = count()
        self._now = 0.0
        self._end = WARM_UP + scenario.minutes * 60
        self._weather = Random(f"weather {scenario.seed}")
        self._arrivals = Random(f"arrivals {scenario.seed}")
        self._models = {model.name: model for model in self._made()}
        names = tuple(CatalogEntry(name, None, b"{}") for name in self._models)
        self._catalog = Catalog(names)
        self._ranking: tuple[Ranked, ...] = ()
        self._clients = 0
        self._first_tokens: list[float] = []
        self._attempts: list[int] = []
        self._failed = 0
        self._minutes: dict[int, Counter[str]] = {}
        free = sum(model.slots * (1 - model.usual) for model in self._models.values())
        self._session_rate = scenario.load * free / SERVICE_SECONDS / SESSION_REQUESTS

    def run(self) -> Result:
        """Play it to its end."""
        self._tick()
        self._arrive()
        while self._events:
            self._now, _, act, arguments = heapq.heappop(self._events)
            if self._now >= self._end:
                break
            act(*arguments)
        answered = len(self._first_tokens)
        cuts = quantiles(self._first_tokens, n=20) if answered > 1 else [0.0] * 19
        return Result(
            requests=answered + self._failed,
            success=answered / max(1, answered + self._failed),
            first_token_p50=cuts[9],
            first_token_p95=cuts[18],
            attempts=mean(self._attempts) if self._attempts else 0.0,
            top_share=mean(max(c.values()) / c.total() for c in self._minutes.values()) if self._minutes else 0.0,
        )

    def _made(self) -> list[_Model]:
        make = Random("fleet")  # the same fleet whatever the seed
        return [
            _Model(
                name=model.name,
                instances=model.instances,
                slots=model.instances * SLOTS_PER_INSTANCE,
                usual=model.busy,
                first_token=make.uniform(0.3, 1.2),
                phase=make.uniform(0, tau),
            )
            for model in simulated_models()
            if model.instances
        ]

    def _at(self, seconds: float, act: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (seconds, next(self._numbers), act, arguments))

    # the platform

    def _tick(self) -> None:
        """The other traffic moves on, and the platform records what it sees."""
        for model in self._models.values():
            draw = self._weather.random() or 1e-9, self._weather.random()
            model.noise = 0.97 * model.noise + 0.035 * (-2 * log(draw[0])) ** 0.5 * cos(2 * pi * draw[1])
            wave = 0.12 * sin(tau * self._now / 1800 + model.phase)
            wanted = min(0.98, max(0.02, model.usual + wave + model.noise)) * model.slots
            model.others = min(round(wanted), model.slots)
            crowded = max(0, model.others + model.own - model.slots)
            arrived = wanted / SERVICE_SECONDS * TICK
            model.busy.append(model.busy[-1] + model.share)
            model.total.append(model.total[-1] + arrived + model.served + model.refused)
            model.limited.append(model.limited[-1] + arrived * crowded / max(1, model.others) + model.refused)
            model.served = model.refused = 0
            self._serve(model)
        ranking = rank([self._row(model) for model in self._models.values()], self._catalog)
        if self._ranking:
            self._at(self._now + self._scenario.lag, self._publish, ranking)
        else:
            self._publish(ranking)  # the first one is there from the start
        self._at(self._now + TICK, self._tick)

    def _row(self, model: _Model) -> UtilizationRow:
        def average(sums: Sequence[float], minutes: int) -> float:
            ticks = min(len(sums) - 1, round(minutes * 60 / TICK))
            return (sums[-1] - sums[-1 - ticks]) / ticks

        def limited(minutes: int) -> float:
            total = average(model.total, minutes)
            return average(model.limited, minutes) / total if total else 0.0

        return UtilizationRow(
            name=model.name,
            active_instance_count=model.instances,
            utilization_current=model.share,
            utilization_5m=average(model.busy, 5),
            utilization_15m=average(model.busy, 15),
            utilization_1h=average(model.busy, 60),
            rate_limit_ratio_5m=limited(5),
            rate_limit_ratio_15m=limited(15),
            rate_limit_ratio_1h=limited(60),
        )

    def _publish(self, ranking: tuple[Ranked, ...]) -> None:
        self._ranking = ranking

    def _serve(self, model: _Model) -> None:
        while model.waiting and model.free > 0:
            attempt = model.waiting.popleft()
            if not attempt.settled:
                self._begin(attempt)

    # the clients

    def _arrive(self) -> None:
        wait = self._arrivals.expovariate(self._session_rate)
        key = blake2b(b"%d" % self._clients, digest_size=32).digest()
        random = Random(f"client {self._scenario.seed} {self._clients}")
        self._clients += 1
        left = 1 + int(random.expovariate(1 / (SESSION_REQUESTS - 0.5)))
        self._at(self._now + wait, self._ask, _Client(key, random, left))
        self._at(self._now + wait, self._arrive)

    def _ask(self, client: _Client) -> None:
        random = client.random
        # drawn whether needed or not, so that every order meets the same requests
        draws = random.expovariate(1 / SERVICE_SECONDS), random.lognormvariate(0, 0.3)
        think = random.expovariate(1 / THINK_SECONDS)
        request = _Request(client, self._now, *draws, think, self._plan(client))
        self._try(request)

    def _plan(self, client: _Client) -> Plan:
        if self._scenario.order == ORACLE:
            best = sorted(self._models.values(), key=lambda model: (model.free <= 0, model.expected()))
            return make_plan("alias", [Direct(model.name, model.name) for model in best], None, limit=MAX_ATTEMPTS)
        order = VARIANTS[self._scenario.order](client.key, self._ranking)
        sticky = sticky_model(client.choice, self._now, FAILBACK)
        return make_plan("alias", [Direct(name, name) for name in order], sticky, limit=MAX_ATTEMPTS)

    def _try(self, request: _Request) -> None:
        model = self._models[request.plan.candidates[request.attempts]]
        request.attempts += 1
        minute = int(self._now // 60)
        if self._now >= WARM_UP:
            self._minutes.setdefault(minute, Counter())[model.name] += 1
        last = request.attempts == len(request.plan.candidates)
        attempt = _Attempt(request, model, self._now + (LAST_TIMEOUT if last else HEADER_TIMEOUT))
        if model.free > 0:
            self._begin(attempt)
        elif len(model.waiting) < QUEUE_SHARE * model.slots:
            model.waiting.append(attempt)
            self._at(attempt.deadline, self._late, attempt)
        else:
            model.refused += 1
            if self._scenario.resilient and not last:
                self._at(self._now + _PASSED_ON, self._next, request, model.name)
            else:
                self._over(request, None)

    def _begin(self, attempt: _Attempt) -> None:
        model, request = attempt.model, attempt.request
        first_token = self._now + model.expected() * request.noise
        model.own += 1
        model.served += 1
        attempt.settled = True
        if first_token > attempt.deadline:
            self._at(attempt.deadline, self._given_up, attempt)
        else:
            self._at(first_token, self._first_token, attempt)

    def _first_token(self, attempt: _Attempt) -> None:
        request = attempt.request
        client, plan = request.client, request.plan
        client.choice = after_success(client.choice, plan, attempt.model.name, request.failures)
        self._at(self._now + request.service, self._ended, attempt)
        self._over(request, self._now - request.asked_at)

    def _ended(self, attempt: _Attempt) -> None:
        attempt.model.own -= 1
        self._serve(attempt.model)

    def _given_up(self, attempt: _Attempt) -> None:
        self._ended(attempt)
        self._next(attempt.request, attempt.model.name)

    def _late(self, attempt: _Attempt) -> None:
        if not attempt.settled:
            attempt.settled = True
            attempt.model.waiting.remove(attempt)
            self._next(attempt.request, attempt.model.name)

    def _next(self, request: _Request, failed: str) -> None:
        request.failures[failed] = self._now
        if request.attempts < len(request.plan.candidates):
            self._try(request)
        else:
            self._over(request, None)

    def _over(self, request: _Request, first_token: float | None) -> None:
        if request.asked_at >= WARM_UP:
            self._attempts.append(request.attempts)
            if first_token is None:
                self._failed += 1
            else:
                self._first_tokens.append(first_token)
        client = request.client
        client.left -= 1
        if client.left > 0:
            held = request.service if first_token is not None else 0.0
            self._at(self._now + held + request.think, self._ask, client)
