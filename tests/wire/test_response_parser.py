"""The strict, incremental response parser."""

from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.wire.headers import downstream_response_headers
from chutes_autopilot.wire.http1 import (
    Body,
    End,
    Event,
    Invalid,
    ResponseHead,
    ResponseParser,
    request_head,
    shape_of,
    whole_response,
)


def parse(data: bytes, *, step: int | None = None, close: bool = False) -> list[Event]:
    """All events of ``data`` given in pieces of ``step`` bytes, adjacent bodies joined."""
    parser = ResponseParser()
    events: list[Event] = []
    for start in range(0, len(data), step or max(1, len(data))):
        events += parser.receive(data[start : start + (step or len(data))])
        if events and isinstance(events[-1], End | Invalid):
            break
    if close:
        events += parser.closed()
    joined: list[Event] = []
    for event in events:
        if isinstance(event, Body) and joined and isinstance(joined[-1], Body):
            joined[-1] = Body(joined[-1].data + event.data)
        else:
            joined.append(event)
    return joined


def head(status: int = 200, *headers: tuple[bytes, bytes], reason: bytes = b"OK") -> ResponseHead:
    return ResponseHead(status, reason, headers)


COMPLETE = [
    (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        [head(200, (b"Content-Length", b"5")), Body(b"hello"), End(True)],
    ),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nX-T: 1\r\n\r\n",
        [head(200, (b"Transfer-Encoding", b"chunked")), Body(b"hello!"), End(True)],
    ),
    (b"HTTP/1.1 204\r\nX: \t a b \t\r\n\r\n", [head(204, (b"X", b"a b"), reason=b""), End(True)]),
    (
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
        [head(304, (b"Content-Length", b"9"), reason=b"Not Modified"), End(True)],
    ),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", [head(200, (b"Content-Length", b"0")), End(True)]),
    (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: Close\r\n\r\nx",
        [head(200, (b"Content-Length", b"1"), (b"Connection", b"Close")), Body(b"x"), End(False)],
    ),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", [head(200, (b"Content-Length", b"1")), Body(b"x"), End(False)]),
    (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        [head(200, (b"Content-Length", b"0")), End(True)],
    ),
]


@pytest.mark.parametrize(("data", "expected"), COMPLETE)
@pytest.mark.parametrize("step", [None, 1, 7])
def test_a_response_reads_the_same_however_it_is_cut_into_pieces(
    data: bytes, expected: list[Event], step: int | None
) -> None:
    """Head, body without transfer coding, end; informational responses are skipped."""
    assert parse(data, step=step) == expected


@given(st.sampled_from([data for data, _ in COMPLETE]), st.data())
def test_cuts_at_any_two_places_change_nothing(data: bytes, draw: st.DataObject) -> None:
    """The events do not depend on where the network cut the bytes."""
    first = draw.draw(st.integers(0, len(data)))
    second = draw.draw(st.integers(first, len(data)))
    parser = ResponseParser()
    events = [e for piece in (data[:first], data[first:second], data[second:]) if piece for e in parser.receive(piece)]
    assert b"".join(e.data for e in events if isinstance(e, Body)) == b"".join(
        e.data for e in parse(data) if isinstance(e, Body)
    )
    assert [e for e in events if not isinstance(e, Body)] == [e for e in parse(data) if not isinstance(e, Body)]


def test_a_body_without_length_ends_with_the_connection() -> None:
    """RFC 9112 section 6.3, rule 8: the close is the end, and the connection is used up."""
    assert parse(b"HTTP/1.1 200 OK\r\n\r\nall", close=True) == [head(), Body(b"all"), End(False)]


def test_bytes_after_the_end_make_the_connection_unusable() -> None:
    """An upstream that sends more than it announced is not trusted with another request."""
    assert parse(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxy")[-1] == End(False)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 O\x00K\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
        b"HTTP/1.1 200 OK\r\nA: 1\nB: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: 1\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \x001\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 17,
        b"HTTP/1.1 200 OK\r\n" + b"A: 1\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000,
    ],
)
def test_an_ambiguous_head_is_invalid(data: bytes) -> None:
    """Nothing is guessed in a head: it is passed on to another reader, who might guess differently."""
    assert [type(event) for event in parse(data)] == [Invalid]


@pytest.mark.parametrize(
    "data",
    [
        b"5\r\nhelloX\r\n",
        b"x\r\n",
        b"-1\r\n",
        b"0x5\r\n",
        b"5\nhello",
        b"f" * 16 + b"\r\n",
        b";" * 5000,
        b"0\r\nbad\r\n\r\n",
    ],
)
def test_a_malformed_chunk_is_invalid_and_what_came_before_is_kept(data: bytes) -> None:
    """The bytes before the fault are delivered, then the response is invalid."""
    events = parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n" + data)
    assert isinstance(events[1], Body)
    assert events[1].data.startswith(b"ok")
    assert isinstance(events[-1], Invalid)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ],
)
def test_a_close_before_the_end_is_a_cut(data: bytes) -> None:
    """A response that ends early is never complete."""
    assert isinstance(parse(data, close=True)[-1], Invalid)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_raise(data: bytes) -> None:
    """Garbage ends in Invalid, not in an exception."""
    parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + data, step=9, close=True)
    parse(data, step=5, close=True)


def test_the_chunks_of_one_read_are_one_piece() -> None:
    """Many small chunks that arrive together are written to the client at once."""
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"2\r\nab\r\n" * 50
    assert [e.data for e in ResponseParser().receive(data) if isinstance(e, Body)] == [b"ab" * 50]


def test_a_request_head_states_its_length() -> None:
    """RFC 9112 section 3."""
    made = request_head(b"POST", b"/v1/x?y=1", b"h:1", b"A: b\r\n", 3)
    assert made == b"POST /v1/x?y=1 HTTP/1.1\r\nHost: h:1\r\nA: b\r\nContent-Length: 3\r\n\r\n"


@pytest.mark.parametrize("chunk", [b"1;x\r\na\r\n", b"A\r\n\r\nxxxxxx\r\n\r\n", b"3\r\n\r\nx\r\n"])
def test_chunks_that_are_not_plain_take_no_longer_for_being_many(chunk: bytes) -> None:
    """What cannot be taken in one step is read chunk by chunk, not with a look at all the rest for each."""

    def seconds(count: int) -> float:
        parser = ResponseParser()
        parser.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        begun = process_time()
        assert parser.receive(chunk * count)
        return process_time() - begun

    assert min(seconds(8000) for _ in range(3)) < 60 * min(seconds(500) for _ in range(3))


def test_whole_chunks_around_a_cut_one_pass_in_one_piece() -> None:
    """A read that begins and ends within chunks gives its bytes once, and the next read goes on where it ended."""
    text = [b"%d" % number * (number % 40 + 1) for number in range(200)]
    raw = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in text) + b"0\r\n\r\n"
    for size in (1, 7, 100, 1000, len(raw)):
        parser, got, ends = ResponseParser(), b"", 0
        parser.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(raw), size):
            for event in parser.receive(raw[at : at + size]):
                if isinstance(event, Body):
                    got += event.data
                    assert not event.framed or event.framed in raw
                ends += event == End(reusable=True)
        assert (got, ends) == (b"".join(text), 1)


_VALUES = st.sampled_from(
    [b"a", b"bb", b"Text/Event-Stream", b"text/event-stream", b"close", b"keep-alive", b"\xe9 x", b""]
)
_NAMES = st.sampled_from(
    [
        b"Date",
        b"X-Request-Id",
        b"X-Any",
        b"x-any",
        b"Content-Type",
        b"Connection",
        b"Retry-After",
        b"X.Y+Z",
        b"X-Chutes-Autopilot-Selected",
    ]
)
_STARTS = st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.1 200 (ok)+", b"HTTP/1.1 404 Not Found", b"HTTP/1.1 200 "])
_BODIES = st.sampled_from([b"", b"x", b"\r\n\r\n", b"Date: y\r\n\r\nx"])


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer that may be whole, or almost."""
    body = draw(_BODIES)
    length = len(body) + draw(st.sampled_from([0, 0, 0, 1]))
    lines = [b"%b: %b" % field for field in draw(st.lists(st.tuples(_NAMES, _VALUES), max_size=4))]
    name = draw(st.sampled_from([b"Content-Length", b"content-length"]))
    lines.insert(draw(st.integers(0, len(lines))), b"%b: %d" % (name, length))
    spoilt = draw(st.sampled_from([b"", b"", b"", b"\n", b"\x00", b" "]))
    return b"\r\n".join([draw(_STARTS), *lines]) + spoilt + b"\r\n\r\n" + body


@given(answers(), answers())
def test_a_shape_finds_in_another_answer_what_reading_it_from_scratch_would(one: bytes, other: bytes) -> None:
    """Or nothing: it is never mistaken, and knows the answer it was made from."""
    first = whole_response(one)
    shape = shape_of(first[0]) if first is not None else None
    if first is None or shape is None:
        assert first is None or first[0].status != 200 or b" \r\n" in one
        return
    for data in (one, other):
        found, expected = shape.whole(data), whole_response(data)
        if found is None:
            assert data is other or b" \r\n" in one
            continue
        assert expected is not None
        assert (found[0], found[1], found[0].block) == (*expected, expected[0].block)
        passing = ResponseHead(200, b"", None, found[0].passing).headers
        assert passing == tuple(downstream_response_headers(expected[0].headers))
        assert found[0].index.keys() == expected[0].index.keys()
        for name in found[0].index.keys() - {b"date", b"x-request-id"}:
            assert found[0].index[name].strip() == expected[0].index[name].strip()


def test_a_shape_takes_other_times_ids_and_lengths_and_no_other_kind_of_answer() -> None:
    """What differs from answer to answer is no reason to read a head from scratch; what means something is."""

    def answer(kind: bytes, number: int) -> bytes:
        body = b"x" * number
        return b"HTTP/1.1 200 OK\r\nDate: %d\r\nX-Id: %d\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (
            number,
            number,
            kind,
            number,
            body,
        )

    first = whole_response(answer(b"application/json", 7))
    assert first is not None
    shape = shape_of(first[0])
    assert shape is not None
    found = shape.whole(answer(b"application/json", 12))
    assert found is not None
    assert (found[0].index[b"content-length"], found[1]) == (b"12", b"x" * 12)
    assert shape.whole(answer(b"text/event-stream", 7)) is None


def test_an_unusually_long_head_has_no_shape() -> None:
    """To make one would hold everybody up for as long as reading it a hundred times."""
    found = whole_response(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX-Long: " + b"x" * 2048 + b"\r\n\r\nx")
    assert found is not None
    assert shape_of(found[0]) is None
