"""Thousands of sessions, taken at the simulated platform's own books: none is used twice or too late."""

import json
from random import Random
from typing import Any

from twisted.internet.task import Clock

from chutes_autopilot.demo.catalog import simulated_models
from chutes_autopilot.demo.chute_fleet import NONCES_EACH, Fleet, MinuteLimit, NonceBook, listed
from chutes_autopilot.policy.failover import Refused
from chutes_autopilot.upstream.chute_e2ee.budget import DiscoveryBudget
from chutes_autopilot.upstream.chute_e2ee.discovery import Discovery
from chutes_autopilot.upstream.chute_e2ee.pools import Pools, Session
from chutes_autopilot.upstream.chute_e2ee.sessions import Sessions
from chutes_autopilot.upstream.fetch import FetchedAnswer

ACCOUNT = b"account"
LIMIT = 10
REQUESTS = 4000


def test_every_session_of_an_hour_is_good_and_used_once() -> None:
    """Three chutes in bursts and pauses: each nonce is accepted, and the limit of listings is never met."""
    random, clock = Random(4), Clock()
    clock.advance(1_750_000_007)
    models = {model.chute_id: model for model in simulated_models()[:3]}
    fleet, book, limit = Fleet(random), NonceBook(), MinuteLimit(LIMIT)

    async def fetch(chute_id: str) -> FetchedAnswer:
        now = clock.seconds()
        if not limit.allows(now):
            return FetchedAnswer(429, None, b"")
        instances = fleet.some(models[chute_id])
        nonces = book.give(ACCOUNT, chute_id, NONCES_EACH * len(instances), now)
        return FetchedAnswer(200, None, json.dumps(listed(instances, nonces, now)).encode())

    pools, budget = Pools(lambda instance_id, key: True), DiscoveryBudget(LIMIT, random.random)
    codes: list[str] = []
    discovery = Discovery(fetch, pools, budget, clock, clock.seconds, 5.0, codes.append, lambda chute, listed: None)
    sessions = Sessions(pools, discovery, budget, clock, clock.seconds)
    used: list[str] = []
    refused: list[str] = []

    def take(session: Session) -> None:
        assert book.use(ACCOUNT, session.chute_id, session.nonce, clock.seconds())
        used.append(session.nonce)
        clock.callLater(random.expovariate(0.2), sessions.release, session)

    def turned_away(why: Refused) -> None:
        refused.append(why.error.code)

    wanted: Any = {"stream": True, "exclude": frozenset(), "wait": 5.0, "got": take, "refused": turned_away}
    for number in range(REQUESTS):
        sessions.acquire(random.choice(list(models)), **wanted)
        clock.advance(random.expovariate(8.0) if number % 400 else 70.0)
    clock.advance(10)
    assert (len(used), len(set(used))) == (REQUESTS - len(refused), len(used))
    assert len(used) > 0.9 * REQUESTS
    assert set(refused) <= {"chutes_e2ee_no_session"}
    assert (limit.refused, book.refused, codes) == (0, 0, [])
    sessions.retire()
