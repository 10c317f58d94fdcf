"""The simulator's control path: the JSON that asks a running simulator for faults and for what it has seen."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from chutes_autopilot.demo.faults import ANY_MODEL, PACED, PLACED, SLOW_GAP, Fault, FaultBoard, FaultKind
from chutes_autopilot.demo.seen import SeenRequest

_KEYS = ("fault", "model", "requests", "ms", "after")


class ControlRefused(Exception):
    """The control request was wrong; the text says how and lists what is allowed."""


def add_fault(board: FaultBoard, body: bytes) -> dict[str, Any]:
    """Put up the fault that a request body describes and answer with it.

    Keys: ``fault`` (a FaultKind), ``model`` (a name or ``*``, the default), ``requests`` (a whole number, or null, the
    default, for until cleared); for the slow faults ``ms`` (milliseconds between two events, or until the first), and
    for those that strike at one event of a sealed stream ``after`` (how many come whole before it).

    :raises ControlRefused: for anything else.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise ControlRefused("the body is not JSON; " + _usage()) from None
    if not isinstance(asked, dict):
        raise ControlRefused("the body is not a JSON object; " + _usage())
    if unknown := sorted(set(asked) - set(_KEYS)):
        raise ControlRefused(f"unknown keys: {', '.join(unknown)}; " + _usage())
    kind, model, requests, ms, after = (asked.get(key) for key in _KEYS)
    if not isinstance(kind, str) or kind not in list(FaultKind):
        raise ControlRefused("fault is missing or not one that is known; " + _usage())
    if not isinstance(model, str | None):
        raise ControlRefused("model is not a string; " + _usage())
    if requests is not None and type(requests) is not int:
        raise ControlRefused("requests is neither a whole number nor null; " + _usage())
    if ms is not None and (kind not in PACED or type(ms) is not int):
        raise ControlRefused("ms is a whole number and belongs to the slow faults only; " + _usage())
    if after is not None and (kind not in PLACED or type(after) is not int):
        raise ControlRefused("after is a whole number and belongs to some faults of sealed streams only; " + _usage())
    try:
        fault = board.add(kind, model or ANY_MODEL, requests, SLOW_GAP if ms is None else ms / 1000, after or 0)
    except ValueError as refused:
        raise ControlRefused(f"{refused}; " + _usage()) from None
    return {"simulated": True, **_fault(fault)}


def faults_answer(board: FaultBoard) -> dict[str, Any]:
    """The faults still due, and the kinds there are."""
    return {"simulated": True, "faults": [_fault(fault) for fault in board.waiting()], "allowed": list(FaultKind)}


def requests_answer(requests: Iterable[SeenRequest], counts: Mapping[str, int]) -> dict[str, Any]:
    """The chat requests as they came; bytes that are no UTF-8 show as replacement characters."""
    return {
        "simulated": True,
        **counts,
        "requests": [
            {
                "method": seen.method.decode("latin-1"),
                "path": seen.path.decode("latin-1"),
                "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in seen.headers],
                "body": seen.body.decode("utf-8", "replace"),
            }
            for seen in requests
        ],
    }


def _fault(fault: Fault) -> dict[str, Any]:
    shown: dict[str, Any] = {"fault": fault.kind, "model": fault.model, "requests": fault.requests}
    if fault.kind in PACED:
        shown["ms"] = round(fault.gap * 1000)
    if fault.kind in PLACED:
        shown["after"] = fault.after
    return shown


def _usage() -> str:
    return (
        'expected {"fault": one of ' + ", ".join(FaultKind) + ', "model": "*" or a name of GET /v1/models, '
        '"requests": a whole number from 1 or null, "ms": for '
        + ", ".join(kind for kind in FaultKind if kind in PACED)
        + ', "after": for '
        + ", ".join(kind for kind in FaultKind if kind in PLACED)
        + "}"
    )
