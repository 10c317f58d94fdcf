"""How the simulator reads a chat request, and which fault befalls which request."""

import json
from typing import Any

import pytest

from chutes_autopilot.demo.catalog import simulated_models
from chutes_autopilot.demo.chat import DEFAULT_TOKENS, ChatRefused, read_chat
from chutes_autopilot.demo.control import ControlRefused, add_fault
from chutes_autopilot.demo.faults import FAULT_LIMIT, FaultBoard, FaultKind
from chutes_autopilot.demo.seen import SEEN_BYTES, SEEN_REQUESTS, SeenRequest, SeenRequests, Tally

FIRST, SECOND = simulated_models()[:2]
BY_NAME = {key: model for model in (FIRST, SECOND) for key in (model.name, model.chute_id)}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": FIRST.name, **fields}).encode()


@pytest.mark.parametrize(
    "name",
    [
        SECOND.name,
        SECOND.chute_id,
        f"{SECOND.name}:latency",
        f"{SECOND.name}:Throughput",
        f"{SECOND.name}:THINKING",
        f"{SECOND.name}:latency:THINKING",
        f"nobody/unknown, {SECOND.name} ,{FIRST.name}",
    ],
)
def test_a_model_is_found_by_every_spelling_the_platform_knows(name: str) -> None:
    """Name, chute_id, the three suffixes and a list all lead to the chute."""
    assert read_chat(body(model=name), BY_NAME).model is SECOND


@pytest.mark.parametrize(
    ("raw", "status", "detail"),
    [
        (b"{", 400, "Invalid request"),
        (b"[]", 400, "Invalid request"),
        (b'{"model": "\xff"}', 400, "Invalid request"),
        (b"[" * 100_000, 400, "Invalid request"),
        (b"{}", 404, "No matching chute found!"),
        (b'{"model": 3}', 500, "Internal Server Error"),
        (body(stream_options=None), 500, "Internal Server Error"),
        (body(stream=None), 404, "No matching cord found!"),
        (body(model="nobody/unknown"), 404, "model not found: nobody/unknown"),
        (body(model=f"{FIRST.name}:thinking"), 404, f"model not found: {FIRST.name}:thinking"),
        (body(max_tokens=0), 400, "max_tokens must be"),
        (body(n_tokens=1.5), 400, "n_tokens must be"),
        (body(continue_final_message=True), 400, "no text to be continued"),
        (body(continue_final_message=True, messages=[{"content": ["x"]}]), 400, "no text to be continued"),
    ],
)
def test_a_faulty_request_is_refused_as_the_platform_does(raw: bytes, status: int, detail: str) -> None:
    """Status and text are the platform's, its crashes on null included."""
    with pytest.raises(ChatRefused) as refused:
        read_chat(raw, BY_NAME)
    assert refused.value.status == status
    assert detail in refused.value.detail


@pytest.mark.parametrize(
    ("fields", "tokens", "finish_reason"),
    [
        ({}, DEFAULT_TOKENS, "stop"),
        ({"max_tokens": 7}, 7, "length"),
        ({"max_completion_tokens": 900}, 48, "stop"),
        ({"n_tokens": 5000}, 5000, "stop"),
        ({"n_tokens": 5, "max_tokens": 50}, 5, "stop"),
        ({"n_tokens": 50, "max_tokens": 5}, 5, "length"),
    ],
)
def test_the_length_of_an_answer_can_be_asked_for(fields: dict[str, int], tokens: int, finish_reason: str) -> None:
    """n_tokens gives the length, max_tokens bounds it and shows as the finish reason where it cut."""
    call = read_chat(body(**fields), BY_NAME)
    assert (call.tokens, call.finish_reason) == (tokens, finish_reason)


def board() -> FaultBoard:
    return FaultBoard({FIRST.name, SECOND.name})


def kinds(faults: FaultBoard, model: str, count: int) -> list[FaultKind | None]:
    taken = [faults.take(model) for _ in range(count)]
    return [fault and fault.kind for fault in taken]


def test_faults_come_in_their_order_the_models_own_first_and_standing_ones_last() -> None:
    """Counted faults of the model, its standing one, counted faults of any model, in this order; others untouched."""
    faults = board()
    faults.add("500", requests=1)
    faults.add("503", FIRST.name, requests=2)
    faults.add("429", FIRST.name, requests=1)
    assert kinds(faults, FIRST.name, 5) == ["503", "503", "429", "500", None]
    faults.add("401", FIRST.name)
    faults.add("cut", FIRST.name, requests=1)
    assert kinds(faults, SECOND.name, 1) == [None]
    assert kinds(faults, FIRST.name, 3) == ["cut", "401", "401"]
    faults.add("reset", FIRST.name)
    assert kinds(faults, FIRST.name, 1) == ["reset"]
    faults.clear()
    assert kinds(faults, FIRST.name, 1) == [None]


def test_the_faults_of_one_model_can_be_taken_back() -> None:
    """Those of others, and of any model, wait on."""
    faults = board()
    for model in (FIRST.name, SECOND.name, "*"):
        faults.add("503", model)
    faults.clear(FIRST.name)
    assert [fault.model for fault in faults.waiting()] == [SECOND.name, "*"]


def test_the_fault_board_is_bounded() -> None:
    """A full board refuses another fault rather than to grow."""
    faults = board()
    for _ in range(FAULT_LIMIT):
        faults.add("503", requests=1)
    with pytest.raises(ValueError, match="clear them first"):
        faults.add("503", requests=1)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "fault is missing"),
        (b'{"fault": "418"}', "not one that is known"),
        (b'{"fault": ["503"]}', "not one that is known"),
        (b'{"fault": "503", "times": 3}', "unknown keys: times"),
        (b'{"fault": "503", "model": 3}', "model is not a string"),
        (b'{"fault": "503", "model": "nobody/unknown"}', "neither"),
        (b'{"fault": "503", "requests": 0}', "requests is 0"),
        (b'{"fault": "503", "requests": true}', "requests is neither"),
        (b'{"fault": "503", "ms": 5}', "ms is a whole number"),
        (b'{"fault": "slow", "ms": 0}', "a gap of 0.0 s"),
    ],
)
def test_a_wrong_control_request_is_told_what_is_allowed(raw: bytes, why: str) -> None:
    """The text names the mistake and lists every fault, and nothing is put up."""
    faults = board()
    with pytest.raises(ControlRefused) as refused:
        add_fault(faults, raw)
    assert why in str(refused.value)
    assert all(kind in str(refused.value) for kind in FaultKind)
    assert faults.waiting() == ()


def seen(size: int) -> SeenRequest:
    return SeenRequest(b"POST", b"/", (), b"x" * size)


def test_what_was_seen_is_bounded_in_number_and_size() -> None:
    """Old requests give way to new ones; the newest is always there."""
    requests = SeenRequests()
    for size in range(SEEN_REQUESTS + 5):
        requests.keep(seen(size))
    assert len(requests) == SEEN_REQUESTS
    assert len(requests[-1].body) == SEEN_REQUESTS + 4
    requests.keep(seen(SEEN_BYTES))
    assert [len(request.body) for request in requests] == [SEEN_BYTES]


def test_a_tally_wakes_those_who_wait_for_its_count() -> None:
    """A waiter is woken at its count, at once if that is past, and never once it was cancelled."""
    tally = Tally()
    woken: list[int] = []
    tally.when(2).addCallback(woken.append)
    cancelled = tally.when(2).addErrback(lambda failure: None)
    tally.add()
    assert woken == []
    cancelled.cancel()
    tally.add()
    tally.when(1).addCallback(woken.append)
    assert woken == [2, 2]
