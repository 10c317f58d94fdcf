"""Two streams made one: what was sent is known, and what another model says follows upon it."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.wire.event_stream import EventParser
from chutes_autopilot.wire.splice import ECHO_CHARACTERS, Splice
from chutes_autopilot.wire.stream_text import MAX_EVENT_BYTES, MAX_TEXT, StreamText, whole_events

DONE = b"data: [DONE]\n\n"
TEXTS = st.lists(st.text(max_size=8), max_size=8)
LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def chunk(text: str | None = None, name: str = "first", finish: str | None = None, **delta: Any) -> bytes:
    if text is not None:
        delta["content"] = text
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"id": name, "created": 7, "model": name, "choices": [choice]}).encode() + b"\n\n"


def stream(texts: list[str], name: str = "first") -> bytes:
    """A whole answer."""
    events = [chunk("", name, role="assistant"), *(chunk(text, name) for text in texts), chunk(None, name, "stop")]
    return b"".join(events) + DONE


def sent(*events: bytes) -> StreamText:
    text = StreamText()
    text.read(b"".join(events))
    return text


def cut_into(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


def spliced(splice: Splice, data: bytes, cuts: list[int] | None = None) -> bytes:
    return b"".join(splice.feed(piece) for piece in cut_into(data, cuts or []))


def chunks(data: bytes) -> list[Any]:
    """What a client reads; it never reads half a chunk."""
    parser = EventParser(max_event_bytes=1 << 20)
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return [json.loads(event) for event in parser.feed(lines) if event != b"[DONE]"]


def text_of(data: bytes) -> str:
    return "".join(choice["delta"].get("content") or "" for c in chunks(data) for choice in c["choices"])


@given(TEXTS, st.integers(0, 5000), st.lists(st.integers(0, 5000), max_size=6), LINE_ENDS)
def test_what_is_relayed_is_what_is_remembered(texts: list[str], cut: int, cuts: list[int], end: bytes) -> None:
    """Wherever a stream breaks off, in whatever pieces it came: no half event is sent, and the text sent is known."""
    data = stream(texts).replace(b"\n", end)
    data = data[: cut % (len(data) + 1)]
    remembered, relayed, held = StreamText(), b"", b""
    for piece in cut_into(data, cuts):
        whole, held = whole_events(held + piece)
        remembered.read(whole)
        relayed += whole
    assert relayed + held == data
    assert remembered.plain
    assert remembered.text == text_of(relayed)


@given(TEXTS, TEXTS, st.integers(0, 5000), st.lists(st.integers(0, 5000), max_size=6), st.booleans())
def test_the_client_reads_one_answer(
    texts: list[str], others: list[str], cut: int, cuts: list[int], restart: bool
) -> None:
    """The text of the first as far as it came and then the rest, under one id, for any cut and any pieces."""
    first = stream(texts)[:-1]
    relayed, _ = whole_events(first[: cut % len(first)])
    before = sent(relayed)
    begun = before.text
    again = [begun] if restart else []
    splice = Splice(before, restart=restart)
    rest = spliced(splice, stream(again + others, "second"), cuts) + splice.end()
    assert splice.progress == "going"
    said = "".join(others)
    if not restart and len(begun) >= ECHO_CHARACTERS:
        said = said.removeprefix(begun)  # that is taken for an echo
    assert text_of(relayed + rest) == begun + said
    assert {c["id"] for c in chunks(relayed + rest)} == {"first" if relayed else "second"}
    assert rest.endswith(DONE)
    assert all("role" not in choice["delta"] for c in chunks(rest) for choice in c["choices"])


@given(st.text(min_size=1, max_size=12), TEXTS, st.lists(st.integers(0, 5000), max_size=6))
def test_a_restart_that_says_something_else_is_not_relayed(begun: str, texts: list[str], cuts: list[int]) -> None:
    """Nothing of it, unless it repeats all that was sent."""
    splice = Splice(sent(chunk(begun)), restart=True)
    rest = spliced(splice, stream(texts, "second"), cuts)
    said = "".join(texts)
    if said.startswith(begun):
        assert begun + text_of(rest) == said
    else:
        assert (rest, splice.progress) == (b"", "unlike")


def test_a_prefilled_answer_may_echo_what_was_sent() -> None:
    """A long text at its beginning is the echo and is left out; what only begins like it is not lost."""
    begun = "x" * ECHO_CHARACTERS
    echo = Splice(sent(chunk(begun)), restart=False)
    assert text_of(spliced(echo, stream([begun[:9], begun[9:] + " and", " on"], "second"))) == " and on"
    alike = Splice(sent(chunk(begun)), restart=False)
    assert text_of(spliced(alike, stream([begun[:9], "yz"], "second"))) == begun[:9] + "yz"
    short = Splice(sent(chunk(begun)), restart=False)
    assert text_of(spliced(short, stream([begun[:9]], "second"))) == begun[:9]


def test_an_answer_that_was_complete_but_for_its_end_gets_its_end() -> None:
    """The model has nothing to add: its finish_reason and usage are relayed."""
    splice = Splice(sent(chunk("all")), restart=False)
    rest = chunks(spliced(splice, chunk(None, "second", "stop") + usage("second", 5, 3) + DONE))
    assert [c["choices"][0]["finish_reason"] for c in rest[:1]] == ["stop"]
    assert (rest[1]["id"], rest[1]["usage"]["completion_tokens"]) == ("first", 3)


def usage(name: str, prompt: object, completion: object, text: str = "") -> bytes:
    """A chunk with the token counts of its answer so far, as the platform sends them."""
    used = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 0, "more": {"x": 1}}
    choices = [{"index": 0, "delta": {"content": text}}] if text else []
    return b"data: " + json.dumps({"id": name, "choices": choices, "usage": used}).encode() + b"\n\n"


def test_usage_counts_the_prompt_once_and_the_tokens_of_both() -> None:
    """Of a prefilled answer, whose own prompt has the text that was sent in it; what else it says stays."""
    broken = b'data: {"choices":[]}\n\ndata: {"error":{"message":"engine","code":500}}\n\n'
    before = sent(usage("first", 10, 1, "a"), usage("first", 10, 2, "b"), broken)
    splice = Splice(before, restart=False)
    rest = chunks(spliced(splice, usage("second", 12, 1, "c") + usage("second", 12, 5) + DONE))
    assert [c["usage"]["completion_tokens"] for c in rest] == [3, 7]
    assert rest[-1]["usage"] == {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17, "more": {"x": 1}}


@pytest.mark.parametrize(("restart", "prompt", "completion"), [(True, 10, 2), (False, None, 2), (False, 10, "2")])
def test_usage_that_is_whole_or_unknown_stays(restart: bool, prompt: object, completion: object) -> None:
    """A restarted answer's counts all of it; and nothing is added to what is no number."""
    splice = Splice(sent(usage("first", prompt, completion, "a")), restart=restart)
    rest = chunks(spliced(splice, usage("second", 12, 1, "ab") + usage("second", 12, 5)))
    assert rest[-1]["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    ("data", "progress"),
    [
        (DONE, "failed"),
        (b'data: {"error":{"message":"x"}}\n\n', "failed"),
        (b"data: no JSON\n\n", "failed"),
        (b"data: " + b"x" * (MAX_EVENT_BYTES + 10), "failed"),
        (chunk(tool_calls=[{"index": 0}]), "unlike"),
        (chunk(refusal="no"), "unlike"),
        (b": ping\n\n" + chunk("", role="assistant"), "waiting"),
    ],
)
def test_what_does_not_go_on(data: bytes, progress: str, restart: bool) -> None:
    """Errors, nothing at all and more than text give the client nothing."""
    splice = Splice(sent(chunk("text")), restart=restart)
    assert (splice.feed(data), splice.progress) == (b"", progress)


def test_reasoning_says_that_a_prefill_was_not_understood() -> None:
    """Before a restarted answer it is left out."""
    thought = chunk(None, "second", reasoning_content="hm")
    prefilled, restarted = (Splice(sent(chunk("te")), restart=restart) for restart in (False, True))
    assert (prefilled.feed(thought), prefilled.progress) == (b"", "unlike")
    assert text_of(spliced(restarted, thought + chunk("text", "second"))) == "xt"


def test_a_stream_that_ends_while_it_is_waited_for_has_failed() -> None:
    """Also in an event without its blank line, unless that goes on."""
    splice = Splice(sent(chunk("text")), restart=False)
    assert (splice.end(), splice.progress) == (b"", "failed")
    splice = Splice(sent(chunk("text")), restart=False)
    splice.feed(chunk(" on", "second").rstrip())
    assert (text_of(splice.end()), splice.progress) == (" on", "going")


@pytest.mark.parametrize(
    "event",
    [
        chunk(reasoning_content="hm"),
        chunk(tool_calls=[{"index": 0}]),
        b'data: {"choices":[{"index":1,"delta":{"content":"b"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"b"},"logprobs":{"content":[{}]}}]}\n\n',
        b'data: {"error":{"message":"x"}}\n\n',
        b'data: {"error":{"message":"x","code":400}}\n\n',
        b'data: {"error":"x"}\n\n',
        b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":["b"]}}]}\n\n',
        b"data: [1]\n\n",
        b"data: no JSON\r\n\r\n",
        chunk("x" * (MAX_TEXT // 2)) + chunk("x" * (MAX_TEXT // 2)),
    ],
    ids=[
        "reasoning",
        "tool",
        "choices",
        "logprobs",
        "error",
        "400",
        "text",
        "surrogate",
        "parts",
        "list",
        "CR",
        "long",
    ],
)
def test_what_is_more_than_a_plain_text_is_not_remembered(event: bytes) -> None:
    """Nor what is too long."""
    text = sent(chunk("a"), event)
    assert (text.plain, text.text) == (False, "")


@pytest.mark.parametrize("fault", [b"data: {no JSON", b"data: \xff", b'data: {"error":{"message":"x","code":500}}'])
def test_a_fault_is_found_with_its_place(fault: bytes) -> None:
    """An event that is no JSON, or an engine's failure: what came before it is the text."""
    text, before = StreamText(), b": ping\n\n" + chunk("a") + b"\n\n" + chunk("b")
    assert text.read(before + fault + b"\n\n" + DONE) == len(before)
    assert (text.faulty, text.plain, text.finished, text.text) == (True, True, False, "ab")


def test_a_finished_text_is_known_as_such() -> None:
    """By its finish_reason or [DONE]."""
    assert not sent(chunk("a")).finished
    assert sent(chunk("a"), chunk(None, finish="stop")).finished
    assert sent(DONE).finished
