"""The failover rules as playbooks: what happens, what is done."""

import pytest

from chutes_autopilot.policy.failover import (
    AwaitBody,
    Commit,
    ConnectFailed,
    DeadlinePassed,
    Ended,
    Event,
    Failover,
    FirstByte,
    Head,
    Lost,
    PassBack,
    Refuse,
    Timeouts,
    Try,
    begin,
    step,
)
from chutes_autopilot.policy.plan import Plan

TIMEOUTS = Timeouts(header=10, first_byte=120, nonstream_header=600)


def start(*models: str, stream: bool = True, max_attempts: int = 8, last: str = "") -> tuple[Failover, Try]:
    plan = Plan("list", models, models, last_resort=frozenset(last))
    return begin(plan, stream=stream, timeouts=TIMEOUTS, max_attempts=max_attempts)


TRIGGERS = [
    ([ConnectFailed()], "upstream_connect_error", 502),
    ([DeadlinePassed("connect")], "upstream_connect_error", 502),
    ([DeadlinePassed("header")], "upstream_header_timeout", 504),
    ([Head(200), DeadlinePassed("first_byte")], "upstream_first_body_byte_timeout", 504),
    ([Head(200), Ended()], "upstream_first_body_byte_timeout", 504),
    ([Head(200), Lost()], "upstream_first_body_byte_error", 502),
    ([Head(503)], "upstream_503", None),
]


@pytest.mark.parametrize(("events", "reason", "status"), TRIGGERS)
def test_a_trigger_tries_the_next_candidate(events: list[Event], reason: str, status: int | None) -> None:
    """Every trigger of the table moves on while another candidate is left, and says why."""
    state, _ = start("a", "b")
    for event in events:
        state, command, failure = step(state, event)
    assert (command, failure) == (Try("b", TIMEOUTS.first_byte), reason)


@pytest.mark.parametrize(("events", "reason", "status"), TRIGGERS)
def test_the_last_attempt_ends_with_its_own_failure(events: list[Event], reason: str, status: int | None) -> None:
    """With no candidate left a 503 passes back and everything else becomes the error of its kind."""
    state, _ = start("a")
    for event in events:
        state, command, failure = step(state, event)
    assert failure == reason
    if status is None:
        assert command == PassBack()
    else:
        assert isinstance(command, Refuse)
        assert (command.error.code, command.error.status) == (reason, status)


def test_an_empty_answer_is_not_called_late() -> None:
    """It has the code of one that never began, and a message of its own."""
    state, _ = start("a")
    messages = []
    for event in (Ended(), DeadlinePassed("first_byte")):
        command = step(state, event)[1]
        assert isinstance(command, Refuse)
        messages.append(command.error.message)
    assert ["in time" in message for message in messages] == [False, True]


@pytest.mark.parametrize("status", [204, 301, 400, 401, 402, 404, 426, 429, 500, 502, 504])
def test_every_other_status_is_an_answer(status: int) -> None:
    """429 and the rest pass back at once, also when candidates are left; so does a 204, which has no body."""
    state, _ = start("a", "b")
    assert step(state, Head(status))[1:] == (PassBack(), None)


def test_a_2xx_commits_with_its_first_body_byte() -> None:
    """The head alone commits nothing; the first byte has the first-byte deadline, counted from the head."""
    state, _ = start("a", "b")
    state, command, _ = step(state, Head(200))
    assert command == AwaitBody(TIMEOUTS.first_byte)
    assert step(state, FirstByte())[1:] == (Commit(), None)


def test_the_short_header_deadline_holds_only_while_failover_is_possible() -> None:
    """Streams: short while a candidate is left, the first-byte time for the last one."""
    state, first = start("a", "b")
    _, second, _ = step(state, ConnectFailed())
    assert first == Try("a", TIMEOUTS.header)
    assert second == Try("b", TIMEOUTS.first_byte)


def test_a_last_resort_hurries_nobody() -> None:
    """It is tried after a failure, but what goes well is not cut short for a model that is known to fail."""
    state, command = start("a", "b", "c", "d", last="cd")
    tried = [command]
    for _ in range(3):
        state, command, _ = step(state, ConnectFailed())
        tried.append(command)
    long, short = TIMEOUTS.first_byte, TIMEOUTS.header
    assert tried == [Try("a", short), Try("b", long), Try("c", short), Try("d", long)]
    assert isinstance(step(state, ConnectFailed())[1], Refuse)


def test_a_plain_answer_always_has_the_long_header_deadline() -> None:
    """The platform sends the head of a non-streaming answer only with the whole answer."""
    state, first = start("a", "b", stream=False)
    _, second, _ = step(state, ConnectFailed())
    assert [first, second] == [Try("a", TIMEOUTS.nonstream_header), Try("b", TIMEOUTS.nonstream_header)]


def test_no_more_attempts_than_allowed() -> None:
    """The last allowed attempt counts as the last candidate, its deadline included."""
    state, first = start("a", "b", "c", max_attempts=1)
    assert first == Try("a", TIMEOUTS.first_byte)
    assert isinstance(step(state, ConnectFailed())[1], Refuse)
