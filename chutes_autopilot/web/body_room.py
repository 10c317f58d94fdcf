"""How much of clients' request bodies the gateway holds at once, over all connections."""

import sys

import attrs

from chutes_autopilot.errors import ApiError

UNCOUNTED_BYTES = 16384
"""Bodies up to this size are not counted: so many for each connection are bound already, and nearly all are that."""


@attrs.define(eq=False)
class BodyRoom:
    """Counts the bytes of request bodies that were received and are still held; one object for the whole service.

    Each connection is bounded by MAX_REQUEST_BYTES, but thousands of them together could take all the memory there is.

    :ivar limit: the most bytes; may change at any time, what is held stays held.
    :ivar held: bytes held now.
    """

    limit: int = sys.maxsize
    held: int = attrs.field(default=0, init=False)

    def take(self, more: int) -> bool:
        """Count ``more`` bytes; False, and they are not counted, where they are too many."""
        if self.held + more > self.limit:
            return False
        self.held += more
        return True

    def give_back(self, held: int) -> None:
        """So many bytes were dropped."""
        self.held -= held


def no_room() -> ApiError:
    """The refusal of a request whose body does not fit beside those that are held."""
    return ApiError(
        "overloaded",
        "This gateway holds as many bytes of requests as it may at the moment: try again in a second.",
        headers=((b"Retry-After", b"1"),),
    )
