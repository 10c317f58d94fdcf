"""What the page says of requests: why each got its model, and nothing of who asked."""

from typing import Any

import attrs
import pytest

from chutes_autopilot.explorer.picks import OTHERS, Totals, sentence, unanswered, went, without_client
from chutes_autopilot.explorer_live.decided import Decided
from chutes_autopilot.observe.record import AttemptRecord, RequestRecord
from chutes_autopilot.policy.decision import AttemptView, Decision, RecentDecisions
from chutes_autopilot.policy.ranking import Ranked
from chutes_autopilot.policy.reasons import Reasons, reasons
from chutes_autopilot.policy.resilience import HEDGE_LOST
from chutes_autopilot.relay.explain import Explained

RANKING = tuple(
    Ranked(name, 9.0 - place, 4.0, 0.25, 0.0, 0.0, 0.2, 0.0, name, None) for place, name in enumerate("abcd")
)
FAILED = AttemptView("a", 0.0, 0.1, 503, "upstream_503", "next", sent="a:secret")
ANSWERED = AttemptView("b", 0.1, 0.4, 200, None, "committed")
BROKEN = AttemptView("b", 0.1, 0.4, 200, None, "continued", "upstream_stream_truncated")
WENT_ON = AttemptView("c", 0.4, 0.9, 200, None, "committed", "prefill")
AGAIN = AttemptView("b", 0.0, 0.1, 500, "upstream_server_error", "again", waited=0.05)
SLOW, NONE_FASTER = (AttemptView(name, at, 0.4, None, "hedge_lost", "outrun") for name, at in (("a", 0.0), ("c", 0.3)))


def why(**changed: Any) -> Reasons:
    given: dict[str, Any] = {
        "asked": "secret",
        "mode": "alias",
        "planned": ["a", "b"],
        "ranking": RANKING,
        "considered": "abcd",
        "incapable": {},
        "unwanted": {},
        "cooling": (),
    }
    return reasons(**given | changed)


def decided(reasons: Reasons | None, **changed: Any) -> Decision:
    usual: dict[str, Any] = {"attempts": (ANSWERED,), "selected": "b", "status": 200, "outcome": "complete"}
    return Decision("secret", 60.75, True, "standard", reasons, **{**usual, **changed})


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        (decided(why()), "Number 1 of the ranking answered."),
        (
            decided(why(planned=["c"], incapable={"a": "image"}, cooling=["b", "d"])),
            "Number 3 of the ranking (passed over: 1 no image, 1 cooling down) answered.",
        ),
        (decided(why(mode="list", unwanted={"c": "tee"})), "The first of the list that was sent "
                                                           "(passed over: 1 not tee) answered."),
        (
            decided(why(mode="list", planned=["b", "a"], cooling=["a"])),
            "The first of the list that was sent (passed over: 1 cooling down) answered.",
        ),
        (decided(why(planned=["a", "b"], cooling=["a", "b"])), "Number 1 of the ranking answered."),
        (decided(why(mode="direct", planned=["x"], cooling=["x"])), "The model that was named answered."),
        (decided(why(sticky="a")), "Its client's last choice answered."),
        (decided(why(sticky="z"), status=404), "Number 1 of the ranking answered 404."),
        (decided(why(sorted_by="fast")), "The best by measured first token answered."),
        (decided(why(spread=True)), "The first in its client's own order answered."),
        (
            decided(why(), attempts=(FAILED, ANSWERED)),
            "Number 1 of the ranking came first; after one failure this one answered.",
        ),
        (
            decided(why(), attempts=(FAILED, FAILED, ANSWERED), outcome="cut"),
            "Number 1 of the ranking came first; after 2 failures this one answered, and the answer was cut.",
        ),
        (decided(why(), attempts=(AGAIN, ANSWERED)), "Number 1 of the ranking answered at try 2."),
        (
            decided(why(), attempts=(SLOW, ANSWERED)),
            "Number 1 of the ranking came first and was slow; this one, asked beside it, answered.",
        ),
        (
            decided(why(), attempts=(NONE_FASTER, ANSWERED)),
            "Number 1 of the ranking answered; it was slow, and another was asked beside it in vain.",
        ),
        (
            decided(why(), attempts=(AGAIN, attrs.evolve(AGAIN, failure=None, followed=None)), selected=None,
                    outcome=None),
            "Number 1 of the ranking came first; after one failure it is asked again.",
        ),
        (
            decided(why(), attempts=(BROKEN, attrs.evolve(FAILED, started=0.5), WENT_ON)),
            "Number 1 of the ranking answered, and another model went on with what broke off.",
        ),
        (
            decided(why(), attempts=(FAILED, BROKEN, WENT_ON), outcome="cut"),
            "Number 1 of the ranking came first; after one failure this one answered, and another model went on with "
            "what broke off, and the answer was cut.",
        ),
        (
            decided(why(), attempts=(FAILED,), selected=None, outcome="refused", error="upstream_503"),
            "Number 1 of the ranking came first; none answered: upstream_503.",
        ),
        (decided(why(), status=499, outcome="client_gone"), "Number 1 of the ranking answered, and the client left."),
        (
            decided(why(), attempts=(), selected=None, outcome="client_gone"),
            "Number 1 of the ranking came first; the client left.",
        ),
        (decided(why(), attempts=(), selected=None, outcome=None), "Number 1 of the ranking is asked."),
        (decided(why(), outcome=None), "Number 1 of the ranking answers."),
        (
            decided(why(), attempts=(FAILED,), selected=None, outcome=None),
            "Number 1 of the ranking came first; after one failure another is asked.",
        ),
        (decided(None, attempts=(), outcome="refused", error="unknown_model"),
         "Refused before a model was chosen: unknown_model."),
        (decided(None, attempts=(), outcome="client_gone"), "Its client left before a model was chosen."),
    ],
)  # fmt: skip
def test_one_sentence_says_why_and_what_came_of_it(decision: Decision, said: str) -> None:
    """What the first model was chosen by, what stood before it and was passed over, and the end."""
    assert sentence(decision) == said


def test_a_word_for_each_attempt() -> None:
    """A stream that broke off and the one that went on with it both had a 200."""
    assert [went(each) for each in (FAILED, ANSWERED, BROKEN, WENT_ON)] == ["503", "200", "broke off", "went on"]


@pytest.mark.parametrize(
    ("status", "outcome", "error", "why"),
    [
        (200, "complete", None, None),
        (400, "refused", "invalid_json", "refused"),
        (400, "complete", None, "refused"),
        (404, "complete", None, "refused"),
        (429, "complete", None, "failed"),
        (429, "refused", "rate_limit_exceeded", "failed"),
        (429, "refused", "upstream_ban", "refused"),
        (500, "complete", None, "failed"),
        (503, "refused", "no_candidates", "failed"),
        (200, "cut", "upstream_stream_truncated", "failed"),
        (499, "client_gone", None, None),
        (503, None, None, None),
    ],
)
def test_what_clients_sent_wrong_is_told_from_failures(
    status: int, outcome: str | None, error: str | None, why: str | None
) -> None:
    """By the status that it got, be it the platform's or ours; what is under way or was left is neither."""
    assert unanswered(status, outcome, error) == why


def test_nothing_of_the_client_is_left() -> None:
    """Neither id, sent names, remembered choice nor the moment to a fraction; names that are not listed are others."""
    told = without_client(decided(why(sticky="b"), attempts=(FAILED, ANSWERED)), {"a": "a", "b": "b"}.get)
    assert "secret" not in repr(told)
    assert told.received == 60.0
    assert told.reasons is not None
    assert (told.reasons.sticky, told.reasons.sticky_effect, told.reasons.planned) == (None, "sorted", ("a", "b"))
    assert [each.model for each in told.reasons.candidates] == ["a", "b", OTHERS, OTHERS]
    assert [(each.model, each.sent) for each in told.attempts] == [("a", None), ("b", None)]


def test_a_clients_own_order_does_not_tell_it_from_others() -> None:
    """With AUTOPILOT_SPREAD the order and how far down it is tried are the client's; the ranking is everybody's."""
    shown = {
        without_client(decided(why(planned=planned, spread=True)), lambda name: name)
        for planned in (["c", "a"], ["d", "b", "a"], [])
    }
    (told,) = shown
    assert told.reasons is not None
    assert [(each.model, each.verdict) for each in told.reasons.candidates] == [(name, "spare") for name in "abcd"]


def test_the_last_requests_are_read_from_the_records_of_routing() -> None:
    """The newest first, each with a number of its own; the totals count all that are remembered, each once."""
    recent: RecentDecisions[Explained] = RecentDecisions(limit=4)
    seen = Decided(recent, lambda name: name)

    def keep(number: int, *attempts: AttemptRecord, **ended: Any) -> None:
        record = RequestRecord(f"r{number}", number, attempts=list(attempts), outcome="complete")
        for name, value in ended.items():
            setattr(record, name, value)
        recent.keep(Explained(record, None), b"")

    failed = AttemptRecord("a", 503, "upstream_503", 1.0)
    keep(1, status=499, outcome="client_gone")
    keep(2, AttemptRecord("a", 200), selected="a")
    keep(3, failed, AttemptRecord("b", 200), selected="b")
    keep(4, failed, status=503, outcome="refused")
    keep(5, outcome=None)
    assert [(pick.number, pick.decision.received) for pick in seen.picks(2)] == [(5, 5.0), (4, 4.0)]
    assert seen.totals() == Totals(requests=4, at_once=1, moved_on=1, failed=1, under_way=1)
    b, slow = AttemptRecord("b", 200, started=3.0), AttemptRecord("a", None, HEDGE_LOST, 4.0, started=2.0)
    keep(6, failed, AttemptRecord("a", 200), selected="a")
    keep(7, slow, b, selected="b")
    assert seen.totals() == Totals(requests=4, again=1, hedged=1, failed=1, under_way=1)
    keep(8, AttemptRecord("c", None, HEDGE_LOST, 4.0, started=3.5), b, selected="b")
    keep(9, failed, failed, b, selected="b")
    keep(10, failed, AttemptRecord("b", 503), selected="b", status=503)
    assert seen.totals() == Totals(requests=4, at_once=1, moved_on=1, hedged=1, failed=1)
    keep(11, AttemptRecord("a", 404), selected="a", status=404)
    assert seen.totals() == Totals(requests=4, at_once=1, moved_on=1, failed=1, refused=1)
    keep(12, status=499, outcome="client_gone")
    totals = attrs.asdict(seen.totals())
    assert (totals["left"], totals.pop("requests")) == (1, sum(totals.values()))
    assert attrs.asdict(seen.picks(9)[-1].decision)["selected"] == "b"
