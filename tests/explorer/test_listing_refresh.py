"""The listing kept up to date: asked for afresh, taken from the cache only at the start, old where need be."""

from typing import Any

import pytest
from explorer_samples import chute_json, listing_body
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from chutes_autopilot.explorer.records import CHUTES
from chutes_autopilot.explorer_live.listing import RETRY_SECONDS, ListingRefresh
from chutes_autopilot.explorer_live.proxied import ProxiedAnswer, ProxyError
from chutes_autopilot.explorer_live.sources import Sources

ONE = listing_body(chute_json(1, "m1"))
TWO = listing_body(chute_json(1, "m1"), chute_json(2, "m2"))


class World:
    """A cache that answers as the test says, and the sources."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.answers: list[ProxiedAnswer | ProxyError] = []
        self.asked: list[dict[str, Any]] = []
        self.sources = Sources(lambda work, *given: succeed(work(*given)))
        published: Any = self
        self.listing = ListingRefresh(published, self.sources, self.clock, self.clock.seconds)

    def whole(self, **how: Any) -> Deferred[ProxiedAnswer]:
        self.asked.append(how)
        answer = self.answers.pop(0)
        if isinstance(answer, ProxyError):
            raise answer
        return succeed(answer)

    def refresh(self, *answers: ProxiedAnswer | ProxyError) -> tuple[str, float | None, int]:
        """State, time and size of the listing after these answers."""
        for answer in answers:
            self.answers.append(answer)
            assert Deferred.fromCoroutine(self.listing.refresh()).called
        known = self.sources[CHUTES]
        return known.state, known.fetched_at, len(known.records.items) if known.records else 0


@pytest.fixture
def world() -> World:
    return World()


def answer(outcome: Any, age: int, body: bytes = ONE) -> ProxiedAnswer:
    return ProxiedAnswer(outcome, age, body, 1)


def test_the_first_answer_may_be_of_an_earlier_process(world: World) -> None:
    """What an earlier process had is good enough for the start; later each refresh fetches."""
    assert world.refresh(answer("HIT", 30)) == ("fresh", 970.0, 1)
    assert world.refresh(answer("MISS", 0, TWO)) == ("fresh", 1000.0, 2)
    assert world.asked == [{"fresh": False, "anew": False}, {"fresh": True, "anew": False}]
    world.answers.append(answer("MISS", 0))
    assert Deferred.fromCoroutine(world.listing.refresh(anew=True)).called
    assert world.asked[2]["anew"]


def test_an_old_answer_is_shown_as_old(world: World) -> None:
    """Where nothing else was ever had it is taken, else what there is stays; a new one clears it."""
    assert world.refresh(answer("STALE", 900)) == ("stale", 100.0, 1)
    assert world.refresh(answer("STALE", 900, TWO)) == ("stale", 100.0, 1)
    assert world.refresh(answer("MISS", 0, TWO)) == ("fresh", 1000.0, 2)


def test_without_any_answer_it_is_asked_for_again_soon(world: World) -> None:
    """Until there is one; the reason is shown meanwhile."""
    world.answers += [ProxyError(502, "the platform cannot be reached", "Wait."), answer("MISS", 0)]
    done = Deferred.fromCoroutine(world.listing.refresh_until_known())
    assert (world.sources[CHUTES].state, world.sources[CHUTES].trouble) == ("down", "the platform cannot be reached")
    world.clock.advance(RETRY_SECONDS)
    assert done.called
    assert world.sources[CHUTES].state == "fresh"
