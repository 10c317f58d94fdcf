"""Simulated embeddings: vectors made of a hash of the text, equal for equal texts and without any meaning."""

import base64
import json
from collections.abc import Iterator, Mapping
from hashlib import shake_128
from struct import pack, unpack
from types import MappingProxyType
from typing import Any, Literal

import msgspec
from attrs import frozen

from chutes_autopilot.demo.chat import ChatRefused
from chutes_autopilot.demo.other_chutes import OTHER_CHUTES, OtherChute

DIMENSIONS = 64
MAX_DIMENSIONS = 1024
MAX_INPUTS = 256

EMBEDDING_CHUTES: tuple[OtherChute, ...] = tuple(chute for chute in OTHER_CHUTES if chute.does == "embedding")

_BY_NAME: Mapping[str, OtherChute] = MappingProxyType(
    {key: each for each in EMBEDDING_CHUTES for key in (each.name, each.chute_id)}
)


@frozen
class EmbeddingCall:
    """What a request for embeddings asks of the simulator.

    :param inputs: what each vector is made of.
    :param encoding: of each vector; base64: its little-endian 32-bit floats, as OpenAI's clients ask for.
    """

    model: OtherChute
    inputs: tuple[bytes, ...]
    dimensions: int
    encoding: Literal["float", "base64"]
    stream: bool = False
    tokens: int = 1
    finish_reason: str = "stop"
    begun: int = 0
    tool: None = None

    def answer(self, prompt_tokens: int) -> bytes:
        """The JSON body."""
        data = [
            {"object": "embedding", "index": index, "embedding": self._encoded(text)}
            for index, text in enumerate(self.inputs)
        ]
        usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
        return json.dumps({"object": "list", "data": data, "model": self.model.name, "usage": usage}).encode()

    def _encoded(self, text: bytes) -> list[float] | str:
        vector = list(_unit_vector(self.model.name.encode() + b"\0" + text, self.dimensions))
        if self.encoding == "float":
            return vector
        return base64.b64encode(pack(f"<{len(vector)}f", *vector)).decode()


class _Body(msgspec.Struct):
    model: Any = None
    input: Any = None
    dimensions: Any = None
    encoding_format: Any = "float"


_decode = msgspec.json.Decoder(_Body).decode


def read_embeddings(body: bytes) -> EmbeddingCall:
    """Read a request body.

    :raises ChatRefused: with a status and text in the platform's manner.
    """
    try:
        asked = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ChatRefused(400, "Invalid request: the body is not a valid JSON object") from None
    model = _BY_NAME.get(asked.model) if isinstance(asked.model, str) else None
    if model is None:
        raise ChatRefused(404, f"model not found: {asked.model}")
    # one text, one list of tokens, or a list of either
    several = isinstance(asked.input, list) and not all(type(item) is int for item in asked.input)
    inputs = asked.input if several else [asked.input]
    if not all(isinstance(item, str | list) and item for item in inputs) or not 1 <= len(inputs) <= MAX_INPUTS:
        raise ChatRefused(400, f"Invalid request: input must be 1 to {MAX_INPUTS} texts or lists of tokens")
    dimensions = DIMENSIONS if asked.dimensions is None else asked.dimensions
    if type(dimensions) is not int or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ChatRefused(400, f"Invalid request: dimensions must be a whole number from 1 to {MAX_DIMENSIONS}")
    if asked.encoding_format not in ("float", "base64"):
        raise ChatRefused(400, "Invalid request: encoding_format must be float or base64")
    texts = tuple(json.dumps(item).encode() for item in inputs)
    return EmbeddingCall(model, texts, dimensions, asked.encoding_format)


def _unit_vector(seed: bytes, dimensions: int) -> Iterator[float]:
    raw = unpack(f"<{dimensions}h", shake_128(seed).digest(2 * dimensions))
    length = sum(value * value for value in raw) ** 0.5 or 1.0
    return (value / length for value in raw)
