"""Many deadlines of one duration share one delayed call."""

from twisted.internet.task import Clock

from chutes_autopilot.upstream.deadlines import Deadlines


def test_deadlines_started_by_deadlines_that_pass_share_one_delayed_call() -> None:
    """However often they follow one another, one call is pending, and each passes in its time."""
    clock = Clock()
    deadlines = Deadlines(clock)
    passed: list[float] = []

    def again() -> None:
        passed.append(clock.seconds())
        deadlines.start(2.0, again)

    deadlines.start(2.0, again)
    clock.advance(1)
    deadlines.start(2.0, again)
    for _ in range(6):
        clock.advance(1)
        assert len(clock.getDelayedCalls()) == 1
    assert passed == [2, 3, 4, 5, 6, 7]
    deadlines.stop()
    assert not clock.getDelayedCalls()
