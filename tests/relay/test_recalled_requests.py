"""A request of a client that another replica may know: where it goes, and what record it leaves."""

from resilient_bench import Bench
from twisted.internet.defer import Deferred

from chutes_autopilot.policy.stickiness import StickyChoice


def test_a_recalled_request_goes_where_its_client_was_and_leaves_one_record() -> None:
    """It is explained by the route it took, not by the one it would have taken had nobody known its client."""
    bench, recalling = Bench(None), Deferred[StickyChoice | None]()
    keys: list[bytes] = []

    def recall(key: bytes, known: bool) -> Deferred[StickyChoice | None]:
        assert not known
        keys.append(key)
        return recalling

    bench.relay.recall = recall
    bench.ask(stream=False)
    assert bench.models == []
    bench.relay.sticky.put(keys[0], StickyChoice("c/C"))
    recalling.callback(StickyChoice("c/C"))
    assert bench.models == ["c/C"]
    bench.last.answers(200, b"{}")
    (kept,) = bench.relay.decisions.newest(9)
    why = kept.decision().reasons
    assert why is not None
    assert (why.sticky, why.planned[0], kept.record.selected) == ("c/C", "c/C", "c/C")


def test_a_client_that_nobody_knows_is_routed_as_without_asking() -> None:
    """One record here too."""
    bench, recalling = Bench(None), Deferred[StickyChoice | None]()
    bench.relay.recall = lambda _key, _known: recalling
    bench.ask(stream=False)
    recalling.callback(None)
    assert bench.models == ["a/A"]
    assert len(bench.relay.decisions.newest(9)) == 1
