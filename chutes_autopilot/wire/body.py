"""Read what routing needs from a chat request's JSON, and change ``model`` without touching another byte.

The body is checked once for strict JSON (RFC 8259) and then only walked: the new model value is spliced
into the original bytes, so white space, key order and the spelling of numbers reach the upstream as sent.
"""

import json
import re
from array import array
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import msgspec

from chutes_autopilot.errors import ApiError
from chutes_autopilot.unshown import Unshown

LARGE_BYTES = 4096
"""Of a body of this size it pays to leave its messages out of the search for ``model``."""

MAX_NESTING = 200
"""Levels of arrays and objects a body may nest; the outermost object is level 1."""

_WHITESPACE = rb"[ \t\n\r]*"
_NEXT_KEY = re.compile(
    _WHITESPACE + rb"[{,]?" + _WHITESPACE + rb'("[^"\\]*(?:\\.[^"\\]*)*")' + _WHITESPACE + rb":" + _WHITESPACE
)
_END_OF_VALUE = re.compile(_WHITESPACE + rb"[,}]")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]')
_SCALAR = re.compile(rb"[^\s,\]}]+")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_AFTER_KEY = re.compile(_WHITESPACE + rb":" + _WHITESPACE)
_ESCAPED_MODEL = re.compile(rb"\\u006[dDfF45cC]")
"""One of the letters of "model" as an escape, in which no encoder writes it unless it means to hide something."""
_BRACKET_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
_LIST = ord("[")
_QUOTE = ord('"')
_BACKSLASH = ord("\\")
"""As a number: to look for bytes with ``in`` raises an error inside first, and takes many times as long."""
_DEPTH_CHANGE = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_ROUTING_KEYS = ("model", "stream", "prompt_cache_key")
Piece = bytes | memoryview
"""A part of something large need not be copied."""
_Members = dict[str, msgspec.Raw]
_DECODER = msgspec.json.Decoder(_Members)
ABSENT = msgspec.Raw()


class RoutingMembers(msgspec.Struct, gc=False):
    """The members that routing reads, most of them as they were spelled; all others are checked and skipped.

    Of a repeated member the last one counts. An absent one is empty.

    :param max_tokens: as it was spelled where it is no number, but for the decoder, which takes numbers alone.
    """

    model: msgspec.Raw = ABSENT
    stream: bool | None = None
    prompt_cache_key: str | None = None
    messages: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    functions: msgspec.Raw = ABSENT
    tool_choice: msgspec.Raw = ABSENT
    response_format: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw | int | float | None = None
    max_completion_tokens: msgspec.Raw | int | float | None = None


NO_MEMBERS = RoutingMembers()
_SPELLED = set(RoutingMembers.__struct_fields__) - {"stream", "prompt_cache_key"}
_ROUTING_DECODER = msgspec.json.Decoder(RoutingMembers)


class ChatBody(Unshown):
    """A chat completion request as routing sees it.

    :param data: the body as received, byte for byte.
    :param model: the decoded ``model`` value, whatever its JSON type; None when absent or null.
    :param model_start: offset of the first byte of the model value in ``data``.
    :param model_end: offset after its last byte; equal to ``model_start`` when absent.
    :param stream: whether ``stream`` is literally true.
    :param prompt_cache_key: the field's value when it is a string, else "".
    :param members: what else routing may read.
    :param flat: whether it has one list at most, that of the messages as a rule; False where that was not found out.
    """

    data: bytes
    model: object
    model_start: int
    model_end: int
    stream: bool
    prompt_cache_key: str
    members: RoutingMembers
    flat: bool = False

    def with_model(self, model: str) -> tuple[Piece, ...]:
        """The body, in pieces, with another ``model`` value and every other byte as received."""
        data: Piece = self.data if len(self.data) < LARGE_BYTES else memoryview(self.data)
        return data[: self.model_start], msgspec.json.encode(model), data[self.model_end :]

    def drop(self) -> None:
        """Hold its bytes no longer; the members are views of them."""
        self.data, self.members = b"", NO_MEMBERS


def read_chat_body(data: bytes) -> ChatBody:
    """Check that ``data`` is one strict JSON object and find the fields that routing reads.

    Raises ApiError ``invalid_json`` (RFC 8259: UTF-8, no NaN or Infinity, nothing after the value) or
    ``invalid_body`` (no object, nested deeper than MAX_NESTING, ``model`` given twice in any spelling).
    """
    plain = _plain_body(data)
    if plain is not None:
        return plain
    members, text = _validated(data)
    _check_nesting(text)
    return _walked_body(data, members)


def _plain_body(data: bytes) -> ChatBody | None:
    """The body where all is plain: few brackets, and ``"model"`` stands in it once and nowhere in escapes.

    It is then the top-level key, and no walk is needed to find its value. Whatever is not plain, or not valid, is
    judged by the rest of `read_chat_body`.
    """
    size = len(data)
    if size < LARGE_BYTES:  # to take brackets out is how they are counted fastest
        lists = size - len(data.replace(b"[", b""))
        if lists + size - len(data.replace(b"{", b"")) > MAX_NESTING:
            return None
    elif _brackets_exceed(data, MAX_NESTING):
        return None
    else:
        lists = MAX_NESTING
    try:
        if not data.isascii():
            data.decode()  # msgspec does not look at the encoding of strings it skips
        members = _ROUTING_DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    raw = bytes(members.model)
    if not raw or raw[0] != _QUOTE or _BACKSLASH in raw:
        return None
    if size < LARGE_BYTES:
        at = _only_model(data)
    else:
        start, end = _messages_span(data, members)
        at = _only_model(data[:start] + data[end:])
        if at is not None and at >= start:
            at += end - start
    if at is None:
        return None
    at += 1 if data.startswith(b":" + raw, at) else 2
    if not data.startswith(raw, at):
        found = _AFTER_KEY.match(data, at - 2)
        if found is None or not data.startswith(raw, found.end()):
            return None
        at = found.end()
    return ChatBody(
        data,
        raw[1:-1].decode(),
        at,
        at + len(raw),
        members.stream is True,
        members.prompt_cache_key or "",
        members,
        lists <= 1,
    )


def _messages_span(data: bytes, members: RoutingMembers) -> tuple[int, int]:
    """Where a member that equals ``messages`` stands; (0, 0) where that is not certain.

    Nothing in a list is a top-level key, so the list, nearly all of a large body, need not be searched for one.
    """
    key_at = data.find(b'"messages"')
    key = _AFTER_KEY.match(data, key_at + 10) if key_at >= 0 else None
    messages = memoryview(members.messages)
    if key is None or not messages or messages[0] != _LIST or not data.startswith(messages, key.end()):
        return 0, 0
    return key.end(), key.end() + len(messages)


def _only_model(text: bytes) -> int | None:
    """The offset behind the only ``"model"`` in a text; None where there is not just one."""
    # rfind takes half the time of find where there is nothing to be found
    key_at = text.find(b'"model"')
    if key_at < 0 or text.rfind(b'"model"') != key_at:
        return None
    if text.rfind(b"\\u006") >= 0 and _ESCAPED_MODEL.search(text):
        return None
    return key_at + 7


def _text(raw: bytes) -> str:
    """The value of a JSON string; "" for any other value."""
    return str(json.loads(raw)) if raw[:1] == b'"' else ""


def _walked_body(data: bytes, members: Mapping[str, msgspec.Raw]) -> ChatBody:
    """The body found by walking its top-level members one by one."""
    spans = _routing_spans(data, members)
    spelled: dict[str, Any] = {name: members[name] for name in _SPELLED if name in members}
    start, end = spans.get("model", (0, 0))
    key_start, key_end = spans.get("prompt_cache_key", (0, 0))
    stream_start, stream_end = spans.get("stream", (0, 0))
    return ChatBody(
        data=data,
        model=json.loads(data[start:end], parse_int=float) if end else None,
        model_start=start,
        model_end=end,
        stream=data[stream_start:stream_end] == b"true",
        prompt_cache_key=_text(data[key_start:key_end]),
        members=RoutingMembers(**spelled),
    )


def _validated(data: bytes) -> tuple[Mapping[str, msgspec.Raw], bytes]:
    """The top-level members and the text they were read from, which has the length of ``data``."""
    try:
        if not data.isascii():
            data.decode()  # msgspec does not look at the encoding of strings it skips
    except UnicodeDecodeError as error:
        raise ApiError("invalid_json", f"The body is not UTF-8 (byte {error.start}).") from None
    try:
        return _decoded(data), data
    except msgspec.DecodeError as error:
        # RFC 8259 section 8.2 allows escapes of lone surrogates, clients that cut emojis send them, and
        # msgspec refuses them: judge a copy in which every such escape is a blank of the same length.
        blanked = _SURROGATE_ESCAPE.sub(rb"\\u0020", data)
        if blanked != data:
            try:
                return _decoded(blanked), blanked
            except msgspec.DecodeError:
                pass
        raise ApiError("invalid_json", f"The body is not valid JSON: {_reason(error)}.") from None


def _decoded(text: bytes) -> Mapping[str, msgspec.Raw]:
    try:
        return _DECODER.decode(text)
    except msgspec.ValidationError:
        msgspec.json.decode(text, type=msgspec.Raw)  # it may be no JSON at all
        raise ApiError("invalid_body", "The body must be a JSON object.") from None
    except RecursionError:
        raise _too_deep() from None


def _reason(error: msgspec.DecodeError) -> str:
    """msgspec names the fault and its byte offset, never the text around it."""
    return str(error).removeprefix("JSON is malformed: ").rstrip(".")


def _too_deep() -> ApiError:
    return ApiError("invalid_body", f"The body nests deeper than {MAX_NESTING} levels.")


def _brackets_exceed(text: bytes, limit: int) -> bool:
    """Whether more than ``limit`` arrays and objects may begin here; few are found sooner than they are counted."""
    if len(text) < LARGE_BYTES:
        return len(text.split(b"[", limit + 1)) + len(text.split(b"{", limit + 1)) - 2 > limit
    for bracket in (b"[", b"{"):
        at = text.find(bracket)
        while at >= 0:
            limit -= 1
            if limit < 0:
                return True
            at = text.find(bracket, at + 1)
    return False


def _check_nesting(text: bytes) -> None:
    if not _brackets_exceed(text, MAX_NESTING):
        return
    brackets = _STRING.sub(b"", text).translate(_BRACKET_STEPS, _NO_BRACKETS)
    if max(accumulate(array("b", brackets)), default=0) > MAX_NESTING:
        raise _too_deep()


def _routing_spans(data: bytes, members: Mapping[str, msgspec.Raw]) -> dict[str, tuple[int, int]]:
    """Offsets of the values of the routing keys; of a repeated key the last one counts, as JSON readers have it."""
    spans: dict[str, tuple[int, int]] = {}
    texts: dict[str, bytes] = {}
    position = 0
    while (found := _NEXT_KEY.match(data, position)) is not None:
        spelled = found.group(1)
        key = json.loads(spelled) if b"\\" in spelled else spelled[1:-1].decode()
        start = found.end()
        if key not in texts and key in members:
            texts[key] = bytes(members[key])
        position = _end_of_value(data, start, texts.get(key))
        if key in _ROUTING_KEYS:
            if key == "model" and key in spans:
                raise ApiError("invalid_body", "The body has more than one 'model'.", param="model")
            spans[key] = (start, position)
    return spans


def _end_of_value(data: bytes, start: int, value: bytes | None) -> int:
    """The offset after the value at ``start``, from the decoder's own span where that is certain.

    The decoder keeps the last of repeated keys, so its value is only believed where the text here equals it
    and is complete; otherwise, and beside blanked surrogate escapes, the value is walked token by token.
    """
    if value is not None and data.startswith(value, start) and _END_OF_VALUE.match(data, start + len(value)):
        return start + len(value)
    if data[start : start + 1] == b'"':
        return _matched(_STRING, data, start)
    if data[start : start + 1] not in b"[{":
        return _matched(_SCALAR, data, start)
    depth = 0
    for token in _TOKEN.finditer(data, start):
        depth += _DEPTH_CHANGE.get(token.group()[0], 0)
        if depth == 0:
            return token.end()
    raise ApiError("invalid_json", "The body is not valid JSON.")


def _matched(pattern: re.Pattern[bytes], data: bytes, start: int) -> int:
    found = pattern.match(data, start)
    if found is None:
        raise ApiError("invalid_json", "The body is not valid JSON.")
    return found.end()
