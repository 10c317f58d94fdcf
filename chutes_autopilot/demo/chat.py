"""How the platform reads a chat request: what it accepts, which chute it means, and what it says when it refuses."""

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
from attrs import frozen

from chutes_autopilot.demo.catalog import SimulatedModel
from chutes_autopilot.demo.tool_calls import NoSuchTool, ToolCall, forced_call

DEFAULT_TOKENS = 48
MAX_TOKENS = 1_000_000


class ChatRefused(Exception):
    """The request gets an error answer in the platform's shape, ``{"detail": ...}``."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail


class Chute(Protocol):
    """Whoever answers."""

    @property
    def name(self) -> str: ...
    @property
    def chute_id(self) -> str: ...


class Asked(Protocol):
    """What decides the pace and the faults of an answer: a ChatCall, or a request for embeddings."""

    @property
    def model(self) -> Chute: ...
    @property
    def stream(self) -> bool: ...
    @property
    def tokens(self) -> int: ...
    @property
    def finish_reason(self) -> str: ...
    @property
    def begun(self) -> int: ...
    @property
    def tool(self) -> ToolCall | None: ...


@frozen
class ChatCall:
    """What a chat request asks of the simulator.

    :param tokens: length of the answer.
    :param begun: how many characters of it the request has already, to be gone on from (``continue_final_message``).
    :param finish_reason: ``length`` when max_tokens decided the length, else ``stop``, or ``tool_calls``.
    :param tool: the call that the answer is, in the place of text.
    """

    model: SimulatedModel
    stream: bool
    tokens: int
    finish_reason: str
    begun: int = 0
    tool: ToolCall | None = None


class _Message(msgspec.Struct):
    content: str = ""


class _Body(msgspec.Struct):
    """The fields that matter here; a struct, so that the prompt is checked for syntax but never built."""

    model: Any = msgspec.UNSET
    stream: Any = False
    stream_options: Any = msgspec.UNSET
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n_tokens: Any = None
    continue_final_message: Any = None
    tools: msgspec.Raw = msgspec.Raw(b"null")
    tool_choice: Any = None
    messages: msgspec.Raw = msgspec.Raw(b"[]")


_decode = msgspec.json.Decoder(_Body).decode


def read_chat(
    body: bytes,
    models: Mapping[str, SimulatedModel],
    limits: tuple[str, ...] = ("max_tokens", "max_completion_tokens"),
    *,
    tools: bool = True,
) -> ChatCall:
    """Read a request body.

    The answer is ``n_tokens`` long (the simulator's own field), else DEFAULT_TOKENS, and never longer than the first
    of ``limits`` that is given.

    :param models: every name and every chute_id of the platform.
    :param tools: whether ``tools`` and ``tool_choice`` are those of chat, and a call that is forced is the answer.
    :raises ChatRefused: with the platform's status and text, its known oddities included.
    """
    try:
        asked = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ChatRefused(400, "Invalid request: the body is not a valid JSON object") from None
    if asked.model is msgspec.UNSET:
        raise ChatRefused(404, "No matching chute found!")
    if not isinstance(asked.model, str) or asked.stream_options is None:
        raise ChatRefused(500, "Internal Server Error")  # the platform crashes on these
    model = _resolve(asked.model, models)
    if not isinstance(asked.stream, bool):
        raise ChatRefused(404, "No matching cord found!")
    ceiling: Any = next((value for name in limits if (value := getattr(asked, name)) is not None), None)
    for name, number in ((limits[0], ceiling), ("n_tokens", asked.n_tokens)):
        if number is not None and (type(number) is not int or not 1 <= number <= MAX_TOKENS):
            raise ChatRefused(400, f"Invalid request: {name} must be a whole number from 1 to {MAX_TOKENS}")
    tool = _forced_call(asked) if tools else None
    wanted = (asked.n_tokens or DEFAULT_TOKENS) if tool is None else tool.tokens
    limited = ceiling is not None and (wanted >= ceiling if tool is None else wanted > ceiling)
    end = "length" if limited else "stop" if tool is None else "tool_calls"
    begun = _begun(asked) if tool is None else 0
    return ChatCall(model, asked.stream, ceiling if limited else wanted, end, begun, tool)


def _forced_call(asked: _Body) -> ToolCall | None:
    if asked.tool_choice in (None, "auto", "none"):
        return None
    try:
        return forced_call(msgspec.json.decode(asked.tools), asked.tool_choice)
    except NoSuchTool:
        raise ChatRefused(400, "Invalid request: tool_choice asks for a function that tools does not have") from None


def _begun(asked: _Body) -> int:
    if asked.continue_final_message is not True:
        return 0
    try:
        *_, last = msgspec.json.decode(asked.messages, type=list[msgspec.Raw])
        return len(msgspec.json.decode(last, type=_Message).content)
    except ValueError:  # there is none, or it is no text
        raise ChatRefused(400, "Invalid request: the last message has no text to be continued") from None


def _resolve(asked: str, models: Mapping[str, SimulatedModel]) -> SimulatedModel:
    """The chute meant by a ``model`` value; of a list the first one known, since here all have free instances."""
    name = asked.removesuffix(":THINKING")
    if name in models:
        return models[name]
    base, colon, suffix = name.rpartition(":")
    if colon and suffix.lower() in ("latency", "throughput"):
        name = base
    for token in name.split(","):
        if token.strip() in models:
            return models[token.strip()]
    raise ChatRefused(404, f"model not found: {asked}")
