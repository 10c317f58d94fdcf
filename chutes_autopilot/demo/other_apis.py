"""The same simulated answers in the shapes of the other APIs: text completions, Responses, Messages."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from attrs import frozen

from chutes_autopilot.demo.completions import (
    DONE,
    Completion,
    answer_tokens,
    compact,
    stream_pieces,
    whole_answer,
)


@frozen
class Api:
    """What an API makes of a request and its answer.

    :param limits: the parameters that bound the answer's length; the first one given counts.
    :param pieces: the stream, one byte string for each token and a last one, none of them empty.
    :param whole: the body of the answer to a request that did not ask for a stream.
    :param tools: whether it can be a tool call.
    """

    limits: tuple[str, ...]
    pieces: Callable[[Completion], Iterator[bytes]]
    whole: Callable[[Completion], bytes]
    tools: bool = False


def _text_pieces(answer: Completion) -> Iterator[bytes]:
    for token in _tokens(answer):
        yield _data(_text_completion(answer, token, None))
    usage = {**_text_completion(answer, "", None), "choices": [], "usage": _usage(answer)}
    yield _data(_text_completion(answer, "", answer.finish_reason)) + _data(usage) + DONE


def _whole_text(answer: Completion) -> bytes:
    text = "".join(_tokens(answer))
    return compact({**_text_completion(answer, text, answer.finish_reason), "usage": _usage(answer)})


def _text_completion(answer: Completion, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {
        "id": _id("cmpl-", answer),
        "object": "text_completion",
        "created": answer.created,
        "model": answer.model,
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}],
    }


def _usage(answer: Completion) -> dict[str, int]:
    total = answer.prompt_tokens + answer.tokens
    return {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.tokens, "total_tokens": total}


def _response_pieces(answer: Completion) -> Iterator[bytes]:
    sent = 0

    def event(name: str, **fields: Any) -> bytes:
        nonlocal sent
        sent += 1
        return _named({"type": f"response.{name}", "sequence_number": sent - 1, **fields})

    item = {"item_id": _id("msg_", answer), "output_index": 0}
    part = {**item, "content_index": 0}
    begun = _response(answer, None)
    opening = event("created", response=begun) + event("in_progress", response=begun)
    opening += event("output_item.added", output_index=0, item=_output(answer, None))
    opening += event("content_part.added", **part, part=_output_text(""))
    text = []
    for token in _tokens(answer):
        text.append(token)
        yield opening + event("output_text.delta", **part, delta=token, logprobs=[])
        opening = b""
    whole = "".join(text)
    closing = event("output_text.done", **part, text=whole, logprobs=[])
    closing += event("content_part.done", **part, part=_output_text(whole))
    closing += event("output_item.done", output_index=0, item=_output(answer, whole))
    yield closing + event(_status(answer), response=_response(answer, whole))


def _whole_response(answer: Completion) -> bytes:
    return compact(_response(answer, "".join(_tokens(answer))))


def _response(answer: Completion, text: str | None) -> dict[str, Any]:
    """The response object, under way where there is no text yet."""
    cut_short = text is not None and _status(answer) == "incomplete"
    usage = {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": answer.tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answer.prompt_tokens + answer.tokens,
    }
    return {
        "id": _id("resp_", answer),
        "object": "response",
        "created_at": answer.created,
        "status": "in_progress" if text is None else _status(answer),
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut_short else None,
        "instructions": None,
        "metadata": {},
        "model": answer.model,
        "output": [] if text is None else [_output(answer, text)],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": None if text is None else usage,
    }


def _status(answer: Completion) -> str:
    return "incomplete" if answer.finish_reason == "length" else "completed"


def _output(answer: Completion, text: str | None) -> dict[str, Any]:
    return {
        "id": _id("msg_", answer),
        "type": "message",
        "role": "assistant",
        "status": "in_progress" if text is None else _status(answer),
        "content": [] if text is None else [_output_text(text)],
    }


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message_pieces(answer: Completion) -> Iterator[bytes]:
    opening = _named({"type": "message_start", "message": _message(answer, None)})
    opening += _named({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
    opening += _named({"type": "ping"})
    for token in _tokens(answer):
        delta = {"type": "text_delta", "text": token}
        yield opening + _named({"type": "content_block_delta", "index": 0, "delta": delta})
        opening = b""
    stop = {"stop_reason": _stop_reason(answer), "stop_sequence": None}
    usage = {"output_tokens": answer.tokens}
    closing = _named({"type": "content_block_stop", "index": 0})
    closing += _named({"type": "message_delta", "delta": stop, "usage": usage})
    yield closing + _named({"type": "message_stop"})


def _whole_message(answer: Completion) -> bytes:
    return compact(_message(answer, "".join(_tokens(answer))))


def _message(answer: Completion, text: str | None) -> dict[str, Any]:
    """The message, under way where there is no text yet."""
    return {
        "id": _id("msg_", answer),
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": [] if text is None else [{"type": "text", "text": text}],
        "stop_reason": None if text is None else _stop_reason(answer),
        "stop_sequence": None,
        "usage": {"input_tokens": answer.prompt_tokens, "output_tokens": 0 if text is None else answer.tokens},
    }


def _stop_reason(answer: Completion) -> str:
    return "max_tokens" if answer.finish_reason == "length" else "end_turn"


def _tokens(answer: Completion) -> Iterator[str]:
    return map(json.loads, islice(answer_tokens(answer.model), answer.tokens))


def _id(prefix: str, answer: Completion) -> str:
    return prefix + answer.id.removeprefix("chatcmpl-")


def _data(value: object) -> bytes:
    return b"data: " + compact(value) + b"\n\n"


def _named(event: dict[str, Any]) -> bytes:
    return b"event: " + str(event["type"]).encode() + b"\n" + _data(event)


CHAT = Api(("max_tokens", "max_completion_tokens"), stream_pieces, whole_answer, tools=True)
TEXT = Api(("max_tokens",), _text_pieces, _whole_text)
RESPONSES = Api(("max_output_tokens",), _response_pieces, _whole_response)
MESSAGES = Api(("max_tokens",), _message_pieces, _whole_message)
