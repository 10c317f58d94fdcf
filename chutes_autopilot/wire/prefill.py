"""A chat request whose answer broke off, asked once more so that another model goes on with it.

``continue_final_message`` (vLLM and SGLang) leaves the last message open: the model goes on where it ends. The one that
begins a message of its own, ``add_generation_prompt``, must then be false.
"""

from collections.abc import Mapping
from types import MappingProxyType

import attrs
import msgspec

_UNCONTINUED = (
    *("tools", "functions", "audio", "logprobs", "top_logprobs", "prompt_logprobs", "echo", "return_token_ids"),
    "continue_final_message",
    # grammars of vLLM and SGLang, which would begin anew in the middle of an answer
    *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_json_object"),
    *("regex", "ebnf", "json_schema", "structural_tag"),
)
"""Members that ask for more than plain text from its beginning on, unless they are empty or false."""
_ONLY: Mapping[str, object] = MappingProxyType(
    {"n": 1, "response_format": {"type": "text"}, "modalities": ["text"], "add_generation_prompt": True}
)
"""Members that ask for nothing more where they have this value."""

_Members = dict[str, msgspec.Raw]
_MEMBERS = msgspec.json.Decoder(_Members)
_MESSAGES = msgspec.json.Decoder(list[msgspec.Raw])


class _Message(msgspec.Struct):
    role: str = ""


_MESSAGE = msgspec.json.Decoder(_Message)


@attrs.frozen
class ContinuableBody:
    """A request for one answer of plain text: its members, and its messages, the last one not the model's own."""

    members: Mapping[str, msgspec.Raw]
    messages: tuple[msgspec.Raw, ...]

    def prefilled(self, model: str, text: str) -> bytes:
        """The request to go on behind ``text``: every other value keeps the bytes it had."""
        begun = msgspec.Raw(msgspec.json.encode({"role": "assistant", "content": text}))
        return msgspec.json.encode(
            {
                **self.members,
                "model": model,
                "messages": [*self.messages, begun],
                "continue_final_message": True,
                "add_generation_prompt": False,
            }
        )


def read_continuable(data: bytes) -> ContinuableBody | None:
    """A chat request as far as its answer could be continued; None where it asks for more than one plain text."""
    try:
        members = _MEMBERS.decode(data)
        if any(name in members and msgspec.json.decode(members[name]) for name in _UNCONTINUED):
            return None
        if any(
            name in members and msgspec.json.decode(members[name]) not in (None, only) for name, only in _ONLY.items()
        ):
            return None
        messages = _MESSAGES.decode(members.get("messages", b""))
        if not messages or _MESSAGE.decode(messages[-1]).role == "assistant":
            return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return ContinuableBody(members, tuple(messages))
