"""Sealed streams: every rule for the two layers of events, however the bytes are cut into pieces."""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from attrs import frozen
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.demo.chute_sealing import StreamSealing, clear_event, outer_event
from chutes_autopilot.e2ee.chute import ChuteProtocolError, ResponseSecret, Wishes
from chutes_autopilot.e2ee.chute_stream import EVENT_COST, SLICE_BYTES, ChuteStreamOpener

SECRET = ResponseSecret()
SEALING = StreamSealing(MLKEM768PublicKey.from_public_bytes(b64decode(SECRET.public_base64)))
INIT = outer_event("e2e_init", SEALING.ciphertext)
ALL = Wishes(stream=True, usage=True, continuous_usage=True)
FEW = Wishes(stream=True, usage=False, continuous_usage=False)
MAX_EVENT, MAX_MANY = 4096, 4 * 1024 * 1024
A = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
B = b'data: {"choices":[{"delta":{"content":"b"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
TWO_LINES = b'data: {\ndata: "x":1}\n\n'
ERROR = b'data: {"error":{}}\n\n'
FORGED = clear_event({"usage": {}, "choices": [{"delta": "forged"}]})


def sealed(*clear: bytes) -> bytes:
    """A record for each."""
    return b"".join(outer_event("e2e", SEALING.record(piece)) for piece in clear)


@frozen
class Outcome:
    """What came out, and how it ended: "done", or a fault's code."""

    clear: bytes
    ended: str


def opened(pieces: Iterable[bytes], wishes: Wishes = ALL, *, max_records: int = 1000) -> Outcome:
    opener = ChuteStreamOpener(SECRET, wishes, max_event_bytes=MAX_EVENT, max_records=max_records)
    clear = b""
    try:
        for piece in pieces:
            clear += opener.feed(piece)
            while opener.more:
                clear += opener.take()
        clear += opener.end()
    except ChuteProtocolError as fault:
        return Outcome(clear + fault.opened, fault.code)
    assert opener.done
    return Outcome(clear, "done")


def chunk(content: str, tokens: Any = None, index: int = 0, **more: Any) -> bytes:
    usage = {} if tokens is None else {"usage": {"completion_tokens": tokens}}
    return b"data: %b\n\n" % json.dumps({"choices": [{"index": index, "delta": content}], **usage, **more}).encode()


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """The same bytes in pieces; a place is one of any size."""
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


RAW_RECORD = SEALING.record(A)
RULES: list[tuple[str, bytes, bytes, str]] = [
    ("whole", INIT + sealed(A, B, DONE), A + B + DONE, "done"),
    ("lines", INIT + sealed(A[:-1], b"\n", B[:-1], b"\n", DONE[:-1], b"\n"), A + B + DONE, "done"),
    ("records that hold parts", INIT + sealed((A + B)[:7], (A + B)[7:] + DONE), A + B + DONE, "done"),
    ("no blank line at the end", INIT + sealed(A, DONE[:-2]), A + DONE, "done"),
    ("outer event left open", (INIT + sealed(A, DONE))[:-2], A + DONE, "done"),
    ("comments", b": hi\n\n" + INIT + b": x\n" + sealed(b": y\n\n", A, DONE), A + DONE, "done"),
    ("fields that can carry text", INIT + sealed(b"event: x\nid: 1\n", A, DONE), A + DONE, "done"),
    ("a chunk over two lines", INIT + sealed(TWO_LINES, DONE), TWO_LINES + DONE, "done"),
    ("clear usage", INIT + FORGED + sealed(A, DONE), A + DONE, "done"),
    ("clear done", INIT + b"data: [DONE]\n\n" + sealed(A) + b"data:  [DONE] \n\n" + sealed(DONE), A + DONE, "done"),
    ("after the end", INIT + sealed(A, DONE, b"\n", b"x") + b"data: junk\n\n" + INIT + sealed(B), A + DONE, "done"),
    ("an error of the model server", INIT + sealed(ERROR, DONE), ERROR + DONE, "done"),
    ("truncated", INIT + sealed(A), A, "truncated"),
    ("cut in an inner event", INIT + sealed(A, B[:-1]), A, "truncated"),
    ("cut in an inner line", INIT + sealed(A, B[:20]), A, "truncated"),
    ("cut in an outer event", (INIT + sealed(A, B))[:-9], A, "truncated"),
    ("truncated by a clear done", INIT + sealed(A) + b"data: [DONE]\n\n", A, "truncated"),
    ("an end without a chunk", INIT + sealed(DONE), b"", "truncated"),
    ("empty", b"", b"", "no_init"),
    ("no init", sealed(A, DONE), b"", "no_init"),
    ("second init", INIT + sealed(A) + INIT + sealed(DONE), A, "second_init"),
    ("init of the wrong size", outer_event("e2e_init", SEALING.ciphertext[:-1]), b"", "bad_blob"),
    ("init that is no base64", INIT.replace(b'"}', b' "}'), b"", "bad_blob"),
    ("another key's init", outer_event("e2e_init", bytes(1088)) + sealed(A), b"", "bad_tag"),
    ("short record", INIT + outer_event("e2e", bytes(27)), b"", "bad_blob"),
    ("record that is no base64", INIT + clear_event({"e2e": "-" * 40}), b"", "bad_blob"),
    ("changed record", INIT + outer_event("e2e", RAW_RECORD[:-1] + bytes([RAW_RECORD[-1] ^ 1])), b"", "bad_tag"),
    ("record given twice", INIT + outer_event("e2e", RAW_RECORD) * 2, A, "duplicate_record"),
    ("clear error", INIT + sealed(A) + clear_event({"e2e_error": {"message": "secret"}}), A, "clear_error"),
    ("not JSON", INIT + sealed(A) + b"data: x\n\n", A, "garbage"),
    ("not an object", INIT + b"data: []\n\n", b"", "garbage"),
    ("unknown members", INIT + clear_event({"choices": []}), b"", "garbage"),
    ("several members", INIT + clear_event({"usage": {}, "e2e": b64encode(RAW_RECORD).decode()}), b"", "garbage"),
    ("a record that is a number", INIT + clear_event({"e2e": 1}), b"", "garbage"),
    ("a record that is null", INIT + clear_event({"e2e": None}), b"", "garbage"),
    ("an init beside an error", clear_event({"e2e_init": "", "e2e_error": None}), b"", "garbage"),
    ("outer event too large", INIT + b"data: " + b"x" * (MAX_EVENT + 1) + b"\n\n", b"", "too_large"),
    ("inner event too large", INIT + sealed(*[b"data: " + b"x" * 2000, *[b"x" * 2000] * 2]), b"", "too_large"),
    ("inner text", INIT + sealed(A, b"data: text\n\n"), A, "garbage"),
    ("inner list", INIT + sealed(b"data: []\n\n"), b"", "garbage"),
    ("inner bytes that are no text", INIT + sealed(b'data: {"a":"\xff"}\n\n'), b"", "garbage"),
    ("reordered", INIT + sealed(chunk("a", 2), chunk("b", 1)), chunk("a", 2), "reordered"),
]


@pytest.mark.parametrize(("stream", "clear", "ended"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES])
def test_a_rule(stream: bytes, clear: bytes, ended: str) -> None:
    """What comes out before the fault, and which fault it is, in one piece and byte by byte."""
    assert opened([stream]) == Outcome(clear, ended)
    assert opened(stream[i : i + 1] for i in range(len(stream))) == Outcome(clear, ended)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(RULES), st.lists(st.integers(0, 100_000), max_size=12))
def test_pieces_change_nothing(rule: tuple[str, bytes, bytes, str], places: list[int]) -> None:
    """A rule holds wherever the connection cuts the bytes."""
    _, stream, clear, ended = rule
    assert opened(cut(stream, places)) == Outcome(clear, ended)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=12), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_record_borders_mean_nothing(places: list[int], line_end: bytes) -> None:
    """The inner stream may be cut into records anywhere and end its lines in any of the three ways."""
    inner = "".join(['data: {"text":"\u2028 \u0085 é \\n"}\n\n', A.decode(), ": x\n\n", DONE.decode()]).encode()
    stream = INIT + sealed(*cut(inner.replace(b"\n", line_end), places))
    assert opened([stream]) == Outcome(inner.replace(b": x\n\n", b""), "done")


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_hostile_bytes_are_never_relayed(junk: bytes) -> None:
    """Whatever stands between the records in clear, what comes out was in a record."""
    marker = b"MARKER" + junk
    outcome = opened([INIT + sealed(A) + marker + b"\n\n" + sealed(B, DONE)])
    assert b"MARKER" not in outcome.clear
    assert outcome.clear.startswith(A)


def test_records_are_counted() -> None:
    """One more than allowed ends the stream."""
    stream = INIT + sealed(A, B, DONE)
    assert opened([stream], max_records=3) == Outcome(A + B + DONE, "done")
    assert opened([stream], max_records=2) == Outcome(A + B, "too_large")


def test_a_dropped_record_passes() -> None:
    """The limit of the protocol: nothing numbers the records."""
    records = [sealed(piece) for piece in (A, B, DONE)]
    assert opened([INIT, records[0], records[2]]) == Outcome(A + DONE, "done")


@pytest.mark.parametrize(
    ("chunks", "ended"),
    [
        ([chunk("a", 1), chunk("b", 1), chunk("c", 2)], "done"),
        ([chunk("a", 5), chunk("b", "4"), chunk("c", True), chunk("d", 4.5), chunk("e")], "done"),
        ([chunk("a", 5, index=0), chunk("b", 1, index=1), chunk("c", 6, index=0)], "done"),
        ([chunk("a", 5), b'data: {"choices":[],"usage":{"completion_tokens":5}}\n\n'], "done"),
        ([chunk("a", 5), b'data: {"choices":[],"usage":{"completion_tokens":4}}\n\n'], "reordered"),
        ([chunk("a", 5, index=1), chunk("b", 4, index=1)], "reordered"),
        ([b'data: {"usage":{"completion_tokens":3}}\n\n', chunk("a", 2)], "reordered"),
    ],
)
def test_counters_show_a_wrong_order(chunks: list[bytes], ended: str) -> None:
    """Integers only, and each choice has its own: servers count them one by one."""
    assert opened([INIT + sealed(*chunks, DONE)]).ended == ended


PLAIN = b'data: {"id":"x","n":1.50,"choices":[{"index":0}]}\n\n'
COUNTED = b'data: {"id":"x","n":1.50,"choices":[{"index":0}],"usage":{"completion_tokens":7}}\n\n'
FINAL = b'data: {"choices":[],"usage":{"completion_tokens":7}}\n\n'


@pytest.mark.parametrize(
    ("wishes", "clear"),
    [
        (FEW, PLAIN),
        (Wishes(stream=True, usage=True, continuous_usage=False), PLAIN + FINAL),
        (Wishes(stream=True, usage=False, continuous_usage=True), COUNTED),
        (ALL, COUNTED + FINAL),
    ],
)
def test_counters_nobody_asked_for_are_taken_out(wishes: Wishes, clear: bytes) -> None:
    """The platform forces them on; every other byte of a chunk stays."""
    assert opened([INIT + sealed(COUNTED, FINAL, DONE)], wishes) == Outcome(clear + DONE, "done")


def test_counters_of_an_error_and_of_half_a_pair_stay_as_they_are() -> None:
    """An error is relayed whole; a chunk with half a surrogate pair is still one."""
    error = b'data: {"error":{"a":1},"usage":{}}\n\n'
    half = b'data: {"x":"\\ud83d","choices":[{}],"usage":{}}\n\n'
    outcome = opened([INIT + sealed(half, error, DONE)], FEW)
    assert outcome == Outcome(b'data: {"x":"\\ud83d","choices":[{}]}\n\n' + error + DONE, "done")


def test_only_a_record_is_authentic() -> None:
    """Neither the init nor what is in clear stops the wait for the instance's first word."""
    opener = ChuteStreamOpener(SECRET, ALL, max_event_bytes=MAX_EVENT, max_records=10)
    opener.feed(b": x\n\n" + INIT + clear_event({"usage": {}}))
    assert not opener.authenticated
    opener.feed(sealed(b"da"))
    assert opener.authenticated
    assert repr(opener) == "ChuteStreamOpener(done=False)"


def test_a_record_of_very_many_events_is_opened_in_slices() -> None:
    """However little of each is relayed; what a fault comes after is not lost."""
    many = chunk("x") * 20_000
    opener = ChuteStreamOpener(SECRET, ALL, max_event_bytes=MAX_MANY, max_records=10)
    slices = [opener.feed(INIT + sealed(many + b"data: no JSON\n\n"))]
    with pytest.raises(ChuteProtocolError) as fault:
        slices.extend(iter(opener.take, None))
    assert (fault.value.code, opener.more) == ("garbage", False)
    assert b"".join([*slices, fault.value.opened]) == many
    assert max(map(len, slices)) <= SLICE_BYTES
    assert max(each.count(b"data:") for each in slices) <= SLICE_BYTES / EVENT_COST


def test_what_is_not_relayed_takes_its_time_too() -> None:
    """Counters that nobody asked for come out as slices of nothing."""
    counters = b'data: {"choices":[],"usage":{}}\n\n' * 5000
    opener = ChuteStreamOpener(SECRET, FEW, max_event_bytes=MAX_MANY, max_records=10)
    slices = [opener.feed(INIT + sealed(counters))]
    while opener.more:
        slices.append(opener.take())
    assert (len(slices) > 5, set(slices)) == (True, {b""})
