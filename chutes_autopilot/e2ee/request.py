"""An encrypted request: find its fields, open them, and build the plaintext body.

Only what is decrypted is read. Everything else is copied as it was spelled, so that numbers reach the upstream as the
client wrote them. Where a member is given twice the last one counts, and the others are gone from what is built.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

import msgspec
from attrs import define, field, frozen

from chutes_autopilot.e2ee.fields import FieldNotOpened, request_aad
from chutes_autopilot.e2ee.replay import check_window
from chutes_autopilot.e2ee.request_headers import E2EEPolicy, SealedExchange
from chutes_autopilot.e2ee.structured_content import structured_content
from chutes_autopilot.e2ee.uncovered import refuse_uncovered
from chutes_autopilot.errors import ApiError, e2ee_error
from chutes_autopilot.wire.body import read_chat_body

_Members = dict[str, Any]
"""An object: its values are msgspec.Raw, the JSON text as it came, but where something was put in their place."""

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OBJECTS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_STRING = msgspec.json.Decoder(str)

_HEX = re.compile("[0-9a-fA-F]*+")
_EMPTY_LIST = re.compile(rb"\[\s*\]")
# "|" would let a name run into the next part of the associated data
_NOT_IN_MODEL = re.compile("[|\x00-\x1f\x7f-\x9f]")

T = TypeVar("T")


@frozen(repr=False)
class _Field:
    """One encrypted text and where it stands.

    :param m: position in ``messages``.
    :param c: position in the message's ``content``, None where that is a string.
    :param holder: the object whose member ``key`` the opened text becomes.
    """

    m: int
    c: int | None
    holder: _Members
    key: str
    sealed: str


@define(eq=False, repr=False)
class SealedRequest:
    """A request whose form is good and whose texts are still sealed.

    Opening takes up to a millisecond per field: with more than a few, call `rest` in a worker thread. The two calls
    may come from different threads, one after the other.

    :param model: ``model`` as sent, before routing.
    :param fields: how many encrypted fields there are, at least one.
    """

    model: str
    fields: int = field(init=False)
    _exchange: SealedExchange
    _members: _Members
    _messages: list[_Members]
    _sealed: list[_Field]

    def __attrs_post_init__(self) -> None:
        self.fields = len(self._sealed)

    def first(self) -> None:
        """Open the first field: proof that the client can seal to our key, without which no nonce is claimed.

        :raises ApiError: e2ee_decryption_failed.
        """
        self._open(self._sealed[:1])

    def rest(self) -> bytes:
        """Open the other fields and build the body for the upstream, UTF-8 JSON, once `first` went well.

        :raises ApiError: e2ee_decryption_failed.
        """
        self._open(self._sealed[1:])
        for message in self._messages:
            if "tool_calls" in message and _EMPTY_LIST.fullmatch(message["tool_calls"]):
                del message["tool_calls"]  # model servers refuse an empty list
        return msgspec.json.encode({**self._members, "messages": self._messages})

    def _open(self, sealed: Iterable[_Field]) -> None:
        exchange = self._exchange
        for one in sealed:
            aad = b""
            if exchange.nonce is not None and exchange.timestamp is not None:
                aad = request_aad(exchange.algo, self.model, one.m, one.c, exchange.nonce, exchange.timestamp)
            text = _opened(exchange, one.sealed, aad)
            one.holder[one.key] = text if one.c is not None else structured_content(text) or text


def prepare_request(
    body: bytes, exchange: SealedExchange, policy: E2EEPolicy, now: float, *, not_before: int | None = None
) -> SealedRequest:
    """Everything that can be told of an encrypted request without a key: its JSON, its time and its fields' form.

    A hostile body of a MiB takes some 100 ms: give large ones to a worker thread.

    :param now: Unix time.
    :param not_before: as of replay.check_window.
    :raises ApiError: invalid_json and invalid_body as on the plain route; invalid_e2ee_request, e2ee_uncovered_field,
        e2ee_invalid_timestamp, e2ee_too_many_fields; in this order.
    """
    read = read_chat_body(body)
    members = _decoded(_OBJECT, body)
    if members is None:  # it is JSON, so only this is left
        raise _invalid("The body has an escape of a lone surrogate, which has no UTF-8 form.")
    model = read.model
    if not isinstance(model, str) or not model or _NOT_IN_MODEL.search(model):
        raise _invalid("model must be a non-empty string without | and control characters.", param="model")
    messages: list[_Members] | None = _decoded(_OBJECTS, members.get("messages", b""))
    if messages is None:
        raise _invalid("messages must be a list of objects.", param="messages")
    if policy.uncovered == "reject":
        refuse_uncovered(members)
    if exchange.timestamp is not None:
        check_window(exchange.timestamp, now, policy.window, not_before)
    return SealedRequest(model, exchange, members, messages, _find_fields(messages, policy.max_fields))


def _find_fields(messages: list[_Members], limit: int) -> list[_Field]:
    """All encrypted fields in document order; list contents are put in place decoded."""
    found = list(islice(_fields_of(messages), limit + 1))
    if len(found) > limit:
        raise e2ee_error(
            "e2ee_too_many_fields", f"The request has more than {limit} encrypted fields.", param="messages"
        )
    if not found:
        raise _invalid("The request has no encrypted field.", param="messages")
    if not all(len(one.sealed) % 2 == 0 and _HEX.fullmatch(one.sealed) for one in found):
        raise _invalid("A content is not encrypted: it must be hex.", param="messages")
    return found


def _fields_of(messages: list[_Members]) -> Iterator[_Field]:
    for m, message in enumerate(messages):
        raw = message.get("content")
        if raw is None or (content := bytes(raw)) == b"null":
            continue
        if content.startswith(b'"'):
            yield _Field(m, None, message, "content", _text(content))
        elif content.startswith(b"["):
            message["content"] = items = _decoded(_OBJECTS, content)
            if items is None:
                raise _invalid("Each item of a content list must be an object.", param="messages")
            for c, item in enumerate(items):
                kind = item.get("type")
                if kind is not None and _is_text(bytes(kind)):
                    yield _Field(m, c, item, "text", _text_of(item))
        else:
            raise _invalid("content must be a string, a list or null.", param="messages")


def _is_text(kind: bytes) -> bool:
    return kind == b'"text"' or (b"\\" in kind and kind.startswith(b'"') and _text(kind) == "text")


def _text_of(item: Mapping[str, msgspec.Raw]) -> str:
    text = bytes(item.get("text", b"null"))
    if not text.startswith(b'"'):
        raise _invalid("The text of a content item must be a string.", param="messages")
    return _text(text)


def _text(raw: bytes) -> str:
    return _STRING.decode(raw)


def _decoded(decoder: msgspec.json.Decoder[T], raw: bytes | msgspec.Raw) -> T | None:
    """The value, or None where it is another type: msgspec's own error is not to be seen, not even as a context."""
    with suppress(msgspec.DecodeError, RecursionError):
        return decoder.decode(raw)
    return None


def _opened(exchange: SealedExchange, sealed: str, aad: bytes) -> str:
    with suppress(FieldNotOpened):
        return exchange.server_key.opener.open(sealed, aad)
    raise e2ee_error("e2ee_decryption_failed", "An encrypted field does not open.", param="messages")


def _invalid(message: str, *, param: str | None = None) -> ApiError:
    return e2ee_error("invalid_e2ee_request", message, param=param)
