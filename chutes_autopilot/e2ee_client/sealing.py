"""Seal a chat request: every text of its messages becomes ciphertext, everything else stays byte for byte."""

import re
from collections.abc import Set
from typing import Any

import msgspec
from attrs import field, frozen

from chutes_autopilot.e2ee.structured_content import structured_content
from chutes_autopilot.e2ee_client.coverage import REQUEST_WORDS, uncovered
from chutes_autopilot.e2ee_client.errors import RequestRefused
from chutes_autopilot.e2ee_client.exchange import Exchange

_ID = re.compile(rb'"[A-Za-z0-9._:-]{1,128}"')
_UNREADABLE = (ValueError, RecursionError)  # msgspec's DecodeError is a ValueError


@frozen
class ChatRequest:
    """A chat request that may be sealed, once for each try.

    :param texts: position and text of each content to encrypt.
    """

    model: str
    stream: bool
    texts: tuple[tuple[int, str], ...] = field(repr=False)
    _members: dict[str, msgspec.Raw] = field(repr=False)
    _messages: tuple[dict[str, msgspec.Raw], ...] = field(repr=False)

    def seal(self, server_public: bytes, exchange: Exchange) -> bytes:
        """The body to send.

        :param server_public: the service's key in normal form.
        """
        messages: list[dict[str, object]] = [dict(message) for message in self._messages]
        for m, text in self.texts:
            messages[m]["content"] = exchange.seal(server_public, text, self.model, m)
        return msgspec.json.encode({**self._members, "messages": messages})


def read_chat_request(body: bytes, in_clear: Set[str] = frozenset()) -> ChatRequest:
    """Understand a request in full before anything of it is sent.

    A list as content is encrypted whole, images and all. Raises RequestRefused for what is no chat request, and for
    members that would carry text in clear.

    :param in_clear: members of the request, or of a message, that may go in clear, ``tools`` for example.
    """
    try:
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except _UNREADABLE:
        raise _invalid("The body is not a JSON object.", None) from None
    model = _value(members.get("model"))
    if not isinstance(model, str) or not model or "|" in model or not model.isprintable():
        raise _invalid("model must be a non-empty string without `|` and control characters.", "model")
    stream = _value(members.get("stream"))
    if stream is not None and not isinstance(stream, bool):
        raise _invalid("stream must be true or false.", "stream")
    for name, raw in members.items():
        if name not in ("model", "messages"):
            _refuse_text(name, name, raw, in_clear)
    try:
        messages = msgspec.json.decode(members.get("messages", b""), type=tuple[dict[str, msgspec.Raw], ...])
    except _UNREADABLE:
        raise _invalid("messages must be a list of objects.", "messages") from None
    texts = [(m, text) for m, message in enumerate(messages) if (text := _text(m, message, in_clear)) is not None]
    if not texts:
        raise _invalid("No message has a content to encrypt.", "messages")
    return ChatRequest(model, bool(stream), tuple(texts), members, messages)


def _text(m: int, message: dict[str, msgspec.Raw], in_clear: Set[str]) -> str | None:
    """What to encrypt of a message; None where its content is absent, null or an empty list."""
    for name, raw in message.items():
        # without its id no answer of a tool finds its call; the service made it up, and it is no text
        if name != "content" and not (name == "tool_call_id" and _ID.fullmatch(bytes(raw))):
            _refuse_text(name, f"messages.{m}.{name}", raw, in_clear)
    raw_content = message.get("content")
    content = _value(raw_content)
    match content:
        case None | []:
            return None
        case str():
            # a text that the service would take for a list is sent as the only item of one
            return _one_part(content) if structured_content(content) is not None else content
        case list() if structured_content(text := bytes(raw_content or b"").decode()) is not None:
            return text
    raise _invalid("content must be a string, null or a list of objects with a type.", f"messages.{m}.content")


def _one_part(text: str) -> str:
    return msgspec.json.encode([{"type": "text", "text": text}]).decode()


def _refuse_text(name: str, param: str, raw: msgspec.Raw, in_clear: Set[str]) -> None:
    # what may go in clear is not even looked at
    if name not in in_clear and uncovered(name, _value(raw), REQUEST_WORDS, in_clear):
        raise RequestRefused(
            "e2ee_uncovered_field",
            "This member would be sent in clear, for the encryption covers the contents of messages only: leave it "
            "out, or name it among those that may go in clear.",
            param,
        )


def _value(raw: msgspec.Raw | None) -> Any:
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except _UNREADABLE:
        raise _invalid("The body is not JSON in UTF-8.", None) from None


def _invalid(message: str, param: str | None) -> RequestRefused:
    return RequestRefused("invalid_e2ee_request", message, param)
