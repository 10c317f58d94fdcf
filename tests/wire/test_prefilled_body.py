"""A request asked once more with the beginning of its answer: what may be, and what is sent."""

import json
from typing import Any

import pytest

from chutes_autopilot.wire.prefill import read_continuable

MESSAGES = [{"role": "user", "content": "hi"}]


def body(**members: Any) -> bytes:
    return json.dumps({"model": "a", "stream": True, "messages": MESSAGES, **members}).encode()


def test_the_text_so_far_becomes_the_last_message() -> None:
    """In vLLM's and SGLang's spelling; all else is said as it was, numbers to the digit."""
    data = body(seed=1).replace(b'"seed": 1', b'"temperature": 0.70, "seed": 12345678901234567890')
    continuable = read_continuable(data)
    assert continuable is not None
    sent = continuable.prefilled("b/B", 'half an "answer\n')
    assert b'"temperature":0.70' in sent
    assert b'"seed":12345678901234567890' in sent
    read = json.loads(sent)
    assert read["messages"] == [*MESSAGES, {"role": "assistant", "content": 'half an "answer\n'}]
    assert (read["model"], read["continue_final_message"], read["add_generation_prompt"]) == ("b/B", True, False)


@pytest.mark.parametrize(
    "members",
    [
        {"tools": [], "n": 1, "logprobs": False, "response_format": None, "modalities": ["text"]},
        {"response_format": {"type": "text"}, "add_generation_prompt": True, "top_logprobs": 0},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ],
)
def test_one_plain_text_may_be_continued(members: dict[str, Any]) -> None:
    """Also where that is said in so many words."""
    assert read_continuable(body(**members)) is not None


@pytest.mark.parametrize(
    "members",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"functions": [{"name": "f"}]},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"n": 2},
        {"logprobs": True},
        {"modalities": ["text", "audio"]},
        {"guided_regex": "a+"},
        {"continue_final_message": True},
        {"add_generation_prompt": False},
        {"echo": True},
        {"messages": [*MESSAGES, {"role": "assistant", "content": "I"}]},
        {"messages": []},
        {"messages": "hi"},
    ],
)
def test_anything_else_may_not(members: dict[str, Any]) -> None:
    """Tools, JSON mode, several choices, probabilities, grammars, a prefill of the client's own, what is malformed."""
    assert read_continuable(body(**members)) is None


def test_text_that_no_reader_takes_is_not_continued() -> None:
    """A lone surrogate would be changed on its way."""
    assert read_continuable(body().replace(b'"hi"', b'"\\ud83d"')) is None
