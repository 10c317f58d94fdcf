"""Answers of the platform for the explorer that one replica fetched and the others take over."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from attrs import define

from chutes_autopilot.explorer_live.proxied import Fetch
from chutes_autopilot.upstream.fetch import FetchedAnswer

NEW_SHARE = 0.5
"""An answer another replica fetched counts as new for this share of the time that an answer is young. So a document of
which each replica wants a new one as soon as its own is old is fetched once or twice in that time, by whoever is first.
"""


class Body(Protocol):
    """An answer of the platform, and when it was fetched (Unix time)."""

    @property
    def body(self) -> bytes: ...

    @property
    def at(self) -> float: ...


class Bodies(Protocol):
    """Where answers are shared (storage.shared_bodies)."""

    def name(self, kind: str, url: str, /, *, credential: str = "") -> str: ...

    def get(self, name: str, newer_than: float = 0.0, /) -> Awaitable[Body | None]: ...

    def share(self, name: str, body: bytes, at: float, lifetime: float, /) -> None: ...


@define(eq=False)
class SharedAnswers:
    """Goes before a fetch.

    :param duration: seconds for which an answer counts as young.
    :param now: Unix time, seconds.
    """

    _bodies: Bodies
    _duration: float
    _now: Callable[[], float]

    async def fetch(self, fetch: Fetch, url: str, headers: tuple[tuple[str, str], ...]) -> FetchedAnswer:
        """The answer of another replica where it is new, else a call of the platform, which the others get to know."""
        shared = await self._bodies.get(self._name(url, headers), self._now() - self._duration * NEW_SHARE)
        if shared is not None:
            return FetchedAnswer(200, None, shared.body)
        return await self.fetch_anew(fetch, url, headers)

    async def fetch_anew(self, fetch: Fetch, url: str, headers: tuple[tuple[str, str], ...]) -> FetchedAnswer:
        """A call of the platform whatever the others have, which get to know the answer."""
        answer = await fetch(url, headers)
        if answer.status == 200:
            self._bodies.share(self._name(url, headers), answer.body, self._now(), self._duration)
        return answer

    def _name(self, url: str, headers: tuple[tuple[str, str], ...]) -> str:
        # what is answered to the operator's key is for those who have the same one
        return self._bodies.name("document", url, credential=dict(headers).get("Authorization", ""))
