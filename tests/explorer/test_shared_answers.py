"""What one replica fetched for the explorer, the others need not fetch."""

from attrs import define, field, frozen
from twisted.internet.defer import Deferred

from chutes_autopilot.explorer_live.shared_answers import SharedAnswers
from chutes_autopilot.upstream.fetch import FetchedAnswer

KEY = (("Authorization", "Bearer cpk_key"),)


@frozen
class Kept:
    body: bytes
    at: float


@define(eq=False)
class Store:
    kept: dict[str, Kept] = field(factory=dict)

    def name(self, kind: str, url: str, *, credential: str = "") -> str:
        return f"{kind} {url} {credential}"

    async def get(self, name: str, newer_than: float = 0.0) -> Kept | None:
        found = self.kept.get(name)
        return found if found is not None and found.at > newer_than else None

    def share(self, name: str, body: bytes, at: float, lifetime: float) -> None:
        self.kept[name] = Kept(body, at)


@define(eq=False)
class Replica:
    """One that asks the platform, which answers with how often it was asked."""

    answers: SharedAnswers
    status: int = 200
    asked: int = 0

    def get(self, url: str = "u", headers: tuple[tuple[str, str], ...] = (), *, anew: bool = False) -> bytes:
        got: list[FetchedAnswer] = []
        how = self.answers.fetch_anew if anew else self.answers.fetch
        Deferred.fromCoroutine(how(self._fetch, url, headers)).addCallback(got.append)
        return got[0].body

    async def _fetch(self, url: str, headers: tuple[tuple[str, str], ...]) -> FetchedAnswer:
        self.asked += 1
        return FetchedAnswer(self.status, None, b"%b %d" % (url.encode(), self.asked))


def test_an_answer_is_taken_over_while_it_is_new() -> None:
    """For half of the time it counts as young, so the age a visitor is shown grows by no more; with another credential
    it is another answer, and what is no 200 is nobody else's."""
    store, now = Store(), [1000.0]
    one, two = (Replica(SharedAnswers(store, 600.0, lambda: now[0])) for _ in range(2))
    assert one.get() == two.get() == b"u 1"
    assert two.get(headers=KEY) == b"u 1"
    assert (one.asked, two.asked) == (1, 1)
    assert one.get(headers=KEY) == b"u 1"
    now[0] += 299.9
    assert (one.get(), one.asked) == (b"u 1", 1)
    now[0] += 0.1
    assert (two.get(), two.asked) == (b"u 2", 2)
    one.status = 503
    one.get("v")
    assert two.get("v") == b"v 3"


def test_the_operator_may_want_the_platform_itself() -> None:
    """Each time, whatever the others have; they get to know the answer."""
    store, now = Store(), [1000.0]
    one, two = (Replica(SharedAnswers(store, 600.0, lambda: now[0])) for _ in range(2))
    one.get()
    assert two.get() == b"u 1"
    assert two.get(anew=True) == b"u 1"
    assert two.asked == 1
    now[0] += 1
    assert two.get(anew=True) == b"u 2"
    assert one.get() == b"u 2"
    assert (one.asked, two.asked) == (1, 2)
