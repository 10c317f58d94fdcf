"""What another replica is told of a request says all that this one would say."""

from collections.abc import Mapping
from typing import Any

from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from chutes_autopilot.observe.record import AttemptRecord, RequestRecord
from chutes_autopilot.policy.failover import Timeouts, begin
from chutes_autopilot.policy.model_field import Direct
from chutes_autopilot.policy.plan import make_plan
from chutes_autopilot.policy.reasons import Reasons, reasons
from chutes_autopilot.relay.exchange import Route
from chutes_autopilot.relay.explain import Explained
from chutes_autopilot.relay.shared_decisions import (
    MAX_AT_ONCE,
    MAX_REASONS,
    PAUSE,
    SharedDecisions,
    pack,
    unpack,
)

PLAN = make_plan("list", (Direct("a:latency", "a"), Direct("b", "b")), None, limit=8)
STATE, FIRST = begin(PLAN, stream=True, timeouts=Timeouts(1, 1, 1), max_attempts=8)


def why(snapshot: int = 0) -> Reasons:
    return reasons(
        asked="a:latency,b",
        mode="list",
        planned=["a", "b"],
        ranking=(),
        considered=(),
        incapable={},
        unwanted={},
        cooling=(),
        snapshot=snapshot,
    )


def a_route(snapshot: int = 0) -> Route:
    return Route(PLAN, STATE, FIRST, why=lambda: why(snapshot))


@define(eq=False)
class Records:
    """What replicas share, at hand."""

    takes: bool = True
    minute: int = 1
    kept: dict[bytes, bytes] = field(factory=dict)
    reasons: dict[bytes, bytes] = field(factory=dict)
    puts: list[tuple[int, int]] = field(factory=list)

    def name(self, request_id: str, owner: bytes) -> bytes:
        return owner + request_id.encode()

    def put(self, records: Mapping[bytes, bytes], reasons: Mapping[bytes, bytes]) -> None:
        self.kept |= records
        self.reasons |= reasons
        self.puts.append((len(records), len(reasons)))

    async def find(self, request_id: str, owner: bytes) -> tuple[bytes, bytes | None] | None:
        data = self.kept.get(self.name(request_id, owner))
        return None if data is None else (data[16:], self.reasons.get(data[:16]))


def over(request_id: str, **members: Any) -> RequestRecord:
    """The record of a request that is over."""
    record = RequestRecord(request_id, 100.0, stream=True, first_attempt=100.5, first_byte=102.0, ended=103.0)
    record.attempts = [AttemptRecord("a:latency", 503, "upstream_503", 101.0, "edge"), AttemptRecord("b", 200)]
    record.selected, record.status, record.outcome = "b", 200, "complete"
    for name, value in members.items():
        setattr(record, name, value)
    return record


def found(decisions: SharedDecisions, request_id: str, owner: bytes) -> Any:
    got: list[Any] = []
    Deferred.fromCoroutine(decisions.find_elsewhere(request_id, owner)).addCallback(got.append)
    return got[0]


TIMES = st.none() | st.floats(100, 200)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@settings(max_examples=40)
@given(
    st.sampled_from(["complete", "cut", "refused", "client_gone"]),
    st.integers(0, 20),
    st.none() | NAMES,
    TIMES,
    TIMES,
    st.booleans(),
)
def test_a_record_is_read_as_it_was_written(
    outcome: Any, attempts: int, name: str | None, first: float | None, ended: float | None, routed: bool
) -> None:
    """As JSON it is what this replica gives, without the reasons and the number of its snapshot."""
    record = RequestRecord("r", 100.0, status=200, selected=name, outcome=outcome, first_byte=first, ended=ended)
    record.first_attempt = 100.0
    record.attempts = [
        AttemptRecord(name or "a:latency", 200, None, first, None, ended, first, routed) for _ in range(attempts)
    ]
    explained = Explained(record, Route(PLAN, STATE, FIRST) if routed else None, "resilient")
    wanted = explained.decision().as_json()
    told = unpack("r", pack(explained), None)
    assert told is not None
    if wanted["attempts_omitted"]:  # what followed the last one that is told of is not told any more
        del wanted["attempts"][-1], told["attempts"][-1]
    assert told == wanted
    assert unpack("another", pack(explained), None) is None


@given(st.binary(max_size=100))
def test_what_is_no_record_is_none(data: bytes) -> None:
    """Whatever is found."""
    assert unpack("r", data, data) is None


def test_others_are_told_once_a_request_is_over() -> None:
    """A moment later, with its reasons, which are written once a minute; its owner alone finds it."""
    clock, records = Clock(), Records()
    decisions = SharedDecisions(records=records, clock=clock)
    route, record = a_route(7), over("r1", outcome=None)
    decisions.keep(Explained(record, route), b"alice")
    clock.advance(PAUSE)
    assert records.puts == []
    record.outcome = "complete"
    decisions.keep(Explained(over("r2"), route), b"alice")
    clock.advance(PAUSE)
    assert records.puts == [(2, 1)]
    assert clock.getDelayedCalls() == [], "nothing is waited for while there is nothing to tell"
    here = Explained(record, route).decision().as_json()
    del here["snapshot"]
    assert found(decisions, "r1", b"alice") == here
    assert found(decisions, "r1", b"bob") is None
    decisions.keep(Explained(over("r3"), a_route(8)), b"alice")
    clock.advance(PAUSE)
    assert len(records.reasons) == 1, "the same reasons of another snapshot are the same"
    records.minute += 1
    decisions.keep(Explained(over("r4"), route), b"alice")
    clock.advance(PAUSE)
    assert records.puts[-1] == (1, 1)


def test_no_more_is_told_than_is_good() -> None:
    """Of many requests the last ones, of many reasons a few; nothing where nothing is taken, nor after the stop."""
    clock, records = Clock(), Records()
    decisions = SharedDecisions(records=records, clock=clock)
    for number in range(2 * MAX_AT_ONCE):
        decisions.keep(Explained(over(f"{number:03d}"), a_route()), b"")
    clock.advance(PAUSE)
    assert records.puts == [(MAX_AT_ONCE, 1)]
    assert min(records.kept) == b"%03d" % MAX_AT_ONCE
    for number in range(2 * MAX_REASONS):
        route = Route(PLAN, STATE, FIRST, why=lambda number=number: reasons_of(number))
        decisions.keep(Explained(over(f"{number:03d}"), route), b"")
    clock.advance(PAUSE)
    assert records.puts[-1] == (2 * MAX_REASONS, MAX_REASONS)
    told = found(decisions, f"{2 * MAX_REASONS - 1:03d}", b"")
    assert told["selected"] == "b"
    assert "asked" not in told
    records.takes = False
    decisions.keep(Explained(over("r"), None), b"")
    clock.advance(PAUSE)
    records.takes = True
    decisions.keep(Explained(over("r"), None), b"")
    decisions.stop()
    assert clock.getDelayedCalls() == []
    decisions.keep(Explained(over("r"), None), b"")
    assert clock.getDelayedCalls() == []
    assert b"r" not in records.kept


def reasons_of(number: int) -> Reasons:
    return reasons(
        asked=f"model-{number}",
        mode="direct",
        planned=["a"],
        considered=(),
        ranking=(),
        incapable={},
        unwanted={},
        cooling=(),
    )
