"""What a fault makes of an answer, as plain values: refused, silent, empty, cut, or as it should be."""

import json
from collections.abc import Callable, Iterator
from itertools import chain, islice, repeat

from attrs import frozen

from chutes_autopilot.demo.chat import Asked, ChatCall
from chutes_autopilot.demo.completions import (
    Completion,
    engine_error_event,
    malformed_event,
    stream_pieces,
    unframed_error_tail,
    without_done,
)
from chutes_autopilot.demo.delivery import BATCH, Ending
from chutes_autopilot.demo.faults import FaultKind
from chutes_autopilot.demo.other_apis import Api

CUT_AFTER = 3
"""Pieces of a stream that arrive before it is cut, falls silent or goes wrong in another way."""
GARBAGE = b"\x00\x01 simulated garbage, not HTTP \xff\r\n\r\n"
NOT_TEE = (
    "This chute does not have TEE enabled. "
    "Use the /teeify endpoint to promote the chute to TEE, or remove the X-TEE-Only header."
)
_EDGE_429 = b"""\
<html>
<head><title>429 Too Many Requests</title></head>
<body>
<center><h1>429 Too Many Requests</h1></center>
<hr><center>nginx</center>
</body>
</html>
"""


_TOO_LONG = (
    "Invalid request: This model's maximum context length is 8192 tokens. However, you requested 9000 tokens. "
    "Please reduce the length of the messages."
)
_FILTERED = "Invalid request: content_filter: the prompt was flagged by the content policy"
PING = b": ping\n\n"


@frozen
class Refusal:
    """A complete error answer."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"


@frozen
class Outcome:
    """An answer with status 200, told by its head, its body and its end.

    :param batch: pieces written at once when there is no pacing.
    """

    headers: tuple[tuple[bytes, bytes], ...]
    pieces: Iterator[bytes]
    ending: Ending
    batch: int = BATCH


def refusal_for(kind: FaultKind | None, call: Asked) -> Refusal | None:
    """The error answer of a fault that has one, else None."""
    match kind:
        case FaultKind.NO_INSTANCES:
            return refusal(503, f"No instances available (yet) for chute_id='{call.model.chute_id}'")
        case FaultKind.CAPACITY:
            return refusal(429, "Infrastructure is at maximum capacity, try again later")
        case FaultKind.EDGE_LIMIT:
            return Refusal(429, _EDGE_429, b"text/html")
        case FaultKind.NO_INFRASTRUCTURE:
            return refusal(500, "No infrastructure available to serve request")
        case FaultKind.BAD_AUTHORIZATION:
            return refusal(401, "Invalid token.")
        case FaultKind.CONTEXT_LENGTH:
            return refusal(400, _TOO_LONG)
        case FaultKind.CONTENT_FILTER:
            return refusal(400, _FILTERED)
        # these two are faults of streams; without one the platform still has its status line to say it with
        case FaultKind.ERROR_TAIL if not call.stream:
            return refusal(500, "Unhandled exception: simulated")
        case FaultKind.ERROR_EVENT_FIRST if not call.stream:
            return refusal(503, "simulated engine failure")
        case _:
            return None


def stream_outcome(
    kind: FaultKind | None, answer: Completion, pieces_of: Callable[[Completion], Iterator[bytes]] = stream_pieces
) -> Outcome:
    """The event stream, whole or as the fault leaves it."""
    headers = (
        (b"Content-Type", b"text/event-stream; charset=utf-8"),
        (b"Cache-Control", b"no-cache, no-transform"),
        (b"X-Accel-Buffering", b"no"),
    )
    pieces = pieces_of(answer)
    start = islice(pieces, min(CUT_AFTER, answer.tokens))  # never the last piece, which has the end
    match kind:
        case FaultKind.CUT:
            return Outcome(headers, start, Ending.LOSE)
        case FaultKind.ERROR_TAIL:
            return Outcome(headers, chain(start, (unframed_error_tail(),)), Ending.FINISH)
        case FaultKind.ERROR_EVENT_FIRST:
            return Outcome(headers, iter((engine_error_event(),)), Ending.FINISH)
        case FaultKind.FROZEN:
            return Outcome(headers, start, Ending.HOLD)
        case FaultKind.PINGS:
            return Outcome(headers, chain(start, repeat(PING)), Ending.HOLD)
        case FaultKind.MALFORMED_EVENT:
            return Outcome(headers, chain(start, (malformed_event(answer),), pieces), Ending.FINISH)
        case FaultKind.NO_DONE:
            return Outcome(headers, map(without_done, pieces), Ending.FINISH)
        case _:
            return Outcome(headers, *_body(kind, pieces))


def whole_outcome(kind: FaultKind | None, body: bytes, content_type: bytes = b"application/json") -> Outcome:
    """The answer in one piece, or as the fault leaves it; but for the empty one, Content-Length promises the whole."""
    headers: tuple[tuple[bytes, bytes], ...] = ((b"Content-Type", content_type),)
    if kind is not FaultKind.EMPTY:
        headers += ((b"Content-Length", b"%d" % len(body)),)
    if kind is FaultKind.CUT:
        return Outcome(headers, iter((body[: len(body) // 2],)), Ending.LOSE)
    return Outcome(headers, *_body(kind, iter((body,))))


def plain_outcome(call: ChatCall, api: Api, kind: FaultKind | None, answer: Completion) -> Outcome:
    """The answer in clear, in the form that was asked for."""
    return stream_outcome(kind, answer, api.pieces) if call.stream else whole_outcome(kind, api.whole(answer))


def refusal(status: int, detail: object) -> Refusal:
    """An error answer in the platform's shape."""
    return Refusal(status, json.dumps({"detail": detail}).encode())


def _body(kind: FaultKind | None, pieces: Iterator[bytes]) -> tuple[Iterator[bytes], Ending]:
    match kind:
        case FaultKind.SILENT_HEAD | FaultKind.SILENT_BODY | FaultKind.FROZEN:
            return iter(()), Ending.HOLD
        case FaultKind.EMPTY:
            return iter(()), Ending.FINISH
        case FaultKind.CUT_BEFORE_BODY:
            return iter(()), Ending.LOSE
        case _:
            return pieces, Ending.FINISH
