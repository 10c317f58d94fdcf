"""An upstream's error in words of our own, for clients that must not see its: those may repeat the prompt."""

from collections.abc import Mapping

from chutes_autopilot.wire.headers import Header
from chutes_autopilot.wire.http1 import ResponseHead

KEPT_BYTES = 16 * 1024
"""How much of the upstream's words is kept, to be judged by."""


class RewordedHead(ResponseHead):
    """The head of such an error, which knows what it was at first: not to be passed on, but to be judged by.

    :param said_index: the header values of the upstream's own head, by lower-case name.
    :param said: how its body began.
    """

    __slots__ = ("said", "said_index")

    def __init__(
        self, status: int, reason: bytes, headers: tuple[Header, ...], said_index: Mapping[bytes, bytes], said: bytes
    ) -> None:
        super().__init__(status, reason, headers)
        self.said_index = said_index
        self.said = said[:KEPT_BYTES]


def reworded(first: ResponseHead, said: bytes, own: ResponseHead) -> RewordedHead:
    """The head ``own`` of an error in other words than those of ``first``, whose body began with ``said``."""
    index = first.index
    if isinstance(first, RewordedHead):
        index, said = first.said_index, first.said
    return RewordedHead(own.status, own.reason, own.headers, index, said)


def with_headers(head: ResponseHead, headers: tuple[Header, ...]) -> ResponseHead:
    """The same answer with these fields."""
    if isinstance(head, RewordedHead):
        return RewordedHead(head.status, head.reason, headers, head.said_index, head.said)
    return ResponseHead(head.status, head.reason, headers)
