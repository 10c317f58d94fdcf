"""What kind of 429 an attempt's answer is, whoever worded it."""

from time import time

from chutes_autopilot.policy.rate_limits import RateLimit, read_rate_limit
from chutes_autopilot.wire.http1 import ResponseHead
from chutes_autopilot.wire.reworded import RewordedHead

RATE_LIMITED = 429


def rate_limit_of(head: ResponseHead, body: bytes) -> RateLimit | None:
    """Judge a 429 by what the upstream itself has said; None where it is none.

    :param body: its beginning, as far as it is known.
    """
    if head.status != RATE_LIMITED:
        return None
    if isinstance(head, RewordedHead):
        return read_rate_limit(head.said_index, head.said, time())
    return read_rate_limit(head.index, body, time())
