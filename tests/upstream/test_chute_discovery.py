"""Asking for instances: what is believed of a listing, how often it is asked for, and who waits for what."""

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from chutes_autopilot.policy.failover import Refused
from chutes_autopilot.upstream.chute_e2ee.budget import DiscoveryBudget, Turn
from chutes_autopilot.upstream.chute_e2ee.discovery import Discovery
from chutes_autopilot.upstream.chute_e2ee.listing import parse_listing
from chutes_autopilot.upstream.chute_e2ee.pools import Pools, Session
from chutes_autopilot.upstream.chute_e2ee.sessions import Sessions
from chutes_autopilot.upstream.fetch import FetchedAnswer, FetchError

KEY = b64encode(MLKEM768PrivateKey.generate().public_key().public_bytes_raw()).decode()
START = 6_000_000.0
"""The beginning of a minute of the clock."""


def entry(name: str = "i-1", key: object = KEY, nonces: object = ("nonce-0001",)) -> dict[str, object]:
    return {"instance_id": name, "e2e_pubkey": key, "nonces": nonces}


def listed(*entries: Any, **more: Any) -> bytes:
    return json.dumps({"instances": entries, "nonce_expires_in": 60, **more}).encode()


def answered(status: int, detail: str = "", retry_after: float | None = None) -> FetchedAnswer:
    return FetchedAnswer(status, retry_after, json.dumps({"detail": detail}).encode())


class Desk:
    """Sessions over an API in memory, where a listing brings so many nonces for each of five instances.

    `asked` are the calls: when, which chute, and what fires with the answer; `script` answers at once.
    """

    def __init__(self, rpm: int = 6, usable: Callable[[str, bytes], bool] = lambda name, key: True) -> None:
        self.clock = Clock()
        self.clock.advance(START)
        self.asked: list[tuple[float, str, Deferred[FetchedAnswer]]] = []
        self.script: Callable[[str], FetchedAnswer] | None = None
        self.counted: list[str] = []
        self.made = 0
        self.listed: list[tuple[str, Any]] = []
        self.pools = Pools(usable)
        self.budget = DiscoveryBudget(rpm, lambda: 0.5)
        now = self.clock.seconds
        self.discovery = Discovery(
            self.fetch, self.pools, self.budget, self.clock, now, 5.0, self.counted.append, self.take_listed
        )
        self.sessions = Sessions(self.pools, self.discovery, self.budget, self.clock, now)

    def take_listed(self, chute_id: str, instances: Any) -> None:
        self.listed.append((chute_id, list(instances)))

    async def fetch(self, chute_id: str) -> FetchedAnswer:
        fires: Deferred[FetchedAnswer] = Deferred()
        self.asked.append((self.clock.seconds() - START, chute_id, fires))
        if self.script is not None:
            fires.callback(self.script(chute_id))
        return await fires

    def listing(self, each: int = 10, instances: int = 5) -> FetchedAnswer:
        self.made += 1
        entries = [
            entry(f"i-{number}", nonces=[f"nonce-{self.made}-{number}-{n}" for n in range(each)])
            for number in range(instances)
        ]
        return FetchedAnswer(200, None, listed(*entries))

    def answer(self, answer: FetchedAnswer | Exception, call: int = -1) -> None:
        fires = self.asked[call][2]
        if isinstance(answer, Exception):
            fires.errback(answer)
        else:
            fires.callback(answer)

    def acquire(self, chute_id: str = "c", wait: float = 5.0, **more: Any) -> list[Any]:
        """What becomes of a request: one session or refusal, once it is known; ``cancel`` is its last entry's way."""
        told: list[Any] = []
        options = {"stream": True, "exclude": frozenset(), **more}
        self.sessions.acquire(chute_id, wait=wait, got=told.append, refused=told.append, **options)
        return told

    @property
    def calls(self) -> list[tuple[float, str]]:
        return [(when, chute) for when, chute, _ in self.asked]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def refusal_of(told: list[Any]) -> tuple[str, bool, str]:
    (refused,) = told
    assert isinstance(refused, Refused)
    return refused.error.code, refused.retry, refused.reason


def got(told: list[Any]) -> bool:
    return len(told) == 1 and isinstance(told[0], Session)


# listings


def test_a_listing_is_read() -> None:
    """Instances with their keys and nonces, and how long these are good."""
    read = parse_listing(listed(entry(), entry("i-2", nonces=["a" * 8, "a" * 8, "-" * 128])))
    assert [(i.instance_id, i.key_text, nonces) for i, nonces in read.instances] == [
        ("i-1", KEY, ("nonce-0001",)),
        ("i-2", KEY, ("a" * 8, "-" * 128)),
    ]
    assert (read.lifetime, read.skipped) == (60.0, 0)


@pytest.mark.parametrize(
    "bad",
    [
        entry("i_1"),
        entry(""),
        entry("i" * 65),
        entry("i-1\n"),
        entry(key=KEY[:-1]),
        entry(key=KEY + "\n"),
        entry(key=b64encode(b"\xff" * 1184).decode()),
        entry(key=None),
        entry(nonces="nonce-0001"),
        entry(nonces=["short"]),
        entry(nonces=["nonce 0001"]),
        entry(nonces=["nonce-0001\r\n"]),
        entry(nonces=[1]),
        {"instance_id": "i-1"},
        "i-1",
        None,
    ],
)
def test_a_bad_instance_costs_itself_only(bad: object) -> None:
    """It is skipped and counted; the others are used."""
    read = parse_listing(listed(bad, entry("i-2")))
    assert [instance.instance_id for instance, _ in read.instances] == ["i-2"]
    assert read.skipped == 1


def test_a_listing_is_bounded() -> None:
    """64 instances with 64 nonces each, and an instance once."""
    many = [entry(f"i-{n}", nonces=[f"nonce-{n}-{m}" for m in range(70)]) for n in range(70)]
    read = parse_listing(listed(many[0], *many))
    assert len(read.instances) == 63
    assert {len(nonces) for _, nonces in read.instances} == {64}


@pytest.mark.parametrize(
    ("told", "lifetime"), [(60, 60), (3600, 60), (0, 1), (-5, 1), (12.5, 12.5), ("60", 55), (None, 55), (True, 55)]
)
def test_the_lifetime_is_kept_in_bounds(told: object, lifetime: float) -> None:
    """Between 1 and 60 seconds; 55 where it is no number."""
    assert parse_listing(listed(nonce_expires_in=told)).lifetime == lifetime


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"instances": {}}', b"\xff", b"[" * 100_000])
def test_what_is_no_listing_is_refused(body: bytes) -> None:
    """Whatever it is."""
    with pytest.raises(ValueError, match="no listing"):
        parse_listing(body)


# the budget


def test_the_budget_counts_by_the_minutes_of_the_clock() -> None:
    """As the limit it is made for does: what is left of a minute does not count in the next."""
    budget = DiscoveryBudget(2, lambda: 0.0)
    budget.spend(START + 58)
    assert budget.next_at(START + 58) == START + 58
    budget.spend(START + 59)
    assert budget.next_at(START + 59) == START + 60
    assert budget.next_at(START + 60) == START + 60
    assert budget.next_at(START - 60) == START - 60, "the wall clock may be set back"


@given(workers=st.integers(1, 40), rpm=st.integers(1, 10), start=st.integers(0, 10**9))
def test_those_who_take_turns_keep_the_limit_together(workers: int, rpm: int, start: int) -> None:
    """Each spends whatever it may: a minute's calls come to the limit exactly, and nobody is passed over."""
    now, spent = start * 60.0, Counter[int]()
    budgets = [DiscoveryBudget(rpm, lambda: 0.0, Turn(number, workers)) for number in range(workers)]
    for minute in range(3):
        calls = 0
        for number, budget in enumerate(budgets):
            mine = 0
            while budget.next_at(now) == now:
                budget.spend(now)
                mine += 1
            assert mine <= budget.most
            assert (budget.next_at(now) - now) % 60 == 0
            assert budget.next_at(now) - now <= 60 * -(-workers // rpm)
            spent[number] += mine
            calls += mine
        assert calls == rpm, minute
        now += 60
    assert max(spent.values()) - min(spent[number] for number in range(workers)) <= 1


def test_a_429_closes_it_until_the_next_minute_and_longer_each_time() -> None:
    """One, two, four minutes, and never more; a jitter keeps replicas apart; an answer resets it."""
    budget = DiscoveryBudget(6, lambda: 0.5)
    closed = []
    now = START + 30
    for _ in range(4):
        budget.limited(now, None)
        closed.append(budget.next_at(now) - now)
        now = budget.next_at(now)
    assert closed == [31, 60 * 2, 60 * 4, 60 * 4]
    budget.answered()
    budget.limited(now, None)
    assert budget.next_at(now) - now == 60


def test_a_429_may_ask_for_more_time() -> None:
    """In seconds and within an hour."""
    budget = DiscoveryBudget(6, lambda: 0.0)
    budget.limited(START, 100.0)
    assert budget.next_at(START) == START + 100
    budget.limited(START, 1e6)
    assert budget.next_at(START) == START + 3600


# sessions


def test_waiting_requests_share_one_call(desk: Desk) -> None:
    """All get a session of its answer; the next request finds the pool filled."""
    told = [desk.acquire() for _ in range(3)]
    assert told == [[], [], []]
    desk.answer(desk.listing())
    assert all(map(got, told))
    assert got(desk.acquire())
    assert desk.calls == [(0.0, "c")]


def test_whoever_attests_is_told_what_was_listed(desk: Desk) -> None:
    """The ids and the keys' texts, before a request goes to any of them."""
    told: list[Any] = []
    desk.sessions.acquire(
        "c",
        stream=True,
        exclude=frozenset(),
        wait=5.0,
        got=lambda session: told.append(desk.listed[-1]),
        refused=told.append,
    )
    desk.answer(desk.listing(instances=2))
    assert told == [("c", [("i-0", KEY), ("i-1", KEY)])]


def test_more_requests_than_nonces_take_another_call(desk: Desk) -> None:
    """Those who came first are served first."""
    told = [desk.acquire() for _ in range(12)]
    desk.answer(desk.listing(each=1))
    assert [len(one) for one in told] == [1] * 5 + [0] * 7
    desk.answer(desk.listing())
    assert all(map(got, told))
    assert desk.calls == [(0.0, "c"), (0.0, "c")]


def test_a_request_waits_its_time(desk: Desk) -> None:
    """The call goes on and fills the pool for others."""
    told = desk.acquire(wait=5.0)
    desk.clock.advance(4.9)
    assert told == []
    desk.clock.advance(0.1)
    assert refusal_of(told) == ("chutes_e2ee_no_session", True, "discovery_failed")
    desk.answer(desk.listing())
    assert got(desk.acquire())
    assert len(told) == 1


def test_a_request_that_left_takes_no_nonce(desk: Desk) -> None:
    """What it waited for is for others."""
    told: list[Any] = []
    leave = desk.sessions.acquire("c", stream=True, exclude=frozenset(), wait=5.0, got=told.append, refused=told.append)
    leave()
    leave()
    desk.answer(desk.listing(each=1, instances=1))
    assert got(desk.acquire())
    desk.clock.advance(10)
    assert told == []


@pytest.mark.parametrize(
    ("answer", "refusal", "again"),
    [
        (answered(401), ("chutes_upstream_auth", False, "upstream_auth"), 1.0),
        (answered(403), ("chutes_upstream_auth", False, "upstream_auth"), 1.0),
        (answered(404, "Chute not found"), ("chutes_e2ee_no_session", True, "chute_gone"), None),
        (answered(404, "No active instances found"), ("chutes_e2ee_no_session", True, "no_instances"), 60.0),
        (answered(404, "No E2E-capable instances available"), ("chutes_e2ee_no_session", True, "no_instances"), 60.0),
        (FetchedAnswer(200, None, listed("bad")), ("chutes_e2ee_no_session", True, "no_instances"), 60.0),
        (answered(500), ("chutes_e2ee_no_session", True, "discovery_failed"), 1.0),
        (FetchedAnswer(200, None, b"?"), ("chutes_e2ee_no_session", True, "discovery_failed"), 1.0),
        (FetchError("timeout", "no answer"), ("chutes_e2ee_no_session", True, "discovery_failed"), 1.0),
    ],
)  # fmt: skip
def test_a_failed_call(
    desk: Desk, answer: FetchedAnswer | Exception, refusal: tuple[str, bool, str], again: float | None
) -> None:
    """Refuses those who wait, and everybody else until it may be asked again: in seconds, or with a new catalog."""
    told = desk.acquire()
    desk.answer(answer)
    assert refusal_of(told) == refusal
    assert desk.counted[-1] == refusal[2]
    assert refusal_of(desk.acquire()) == refusal
    if again is None:
        desk.clock.advance(100_000)
        assert refusal_of(desk.acquire()) == refusal
        desk.discovery.catalog_refreshed()
    else:
        desk.clock.advance(again - 0.1)
        assert refusal_of(desk.acquire()) == refusal
        desk.clock.advance(0.1)
    assert desk.acquire() == []
    desk.answer(desk.listing())


def test_failures_in_a_row_are_further_apart(desk: Desk) -> None:
    """Twice as far each time, at most 30 seconds; a success forgets them."""
    gaps = []
    for _ in range(7):
        desk.acquire()
        desk.answer(answered(500))
        closed = desk.discovery.closed("c")
        assert closed is not None
        gaps.append(closed.until - desk.clock.seconds())
        desk.clock.advance(gaps[-1])
    assert gaps == [1, 2, 4, 8, 16, 30, 30]
    desk.acquire()
    desk.answer(desk.listing())
    assert desk.discovery.closed("c") is None


def test_a_429_is_no_refusal_of_the_model(desk: Desk) -> None:
    """The client is told that there is no session and when to come again; the pools at hand go on serving."""
    assert desk.acquire("other") == []
    desk.answer(desk.listing())
    told = desk.acquire()
    desk.answer(answered(429))
    assert refusal_of(told) == ("chutes_e2ee_no_session", True, "discovery_limited")
    assert told[0].error.headers == ((b"Retry-After", b"61"),)
    assert refusal_of(desk.acquire("third")) == ("chutes_e2ee_no_session", True, "discovery_limited")
    assert got(desk.acquire("other"))
    assert len(desk.calls) == 2
    desk.clock.advance(61)
    assert desk.acquire("third") == []


def test_a_429_after_an_answer_counts_as_the_first(desk: Desk) -> None:
    """It closes the budget for one minute, not for two."""
    for minute in (1, 2):
        desk.acquire()
        desk.answer(answered(429))
        desk.clock.advance(61)
        desk.acquire(f"other-{minute}")
        desk.answer(desk.listing())
    assert len(desk.calls) == 4


def test_a_request_that_can_wait_for_the_next_minute_does(desk: Desk) -> None:
    """The call is made as soon as the budget allows it."""
    desk.clock.advance(57)
    told = desk.acquire()
    desk.answer(answered(429))
    assert told == []
    desk.clock.advance(4)
    assert [when for when, _ in desk.calls] == [57.0, 61.0]
    desk.answer(desk.listing())
    assert got(told)


def test_requests_go_before_refreshes() -> None:
    """Where one call is left, it is for those who wait."""
    desk = Desk(rpm=2)
    desk.clock.advance(58)
    desk.acquire("a")
    desk.acquire("b")
    desk.sessions.prefetch("early")
    waits = desk.acquire("waited-for")
    desk.clock.advance(2)
    assert [chute for _, chute in desk.calls] == ["a", "b", "waited-for", "early"]
    desk.answer(desk.listing(), call=2)
    assert got(waits)


def test_prefetching_asks_once_and_only_where_nothing_is(desk: Desk) -> None:
    """Nor where the chute is known to have nothing."""
    desk.sessions.prefetch("c")
    desk.sessions.prefetch("c")
    desk.answer(desk.listing())
    assert desk.sessions.available("c")
    desk.sessions.prefetch("c")
    desk.sessions.prefetch("gone")
    desk.answer(answered(404, "Chute not found"))
    desk.sessions.prefetch("gone")
    assert [chute for _, chute in desk.calls] == ["c", "gone"]
    assert not desk.sessions.available("gone")


def test_prefetching_at_once_leaves_half_of_the_minute_to_requests(desk: Desk) -> None:
    """Whatever one request would have looked at; more is begun when that is done."""
    for number in range(8):
        desk.sessions.prefetch(f"c{number}")
    assert [chute for _, chute in desk.calls] == ["c0", "c1", "c2"]
    desk.acquire("waited-for")
    desk.answer(desk.listing(), call=0)
    desk.sessions.prefetch("c3")
    desk.sessions.prefetch("c4")
    assert [chute for _, chute in desk.calls[3:]] == ["waited-for", "c3"]


def test_a_pool_in_use_is_refreshed_by_its_age(desk: Desk) -> None:
    """After 45 seconds; when it was not used for a minute no more."""
    desk.script = lambda chute: desk.listing()
    desk.acquire()
    desk.clock.advance(30)
    desk.acquire()
    desk.clock.advance(60)
    desk.clock.advance(1000)
    assert [when for when, _ in desk.calls] == [0.0, 45.0 + 45.0]


def test_a_low_pool_is_refreshed_while_it_serves(desk: Desk) -> None:
    """At 30 percent, without anybody waiting."""
    desk.script = lambda chute: desk.listing()
    told = [desk.acquire() for _ in range(34)]
    assert len(desk.calls) == 1
    told.append(desk.acquire())
    assert len(desk.calls) == 2
    assert all(map(got, told))


def test_instances_that_may_not_be_chosen_are_not_asked_for_at_once_again(desk: Desk) -> None:
    """A fresh listing would bring the same; later it may bring others."""
    desk.script = lambda chute: desk.listing(instances=1)
    desk.acquire()
    desk.pools.of("c").quarantine("i-0", desk.clock.seconds() + 300)
    assert refusal_of(desk.acquire()) == ("chutes_e2ee_no_session", True, "no_instances")
    assert len(desk.calls) == 1
    desk.clock.advance(10)
    assert refusal_of(desk.acquire()) == ("chutes_e2ee_no_session", True, "no_instances")
    assert len(desk.calls) == 2


def test_without_a_verdict_there_is_no_candidate() -> None:
    """Neither out of the pool nor out of a new listing."""
    desk = Desk(usable=lambda name, key: False)
    told = desk.acquire()
    desk.answer(desk.listing())
    assert refusal_of(told) == ("no_attested_candidate", True, "no_verdict")
    assert refusal_of(desk.acquire()) == ("no_attested_candidate", True, "no_verdict")
    assert len(desk.calls) == 1


def test_what_would_be_refused_at_once_is_known_before(desk: Desk) -> None:
    """As `acquire` refuses it, and nothing is asked or taken for it; a refused key is no obstacle of one chute."""

    def obstacle(chute_id: str = "c") -> str | None:
        known = desk.sessions.obstacle(chute_id, 5.0)
        calls = len(desk.asked)
        if known is not None:
            assert refusal_of(desk.acquire(chute_id))[2] == known
        assert len(desk.asked) == calls
        return known

    assert obstacle() is None
    desk.acquire()
    assert obstacle() is None  # it would wait with the other one
    desk.answer(answered(404, "No active instances found for this chute"))
    assert obstacle() == "no_instances"
    desk.clock.advance(59)
    assert obstacle() == "no_instances"
    desk.clock.advance(1)
    assert obstacle() is None
    desk.acquire("other")
    desk.answer(answered(429, retry_after=60.0))
    assert obstacle() == "discovery_limited"
    desk.clock.advance(200)
    desk.acquire("other")
    desk.answer(answered(401))
    assert desk.sessions.obstacle("other", 5.0) is None


def test_a_chute_that_is_disabled_gets_nothing_whatever_nonces_there_are(desk: Desk) -> None:
    """For as long as it is out; then they may still be good."""
    desk.acquire()
    desk.answer(desk.listing())
    assert desk.sessions.available("c")
    desk.discovery.chute_out("c", 30.0)
    assert (desk.sessions.obstacle("c", 5.0), desk.sessions.available("c")) == ("chute_disabled", False)
    assert refusal_of(desk.acquire()) == ("chutes_e2ee_no_session", True, "chute_disabled")
    desk.clock.advance(30)
    assert desk.sessions.obstacle("c", 5.0) is None
    assert got(desk.acquire())


def test_what_a_pool_lacks_is_an_obstacle() -> None:
    """Instances without a verdict, or such as are all quarantined; until it is worth a listing again."""
    usable = True
    desk = Desk(usable=lambda name, key: usable)
    desk.acquire()
    desk.answer(desk.listing(instances=1))
    assert desk.sessions.obstacle("c", 5.0) is None
    desk.pools.of("c").quarantine("i-0", START + 30)
    assert desk.sessions.obstacle("c", 5.0) == "no_instances"
    desk.clock.advance(10)
    assert desk.sessions.obstacle("c", 5.0) is None
    usable = False
    assert desk.sessions.obstacle("c", 5.0) == "no_verdict"


def test_retiring_ends_everything(desk: Desk) -> None:
    """Whoever waits is refused, calls are cancelled, timers are gone, nothing new begins."""
    desk.acquire("served")
    desk.answer(desk.listing())
    told = desk.acquire()
    desk.sessions.retire()
    assert refusal_of(told)[0] == "chutes_e2ee_no_session"
    assert desk.clock.getDelayedCalls() == []
    assert refusal_of(desk.acquire())[0] == "chutes_e2ee_no_session"
    assert len(desk.calls) == 2


def test_500_requests_in_a_minute_never_show_the_limit() -> None:
    """Three chutes, ten calls a minute allowed by the API: no 429 is met, every request gets a session of its own."""
    desk = Desk(rpm=10)
    calls_in: dict[float, int] = {}

    def api(chute_id: str) -> FetchedAnswer:
        minute = desk.clock.seconds() // 60
        calls_in[minute] = calls_in.get(minute, 0) + 1
        return answered(429) if calls_in[minute] > 10 else desk.listing()

    desk.script = api
    told = []
    for number in range(500):
        told.append(desk.acquire(f"c-{number % 3}"))
        desk.clock.advance(0.119)
    desk.clock.advance(5)
    for one in told:
        assert got(one) or refusal_of(one)[0] == "chutes_e2ee_no_session"
    assert "discovery_limited" not in desk.counted
    nonces = [one[0].nonce for one in told if got(one)]
    assert len(nonces) == len(set(nonces))
    assert len(nonces) >= 450
    assert max(calls_in.values()) <= 10
