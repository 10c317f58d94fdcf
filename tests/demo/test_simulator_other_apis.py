"""The simulator's answers in other shapes than chat's, with ends that the gateway knows."""

import base64
import json
from struct import unpack
from typing import Any

import pytest

from chutes_autopilot.demo.catalog import simulated_models
from chutes_autopilot.demo.chat import DEFAULT_TOKENS, ChatRefused, read_chat
from chutes_autopilot.demo.completions import Completion
from chutes_autopilot.demo.embeddings import DIMENSIONS, EMBEDDING_CHUTES, MAX_INPUTS, read_embeddings
from chutes_autopilot.demo.other_apis import MESSAGES, RESPONSES, TEXT, Api
from chutes_autopilot.relay import endpoint

MODEL = simulated_models()[0]
EMBED = EMBEDDING_CHUTES[0].name


def answer(finish_reason: str = "stop", tokens: int = 20) -> Completion:
    return Completion("chatcmpl-1", MODEL.name, 1_760_000_000, tokens, 7, finish_reason)


def data_of(stream: bytes) -> list[Any]:
    lines = [line.removeprefix(b"data: ") for line in stream.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def text_of(api: Api, stream: bytes) -> str:
    events = data_of(stream)
    if api is TEXT:
        return "".join(choice["text"] for event in events for choice in event["choices"])
    deltas = [
        event["delta"] for event in events if event["type"].endswith("delta") and event["type"] != "message_delta"
    ]
    return "".join(delta if isinstance(delta, str) else delta["text"] for delta in deltas)


def whole_text(api: Api, body: Any) -> str:
    match api:
        case _ if api is TEXT:
            return str(body["choices"][0]["text"])
        case _ if api is RESPONSES:
            return str(body["output"][0]["content"][0]["text"])
    return str(body["content"][0]["text"])


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
@pytest.mark.parametrize(
    ("api", "path"), [(TEXT, endpoint.COMPLETIONS), (RESPONSES, endpoint.RESPONSES), (MESSAGES, endpoint.MESSAGES)]
)
def test_stream_and_whole_answer_are_one_answer(api: Api, path: endpoint.Endpoint, finish_reason: str) -> None:
    """A piece a token and a last one, which alone ends the stream; the text says that it is simulated."""
    pieces = list(api.pieces(answer(finish_reason)))
    text = text_of(api, b"".join(pieces))
    assert (len(pieces), text) == (21, whole_text(api, json.loads(api.whole(answer(finish_reason)))))
    assert "simulated" in text
    guard = path.new_guard()
    for piece in pieces[:-1]:
        guard.feed(piece)
    assert guard.verdict() == "unfinished"
    guard.feed(pieces[-1])
    assert guard.verdict() == "done"


@pytest.mark.parametrize(("finish_reason", "status"), [("stop", "completed"), ("length", "incomplete")])
def test_the_events_of_a_response_are_numbered_and_end_with_the_whole_of_it(finish_reason: str, status: str) -> None:
    """The last one's type is its status."""
    events = data_of(b"".join(RESPONSES.pieces(answer(finish_reason))))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == f"response.{status}"
    assert events[-1]["response"] == json.loads(RESPONSES.whole(answer(finish_reason)))
    assert events[-1]["response"]["status"] == status


def test_the_length_of_an_answer_is_bounded_by_its_apis_parameter() -> None:
    """max_output_tokens belongs to the Responses API alone."""
    body = json.dumps({"model": MODEL.name, "max_output_tokens": 4}).encode()
    names = {MODEL.name: MODEL}
    assert read_chat(body, names, RESPONSES.limits).tokens == 4
    assert read_chat(body, names, TEXT.limits).tokens == DEFAULT_TOKENS
    with pytest.raises(ChatRefused, match="max_output_tokens"):
        read_chat(json.dumps({"model": MODEL.name, "max_output_tokens": 0}).encode(), names, RESPONSES.limits)


def embed(**fields: Any) -> Any:
    body = json.dumps({"model": EMBED, **fields}).encode()
    return json.loads(read_embeddings(body).answer(3))


@pytest.mark.parametrize(("input", "count"), [("a", 1), (["a", "b", "a"], 3), ([1, 2], 1), ([[1, 2], [3]], 2)])
def test_every_input_gets_a_vector_of_length_one(input: Any, count: int) -> None:
    """Texts and lists of tokens; equal inputs get equal vectors."""
    data = embed(input=input)["data"]
    assert [each["index"] for each in data] == list(range(count))
    vectors = [each["embedding"] for each in data]
    for vector in vectors:
        assert len(vector) == DIMENSIONS
        assert sum(value * value for value in vector) == pytest.approx(1)
    if count == 3:
        assert vectors[0] == vectors[2] != vectors[1]


def test_base64_is_the_same_vector() -> None:
    """As little-endian 32-bit floats."""
    plain = embed(input="a", dimensions=8)["data"][0]["embedding"]
    packed = embed(input="a", dimensions=8, encoding_format="base64")["data"][0]["embedding"]
    assert unpack("<8f", base64.b64decode(packed)) == pytest.approx(plain)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (json.dumps({"model": MODEL.name, "input": "x"}).encode(), 404),
        *[
            (json.dumps({"model": EMBED, **fields}).encode(), 400)
            for fields in (
                {},
                {"input": ""},
                {"input": []},
                {"input": [[]]},
                {"input": {}},
                {"input": ["x"] * (MAX_INPUTS + 1)},
                {"input": "x", "dimensions": 0},
                {"input": "x", "dimensions": True},
                {"input": "x", "encoding_format": "hex"},
            )
        ],
    ],
)
def test_what_makes_no_vectors_is_refused(body: bytes, status: int) -> None:
    """Models of chat, too: they are other chutes."""
    with pytest.raises(ChatRefused) as refused:
        read_embeddings(body)
    assert refused.value.status == status
