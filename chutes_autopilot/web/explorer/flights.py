"""One piece of work for all who want its result at the same time."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

K = TypeVar("K")
T = TypeVar("T")


class Flights(Generic[K, T]):
    """Work that is under way, by what it is for.

    Whoever gives up waiting takes it from nobody else: the work goes on.
    """

    def __init__(self) -> None:
        self._waiting: dict[K, list[Deferred[T]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: K) -> bool:
        return key in self._waiting

    async def result(self, key: K, work: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> T:
        """The result of the work under way for this key; it is begun where there is none."""
        mine: Deferred[T] = Deferred()
        if key in self._waiting:
            self._waiting[key].append(mine)
        else:
            self._waiting[key] = [mine]
            Deferred.fromCoroutine(work()).addBoth(partial(self._landed, key))
        return await mine

    def _landed(self, key: K, result: T | Failure) -> None:
        for waiting in self._waiting.pop(key):
            if not waiting.called:  # else nobody waits for it any more
                waiting.callback(cast(T, result))
