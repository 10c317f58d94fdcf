"""What comes back: opened where it was sealed for this exchange, refused in every other case."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_gateway import ANSWER_ID, chunk, completion, said
from sealed_exchange import MODEL, Pair, pair

from chutes_autopilot.e2ee.curves import Algo
from chutes_autopilot.e2ee.response import seal_completion
from chutes_autopilot.e2ee.stream import StreamSealer
from chutes_autopilot.e2ee_client.errors import AnswerRefused
from chutes_autopilot.e2ee_client.exchange import Exchange, Version
from chutes_autopilot.e2ee_client.opening import StreamOpener, open_completion, require_applied

MARKER = "Marker-of-an-answer"
END = chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}])
DONE = b"data: [DONE]\n\n"
OF = pair()
"""One exchange for the tests that need no other: making one costs most of their time."""


def sealed_stream(*events: bytes, of: Pair = OF) -> bytes:
    sealer = StreamSealer(of.context(), max_event_bytes=1 << 20)
    return b"".join(sealer.feed(event) for event in events)


def opener(of: Pair = OF, *in_clear: str) -> StreamOpener:
    return StreamOpener(of.client.opener(), frozenset(in_clear))


def read(opening: StreamOpener, *pieces: bytes) -> list[Any]:
    opened = b"".join([*(opening.feed(piece) for piece in pieces), opening.end()])
    assert opened.isascii()
    *events, rest = opened.split(b"\n\n")
    assert rest == b""
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def texts(events: list[Any], name: str = "content") -> str:
    return "".join((c.get("delta") or {}).get(name) or "" for event in events for c in event["choices"])


def refusal(opening: StreamOpener, stream: bytes, *, end: bool = True) -> AnswerRefused:
    with pytest.raises(AnswerRefused) as refused:  # noqa: PT012 - either of them may find it
        opening.feed(stream)
        if end:
            opening.end()
    assert MARKER not in str(refused.value)
    return refused.value


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
def test_a_stream_is_opened_event_by_event(algo: Algo, version: Version) -> None:
    """Every covered member of every choice, and the rest as it came; the mark of the end is left to the reader."""
    of = pair(algo, version)
    answers = (
        chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}}]),
        said("Grüße \u2028", reasoning_content="thinking", reasoning=None),
        said("two", index=1, reasoning="why"),
        END,
        chunk([], usage={"prompt_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 2}}),
        DONE,
    )
    opening = opener(of)
    events = read(opening, sealed_stream(*answers, of=of))
    assert opening.done
    assert opening.answer_id == ANSWER_ID
    assert [event["model"] for event in events] == [MODEL] * 5
    assert texts(events) == "Grüße \u2028two"
    assert texts(events, "reasoning_content") == "thinking"
    assert texts(events, "reasoning") == "why"
    assert events[3]["choices"][0]["finish_reason"] == "stop"
    assert events[4]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


@settings(max_examples=50)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=4), st.lists(st.integers(0, 4000), max_size=8), st.data())
def test_pieces_of_any_size_give_the_same_text(words: list[str], cuts: list[int], data: st.DataObject) -> None:
    """However the network splits it, with comments and other line ends in between."""
    end_of_line = data.draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    stream = (b": keep-alive\n\n" + sealed_stream(*map(said, words), END, DONE)).replace(b"\n", end_of_line)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(edges)]
    assert texts(read(opener(), *pieces)) == "".join(words)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
def test_a_whole_answer_is_opened(algo: Algo, version: Version) -> None:
    """Also an empty text, which is sealed in a whole answer."""
    of = pair(algo, version)
    for text in (MARKER, ""):
        sealed, _ = seal_completion(completion(text, reasoning="why"), of.context())
        assert MARKER.encode() not in sealed
        opened, answer_id = open_completion(sealed, of.client.opener())
        assert answer_id == ANSWER_ID
        message = json.loads(opened)["choices"][0]["message"]
        assert (message["content"], message["reasoning"], message["role"]) == (text, "why", "assistant")


def test_the_vectors_of_existing_servers_are_opened() -> None:
    """Payloads and chunks as two independent implementations seal them."""
    path = Path(__file__).parent.parent / "e2ee" / "vectors.json"
    vectors = json.loads(path.read_text(encoding="utf-8"))
    fixed = vectors["fixed"]
    in_clear = frozenset({"tool_calls"})

    def fields(vector: dict[str, Any]) -> Any:
        private = bytes.fromhex(fixed["client"][vector["algo"]]["private"])
        version = int(vector["version"])
        return Exchange(vector["algo"], version, private, fixed["nonce"], fixed["timestamp"]).opener()

    for vector in vectors["response_payloads"]:
        opened, _ = open_completion(json.dumps(vector["encrypted"]).encode(), fields(vector), in_clear)
        assert json.loads(opened) == vector["plain"]
    for vector in vectors["stream_chunks"]:
        opening = StreamOpener(fields(vector), in_clear)
        opened = opening.feed(vector["wire"].encode() + b"\n\n")
        plain = vector["plain"]
        for choice in plain["choices"]:
            if choice["delta"].get("content") == "":
                del choice["delta"]["content"]
        assert json.loads(opened.removeprefix(b"data: ")) == plain


def test_a_stream_without_its_end_is_refused() -> None:
    """What came is given out, and that it is not all is an error."""
    stream = sealed_stream(said("part"), END)
    opening = opener()
    assert b"part" in opening.feed(stream)
    with pytest.raises(AnswerRefused) as refused:
        opening.end()
    assert refused.value.code == "upstream_stream_truncated"
    assert refusal(opener(), b"").code == "upstream_stream_truncated"
    assert refusal(opener(), DONE).code == "e2ee_answer_malformed"


def test_an_event_left_open_counts_at_a_clean_end_only() -> None:
    """The end of the body ends its last line, too."""
    stream = sealed_stream(said("x"), END, DONE).removesuffix(b"\n\n")
    assert texts(read(opener(), stream)) == "x"


def test_what_follows_the_end_is_ignored() -> None:
    """Nobody can add to an answer after its [DONE]."""
    stream = sealed_stream(said("x"), END, DONE)
    assert texts(read(opener(), stream + said(MARKER), said(MARKER))) == "x"


BEFORE = sealed_stream(said("before"))
FOREIGN = sealed_stream(said(MARKER), of=pair())
CLEAR: list[tuple[str, bytes, str]] = [
    ("content in clear", said(MARKER), "e2ee_answer_not_opened"),
    ("empty content in clear", said(""), "e2ee_answer_not_opened"),
    ("hex that is no field", said("ab" * 80), "e2ee_answer_not_opened"),
    ("content that is no text", said("").replace(b'""', b'["' + MARKER.encode() + b'"]'), "e2ee_answer_in_clear"),
    ("reasoning in clear", chunk([{"delta": {"reasoning": MARKER}}]), "e2ee_answer_not_opened"),
    ("sealed for another", FOREIGN, "e2ee_answer_not_opened"),
    ("tool calls", chunk([{"delta": {"tool_calls": [{"id": MARKER}]}}]), "e2ee_answer_in_clear"),
    ("function call", chunk([{"delta": {"function_call": {"name": "word"}}}]), "e2ee_answer_in_clear"),
    ("refusal", chunk([{"delta": {"refusal": MARKER}}]), "e2ee_answer_in_clear"),
    ("unknown text", chunk([{"delta": {"thoughts": MARKER}}]), "e2ee_answer_in_clear"),
    ("a message in a stream", chunk([{"message": {"content": MARKER}}]), "e2ee_answer_in_clear"),
    ("logprobs", chunk([{"delta": {}, "logprobs": {"content": [MARKER]}}]), "e2ee_answer_in_clear"),
    ("text of a choice", chunk([{"delta": {}, "text": MARKER}]), "e2ee_answer_in_clear"),
    ("a name as text", chunk([{"delta": {}}], usage={MARKER: 1}), "e2ee_answer_in_clear"),
    ("text at the top", chunk([], prompt=MARKER), "e2ee_answer_in_clear"),
    ("token ids", chunk([], prompt_token_ids=[1, 2]), "e2ee_answer_in_clear"),
    ("another answer", said("x").replace(ANSWER_ID.encode(), b"chatcmpl-other"), "e2ee_answer_malformed"),
    ("another model", said("x").replace(MODEL.encode(), b"other"), "e2ee_answer_malformed"),
    ("an id that is text", said("x").replace(ANSWER_ID.encode(), b"a b"), "e2ee_answer_malformed"),
    ("no JSON", b"data: " + MARKER.encode() + b"\n\n", "e2ee_answer_malformed"),
    ("no object", b'data: ["' + MARKER.encode() + b'"]\n\n', "e2ee_answer_malformed"),
    ("deep", b"data: " + b"[" * 100_000 + b"\n\n", "e2ee_answer_malformed"),
    ("no choices", b'data: {"id":"a","model":"m"}\n\n', "e2ee_answer_malformed"),
    ("choices of no objects", chunk(["x"]), "e2ee_answer_malformed"),  # type: ignore[list-item]
    ("a delta that is none", chunk([{"delta": MARKER}]), "e2ee_answer_malformed"),
    ("no UTF-8", b'data: {"id":"\xff"}\n\n', "e2ee_answer_malformed"),
    ("a giant", b"data: " + b"x" * (5 << 20) + b"\n\n", "e2ee_answer_malformed"),
    (
        "an error",
        b'data: {"error":{"message":"' + MARKER.encode() + b'","code":"upstream_error"}}\n\n',
        "upstream_error",
    ),
    ("an error of no known form", b'data: {"error":"' + MARKER.encode() + b'"}\n\n', "upstream_error"),
    ("a code that is text", b'data: {"error":{"code":"' + MARKER.encode() + b'"}}\n\n', "upstream_error"),
]


@pytest.mark.parametrize(("event", "code"), [c[1:] for c in CLEAR], ids=[c[0] for c in CLEAR])
def test_an_event_that_is_not_sealed_for_this_exchange_ends_the_stream(event: bytes, code: str) -> None:
    """What came before it is given out; of the event itself nothing is, neither its text nor in the error's."""
    refused = refusal(opener(), BEFORE + event + sealed_stream(said("after")), end=False)
    assert refused.code == code
    assert b"before" in refused.opened
    assert MARKER.encode() not in refused.opened
    assert b"after" not in refused.opened


def test_what_may_come_in_clear_comes_where_it_was_named() -> None:
    """Calls of tools, once the user said that they may."""
    calls = [{"index": 0, "id": "call", "function": {"name": "f", "arguments": "{}"}}]
    stream = sealed_stream(chunk([{"index": 0, "delta": {"tool_calls": calls}}]), END, DONE)
    assert read(opener(OF, "tool_calls"), stream)[0]["choices"][0]["delta"]["tool_calls"] == calls
    assert refusal(opener(), stream).code == "e2ee_answer_in_clear"


def test_naming_a_covered_member_does_not_let_it_come_in_clear() -> None:
    """Contents are opened, whatever was named."""
    assert refusal(opener(OF, "content"), said(MARKER)).code == "e2ee_answer_not_opened"


def test_a_field_in_another_place_is_refused() -> None:
    """Version 2: choice and member are bound, so pieces cannot change places."""
    event = json.loads(BEFORE.removeprefix(b"data: "))
    delta = event["choices"][0]["delta"]
    moved = [
        event | {"choices": [{"index": 1, "delta": delta}]},
        event | {"choices": [{"index": 0, "delta": {"reasoning": delta["content"]}}]},
    ]
    for one in moved:
        stream = b"data: " + json.dumps(one).encode() + b"\n\n"
        assert refusal(opener(), stream).code == "e2ee_answer_not_opened"


@settings(max_examples=60)
@given(st.data())
def test_no_change_on_the_way_becomes_text(data: st.DataObject) -> None:
    """Bytes replaced anywhere: the answer says what was sealed, a part of it, or is refused."""
    stream = bytearray(sealed_stream(said("one "), said("two "), END, DONE))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(stream) - 1))
        stream[at : at + 1] = data.draw(st.binary(max_size=2) | st.just(b"\n\n"))
    opening = opener()
    try:
        text = texts(read(opening, bytes(stream)))
    except AnswerRefused:
        return
    assert text in ("one two ", "one ", "two ", "")


WHOLE: list[tuple[str, bytes, str]] = [
    ("clear", completion(MARKER), "e2ee_answer_not_opened"),
    ("an error", b'{"error":{"message":"x"}}', "e2ee_answer_malformed"),
    ("a stream", BEFORE, "e2ee_answer_malformed"),
    ("nothing", b"", "e2ee_answer_malformed"),
    ("a delta", completion("x").replace(b'"message"', b'"delta"'), "e2ee_answer_in_clear"),
]


@pytest.mark.parametrize(("body", "code"), [w[1:] for w in WHOLE], ids=[w[0] for w in WHOLE])
def test_a_whole_answer_that_is_not_sealed_is_refused(body: bytes, code: str) -> None:
    """All of it, for there is nothing to give out before."""
    with pytest.raises(AnswerRefused) as refused:
        open_completion(body, OF.client.opener())
    assert refused.value.code == code
    assert MARKER not in str(refused.value)


@pytest.mark.parametrize("value", [None, "", "false", "1", "true, false"])
def test_an_answer_that_does_not_say_it_is_encrypted_is_refused(value: str | None) -> None:
    """X-E2EE-Applied must be there and true."""
    with pytest.raises(AnswerRefused) as refused:
        require_applied(value)
    assert refused.value.code == "e2ee_not_applied"
    require_applied("true")
