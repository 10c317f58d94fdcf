"""The record of a finished request explains it, however it ended."""

import gc
import json
import weakref

import attrs
import pytest
from resilient_bench import ALIAS, CLIENT, Bench

from chutes_autopilot.control.snapshots import SnapshotHolder
from chutes_autopilot.errors import ApiError
from chutes_autopilot.observe.record import AttemptRecord, RequestRecord
from chutes_autopilot.policy.failover import Timeouts, begin
from chutes_autopilot.policy.model_field import Direct
from chutes_autopilot.policy.plan import make_plan
from chutes_autopilot.policy.reasons import Reasons, reasons
from chutes_autopilot.relay.call import ChatCall
from chutes_autopilot.relay.exchange import Route
from chutes_autopilot.relay.explain import Explained
from chutes_autopilot.wire.headers import EXPLAIN

PLAN = make_plan("list", (Direct("a:latency", "a"), Direct("b", "b")), None, limit=8)


def why() -> Reasons:
    return reasons(
        asked="a:latency,b",
        mode="list",
        planned=["a", "b"],
        ranking=(),
        considered=(),
        incapable={},
        unwanted={},
        cooling=(),
    )


def test_a_decision_keeps_no_catalog() -> None:
    """Hundreds of them are kept, made under as many: of the snapshot they have what explains the order."""
    bench = Bench()
    bench.ask().client_gone()
    holder = bench.relay.snapshots
    assert isinstance(holder, SnapshotHolder)
    old = weakref.ref(holder.current)
    holder.current = attrs.evolve(holder.current, id=2)
    bench.ask().client_gone()
    gc.collect()
    assert old() is None
    explained = bench.relay.decisions.newest(2)[1].decision().reasons
    assert explained is not None
    assert (explained.snapshot, [c.place for c in explained.candidates]) == (1, [1, 2, 3])


@pytest.mark.parametrize(
    ("ending", "followed"),
    [
        ({"outcome": "complete", "selected": "b", "status": 200}, "committed"),
        ({"outcome": "cut", "selected": "b", "status": 200, "error": "upstream_stream_truncated"}, "committed"),
        ({"outcome": "refused", "error": "deadline_exceeded", "status": 504}, "gave_up"),
        ({"outcome": "client_gone", "status": 499}, "client_left"),
    ],
)
def test_nothing_is_missing_once_a_request_is_over(ending: dict[str, object], followed: str) -> None:
    """Each attempt has its times, its outcome and what followed, under the names by which models are counted."""
    state, first = begin(PLAN, stream=True, timeouts=Timeouts(1, 1, 1), max_attempts=8)
    record = RequestRecord("r", 100.0, stream=True, first_attempt=100.5, ended=103.0)
    record.attempts = [AttemptRecord("a:latency", failure="upstream_503", failed=101.0), AttemptRecord("b")]
    for name, value in ending.items():
        setattr(record, name, value)
    if record.selected is not None:
        record.attempts[1].status = 200
    decision = Explained(record, Route(PLAN, state, first, why=why)).decision()
    assert decision.missing() == ()
    one, other = decision.attempts
    assert (one.model, one.sent, one.started, one.ended, one.followed) == ("a", "a:latency", 0.5, 1.0, "next")
    assert (other.model, other.started, other.ended, other.followed) == ("b", 1.0, 3.0, followed)


def test_a_request_that_was_refused_at_once_lacks_nothing_either() -> None:
    """Its error is the explanation."""
    record = RequestRecord("r", 100.0, ended=100.0, outcome="refused", status=400, error="unknown_model")
    assert Explained(record, None).decision().missing() == ()


@pytest.mark.parametrize(
    ("ending", "continuations", "followed"),
    [
        (
            {"outcome": "complete", "continued_by": "b"},
            [AttemptRecord("b", 400, "continuation_refused", 102.0, "prefill"), AttemptRecord("b", 200)],
            ["continued", "again", "committed"],
        ),
        (
            {"outcome": "cut", "error": "upstream_stream_truncated"},
            [AttemptRecord("b", 503, "upstream_503", 102.0), AttemptRecord("c", None, "upstream_connect_error", 103.0)],
            ["committed", "next", "gave_up"],
        ),
        ({"outcome": "client_gone"}, [AttemptRecord("b")], ["committed", "client_left"]),
    ],
)
def test_a_stream_that_broke_off_is_explained_too(
    ending: dict[str, object], continuations: list[AttemptRecord], followed: list[str]
) -> None:
    """The attempts to continue it follow the one that was committed to, which says how it broke off."""
    state, first = begin(PLAN, stream=True, timeouts=Timeouts(1, 1, 1), max_attempts=8)
    record = RequestRecord("r", 100.0, stream=True, first_attempt=100.5, ended=104.0, selected="a:latency", status=200)
    record.attempts = [AttemptRecord("a:latency", 200, failed=101.0, detail="upstream_stream_idle")]
    record.continuations = continuations
    for name, value in ending.items():
        setattr(record, name, value)
    decision = Explained(record, Route(PLAN, state, first, why=why)).decision()
    assert decision.missing() == ()
    assert [attempt.followed for attempt in decision.attempts] == followed
    assert [(attempt.ended, attempt.detail) for attempt in decision.attempts][:1] == [(1.0, "upstream_stream_idle")]
    assert decision.attempts[1].started == 1.0


def test_where_no_model_is_left_each_is_named_with_what_it_lacks() -> None:
    """In the record, and in the header of the error where the client asked for it."""
    bench = Bench()
    asking = attrs.evolve(CLIENT, explain=True)
    with pytest.raises(ApiError) as refusal:
        bench.ask(client=asking, messages=[{"role": "user", "content": "x" * 2_000_000}])
    (kept,) = bench.relay.decisions.newest(1)
    decision = kept.decision()
    assert decision.missing() == ()
    assert decision.reasons is not None
    assert (decision.reasons.mode, decision.reasons.planned) == ("alias", ())
    assert [(c.model, c.verdict, c.reason) for c in decision.reasons.candidates] == [
        (model, "incapable", "context") for model in ("a/A", "b/B", "c/C")
    ]
    explained = dict(refusal.value.headers)[EXPLAIN]
    assert b"incapable=a/A:context,b/B:context,c/C:context" in explained


@pytest.mark.parametrize(
    ("asked", "verdict", "reason"), [("a/A,b/B", "incapable", "context"), (f"{ALIAS}:tee", "unwanted", "tee")]
)
def test_a_plan_for_what_nobody_can_serve_says_what_each_model_lacks(asked: str, verdict: str, reason: str) -> None:
    """Beside the error that the request itself would get, as its record would say it."""
    bench = Bench()
    body = json.dumps({"model": asked, "messages": [{"role": "user", "content": "x" * 2_000_000}]}).encode()
    call = ChatCall(b"POST", b"/v1/chat/completions", b"", body, "r", CLIENT)
    refusals = []
    for method in (bench.relay.explain, lambda call: bench.relay.open(call, bench.downstream, bench._ended)):
        with pytest.raises(ApiError) as refusal:
            method(call)
        refusals.append(json.loads(refusal.value.body()))
    planned, refused = refusals
    (kept,) = bench.relay.decisions.newest(1)
    told = kept.decision().as_json()
    assert planned["error"] == refused.pop("error")
    assert (planned["error"]["code"], refused) == ("no_capable_candidate", {})
    assert (planned["candidates_sent"], planned["order"]) == ([], [])
    for name in ("asked", "mode", "needs", "candidates", "order"):
        assert planned[name] == told[name]
    assert {(c["verdict"], c["reason"]) for c in planned["candidates"]} == {(verdict, reason)}


@pytest.mark.parametrize(
    ("max_attempts", "tried", "status"), [(8, ["b/B", "a/A"], 200), (1, ["b/B"], 503)], ids=["last", "budget"]
)
def test_a_cooling_item_of_a_list_is_tried_when_all_others_have_failed(
    max_attempts: int, tried: list[str], status: int
) -> None:
    """Within the attempts allowed; the record says so, and the header that the order is not the client's."""
    bench = Bench(None, max_attempts=max_attempts)
    bench.fails("a/A")
    bench.ask("a/A,b/B", stream=False)
    assert bench.models == ["b/B"]
    bench.last.answers(503, b"busy")
    if len(tried) > 1:
        bench.last.answers(200, b"{}")
    assert (bench.models, bench.records[-1].status) == (tried, status)
    assert b"x-chutes-autopilot-skipped: a/A=cooling\r\n" in bench.downstream.own
    (kept,) = bench.relay.decisions.newest(1)
    decision = kept.decision()
    assert (decision.missing(), decision.reasons and decision.reasons.planned) == ((), tuple(tried))
    assert {c.model: c.verdict for c in (decision.reasons.candidates if decision.reasons else ())} == {
        "a/A": "cooling",
        "b/B": "planned",
    }
    assert [(a.model, a.failure, a.followed) for a in decision.attempts] == [
        ("b/B", "upstream_503", "next" if len(tried) > 1 else "committed"),
        ("a/A", None, "committed"),
    ][: len(tried)]
    assert bench.relay.health.is_cooling("a/A", bench.clock.seconds()) is (len(tried) == 1)


def test_a_last_resort_is_bound_to_the_requests_deadline() -> None:
    """What it may take, it has together with the others."""
    bench = Bench(None)
    bench.fails("a/A")
    bench.ask("a/A,b/B", stream=False)
    bench.clock.advance(400)
    bench.last.answers(503)
    bench.clock.advance(201)
    assert (bench.models, bench.error and bench.error.code) == (["b/B", "a/A"], "deadline_exceeded")


def test_a_request_that_cannot_be_sent_does_not_find_out_whether_a_ban_is_over() -> None:
    """The next one does."""
    bench = Bench()
    bench.relay.fuse.banned(bench.key(), None, bench.clock.seconds())
    bench.clock.advance(60)
    for model, code in (("no/such", "unknown_model"), ("a/A", None), ("a/A", "upstream_ban")):
        if code is None:
            bench.ask(model)
            continue
        with pytest.raises(ApiError) as refusal:
            bench.ask(model)
        assert refusal.value.code == code
