"""What reached the simulator, so that a test can compare the upstream's view and wait for it without sleeping."""

from collections import deque
from typing import Generic, TypeVar

from attrs import define, field, frozen
from twisted.internet.defer import Deferred

SEEN_REQUESTS = 200
SEEN_BYTES = 32 * 1024 * 1024
"""Bytes of bodies that are kept in all; the newest request is kept whatever its size."""


@frozen
class SeenRequest:
    """A chat request as it came off the wire.

    :param path: path and query, as they stood in the request line.
    :param headers: in the order and spelling of the wire.
    """

    method: bytes
    path: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = field(repr=False)


@frozen
class SeenSealed(SeenRequest):
    """A sealed request: its body is the clear JSON that the instance found in it, empty where it could not be opened.

    :param sealed_size: bytes on the wire.
    """

    sealed_size: int
    chute_id: str
    instance_id: str
    nonce: str


Seen = TypeVar("Seen", bound=SeenRequest)


class SeenRequests(deque[Seen], Generic[Seen]):
    """The last chat requests, oldest first, bounded in number and in size."""

    held = 0
    """Bytes of the bodies that are kept."""

    def keep(self, new: Seen) -> None:
        """Add the newest, then drop old ones while there are too many or too much."""
        self.append(new)
        self.held += len(new.body)
        while len(self) > SEEN_REQUESTS or (self.held > SEEN_BYTES and len(self) > 1):
            self.held -= len(self.popleft().body)


@define(eq=False)
class Tally:
    """A count that only grows, and that can be waited for."""

    count: int = 0
    _waiting: list[tuple[int, Deferred[int]]] = field(factory=list, init=False)

    def add(self) -> None:
        """Count one more."""
        self.count += 1
        due = [deferred for wanted, deferred in self._waiting if wanted <= self.count]
        self._waiting = [(wanted, deferred) for wanted, deferred in self._waiting if wanted > self.count]
        for deferred in due:
            deferred.callback(self.count)

    def when(self, wanted: int) -> Deferred[int]:
        """Fires with the count once it is at least ``wanted``, at once if it is so already."""
        deferred: Deferred[int] = Deferred(self._forget)
        if wanted <= self.count:
            deferred.callback(self.count)
        else:
            self._waiting.append((wanted, deferred))
        return deferred

    def _forget(self, cancelled: Deferred[int]) -> None:
        self._waiting = [(wanted, deferred) for wanted, deferred in self._waiting if deferred is not cancelled]
