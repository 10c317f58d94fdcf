"""Sealing a stream event by event, and how it may end."""

import json
import re
from typing import Any

import pytest
from exchange_factory import ALGOS, MARKER, MODEL, Client, exchange, told
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.e2ee.allow_list import SealContext
from chutes_autopilot.e2ee.curves import Algo
from chutes_autopilot.e2ee.fields import FieldOpener
from chutes_autopilot.e2ee.request_headers import SealedExchange, Uncovered
from chutes_autopilot.e2ee.stream import (
    DONE,
    KEEP_ALIVE,
    FailureCode,
    StreamFailed,
    StreamSealer,
    failure_error,
    failure_event,
)

LIMIT = 10_000
EXCHANGE = exchange()
MINTED = re.compile("chatcmpl-[0-9a-f]{32}")


def sealer(sealed: SealedExchange = EXCHANGE, uncovered: Uncovered = "reject", coalesce: bool = False) -> StreamSealer:
    return StreamSealer(SealContext(sealed, MODEL, uncovered), max_event_bytes=LIMIT, coalesce=coalesce)


def chunk(*deltas: dict[str, Any], **members: Any) -> dict[str, Any]:
    choices = [{"index": i, "delta": delta, "finish_reason": None} for i, delta in enumerate(deltas)]
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "served/M", "choices": choices, **members}


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def events_in(emitted: bytes) -> list[dict[str, Any]]:
    """The objects emitted, after making sure that every byte is part of one event in the one form there is."""
    found = re.findall(rb"data: ([^\r\n]+)\n\n", emitted)
    assert b"".join(b"data: %b\n\n" % data for data in found) == emitted
    values = [json.loads(data) for data in found if data != b"[DONE]"]
    for value, data in zip(values, found, strict=False):
        assert data == json.dumps(value, separators=(",", ":")).encode("ascii")
    return values


def texts_in(emitted: bytes, sealed: SealedExchange = EXCHANGE) -> list[tuple[int, str, str | None]]:
    client = Client(sealed)
    return [text for value in events_in(emitted) for text in client.texts(value)]


def run(stream: StreamSealer, *pieces: bytes) -> tuple[bytes, StreamFailed | None]:
    """All that is emitted of a whole body, with its failure, after making sure that it says nothing of the answer."""
    out, failed = b"", None
    try:
        for piece in pieces:
            out += stream.feed(piece)
        out += stream.end()
    except StreamFailed as error:
        failed = error
    if failed is None:
        assert stream.done
        return out, None
    assert not stream.done
    assert MARKER not in told(failed)
    return out + failed.sealed, failed


def test_known_chunks_are_sealed_as_they_are_known(vectors: dict[str, Any]) -> None:
    """The client opens the vectors' chunks, and ours to the same texts with the same members in clear."""
    private = vectors["fixed"]["client"]
    for known in vectors["stream_chunks"]:
        sealed = exchange(known["algo"], int(known["version"]))
        (ours,) = events_in(sealer(sealed).feed(event(known["plain"])))
        theirs = known["encrypted"]
        assert events_in(sealer(sealed).feed(event(theirs)))  # wire and object are the same thing
        assert json.loads(known["wire"].removeprefix("data: ")) == theirs
        client = Client(sealed)
        texts = list(client.texts(ours))
        client.opener = FieldOpener(known["algo"], bytes.fromhex(private[known["algo"]]["private"]))
        assert list(client.texts(theirs)) == texts
        for choice, their_choice, plain in zip(
            ours["choices"], theirs["choices"], known["plain"]["choices"], strict=True
        ):
            for _, name, text in texts:
                assert plain["delta"][name] == text
                del choice["delta"][name], their_choice["delta"][name]
        assert ours == theirs, known["name"]


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("version", [1, 2])
def test_one_event_in_is_one_event_out(algo: Algo, version: int) -> None:
    """Chunks come out one by one, in order, and open; empty members of a delta are gone, usage chunks stay."""
    sealed = exchange(algo, version)
    stream = sealer(sealed)
    chunks = [
        chunk({"role": "assistant", "content": "", "refusal": "", "tool_calls": []}),
        chunk({"content": None, "reasoning": "hm \u2028"}),
        chunk({"content": "a"}, {"content": "b", "reasoning_content": "c"}, usage=None),
        chunk(usage={"total_tokens": 3}),
    ]
    out = [stream.feed(event(value)) for value in chunks]
    assert [len(events_in(piece)) for piece in out] == [1] * 4
    assert events_in(out[0])[0]["choices"][0]["delta"] == {"role": "assistant", "tool_calls": []}
    assert texts_in(b"".join(out), sealed) == [
        (0, "content", None),
        (0, "reasoning", "hm \u2028"),
        (0, "content", "a"),
        (1, "content", "b"),
        (1, "reasoning_content", "c"),
    ]
    assert events_in(out[3])[0] == chunks[3]
    assert stream.feed(b"data: [DONE]\n\n") == DONE
    assert stream.done


def test_the_index_of_a_choice_is_its_place() -> None:
    """The associated data has the choice's own index, and its position only where that is no integer."""
    for index, place in ((5, 5), (-1, -1), (None, 1), ("7", 1), (True, 1), (2.0, 1)):
        value = chunk({}, {"content": "x"})
        value["choices"][1]["index"] = index
        (got,) = events_in(sealer().feed(event(value)))
        assert ("index" in got["choices"][1]) is (place != 1)
        if place == 1:
            got["choices"][1]["index"] = 1
        assert list(Client(EXCHANGE).texts(got)) == [(place, "content", "x")]


def test_id_and_model_are_frozen_by_the_first_event() -> None:
    """Every event has the first one's id and model, whatever later ones say, and opens with them."""
    stream = sealer()
    assert (stream.emitted_id, stream.emitted_model) == (None, None)
    out = stream.feed(event(chunk({"content": "a"}))) + stream.feed(
        event(chunk({"content": "b"}, id="other", model="other"))
    )
    assert {(value["id"], value["model"]) for value in events_in(out)} == {("chatcmpl-1", "served/M")}
    assert (stream.emitted_id, stream.emitted_model) == ("chatcmpl-1", "served/M")
    assert [text for *_, text in texts_in(out)] == ["a", "b"]


def test_id_and_model_are_minted_once() -> None:
    """Where the first event has none that may leave, ours stay to the end."""
    stream = sealer()
    out = stream.feed(event(chunk({"content": "a"}, id=MARKER, model=None)))
    out += stream.feed(event(chunk({"content": "b"})))
    first, second = events_in(out)
    assert MINTED.fullmatch(first["id"])
    assert stream.emitted_id == first["id"] == second["id"]
    assert first["model"] == second["model"] == MODEL
    assert [text for *_, text in texts_in(out)] == ["a", "b"]


@pytest.mark.parametrize(
    "end",
    [
        b"data: [DONE]\n\n",
        b"data:[DONE]\r\n\r\n",
        b"data:  [DONE] \n\n",
        b"data: [DONE]",
        b"data\ndata: [DONE]\ndata:\n",
    ],
)
def test_done_ends_the_stream(end: bytes) -> None:
    """However it is written, it comes out in one form; what follows it is ignored, in the same piece and later."""
    stream = sealer()
    out = stream.feed(event(chunk({"content": "a"})) + end)
    out += stream.end() if not stream.done else b""
    assert out.endswith(DONE)
    assert len(events_in(out)) == 1
    assert stream.done
    assert stream.feed(b"data: Top|Secret\n\n") == b""
    assert stream.end() == b""
    late = sealer()
    assert late.feed(DONE + b"data: Top|Secret\n\n" + b"x" * 2 * LIMIT) == DONE


BAD_EVENTS: list[tuple[bytes, FailureCode]] = [
    (b'data: {"error":{"message":"Top|Secret"}}\n\n', "upstream_error"),
    (b'data: {"error":"Top|Secret","choices":[]}\n\n', "upstream_error"),
    (b'data: {"error":false,"choices":[]}\n\n', "upstream_error"),
    (b"data: Top|Secret\n\n", "e2ee_encryption_failed"),
    (b"data\n\n", "e2ee_encryption_failed"),
    (b"data: [DONE] Top|Secret\n\n", "e2ee_encryption_failed"),
    (b'data: "[DONE]"\n\n', "e2ee_encryption_failed"),
    (b'data: ["Top|Secret"]\n\n', "e2ee_encryption_failed"),
    (b'data: {"choices":null,"text":"Top|Secret"}\n\n', "e2ee_encryption_failed"),
    (b'data: {"object":"error","message":"Top|Secret"}\n\n', "e2ee_encryption_failed"),
    (b'data: {"choices":["Top|Secret"]}\n\n', "e2ee_encryption_failed"),
    (b'data: {"choices":[{"delta":{"content":["Top|Secret"]}}]}\n\n', "e2ee_encryption_failed"),
    (b'data: {"choices":[{"delta":{"content":"Top|Secret\xff"}}]}\n\n', "e2ee_encryption_failed"),
    (b'data: {"choices":[{"delta":{"content":"Top|Secret\\ud83d"}}]}\n\n', "e2ee_encryption_failed"),
    (b'data: {"choices":[{"delta":{"content":"Top|Secret"}}]\n\n', "e2ee_encryption_failed"),
    (b'data: {"choices":[{"delta":{"content":"Top|Secret"}}]}\ndata: {"choices":[]}\n\n', "e2ee_encryption_failed"),
    (b'data: {"choices":[],"x":Infinity}\n\n', "e2ee_encryption_failed"),
    (b"data: " + b"[" * 5000 + b"\n\n", "e2ee_encryption_failed"),
    (event(chunk({"content": MARKER + "x" * LIMIT})), "e2ee_encryption_failed"),
    (b"data: Top|Secret" + b"x" * LIMIT, "e2ee_encryption_failed"),
    (b": Top|Secret" + b"x" * LIMIT, "e2ee_encryption_failed"),
]


@pytest.mark.parametrize(("bad", "code"), BAD_EVENTS)
@pytest.mark.parametrize("coalesce", [False, True])
def test_an_event_that_cannot_be_sealed_fails_the_stream(bad: bytes, code: FailureCode, coalesce: bool) -> None:
    """It is neither passed on nor skipped; what came before it in the same piece is sealed all the same."""
    good = event(chunk({"content": "a"}))
    after = good + DONE if bad.endswith(b"\n") else b""
    out, failed = run(sealer(coalesce=coalesce), good, good + bad + after)
    assert failed is not None
    assert failed.code == code
    assert texts_in(out) == [(0, "content", "a")] * 2
    assert run(sealer(coalesce=coalesce), bad)[0] == b""


def test_a_stream_without_done_is_cut() -> None:
    """The body's end is no end of the stream, also where the last event is whole or the answer seems finished."""
    finished = chunk({"content": "a"})
    finished["choices"][0]["finish_reason"] = "stop"
    for last, texts in ((event(finished), 2), (event(finished)[:-1], 2), (event(finished)[:-2], 2), (b"", 1)):
        out, failed = run(sealer(), event(chunk({"content": "b"})), last)
        assert failed is not None
        assert failed.code == "upstream_stream_truncated"
        assert len(texts_in(out)) == texts
    _, failed = run(sealer(), b'data: {"choi')
    assert failed is not None
    assert failed.code == "e2ee_encryption_failed"


@pytest.mark.parametrize("code", ["upstream_error", "e2ee_encryption_failed", "upstream_stream_truncated"])
def test_a_failure_is_told_in_constant_words(code: FailureCode) -> None:
    """As an event of one form after the commit, as a 502 before it."""
    error = failure_error(code)
    assert (error.status, error.code, error.type) == (502, code, code)
    (shown,) = [json.loads(data) for data in re.findall(rb"\Adata: (.*)\n\n\Z", failure_event(code))]
    assert shown == {"error": {"message": error.message, "type": code, "param": None, "code": code}}


def test_comments_are_answered_by_our_own() -> None:
    """Once the stream has begun a piece with comments alone gives one comment of ours, and theirs never leave."""
    stream = sealer()
    assert stream.feed(b": Top|Secret\n\n") == b""
    assert len(events_in(stream.feed(b": Top|Secret\n\n" + event(chunk({"content": "a"}))))) == 1
    assert stream.feed(b": Top|Secret\n\n:\n\n") == KEEP_ALIVE
    assert stream.feed(b"event: Top|Secret\n\n") == b""
    assert stream.feed(DONE + b": Top|Secret\n\n") == DONE
    assert stream.feed(b": Top|Secret\n\n") == b""


def test_uncovered_deltas_pass_in_clear_only_where_that_is_set() -> None:
    """Fragments of tool calls are removed, or passed in ASCII."""
    calls = [{"index": 0, "function": {"arguments": "\u2028ä"}}]
    for uncovered, expected in (("reject", {}), ("drop", {}), ("clear", {"tool_calls": calls})):
        out = sealer(uncovered=uncovered).feed(event(chunk({"tool_calls": calls})))  # type: ignore[arg-type]
        assert events_in(out)[0]["choices"][0]["delta"] == expected


def test_deltas_of_one_piece_are_merged_where_that_is_wanted() -> None:
    """Only neighbours that go on with the same text of the same choice become one event; nothing is lost or moved."""
    finish = chunk({"content": "g"})
    finish["choices"][0]["finish_reason"] = "stop"
    other = chunk({"content": "h"})
    other["choices"][0]["index"] = 1
    chunks = [
        *(chunk({"reasoning": text}) for text in "ab"),
        *(chunk({"content": text, "role": None}) for text in "cd"),
        chunk({"role": "assistant", "content": "e"}),
        chunk({"content": "1"}),
        chunk({"content": "f"}, usage={"n": 1}),
        chunk({"content": "2"}),
        finish,
        other,
        chunk({"content": "i"}),
        chunk({"content": "j"}, {"content": "k"}),
        chunk(),
        chunk({"content": "l"}),
        chunk({"content": ""}),
        chunk({"content": "m"}),
    ]
    piece = b"".join(map(event, chunks)) + DONE
    expected = [*"abcde1f2ghijklm"]
    assert [text for *_, text in texts_in(sealer().feed(piece))] == expected
    stream = sealer(coalesce=True)
    out = stream.feed(piece)
    assert [text for *_, text in texts_in(out)] == ["ab", "cd", *"e1f2ghijk", "lm"]
    assert out.endswith(DONE)
    parts = [stream.feed(event(value)) for stream in [sealer(coalesce=True)] for value in chunks[:2]]
    assert [text for *_, text in texts_in(b"".join(parts))] == ["a", "b"]


ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
TEXTS = st.sampled_from([MARKER, f"{MARKER}\u2028", "\u0085", "ä", "x\ry\nz", "", "\U0001f600", "data: x\n\n"])
DELTAS = st.dictionaries(st.sampled_from(["content", "reasoning", "reasoning_content", "role", "name"]), TEXTS)
DELTAS |= st.dictionaries(st.sampled_from(["tool_calls", "refusal", MARKER, "content"]), st.just([{"a": MARKER}]))
CHUNKS = st.builds(
    lambda delta, choice, top: {"choices": [{"index": 0, "delta": delta, **choice}], **top},
    DELTAS,
    st.dictionaries(st.sampled_from(["logprobs", "finish_reason", "stop_reason", MARKER]), TEXTS),
    st.dictionaries(st.sampled_from(["id", "model", "usage", "x", "error", "prompt_token_ids"]), TEXTS | st.none()),
)


@st.composite
def hostile_streams(draw: st.DrawFn) -> bytes:
    """Events as no server sends them and some as one does, in which the marker may be anywhere."""
    parts: list[bytes] = [draw(st.sampled_from([b"", b"\xef\xbb\xbf", "\ufeff\ufeff".encode()]))]
    for _ in range(draw(st.integers(0, 6))):
        end = draw(ENDS)
        kind = draw(st.sampled_from(["chunk", "chunk", "chunk", "lines", "raw", "field", "done"]))
        if kind in ("chunk", "lines"):
            text = json.dumps(draw(CHUNKS), ensure_ascii=draw(st.booleans()), indent=1 if kind == "lines" else None)
            prefix = draw(st.sampled_from([b"data: ", b"data:", b"data:  ", b"Data: ", b""]))
            parts += [prefix + line.encode() + end for line in text.split("\n")]
        elif kind == "raw":
            parts.append(draw(st.binary(max_size=8)) + MARKER.encode() + draw(st.binary(max_size=8)) + end)
        elif kind == "field":
            name = draw(st.sampled_from([b":", b"event: ", b"id: ", b"retry: ", b"data: ", b"data: [DONE]", b" "]))
            parts.append(name + MARKER.encode() + end)
        else:
            parts.append(b"data: [DONE]" + end)
        parts.append(draw(st.sampled_from([end, end, end, b""])))
    return b"".join(parts)


@settings(max_examples=150, deadline=None)
@given(hostile_streams(), st.data(), st.booleans(), st.sampled_from(["reject", "drop"]))
def test_the_marker_never_leaves(stream: bytes, data: st.DataObject, coalesce: bool, uncovered: Uncovered) -> None:
    """Whatever an upstream sends, split anywhere: its text is in no byte emitted and in no exception, and what is
    emitted opens."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    out, _ = run(sealer(uncovered=uncovered, coalesce=coalesce), *pieces)
    assert MARKER.encode() not in out
    assert MARKER.encode() not in json.dumps(events_in(out.replace(KEEP_ALIVE, b"")), ensure_ascii=False).encode()
    texts_in(out.replace(KEEP_ALIVE, b""))


@settings(max_examples=80, deadline=None)
@given(st.lists(TEXTS.filter(bool), max_size=6), ENDS, st.data(), st.booleans())
def test_every_text_arrives_once_and_in_order(texts: list[str], end: bytes, data: st.DataObject, ascii: bool) -> None:
    """A good stream, with any line ends, written in any way and split anywhere, is sealed event by event."""
    pieces = []
    for text in texts:
        lines = json.dumps(chunk({"content": text}), ensure_ascii=ascii, indent=data.draw(st.sampled_from([None, 1])))
        space = data.draw(st.sampled_from([b"", b" "]))
        pieces += [b"data:" + space + line.encode() + end for line in lines.split("\n")] + [end]
        pieces.append(data.draw(st.sampled_from([b"", b": comment" + end, b"event: x" + end + end, end + end])))
    stream = b"".join([*pieces, b"data: [DONE]", end, end])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    emitted, _ = run(sealer(), *(stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)))
    emitted = emitted.replace(KEEP_ALIVE, b"")
    assert emitted.endswith(DONE)
    assert texts_in(emitted) == [(0, "content", text) for text in texts]
