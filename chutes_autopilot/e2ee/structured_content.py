"""Content lists that a client encrypted as one text, which is how existing clients send images and other parts."""

import re
from array import array
from itertools import accumulate

import msgspec

MAX_NESTING = 32
"""Levels of arrays and objects such a list may nest, itself included; a deeper one is ordinary text."""


class _Typed(msgspec.Struct):
    type: str


_TYPED_ITEMS = msgspec.json.Decoder(list[_Typed])
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_BRACKET_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))


def structured_content(text: str) -> msgspec.Raw | None:
    """The list that a decrypted content stands for, or None where it is what it looks like: text.

    Only a JSON list of objects that all have a string ``type`` is one, so that whoever types ``[1, 2, 3]`` is
    understood. Its items are passed as they are spelled.
    """
    if not text.lstrip(" \t\r\n").startswith("["):
        return None
    data = text.encode()
    try:
        # RFC 8259 section 8.2 allows escapes of lone surrogates, clients that cut emojis send them, and msgspec
        # refuses them: judge a copy in which every such escape is a blank.
        items = _TYPED_ITEMS.decode(_SURROGATE_ESCAPE.sub(rb"\\u0020", data))
    except (msgspec.DecodeError, RecursionError):
        return None
    return msgspec.Raw(data) if items and _nesting(data) <= MAX_NESTING else None


def _nesting(data: bytes) -> int:
    """How deep valid JSON nests."""
    if data.count(b"[") + data.count(b"{") <= MAX_NESTING:
        return 0
    brackets = _STRING.sub(b"", data).translate(_BRACKET_STEPS, _NO_BRACKETS)
    return max(accumulate(array("b", brackets)))
