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


def test_a_deadline_that_was_called_off_is_given_out_again_with_a_time_of_its_own() -> None:
    """It passes in its new time, not in the one it was first made for, and its old owner hears nothing."""
    clock = Clock()
    deadlines = Deadlines(clock)
    passed: list[tuple[str, float]] = []
    first = deadlines.start(2.0, lambda: passed.append(("first", clock.seconds())))
    first.cancel()
    clock.advance(1)
    second = deadlines.start(2.0, lambda: passed.append(("second", clock.seconds())))
    third = deadlines.start(2.0, lambda: passed.append(("third", clock.seconds())))
    assert second is first
    assert third is not first
    clock.advance(0.5)
    assert third.restart(2.0)
    assert not third.restart(1.0)
    for _ in range(8):
        clock.advance(0.5)
    assert passed == [("second", 3.0), ("third", 3.5)]
    assert not third.restart(2.0)
    second.cancel()
    assert not clock.getDelayedCalls()


def test_deadlines_that_come_and_go_do_not_pile_up() -> None:
    """A thousand requests one after another need one deadline and one delayed call in a duration."""
    clock = Clock()
    deadlines = Deadlines(clock)
    made = set()
    for _ in range(1000):
        deadline = deadlines.start(600.0, lambda: None)
        made.add(id(deadline))
        deadline.cancel()
        clock.advance(0.001)
    assert len(made) == 1
    assert len(clock.getDelayedCalls()) == 1
