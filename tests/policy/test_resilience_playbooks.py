"""What the resilient profile adds to failover, as playbooks: what happens, what is done."""

from collections import Counter
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy import failover
from chutes_autopilot.policy.failover import (
    Answer,
    AwaitBody,
    Command,
    Commit,
    ConnectFailed,
    DeadlinePassed,
    Ended,
    FirstByte,
    Head,
    Lost,
    PassBack,
    Refuse,
    Refused,
    Timeouts,
    Try,
)
from chutes_autopilot.policy.hedging import MOST, HedgeBudget
from chutes_autopilot.policy.plan import Plan
from chutes_autopilot.policy.rate_limits import RateLimit
from chutes_autopilot.policy.resilience import (
    JITTER,
    REASONS,
    SERVER_ERRORS,
    DropOut,
    ErrorAnswer,
    Happening,
    Resilience,
    Resilient,
    Wait,
    begin,
    hedge,
    race,
    reason_of,
    step,
)
from chutes_autopilot.policy.upstream_errors import UpstreamError

TIMEOUTS = Timeouts(header=10, first_byte=120, nonstream_header=600)
ALL = Resilience(
    first_event=True,
    first_event_timeout=7,
    server_errors=True,
    same_model_retries=2,
    context_length=True,
    rate_limits=True,
    longest_wait=5.0,
    hedge=True,
)
CONTEXTS = {"a": 40_000, "small": 40_000, "smaller": 8_000, "large": 128_000, "larger": 256_000}


def start(
    *models: str, rules: Resilience = ALL, stream: bool = True, max_attempts: int = 8, last: str = ""
) -> tuple[Resilient, Try]:
    return begin(
        Plan("list", models[:max_attempts], models, last_resort=frozenset(last), spare=models[max_attempts:]),
        stream=stream,
        timeouts=TIMEOUTS,
        max_attempts=max_attempts,
        rules=rules,
        context_of=CONTEXTS.get,
    )


def play(state: Resilient, *events: Happening) -> tuple[Resilient, list[Any]]:
    """Each event in its turn, and what was done: the model tried, after which wait, or the command."""
    done: list[Any] = []
    for event in events:
        state, command, _ = step(state, event)
        match command:
            case Wait(shortest, longest, then):
                done.append((shortest, longest, then.model))
            case Try(model):
                done.append(model)
            case _:
                done.append(command)
    return state, done


def error(kind: Any, status: int, tokens: int = 0) -> ErrorAnswer:
    return ErrorAnswer(status, UpstreamError(kind, tokens))


def limited(kind: Any, retry_after: float | None = None, status: int = 429) -> ErrorAnswer:
    return ErrorAnswer(status, UpstreamError("rate_limited"), RateLimit(kind, retry_after, json=kind != "edge"))


AGAIN = (*JITTER, "a")
REPEATED: list[tuple[Happening, str]] = [
    (ConnectFailed(), "upstream_connect_error"),
    (Lost(), "upstream_first_body_byte_error"),
    (Head(502), "upstream_server_error"),
    (Answer(524), "upstream_server_error"),
    (error("server_error", 500), "upstream_server_error"),
    (error("server_error", 200), "upstream_error_event"),
]


@pytest.mark.parametrize(("event", "reason"), REPEATED)
def test_a_fault_that_may_pass_is_tried_twice_more_on_the_same_model(event: Happening, reason: str) -> None:
    """After a moment each time; then the next model has its tries."""
    state, _ = start("a", "b")
    assert step(state, event)[2] == reason
    assert play(state, *[event] * 5)[1] == [AGAIN, AGAIN, "b", (*JITTER, "b"), (*JITTER, "b")]


@pytest.mark.parametrize("status", sorted(SERVER_ERRORS))
def test_the_last_server_error_is_the_clients(status: int) -> None:
    """One model by name has the tries too; what it says last is passed back."""
    state, _ = start("a")
    assert play(state, *[Head(status)] * 3)[1] == [AGAIN, AGAIN, PassBack()]


def test_the_last_lost_connection_is_an_error_of_ours() -> None:
    """As in the standard profile."""
    state, done = play(start("a")[0], *[ConnectFailed()] * 3)
    assert isinstance(done[-1], Refuse)
    assert (state.attempts, done[-1].error.code) == (3, "upstream_connect_error")


@pytest.mark.parametrize(
    "events",
    [
        [DeadlinePassed("connect")],
        [DeadlinePassed("header")],
        [Head(200), DeadlinePassed("first_byte")],
        [Head(200), Ended()],
        [Head(503)],
        [error("no_instance", 500)],
        [error("no_instance", 200)],
        [Refused(ApiError("chutes_e2ee_no_session", "x"), True, "no_session")],
    ],
)
def test_who_is_silent_or_full_is_not_asked_again(events: list[Happening]) -> None:
    """The next at once."""
    assert play(start("a", "b")[0], *events)[1][-1] == "b"


def test_a_refusal_of_our_own_is_no_reason_to_go_on() -> None:
    """Never a failover on our own errors."""
    own = ApiError("internal_error", "x")
    assert play(start("a", "b")[0], Refused(own, False, "x"))[1] == [Refuse(own)]


def test_a_request_too_long_goes_on_to_larger_contexts_alone() -> None:
    """Those that are not larger are left out by name; an unknown context may be larger."""
    state, done = play(start("a", "small", "unknown", "large", "smaller", "larger")[0], error("context_length", 400))
    assert (done, state.skipped) == (["unknown"], ("small", "smaller"))
    state, done = play(state, error("context_length", 400, tokens=200_000))
    assert (done, state.skipped) == (["larger"], ("small", "smaller", "large"))
    assert play(state, error("context_length", 400))[1] == [PassBack()]


def test_a_larger_context_is_looked_for_behind_the_last_attempt_allowed() -> None:
    """As many are tried as attempts are left, whatever stood before them or was tried again."""
    too_long = error("context_length", 400)
    models = "a", "small", "smaller", "large", "unknown", "larger"
    state, done = play(start(*models, max_attempts=2)[0], too_long, too_long)
    assert (done, state.skipped) == (["large", PassBack()], ("small", "smaller"))
    state, done = play(start(*models, max_attempts=4)[0], Head(502), too_long, too_long)
    assert done == [AGAIN, "large", "unknown"]
    state, done = play(start("a", "b", "large", max_attempts=2)[0], Head(503), Head(503))
    assert done == ["b", PassBack()]


def test_a_context_error_inside_a_stream_counts_too() -> None:
    """Where nothing is left it is committed to as it came."""
    assert play(start("a", "large")[0], error("context_length", 200))[1] == ["large"]
    assert play(start("a", "small")[0], error("context_length", 200))[1] == [Commit()]


@pytest.mark.parametrize(
    "event",
    [
        Head(404),
        error("refused", 400),
        error("content_filter", 400),
        error("auth", 401),
        limited("edge"),
        limited("account", 1.0),
        limited("unknown"),
        limited("unknown", 5.1),
    ],
)
def test_every_other_error_is_final(event: Happening) -> None:
    """Also where candidates are left."""
    assert play(start("a", "b")[0], event)[1] == [PassBack()]


def test_a_content_filter_inside_a_stream_is_final() -> None:
    """The stream goes to the client as it is."""
    assert play(start("a", "b")[0], error("content_filter", 200))[1] == [Commit()]


@pytest.mark.parametrize(
    ("event", "wait"),
    [
        (limited("capacity"), JITTER),
        (limited("engine"), JITTER),
        (limited("engine", status=200), JITTER),
        (limited("capacity", 5.0), (5.0, 5.0)),
        (limited("unknown", 2.0), (2.0, 2.0)),
    ],
)
def test_a_full_model_has_one_more_try(event: ErrorAnswer, wait: tuple[float, float]) -> None:
    """When it says so, else after a moment; then the next, which has one as well."""
    state, done = play(start("a", "b")[0], event, event, event, event)
    assert done == [(*wait, "a"), "b", (*wait, "b"), PassBack() if event.status == 429 else Commit()]
    assert state.attempts == 4


def test_a_full_model_that_says_much_later_gives_way_at_once() -> None:
    """RETRY_AFTER_MAX_MS bounds the wait."""
    assert play(start("a", "b")[0], limited("capacity", 5.1))[1] == ["b"]


@pytest.mark.parametrize(
    ("event", "least", "at_last"),
    [
        (limited("capacity", 5.0), 5.0, PassBack()),
        (limited("unknown", 2.0), 2.0, PassBack()),
        (limited("engine"), 0.8, PassBack()),
        (Head(502), 0.8, PassBack()),
        (error("server_error", 200), 0.8, Commit()),
    ],
)
def test_no_wait_is_begun_that_might_outlast_the_request(event: Happening, least: float, at_last: Command) -> None:
    """The next is asked at once, and what the last one said is the answer."""
    assert isinstance(step(start("a", "b")[0], event, least + 0.1)[1], Wait)
    following = step(start("a", "b")[0], event, least)[1]
    assert isinstance(following, Try)
    assert (following.model, step(start("a")[0], event, least)[1]) == ("b", at_last)


@pytest.mark.parametrize(
    ("events", "off"),
    [
        ([Head(502)], {"server_errors": False}),
        ([error("server_error", 500)], {"server_errors": False}),
        ([error("context_length", 400)], {"context_length": False}),
        ([limited("capacity")], {"rate_limits": False}),
    ],
)
def test_each_part_can_be_left_off(events: list[Happening], off: dict[str, bool]) -> None:
    """Then it is as in the standard profile."""
    assert play(start("a", "b", rules=attrs.evolve(ALL, **off))[0], *events)[1] == [PassBack()]


def test_a_request_that_was_sent_twice_has_had_one_of_its_tries() -> None:
    """A kept-alive connection was lost, and then a new one as well; what is tried again gets a new one at once."""
    twice = ConnectFailed(repeated=True)
    done = play(start("a", "b")[0], twice, twice)[1]
    assert done == [AGAIN, "b"]
    for event, fresh in ((ConnectFailed(), True), (Lost(), True), (Head(502), False)):
        command = step(start("a", "b")[0], event)[1]
        assert isinstance(command, Wait)
        assert command.then.fresh == fresh


def test_without_tries_on_the_same_model_the_next_comes_at_once() -> None:
    """SAME_MODEL_RETRIES=0."""
    state, _ = start("a", "b", rules=attrs.evolve(ALL, same_model_retries=0))
    assert play(state, Head(500))[1] == play(state, Lost())[1] == ["b"]


def test_the_first_event_has_a_deadline_of_its_own_while_another_candidate_is_left() -> None:
    """The last one has all the time there is, and so has an answer that does not stream."""
    state, _ = start("a", "b")
    assert play(state, Head(200))[1] == [AwaitBody(7)]
    assert play(state, DeadlinePassed("header"), Head(200))[1] == ["b", AwaitBody(120)]
    assert play(start("a", "b", stream=False)[0], Head(200))[1] == [AwaitBody(120)]


def test_a_last_resort_is_neither_hurried_to_nor_hedged_with() -> None:
    """A first event may take its time, and nobody is asked beside; a failure goes on to it all the same."""
    state, _ = start("a", "b", last="b")
    assert play(state, Head(200))[1] == [AwaitBody(TIMEOUTS.first_byte)]
    assert hedge(state) is None
    assert play(state, Head(503))[1] == ["b"]


def test_the_first_event_commits() -> None:
    """And nothing before it."""
    assert play(start("a", "b")[0], Head(200), FirstByte())[1][-1] == Commit()


def test_nothing_added_is_nothing() -> None:
    """What only bounds the parts adds none."""
    assert not Resilience(longest_wait=1.0, first_event_timeout=1.0)
    assert ALL


def test_of_two_attempts_the_first_answer_wins() -> None:
    """Whichever gives it; the other may go on meanwhile."""
    for which, model in (("earlier", "a"), ("later", "b")):
        raced = hedge(start("a", "b", "c")[0])
        assert raced is not None
        state, command = raced
        assert command == Try("b", TIMEOUTS.header)
        assert hedge(state) is None
        state, awaits = race(state, "later", Head(200))
        assert isinstance(awaits, AwaitBody)
        state, command = race(state, which, FirstByte())  # type: ignore[arg-type]
        assert (command, state.current, state.racing) == (Commit(), model, None)


@pytest.mark.parametrize(("models", "seconds"), [("abc", 7), ("ab", 120)])
def test_each_of_two_attempts_is_hurried_while_another_candidate_is_left(models: str, seconds: float) -> None:
    """As an attempt alone is: so is the one that goes on when the other has failed."""
    raced = hedge(start(*models)[0])
    assert raced is not None
    for which in ("earlier", "later"):
        assert race(raced[0], which, Head(200))[1] == AwaitBody(seconds)  # type: ignore[arg-type]
    assert play(race(raced[0], "later", Lost())[0], Head(200))[1] == [AwaitBody(seconds)]


@pytest.mark.parametrize(
    "event", [Lost(), Head(500), error("refused", 400), limited("capacity"), DeadlinePassed("header")]
)
def test_of_two_attempts_one_may_fail(event: Happening) -> None:
    """The other goes on; when it fails too, neither is tried again."""
    for which, left in (("earlier", "b"), ("later", "a")):
        raced = hedge(start("a", "b", "c")[0])
        assert raced is not None
        state, command = race(raced[0], which, event)  # type: ignore[arg-type]
        assert (command, state.current) == (DropOut(), left)
        assert reason_of(event) in (*REASONS, None)
        state, done = play(state, Head(500))
        assert (done, state.current, state.attempts) == (["c"], "c", 3)


@pytest.mark.parametrize("event", [limited("edge"), limited("account"), Head(429), Answer(429)])
def test_after_a_429_that_is_not_tried_again_nobody_else_is_asked(event: Happening) -> None:
    """The one of two attempts that is left may answer; when it fails, that is the end."""
    for which in ("earlier", "later"):
        raced = hedge(start("a", "b", "c", "d", max_attempts=3)[0])
        assert raced is not None
        state, command = race(raced[0], which, event)  # type: ignore[arg-type]
        assert command == DropOut()
        assert play(state, Head(500))[1] == play(state, error("context_length", 400))[1] == [PassBack()]


def test_the_last_candidate_has_no_second_beside_it() -> None:
    """Nor is anybody asked beyond the attempts allowed."""
    assert hedge(start("a")[0]) is None
    assert hedge(start("a", "b", max_attempts=1)[0]) is None


def test_no_more_than_a_twentieth_is_hedged() -> None:
    """Whatever comes: what is saved up is bounded too."""
    budget = HedgeBudget()
    spent = 0
    for _ in range(1000):
        budget.earn()
        spent += budget.spend()
    assert spent == 50
    for _ in range(1000):
        budget.earn()
    assert sum(budget.spend() for _ in range(100)) == MOST


EVENTS: list[Happening] = [
    *[event for event, _ in REPEATED],
    Head(200),
    Head(404),
    Head(503),
    Answer(200),
    FirstByte(),
    Ended(),
    DeadlinePassed("header"),
    DeadlinePassed("first_byte"),
    error("context_length", 400),
    error("context_length", 413, 100_000),
    error("no_instance", 500),
    error("refused", 422),
    limited("capacity"),
    limited("capacity", 3.0),
    limited("unknown", 1.0),
    limited("edge"),
    Refused(ApiError("chutes_e2ee_no_session", "x"), True, "no_session"),
]


@given(
    models=st.lists(st.sampled_from([*CONTEXTS, "b", "c"]), min_size=1, max_size=6, unique=True),
    events=st.lists(st.sampled_from(EVENTS), max_size=30),
    retries=st.integers(0, 3),
    max_attempts=st.integers(1, 8),
    rules=st.builds(
        Resilience,
        first_event=st.booleans(),
        server_errors=st.booleans(),
        context_length=st.booleans(),
        rate_limits=st.booleans(),
    ),
)
def test_every_course_of_things_keeps_the_bounds(
    models: list[str], events: list[Happening], retries: int, max_attempts: int, rules: Resilience
) -> None:
    """The budget counts every try, one commit ends all, and the order is the list's but for what is skipped."""
    rules = attrs.evolve(rules, same_model_retries=retries)
    state, first = start(*models, rules=rules, max_attempts=max_attempts)
    tried = [first.model]
    for event in events:
        state, command, reason = step(state, event)
        if isinstance(command, Try | Wait):
            assert reason is not None
            tried.append(command.then.model if isinstance(command, Wait) else command.model)
        elif not isinstance(command, AwaitBody):
            break
        assert (state.current, state.attempts) == (tried[-1], len(tried))
    assert len(tried) <= max_attempts
    order = [model for place, model in enumerate(tried) if place == 0 or tried[place - 1] != model]
    assert order == [model for model in models if model not in state.skipped][: len(order)]
    assert not set(order) & set(state.skipped)
    assert max(Counter(tried).values()) <= 1 + retries + rules.rate_limits


@given(events=st.lists(st.sampled_from(EVENTS), max_size=12), stream=st.booleans())
def test_without_any_part_the_rules_are_the_standard_ones(events: list[Happening], stream: bool) -> None:
    """Step for step."""
    state, first = start("a", "b", "c", rules=Resilience(), stream=stream)
    standard, same = failover.begin(
        Plan("list", ("a", "b", "c"), ("a", "b", "c")), stream=stream, timeouts=TIMEOUTS, max_attempts=8
    )
    assert first == same
    for event in events:
        if isinstance(event, ErrorAnswer):
            continue
        state, command, reason = step(state, event)
        standard, expected, expected_reason = failover.step(standard, event)
        assert reason == expected_reason
        if isinstance(command, Refuse):
            assert isinstance(expected, Refuse)
            return
        assert command == expected
        if not isinstance(command, Try | AwaitBody):
            return
