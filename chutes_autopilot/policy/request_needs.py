"""What a request asks of a model beside text, read from the members that the body was found to have.

Lists within the messages are walked only where there are any; nothing of what the request says is kept.
"""

import re
from typing import Any

import msgspec

from chutes_autopilot.wire.body import ABSENT, RoutingMembers

INPUTS = ("image", "audio", "video")
FEATURES = ("tools", "json_mode", "structured_outputs")
MEDIA_TOKENS = 256
"""What an image, a clip or a sound counts at least; its bytes say nothing."""

_LARGEST = 10**9
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


class Need(msgspec.Struct, frozen=True, gc=False):
    """What a request asks of a model.

    :param requires: names of INPUTS and FEATURES, in that order.
    :param text_bytes: the request's size without its images, sounds and clips.
    :param media: how many of these it has.
    :param max_tokens: the longest answer it allows, in tokens; 0: it names none.
    :param text_in: the parameter that has the text.
    """

    requires: tuple[str, ...] = ()
    text_bytes: int = 0
    media: int = 0
    max_tokens: int = 0
    text_in: str = "messages"

    def tokens(self, bytes_per_token: int) -> int:
        """The tokens of prompt and answer together, estimated."""
        return self.text_bytes // bytes_per_token + MEDIA_TOKENS * self.media + self.max_tokens


_LIST = ord("[")


class _Message(msgspec.Struct, gc=False):
    content: msgspec.Raw = ABSENT


class _Part(msgspec.Struct, gc=False):
    type: Any = None
    image_url: msgspec.Raw = ABSENT
    image: msgspec.Raw = ABSENT
    image_embeds: msgspec.Raw = ABSENT
    input_audio: msgspec.Raw = ABSENT
    audio_url: msgspec.Raw = ABSENT
    video_url: msgspec.Raw = ABSENT


class _Format(msgspec.Struct, gc=False):
    type: Any = None


_MESSAGES = msgspec.json.Decoder(list[_Message])
_COUNT: msgspec.json.Decoder[float] = msgspec.json.Decoder(float)
_PARTS = msgspec.json.Decoder(list[_Part])
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_FORMAT = msgspec.json.Decoder(_Format)
_FORMATS = {"json_object": "json_mode", "json_schema": "structured_outputs"}


def read_need(members: RoutingMembers, size: int, flat: bool = False) -> Need:
    """What a request for chat or completions needs.

    It never fails: what has another shape than the API's needs nothing, for its answer is the upstream's to give.

    :param size: of the body, in bytes.
    :param flat: whether the body has one list at most (wire.body.ChatBody).
    """
    if (
        flat  # the list is the messages', and parts of one would be another
        and members.messages is not ABSENT
        and members.tools is ABSENT
        and members.functions is ABSENT
        and members.response_format is ABSENT
    ):
        limit = members.max_completion_tokens or members.max_tokens or 0
        if type(limit) is int and 0 <= limit <= _LARGEST:
            return Need((), size, 0, limit)
    requires: set[str] = set()
    media = media_bytes = 0
    messages = bytes(members.messages)
    # a message with parts has a list within the list
    if messages.find(b"[", 1) > 0:
        for message in _decoded(_MESSAGES, messages) or ():
            content = memoryview(message.content)
            if content and content[0] == _LIST:
                for part in _decoded(_PARTS, content) or ():
                    kind, bytes_of_it = _medium(part)
                    if kind is not None:
                        requires.add(kind)
                        media += 1
                        media_bytes += bytes_of_it
    # absent members cost a comparison and no more: they are the rule
    if members.tools is not ABSENT or members.functions is not ABSENT:
        asked = _filled(members.tools) or _filled(members.functions)
        if asked and bytes(members.tool_choice) != b'"none"':
            requires.add("tools")
    prompted = members.prompt is not ABSENT and members.messages is ABSENT
    if members.response_format is not ABSENT and (kind := _format(bytes(members.response_format))):
        requires.add(kind)
    max_tokens = _count(members.max_completion_tokens) or _count(members.max_tokens)
    return Need(
        tuple(name for name in (*INPUTS, *FEATURES) if name in requires) if requires else (),
        size - (_other_prompts(members.prompt) if prompted else media_bytes),
        media,
        max_tokens,
        "prompt" if prompted else "messages",
    )


def _decoded(decoder: msgspec.json.Decoder[Any], data: bytes | memoryview) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        return None
    except msgspec.DecodeError:
        # escapes of lone surrogates are JSON all the same (see wire.body): a blank of the same length will do here
        blanked = _SURROGATE_ESCAPE.sub(rb"\\u0020", data)
        return _decoded(decoder, blanked) if blanked != data else None


def _medium(part: _Part) -> tuple[str | None, int]:
    """What kind of medium a part is, if it is one, and its bytes."""
    images = _size(part.image_url) + _size(part.image) + _size(part.image_embeds)
    sounds = _size(part.input_audio) + _size(part.audio_url)
    clips = _size(part.video_url)
    size = images + sounds + clips
    if isinstance(part.type, str):
        kind = part.type.removeprefix("input_").partition("_")[0]
        return (kind, size) if kind in INPUTS else (None, 0)
    return ("image" if images else "audio" if sounds else "video" if clips else None), size


def _other_prompts(prompt: msgspec.Raw) -> int:
    """The bytes of all prompts but the longest: each has a context of its own. A list of tokens is one prompt."""
    view = memoryview(prompt)
    items = (_decoded(_ITEMS, view) or ()) if view and view[0] == _LIST else ()
    if not items or bytes(memoryview(items[0])[:1]) not in (b'"', b"["):
        return 0
    return view.nbytes - max(memoryview(item).nbytes for item in items)


def _size(raw: msgspec.Raw) -> int:
    size = memoryview(raw).nbytes
    return 0 if size == 4 and bytes(raw) == b"null" else size


def _filled(raw: msgspec.Raw) -> bool:
    data = bytes(raw)
    return data[:1] == b"[" and bool(_decoded(_ITEMS, data))


def _format(data: bytes) -> str | None:
    kind = _decoded(_FORMAT, data) if data[:1] == b"{" else None
    return _FORMATS.get(kind.type) if kind is not None and isinstance(kind.type, str) else None


def _count(given: msgspec.Raw | int | float | None) -> int:
    value = _decoded(_COUNT, given) if isinstance(given, msgspec.Raw) else given
    return int(value) if value is not None and 1 <= value <= _LARGEST else 0
