"""A simulated tool call: arguments that a function's JSON schema takes, as far as the schema is a simple one."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen

PIECE = 4
"""Characters of the arguments that count as one token."""
MAX_VALUES = 500
"""Most values in one call's arguments; what a schema asks for beyond that is null."""
MAX_DEPTH = 12
_OPTIONAL_DEPTH = 3
_MAX_ITEMS = 16
_TEXT = "simulated"
_FORMATS = {
    "date": "2025-01-01",
    "date-time": "2025-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "email": "simulated@example.org",
    "uri": "https://example.org/simulated",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


class NoSuchTool(ValueError):
    """The request forces a call of a function that it does not describe."""


@frozen
class ToolCall:
    """One call of a function.

    :param arguments: JSON text.
    """

    name: str
    arguments: str

    @property
    def tokens(self) -> int:
        """How many pieces the arguments come in; at least 1."""
        return max(1, math.ceil(len(self.arguments) / PIECE))

    def pieces(self, count: int) -> list[str]:
        """The first so many pieces of the arguments."""
        return [self.arguments[place * PIECE : (place + 1) * PIECE] for place in range(min(count, self.tokens))]


def forced_call(tools: Any, choice: Any) -> ToolCall | None:
    """The call that a chat request insists on; None where it leaves the choice.

    :param tools: the request's ``tools``, decoded; ``choice`` its ``tool_choice``.
    :raises NoSuchTool: there is no such function.
    """
    match choice:
        case "required":
            wanted = None
        case {"type": "function", "function": {"name": str(wanted)}}:
            pass
        case _:
            return None
    for tool in tools if isinstance(tools, list) else ():
        match tool:
            case {"type": "function", "function": {"name": str(name), **described}} if wanted in (None, name):
                return ToolCall(name, json.dumps(arguments_for(described.get("parameters"))))
    raise NoSuchTool


def arguments_for(schema: Any) -> Any:
    """A value that the schema takes where it is made of types, properties, items, bounds, enumerations and references
    to its own definitions; patterns, conditions and the like are not heeded."""
    whole, left = schema, MAX_VALUES

    def value(schema: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if not isinstance(schema, dict) or left < 0 or depth > MAX_DEPTH:
            return None
        match schema:
            case {"const": constant}:
                return constant
            case {"enum": [first, *_]} | {"anyOf": [first, *_]} | {"oneOf": [first, *_]} | {"allOf": [first]}:
                return first if "enum" in schema else value(first, depth + 1)
            case {"$ref": str(path)}:
                return value(_at(whole, path), depth + 1)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        match kind[0] if isinstance(kind, list) and kind else kind:
            case "object":
                return _object(schema, depth, value)
            case "array":
                items = schema.get("items", {"type": "string"})
                return [value(items, depth + 1) for _ in range(min(_MAX_ITEMS, _bound(schema, "minItems", 1)))]
            case "integer" | "number" as kind:
                return _number(schema, whole=kind == "integer")
            case "boolean":
                return True
            case "null":
                return None
        return _string(schema)

    return {} if schema is None else value(schema, 0)


def _object(schema: Mapping[str, Any], depth: int, value: Callable[[Any, int], Any]) -> dict[str, Any]:
    """With all its properties near the top, further down with those alone that it must have."""
    properties, required = schema.get("properties"), schema.get("required")
    described = properties if isinstance(properties, dict) else {}
    named = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    names = list(dict.fromkeys([*named, *(described if depth < _OPTIONAL_DEPTH else ())]))[:MAX_VALUES]
    return {name: value(described.get(name, {"type": "string"}), depth + 1) for name in names}


def _number(schema: Mapping[str, Any], *, whole: bool) -> float:
    above, below, multiple = (_finite(schema, name) for name in ("exclusiveMinimum", "exclusiveMaximum", "multipleOf"))
    step = 1.0 if whole else 0.001
    lowest = [_finite(schema, "minimum"), None if above is None else above + step]
    highest = [_finite(schema, "maximum"), None if below is None else below - step]
    number = min(1.0, *(bound for bound in highest if bound is not None), math.inf)
    number = max(math.floor(number) if whole else number, *(bound for bound in lowest if bound is not None), -math.inf)
    if multiple is not None and multiple > 0 and math.isfinite(number / multiple):
        number = math.ceil(number / multiple) * multiple
    return math.ceil(number) if whole else number


def _finite(schema: Mapping[str, Any], name: str) -> float | None:
    number: Any = schema.get(name)
    return number if type(number) in (int, float) and abs(number) < 1e15 else None


def _string(schema: Mapping[str, Any]) -> str:
    text = _FORMATS.get(str(schema.get("format")), _TEXT)
    return text.ljust(min(1000, _bound(schema, "minLength", 0)), "x")[: _bound(schema, "maxLength", 1000)]


def _bound(schema: Mapping[str, Any], name: str, usual: int) -> int:
    number = schema.get(name)
    return number if type(number) is int and number >= 0 else usual


def _at(whole: Any, path: str) -> Any:
    """What a reference within the schema points at (RFC 6901); None where nothing is there."""
    place = whole
    for step in path.removeprefix("#").split("/")[1:]:
        place = place.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(place, dict) else None
    return place
