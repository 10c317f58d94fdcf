"""Answers in the platform's shape as plain bytes, so that what is sent can be tested without a socket."""

import json
from collections.abc import Iterator
from itertools import islice

from attrs import field, frozen

from chutes_autopilot.demo.tool_calls import ToolCall

VERIFICATION = "simulated"
"""Value of the extra key that the platform puts on chunks with content."""
DONE = b"data: [DONE]\n\n"

_INTRO = (
    "This",
    " is",
    " a",
    " simulated",
    " answer",
    " from",
    " model",
    " ",
    "{name}",
    "; no",
    " model",
    " was",
    " asked",
    ".",
)
_FILLER = (
    " It",
    " goes",
    " on",
    " with",
    " words",
    " that",
    " mean",
    " nothing",
    ",",
    " only",
    " to",
    " be",
    " long",
    ".",
)
_FILLER_JSON = tuple(json.dumps(token).encode() for token in _FILLER)


@frozen
class Completion:
    """One simulated answer; stream and non-streaming body are two views of it.

    :param created: Unix time in seconds.
    :param tokens: length of the answer, at least 1; each token is one streamed event.
    :param begun: how many tokens the request had of it already.
    :param tool: what is called, in the place of text; the tokens are then those of its arguments.
    """

    id: str
    model: str
    created: int
    tokens: int
    prompt_tokens: int = 1
    finish_reason: str = "stop"
    begun: int = 0
    tool: ToolCall | None = None
    _head: bytes = field(init=False)

    @_head.default
    def _same_for_all_chunks(self) -> bytes:
        head = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
        }
        return b"data: " + compact(head)[:-1] + b',"choices":['

    def chunk(self, choice: bytes, completion_tokens: int, tail: bytes) -> bytes:
        """One event. The platform forces usage into every chunk, whether the client asked for it or not."""
        return b'%b%b],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d%b\n\n' % (
            self._head,
            choice,
            self.prompt_tokens,
            completion_tokens,
            self.prompt_tokens + completion_tokens,
            tail,
        )


_PLAIN_TAIL = b',"prompt_tokens_details":{"cached_tokens":0}}}'
_CONTENT_TAIL = _PLAIN_TAIL[:-1] + b',"chutes_verification":"%b"}' % VERIFICATION.encode()
_USAGE_TAIL = b"}}"


def stream_pieces(answer: Completion) -> Iterator[bytes]:
    """The stream, one byte string for each moment at which the platform sends something.

    First the role delta together with the first token, then a token each, at the end the finish reason, the usage chunk
    with empty ``choices`` and ``[DONE]`` together: ``answer.tokens + 1`` pieces.
    """
    role = answer.chunk(b'{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}', 0, _PLAIN_TAIL)
    for sent, delta in enumerate(_deltas(answer), 1):
        choice = b'{"index":0,"delta":%b,"finish_reason":null}' % delta
        yield role + answer.chunk(choice, sent, _CONTENT_TAIL)
        role = b""
    finish = b'{"index":0,"delta":{},"finish_reason":"%b"}' % answer.finish_reason.encode()
    usage = answer.chunk(b"", answer.tokens, _USAGE_TAIL)
    yield answer.chunk(finish, answer.tokens, _PLAIN_TAIL) + usage + DONE


def _deltas(answer: Completion) -> Iterator[bytes]:
    if answer.tool is None:
        for token in tokens_of(answer):
            yield b'{"content":%b}' % token
        return
    begins: dict[str, object] = {"id": _call_id(answer), "type": "function"}
    for piece in answer.tool.pieces(answer.tokens):
        named = {"name": answer.tool.name} if begins else {}
        yield compact({"tool_calls": [{"index": 0, **begins, "function": {**named, "arguments": piece}}]})
        begins = {}


def _message(answer: Completion) -> dict[str, object]:
    if answer.tool is None:
        content = json.loads(b'"%b"' % b"".join(token[1:-1] for token in tokens_of(answer)))
        return {"role": "assistant", "content": content, "tool_calls": None}
    function = {"name": answer.tool.name, "arguments": "".join(answer.tool.pieces(answer.tokens))}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": _call_id(answer), "type": "function", "function": function}],
    }


def _call_id(answer: Completion) -> str:
    return "call_" + answer.id.removeprefix("chatcmpl-")


def whole_answer(answer: Completion) -> bytes:
    """The JSON body of the same answer to a request that did not ask for a stream."""
    return compact(
        {
            "id": answer.id,
            "object": "chat.completion",
            "created": answer.created,
            "model": answer.model,
            "choices": [
                {
                    "index": 0,
                    "message": _message(answer),
                    "logprobs": None,
                    "finish_reason": answer.finish_reason,
                }
            ],
            "usage": {
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.tokens,
                "total_tokens": answer.prompt_tokens + answer.tokens,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
            "chutes_verification": VERIFICATION,
        }
    )


def unframed_error_tail() -> bytes:
    """What the platform appends when a stream fails inside it: no ``data:``, no blank line, no ``[DONE]``."""
    return b'{"error":"Unhandled exception during response stream: simulated"}'


def malformed_event(answer: Completion) -> bytes:
    """A framed event whose JSON breaks off inside."""
    return answer.chunk(b"", 0, b"").partition(b',"usage"')[0] + b"\n\n"


def without_done(piece: bytes) -> bytes:
    """A piece of a stream whose server does not know of ``[DONE]``."""
    return piece.removesuffix(DONE)


def engine_error_event() -> bytes:
    """An engine's error framed as an event, which the platform passes on with status 200."""
    error = {
        "object": "error",
        "message": "simulated engine failure",
        "type": "InternalServerError",
        "param": None,
        "code": 500,
    }
    return b"data: " + compact({"error": error}) + b"\n\n" + DONE


def tokens_begun(model: str, characters: int) -> int:
    """How many tokens the first characters of a model's answer are, the last one perhaps not whole."""
    for count, token in enumerate(answer_tokens(model)):
        if characters <= 0:
            return count
        characters -= len(json.loads(token))
    raise AssertionError("an answer has no end")


def tokens_of(answer: Completion) -> Iterator[bytes]:
    """The JSON strings of one answer."""
    return islice(answer_tokens(answer.model), answer.begun, answer.begun + answer.tokens)


def answer_tokens(model: str) -> Iterator[bytes]:
    """JSON strings without end: a sentence that says what this is, then filler."""
    for word in _INTRO:
        yield json.dumps(word.format(name=model)).encode()
    while True:
        yield from _FILLER_JSON


def compact(value: object) -> bytes:
    """JSON without white space."""
    return json.dumps(value, separators=(",", ":")).encode()
