import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.policy.decision import MAX_ATTEMPTS, AttemptView, Decision, RecentDecisions
from chutes_autopilot.policy.ranking import Ranked
from chutes_autopilot.policy.reasons import MAX_CANDIDATES, Reasons, reasons


def ranked(model: str, score: float) -> Ranked:
    return Ranked(model, score, 4.0, 0.25, 0.0, 0.05, 0.2, 0.0, model, None)


RANKING = tuple(ranked(name, 9 - place) for place, name in enumerate("abcdef"))


def why(**changed: Any) -> Reasons:
    given: dict[str, Any] = {
        "asked": "chutesai/AutoPilot:tee",
        "mode": "alias",
        "planned": ("c", "e"),
        "ranking": RANKING,
        "considered": "abcdef",
        "incapable": {"a": "image"},
        "unwanted": {"b": "tee"},
        "cooling": ("d",),
    }
    return reasons(**given | changed)


def test_every_candidate_has_its_verdict() -> None:
    """The planned ones first, then those left out with the reason, then the spare ones; each with its place."""
    found = [(c.model, c.verdict, c.reason, c.place) for c in why().candidates]
    assert found == [
        ("c", "planned", None, 3),
        ("e", "planned", None, 5),
        ("a", "incapable", "image", 1),
        ("b", "unwanted", "tee", 2),
        ("d", "cooling", "failed repeatedly", 4),
        ("f", "spare", None, 6),
    ]


def test_the_score_comes_in_its_parts() -> None:
    """Whoever reads the record can work out the score."""
    assert why().as_json()["candidates"][0] == {
        "model": "c",
        "verdict": "planned",
        "place": 3,
        "score": 7,
        "parts": {"active_instances": 4, "utilization": 0.25, "rate_limit": 0, "scale_bonus": 0.05},
    }


def test_an_order_by_own_measurements_says_what_it_went_by() -> None:
    """The kind of measurement, and the value of every candidate that has one."""
    found = why(sorted_by="throughput", measured={"c": 41.5, "a": 7.0})
    assert {c["model"]: c.get("measured") for c in found.as_json()["candidates"]} == {
        **dict.fromkeys("bdef"),
        "a": 7.0,
        "c": 41.5,
    }
    assert (found.as_json()["sorted_by"], why().as_json()["sorted_by"]) == ("tokens_per_second", None)
    assert b"; sorted=tokens_per_second; " in attrs.evolve(COMPLETE, reasons=found).summary()


def test_a_direct_model_stands_alone() -> None:
    """Other models are no candidates for it, and it need not be ranked."""
    found = why(mode="direct", planned=("x",), considered=(), incapable={}, unwanted={}, cooling=())
    assert [c.as_json() for c in found.candidates] == [{"model": "x", "verdict": "planned"}]


def test_a_cooling_model_is_told_of_when_it_is_tried_all_the_same() -> None:
    """Where all cool down, the planned ones show as cooling."""
    assert {c.model: c.verdict for c in why(cooling=("c", "d")).candidates}["c"] == "cooling"


@pytest.mark.parametrize(
    ("sticky", "gave_way", "effect"),
    [
        (None, False, "none"),
        ("c", False, "first"),
        ("e", True, "gave_way"),
        ("a", False, "incapable"),
        ("b", False, "unwanted"),
        ("d", False, "cooling"),
        ("f", False, "sorted"),
        ("z", False, "gone"),
    ],
)
def test_what_a_remembered_choice_did(sticky: str | None, gave_way: bool, effect: str) -> None:
    """The record says whether the client's last model came first, and why not."""
    assert why(sticky=sticky, gave_way=gave_way).sticky_effect == effect


COMPLETE = Decision(
    request_id="r1",
    received=1_800_000_000.0,
    stream=True,
    profile="standard",
    reasons=why(sticky="d"),
    attempts=(
        AttemptView("c", 0.001, 0.5, 503, "upstream_503", "next"),
        AttemptView("e", 0.5, 0.9, 200, None, "committed", sent="e:THINKING"),
    ),
    selected="e",
    status=200,
    first_byte=0.9,
    ended=2.0,
    outcome="complete",
)


def test_the_record_as_json() -> None:
    """Times in milliseconds, names as they were sent, nothing but plain JSON values."""
    shown = json.loads(json.dumps(COMPLETE.as_json()))
    assert shown["order"] == ["c", "e"]
    assert shown["sticky"] == {"model": "d", "effect": "cooling"}
    assert shown["attempts"][1] == {
        "model": "e",
        "sent": "e:THINKING",
        "started_ms": 500,
        "ended_ms": 900,
        "status": 200,
        "failure": None,
        "detail": None,
        "probe": False,
        "waited_ms": None,
        "followed": "committed",
    }
    assert (shown["selected"], shown["first_byte_ms"], shown["total_ms"]) == ("e", 900, 2000)


def test_the_summary_is_one_line() -> None:
    """A response header says which model, why, and what was tried before."""
    assert COMPLETE.summary() == (
        b"selected=e; mode=alias; place=5; score=5.00; sticky=cooling; attempts=c:upstream_503,e:200; "
        b"incapable=a:image; unwanted=b:tee; cooling=d"
    )


def test_a_summary_without_room_counts_what_was_passed_over() -> None:
    """Many names push nothing else out of the header: their number stands in their place."""
    names = [f"org/model-{number}" for number in range(100)]
    unwanted = dict.fromkeys(names, "tee" * 10)
    found = why(planned=("e",), considered=("e", *names), incapable={}, unwanted=unwanted, cooling=())
    assert attrs.evolve(COMPLETE, reasons=found).summary() == (
        b"selected=e; mode=alias; place=5; score=5.00; attempts=c:upstream_503,e:200; unwanted=31; omitted=69"
    )


def test_a_finished_request_explains_itself() -> None:
    """Nothing is missing from a whole record, nor from one of a refusal, an error or a client that left."""
    assert COMPLETE.missing() == ()
    refused = attrs.evolve(COMPLETE, selected=None, error="no_capable_candidate", attempts=(), outcome="refused")
    assert refused.missing() == attrs.evolve(refused, reasons=None).missing() == ()
    left = AttemptView("c", 0.1, 0.2, followed="client_left")
    assert attrs.evolve(refused, error=None, outcome="client_gone", attempts=(left,)).missing() == ()


@pytest.mark.parametrize(
    ("without", "missing"),
    [
        ({"outcome": None}, "the end"),
        ({"ended": None}, "the end"),
        ({"reasons": None}, "the reasons"),
        ({"selected": None}, "the error"),
        ({"selected": "c"}, "the commit"),
        ({"attempts": ()}, "the commit"),
        ({"attempts": (attrs.evolve(COMPLETE.attempts[1], ended=None),)}, "the end of attempt 1"),
        ({"attempts": (attrs.evolve(COMPLETE.attempts[1], followed=None),)}, "the end of attempt 1"),
        ({"attempts": (attrs.evolve(COMPLETE.attempts[1], status=None),)}, "the outcome of attempt 1"),
        ({"reasons": attrs.evolve(why(), candidates=why().candidates[1:])}, "the verdict on c"),
    ],
)
def test_what_is_missing_is_named(without: dict[str, Any], missing: str) -> None:
    """Each part that a record lacks is told."""
    assert missing in attrs.evolve(COMPLETE, **without).missing()


names = st.text(max_size=400)
named = st.dictionaries(names, st.sampled_from(["image", "context"]), max_size=50)


@given(
    asked=names,
    planned=st.lists(names, max_size=40, unique=True),
    scores=st.dictionaries(names, st.floats(-1e9, 1e9), max_size=60),
    incapable=named,
    unwanted=named,
    cooling=st.lists(names, max_size=40),
    sticky=st.none() | names,
    attempts=st.lists(names, max_size=30),
)
def test_records_are_bounded_and_plain(
    asked: str,
    planned: list[str],
    scores: dict[str, float],
    incapable: dict[str, str],
    unwanted: dict[str, str],
    cooling: list[str],
    sticky: str | None,
    attempts: list[str],
) -> None:
    """However many candidates, attempts and letters there are, the record stays small and says what it leaves out."""
    found = reasons(
        asked=asked,
        mode="alias",
        planned=planned,
        ranking=[ranked(*item) for item in scores.items()],
        considered=tuple(scores),
        incapable=incapable,
        unwanted=unwanted,
        cooling=cooling,
        sticky=sticky,
    )
    everyone = {*planned, *scores, *incapable, *unwanted, *cooling}
    assert len(found.candidates) == min(MAX_CANDIDATES, len(everyone))
    assert found.omitted == len(everyone) - len(found.candidates)
    views = tuple(AttemptView(name, 0.0, 1.0, None, "upstream_503", "next") for name in attempts)
    decision = Decision("r" * 500, 0.0, False, "standard", found, views, error="x", ended=1.0, outcome="refused")
    assert decision.missing() == ()
    shown = decision.as_json()
    assert len(json.dumps(shown, ensure_ascii=False)) < 64 * 1024
    assert len(shown["attempts"]) + shown["attempts_omitted"] == len(attempts)
    assert len(shown["attempts"]) <= MAX_ATTEMPTS
    summary = decision.summary()
    assert len(summary) <= 1024
    assert all(32 <= byte < 127 for byte in summary)


def test_only_its_own_client_finds_a_decision() -> None:
    """The same id of another client is another request; an unknown one is not found."""
    recent = RecentDecisions()
    other = attrs.evolve(COMPLETE, status=503)
    recent.keep(COMPLETE, b"one")
    recent.keep(other, b"two")
    assert recent.find("r1", b"one") is COMPLETE
    assert recent.find("r1", b"two") is other
    assert recent.find("r1", b"three") is recent.find("r2", b"one") is None


def test_the_newest_decisions_are_kept() -> None:
    """The oldest make room; of two requests with the same id both are listed, and the newer one is found."""
    recent = RecentDecisions(limit=3)
    for name in ("a", "b", "c", "d", "c"):
        recent.keep(attrs.evolve(COMPLETE, request_id=name), b"")
    newest = recent.newest(10)
    assert [decision.request_id for decision in newest] == ["c", "d", "c"]
    assert recent.newest(1) == newest[:1]
    assert recent.find("c", b"") is newest[0]
    assert (recent.find("a", b""), recent.seen) == (None, 5)
    assert "one" not in repr(recent)
