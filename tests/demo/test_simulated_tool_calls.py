"""The simulator's tool calls: made only where one is forced, and valid against the function's schema."""

import json
from typing import Any

import pytest

from chutes_autopilot.demo.catalog import simulated_models
from chutes_autopilot.demo.chat import ChatCall, ChatRefused, read_chat
from chutes_autopilot.demo.completions import Completion, stream_pieces, whole_answer
from chutes_autopilot.demo.tool_calls import MAX_VALUES, arguments_for

MODEL = simulated_models()[0]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
BOTH = [{"type": "function", "function": {"name": name, "parameters": CITY}} for name in ("weather", "time")]
NAMED = {"type": "function", "function": {"name": "time"}}


def asked(**fields: Any) -> ChatCall:
    return read_chat(json.dumps({"model": MODEL.name, **fields}).encode(), {MODEL.name: MODEL})


@pytest.mark.parametrize(
    ("choice", "called"), [(None, None), ("auto", None), ("none", None), ("required", "weather"), (NAMED, "time")]
)
def test_a_call_is_made_where_it_is_forced(choice: Any, called: str | None) -> None:
    """The first function, or the one that is named; else text."""
    call = asked(tools=BOTH, tool_choice=choice)
    assert (call.tool.name if call.tool else None, call.finish_reason) == (called, "tool_calls" if called else "stop")


@pytest.mark.parametrize("tools", [None, [], "x", [{"type": "function"}], [{"function": {"name": "time"}}], BOTH[:1]])
def test_a_call_of_nothing_is_refused(tools: Any) -> None:
    """Where the function that must be called is not described."""
    with pytest.raises(ChatRefused, match="tool_choice") as refused:
        asked(tools=tools, tool_choice=NAMED)
    assert refused.value.status == 400


def test_only_chat_knows_these_tools() -> None:
    """The other APIs describe theirs in another way, and get text."""
    body = json.dumps({"model": MODEL.name, "tools": [{"name": "x"}], "tool_choice": "required"}).encode()
    assert read_chat(body, {MODEL.name: MODEL}, tools=False).tool is None


@pytest.mark.parametrize("limit", [None, 2, 100])
def test_stream_and_whole_answer_are_one_call(limit: int | None) -> None:
    """The name and the id come first, then the arguments in pieces, as many as there may be tokens."""
    call = asked(tools=BOTH, tool_choice="required", max_tokens=limit)
    answer = Completion("chatcmpl-1", MODEL.name, 7, call.tokens, 5, call.finish_reason, tool=call.tool)
    pieces = list(stream_pieces(answer))
    assert len(pieces) == call.tokens + 1
    *blocks, done, _ = b"".join(pieces).split(b"\n\n")
    assert done == b"data: [DONE]"
    chunks = [json.loads(block.removeprefix(b"data: ")) for block in blocks]
    deltas = [tool for chunk in chunks for choice in chunk["choices"] for tool in choice["delta"].get("tool_calls", ())]
    first, *rest = deltas
    (choice,) = json.loads(whole_answer(answer))["choices"]
    (whole,) = choice["message"]["tool_calls"]
    assert choice["message"]["content"] is None
    assert (first["id"], first["type"], first["function"]["name"]) == (whole["id"], "function", "weather")
    assert [set(each) for each in rest] == [{"index", "function"}] * len(rest)
    arguments = "".join(each["function"]["arguments"] for each in deltas)
    assert arguments == whole["function"]["arguments"]
    assert (choice["finish_reason"], len(arguments)) == (("length", 8) if limit == 2 else ("tool_calls", 21))
    assert limit == 2 or json.loads(arguments) == {"city": "simulated"}


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
            "required": ["value"],
        }
    },
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (None, {}),
        ({}, "simulated"),
        ({"type": "object"}, {}),
        ({"properties": {"a": {"type": ["boolean", "null"]}}, "required": ["b"]}, {"b": "simulated", "a": True}),
        ({"enum": ["x", "y"]}, "x"),
        ({"const": 7}, 7),
        ({"type": "null"}, None),
        ({"anyOf": [{"type": "integer", "minimum": 3}, {"type": "null"}]}, 3),
        ({"type": "integer", "exclusiveMinimum": 4, "multipleOf": 5}, 5),
        ({"type": "integer", "maximum": 0.5}, 0),
        ({"type": "integer", "maximum": -2}, -2),
        ({"type": "number", "exclusiveMaximum": 1}, 0.999),
        ({"type": "number", "minimum": 2.5}, 2.5),
        ({"type": "number", "multipleOf": 1e-310}, 1),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 3}, [True] * 3),
        ({"type": "string", "minLength": 12}, "simulatedxxx"),
        ({"type": "string", "maxLength": 3}, "sim"),
        ({"type": "string", "format": "date"}, "2025-01-01"),
        (TREE, {"value": 1, "next": {"value": 1}}),
        ({"$ref": "#/nowhere"}, None),
    ],
)
def test_arguments_fit_their_schema(schema: Any, value: Any) -> None:
    """Types, bounds, enumerations, and references down to where nothing more is required."""
    assert arguments_for(schema) == value


def test_a_schema_without_end_has_bounded_arguments() -> None:
    """Each level requires ten of the next."""
    names = [f"p{number}" for number in range(10)]
    level = {"type": "object", "properties": {name: {"$ref": "#/$defs/x"} for name in names}, "required": names}
    assert json.dumps(arguments_for({"$defs": {"x": level}, "$ref": "#/$defs/x"})).count("p") < 20 * MAX_VALUES
