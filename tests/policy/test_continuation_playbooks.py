"""The rules of continuing a stream as playbooks: what happens, what is done."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.policy.continuation import (
    REFUSED,
    UNLIKE,
    Command,
    Declined,
    Event,
    Failed,
    GiveUp,
    GoesOn,
    Prefill,
    Relay,
    Restart,
    begin,
    step,
    useless,
)


def play(*events: Event, left: tuple[str, ...] = ("b", "c"), attempts: int = 8, has_text: bool = True) -> list[Command]:
    """Every command from the break on."""
    state, command = begin(left, attempts, has_text=has_text)
    commands = [command]
    for event in events:
        state, command = step(state, event)
        commands.append(command)
    return commands


def test_the_next_candidate_goes_on_behind_the_text() -> None:
    """It is asked with the text so far, and what it says is relayed."""
    assert play(GoesOn()) == [Prefill("b"), Relay("b")]


def test_a_refused_prefill_becomes_a_restart_of_the_same_model() -> None:
    """Once: what it declines then is given up."""
    assert play(Declined(), GoesOn()) == [Prefill("b"), Restart("b"), Relay("b")]
    assert play(Declined(), Declined()) == [Prefill("b"), Restart("b"), GiveUp()]


def test_a_model_that_fails_gives_way_to_the_next() -> None:
    """From its prefill as from its restart; with none left it is given up."""
    assert play(Failed(), Failed()) == [Prefill("b"), Prefill("c"), GiveUp()]
    assert play(Declined(), Failed(), GoesOn()) == [Prefill("b"), Restart("b"), Prefill("c"), Relay("c")]


def test_a_failure_that_forbids_another_try_ends_it() -> None:
    """As where the operator's key is refused."""
    assert play(Failed(retry=False)) == [Prefill("b"), GiveUp()]


def test_without_text_there_is_nothing_to_go_on_from() -> None:
    """Every candidate gets the client's own request."""
    assert play(Failed(), has_text=False) == [Restart("b"), Restart("c")]


@pytest.mark.parametrize("arguments", [{"left": ()}, {"attempts": 0}])
def test_with_nobody_to_ask_it_is_given_up_at_once(arguments: dict[str, object]) -> None:
    """No candidate left, or no attempt."""
    assert play(**arguments) == [GiveUp()]  # type: ignore[arg-type]


@pytest.mark.parametrize("event", [Failed(), Failed(retry=False), Declined()])
def test_a_stream_is_continued_once(event: Event) -> None:
    """Whatever becomes of the model that goes on, no third one's text follows."""
    assert play(GoesOn(), event) == [Prefill("b"), Relay("b"), GiveUp()]


@given(
    st.lists(st.sampled_from([Declined(), Failed(), Failed(retry=False), GoesOn()]), max_size=12),
    st.integers(0, 5),
    st.booleans(),
)
def test_no_more_is_tried_than_allowed(events: list[Event], attempts: int, has_text: bool) -> None:
    """Never more attempts than are left, never a model twice in the same way, and one relay at most."""
    commands = play(*events, left=("b", "c", "d"), attempts=attempts, has_text=has_text)
    tried = [command for command in commands if isinstance(command, Prefill | Restart)]
    assert len(tried) <= attempts
    assert len(set(tried)) == len(tried)
    assert sum(isinstance(command, Relay) for command in commands) <= 1


@pytest.mark.parametrize(
    ("status", "banned", "reason", "event"),
    [
        (200, False, UNLIKE, Failed()),
        (400, False, REFUSED, Declined()),
        (422, False, REFUSED, Declined()),
        (429, False, "upstream_429", Failed()),
        (429, True, "upstream_429", Failed(retry=False)),
        (500, False, "upstream_server_error", Failed()),
        (503, False, "upstream_503", Failed()),
    ],
)
def test_answers_that_are_no_streams(status: int, banned: bool, reason: str, event: Event) -> None:
    """A 4xx speaks of the request; 429 and 5xx speak of the model; after the ban page nobody is asked."""
    assert useless(status, banned=banned) == (reason, event)
