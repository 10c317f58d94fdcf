"""What an answer says to a client, read the way SDKs read it: the first thing that makes one raise ends the reading."""

import json
from enum import Enum, auto
from typing import Any

from attrs import evolve, field, frozen

NO_JSON = "an event that is no JSON"
"""What stands in place of a code where an event cannot be read: SDKs raise at it."""


class End(Enum):
    """How an answer ended for the client."""

    CLEAN = auto()
    CUT = auto()
    """The connection ended before the answer did, or before there was one."""
    HUNG = auto()
    """Not at all, for as long as the client waited."""


@frozen
class Heard:
    """What one call brought.

    :param status: 0 where no head came.
    :param text: of the answer, up to its end or the first error.
    :param finished: whether the answer said that it was complete.
    :param error: the code (or else the type) of the error that was told, NO_JSON, or empty.
    :param seconds: from the call to the end.
    :param body: of an answer that is no 2xx.
    """

    status: int
    end: End
    seconds: float
    text: str = ""
    finished: bool = False
    error: str = ""
    body: bytes = field(default=b"", repr=False)


def read_answer(status: int, body: bytes, end: End, seconds: float) -> Heard:
    """Read all that came.

    :param body: the bytes of an event stream for a 2xx, else of anything.
    """
    heard = Heard(status, end, seconds)
    if 200 <= status < 300:
        return _read_events(heard, body)
    try:
        return evolve(heard, body=body, error=_code(json.loads(body)))
    except (ValueError, RecursionError):
        return evolve(heard, body=body)


def _read_events(heard: Heard, body: bytes) -> Heard:
    text, finished = "", False
    for event in body.decode("utf-8", "replace").replace("\r\n", "\n").split("\n\n")[:-1]:  # the last one has no end
        data = "\n".join(line[5:].removeprefix(" ") for line in event.split("\n") if line.startswith("data:"))
        if not data:
            continue
        if data.startswith("[DONE]"):
            return evolve(heard, text=text, finished=True)
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            return evolve(heard, text=text, error=NO_JSON)
        if not isinstance(chunk, dict):
            return evolve(heard, text=text, error=NO_JSON)
        if chunk.get("error"):
            return evolve(heard, text=text, error=_code(chunk) or "error")
        for choice in chunk.get("choices", ()):
            text += choice.get("delta", {}).get("content") or ""
            finished = finished or bool(choice.get("finish_reason"))
    return evolve(heard, text=text, finished=finished)


def _code(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    return str(error.get("code") or error.get("type") or "") if isinstance(error, dict) else ""
